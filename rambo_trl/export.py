"""A trained policy for other runtimes: ``python -m rambo_trl.export RUN --format onnx``.

The exported file reads raw observations and holds the normalisation, so that whoever runs it needs
neither this library nor TorchRL: ``pt2`` is :func:`torch.export.save`'s format, ``onnx`` runs in
ONNX Runtime and the like. Both take any number of observations at once. With ``--guard`` it also
limits actions to those in the logs and flags observations that are far from the data.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data.scaling import denormalize_action
from rambo_trl.experiment.folder import write_atomically
from rambo_trl.experiment.guard import Guard, GuardModule
from rambo_trl.experiment.policy import Policy, load_policy, policy_path
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy
from rambo_trl.runtime.terminal import set_up_messages

__all__ = ["ExportFormat", "PolicyModule", "export_policy"]

ExportFormat = Literal["pt2", "onnx"]

#: the exported file is compared with the policy on so many states, up to this share of each
#: action entry's range
CHECKED_STATES, TOLERANCE = 1000, 1e-5


class PolicyModule(nn.Module):
    """A policy's mode with its units as a plain module, for exporters and tracers.

    Args:
        policy: read and left as it is; its tensors are shared.
        guard: what is done to actions, see :class:`~rambo_trl.experiment.guard.GuardedPolicy`;
            None leaves the guard out.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded
        >>> from rambo_trl.modules import make_actor
        >>> from rambo_trl.experiment.policy import Policy
        >>> actor = make_actor(3, Bounded(low=-torch.ones(2), high=torch.ones(2)))
        >>> policy = Policy(
        ...     actor,
        ...     observation_mean=torch.zeros(3),
        ...     observation_std=torch.ones(3),
        ...     env_id="Hopper-v5",
        ... )
        >>> PolicyModule(policy)(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    observation_mean: torch.Tensor
    observation_std: torch.Tensor
    action_low: torch.Tensor | None
    action_high: torch.Tensor | None

    def __init__(self, policy: Policy, guard: Guard | None = None) -> None:
        super().__init__()
        self.guard = None if guard is None else GuardModule(policy, guard)
        self.actor = policy.actor
        self.register_buffer("observation_mean", policy.observation_mean)
        self.register_buffer("observation_std", policy.observation_std)
        self.register_buffer("action_low", policy.action_low)
        self.register_buffer("action_high", policy.action_high)

    @property
    def inputs(self) -> list[str]:
        """Names of what :meth:`forward` takes."""
        rate = self.guard is not None and self.guard.guard == "rate"
        return ["observation", "previous_action"] if rate else ["observation"]

    @property
    def outputs(self) -> list[str]:
        """Names of what it returns."""
        return ["action", *([] if self.guard is None else ["distance", "far", "outside"])]

    def example(self, rows: int) -> tuple[torch.Tensor, ...]:
        """So many inputs; exporters take a size of one for a constant."""
        examples = [self.observation_mean.expand(rows, -1).clone()]
        if len(self.inputs) > 1:
            assert self.guard is not None
            middle = (self.guard.action_low + self.guard.action_high) / 2
            examples.append(middle.expand(rows, -1).clone())
        return tuple(examples)

    def forward(
        self, observation: torch.Tensor, previous_action: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Raw actions [B, action_size] in raw observations [B, observation_size].

        With a guard its outputs, see :meth:`~rambo_trl.experiment.guard.GuardModule.forward`.
        """
        x = ((observation - self.observation_mean) / self.observation_std).float()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = self.actor.select_out_keys("action")(observation=x)
        if self.action_low is not None and self.action_high is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        return action if self.guard is None else self.guard(observation, action, previous_action)


def export_policy(
    policy: Policy,
    path: str | os.PathLike[str],
    *,
    format: ExportFormat = "pt2",
    guard: Guard | None = None,
) -> float:
    """Write a policy in a format that runs without this library, and check what was written.

    The file has one input, ``observation`` [B, observation_size] as the environment gives it, and
    one output, ``action`` [B, action_size] in the environment's units; B is free. Both are float32,
    or float64 where the policy's statistics or bounds are. It runs on a CPU. Its metadata
    (``rambo_trl``, JSON) holds what the policy knows: environment, names, normalisation, bounds,
    and what its data cover.

    With a guard it has three more outputs, ``distance`` [B], ``far`` [B] and ``outside``
    [B, observation_size], as :meth:`~rambo_trl.experiment.guard.GuardModule.forward` returns them.
    ``guard="rate"`` has the input ``previous_action`` [B, action_size] as well, of what was applied
    before, with NaN at the start: the file remembers nothing.

    Args:
        policy: as :func:`rambo_trl.load_policy` returns it.
        path: the file to write.
        format: ``"pt2"`` for :func:`torch.export.load`, ``"onnx"`` for ONNX runtimes (needs the
            extra ``export``).
        guard: what is done to actions, see :class:`~rambo_trl.experiment.guard.GuardedPolicy`;
            None leaves the guard out.

    Returns:
        The largest difference between an exported action and the policy's own, as a share of the
        entry's range, over 1,000 states drawn around the data's mean.

    Raises:
        FileExistsError: if there is such a file.
        ImportError: if a package of the extra ``export`` is missing.
        ValueError: for an unknown format or guard, or if the policy does not know what the guard
            needs.
        RuntimeError: if the exported actions differ from the policy's; nothing is written.
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(ExportFormat))}, got {format}")
    path = expand_home(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name another file")
    module = copy.deepcopy(PolicyModule(policy, guard)).to("cpu").eval()
    data, run = {"pt2": _to_pt2, "onnx": _to_onnx}[format](module, _describe(policy, module))
    names = None if policy.data is None else policy.data.action_names
    difference = _largest_difference(module, run, names)
    write_atomically(path, data)
    return difference


def _describe(policy: Policy, module: PolicyModule) -> dict[str, Any]:
    """What a reader of the exported file should know about it."""

    def listed(values: torch.Tensor | None) -> list[float] | None:
        return None if values is None else values.tolist()

    data, limits = policy.data, None if policy.data is None else policy.data.far_limits
    return {
        "env_id": policy.env_id,
        "observation_size": policy.observation_mean.shape[-1],
        "input": "raw observations: the normalisation is inside",
        "input_dtype": _dtype_name(policy.observation_mean),
        "inputs": module.inputs,
        "output": "raw actions: the scaling to their bounds is inside",
        "outputs": module.outputs,
        "guard": None if module.guard is None else module.guard.guard,
        "observation_mean": listed(policy.observation_mean),
        "observation_std": listed(policy.observation_std),
        "action_low": listed(policy.action_low),
        "action_high": listed(policy.action_high),
        **({} if data is None else data.as_header()),
        **({} if limits is None else dict(zip(("far_low", "far_high"), limits, strict=True))),
    }


def _dtype_name(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


Run = Callable[..., tuple[np.ndarray, ...]]


def _to_pt2(module: PolicyModule, about: dict[str, Any]) -> tuple[bytes, Run]:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        module, module.example(2), dynamic_shapes={name: {0: batch} for name in module.inputs}
    )
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={"rambo_trl": json.dumps(about)})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        made = loaded(*map(torch.as_tensor, inputs))
        return tuple(y.detach().numpy() for y in _as_tuple(made))

    return file.getvalue(), run


def _as_tuple(made: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def _to_onnx(module: PolicyModule, about: dict[str, Any]) -> tuple[bytes, Run]:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"format=onnx needs {name}: pip install 'rambo_trl[export]'")
    import onnxruntime

    converter = logging.getLogger("torch.onnx")
    with warnings.catch_warnings(), ExitStack() as after:
        # it reports on itself and on every optional package that it does without
        warnings.simplefilter("ignore")
        after.callback(converter.setLevel, converter.level)
        converter.setLevel("ERROR")
        program = torch.onnx.export(
            module,
            module.example(2),
            dynamo=True,
            dynamic_shapes={name: {0: "batch"} for name in module.inputs},
            input_names=module.inputs,
            output_names=module.outputs,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["rambo_trl"] = json.dumps(about)
    data = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return data, lambda *x: tuple(session.run(None, dict(zip(module.inputs, x, strict=True))))


def _largest_difference(module: PolicyModule, run: Run, names: Sequence[str] | None) -> float:
    """Compare an exported policy with the original, on a batch and on a single state."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(CHECKED_STATES, len(module.observation_mean), generator=generator)
    x = module.observation_mean + 3 * noise * module.observation_std
    given = [x, *(p.expand(CHECKED_STATES, -1) for p in module.example(1)[1:])]
    with torch.no_grad():
        expected, *flags = (y.numpy() for y in _as_tuple(module(*given)))
    parts = [run(*(v[rows].numpy() for v in given)) for rows in (slice(0, 1), slice(1, None))]
    got, *got_flags = (np.concatenate(part) for part in zip(*parts, strict=True))
    for name, one, other in zip(module.outputs[1:], flags, got_flags, strict=True):
        if not np.allclose(one.astype(float), other.astype(float), rtol=1e-4, atol=1e-6):
            raise RuntimeError(f"the exported output {name} differs from the guard's own")
    difference = np.abs(got - expected).max(axis=0)
    size = np.maximum(1.0, np.abs(expected).max(axis=0))
    if module.action_low is not None and module.action_high is not None:
        size = (module.action_high - module.action_low).numpy()
    share = difference / size
    entry = int(np.argmax(np.where(np.isnan(share), np.inf, share)))
    # written so that a NaN is refused
    if not share[entry] <= TOLERANCE:
        raise RuntimeError(
            f"exported actions differ from the policy's by up to {difference[entry]:.2g} in "
            f"{names[entry] if names else f'action {entry}'}, {share[entry]:.1g} of its range"
        )
    return float(share[entry])


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a run's policy; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rambo_trl.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=expand_home, help="run folder, or a policy file")
    parser.add_argument("--format", choices=get_args(ExportFormat), default="pt2")
    parser.add_argument(
        "--out", type=expand_home, help="file to write; policy.FORMAT beside the policy"
    )
    parser.add_argument(
        "--guard",
        choices=get_args(Guard),
        help="flag observations far from the data; range: also clip actions to those in the logs; "
        "rate: and to the logged change since the input previous_action",
    )
    options = parser.parse_args(arguments)
    set_up_messages()
    source = policy_path(options.run)
    out = options.out or source.with_suffix(f".{options.format}")
    try:
        with busy(f"exporting {source}"):
            difference = export_policy(
                load_policy(source), out, format=options.format, guard=options.guard
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1 if isinstance(error, RuntimeError) else 2
    sys.stdout.write(
        f"{out}: {CHECKED_STATES} actions agree with {source} to {difference:.1e} of their range\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
