"""What the model-free methods share: an actor, critics and batches of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from launcher.program import refusing_bad_input
from model_based import first_rows
from run_evaluation import mode_values
from tensordict import TensorDictBase
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer, TensorStorage
from torchrl.modules import ValueOperator
from torchrl.objectives import LossModule
from training_run import Metrics, Run

from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.data.rows import draw_rows
from rambo_trl.experiment.checkpoint import Stateful
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.modules.statistics import largest_magnitude
from rambo_trl.training.offline import OfflinePhase

#: settings of the tasks and schedules that only the model-based methods have
MODEL_ONLY = (
    "adversarial_weight", "model", "model_updates", "rollout_starts", "rollout_length",
    "rollout_policy", "retained_epochs", "cloning", "clone_behaviour", "pretrained", "cache_dir",
    "fitted_model", "cloned_policy", "agent.real_fraction", "termination", "model_matmul_dtype",
)  # fmt: skip
#: and those of SAC's temperature
TEMPERATURE_ONLY = ("agent.alpha_lr", "agent.alpha_init")
#: rows of the data on which the critics are followed
VALUE_ROWS = 1000


class ModelFree:
    """A policy, and a loss with its optimisers that trains it on the data.

    A method makes :attr:`loss` and :attr:`phase` in its constructor.

    Args:
        run: its configuration and data.
    """

    label = ""
    loss: LossModule
    phase: OfflinePhase

    def __init__(self, run: Run) -> None:
        cfg, dataset = run.cfg, run.dataset
        self.run = run
        self.device = torch.device(cfg.device)
        self.actor = make_actor(
            dataset.observation_size,
            dataset.action_spec,
            hidden_sizes=cfg.agent.hidden_sizes,
            device=self.device,
        )
        self.updates: int = cfg.agent_updates
        self.transitions = self.prepare(dataset.transitions.copy())
        real = TensorDictReplayBuffer(
            storage=TensorStorage(self.transitions.to(self.device), device=self.device),
            writer=ImmutableDatasetWriter(),
        )
        self.data = RealModelReplayBuffer(
            real, make_replay_buffer(1), real_fraction=1.0, batch_size=cfg.agent.batch_size
        )
        rows = draw_rows(len(dataset), VALUE_ROWS)
        self.value_rows = dataset.transitions["observation"][rows].to(self.device)
        first = first_rows(dataset.transitions["next", "done"])
        self.start_rows = dataset.transitions["observation"][first].to(self.device)

    def prepare(self, transitions: TensorDictBase) -> TensorDictBase:
        """What the method changes about the data; entries may be replaced, not written into."""
        return transitions

    def make_qvalue(self) -> ValueOperator:
        """A critic, which the loss makes two of."""
        dataset = self.run.dataset
        return make_qvalue(
            dataset.observation_size,
            dataset.action_size,
            hidden_sizes=self.run.cfg.agent.hidden_sizes,
            device=self.device,
        )

    def stateful_parts(self) -> dict[str, Stateful]:
        """Everything that decides the run's future, for checkpoints."""
        return {"loss": self.loss, "phase": self.phase}

    @property
    def reward_unit(self) -> float:
        """What a reward of 1 in training is in the data's units."""
        return self.run.dataset.reward_scale

    def monitor(self) -> DivergenceMonitor:
        """Says when the critics leave what the rewards allow."""
        largest = largest_magnitude(self.transitions["next", "reward"]) * self.reward_unit
        return DivergenceMonitor(largest, self.run.cfg.agent.get("gamma", 0.0))

    def results(self) -> dict[str, Any]:
        """Nothing besides what every run says."""
        return {}

    def sanity(self) -> dict[str, Any]:
        """Nothing that the data's rewards do not say."""
        return {}

    def improve(self) -> Metrics:
        """Update the agent on the data."""
        with self.run.watch("agent"):
            metrics = self.phase.run(self.data.batches(self.updates), self.run.bar)
        if hasattr(self.loss, "qvalue_network"):
            for name, rows in (("mean_q", self.value_rows), ("start_value", self.start_rows)):
                metrics[name] = float(mode_values(self.loss, self.actor, rows).mean())
        return metrics


def train_model_free(run: Run, make_method: Callable[[Run], ModelFree]) -> dict[str, Any]:
    """Improve the agent on the data, epoch by epoch."""
    with refusing_bad_input():
        method = make_method(run)
        run.begin(method)
    for row in run.epochs():
        with run.epoch(row):
            row.update(method.improve())
    return run.finish()
