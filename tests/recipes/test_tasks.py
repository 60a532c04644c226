"""A task for each data set of the paper's Table 1, with the settings that it states."""

from __future__ import annotations

from pathlib import Path

import iql
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from launcher.data_checks import TASK_ENVIRONMENTS, load_data
from launcher.program import refusing_bad_input
from omegaconf import DictConfig
from torchrl.data import Bounded
from training_run import Run

from rambo_trl.data import OfflineDataset, bundled, bundled_names
from rambo_trl.data.d4rl_names import parse_d4rl_name
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interruption

CONFIG = Path(__file__).parents[2] / "recipes" / "config"

#: k, lambda, whether the behaviour is cloned, and the policy of the rollouts
TABLE_1 = {
    "halfcheetah-random": (5, 0.0, True, "current"),
    "hopper-random": (2, 3e-4, True, "current"),
    "walker2d-random": (5, 0.0, True, "current"),
    "halfcheetah-medium": (5, 3e-4, True, "current"),
    "hopper-medium": (5, 3e-4, True, "current"),
    "walker2d-medium": (5, 0.0, True, "current"),
    "halfcheetah-medium-replay": (5, 3e-4, True, "current"),
    "hopper-medium-replay": (2, 3e-4, True, "current"),
    "walker2d-medium-replay": (5, 0.0, True, "current"),
    "halfcheetah-medium-expert": (5, 3e-4, True, "current"),
    "hopper-medium-expert": (5, 3e-4, True, "current"),
    "walker2d-medium-expert": (2, 3e-4, True, "current"),
    "antmaze-umaze": (5, 3e-4, False, "current"),
    "antmaze-medium-play": (5, 0.0, False, "random"),
    "antmaze-large-play": (5, 3e-4, False, "random"),
    "antmaze-umaze-diverse": (5, 0.0, False, "random"),
    "antmaze-medium-diverse": (5, 0.0, False, "random"),
    "antmaze-large-diverse": (5, 0.0, False, "random"),
}


TASKS = sorted(path.stem for path in (CONFIG / "task").glob("*.yaml"))
FILES = sorted(name for name in TABLE_1 if "antmaze" not in name and not name.endswith("-medium"))


def composed(*overrides: str, method: str = "rambo") -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose(method, overrides=list(overrides))


def test_there_is_a_task_for_every_set_and_no_other() -> None:
    assert {path.stem for path in (CONFIG / "task").glob("d4rl-*.yaml")} == {
        f"d4rl-{name}" for name in TABLE_1
    }


@pytest.mark.parametrize("name", TABLE_1)
def test_settings_are_table_1_s(name: str) -> None:
    cfg = composed(f"task=d4rl-{name}", "schedule=paper")
    assert (
        cfg.rollout_length,
        cfg.adversarial_weight,
        cfg.clone_behaviour,
        cfg.rollout_policy,
    ) == TABLE_1[name]


def test_each_task_s_environment_is_known() -> None:
    assert {task.removeprefix("d4rl-").split("-")[0] for task in TASKS} == set(TASK_ENVIRONMENTS)


@pytest.mark.parametrize("task", TASKS)
def test_mazes_and_no_other_shift_rewards_and_let_nothing_terminate(task: str) -> None:
    cfg = composed(f"task={task}")
    wanted = (-1.0, "none") if "maze" in task else (0.0, "auto")
    assert (cfg.reward_shift, cfg.termination) == wanted


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["mopo", "combo", "morel"])
def test_the_baselines_roll_out_their_policy_unless_told_otherwise(method: str, task: str) -> None:
    assert composed(f"task={task}", method=method).rollout_policy == "current"
    given = composed(f"task={task}", "rollout_policy=random", method=method)
    assert given.rollout_policy == "random"


@pytest.mark.parametrize("task", TASKS)
def test_iqls_expectile_and_temperature_are_the_authors_for_the_task(task: str) -> None:
    expectile, temperature = (0.9, 10.0) if "antmaze" in task else (0.7, 3.0)
    assert iql.published(task) == {
        "agent.expectile": expectile,
        "agent.temperature": temperature,
    }
    cfg = composed(f"task={task}", method="iql")
    assert cfg.agent.expectile is None and cfg.agent.temperature is None  # filled in with these


@pytest.mark.parametrize("env_id", ["AntMaze_UMaze-v4", "PointMaze_UMaze-v3", "Hopper-v5"])
def test_iql_scales_no_rewards_where_success_is_the_score(env_id: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rewards = (np.arange(40) == 9).astype(np.float32)  # one of four episodes reaches the goal
    states = rng.normal(size=(41, 4))
    data = OfflineDataset.from_arrays(
        {
            "observations": states[:-1], "next_observations": states[1:],
            "actions": rng.uniform(-1, 1, size=(40, 2)), "rewards": rewards,
            "terminals": np.zeros(40, bool), "timeouts": np.arange(40) % 10 == 9,
        },
        env_id=env_id,
        action_spec=Bounded(-1, 1, shape=(2,)),
        reward_shift=-1.0,
    )  # fmt: skip
    settings = iql.published("d4rl-antmaze-umaze")
    words = [f"{key}={value}" for key, value in settings.items()]
    cfg = composed("schedule=smoke", *words, method="iql")
    assert cfg.agent.scale_rewards is True
    method = iql.IQL(Run(cfg, data, RunFolder.create(tmp_path / "run"), Interruption()))
    found = method.transitions["next", "reward"]
    factor = 1.0 if "Maze" in env_id else 1000.0
    assert torch.equal(found, factor * data.transitions["next", "reward"])
    assert (float(method.loss.expectile), float(method.loss.temperature)) == (
        pytest.approx(0.9),
        10.0,
    )


@pytest.mark.parametrize("name", TABLE_1)
def test_the_data_is_minari_s_or_a_file_of_d4rl_s(name: str) -> None:
    dataset = composed(f"task=d4rl-{name}").dataset
    env, kind = name.split("-", 1)
    if env == "antmaze":
        assert dataset == f"D4RL/antmaze/{kind}-v1"
    elif kind == "medium":
        assert dataset == f"mujoco/{env}/medium-v0"
    else:
        assert dataset == f"d4rl/{env}_{kind.replace('-', '_')}-v2.hdf5"
        known = parse_d4rl_name(Path(dataset))
        assert known is not None
        assert known.env_id.lower() == f"{env}-v5"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_sets_the_same_keys(task: str) -> None:
    """Keys that a task leaves out, or makes up, would be the last task's or nobody's."""
    keys = {
        line.split(":")[0]
        for line in (CONFIG / "task" / f"{task}.yaml").read_text().splitlines()
        if line and not line.startswith("#")
    }
    # what a task may set besides, the method's configuration has a value for
    assert keys - {"odd_data", "reward_shift", "termination"} == {
        "dataset", "adversarial_weight", "rollout_length", "clone_behaviour", "rollout_policy",
    }  # fmt: skip


def refused(task: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a task's data are refused."""
    with pytest.raises(SystemExit) as end, refusing_bad_input():
        load_data(composed(f"task={task}"))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_of_d4rl_s_says_what_to_take_instead(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    env, kind = name.split("-", 1)
    (tmp_path / "Hopper-v5.safetensors").touch()
    (tmp_path / "HalfCheetah-v5.safetensors").touch()
    monkeypatch.setattr(bundled, "POLICIES", tmp_path)
    line = refused(f"d4rl-{name}", capsys)
    assert f"no data file d4rl/{name.replace('-', '_')}-v2.hdf5: " in line
    assert "dataset=PATH" in line and "docs/methods.md" in line
    kin = f"bundled/{env}/{kind}-v0"
    assert kin in bundled_names()
    if env == "walker2d" and kind != "random":  # no policies to make it with
        assert "bundled/" not in line and "no bundled set is of its kind" in line
    else:
        assert f"dataset={kin}," in line


def test_a_bundled_set_whose_policies_are_not_there_says_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("policies", "minari"):
        (tmp_path / folder).mkdir()
    for env in ("Hopper", "HalfCheetah"):
        (tmp_path / f"policies/{env}-v5.safetensors").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(bundled, "POLICIES", tmp_path / "policies")
    line = refused("walker2d-medium-replay", capsys)
    assert "the package has no policies for walker2d yet" in line
    assert "bundled/walker2d/random-v0" in line and "the sets of halfcheetah, hopper;" in line
    assert "python recipes/behaviour.py env=Walker2d-v5" in line


def test_the_command_line_s_data_set_wins() -> None:
    cfg = composed("task=d4rl-hopper-medium", "dataset=/data/hopper_medium-v2.hdf5")
    assert cfg.dataset == "/data/hopper_medium-v2.hdf5"


def test_the_page_s_table_says_the_same() -> None:
    page = (CONFIG.parents[1] / "docs" / "methods.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `d4rl-")
    ]
    assert {row[0] for row in rows} == {f"d4rl-{name}" for name in TABLE_1}
    for task, k, weight, cloned, rollouts, data in rows:
        policy = "current" if rollouts == "policy" else rollouts
        settings = (int(k), float(weight), cloned == "yes", policy)
        assert settings == TABLE_1[task.removeprefix("d4rl-")]
        assert data.removeprefix("Minari's `") == composed(f"task={task}").dataset


@pytest.mark.parametrize("task", [task for task in TASKS if task in TABLE_1])
def test_a_bundled_set_has_the_settings_of_its_kind(task: str) -> None:
    cfg = composed(f"task={task}", "schedule=paper")
    found = (cfg.rollout_length, cfg.adversarial_weight, cfg.clone_behaviour, cfg.rollout_policy)
    assert found == TABLE_1[task]
