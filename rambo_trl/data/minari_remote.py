"""What Minari's remote has, asked for with patience for so long, and downloaded."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import minari
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.minari_root import minari_root

__all__ = ["REMOTE_NAMES", "download", "may_be_remote"]

#: ids on Minari's server that a misspelt name may mean.
REMOTE_NAMES = (
    *(
        f"mujoco/{env}/{kind}-v0"
        for env in ("ant", "halfcheetah", "hopper", "walker2d")
        for kind in ("simple", "medium", "expert")
    ),
    *(
        f"D4RL/antmaze/{maze}-v1"
        for maze in (
            "umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
            "large-diverse",
        )
    ),
    *(f"D4RL/pointmaze/{maze}-v2" for maze in ("open", "umaze", "medium", "large")),
)  # fmt: skip
#: what the names of all sets there begin with, in lower case
_REMOTE_NAMESPACES = ("atari", "d4rl", "metaworld", "minigrid", "mujoco")
#: how long the remote may take to tell what it has; for the names of other namespaces
_SECONDS, _SECONDS_IF_UNLIKELY = 10, 5


def may_be_remote(name: str) -> bool:
    """Whether a set could well be at Minari's server, or at another remote that is set."""
    return "MINARI_REMOTE" in os.environ or name.split("/")[0].lower() in _REMOTE_NAMESPACES


def _ask_remote(name: str) -> None:
    """Wait for the remote's answer to what it has of a name, but not for long.

    Its own tries go on for more than half a minute where there is no network. They cannot be
    ended, but write nothing that belongs to Minari's root.

    Raises:
        TimeoutError: if there is none in time.
        Exception: what the remote has raised.
    """
    seconds = _SECONDS if may_be_remote(name) else _SECONDS_IF_UNLIKELY
    torchrl_logger.warning(
        f"{name} is not on this machine: asking Minari's remote for it, {seconds} s at most"
    )
    answer: Future[object] = Future()

    def ask() -> None:
        try:
            answer.set_result(minari.list_remote_datasets(prefix=re.sub(r"-v\d+$", "", name)))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True, name="minari-remote").start()
    try:
        answer.result(seconds)
    except FutureTimeoutError as error:
        if answer.done():  # a time-out of the remote's own
            raise
        raise TimeoutError(f"no answer from the remote within {seconds} s") from error


def download(name: str, root: Path) -> None:
    """Download a set to a folder of its own, and move it into place when it is complete.

    Half a set would be found later and taken for all of it, and of two jobs that download the same
    one neither must touch what the other has.

    Args:
        name: the set's Minari id.
        root: Minari's root.

    Raises:
        Exception: what the downloader raises, from a missing package to a broken connection.
    """
    _ask_remote(name)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as scratch:
        with minari_root(scratch):
            minari.download_dataset(name)
        for found in sorted(Path(scratch).rglob("namespace_metadata.json")):
            _move_unless_there(found, root / found.relative_to(scratch))
        sets = {path.parents[1] for path in Path(scratch).rglob("data/metadata.json")}
        own = Path(scratch) / name
        for found in [*sorted(sets - {own}), own]:  # the sets that it was combined from come first
            _move_unless_there(found, root / found.relative_to(scratch))
    torchrl_logger.info(f"{name} is in {root / name}")


def _move_unless_there(source: Path, target: Path) -> None:
    """Rename a file or folder to its place, unless another process has put it there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not target.exists():
            source.rename(target)
    except OSError:  # a folder that is not empty
        if not (target / "data/metadata.json").is_file():
            raise
