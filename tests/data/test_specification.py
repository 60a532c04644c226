"""An environment is its id with its arguments, time limit and wrappers, wherever one is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from torchrl.data import Bounded

from rambo_trl.data import (
    ObservationLayout,
    OfflineDataset,
    check_environment,
    make_environment,
    reference_scores_for,
)
from rambo_trl.data.environment import is_scored_by_success, known_family, time_limit
from rambo_trl.data.playing import bounds_that_differ
from rambo_trl.envs.termination import choose_rule, never, rule_for
from rambo_trl.experiment.policy import Policy, load_policy, save_policy
from rambo_trl.experiment.pretrained import dataset_digest
from rambo_trl.modules import make_actor

BOUNDS = Bounded(-1, 1, shape=(1,))
MODULE = """
import gymnasium
import numpy as np

class Track(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (2,))

    def __init__(self, force=1.0, render_mode=None):
        self.force, self.render_mode = force, render_mode
        self.action_space = gymnasium.spaces.Box(-force, force, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2), {}

    def step(self, action):
        return np.zeros(2), self.force, False, False, {}

gymnasium.register("Track-v0", Track, max_episode_steps=7)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working folder that registers Track-v0."""
    (tmp_path / "my_tracks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_tracks"
    forget()


def forget() -> None:
    gymnasium.registry.pop("Track-v0", None)
    sys.modules.pop("my_tracks", None)


def episode(size: int = 2) -> dict[str, np.ndarray]:
    return {
        "observations": np.random.default_rng(0).normal(size=(4, size)),
        "actions": np.float32([[-0.5], [0.0], [0.5]]),
        "rewards": np.arange(3.0),
        "terminations": np.zeros(3, bool),
        "truncations": np.arange(3) == 2,
    }


def arrays(action: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "observations": np.random.default_rng(0).normal(size=(6, 2)),
        "actions": np.full((6, 1), action, np.float32),
        "rewards": np.arange(6.0),
        "terminals": np.zeros(6),
    }


def track(**changes: Any) -> EnvSpec:
    return EnvSpec("Track-v0", entry_point="my_tracks:Track", **changes)


def recorded_with(spec: EnvSpec) -> dict[str, Any]:
    space = gymnasium.spaces.Box(-9, 9, (2,))
    return {"env": spec, "eval_env": spec, "observation_space": space}


class TestRecorded:
    @pytest.fixture(autouse=True)
    def recorded(self, store: Callable[..., Path], module: str) -> None:
        spec = track(kwargs={"force": 5.0}, max_episode_steps=3)
        store("me/track-v0", episode(), **recorded_with(spec))
        forget()  # where it is loaded nothing has registered it yet

    @pytest.mark.parametrize("env_id", ["Track-v0", "my_tracks:Track-v0"])
    def test_it_stays_where_the_id_names_it(self, env_id: str, module: str, tmp_path: Path) -> None:
        if ":" not in env_id:
            __import__(module)
        data = OfflineDataset.load("me/track-v0", env_id=env_id)
        for found in (data, data.memmap(tmp_path / "set")):
            assert found.remarks == () and found.env_id == env_id
            assert found.environment is not None
            env = make_environment(found.environment)
            assert env.spec is not None and env.spec.max_episode_steps == 3
            env.reset(seed=0)
            assert env.step(np.zeros(1, np.float32))[1] == 5.0
            # whatever asks the environment asks this one
            assert "-5.0" in bounds_that_differ(found)[0]
        # a folder keeps it under either spelling
        for again in ("Track-v0", "my_tracks:Track-v0"):
            assert OfflineDataset.load(tmp_path / "set", env_id=again).env_spec == data.env_spec

    def test_another_id_s_loss_is_told(self) -> None:
        data = OfflineDataset.load("me/track-v0", env_id="Pendulum-v1")
        assert data.environment == "Pendulum-v1"
        (remark,) = data.remarks
        assert "recorded in Track-v0 with force=5.0, max_episode_steps=3, which is drop" in remark

    def test_wrappers_are_kept_or_told(self, module: str) -> None:
        clip = WrapperSpec("ClipAction", "gymnasium.wrappers.transform_action:ClipAction", {})
        video = WrapperSpec("Video", "gymnasium.wrappers.rendering:RecordVideo", {"folder": "x"})
        foreign = WrapperSpec("Mine", "my_tracks:Track", {})
        spec = track(additional_wrappers=(clip, video, foreign), kwargs={"render_mode": "human"})
        settings: dict[str, Any] = {"action_spec": BOUNDS, "env_spec": spec}
        with pytest.raises(ValueError, match="wrapper my_tracks:Track, which is not Gymnasium's"):
            __import__(module)
            data = OfflineDataset.from_episodes([episode()], **settings)
            make_environment(data.environment or "")
        data = OfflineDataset.from_episodes([episode()], env_id="my_tracks:Track-v0", **settings)
        assert "without the recorded wrappers my_tracks:Track" in data.remarks[0]
        env = make_environment(data.environment or "")
        assert isinstance(env, gymnasium.wrappers.ClipAction)
        assert env.render_mode is None  # no window opens where a policy is only evaluated

    def test_another_process_knows_the_module(self, module: str, tmp_path: Path) -> None:
        script = (
            "from rambo_trl.data import OfflineDataset\n"
            "from rambo_trl.modules import make_actor\n"
            "from rambo_trl.experiment.evaluation import EvaluationProcess\n"
            "from rambo_trl.experiment.policy import save_policy\n"
            "if __name__ == '__main__':\n"
            "    data = OfflineDataset.load('me/track-v0', env_id='my_tracks:Track-v0')\n"
            "    save_policy('p', make_actor(2, data.action_spec, hidden_sizes=[4]),\n"
            "        observation_mean=data.observation_mean,\n"
            "        observation_std=data.observation_std,\n"
            "        action_spec=data.action_spec, env_id='')\n"
            "    beside = EvaluationProcess(data.environment, num_episodes=1)\n"
            "    print(beside.submit('p', seed=0).result(timeout=100).returns)\n"
            "    beside.shutdown()\n"
        )
        (tmp_path / "run.py").write_text(script)
        done = subprocess.run(
            [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.endswith("[15.]\n"), done.stderr


def test_a_specification_alone_names_the_environment(module: str) -> None:
    __import__(module)
    spec = track(kwargs={"force": 5.0}, max_episode_steps=3)
    data = OfflineDataset.from_episodes([episode()], action_spec=BOUNDS, env_spec=spec)
    assert data.env_id == "Track-v0" and data.environment is spec
    flat = OfflineDataset.from_arrays(arrays(4.0), env_spec=spec)  # its bounds and time limit
    assert flat.num_episodes == 2 and flat.environment == spec
    # one without a limit of its own is played to the registered one
    assert make_environment(track()).spec.max_episode_steps == 7  # type: ignore[union-attr]


def test_no_module_is_imported_because_a_specification_names_it(module: str) -> None:
    spec = EnvSpec("my_tracks:Track-v0", entry_point="my_tracks:Track")
    data = OfflineDataset.from_episodes([episode()], action_spec=BOUNDS, env_spec=spec)
    with pytest.raises(ValueError, match="not imported because a file says so"):
        check_environment(data)
    statistics = {"observation_mean": torch.zeros(2), "observation_std": torch.ones(2)}
    actor = make_actor(2, BOUNDS, hidden_sizes=[4])
    with pytest.raises(ValueError, match="not imported because a file says so"):
        Policy(actor, **statistics, env_id=spec.id).environment  # noqa: B018
    assert module not in sys.modules


def test_nor_because_a_minari_set_does(module: str, store: Callable[..., Path]) -> None:
    store("me/track-v0", episode(), **recorded_with(track()))
    forget()
    dataset = minari.load_dataset("me/track-v0")
    vars(dataset)["_env_spec"] = vars(dataset)["_eval_env_spec"] = EnvSpec("my_tracks:Track-v0")
    data = OfflineDataset.from_episodes(dataset)
    assert data.env_id == "my_tracks:Track-v0"
    with pytest.raises(ValueError, match="not imported because a file says so"):
        check_environment(data)
    assert module not in sys.modules


def test_a_given_time_limit_is_the_environment_s(module: str) -> None:
    env_id = f"{module}:Track-v0"
    assert time_limit(env_id) == 7
    for steps, episodes in ((None, 1), (2, 3), (7, 1)):
        data = OfflineDataset.from_arrays(arrays(), env_id=env_id, max_episode_steps=steps)
        assert data.num_episodes == episodes and data.environment is not None
        spec = make_environment(data.environment).spec
        assert spec is not None and spec.max_episode_steps == (steps or 7)


def test_scores_and_rules_are_for_the_plain_environment() -> None:
    def hopper(limit: int = 1000, **arguments: Any) -> EnvSpec:
        path = "gymnasium.envs.mujoco.hopper_v5:HopperEnv"
        return EnvSpec("Hopper-v5", path, max_episode_steps=limit, kwargs=arguments)

    plain = reference_scores_for("Hopper-v5")
    assert reference_scores_for(hopper()) == reference_scores_for(hopper(width=9)) == plain
    seen = hopper(exclude_current_positions_from_observation=False)
    assert reference_scores_for(seen) == plain
    for spec in (hopper(forward_reward_weight=50.0), hopper(77)):
        assert reference_scores_for(spec) is None
        assert rule_for(spec) is rule_for("Hopper-v5")
    assert rule_for(hopper(terminate_when_unhealthy=False)) is never
    assert rule_for(hopper(healthy_z_range=[0.7, float("inf")])) is rule_for("Hopper-v5")
    terminated = torch.zeros(4, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"healthy_z_range=\(0.7, inf\), not None: choose t"):
        rule_for(hopper(healthy_z_range=None))
    with pytest.raises(ValueError, match=r"healthy_z_range=\(0.7, inf\), not \[0.2, 3\]: choose t"):
        choose_rule(env_id=hopper(healthy_z_range=[0.2, 3]), terminated=terminated)
    with pytest.raises(ValueError, match="observations of 11 entries, the data's have 12: choose"):
        choose_rule(env_id="Hopper-v5", terminated=terminated, observation_size=12)
    data = OfflineDataset.from_episodes(
        [episode()], action_spec=BOUNDS, env_spec=hopper(forward_reward_weight=50.0)
    )
    assert data.behaviour_score is None and "no score, because D4RL's" in data.remarks[0]


def test_another_s_environment_is_not_gymnasium_s(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvSpec("Hopper-v9", "nowhere_at_all:Hopper")
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    for env_id in ("MyLab/Hopper-v0", "my_tracks:MyLab/Hopper-v0", "Hopper-v9"):
        assert known_family(env_id) is None and reference_scores_for(env_id) is None
        with pytest.raises(KeyError, match="no termination rule is known"):
            rule_for(env_id)
    assert known_family(EnvSpec("Hopper-v5", "nowhere_at_all:Hopper")) is None
    assert not is_scored_by_success("MyLab/PointMaze_UMaze-v3")
    dense = EnvSpec("PointMaze_UMaze-v3", kwargs={"reward_type": "dense"})
    assert is_scored_by_success("PointMaze_UMaze-v3") and not is_scored_by_success(dense)
    box = gymnasium.spaces.Box(-1, 1, (2,))
    space = gymnasium.spaces.Dict(observation=box, achieved_goal=box, desired_goal=box)
    for env_id, size in (("AntMaze_UMaze-v4", 6), ("MyLab/AntMaze_UMaze-v4", 4)):
        assert ObservationLayout.of(space, name="x", env_id=env_id).size == size


def test_a_policy_keeps_it(tmp_path: Path) -> None:
    statistics = {"observation_mean": torch.zeros(2), "observation_std": torch.ones(2)}
    for spec in (track(kwargs={"force": 5.0}, max_episode_steps=3), None):
        save_policy(
            tmp_path / "policy",
            make_actor(2, BOUNDS, hidden_sizes=[4]),
            **statistics,
            action_spec=BOUNDS,
            env_id="Track-v0",
            env_spec=spec,
        )
        found = load_policy(tmp_path / "policy").environment
        if spec is None:
            assert found == "Track-v0"
        else:
            assert isinstance(found, EnvSpec)
            assert (found.kwargs, found.max_episode_steps) == ({"force": 5.0}, 3)


def test_the_digest_tells_them_apart() -> None:
    def digest(**changes: Any) -> str:
        return dataset_digest(
            OfflineDataset.from_episodes([episode()], action_spec=BOUNDS, **changes)
        )

    plain = digest(env_id="Pendulum-v1")
    assert digest(env_spec=gymnasium.spec("Pendulum-v1")) == plain
    assert digest(env_spec=EnvSpec("Pendulum-v1", kwargs={"g": 1.0})) != plain
