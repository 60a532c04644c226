"""RAMBO on data in memory-mapped files: the same run, and no step that copies all the data."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rambo
import torch
from launcher.command_line import compose_jobs
from launcher.launch import make_run
from tensordict import MemoryMappedTensor
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, support
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.pretrained import dataset_digest
from rambo_trl.experiment.signals import Interruption
from rambo_trl.modules import statistics

ROWS, OBSERVATION_SIZE = 30_000, 32


@contextmanager
def allocations(trace: Path) -> Iterator[list[int]]:
    """The bytes of every piece of memory that torch takes on the CPU, in C++ too."""
    sizes: list[int] = []
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield sizes
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    sizes += [event["args"]["Bytes"] for event in events if event["name"] == "[memory]"]


@pytest.fixture(autouse=True)
def _long_data(brief_ending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a policy's file says of the data is measured on a part of long data, as here."""
    monkeypatch.setattr(support, "_ROWS", 1000)
    monkeypatch.setattr(support, "_CHUNK", 1000)


@pytest.fixture(scope="module")
def in_memory() -> OfflineDataset:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(ROWS + 1, OBSERVATION_SIZE)).astype(np.float32)
    terminals = np.abs(states[1:, 0]) > 2
    arrays = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, size=(ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminals": terminals,
        "timeouts": (np.arange(ROWS) % 50 == 49) & ~terminals,
    }
    return OfflineDataset.from_arrays(arrays, action_spec=Bounded(-1, 1, shape=(2,)), name="log")


def train(data: OfflineDataset, path: Path) -> dict[str, Any]:
    """A small run of every phase."""
    words = (
        "schedule=smoke", "task=hopper-medium-replay", "termination=none", "rollout_length=2",
        "rollout_starts=100", "agent_updates=5", "model_updates=6", "agent.batch_size=32",
        "model.batch_size=512", "cloning.batch_size=512", "pretrained=auto",
        "model.max_updates=20", "model.holdout_every=10", "cloning.updates=10",
        f"cache_dir={path}/cache",
    )  # fmt: skip
    (cfg,) = compose_jobs("rambo", words, check=lambda cfg: None)
    seed_everything(0)
    run = make_run(cfg, data, RunFolder.create(path / "run"), Interruption())
    return rambo.train(run, cfg, data)


def test_a_mapped_set_gives_the_same_run_and_is_never_copied(
    in_memory: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory.memmap(tmp_path / "set")
    mapped = OfflineDataset.load(tmp_path / "set")
    observation = mapped.transitions["observation"]
    assert isinstance(observation, MemoryMappedTensor)
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 1000)  # far less than there are

    wanted = train(in_memory, tmp_path / "memory")
    with allocations(tmp_path / "trace.json") as sizes:
        found = train(mapped, tmp_path / "mapped")
    # no column of the data; the largest are the members' predictions of the 1000 held-out rows
    assert len(sizes) > 5000 and max(sizes) < 0.75 * observation.nbytes

    for results in (wanted, found):
        del results["seconds"]
    assert found == wanted

    def left_behind(kind: str) -> tuple[bytes, list[dict[str, str]], list[str]]:
        """The policy, the metrics, and the name of the file with the fitted model."""
        run = tmp_path / kind / "run"
        metrics = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
        pretrained = [file.name for file in (tmp_path / kind / "cache").glob("*.pt")]
        return (run / "policy.safetensors").read_bytes(), metrics, pretrained

    assert left_behind("mapped") == left_behind("memory")
    _, metrics, pretrained = left_behind("mapped")
    assert len(metrics) == 2 and len(pretrained) == 1


def test_the_cache_s_key_reads_files_where_they_are(
    in_memory: OfflineDataset, tmp_path: Path
) -> None:
    mapped = in_memory.memmap(tmp_path / "set")
    tracemalloc.start()
    try:
        digest = dataset_digest(mapped)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert digest == dataset_digest(in_memory)
    assert peak < 0.01 * mapped.transitions.bytes()
