"""A model that is wrong where the policy goes is told from one that is right there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment import policy_path
from rambo_trl.experiment.path_figure import plot_policy_path
from rambo_trl.experiment.policy_path import EPISODES, PolicyPath, follow_policy
from rambo_trl.experiment.results import last_screen
from rambo_trl.experiment.sanity import check_sanity
from rambo_trl.modules import EnsembleWorldModel, make_actor

SEED, STEPS = 1000, 30
#: how far a full action moves, in both directions; where the model is wrong, and by what reward
MOVE, PLACE, PROMISE = 0.2, 2.0, 50.0
SHIFT = -0.25


class Walk(gymnasium.Env):
    """A position that an action moves; the reward is the new one."""

    observation_space = Box(-99, 99, (1,), np.float64)
    action_space = Box(-2, 2, (1,))

    def __init__(self, end: float = np.inf, cut: float = np.inf) -> None:
        self.end, self.cut = end, cut

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.steps = np.array([self.np_random.uniform(0, 0.5)]), 0
        return self.x, {}

    def step(self, action: Any) -> Any:
        self.x += MOVE * action / 2  # in place: the observation that was given changes too
        self.steps += 1
        x = float(self.x[0])
        return self.x, x, x > self.end, self.steps == self.cut, {}


ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "OpenWalk-v0": {"max_episode_steps": STEPS},
    "EndingWalk-v0": {"max_episode_steps": STEPS, "kwargs": {"end": 1.5}},
    "CutWalk-v0": {"kwargs": {"cut": 7}},  # without a limit that is known
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    for name, settings in ENVIRONMENTS.items():
        gymnasium.register(name, Walk, **settings)
    yield
    for name in ENVIRONMENTS:
        del gymnasium.registry[name]


def logged(env_id: str | None = None, episodes: int = 8, length: int = STEPS) -> OfflineDataset:
    """Episodes that move at random, in units that are not the learner's."""
    action = 4 * torch.rand(episodes, length) - 2
    start = 0.5 * torch.rand(episodes, 1)
    after = start + (MOVE * action / 2).cumsum(dim=1)
    before = torch.cat([start, after[:, :-1]], dim=1)
    last = (torch.arange(length) == length - 1).expand(episodes, length)
    columns = TensorDict(
        observation=before,
        action=action,
        next={
            "observation": after,
            "reward": after,
            "terminated": torch.zeros_like(last),
            "truncated": last,
        },
        batch_size=[episodes, length],
    )
    rows = columns.reshape(-1).apply(lambda x: x.unsqueeze(-1))
    spec = Bounded(-2, 2, shape=(1,))
    return OfflineDataset(
        rows, action_spec=spec, env_id=env_id, reward_shift=SHIFT, reward_scale="auto"
    )


class Model(EnsembleWorldModel):
    """The truth, but for a promise beyond a place."""

    def __init__(self, data: OfflineDataset, promise: float) -> None:
        super().__init__(1, 1, num_members=3, num_elites=2, hidden_sizes=())
        mean, std = float(data.observation_mean), float(data.observation_std)
        scale = data.reward_scale
        self.promise, self.place = promise / scale, (PLACE - mean) / std
        with torch.no_grad():
            (weight,), (bias,) = self.weights, self.biases
            weight.zero_()
            bias.zero_()
            weight[:, 1, 0] = MOVE / std
            weight[:, :, 1] = torch.tensor([std, MOVE]) / scale
            bias[..., 1] = (mean + SHIFT) / scale
            bias[..., 2:] = -50.0  # hardly any noise
            self.min_log_var.fill_(-50.0)

    def predict(self, observation: Tensor, action: Tensor, members: Any = None) -> Any:
        mean, log_var = super().predict(observation, action, members)
        mean[..., 1:] += self.promise * (observation > self.place)
        return mean, log_var


def policy_of(share: float) -> Any:
    """A policy whose mode is always the same share of the largest action."""
    actor = make_actor(1, Bounded(-1, 1, shape=(1,)), hidden_sizes=(4,))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
        [*actor.parameters()][-1][0] = float(np.arctanh(share))
    return actor


def beyond(end: float) -> Any:
    return lambda observation, action, after: after[..., 0] > end


def followed(
    data: OfflineDataset, *, promise: float = 0.0, rule: Any = None, share: float = 0.9, **more: Any
) -> PolicyPath:
    env = EnsembleModelEnv(
        Model(data, promise),
        action_spec=data.action_spec,
        starts=data.transitions,
        termination=rule,
        **data.statistics,
    )
    path = follow_policy(env, policy_of(share), data, seed=SEED, **more)
    assert path is not None
    assert json.loads(json.dumps(path.numbers)) == path.numbers
    return path


def positions(env_id: str, share: float = 0.9) -> np.ndarray:
    """Where the policy is after each step, by hand [STEPS, EPISODES]."""
    env = gymnasium.make(env_id)
    starts = np.array([float(env.reset(seed=SEED + i)[0][0]) for i in range(EPISODES)])
    return starts + MOVE * share * np.arange(1, STEPS + 1)[:, None]


def test_a_model_that_is_right_is_told_from_one_that_is_wrong_in_a_place() -> None:
    data, x = logged("OpenWalk-v0"), positions("OpenWalk-v0")
    reward = x + SHIFT
    right = followed(data)
    assert right.numbers == {
        "steps": STEPS,
        "return_truth": pytest.approx(reward.sum(axis=0).mean(), rel=1e-4),
        "return_model": pytest.approx(reward.sum(axis=0).mean(), rel=1e-4),
        "model_error": pytest.approx(0, abs=1e-6),
        "holdout_error": None,
        "distrust": False,
        "line": None,
    }
    for rewards in right.rewards.values():
        assert rewards == pytest.approx(reward.mean(axis=1), rel=1e-3, abs=1e-3)

    # the promise is paid in the steps that are taken beyond the place
    paid = x - MOVE * 0.9 > PLACE
    wrong = followed(data, promise=PROMISE, holdout_mse=[0.1, 0.3, 5.0])
    numbers, error = wrong.numbers, (PROMISE / data.reward_scale) ** 2 / 2
    assert numbers["return_truth"] == right.numbers["return_truth"]
    promised = (reward + PROMISE * paid).sum(axis=0).mean()
    assert numbers["return_model"] == pytest.approx(promised, rel=1e-4)
    assert numbers["model_error"] == pytest.approx(error * paid.mean(), rel=1e-4)
    assert numbers["holdout_error"] == pytest.approx(0.2), "that of the elites"
    assert wrong.error == pytest.approx(error * paid.mean(axis=1), rel=1e-4, abs=1e-6)
    assert wrong.rewards["model"] - wrong.rewards["environment"] == pytest.approx(
        PROMISE * paid.mean(axis=1), abs=1e-3
    )
    assert numbers["distrust"]
    line = numbers["line"]
    assert line.startswith(f"in the first {STEPS} steps of an episode the model promises ")
    assert f"{promised / STEPS:.2f} a step where the environment gives " in line
    assert "distrust it on the policy's own path" in line and "after the fit 0.2)" in line

    # one that promises less than there is, is no reason to distrust
    low = followed(data, promise=-PROMISE).numbers
    assert not low["distrust"] and "it is too pessimistic on the policy's own path" in low["line"]
    # nor is a promise that is never met, or a small one
    assert followed(data, promise=PROMISE, share=-0.9).numbers["line"] is None
    assert followed(data, promise=0.3).numbers["line"] is None


def test_episodes_end_in_the_model_as_in_the_environment() -> None:
    data, x = logged("EndingWalk-v0"), positions("EndingWalk-v0")
    alive = x - MOVE * 0.9 <= 1.5  # the last reward is that of the terminal state
    reward = np.where(alive, x + SHIFT, 0).sum(axis=0).mean()
    path = followed(data, rule=beyond(1.5))
    found = [path.numbers[key] for key in ("return_truth", "return_model")]
    assert found == pytest.approx([reward, reward], rel=1e-4)
    assert path.numbers["line"] is None and path.numbers["steps"] == STEPS
    assert path.error is not None and len(path.error) == alive.any(axis=1).sum() < STEPS
    # one that does not know the end promises the rewards beyond it
    endless = followed(data).numbers
    assert endless["return_model"] == pytest.approx((x + SHIFT).sum(axis=0).mean(), rel=1e-4)
    assert endless["distrust"] and endless["model_error"] == pytest.approx(0, abs=1e-6)


def test_where_an_environment_cuts_its_episodes_the_model_s_do_not_go_on() -> None:
    reward = positions("CutWalk-v0")[:7] + SHIFT
    numbers = followed(logged("CutWalk-v0")).numbers
    assert numbers["steps"] == 7
    found = [numbers[key] for key in ("return_truth", "return_model")]
    assert found == pytest.approx([reward.sum(axis=0).mean()] * 2, rel=1e-4)


def test_long_episodes_are_followed_for_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_path, "MOST_STEPS", 4)
    for env_id in ("OpenWalk-v0", None):
        path = followed(logged(env_id))
        assert path.numbers["steps"] == 4
        assert {len(rewards) for rewards in path.rewards.values()} == {4}


def test_without_an_environment_the_model_stands_beside_the_logged_episodes() -> None:
    data = logged()
    reward = data.transitions["next", "reward"].double().view(8, STEPS).numpy() * data.reward_scale
    returns = reward.sum(axis=1)
    start = data.denormalize(data.transitions["observation"].view(8, STEPS)[:, :1]).numpy()
    for share, distrust in ((0.9, True), (-0.9, False)):
        path = followed(data, share=share)
        numbers = path.numbers
        promise = (start + MOVE * share * np.arange(1, STEPS + 1) + SHIFT).sum(axis=1).mean()
        assert bool(promise > returns.max()) is distrust, "of the test's own"
        assert numbers["return_model"] == pytest.approx(promise, rel=1e-4)
        assert numbers["return_logged_mean"] == pytest.approx(returns.mean(), rel=1e-5)
        assert numbers["return_logged_best"] == pytest.approx(returns.max(), rel=1e-5)
        assert numbers["steps"] == STEPS and numbers["distrust"] is distrust
        assert numbers["line"].endswith(": distrust it") is distrust
        assert path.error is None
        assert path.rewards["mean logged episode"] == pytest.approx(reward.mean(axis=0), abs=1e-4)
        best = reward[returns.argmax()]
        assert path.rewards["best logged episode"] == pytest.approx(best, abs=1e-4)


def test_logged_episodes_of_different_lengths_count_as_long_as_they_were() -> None:
    data = logged(episodes=2)
    ends = data.transitions["next", "terminated"]
    data.whole_episodes = np.array([[0, 5], [STEPS, 2 * STEPS]])
    ends[4] = True  # the first one ended, and the model does not know why: it goes on
    start = data.denormalize(data.transitions["observation"][[0, STEPS]]).numpy()
    way = start + MOVE * 0.9 * np.arange(1, STEPS + 1) + SHIFT
    numbers = followed(data).numbers
    assert numbers["return_model"] == pytest.approx(way.sum(axis=1).mean(), rel=1e-4)
    ends[4] = False  # it was cut
    numbers = followed(data).numbers
    shorter = (way[0, :5].sum() + way[1].sum()) / 2
    assert numbers["return_model"] == pytest.approx(shorter, rel=1e-4)
    data.whole_episodes = np.empty((0, 2), dtype=np.int64)
    env = EnsembleModelEnv(
        Model(data, 0.0), action_spec=data.action_spec, starts=data.transitions, **data.statistics
    )
    assert follow_policy(env, policy_of(0.5), data, seed=SEED) is None


@pytest.mark.parametrize("env_id", ["OpenWalk-v0", None])
def test_a_measurement_repeats_and_leaves_no_trace(env_id: str | None) -> None:
    data = logged(env_id)
    model = EnsembleWorldModel(1, 1, hidden_sizes=(8,))
    model.train()
    env = EnsembleModelEnv(
        model, action_spec=data.action_spec, starts=data.transitions, **data.statistics
    )
    actor, random = policy_of(0.5).train(), torch.get_rng_state()
    first = follow_policy(env, actor, data, seed=SEED)
    assert torch.equal(random, torch.get_rng_state()) and model.training and actor.training
    torch.rand(3)
    again, other = (follow_policy(env, actor, data, seed=seed) for seed in (SEED, SEED + 1))
    assert first is not None and again is not None and other is not None
    assert first.numbers == again.numbers != other.numbers


def test_a_model_that_runs_away_is_distrusted() -> None:
    data = logged("OpenWalk-v0")
    for promise in (float("nan"), 1e38):
        path = followed_with(data, promise)
        assert path.numbers["distrust"] and "the model promises" in path.numbers["line"]


def followed_with(data: OfflineDataset, promise: float) -> PolicyPath:
    """Of a model whose promise may be no number."""
    env = EnsembleModelEnv(
        Model(data, promise), action_spec=data.action_spec, starts=data.transitions,
        **data.statistics,
    )  # fmt: skip
    path = follow_policy(env, policy_of(0.9), data, seed=SEED)
    assert path is not None
    return path


def test_the_line_is_among_those_of_the_last_screen() -> None:
    data = logged()
    for distrust in (True, False):
        path = {"line": "what was found", "distrust": distrust}
        found = check_sanity([], data, None, path=path)
        assert found["lines"] == ["what was found"]
        assert found["warnings"] == (["what was found"] if distrust else [])
    assert check_sanity([], data, None, path={"line": None, "distrust": False})["lines"] == []


@pytest.mark.parametrize("env_id", ["OpenWalk-v0", None])
def test_the_figure_has_what_there_is(
    env_id: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    path = followed(logged(env_id), promise=PROMISE, holdout_mse=[0.1, 0.1, 0.1])
    plot_policy_path(path, tmp_path / "policy_path.png", title="RAMBO on $data")
    assert (tmp_path / "policy_path.png").stat().st_size > 1000
    (figure,) = drawn
    labels = {text.get_text().split(":")[0] for text in figure.legends[0].get_texts()}
    if env_id is None:
        assert labels == {"model", "mean logged episode", "best logged episode"}
        assert len(figure.axes) == 1
    else:
        error = {"one-step error on the path", "on held-out data, after the fit"}
        assert labels == {"model", "environment", *error}
        assert len(figure.axes) == 2


@pytest.mark.parametrize("works", [True, False])
def test_a_run_ends_with_its_policy_s_path_or_without(
    works: bool,
    tmp_path: Path,
    toy: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = toy(tmp_path / "run", env_id=None, epochs=1)
    for epoch in run.play():
        epoch.log({})
    model = EnsembleWorldModel(1, 1, hidden_sizes=(8,))
    env = EnsembleModelEnv(
        model, action_spec=run.dataset.action_spec, starts=run.dataset.transitions
    )
    if not works:
        monkeypatch.setattr(policy_path, "imagined_rewards", lambda *a: 1 / 0)
    results = run.finish(model_env=env)
    assert results == {**results, **run.folder.read_results()}
    figure = run.folder.path / "policy_path.png"
    shown = f"the policy's path: {figure}" in last_screen(results, run.folder)
    assert ("path" in results) is figure.is_file() is shown is works
    said = "the policy's path is not compared: division by zero" in capsys.readouterr().out
    assert said is not works
    if works:
        assert results["path"]["line"] in results["sanity"]["lines"]
