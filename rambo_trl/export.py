"""A trained policy for other runtimes: ``python -m rambo_trl.export RUN --format onnx``.

The exported file reads raw observations and holds the normalisation, so that whoever runs it needs
neither this library nor TorchRL: ``pt2`` is :func:`torch.export.save`'s format, ``onnx`` runs in
ONNX Runtime and the like. Both take any number of observations at once.
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

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.actor = policy.actor
        self.register_buffer("observation_mean", policy.observation_mean)
        self.register_buffer("observation_std", policy.observation_std)
        self.register_buffer("action_low", policy.action_low)
        self.register_buffer("action_high", policy.action_high)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Raw actions [B, action_size] in raw observations [B, observation_size]."""
        x = ((observation - self.observation_mean) / self.observation_std).float()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = self.actor.select_out_keys("action")(observation=x)
        if self.action_low is not None and self.action_high is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        return action


def export_policy(
    policy: Policy, path: str | os.PathLike[str], *, format: ExportFormat = "pt2"
) -> float:
    """Write a policy in a format that runs without this library, and check what was written.

    The file has one input, ``observation`` [B, observation_size] as the environment gives it, and
    one output, ``action`` [B, action_size] in the environment's units; B is free. Both are float32,
    or float64 where the policy's statistics or bounds are. It runs on a CPU. The environment's id,
    the sizes and the actions' bounds are in its metadata (``rambo_trl``), and where the policy
    knows them the entries' names and the observations' range in the data.

    Args:
        policy: as :func:`rambo_trl.load_policy` returns it.
        path: the file to write.
        format: ``"pt2"`` for :func:`torch.export.load`, ``"onnx"`` for ONNX runtimes (needs the
            extra ``export``).

    Returns:
        The largest difference between an exported action and the policy's own, as a share of the
        entry's range, over 1,000 states drawn around the data's mean.

    Raises:
        FileExistsError: if there is such a file.
        ImportError: if a package of the extra ``export`` is missing.
        ValueError: for an unknown format.
        RuntimeError: if the exported actions differ from the policy's; nothing is written.
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(ExportFormat))}, got {format}")
    path = expand_home(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name another file")
    module = copy.deepcopy(PolicyModule(policy)).to("cpu").eval()
    data, run = {"pt2": _to_pt2, "onnx": _to_onnx}[format](module, _describe(policy))
    names = None if policy.data is None else policy.data.action_names
    difference = _largest_difference(module, run, names)
    write_atomically(path, data)
    return difference


def _describe(policy: Policy) -> dict[str, Any]:
    """What a reader of the exported file should know about it."""
    return {
        "env_id": policy.env_id,
        "observation_size": policy.observation_mean.shape[-1],
        "input": "raw observations: the normalisation is inside",
        "input_dtype": str(policy.observation_mean.dtype).removeprefix("torch."),
        "output": "raw actions: the scaling to their bounds is inside",
        "action_low": None if policy.action_low is None else policy.action_low.tolist(),
        "action_high": None if policy.action_high is None else policy.action_high.tolist(),
        **({} if policy.data is None else policy.data.as_header()),
    }


Run = Callable[[np.ndarray], np.ndarray]


def _to_pt2(module: PolicyModule, about: dict[str, Any]) -> tuple[bytes, Run]:
    exported = torch.export.export(
        module, (_example(module),), dynamic_shapes={"observation": {0: torch.export.Dim("batch")}}
    )
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={"rambo_trl": json.dumps(about)})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda x: loaded(torch.as_tensor(x)).detach().numpy()


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
            (_example(module),),
            dynamo=True,
            dynamic_shapes={"observation": {0: "batch"}},
            input_names=["observation"],
            output_names=["action"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["rambo_trl"] = json.dumps(about)
    data = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return data, lambda x: session.run(None, {"observation": x})[0]


def _example(module: PolicyModule) -> torch.Tensor:
    """Two observations: exporters take a size of one for a constant."""
    return module.observation_mean.expand(2, -1).clone()


def _largest_difference(module: PolicyModule, run: Run, names: Sequence[str] | None) -> float:
    """Compare an exported policy with the original, on a batch and on a single state."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(CHECKED_STATES, len(module.observation_mean), generator=generator)
    x = module.observation_mean + 3 * noise * module.observation_std
    with torch.no_grad():
        expected = module(x).numpy()
    got = np.concatenate([run(x[:1].numpy()), run(x[1:].numpy())])
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
    options = parser.parse_args(arguments)
    set_up_messages()
    source = policy_path(options.run)
    out = options.out or source.with_suffix(f".{options.format}")
    try:
        with busy(f"exporting {source}"):
            difference = export_policy(load_policy(source), out, format=options.format)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1 if isinstance(error, RuntimeError) else 2
    sys.stdout.write(
        f"{out}: {CHECKED_STATES} actions agree with {source} to {difference:.1e} of their range\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
