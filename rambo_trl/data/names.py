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
    "SCRIPTED",
    "BundledName",
    "D4RLName",
    "bundled_equivalent",
    "bundled_names",
    "nearest",
    "nearest_files",
    "needs_policies",
    "parse_bundled",
    "parse_d4rl_name",
    "policy_files",
]

BUNDLED_PREFIX = "bundled/"
KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert", "waypoint")
#: kinds that need no policies, and what plays them
SCRIPTED = {"random": "uniform random", "waypoint": "waypoint controller"}
#: by name: Gymnasium id, steps of a set, kinds of sets, versions of each kind
BUNDLED_ENVIRONMENTS: dict[str, tuple[str, int, Sequence[str], int]] = {
    "inverteddoublependulum": ("InvertedDoublePendulum-v5", 50_000, KINDS[:5], 1),
    "hopper": ("Hopper-v5", 200_000, KINDS[:5], 2),
    "halfcheetah": ("HalfCheetah-v5", 200_000, KINDS[:5], 2),
    "walker2d": ("Walker2d-v5", 200_000, KINDS[:5], 2),
    "pointmaze-umaze": ("PointMaze_UMaze-v3", 20_000, ("random", "waypoint"), 1),
    # No policy of the package can walk an ant: this set only shows that the path works.
    "antmaze-umaze": ("AntMaze_UMaze-v4", 10_000, ("random",), 1),
}
#: the package's behaviour policies: a training of each environment up to its expert policy, and
#: another, slower one up to its medium policy
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
        f"{BUNDLED_PREFIX}{env}/{kind}-v{version}"
        for env, (_, _, kinds, versions) in BUNDLED_ENVIRONMENTS.items()
        for version in range(versions)
        for kind in kinds
    ]


class BundledName(NamedTuple):
    """What a bundled set's name says.

    Attributes:
        env: a key of :data:`BUNDLED_ENVIRONMENTS`.
        kind: such as ``"medium-replay"``.
        version: 0, where all snapshots are of one training up to the expert policy, or 1, where
            ``medium-replay`` is a training up to the medium policy, as D4RL's are.
    """

    env: str
    kind: str
    version: int


def parse_bundled(name: str) -> BundledName:
    """Split a bundled name into environment, kind and version.

    Raises:
        ValueError: if there is no bundled data set of that name; the message has the nearest ones.
    """
    if name not in bundled_names():
        near = ", ".join(nearest(name, bundled_names(), cutoff=0.0))
        raise ValueError(f"no bundled data set {name!r}; nearest: {near}")
    env, rest = name.removeprefix(BUNDLED_PREFIX).split("/")
    kind, version = rest.rsplit("-v", 1)
    return BundledName(env, kind, int(version))


def needs_policies(name: str) -> bool:
    """Whether a bundled set is of a kind that only behaviour policies can play."""
    return parse_bundled(name).kind not in SCRIPTED


def policy_files(name: str) -> list[str]:
    """Return the files of behaviour policies that play a bundled set: the medium's, the expert's.

    Raises:
        ValueError: if there is no bundled data set of that name.
    """
    env, kind, version = parse_bundled(name)
    env_id = BUNDLED_ENVIRONMENTS[env][0]
    to_medium = f"{env_id}-to-medium" if version else env_id
    files = [to_medium] if "medium" in kind else []
    files += [env_id] if "expert" in kind else []
    return [f"{file}.safetensors" for file in files]


class D4RLName(NamedTuple):
    """What a D4RL file name says.

    Attributes:
        env_id: the Gymnasium environment to play in today.
        recorded_env_id: the environment that D4RL recorded.
        max_episode_steps: its time limit.
        bundled: the newest bundled set of the environment and kind; None for AntMaze.
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
        newest = BUNDLED_ENVIRONMENTS[family][3] - 1 if family in BUNDLED_ENVIRONMENTS else 0
        bundled = f"{BUNDLED_PREFIX}{family}/{kind.replace('_', '-')}-v{newest}"
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
    playable = all((POLICIES / file).is_file() for file in policy_files(known.bundled))
    return known.bundled if playable else None


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
