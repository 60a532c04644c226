"""Evaluation in the real environment with the policy's mode (paper sec. 6)."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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

from rambo_trl.data import OfflineDataset, make_environment, mujoco_messages_logged
from rambo_trl.data.playing import Flatten, flattening, play_start, play_step
from rambo_trl.data.scaling import denormalize_action
from rambo_trl.experiment.policy import load_policy, save_policy
from rambo_trl.modules.modes import evaluating
from rambo_trl.runtime.importing import import_user_module, imported_user_modules

__all__ = [
    "SCORE_COLUMNS",
    "Evaluation",
    "EvaluationProcess",
    "EvaluationResult",
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


@dataclass(frozen=True)
class EvaluationResult:
    """What some episodes gave.

    Attributes:
        returns: undiscounted returns [episodes].
        lengths: in steps [episodes].
        discounted_returns: with the discount factor that was asked for [episodes].
    """

    returns: np.ndarray
    lengths: np.ndarray
    discounted_returns: np.ndarray

    @property
    def return_mean(self) -> float:
        """Mean return over the episodes."""
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        """Standard deviation of the return over the episodes."""
        return float(self.returns.std())


def rollout_episodes(
    act: Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    *,
    num_episodes: int,
    seed: int,
    flatten: Flatten | None = None,
    gamma: float = 1.0,
) -> EvaluationResult:
    """Play one episode in each of ``num_episodes`` copies of an environment at once.

    Args:
        act: maps observations [num_episodes, observation_size] to actions
            [num_episodes, action_size].
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes, all started together.
        seed: seed of the first copy; the following copies take the following seeds.
        flatten: makes a vector of an observation, such as ``dataset.observation_layout.flatten``;
            by the environment's observation space where None.
        gamma: discount factor of the discounted returns.

    Returns:
        The episodes' returns and lengths. Copies that have ended wait for the others.

    Raises:
        ValueError: if the environment is not installed or does not follow Gymnasium's interface
            (:func:`~rambo_trl.data.check_environment` finds it before).
    """
    with mujoco_messages_logged():
        envs = [make_environment(environment) for _ in range(num_episodes)]
    try:
        flatten = flatten or flattening(envs[0])
        rows = [play_start(env, flatten, seed=seed + i) for i, env in enumerate(envs)]
        returns, discounted_returns = np.zeros(num_episodes), np.zeros(num_episodes)
        lengths = np.zeros(num_episodes, dtype=np.int64)
        running = np.ones(num_episodes, dtype=bool)
        while running.any():
            action = act(np.stack(rows))
            for i in np.flatnonzero(running):
                rows[i], reward, terminated, truncated = play_step(envs[i], action[i], flatten)
                returns[i] += reward
                discounted_returns[i] += gamma ** lengths[i] * reward
                lengths[i] += 1
                running[i] = not (terminated or truncated)
    finally:
        for env in envs:
            env.close()
    return EvaluationResult(returns, lengths, discounted_returns)


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
            act, environment, num_episodes=num_episodes, seed=seed, flatten=flatten, gamma=gamma
        )


class EvaluationProcess:
    """Evaluate saved policies in a process of its own, while training goes on in this one.

    The process starts with the first policy and uses one thread of the CPU.

    Args:
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes.
        flatten: makes a vector of an observation; it must be picklable.
        gamma: discount factor of the discounted returns.

    Examples:
        >>> evaluations = EvaluationProcess("Hopper-v5")
        >>> future = evaluations.submit("policy.safetensors", seed=0)  # doctest: +SKIP
        >>> future.result().return_mean  # doctest: +SKIP
    """

    def __init__(
        self,
        environment: str | EnvSpec,
        *,
        num_episodes: int = 10,
        flatten: Flatten | None = None,
        gamma: float = 1.0,
    ) -> None:
        self.environment = environment
        self.num_episodes = num_episodes
        self.flatten = flatten
        self.gamma = gamma
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, path: str | os.PathLike[str], *, seed: int) -> Future[EvaluationResult]:
        """Evaluate a file of :func:`~rambo_trl.experiment.policy.save_policy`.

        Args:
            path: the file, which is removed once it was read.
            seed: seed of the first episode.
        """
        if self._pool is None:
            # a forked process would share the accelerator's and the threads' state
            self._pool = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_up_process,
                initargs=(imported_user_modules(),),
            )
        return self._pool.submit(
            _evaluate_file,
            os.fspath(path),
            self.environment,
            num_episodes=self.num_episodes,
            seed=seed,
            flatten=self.flatten,
            gamma=self.gamma,
        )

    def shutdown(self) -> None:
        """End the process; what was not evaluated yet is given up."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def kill(self) -> None:
        """End the process at once, in the middle of an evaluation too."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self.shutdown()


def _set_up_process(user_modules: tuple[str, ...]) -> None:
    # signals may reach the whole group of processes: the run decides what becomes of this one
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in user_modules:  # a specification does not say what registers its environment
        with suppress(Exception):  # as where one is imported: what is missing is told there
            import_user_module(name)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _evaluate_file(path: str, environment: str | EnvSpec, **settings: Any) -> EvaluationResult:
    policy = load_policy(path)
    os.remove(path)
    return rollout_episodes(policy, environment, **settings)


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

    Keyword Args:
        num_episodes: episodes of an evaluation.
        seed: the run's.
        gamma: discount factor; None for a method without critics.
        device: where the policy lives.
        hidden_sizes: of the policy, for its file.
        beside: evaluate in a process beside training; on a GPU only where None.

    Attributes:
        stride: seeds from one epoch's first episode to the next one's; at least as many as there
            are episodes.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        dataset: OfflineDataset,
        *,
        num_episodes: int,
        seed: int,
        gamma: float | None,
        device: str,
        hidden_sizes: Sequence[int],
        beside: bool | None = None,
    ) -> None:
        self.policy, self.dataset, self.device = policy, dataset, device
        self.num_episodes, self.hidden_sizes, self.seed = num_episodes, hidden_sizes, seed
        layout = dataset.observation_layout
        self.flatten = None if layout is None else layout.flatten
        self.first_seed, self.stride = evaluation_seed(seed), num_episodes
        self.gamma = gamma
        self.process: EvaluationProcess | None = None
        if beside is None:  # a CPU has better things to do
            beside = torch.device(device).type != "cpu"
        if beside and dataset.environment is not None:
            self.process = EvaluationProcess(
                dataset.environment,
                num_episodes=self.num_episodes,
                flatten=self.flatten,
                gamma=self.gamma or 0.0,
            )
            self.policies = TemporaryDirectory(prefix="rambo_trl")

    def _first_seed(self, epoch: int) -> int:
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
            seed=self._first_seed(epoch),
            **self.dataset.statistics,
            flatten=self.flatten,
            gamma=self.gamma or 0.0,
            device=self.device,
        )
        return self._scores(result)

    def start(self, epoch: int) -> Future[Scores]:
        """As a call, but the result may still be to come."""
        scores: Future[Scores] = Future()
        if self.process is None:
            scores.set_result(self(epoch))
            return scores
        path = Path(self.policies.name) / f"{epoch}.safetensors"
        write_policy(path, self.policy, self.dataset, self.hidden_sizes, self.seed)

        def hand_on(found: Future[EvaluationResult]) -> None:
            try:
                scores.set_result(self._scores(found.result()))
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


def write_policy(
    path: Path,
    actor: Any,
    dataset: OfflineDataset,
    hidden_sizes: Sequence[int],
    seed: int,
) -> None:
    """Write the actor with the data's scaling, so that it runs without them."""
    save_policy(
        path,
        actor,
        **dataset.statistics,
        action_spec=dataset.action_spec,
        hidden_sizes=list(hidden_sizes),
        env_id=dataset.env_id or "",
        env_spec=dataset.env_spec,
        data=dataset.description,
        notes={"dataset": dataset.name, "seed": seed},
    )
