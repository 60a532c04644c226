"""Evaluation in a process beside training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec

from rambo_trl.experiment.episodes import EvaluationResult, rollout_episodes
from rambo_trl.experiment.policy import load_policy
from rambo_trl.runtime.importing import import_user_module, imported_user_modules

__all__ = ["EvaluationProcess"]


class EvaluationProcess:
    """Evaluate saved policies in a process of its own, while training goes on in this one.

    The process starts with the first policy and uses one thread of the CPU.

    Args:
        environment: a registered Gymnasium id, or a specification.
        **settings: of :func:`~rambo_trl.experiment.episodes.rollout_episodes`; they must be
            picklable.

    Examples:
        >>> evaluations = EvaluationProcess("Hopper-v5", num_episodes=10)
        >>> future = evaluations.submit("policy.safetensors", seed=0)  # doctest: +SKIP
        >>> future.result().return_mean  # doctest: +SKIP
    """

    def __init__(self, environment: str | EnvSpec, **settings: Any) -> None:
        self.environment, self.settings = environment, settings
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, path: str | os.PathLike[str], *, seed: int) -> Future[EvaluationResult]:
        """Evaluate a file of :func:`~rambo_trl.experiment.policy.save_policy` and remove it.

        Args:
            path: the file.
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
            _evaluate_file, os.fspath(path), self.environment, seed=seed, **self.settings
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
