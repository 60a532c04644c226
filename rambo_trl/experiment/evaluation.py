"""Evaluation in the real environment with the policy's mode (paper sec. 6)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from rambo_trl.data import OfflineDataset
from rambo_trl.data.playing import Flatten
from rambo_trl.data.scaling import denormalize_action
from rambo_trl.experiment.episodes import EvaluationResult, PlayedStep, rollout_episodes
from rambo_trl.experiment.evaluation_process import EvaluationProcess
from rambo_trl.experiment.options import RunOptions
from rambo_trl.experiment.policy import save_policy
from rambo_trl.modules.modes import evaluating

__all__ = [
    "SCORE_COLUMNS",
    "Evaluation",
    "EvaluationProcess",
    "EvaluationResult",
    "episode_seed",
    "evaluate_policy",
    "evaluation_seed",
    "mode_values",
    "rollout_episodes",
    "write_policy",
]

Scores = dict[str, float | None]

#: what an evaluation adds to an epoch's row, in this order; everything else in ``metrics.csv``
#: comes from training alone
SCORE_COLUMNS = ("score", "score_std", "return_mean", "return_std", "discounted_return_mean")
#: evaluation's episodes are seeded from here, beyond every seed that builds data
EVALUATION_SEED = 1_000_000
#: seeds that each run has for its episodes
EVALUATION_SEEDS = 10_000_000


def evaluate_policy(
    policy: TensorDictModuleBase,
    environment: str | EnvSpec,
    *,
    num_episodes: int = 10,
    seed: int = 0,
    observation_mean: torch.Tensor | None = None,
    observation_std: torch.Tensor | None = None,
    action_low: torch.Tensor | None = None,
    action_high: torch.Tensor | None = None,
    flatten: Flatten | None = None,
    gamma: float = 1.0,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
    on_step: Callable[[PlayedStep], object] | None = None,
) -> EvaluationResult:
    """Evaluate a policy's mode in the real environment (10 episodes in the paper, sec. 6).

    Args:
        policy: reads ``"observation"`` [episodes, observation_size] and writes ``"action"``
            [episodes, action_size]; in evaluation mode meanwhile.
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes.
        seed: seed of the first episode.
        observation_mean: the data's mean [observation_size]; with ``observation_std`` the
            observations are normalised as in training.
        observation_std: the data's standard deviation [observation_size].
        action_low: what -1 stands for in a policy that acts in [-1, 1], in the environment's units
            [action_size]; where None the policy's actions are taken as they are.
        action_high: what 1 stands for.
        flatten: makes a vector of an observation, as for :func:`rollout_episodes`.
        gamma: discount factor of the discounted returns.
        device: where the policy lives; it is copied to the CPU to be evaluated.
        max_steps: as for :func:`rollout_episodes`.
        on_step: likewise.

    Returns:
        The episodes' returns and lengths.
    """
    mean, std, low, high = (
        None if x is None else x.cpu()
        for x in (observation_mean, observation_std, action_low, action_high)
    )
    if torch.device(device).type != "cpu":
        # a few rows at a time: a step there would only wait for the device, again and again
        policy = copy.deepcopy(policy).cpu()

    def act(observation: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(observation, dtype=torch.float32 if mean is None else mean.dtype)
        if mean is not None and std is not None:
            x = ((x - mean) / std).float()
        action = policy(TensorDict({"observation": x}, batch_size=[x.shape[0]])).get("action")
        if low is not None and high is not None:
            action = denormalize_action(action, low, high)
        return action.numpy()

    with (
        torch.no_grad(),
        evaluating(policy),
        set_exploration_type(ExplorationType.DETERMINISTIC),
    ):
        return rollout_episodes(
            act,
            environment,
            num_episodes=num_episodes,
            seed=seed,
            flatten=flatten,
            gamma=gamma,
            max_steps=max_steps,
            on_step=on_step,
        )


def evaluation_seed(seed: int) -> int:
    """The seed of the first episode that a run with this seed may evaluate."""
    return EVALUATION_SEED + EVALUATION_SEEDS * seed


def episode_seed(seed: int) -> int:
    """The seed of the first episode that a run with this seed may learn from."""
    return evaluation_seed(seed) + EVALUATION_SEEDS // 2


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
        options: the run's.

    Attributes:
        stride: seeds from one epoch's first episode to the next one's; at least as many as there
            are episodes.
    """

    def __init__(
        self, policy: TensorDictModuleBase, dataset: OfflineDataset, options: RunOptions
    ) -> None:
        self.policy, self.dataset, self.options = policy, dataset, options
        self.stride = options.evaluation_episodes
        layout = dataset.observation_layout
        self.flatten = None if layout is None else layout.flatten
        self.settings: dict[str, Any] = {
            "num_episodes": options.evaluation_episodes,
            "flatten": self.flatten,
            "gamma": options.gamma or 0.0,
        }
        self.process: EvaluationProcess | None = None
        beside = options.evaluate_beside
        if beside is None:  # a CPU has better things to do
            beside = torch.device(options.device).type != "cpu"
        if beside and dataset.environment is not None:
            self.process = EvaluationProcess(dataset.environment, **self.settings)
            self.policies = TemporaryDirectory(prefix="rambo_trl")

    def _first_seed(self, epoch: int) -> int:
        return evaluation_seed(self.options.seed) + epoch * self.stride

    def __call__(self, epoch: int, policy: TensorDictModuleBase | None = None) -> Scores:
        """Evaluate after an epoch: a value for each of :data:`SCORE_COLUMNS`.

        Args:
            epoch: chooses the seeds.
            policy: another one than the run's.
        """
        environment = self.dataset.environment
        if environment is None:
            return dict.fromkeys(SCORE_COLUMNS)
        result = evaluate_policy(
            policy or self.policy,
            environment,
            seed=self._first_seed(epoch),
            device=self.options.device,
            **self.dataset.statistics,
            **self.settings,
        )
        return self._scores(result)

    def start(self, epoch: int) -> Future[Scores]:
        """As a call, but the result may still be to come."""
        scores: Future[Scores] = Future()
        if self.process is None:
            scores.set_result(self(epoch))
            return scores
        path = Path(self.policies.name) / f"{epoch}.safetensors"
        write_policy(path, self.policy, self.dataset, self.options.seed)

        def hand_on(future: Future[EvaluationResult]) -> None:
            try:
                scores.set_result(self._scores(future.result()))
            except Exception as error:  # one that got lost here would be waited for in vain
                scores.set_exception(error)

        self.process.submit(path, seed=self._first_seed(epoch)).add_done_callback(hand_on)
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
        gamma = self.options.gamma
        if gamma is not None:  # of rewards with the shift, as in training
            weights = (1 - gamma**result.lengths) / (1 - gamma)
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


def write_policy(
    path: Path, actor: TensorDictModuleBase, dataset: OfflineDataset, seed: int
) -> None:
    """Write the actor with the data's scaling, so that it runs without them."""
    save_policy(
        path,
        actor,
        **dataset.statistics,
        action_spec=dataset.action_spec,
        env_id=dataset.env_id or "",
        env_spec=dataset.env_spec,
        data=dataset.description,
        notes={"dataset": dataset.name, "seed": seed},
    )
