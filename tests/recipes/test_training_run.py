"""What happens around an epoch, with a method that does nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import compose_jobs
from tensordict import TensorDict
from torchrl.data import Bounded
from training_run import Run

from rambo_trl.data import OfflineDataset
from rambo_trl.modules import make_actor
from rambo_trl.training.divergence import DivergenceMonitor
from rambo_trl.training.interruption import Interrupted, Interruption
from rambo_trl.training.run_folder import RunFolder


class Idle:
    """A method that learns nothing."""

    label = "idle"
    updates = 1

    def __init__(self) -> None:
        self.actor = make_actor(1, Bounded(-1, 1, shape=(1,)), hidden_sizes=(4,))

    def stateful_parts(self) -> dict[str, Any]:
        return {"actor": self.actor}

    def monitor(self) -> DivergenceMonitor:
        return DivergenceMonitor(1.0, 0.9)

    def results(self) -> dict[str, Any]:
        return {}


def dataset() -> OfflineDataset:
    rows, numbers = 20, torch.linspace(-1, 1, 20).unsqueeze(-1)
    transitions = TensorDict(
        observation=numbers,
        action=numbers,
        next=TensorDict(
            observation=numbers,
            reward=numbers,
            terminated=torch.ones(rows, 1, dtype=torch.bool),
            batch_size=[rows],
        ),
        batch_size=[rows],
    )
    return OfflineDataset(transitions, action_spec=Bounded(-1, 1, shape=(1,)))


def make_run(path: Path, *words: str) -> Run:
    (cfg,) = compose_jobs("bc", ["schedule=smoke", *words], check=lambda cfg: None)
    folder = RunFolder(path) if path.exists() else RunFolder.create(path)
    return Run(cfg, dataset(), folder, Interruption(grace=0.2))


@pytest.mark.parametrize(
    "moment", ["it is going on", "its checkpoint was decided on", "it has ended"]
)
def test_a_signal_ends_the_run_with_its_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "epochs=6", "checkpoint_every=100")

    def decide(epoch: int) -> bool:
        if epoch == 2 and moment == "its checkpoint was decided on":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    epochs = []
    with pytest.raises(Interrupted), run.signals:
        run.begin(Idle())
        monkeypatch.setattr(run.checkpoints, "due", decide)
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                epochs.append(row["epoch"])
                if row["epoch"] == 2 and moment == "it is going on":
                    os.kill(os.getpid(), signal.SIGTERM)
                if row["epoch"] == 3:
                    time.sleep(1)  # longer than is waited for a signalled run
            if row["epoch"] == 2 and moment == "it has ended":
                os.kill(os.getpid(), signal.SIGTERM)
    assert epochs == [1, 2]
    progress = run.checkpoints.load()
    assert progress is not None and progress["epoch"] == 2
    assert [row["epoch"] for row in run.folder.read_metrics()] == [1, 2]


def test_a_run_begun_without_a_column_goes_on_without_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for epochs in (2, 4):
        run = make_run(path, f"epochs={epochs}")
        run.begin(Idle())
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                row["start_value"] = 1.0
        if epochs == 2:  # as a folder of before it was recorded has it
            lines = (path / "metrics.csv").read_text().splitlines()
            columns = lines[0].split(",")
            keep = [i for i, name in enumerate(columns) if name != "start_value"]
            kept = [",".join(line.split(",")[i] for i in keep) + "\n" for line in lines]
            (path / "metrics.csv").write_text("".join(kept))
    rows = run.folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all("start_value" not in row and "score" in row for row in rows)
