from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.run import Epoch, Run, RunOptions
from rambo_trl.experiment.signals import Interruption
from rambo_trl.modules import make_actor


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class ToyRun(Run):
    """A run on twenty rows whose policy's parameters all are the number of the epoch.

    Args:
        path: its folder, new or one to resume.

    Keyword Args:
        env_id: where it is evaluated; nowhere by default.
        signals: by default those of nobody.
        **options: of :class:`RunOptions`; by default it is evaluated and saved after each epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        env_id: str | None = None,
        signals: Interruption | None = None,
        **options: Any,
    ) -> None:
        numbers = torch.linspace(-1, 1, 20).unsqueeze(-1)
        after = TensorDict(
            observation=numbers,
            reward=numbers,
            terminated=torch.ones(20, 1, dtype=torch.bool),
            batch_size=[20],
        )
        rows = TensorDict(observation=numbers, action=numbers, next=after, batch_size=[20])
        data = OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)), env_id=env_id)
        self.actor = make_actor(1, Bounded(-1, 1, shape=(1,)), hidden_sizes=(4,))
        self.learn(0)
        folder = RunFolder(path) if path.exists() else RunFolder.create(path)
        often = {"evaluation_episodes": 2, "evaluation_every": 1, "checkpoint_every": 1}
        options = {"epochs": 4, "gamma": 0.9, **often, **options}
        super().__init__(data, folder, signals or Interruption(), RunOptions(**options), say=print)

    def learn(self, epoch: int) -> None:
        for parameter in self.actor.parameters():
            parameter.data.fill_(float(epoch))

    def play(self) -> Iterator[Epoch]:
        """Begin or resume; the epochs, each with its policy."""
        self.track(label="toy", policy=self.actor, actor=self.actor)
        bound = DivergenceMonitor(1.0, 0.9)  # a mean Q of up to 20
        for epoch in self.epochs(monitor=bound, updates=1):
            self.learn(epoch.number)
            yield epoch

    def train(self, metrics: Callable[[int], Mapping[str, Any]] = lambda _: {}) -> dict[str, Any]:
        """Log some metrics in each epoch; the results."""
        for epoch in self.play():
            with epoch.phase("agent"):
                epoch.log(metrics(epoch.number))
        return self.finish()


@pytest.fixture(scope="session")
def toy() -> type[ToyRun]:
    """Runs whose training is a toy, for tests of what happens around it."""
    return ToyRun
