"""A trained policy with its normalisation as one safetensors file."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data.columns import DataDescription
from rambo_trl.data.environment import specification_text
from rambo_trl.data.scaling import denormalize_action, flat_bounds
from rambo_trl.data.storage import why_unreadable
from rambo_trl.experiment.folder import write_atomically
from rambo_trl.modules.actor_critic import make_actor
from rambo_trl.runtime.places import expand_home

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Policy", "load_into_actor", "load_policy", "save_policy"]

_METADATA_KEY = "rambo_trl_policy"
_FORMAT_VERSION = 1

#: before it is written a policy is compared with its actor on so many states, up to this share of
#: the bounds
_CHECKED_STATES, _TOLERANCE = 64, 1e-5

#: kept in double precision where the data need it
_STATISTICS = ("observation_mean", "observation_std")

_FILE_NAME = "policy.safetensors"  # in a run folder


class Policy:
    """A trained actor's mode, from raw observations to raw actions.

    Observations are normalised inside, exactly once, and actions scaled back to the environment's
    units: pass and take both as the environment has them.

    Args:
        actor: reads normalised ``"observation"`` and writes ``"action"``.
        observation_mean: the data's mean per dimension, [observation_size].
        observation_std: the data's standard deviation per dimension, [observation_size].
        env_id: the Gymnasium environment that the policy was trained for.
        action_low: what the actor's -1 stands for in the environment's units, [action_size]; where
            None its actions are in them.
        action_high: what 1 stands for.
        data: names of the entries and range of the observations that it was trained on. An
            observation far outside of it is told once, in a warning.
        env_spec: its full specification, where there is one.

    Attributes:
        actor: the TensorDict module, from normalised observations to actions of its own units.
        observation_mean: [observation_size].
        observation_std: [observation_size].
        env_id: a Gymnasium id.
        action_low: as given.
        action_high: as given.
        data: as given; entries without names and range where None.
        env_spec: as given.

    Examples:
        >>> policy = load_policy("runs/hopper")  # doctest: +SKIP
        >>> action = policy(env.reset()[0])  # doctest: +SKIP
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        *,
        observation_mean: torch.Tensor,
        observation_std: torch.Tensor,
        env_id: str,
        action_low: torch.Tensor | None = None,
        action_high: torch.Tensor | None = None,
        data: DataDescription | None = None,
        env_spec: EnvSpec | None = None,
    ) -> None:
        self.actor = actor
        self.observation_mean = observation_mean
        self.observation_std = observation_std
        self.action_low, self.action_high = action_low, action_high
        self.env_id, self.env_spec = env_id, env_spec
        self.data = data
        self._limits = None if data is None else data.limits(observation_mean, observation_std)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(env_id={self.env_id!r}, actor={self.actor})"

    @property
    def environment(self) -> str | EnvSpec:
        """What the policy is played in: the specification or else the id.

        Raises:
            ValueError: if it names a module that is not imported, which a file is not to decide.
        """
        module, colon, _ = self.env_id.rpartition(":")
        if colon and module not in sys.modules:
            raise ValueError(
                f"{self._name()} is of an environment of the module {module}, which is not "
                "imported because a file says so: import it first, or give the environment"
            )
        return self.env_spec or self.env_id

    def _name(self) -> str:
        return f"the policy for {self.env_id}" if self.env_id else "this policy"

    @overload
    def __call__(self, observation: torch.Tensor) -> torch.Tensor: ...

    @overload
    def __call__(self, observation: ArrayLike) -> np.ndarray: ...

    def __call__(self, observation: torch.Tensor | ArrayLike) -> torch.Tensor | np.ndarray:
        """Choose the policy's mode.

        Args:
            observation: raw observations, [*, observation_size] with any leading shape.

        Returns:
            Actions [*, action_size] in the environment's units, in float32 (float64 where the
            bounds need it): an array for an array or a list, a tensor (on the policy's device) for
            a tensor. They carry no gradient.

        Raises:
            ValueError: if the last dimension is not the policy's observation size, or a number is
                not finite.
        """
        size = self.observation_mean.shape[-1]
        if isinstance(observation, Mapping | TensorDictBase):
            raise ValueError(
                f"{self._name()} takes one array of {size} entries, got the entries "
                f"{', '.join(map(str, observation.keys()))}: join them in the data's order, as its "
                "data set's observation_layout.flatten does"
            )
        if not isinstance(observation, torch.Tensor):
            observation = np.asarray(observation)
        if observation.ndim == 0 or observation.shape[-1] != size:
            raise ValueError(
                f"{self._name()} takes observations of shape [..., {size}], "
                f"got {list(observation.shape)}"
            )
        mean = self.observation_mean
        raw = torch.as_tensor(observation, dtype=mean.dtype, device=mean.device)
        if not bool(raw.isfinite().all()):
            bad = (~raw.isfinite()).reshape(-1, size).any(0).nonzero().flatten().tolist()
            entries = bad if self.data is None else [self.data.observation_names[i] for i in bad]
            raise ValueError(
                f"{self._name()} was given values that are not finite, in entries {entries} of the "
                "observation: repair the reading, or act by another rule"
            )
        x = ((raw - mean) / self.observation_std).float()
        self._warn_if_far(raw, x)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            td = self.actor(TensorDict({"observation": x}, batch_size=x.shape[:-1]))
        action = td.get("action")
        if self.action_low is not None and self.action_high is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        return action.cpu().numpy() if isinstance(observation, np.ndarray) else action

    def _warn_if_far(self, raw: torch.Tensor, x: torch.Tensor) -> None:
        """Tell once where observations [*, obs] are far outside the data's."""
        if self._limits is None:
            return
        assert self.data is not None
        far = (x < self._limits[0]) | (x > self._limits[1])
        if bool(far.any()):
            self._limits = None  # told once
            torchrl_logger.warning(
                f"{self._name()} is asked far outside the data that it was trained on: "
                f"{self.data.tell_far(raw, far)}; what it does there is not learnt. This is told "
                "once"
            )


def save_policy(
    path: str | os.PathLike[str],
    actor: TensorDictModuleBase,
    *,
    observation_mean: torch.Tensor,
    observation_std: torch.Tensor,
    action_spec: Bounded,
    hidden_sizes: Sequence[int],
    env_id: str,
    action_low: torch.Tensor | None = None,
    action_high: torch.Tensor | None = None,
    data: DataDescription | None = None,
    env_spec: EnvSpec | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write an actor and its normalisation to one file, in one step.

    Before it is written, the policy that would be loaded is compared with the actor in a few
    states. The global random state is left as it was.

    Args:
        path: the file to write or replace, usually ``*.safetensors``.
        actor: made by :func:`~rambo_trl.modules.actor_critic.make_actor`.
        observation_mean: the data's mean per dimension, [observation_size].
        observation_std: the data's standard deviation per dimension, [observation_size];
            positive.
        action_spec: bounds of the actor's actions, [action_size].
        hidden_sizes: widths of the actor's hidden layers.
        env_id: the Gymnasium environment that the policy was trained for.
        action_low: what the lower bounds stand for in the environment's units, [action_size]; where
            None the actor's actions are in them.
        action_high: what the upper bounds stand for.
        data: names of the entries and range of the observations; see :class:`Policy`.
        env_spec: its full specification, where there is one.
        notes: JSON-like remarks kept in the file's header, such as the score.

    Raises:
        ValueError: if a shape does not fit the others, a bound or a statistic is not finite, a
            standard deviation is not positive, or the loaded policy would act differently.
    """
    if action_low is None or action_high is None:
        action_low, action_high = action_spec.space.low, action_spec.space.high
    header = {
        "format_version": _FORMAT_VERSION,
        "env_id": env_id,
        "network": {"kind": "tanh_normal_mlp", "activation": "relu"},
        "hidden_sizes": [int(size) for size in hidden_sizes],
        "action_low": action_low.flatten().tolist(),
        "action_high": action_high.flatten().tolist(),
        "notes": dict(notes or {}),
        **({} if data is None else data.as_header()),
    }
    if env_spec is not None:
        try:
            header["env_spec"] = specification_text(env_spec)
        except ValueError as error:
            torchrl_logger.warning(f"{path}: {error}; the policy's file names {env_id} alone")
    tensors = {"observation_mean": observation_mean, "observation_std": observation_std}
    for i, layer in enumerate(_linear_layers(actor)):
        tensors[f"layers.{i}.weight"] = layer.weight
        tensors[f"layers.{i}.bias"] = layer.bias
    # Copies, since parameters that share one storage cannot be written as they are.
    tensors = {
        key: value.detach().to("cpu", None if key in _STATISTICS else torch.float32, copy=True)
        for key, value in tensors.items()
    }
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    problem = _find_problem(header, tensors) or _find_difference(
        header, tensors, actor, action_spec
    )
    if problem:
        raise ValueError(f"cannot save the policy: {problem}")
    write_atomically(expand_home(path), save(tensors, metadata={_METADATA_KEY: json.dumps(header)}))


def load_policy(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Policy:
    """Read a policy that :func:`save_policy` wrote. Nothing is unpickled.

    Args:
        path: the file, or a run's folder that holds it.
        device: where the policy is put.

    Returns:
        The policy, in float32. The global random state is left as it was.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, no policy file or of a later format.
    """
    return _build_policy(*_read_whole(Path(path)), device=torch.device(device))


def load_into_actor(
    path: str | os.PathLike[str],
    actor: TensorDictModuleBase,
    *,
    observation_mean: torch.Tensor,
    observation_std: torch.Tensor,
    action_spec: Bounded,
) -> None:
    """Give an actor the weights of a policy that was trained on the same data.

    No random number is drawn.

    Args:
        path: a file that :func:`save_policy` wrote, or a run's folder that holds it.
        actor: made by :func:`~rambo_trl.modules.actor_critic.make_actor`; changed in place.
        observation_mean: the data's mean per dimension, [observation_size].
        observation_std: the data's standard deviation per dimension, [observation_size].
        action_spec: bounds of the actions in the environment's units, [action_size].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be used, or its policy has another normalisation, other
            action bounds or another network.
    """
    header, tensors = _read_whole(Path(path))
    mean, std = observation_mean.cpu(), observation_std.cpu()
    saved_mean, saved_std = tensors["observation_mean"], tensors["observation_std"]
    if mean.shape != saved_mean.shape:
        raise ValueError(
            f"{path} takes observations of {len(saved_mean)} entries, the data's have {len(mean)}"
        )
    # in units of the data's deviation: as good as the same where sums were taken in another order
    apart = torch.cat([(saved_mean - mean) / std, saved_std / std - 1]).abs().max()
    if apart > 1e-3:
        raise ValueError(
            f"{path} was trained on other data: its observations are normalised otherwise"
        )
    for name, bound in (("low", action_spec.space.low), ("high", action_spec.space.high)):
        saved, own = header[f"action_{name}"], bound.flatten().tolist()
        if saved != own:
            raise ValueError(f"{path} has actions with {name} {saved}, the data's have {own}")
    widths = [layer.out_features for layer in _linear_layers(actor)[:-1]]
    if header["hidden_sizes"] != widths:
        raise ValueError(
            f"{path} has hidden layers of {header['hidden_sizes']}, this actor has {widths}"
        )
    _copy_weights(tensors, actor)


def _build_policy(
    header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, device: torch.device
) -> Policy:
    """The policy that header and tensors describe, its actor in float32 and in [-1, 1]."""
    bounds = (torch.tensor(header[f"action_{end}"], dtype=torch.float64) for end in ("low", "high"))
    low, high = flat_bounds(*bounds)
    mean, std = (tensors[key] for key in _STATISTICS)
    return Policy(
        _build_actor(header, tensors, -torch.ones(len(low)), torch.ones(len(low)), device),
        observation_mean=mean.to(device),
        observation_std=std.to(device),
        env_id=header["env_id"],
        env_spec=_recorded_spec(header),
        action_low=low.to(device),
        action_high=high.to(device),
        data=_data_of(header, tensors),
    )


def _build_actor(
    header: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    low: torch.Tensor,
    high: torch.Tensor,
    device: torch.device,
) -> TensorDictModuleBase:
    """The actor that header and tensors describe, with the given bounds, in float32."""
    dtype = torch.float32
    # The initial weights are drawn and then replaced; the caller's random stream stays untouched.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        actor = make_actor(
            tensors["observation_mean"].shape[0],
            Bounded(low, high, dtype=dtype),
            hidden_sizes=header["hidden_sizes"],
            device=device,
            dtype=dtype,
        )
    _copy_weights(tensors, actor)
    return actor.requires_grad_(False).eval()


def _data_of(
    header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> DataDescription | None:
    """What the header tells of the data; None for a file of an older version."""
    if "observation_names" not in header:
        return None
    sizes = len(tensors["observation_mean"]), len(header["action_low"])
    return DataDescription.of_header(header, sizes)


def _find_difference(
    header: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    actor: TensorDictModuleBase,
    action_spec: Bounded,
) -> str | None:
    """Check that the actor of header and tensors acts as the given one; what differs if not."""
    low, high = (b.cpu().flatten().float() for b in (action_spec.space.low, action_spec.space.high))
    mean, std = (tensors[key] for key in _STATISTICS)
    loaded, own = (
        Policy(a, observation_mean=mean, observation_std=std, env_id="")
        for a in (
            _build_actor(header, tensors, low, high, torch.device("cpu")),
            copy.deepcopy(actor).cpu().float().eval(),
        )
    )
    observation = _draw_observations(loaded)
    with torch.random.fork_rng(devices=[]):  # an actor of another kind may draw for its mode
        action, expected = (policy(observation).float() for policy in (loaded, own))
    scale = torch.maximum(low.abs(), high.abs())
    # the NaN of a diverged policy count as equal
    if torch.allclose(action / scale, expected / scale, rtol=0, atol=_TOLERANCE, equal_nan=True):
        return None
    largest = (action - expected).abs().max()
    parts = zip_longest(_parts(own.actor), _parts(loaded.actor), fillvalue="nothing")
    reasons = (f"it has {one} where the file means {other}" for one, other in parts if one != other)
    reason = next(reasons, "it is not one of make_actor's")
    return f"the file's actions would differ by up to {largest:.2g} from this actor's: {reason}"


def _draw_observations(policy: Policy) -> torch.Tensor:
    """The same few raw observations at every call, spread wider than the data's."""
    mean, std = policy.observation_mean, policy.observation_std
    noise = torch.randn(
        (_CHECKED_STATES, len(mean)),
        generator=torch.Generator("cpu").manual_seed(0),
        dtype=mean.dtype,
        device="cpu",
    )
    return mean + 3 * noise * std


def _parts(actor: nn.Module) -> list[str]:
    """What an actor is made of, in words and in order."""
    return [_describe(module) for module in actor.modules() if not list(module.children())]


def _describe(module: nn.Module) -> str:
    if not isinstance(module, ProbabilisticTensorDictModule):
        return type(module).__name__
    settings = (
        f"{key}={value.tolist() if isinstance(value, torch.Tensor) else value}"
        for key, value in module.distribution_kwargs.items()
    )
    return f"{module.distribution_class.__name__}({', '.join(settings)})"


def _linear_layers(actor: nn.Module) -> list[nn.Linear]:
    return [module for module in actor.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def _copy_weights(tensors: Mapping[str, torch.Tensor], actor: nn.Module) -> None:
    for i, layer in enumerate(_linear_layers(actor)):
        layer.weight.copy_(tensors[f"layers.{i}.weight"])
        layer.bias.copy_(tensors[f"layers.{i}.bias"])


def _recorded_spec(header: Mapping[str, Any]) -> EnvSpec | None:
    text = header.get("env_spec")
    return None if text is None else EnvSpec.from_json(text)


def policy_path(path: Path) -> Path:
    """The policy's file: the path itself, or in a run folder the one of that name."""
    path = expand_home(path)
    return path / _FILE_NAME if path.is_dir() else path


def _read_whole(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, or of a run folder's, that describes a policy."""
    path = policy_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no policy file at {path}")
    header, tensors = _read(path)
    problem = _find_problem(header, tensors)
    if problem:
        raise ValueError(f"{path} is not a usable policy file: {problem}")
    return header, tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, or a ValueError that says what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        why = why_unreadable(error, damaged="is not a policy file, or only a part of one")
        raise ValueError(f"{path} {why}") from None
    if _METADATA_KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not one written by save_policy")
    try:
        header = json.loads(metadata[_METADATA_KEY])
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a usable policy file: its header is not a JSON object")
    return header, tensors


def _find_problem(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Check that header and tensors describe one policy; the first thing that does not fit."""
    version = header.get("format_version")
    if version != _FORMAT_VERSION:
        return f"format_version is {version}, this version of rambo_trl reads {_FORMAT_VERSION}"
    if not isinstance(header.get("env_id"), str):
        return "env_id must be a string"
    try:
        _recorded_spec(header)
    except Exception as error:  # of many types
        return f"env_spec is no specification of an environment ({type(error).__name__}: {error})"
    hidden: Any = header.get("hidden_sizes")
    low: Any = header.get("action_low")
    high: Any = header.get("action_high")
    if not isinstance(hidden, list) or not all(type(n) is int and n > 0 for n in hidden):
        return f"hidden_sizes must be positive integers, got {hidden}"
    for name, bound in (("action_low", low), ("action_high", high)):
        if (
            not isinstance(bound, list)
            or not bound
            or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in bound)
        ):
            return f"{name} must be finite numbers, got {bound}"
    if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
        return f"action_low must be below action_high, got {low} and {high}"

    mean, std = tensors.get("observation_mean"), tensors.get("observation_std")
    if mean is None or std is None or mean.ndim != 1 or mean.shape != std.shape:
        shapes = [None if t is None else list(t.shape) for t in (mean, std)]
        return f"observation_mean and observation_std must be [observation_size], got {shapes}"
    if not mean.isfinite().all() or not std.isfinite().all() or not (std > 0).all():
        return "observation_mean must be finite and observation_std finite and positive"

    expected = {key: list(mean.shape) for key in ("observation_mean", "observation_std")}
    sizes = [mean.shape[0], *hidden, 2 * len(low)]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        expected[f"layers.{i}.weight"] = [fan_out, fan_in]
        expected[f"layers.{i}.bias"] = [fan_out]
    found = {key: list(value.shape) for key, value in tensors.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            return f"{key} should have the shape {expected.get(key)}, got {found.get(key)}"
    try:
        _data_of(header, tensors)
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return None
