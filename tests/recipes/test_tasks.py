"""A task for each data set of the paper's Table 1, with the settings that it states."""

from __future__ import annotations

from pathlib import Path

import iql
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from launcher.data_checks import TASK_ENVIRONMENTS, load_data, task_environment_word
from launcher.program import refusing_bad_input
from omegaconf import DictConfig, OmegaConf
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, bundled_names, names
from rambo_trl.data.names import parse_d4rl_name

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


def test_there_is_a_task_for_every_set_and_its_environment_is_known() -> None:
    assert {f"d4rl-{name}" for name in TABLE_1} == {t for t in TASKS if t.startswith("d4rl-")}
    assert {task_environment_word(task) for task in TASKS} == set(TASK_ENVIRONMENTS)


@pytest.mark.parametrize("task", [t for t in TASKS if t.removeprefix("d4rl-") in TABLE_1])
def test_settings_are_table_1_s(task: str) -> None:
    cfg = composed(f"task={task}", "schedule=paper")
    settings = (cfg.rollout_length, cfg.adversarial_weight, cfg.clone_behaviour, cfg.rollout_policy)
    assert settings == TABLE_1[task.removeprefix("d4rl-")]


@pytest.mark.parametrize("task", TASKS)
def test_what_follows_from_the_kind_of_task(task: str) -> None:
    cfg = composed(f"task={task}")
    # mazes and no others shift rewards and let nothing terminate
    wanted = (-1.0, "none") if "maze" in task else (0.0, "auto")
    if task == "neorl2-simglucose":  # not an environment of Gymnasium's
        wanted = (0.0, "rambo_trl.envs.termination:simglucose")
    assert (cfg.reward_shift, cfg.termination) == wanted
    # keys that a task leaves out, or makes up, would be the last task's or nobody's
    keys = set(OmegaConf.load(CONFIG / "task" / f"{task}.yaml"))
    assert keys - {"odd_data", "reward_shift", "termination"} == {
        "dataset", "adversarial_weight", "rollout_length", "clone_behaviour", "rollout_policy",
    }  # fmt: skip
    # the authors' expectile and temperature, which fill in for null
    expectile, temperature = (0.9, 10.0) if "antmaze" in task else (0.7, 3.0)
    published = {"agent.expectile": expectile, "agent.temperature": temperature}
    assert iql.published(task) == published
    cfg = composed(f"task={task}", method="iql")
    assert all(OmegaConf.select(cfg, key) is None for key in published)


@pytest.mark.parametrize("method", ["mopo", "mobile", "combo", "morel"])
def test_the_baselines_roll_out_their_policy_unless_told_otherwise(method: str) -> None:
    task = "task=d4rl-antmaze-large-play"  # whose rollouts are random in RAMBO's
    assert composed(task, method=method).rollout_policy == "current"
    assert composed(task, "rollout_policy=random", method=method).rollout_policy == "random"


@pytest.mark.parametrize("env_id", ["AntMaze_UMaze-v4", "PointMaze_UMaze-v3", "Hopper-v5"])
def test_iql_scales_no_rewards_where_success_is_the_score(env_id: str) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(41, 4))
    data = OfflineDataset.from_arrays(
        {
            "observations": states[:-1], "next_observations": states[1:],
            "actions": rng.uniform(-1, 1, size=(40, 2)),
            "rewards": (np.arange(40) == 9).astype(np.float32),  # one of four reaches the goal
            "terminals": np.zeros(40, bool), "timeouts": np.arange(40) % 10 == 9,
        },
        env_id=env_id,
        action_spec=Bounded(-1, 1, shape=(2,)),
        reward_shift=-1.0,
    )  # fmt: skip
    factor = data.reward_scale / iql.reward_unit(composed(method="iql"), data)
    assert factor == pytest.approx(1.0 if "Maze" in env_id else 1000.0)


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
    for env_id in ("Hopper-v5", "HalfCheetah-v5"):
        (tmp_path / f"{env_id}.safetensors").touch()
        (tmp_path / f"{env_id}-to-medium.safetensors").touch()
    monkeypatch.setattr(names, "POLICIES", tmp_path)
    line = refused(f"d4rl-{name}", capsys)
    assert f"no data file d4rl/{name.replace('-', '_')}-v2.hdf5: " in line
    assert "dataset=PATH" in line and "docs/tasks.md" in line
    kin = f"bundled/{env}/{kind}-v{names.BUNDLED_ENVIRONMENTS[env][3] - 1}"
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
    monkeypatch.setattr(names, "POLICIES", tmp_path / "policies")
    line = refused("walker2d-medium-replay", capsys)
    assert "the package has no policies for walker2d yet" in line
    assert "bundled/walker2d/random-v0" in line and "the sets of halfcheetah, hopper;" in line
    assert "python recipes/behaviour.py env=Walker2d-v5" in line


def test_the_page_s_table_says_the_same() -> None:
    page = (CONFIG.parents[1] / "docs" / "tasks.md").read_text()
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
