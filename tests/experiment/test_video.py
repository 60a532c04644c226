from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from torchrl.data import Bounded

from rambo_trl.experiment.evaluation import rollout_episodes
from rambo_trl.experiment.policy import Policy, load_policy, save_policy
from rambo_trl.experiment.video import record_video
from rambo_trl.modules import make_actor

SPEC = Bounded(low=-torch.ones(3), high=torch.ones(3))


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    save_policy(
        tmp_path / "policy.safetensors",
        make_actor(11, SPEC, hidden_sizes=(8,)),
        observation_mean=torch.zeros(11),
        observation_std=torch.ones(11),
        action_spec=SPEC,
        env_id="Hopper-v5",
    )
    return load_policy(tmp_path / "policy.safetensors")


def can_draw(env_id: str) -> bool:
    """Whether Gymnasium alone draws the environment here, without a screen through EGL."""
    code = (
        "import gymnasium, sys\n"
        "env = gymnasium.make(sys.argv[1], render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "sys.exit(env.render().ndim != 3)\n"
    )
    without_screen = sys.platform == "linux" and not os.environ.get("DISPLAY")
    environment = ({"MUJOCO_GL": "egl"} if without_screen else {}) | os.environ
    # a process of its own: a renderer that cannot work may crash
    done = subprocess.run([sys.executable, "-c", code, env_id], env=environment, timeout=120)
    return done.returncode == 0


# imageio leaves the pipes of the ffmpeg that it reads with open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_an_episode_at_the_simulator_s_speed(kind, policy, tmp_path):
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / f"policy.{kind}"
    try:
        total = record_video(policy, path, seed=4)
    except RuntimeError as error:
        if can_draw("Hopper-v5"):
            raise
        pytest.skip(str(error))
    played = rollout_episodes(policy, "Hopper-v5", num_episodes=1, seed=4)
    assert total == pytest.approx(played.returns[0])
    frames = imageio.imread(path)
    # Hopper has 125 steps a second, of which every fifth is drawn, and the start
    assert len(frames) == pytest.approx(1 + played.lengths[0] // 5, abs=1)
    assert frames.shape[1:] == (240, 240, 3)
    assert frames.std() > 10 and (frames[0] != frames[-1]).any()


def test_it_is_played_as_the_policy_was_trained(policy, tmp_path):
    policy.env_spec = EnvSpec("Hopper-v5", max_episode_steps=3, kwargs={"healthy_reward": 100.0})
    try:
        total = record_video(policy, tmp_path / "policy.gif")
    except RuntimeError as error:
        if can_draw("Hopper-v5"):
            raise
        pytest.skip(str(error))
    assert 290 < total < 310


def test_another_kind_of_file(policy, tmp_path):
    with pytest.raises(ValueError, match=r"a video is a .gif or .mp4 file, got x.avi"):
        record_video(policy, tmp_path / "x.avi")


def test_a_machine_that_cannot_draw_says_so_in_one_line(policy, tmp_path):
    code = (
        "import sys, os; from rambo_trl import load_policy\n"
        "from rambo_trl.experiment.video import record_video\n"
        "try: record_video(load_policy(sys.argv[1]), sys.argv[2])\n"
        "except RuntimeError as error: print('said:', error, flush=True); os._exit(0)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "policy.safetensors", tmp_path / "x.gif"],
        env=environment | {"MUJOCO_GL": "glfw"},
        capture_output=True,
        text=True,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("said: nothing can be drawn here") and "MUJOCO_GL=egl" in line
    assert not (tmp_path / "x.gif").exists()


def test_without_an_environment_there_is_none(policy, tmp_path):
    policy.env_id = ""
    with pytest.raises(RuntimeError, match="trained without an environment to draw"):
        record_video(policy, tmp_path / "policy.gif")


def test_an_environment_that_draws_nothing_is_named(policy, tmp_path, monkeypatch):
    env = gymnasium.make("Hopper-v5")
    monkeypatch.setitem(env.metadata, "render_modes", ["human"])
    monkeypatch.setattr(gymnasium, "make", lambda *args, **kwargs: env)
    with pytest.raises(RuntimeError, match="^Hopper-v5 draws no pictures of itself$"):
        record_video(policy, tmp_path / "policy.gif")
