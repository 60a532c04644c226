"""What data sets are called: bundled sets, D4RL's files, and the nearest of the known names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "BUNDLED_ENVIRONMENTS",
    "BUNDLED_PREFIX",
    "POLICIES",
    "D4RLName",
    "bundled_equivalent",
    "bundled_names",
    "nearest",
    "nearest_files",
    "needs_policies",
    "parse_bundled",
    "parse_d4rl_name",
]

BUNDLED_PREFIX = "bundled/"
KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert", "waypoint")
#: by name: Gymnasium id, steps of a set, kinds of sets
BUNDLED_ENVIRONMENTS: dict[str, tuple[str, int, Sequence[str]]] = {
    "inverteddoublependulum": ("InvertedDoublePendulum-v5", 50_000, KINDS[:5]),
    "hopper": ("Hopper-v5", 200_000, KINDS[:5]),
    "halfcheetah": ("HalfCheetah-v5", 200_000, KINDS[:5]),
    "walker2d": ("Walker2d-v5", 200_000, KINDS[:5]),
    "pointmaze-umaze": ("PointMaze_UMaze-v3", 20_000, ("random", "waypoint")),
    # No policy of the package can walk an ant: this set only shows that the path works.
    "antmaze-umaze": ("AntMaze_UMaze-v4", 10_000, ("random",)),
}
#: the package's behaviour policies, a file for each environment
POLICIES = Path(__file__).parent.parent / "policies"

# D4RL recorded the "-v2" generation of these; policies are played in Gymnasium's v5.
_MUJOCO = {"ant": "Ant", "halfcheetah": "HalfCheetah", "hopper": "Hopper", "walker2d": "Walker2d"}
_MUJOCO_PATTERN = re.compile(
    rf"({'|'.join(_MUJOCO)})_"
    r"(random|medium|expert|mixed|medium_replay|medium_expert|full_replay)(_v\d+)?"
)
# antmaze-umaze-diverse-v2, Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse, ...
_ANTMAZE_PATTERN = re.compile(r"ant_?maze_(u_?maze|medium|big|large|hardest)(_.*)?")
_ANTMAZE_SIZES = {"medium": "Medium", "big": "Medium", "large": "Large", "hardest": "Large"}


def bundled_names() -> list[str]:
    """Return the names of all bundled data sets."""
    return [
        f"{BUNDLED_PREFIX}{env}/{kind}-v0"
        for env, (_, _, kinds) in BUNDLED_ENVIRONMENTS.items()
        for kind in kinds
    ]


def parse_bundled(name: str) -> tuple[str, str]:
    """Split a bundled name into environment and kind.

    Raises:
        ValueError: if there is no bundled data set of that name; the message has the nearest ones.
    """
    if name not in bundled_names():
        near = ", ".join(nearest(name, bundled_names(), cutoff=0.0))
        raise ValueError(f"no bundled data set {name!r}; nearest: {near}")
    env_name, kind = name.removeprefix(BUNDLED_PREFIX).removesuffix("-v0").split("/")
    return env_name, kind


def needs_policies(name: str) -> bool:
    """Whether a bundled set is of a kind that only behaviour policies can play."""
    return not name.removesuffix("-v0").endswith(("/random", "/waypoint"))


class D4RLName(NamedTuple):
    """What a D4RL file name says.

    Attributes:
        env_id: the Gymnasium environment to play in today.
        recorded_env_id: the environment that D4RL recorded.
        max_episode_steps: its time limit.
        bundled: the bundled set of the same environment and kind; None for AntMaze.
    """

    env_id: str
    recorded_env_id: str
    max_episode_steps: int
    bundled: str | None = None


def parse_d4rl_name(path: Path) -> D4RLName | None:
    """Read a file name such as ``hopper_medium_replay-v2.hdf5``; None if it is not D4RL's."""
    stem = path.stem.lower().replace("-", "_")
    if match := _MUJOCO_PATTERN.fullmatch(stem):
        family, kind = match.group(1), match.group(2).replace("mixed", "medium_replay")
        bundled = f"{BUNDLED_PREFIX}{family}/{kind.replace('_', '-')}-v0"
        return D4RLName(f"{_MUJOCO[family]}-v5", f"{_MUJOCO[family]}-v2", 1000, bundled)
    if match := _ANTMAZE_PATTERN.fullmatch(stem):
        # AntMaze v4 has the 29 entries of D4RL's files: the ant's position, then its state.
        size = _ANTMAZE_SIZES.get(match.group(1), "UMaze")
        env_id = f"AntMaze_{size}-v4"
        return D4RLName(env_id, env_id, 700 if size == "UMaze" else 1000)
    return None


def bundled_equivalent(path: Path) -> str | None:
    """Name a bundled set like a D4RL file, which need not exist; None if none can be built."""
    known = parse_d4rl_name(path)
    if known is None or known.bundled not in bundled_names():
        return None
    playable = (POLICIES / f"{known.env_id}.safetensors").is_file()
    return known.bundled if playable or not needs_policies(known.bundled) else None


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return up to three known names that a misspelt one may mean, the likeliest first."""
    return difflib.get_close_matches(name, sorted(set(known) - {name}), n=3, cutoff=cutoff)


def nearest_files(path: Path) -> list[str]:
    """Return files and folders in a path's folder with names like its own."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.with_name(name)) for name in nearest(path.name, names)]
