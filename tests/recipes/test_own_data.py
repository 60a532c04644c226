"""The recipe on data of a user's own: without a simulator, with rules of termination, in mazes."""

from __future__ import annotations

import copy
import csv
import errno
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import rambo
import torch
from gymnasium.envs.registration import EnvSpec
from launcher.command_line import compose_jobs
from launcher.data_checks import check_data, load_data
from launcher.launch import make_run
from launcher.program import refusing_bad_input
from torchrl.data import Bounded

from rambo_trl import load_policy
from rambo_trl.data import OfflineDataset, bundled
from rambo_trl.data.bundled import build_bundled
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interruption

RECIPES = Path(__file__).parents[2] / "recipes"
SMOKE = ("schedule=smoke", "agent_updates=5", "model_updates=5", "rollout_starts=100")
needs_mazes = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="needs gymnasium-robotics"
)


def make_arrays(rows: int = 600, *, ends: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Steps of a machine that no package simulates; it ends where entry 0 leaves [-1.5, 1.5]."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows + 1, 4)).astype(np.float32)
    observations, following = states[:-1], states[1:]
    terminals = np.abs(following[:, 0]) > 1.5 if ends else np.zeros(rows, bool)
    return {
        "observations": observations,
        "next_observations": following,
        "actions": rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": (np.arange(rows) % 50 == 49) & ~terminals,
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def test_without_a_simulator_it_trains_and_says_so(
    tmp_path: Path,
    run_recipe: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    heard: pytest.LogCaptureFixture,
) -> None:
    # from memory-mapped files, with bounds of its own for each action entry
    low, high = torch.tensor([0.0, -30.0]), torch.tensor([5.0, -10.0])
    arrays = make_arrays()
    arrays["actions"] = low.numpy() + (high - low).numpy() * (arrays["actions"] + 1) / 2
    arrays["rewards"][:] = 2.0
    spec = Bounded(low, high, shape=(2,))
    OfflineDataset.from_arrays(arrays, action_spec=spec, name="log").memmap(tmp_path / "log")
    settings = ("dataset=log", "termination=learned", "odd_data=accept", "rollout_length=2")
    run_recipe(tmp_path, "rambo", *SMOKE, "run_dir=run", *settings)
    out, err = capsys.readouterr()
    assert "log without an environment: the policy is not evaluated" in err
    assert "log: all 600 rewards are 2" in heard.text  # remarks are told
    assert "held-out rows" in out + err  # how the learnt rule does
    assert "not evaluated" in out
    assert "(no environment), seed 0" in out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["evaluated"] is False and results["env"] is None
    assert results["score"] is None and results["return_mean"] is None
    assert all(error > 0 for error in results["holdout_mse"])
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert all(row["mean_q"] and row["model_error"] and not row["score"] for row in rows)
    assert float(rows[-1]["model_terminated"]) > 0  # the learnt rule is at work
    policy = load_policy(tmp_path / "run/policy.safetensors")
    torch.manual_seed(0)
    actions = policy(1e4 * torch.randn(500, 4))  # far out, where the policy goes to its bounds
    assert ((actions >= low) & (actions <= high)).all() and len(actions.unique(dim=0)) > 1


class Check:
    """Load and check as the recipe does, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *overrides: str) -> tuple[int, str]:
        """Return the exit code, 0 where all is well, and what stderr says."""
        self.capsys.readouterr()
        code = 0
        try:
            with refusing_bad_input():
                (cfg,) = compose_jobs("rambo", [*SMOKE, *overrides])
                check_data(cfg, load_data(cfg))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, self.capsys.readouterr().err.strip()


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    return Check(capsys)


def refused(outcome: tuple[int, str]) -> str:
    code, text = outcome
    assert code == 2, text
    lines = text.splitlines()
    assert lines[-1].startswith("error: ") and sum("error:" in line for line in lines) == 1
    return lines[-1]


class TestTermination:
    def test_ends_without_a_rule_are_refused(self, tmp_path: Path, check: Check) -> None:
        path = write(tmp_path / "log.hdf5", make_arrays())
        line = refused(check(f"dataset={path}"))
        assert "of 600 transitions are terminal: choose termination=learned" in line
        assert line.endswith("such states; or name the environment (env_id=)")

    def test_no_ends_need_no_rule(self, tmp_path: Path, check: Check) -> None:
        path = write(tmp_path / "log.hdf5", make_arrays(ends=False))
        assert check(f"dataset={path}")[0] == 0
        assert "hardly any" in refused(check(f"dataset={path}", "termination=learned"))

    def test_a_rule_by_its_import_path(
        self, tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "log.hdf5", make_arrays())
        (tmp_path / "own_data_rules.py").write_text(
            "def out(observation, action, next_observation):\n"
            "    return next_observation[..., 0].abs() > 1.5\n"
            "def inside(observation, action, next_observation):\n"
            "    return next_observation[..., 0].abs() <= 1.5\n"
            "def half(observation, action, next_observation):\n"
            "    return next_observation[..., 0] > 1.5\n"
            "def broken(observation, action, next_observation):\n"
            "    return next_observation[..., 0]\n"
        )
        monkeypatch.chdir(tmp_path)
        code, text = check(f"dataset={path}", "termination=own_data_rules:out")
        assert code == 0 and "rule ends" not in text
        code, text = check(f"dataset={path}", "termination=own_data_rules:half")
        assert code == 0 and "% of the data's ends and 0.0 % of the other" in text
        line = refused(check(f"dataset={path}", "termination=own_data_rules:broken"))
        assert "must return a boolean tensor" in line
        line = refused(check(f"dataset={path}", "termination=own_data_rules:missing"))
        assert "cannot be imported" in line
        # a rule of one's own may be stricter than the data, but not end most of what went on
        wrong_way = ("termination=own_data_rules:inside", f"dataset={path}")
        line = refused(check(*wrong_way))
        assert "100.0 % of the other transitions" in line and "odd_data=accept" in line
        code, text = check(*wrong_way, "odd_data=accept")
        assert code == 0 and "note: the termination rule ends 0.0 % of the data's ends" in text
        (tmp_path / "own_data_unfinished.py").write_text("def out(\n")
        line = refused(check(f"dataset={path}", "termination=own_data_unfinished:out"))
        assert "cannot be imported (SyntaxError" in line

    @pytest.mark.parametrize(
        ("arguments", "ends", "words"),
        [
            ({"terminate_when_unhealthy": False}, False, None),
            ({"terminate_when_unhealthy": False}, True, "ends 0.0 % of the data's ends"),
            ({}, True, None),
            ({}, False, "the termination rule of Hopper-v5 ends 50.0 % of the other"),
            ({"healthy_z_range": [0.2, 9.0]}, True, "is for healthy_z_range=(0.7, inf), not [0.2"),
            ({"exclude_current_positions_from_observation": False}, True, "the data's have 12"),
        ],
    )
    def test_a_rule_that_is_known_by_name_must_fit(
        self,
        arguments: dict[str, bool | list[float]],
        ends: bool,
        words: str | None,
        tmp_path: Path,
        check: Check,
    ) -> None:
        spec = EnvSpec("Hopper-v5", max_episode_steps=1000, kwargs=arguments)
        arrays = hopper_arrays(
            12 if "exclude_current_positions_from_observation" in arguments else 11
        )
        arrays["terminals"] &= ends
        OfflineDataset.from_arrays(arrays, env_spec=spec).memmap(tmp_path / "set")
        outcome = check(f"dataset={tmp_path / 'set'}")
        if words is None:
            assert outcome[0] == 0 and "the termination rule" not in outcome[1]
        else:
            line = refused(outcome)
            assert words in line
            assert "termination=none, termination=learned or termination=MODULE:FUNCTION" in line

    def test_ends_whose_states_are_not_known_are_not_missed(
        self, tmp_path: Path, check: Check
    ) -> None:
        arrays = hopper_arrays(11)
        del arrays["next_observations"]  # a terminal row's own observation stands in
        path = write(tmp_path / "hopper_medium-v2.hdf5", arrays)
        code, text = check(f"dataset={path}")
        assert code == 0 and "the termination rule" not in text

    def test_a_namesake_has_no_rule(
        self, tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = copy.deepcopy(gymnasium.spec("Hopper-v5"))
        monkeypatch.setitem(
            gymnasium.registry, "MyLab/Hopper-v0", replace(spec, id="MyLab/Hopper-v0")
        )
        path = write(tmp_path / "log.hdf5", hopper_arrays(11))
        line = refused(check(f"dataset={path}", "env_id=MyLab/Hopper-v0"))
        assert (
            "no termination rule is known for environment MyLab/Hopper-v0, but 300 of 600" in line
        )


def hopper_arrays(size: int) -> dict[str, np.ndarray]:
    """A hopper that stands for 301 states and has fallen in the 300 that follow."""
    states = np.random.default_rng(0).normal(scale=0.01, size=(601, size)).astype(np.float32)
    states[:301, size - 11] += 1.2
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": np.zeros((600, 3), np.float32),
        "rewards": np.arange(600.0),
        "terminals": np.arange(600) >= 300,
        "timeouts": np.zeros(600, bool),
    }


def test_odd_data_is_refused_unless_accepted(tmp_path: Path, check: Check) -> None:
    arrays = make_arrays(ends=False)
    arrays["rewards"][:] = 0.0
    words = (f"dataset={write(tmp_path / 'log.hdf5', arrays)}", "termination=none")
    line = refused(check(*words))
    assert "all 600 rewards are 0: " in line and "odd_data=accept" in line
    assert check(*words, "odd_data=accept")[0] == 0


def test_env_id_none_leaves_the_simulator_out(tmp_path: Path, check: Check) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", make_arrays(ends=False))
    assert "does not fit Hopper-v5" in refused(check(f"dataset={path}", "termination=none"))
    code, text = check(f"dataset={path}", "env_id=none", "termination=none")
    assert code == 0 and "is not evaluated" in text


@pytest.mark.parametrize(
    ("error", "name", "words"),
    [
        (ConnectionError("no route"), "mine/robot-v0", "downloading it failed (ConnectionError: n"),
        (OSError(errno.ENOSPC, "No space left on device"), "", "free some space, or point MINARI_"),
        (PermissionError(errno.EACCES, "Permission denied"), "", "Permission denied"),
        (None, "log.hdf5", "2352 in observation (588 rows"),
        (None, "bundled/hoper/medium-replay-v0", "bundled/hopper/medium-replay-v0"),
    ],
)
def test_data_that_cannot_be_had_or_used(
    error: OSError | None,
    name: str,
    words: str,
    tmp_path: Path,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    monkeypatch.chdir(tmp_path)
    if isinstance(error, ConnectionError):
        monkeypatch.setattr(minari, "list_remote_datasets", failing(error))
    elif error is not None:
        monkeypatch.setattr(bundled, "check_space", failing(error))
    arrays = make_arrays(ends=False) | {"observations": np.full((600, 4), np.nan, np.float32)}
    del arrays["next_observations"]
    write(tmp_path / "log.hdf5", arrays)
    name = name or "bundled/inverteddoublependulum/random-v0"
    assert words in refused(check(f"dataset={name}"))
    assert not list(root.rglob("*"))  # nothing half-built


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return fail


@needs_mazes
@pytest.mark.slow
def test_a_maze_from_its_scripted_player_to_a_success_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_recipe: Callable[..., None]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    build_bundled("bundled/pointmaze-umaze/waypoint-v0", num_steps=600, progress=False)
    words = ("task=pointmaze-umaze-waypoint", "rollout_length=2", "run_dir=run")
    run_recipe(tmp_path, "rambo", *SMOKE, *words)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["evaluated"] and results["score"] in (0.0, 50.0, 100.0)  # of 2 episodes
    assert results["behaviour_score"] > 90


@needs_mazes
@pytest.mark.usefixtures("brief_ending")
def test_antmaze_as_in_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    build_bundled("bundled/antmaze-umaze/random-v0", num_steps=300, progress=False)
    words = [*SMOKE, "task=antmaze-umaze-random", "evaluation.episodes=1", "evaluation.every=2"]
    (cfg,) = compose_jobs("rambo", words)
    seed_everything(0)
    data = load_data(cfg)
    check_data(cfg, data)
    run = make_run(cfg, data, RunFolder.create(tmp_path / "run"), Interruption())
    parts: dict[str, Any] = {}
    track = run.track
    monkeypatch.setattr(run, "track", lambda **named: (parts.update(named), track(**named)))
    results = rambo.train(run, cfg, data)

    # scored by success; an episode that begins at the goal ends there
    assert results["evaluated"] and results["score"] in (0.0, 100.0)
    reached = int(data.transitions["next", "terminated"].sum())
    assert results["behaviour_score"] == 100 * reached / data.num_episodes
    assert results["cloned_score"] is None
    # each step costs 1, but for the one to the goal
    reward = (data.transitions["next", "reward"] * data.reward_scale).round(decimals=4)
    assert int((reward == 0).sum()) == reached and int((reward == -1).sum()) == len(data) - reached
    # the goal is in the observation, stays as it is for an episode, and the model is given it
    goals = data.denormalize(data.transitions["observation"])[:, -2:]
    assert goals.std() > 0 and parts["world_model"].observation_size == 31
    assert data.observation_layout is not None
    assert data.observation_layout.keys == ("achieved_goal", "observation", "desired_goal")
    # rollouts are of uniformly random actions, and nothing ends them
    model = parts["model_buffer"][:]
    action = model["action"]
    assert action.abs().max() <= 1 and len(model) == 2 * 100 * cfg.rollout_length
    for quantile in (0.1, 0.5, 0.9):
        assert action.quantile(quantile) == pytest.approx(2 * quantile - 1, abs=0.05)
    assert not model["next", "terminated"].any()
