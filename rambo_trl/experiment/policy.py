"""A trained policy with its normalisation as one safetensors file."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data import OfflineDataset
from rambo_trl.data.columns import DataDescription
from rambo_trl.data.environment import specification_text
from rambo_trl.data.scaling import denormalize_action, flat_bounds
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules.actor_critic import make_actor
from rambo_trl.runtime.places import expand_home

__all__ = ["Policy", "load_into_actor", "load_policy", "save_policy"]

_METADATA_KEY = "rambo_trl_policy"
_FORMAT_VERSION = 1

#: states in which a policy is compared with its actor, and the share of the bounds allowed
_CHECKED_STATES, _TOLERANCE = 64, 1e-5

#: double where the data need it
_STATISTICS = ("observation_mean", "observation_std")

#: in a run folder
POLICY_FILE = "policy.safetensors"


@dataclass(eq=False, repr=False)
class Policy:
    """A trained actor's mode, from raw observations to raw actions.

    Observations are normalised inside, exactly once, and actions scaled back to the environment's
    units: pass and take both as the environment has them.

    Attributes:
        actor: TensorDict module that reads normalised ``"observation"`` and writes ``"action"``.
        observation_mean: the data's mean per dimension, [observation_size].
        observation_std: the data's standard deviation per dimension, [observation_size].
        env_id: the Gymnasium environment that the policy was trained for.
        action_low: what the actor's -1 stands for in the environment's units, [action_size]; where
            None its actions are in them.
        action_high: what 1 stands for.
        data: names of the entries and what the data cover that it was trained on. The first
            observation far outside of their range gives a warning.
        env_spec: its full specification, where there is one.

    Examples:
        >>> policy = load_policy("runs/hopper")  # doctest: +SKIP
        >>> action = policy(env.reset()[0])  # doctest: +SKIP
    """

    actor: TensorDictModuleBase
    _: KW_ONLY
    observation_mean: torch.Tensor
    observation_std: torch.Tensor
    env_id: str
    action_low: torch.Tensor | None = None
    action_high: torch.Tensor | None = None
    data: DataDescription | None = None
    env_spec: EnvSpec | None = None

    def __post_init__(self) -> None:
        self._told_far = False

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
        self._warn_if_far(raw)
        action = _mode(self.actor, x)
        if self.action_low is not None and self.action_high is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        return action.cpu().numpy() if isinstance(observation, np.ndarray) else action

    def _warn_if_far(self, raw: torch.Tensor) -> None:
        """Warn once where observations [*, obs] are far outside the data's."""
        limits = None if self._told_far or self.data is None else self.data.far_limits
        if limits is None:
            return
        assert self.data is not None
        low, high = raw.new_tensor(limits)
        far = (raw < low) | (raw > high)
        if bool(far.any()):
            self._told_far = True
            torchrl_logger.warning(
                f"{self._name()} is asked far outside the data that it was trained on: "
                f"{self.data.tell_far(raw, far)}; what it does there is not learnt. This warning "
                "comes once"
            )


def save_policy(
    path: str | os.PathLike[str],
    actor: TensorDictModuleBase,
    *,
    observation_mean: torch.Tensor,
    observation_std: torch.Tensor,
    action_spec: Bounded,
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
        observation_mean: see :class:`Policy`.
        observation_std: see :class:`Policy`; positive.
        action_spec: bounds of the actor's actions, [action_size].
        env_id: see :class:`Policy`.
        action_low: what the lower bounds stand for, see :class:`Policy`.
        action_high: what the upper bounds stand for.
        data: see :class:`Policy`.
        env_spec: see :class:`Policy`.
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
        "hidden_sizes": _hidden_sizes(actor),
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
    tensors = {k: v.detach().cpu() for k, v in tensors.items()}
    tensors = {k: v if k in _STATISTICS else v.float() for k, v in tensors.items()}
    with _refusing("cannot save the policy"):
        _check_actions(_build(header, tensors, torch.device("cpu")), actor, action_spec)
    write_safetensors(path, tensors, _METADATA_KEY, header)


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
    path = policy_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no policy file at {path}")
    header, tensors = read_safetensors(path, _METADATA_KEY, "policy file")
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but not one written by save_policy")
    with _refusing(f"{path} is not a usable policy file"):
        return _build(header, tensors, torch.device(device))


def load_into_actor(
    path: str | os.PathLike[str], actor: TensorDictModuleBase, dataset: OfflineDataset
) -> None:
    """Give an actor the weights of a policy that was trained on the same data.

    No random number is drawn.

    Args:
        path: a file that :func:`save_policy` wrote, or a run's folder that holds it.
        actor: made by :func:`~rambo_trl.modules.actor_critic.make_actor`; changed in place.
        dataset: the data.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be used, or its policy has another normalisation, other
            action bounds or another network.
    """
    policy = load_policy(path)
    mean, std = dataset.observation_mean.cpu(), dataset.observation_std.cpu()
    same = mean.shape == policy.observation_mean.shape
    if same:  # in units of the data's deviation: sums may have been taken in another order
        shift = (policy.observation_mean - mean) / std
        same = bool(torch.cat([shift, policy.observation_std / std - 1]).abs().max() <= 1e-3)
    if not same:
        raise ValueError(
            f"{path} was trained on other data: its observations are normalised otherwise"
        )
    for end, saved, wanted in zip(
        ("low", "high"),
        (policy.action_low, policy.action_high),
        flat_bounds(dataset.action_low, dataset.action_high),
        strict=True,
    ):
        assert saved is not None
        if not torch.equal(saved, wanted):
            raise ValueError(
                f"{path} has actions with {end} {saved.tolist()}, the data's have {wanted.tolist()}"
            )
    saved_widths, widths = _hidden_sizes(policy.actor), _hidden_sizes(actor)
    if saved_widths != widths:
        raise ValueError(f"{path} has hidden layers of {saved_widths}, this actor has {widths}")
    with torch.no_grad():
        for parameter, saved in zip(actor.parameters(), policy.actor.parameters(), strict=True):
            parameter.copy_(saved)


def policy_path(path: str | os.PathLike[str]) -> Path:
    """The policy's file: the path itself, or in a run folder the one of that name."""
    path = expand_home(path)
    return path / POLICY_FILE if path.is_dir() else path


def _linear_layers(actor: nn.Module) -> list[nn.Linear]:
    return [module for module in actor.modules() if isinstance(module, nn.Linear)]


def _hidden_sizes(actor: nn.Module) -> list[int]:
    return [layer.out_features for layer in _linear_layers(actor)[:-1]]


@torch.no_grad()
def _mode(actor: TensorDictModuleBase, x: torch.Tensor) -> torch.Tensor:
    """An actor's mode [*, action] in normalised observations [*, obs]."""
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return actor(TensorDict({"observation": x}, batch_size=x.shape[:-1])).get("action")


def _check_actions(policy: Policy, actor: TensorDictModuleBase, action_spec: Bounded) -> None:
    """Raise a ValueError if a policy as it would be loaded acts otherwise than its actor."""
    low, high = (
        b.cpu().flatten().double() for b in (action_spec.space.low, action_spec.space.high)
    )
    given = copy.deepcopy(actor).cpu().float().eval()
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (_CHECKED_STATES, len(policy.observation_mean))
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    with torch.random.fork_rng(devices=[]):  # an actor of another kind may draw for its mode
        action, expected = (_mode(a, x).double() for a in (policy.actor, given))
    difference = (denormalize_action(action, low, high) - expected).abs()
    # the NaN of a diverged policy count as equal
    difference[action.isnan() & expected.isnan()] = 0
    if not (difference <= _TOLERANCE * torch.maximum(low.abs(), high.abs())).all():
        raise ValueError(
            f"the file's actions would differ by up to {difference.max():.2g} from this actor's: "
            "it is not one of make_actor's with the bounds of this action_spec"
        )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what a file's header and tensors may raise into one line."""
    try:
        yield
    except Exception as error:  # of many types
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{what}: {reason}") from error


def _build(
    header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> Policy:
    """The policy that header and tensors describe, its actor in float32 and in [-1, 1]."""
    version, text = header["format_version"], header.get("env_spec")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version}, this version of rambo_trl reads {_FORMAT_VERSION}"
        )
    bounds = [
        torch.tensor(header[key], dtype=torch.float64) for key in ("action_low", "action_high")
    ]
    low, high = flat_bounds(*bounds)
    if not ((low < high) & (high - low).isfinite()).all():
        raise ValueError("action_low must be below action_high, and both must be finite")
    mean, std = (tensors[key] for key in _STATISTICS)
    if not (mean.isfinite() & std.isfinite() & (std > 0)).all():
        raise ValueError("observation_mean must be finite and observation_std finite and positive")
    # The initial weights are drawn and then replaced; the caller's random stream stays untouched.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        actor = make_actor(
            len(mean),
            Bounded(-1, 1, shape=low.shape, dtype=torch.float32),
            hidden_sizes=header["hidden_sizes"],
            device=device,
            dtype=torch.float32,
        )
    for i, layer in enumerate(_linear_layers(actor)):
        layer.load_state_dict({key: tensors[f"layers.{i}.{key}"] for key in ("weight", "bias")})
    described = "observation_names" in header  # else the file of an older version
    return Policy(
        actor.requires_grad_(False).eval(),
        observation_mean=mean.to(device),
        observation_std=std.to(device),
        env_id=header["env_id"],
        env_spec=None if text is None else EnvSpec.from_json(text),
        action_low=low.to(device),
        action_high=high.to(device),
        data=DataDescription.of_header(header, (len(mean), len(low))) if described else None,
    )
