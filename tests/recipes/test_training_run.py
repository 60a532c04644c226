"""What happens around an epoch, with a method that does nothing."""

from __future__ import annotations

import os
import signal
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


@pytest.mark.parametrize("moment", ["its checkpoint was decided on", "it has ended"])
def test_a_signal_that_comes_when_an_epoch_is_over_is_for_the_next(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["schedule=smoke", "epochs=6", "checkpoint_every=100"]
    (cfg,) = compose_jobs("bc", words, check=lambda cfg: None)
    run = Run(cfg, dataset(), RunFolder.create(tmp_path / "run"), Interruption())

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
            if row["epoch"] == 2 and moment == "it has ended":
                os.kill(os.getpid(), signal.SIGTERM)
    assert epochs == [1, 2, 3]
    progress = run.checkpoints.load()
    assert progress is not None and progress["epoch"] == 3
