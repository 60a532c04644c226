"""A policy's episode as a video file, drawn without a screen."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings

import gymnasium
import imageio.v3 as imageio
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rambo_trl.data import make_environment, mujoco_messages_logged
from rambo_trl.data.environment import environment_id
from rambo_trl.data.playing import Flatten, flattening, play_start, play_step
from rambo_trl.experiment.folder import write_atomically
from rambo_trl.experiment.policy import Policy
from rambo_trl.runtime.places import expand_home

__all__ = ["check_video", "record_video"]


def check_video(kind: str) -> None:
    """Refuse a kind of video that cannot be encoded here, before any work.

    Args:
        kind: ``"gif"``, ``"mp4"`` or ``"none"``.

    Raises:
        ImportError: saying what to install.
    """
    if kind == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("video=mp4 needs imageio_ffmpeg: pip install 'rambo_trl[video]'")


def record_video(
    policy: Policy,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    fps: int = 25,
    max_frames: int = 500,
    size: int = 240,
    environment: str | EnvSpec | None = None,
    flatten: Flatten | None = None,
) -> float:
    """Record one episode of the policy's mode as a video at the simulator's speed.

    MuJoCo draws without a screen through EGL or OSMesa: the environment variable ``MUJOCO_GL``
    chooses; without it and without a screen EGL is taken.

    Args:
        policy: as :func:`rambo_trl.load_policy` returns it.
        path: ``*.gif``, or ``*.mp4`` (needs the extra ``video``). Replaced if there.
        seed: the episode's.
        fps: frames per second of the video, at most; steps in between are not drawn.
        max_frames: the video ends there; the episode is played to its end.
        size: the least height and width in pixels; what the environment draws is thinned to it.
        environment: what it is played in; the policy's own where None.
        flatten: makes a vector of an observation, as for
            :func:`~rambo_trl.experiment.evaluation.rollout_episodes`.

    Returns:
        The episode's return.

    Raises:
        ValueError: for another kind of file, or where the policy's file names an environment of a
            module that is not imported.
        RuntimeError: if nothing can be drawn, or the video cannot be encoded, on this machine.
    """
    path = expand_home(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"a video is a .gif or .mp4 file, got {path.name}")
    if environment is None:
        if not policy.env_id:
            raise RuntimeError("the policy was trained without an environment to draw it in")
        environment = policy.environment
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        # without a screen MuJoCo's first choice, GLFW, cannot work, and a failed one may crash
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        with mujoco_messages_logged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GLFW's, whose reason is in the error
            env = make_environment(environment, render_mode="rgb_array")
            if "rgb_array" not in env.metadata.get("render_modes", ()):
                name = environment_id(environment)
                raise NotImplementedError(f"{name} draws no pictures of itself")
            flatten = flatten or flattening(env)
            observation, total, step, ended = play_start(env, flatten, seed=seed), 0.0, 0, False
            frames = [_frame(env, size)]
    except NotImplementedError as error:
        raise RuntimeError(str(error)) from error
    except Exception as error:  # what a machine without a renderer raises differs by the library
        raise RuntimeError(
            "nothing can be drawn here: install EGL or OSMesa and set MUJOCO_GL=egl or "
            f"MUJOCO_GL=osmesa ({_first_line(error)})"
        ) from error
    try:
        steps_per_second = float(env.metadata.get("render_fps", fps))
        every = max(1, round(steps_per_second / fps))
        while not ended:
            observation, reward, terminated, truncated = play_step(
                env, policy(observation), flatten
            )
            total, step = total + reward, step + 1
            ended = terminated or truncated
            if step % every == 0 and len(frames) < max_frames:
                frames.append(_frame(env, size))
    finally:
        env.close()
    write_atomically(path, _encode(np.stack(frames), path.suffix, steps_per_second / every))
    return total


def _frame(env: gymnasium.Env, size: int) -> np.ndarray:
    """What the environment draws, made smaller by a whole factor."""
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    every = max(1, min(frame.shape[:2]) // size)
    return frame[::every, ::every]


def _encode(frames: np.ndarray, suffix: str, fps: float) -> bytes:
    if suffix == ".gif":
        return imageio.imwrite(
            "<bytes>", frames, extension=".gif", plugin="pillow", duration=1000 / fps, loop=0
        )
    try:
        return imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps)
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"an mp4 needs ffmpeg: pip install 'rambo_trl[video]' ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
