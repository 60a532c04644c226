"""Evaluation: the policy's mode, in states normalised once, one episode a copy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.experiment.evaluation import EvaluationProcess, evaluate_policy, rollout_episodes
from rambo_trl.experiment.policy import save_policy
from rambo_trl.modules import make_actor

ENV_ID = "InvertedDoublePendulum-v5"
MEAN, STD = torch.linspace(-1, 1, 9), torch.linspace(0.2, 3, 9)


def by_hand(actor, seed: int, mean: np.ndarray, std: np.ndarray) -> tuple[float, int]:
    """One episode with the mode: the squashed location of the network's raw output."""
    env = gymnasium.make(ENV_ID)
    observation, _ = env.reset(seed=seed)
    total, steps, ended = 0.0, 0, False
    network = actor.get_submodule("module.0.module.0")
    while not ended:
        x = torch.as_tensor((observation - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            action = network(x)[:1].tanh().numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    env.close()
    return total, steps


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("surroundings", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_mode_on_states_normalised_once_equals_a_plain_loop(
    normalised: bool, surroundings: ExplorationType
) -> None:
    actor = make_actor(9, Bounded(-1, 1, shape=(1,)), hidden_sizes=(8,))
    statistics = {"observation_mean": MEAN, "observation_std": STD} if normalised else {}
    with set_exploration_type(surroundings):
        got = evaluate_policy(actor, ENV_ID, num_episodes=4, seed=3, **statistics)
    mean, std = (MEAN.numpy(), STD.numpy()) if normalised else (np.zeros(9), np.ones(9))
    want = [by_hand(actor, 3 + i, mean, std) for i in range(4)]
    np.testing.assert_allclose(got.returns, [x[0] for x in want], rtol=1e-3)
    assert got.lengths.tolist() == [x[1] for x in want]
    assert len(set(got.lengths.tolist())) > 1, "episodes of different lengths"
    assert got.return_mean == pytest.approx(np.mean([x[0] for x in want]), rel=1e-3)
    assert got.return_std == pytest.approx(np.std([x[0] for x in want]), rel=1e-2)


def test_time_limits_end_episodes_too() -> None:
    got = rollout_episodes(
        lambda observation: np.zeros((len(observation), 1)),
        "Pendulum-v1",
        num_episodes=3,
        seed=0,
    )
    assert got.lengths.tolist() == [200] * 3
    assert len(set(got.returns.tolist())) == 3


class Countdown(gymnasium.Env):
    """Rewards 3, 2, 1: as many steps as the seed says."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = seed or 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.zeros(1), self.left + 1.0, self.left == 0, False, {}


@pytest.fixture
def countdown() -> Iterator[str]:
    gymnasium.register("Countdown-v0", Countdown)
    yield "Countdown-v0"
    del gymnasium.registry["Countdown-v0"]


def test_discounted_returns_are_those_of_the_rewards(countdown: str) -> None:
    got = rollout_episodes(lambda x: x, countdown, num_episodes=3, seed=1, gamma=0.5)
    assert got.returns.tolist() == [1, 3, 6] and got.lengths.tolist() == [1, 2, 3]
    assert got.discounted_returns.tolist() == [1, 2 + 0.5, 3 + 1 + 0.25]


class InRows(Countdown):
    """Takes actions in two rows only."""

    action_space = gymnasium.spaces.Box(-1, 1, (2, 1))

    def step(self, action: Any) -> Any:
        assert action.shape == (2, 1)
        return super().step(action)


def test_actions_get_the_environment_s_shape() -> None:
    gymnasium.register("InRows-v0", InRows)
    try:
        got = rollout_episodes(lambda x: np.zeros((len(x), 2)), "InRows-v0", num_episodes=1, seed=2)
    finally:
        del gymnasium.registry["InRows-v0"]
    assert got.returns.tolist() == [3]


def test_evaluation_draws_no_random_numbers_of_torch() -> None:
    actor = make_actor(9, Bounded(-1, 1, shape=(1,)), hidden_sizes=(8,))
    state = torch.get_rng_state()
    evaluate_policy(actor, ENV_ID, num_episodes=2)
    assert torch.equal(torch.get_rng_state(), state)


def save(path, actor, spec: Bounded) -> None:
    save_policy(
        path,
        actor,
        observation_mean=MEAN,
        observation_std=STD,
        action_spec=spec,
        env_id=ENV_ID,
    )


def test_a_process_beside_finds_the_same(tmp_path) -> None:
    spec = Bounded(-1, 1, shape=(1,))
    actor = make_actor(9, spec, hidden_sizes=(8,))
    evaluations = EvaluationProcess(ENV_ID, num_episodes=3, gamma=0.9)
    paths = [tmp_path / name for name in ("a", "b")]
    try:
        for path in paths:
            save(path, actor, spec)
        futures = [evaluations.submit(path, seed=7) for path in paths]
        with torch.no_grad():  # the file counts, not what the policy has become meanwhile
            for parameter in actor.parameters():
                parameter.zero_()
        found = [future.result(timeout=120) for future in futures]
    finally:
        evaluations.shutdown()
    assert not any(path.exists() for path in paths)
    assert found[0].returns.tolist() == found[1].returns.tolist()
    actor = make_actor(9, spec, hidden_sizes=(8,))
    save(paths[0], actor, spec)
    try:
        got = evaluations.submit(paths[0], seed=7).result(timeout=120)
    finally:
        evaluations.shutdown()
    want = evaluate_policy(
        actor, ENV_ID, num_episodes=3, seed=7, observation_mean=MEAN, observation_std=STD, gamma=0.9
    )
    np.testing.assert_allclose(got.returns, want.returns, rtol=1e-5)
    np.testing.assert_allclose(got.discounted_returns, want.discounted_returns, rtol=1e-5)


def test_the_process_outlives_the_run_s_signals_and_can_be_killed(tmp_path) -> None:
    spec = Bounded(-1, 1, shape=(1,))
    actor = make_actor(9, spec, hidden_sizes=(8,))
    evaluations = EvaluationProcess(ENV_ID, num_episodes=3)
    paths = [tmp_path / str(i) for i in range(60)]
    for path in paths:
        save(path, actor, spec)
    try:
        first = evaluations.submit(paths[0], seed=7).result(timeout=120)
        (child,) = evaluations._pool._processes
        for signum in (signal.SIGTERM, signal.SIGINT):  # as a whole group of processes gets them
            os.kill(child, signum)
        assert evaluations.submit(paths[1], seed=7).result(timeout=120).returns is not None
        assert first.returns.shape == (3,)
        waiting = [evaluations.submit(path, seed=7) for path in paths[2:]]
        started = time.monotonic()
    finally:
        evaluations.kill()
    assert time.monotonic() - started < 10
    with pytest.raises((CancelledError, BrokenProcessPool)):
        waiting[-1].result(timeout=1)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_ends_with_a_killed_run(tmp_path) -> None:
    script = (
        "import os, signal, sys\n"
        "from rambo_trl.experiment.evaluation import EvaluationProcess\n"
        "if __name__ == '__main__':\n"
        "    evaluations = EvaluationProcess('Pendulum-v1', num_episodes=1)\n"
        "    evaluations.submit('no such file', seed=0).exception()\n"
        "    print(*evaluations._pool._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == -9
    beside = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 20
    while beside.exists() and "zombie" not in (beside / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
