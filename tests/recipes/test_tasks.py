"""A task for each data set of the paper's Table 1, with the settings that it states."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rambo_trl.data.d4rl_names import parse_d4rl_name

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


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("rambo", overrides=list(overrides))


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


@pytest.mark.parametrize("task", [path.stem for path in (CONFIG / "task").glob("*.yaml")])
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
