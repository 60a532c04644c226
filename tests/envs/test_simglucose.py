"""Simglucose: NeoRL-2's own transitions, and what ends an episode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rambo_trl.data import make_environment
from rambo_trl.envs import simglucose, termination
from rambo_trl.envs.simglucose import PATIENTS, SimglucoseEnv


@pytest.fixture
def env() -> SimglucoseEnv:
    try:
        return SimglucoseEnv()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("split", "every"), [("train", 20), ("val", 8)])
def test_replays_the_published_episodes(
    neorl2_episodes: Callable, env: SimglucoseEnv, split: str, every: int
) -> None:
    ended = 0
    for number, episode in list(enumerate(neorl2_episodes("Simglucose", split)))[::every]:
        # NeoRL-2 seeded NumPy with the episode's number
        draw = np.random.RandomState(number)
        draw.randint(0, 1000)
        drawn = {"hour": draw.randint(0, 24), "patient": draw.choice(PATIENTS)}
        observation, _ = env.reset(options=drawn)
        np.testing.assert_allclose(observation, episode["obs"][0], rtol=1e-6)
        for action, wanted, reward, done in zip(
            *(episode[key] for key in ("action", "next_obs", "reward", "done")), strict=True
        ):
            observation, given, terminated, _, _ = env.step(action)
            np.testing.assert_allclose(observation[0], wanted[0], atol=0.01)  # mg/dl
            assert given == pytest.approx(reward, abs=1e-4)
            assert terminated == done
        ended += terminated
    assert ended


def test_more_insulin_lowers_the_glucose_and_ends_the_episode(env: SimglucoseEnv) -> None:
    after = []
    for action in (-1.0, -0.99, 1.0):
        env.reset(options={"hour": 0, "patient": "adult#002"})
        for _ in range(100):
            observation, reward, terminated, _, _ = env.step(np.array([action]))
            if terminated:
                break
        after.append(observation[0])
    assert after[0] > after[1] > 41 > after[2]
    assert terminated and reward in (-15.0, pytest.approx(1.0, abs=0.5))


def test_patients_and_hours_are_drawn(env: SimglucoseEnv) -> None:
    made = make_environment("rambo_trl/Simglucose-v0")
    drawn = [made.reset(seed=seed)[0] for seed in range(100)]
    assert len({tuple(observation[1:]) for observation in drawn}) == len(PATIENTS)
    np.testing.assert_array_equal(made.reset(seed=3)[0], drawn[3])


def test_without_the_patients_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simglucose.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps simglucose"):
        make_environment("rambo_trl/Simglucose-v0")


def test_the_rule_s_bounds() -> None:
    after = torch.tensor([[39.9], [40.0], [600.0], [600.1], [float("nan")]]).repeat(1, 31)
    ended = termination.simglucose(after, after[:, :1], after)
    assert ended.tolist() == [True, False, False, True, True]


def test_the_rule_agrees_with_the_data(neorl2_episodes: Callable) -> None:
    episodes = neorl2_episodes("Simglucose", "train")
    after, done = (
        torch.from_numpy(np.concatenate([e[key] for e in episodes])) for key in ("next_obs", "done")
    )
    ended = termination.simglucose(after, after, after)
    assert not ended[done == 0].any()
    assert ended[done == 1].float().mean() > 0.65


def test_the_patients_file_is_read_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {*simglucose.OBSERVED, "Vg", "kmin", *(f"x0_{i:2d}" for i in range(1, 14))}
    folder = tmp_path / "simglucose" / "params"
    folder.mkdir(parents=True)
    (tmp_path / "simglucose/__init__.py").write_text("raise RuntimeError('not to be imported')")
    header, row = ",".join(["Name", *sorted(keys)]), ",".join(["adult#001", *["2.0"] * len(keys)])
    (folder / "vpatient_params.csv").write_text(f"{header}\n{row}\n")
    monkeypatch.syspath_prepend(tmp_path)
    env = SimglucoseEnv()
    observation, _ = env.reset(options={"patient": "adult#001"})
    assert observation.tolist() == [1.0, *[2.0] * 30]
