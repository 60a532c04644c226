"""What a run asks of its policy: its evaluations and their seeds, its value, its file."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.evaluation import EvaluationProcess, EvaluationResult, evaluate_policy
from rambo_trl.experiment.policy import save_policy
from rambo_trl.modules.modes import evaluating
from rambo_trl.reporting.runs import SCORE_COLUMNS

Scores = dict[str, float | None]

#: evaluation's episodes are seeded from here, beyond every seed that builds data
EVALUATION_SEED = 1_000_000
#: seeds that each run has for its episodes
EVALUATION_SEEDS = 10_000_000


def evaluation_seed(seed: int) -> int:
    """The seed of the first episode that a run with this seed may evaluate."""
    return EVALUATION_SEED + EVALUATION_SEEDS * seed


def score_text(row: Mapping[str, float | None]) -> str:
    """``", score 12.3"`` where there is one."""
    score = row.get("score")
    return "" if score is None else f", score {score:.1f}"


class Evaluation:
    """The policy's mode in the real environment, scored, with seeds that never repeat.

    Every epoch has :attr:`stride` seeds, evaluated or not. A run that is resumed with another
    number of episodes goes on with the largest that it ever had, so that no epoch reaches back
    to the seeds of one before it.

    Args:
        policy: the actor.
        dataset: names the environment and holds normalisation and reference scores.
        cfg: the configuration: episodes, seed, device, and whether evaluations run beside
            training.

    Attributes:
        stride: seeds from one epoch's first episode to the next one's; at least as many as there
            are episodes.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        dataset: OfflineDataset,
        cfg: DictConfig,
    ) -> None:
        self.policy, self.dataset, self.cfg = policy, dataset, cfg
        self.num_episodes: int = cfg.evaluation.episodes
        layout = dataset.observation_layout
        self.flatten = None if layout is None else layout.flatten
        self.first_seed, self.stride = evaluation_seed(cfg.seed), self.num_episodes
        self.gamma: float | None = cfg.agent.get("gamma")
        self.process: EvaluationProcess | None = None
        beside = cfg.evaluate_beside
        if beside is None:  # a CPU has better things to do
            beside = torch.device(cfg.device).type != "cpu"
        if beside and dataset.environment is not None:
            self.process = EvaluationProcess(
                dataset.environment,
                num_episodes=self.num_episodes,
                flatten=self.flatten,
                gamma=self.gamma or 0.0,
            )
            self.policies = TemporaryDirectory(prefix="rambo_trl")

    def _seed(self, epoch: int) -> int:
        return self.first_seed + epoch * self.stride

    def __call__(self, epoch: int) -> Scores:
        """Evaluate after an epoch: a value for each of :data:`SCORE_COLUMNS`."""
        environment = self.dataset.environment
        if environment is None:
            return dict.fromkeys(SCORE_COLUMNS)
        result = evaluate_policy(
            self.policy,
            environment,
            num_episodes=self.num_episodes,
            seed=self._seed(epoch),
            observation_mean=self.dataset.observation_mean,
            observation_std=self.dataset.observation_std,
            action_low=self.dataset.action_low,
            action_high=self.dataset.action_high,
            flatten=self.flatten,
            gamma=self.gamma or 0.0,
            device=self.cfg.device,
        )
        return self._scores(result)

    def start(self, epoch: int) -> Future[Scores]:
        """As a call, but the result may still be to come."""
        scores: Future[Scores] = Future()
        if self.process is None:
            scores.set_result(self(epoch))
            return scores
        path = Path(self.policies.name) / f"{epoch}.safetensors"
        write_policy(path, self.policy, self.dataset, self.cfg)

        def hand_on(found: Future[EvaluationResult]) -> None:
            try:
                scores.set_result(self._scores(found.result()))
            except Exception as error:  # one that got lost here would be waited for in vain
                scores.set_exception(error)

        self.process.submit(path, seed=self._seed(epoch)).add_done_callback(hand_on)
        return scores

    def abandon(self) -> None:
        """End the process at once, where there is one."""
        if self.process is not None:
            self.process.kill()

    def shutdown(self) -> None:
        """End the process, where there is one."""
        if self.process is not None:
            self.process.shutdown()
            self.policies.cleanup()

    def _scores(self, result: EvaluationResult) -> Scores:
        row: Scores = {
            "score": self.dataset.normalized_score(result.return_mean),
            "score_std": None,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "discounted_return_mean": None,
        }
        if self.gamma is not None:  # of rewards with the shift, as in training
            weights = (1 - self.gamma**result.lengths) / (1 - self.gamma)
            shifted = result.discounted_returns + self.dataset.reward_shift * weights
            row["discounted_return_mean"] = float(shifted.mean())
        if self.dataset.reference_scores is not None:
            low, high = self.dataset.reference_scores
            row["score_std"] = 100 * result.return_std / (high - low)
        return row


@torch.no_grad()
def mode_values(loss: LossModule, actor: TensorDictModuleBase, observation: Tensor) -> Tensor:
    """The lowest critic's value of the policy's mode.

    Args:
        loss: holds the critics, stacked, as ``qvalue_network``.
        actor: reads ``"observation"`` and writes ``"action"``.
        observation: [B, observation_size].

    Returns:
        [B, 1]
    """
    values = []
    with evaluating(actor, loss.qvalue_network):
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            rows = actor(TensorDict(observation=observation, batch_size=[len(observation)]))
        for params in loss.qvalue_network_params.data.unbind(0):
            with params.to_module(loss.qvalue_network, preserve_module_state=False):
                values.append(loss.qvalue_network(rows.copy())["state_action_value"])
    return torch.stack(values).min(dim=0).values


def write_policy(path: Path, actor: Any, dataset: OfflineDataset, cfg: DictConfig) -> None:
    """Write the actor with its normalisation."""
    save_policy(
        path,
        actor,
        observation_mean=dataset.observation_mean,
        observation_std=dataset.observation_std,
        action_spec=dataset.action_spec,
        action_low=dataset.action_low,
        action_high=dataset.action_high,
        hidden_sizes=list(cfg.agent.hidden_sizes),
        env_id=dataset.env_id or "",
        env_spec=dataset.env_spec,
        data=dataset.description,
        notes={"dataset": dataset.name, "seed": cfg.seed},
    )
