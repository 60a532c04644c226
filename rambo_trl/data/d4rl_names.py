"""What the names of D4RL's files say: the environment, its time limit, and data of its kind."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from rambo_trl.data import bundled
from rambo_trl.data.bundled import BUNDLED_PREFIX, bundled_names

__all__ = ["D4RLName", "beside", "bundled_kin", "needs_policies", "parse_d4rl_name"]

# D4RL recorded the "-v2" generation of these; Gymnasium's v5 is the one that can be played.
_MUJOCO = {
    "ant": "Ant",
    "halfcheetah": "HalfCheetah",
    "hopper": "Hopper",
    "walker2d": "Walker2d",
}
_MUJOCO_PATTERN = re.compile(
    rf"({'|'.join(_MUJOCO)})_"
    r"(random|medium|expert|mixed|medium_replay|medium_expert|full_replay)(_v\d+)?"
)
# antmaze-umaze-diverse-v2, Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse, ...
_ANTMAZE_PATTERN = re.compile(r"ant_?maze_(u_?maze|medium|big|large|hardest)(_.*)?")
_ANTMAZE_SIZES = {"medium": "Medium", "big": "Medium", "large": "Large", "hardest": "Large"}


@dataclass(frozen=True)
class D4RLName:
    """What a D4RL file name says.

    Attributes:
        env_id: the Gymnasium environment to play in today.
        recorded_env_id: the environment that D4RL recorded.
        max_episode_steps: its time limit.
    """

    env_id: str
    recorded_env_id: str
    max_episode_steps: int


def parse_d4rl_name(path: Path) -> D4RLName | None:
    """Read a file name such as ``hopper_medium_replay-v2.hdf5``; None if it is not D4RL's."""
    stem = path.stem.lower().replace("-", "_")
    match = _MUJOCO_PATTERN.fullmatch(stem)
    if match:
        family = _MUJOCO[match.group(1)]
        return D4RLName(f"{family}-v5", f"{family}-v2", 1000)
    match = _ANTMAZE_PATTERN.fullmatch(stem)
    if match:
        # AntMaze v4 has the 29 entries of D4RL's files: the ant's position, then its state.
        size = _ANTMAZE_SIZES.get(match.group(1), "UMaze")
        env_id = f"AntMaze_{size}-v4"
        return D4RLName(env_id, env_id, 700 if size == "UMaze" else 1000)
    return None


def beside(path: Path) -> list[str]:
    """Return the files and folders beside a path's place whose names are like its own."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return [str(path.with_name(name)) for name in near if name != path.name]


def needs_policies(name: str) -> bool:
    """Whether a bundled set is of a kind that only behaviour policies can play."""
    return not name.removesuffix("-v0").endswith(("/random", "/waypoint"))


def bundled_kin(path: Path) -> str | None:
    """Name the bundled set of the same environment and kind as a D4RL file.

    Args:
        path: the file, which need not exist.

    Returns:
        Its name; None if there is none, the package lacks the policies that it is made with, or
        the file is not named like one of D4RL's.
    """
    stem = path.stem.lower().replace("-", "_")
    match = _MUJOCO_PATTERN.fullmatch(stem)
    if match is None:
        return None
    kind = match.group(2).replace("mixed", "medium_replay").replace("_", "-")
    name = f"{BUNDLED_PREFIX}{match.group(1)}/{kind}-v0"
    policies = bundled.POLICIES / f"{_MUJOCO[match.group(1)]}-v5.safetensors"
    there = policies.is_file() or not needs_policies(name)
    return name if there and name in bundled_names() else None
