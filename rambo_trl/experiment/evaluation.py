"""Evaluation in the real environment with the policy's mode (paper sec. 6)."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data import make_environment, mujoco_messages_logged
from rambo_trl.data.playing import Flatten, flattening, play_start, play_step
from rambo_trl.data.scaling import denormalize_action
from rambo_trl.experiment.policy import load_policy
from rambo_trl.modules.modes import evaluating
from rambo_trl.runtime.importing import import_user_module, imported_user_modules

__all__ = ["EvaluationProcess", "EvaluationResult", "evaluate_policy", "rollout_episodes"]


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
