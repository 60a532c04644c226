"""An imported log as a Minari set."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import DATASET_ID_RE
from minari.namespace import create_namespace, list_local_namespaces

from rambo_trl.data.bundled import bundled_path
from rambo_trl.data.log_import import ImportedLog
from rambo_trl.data.storage import check_space, minari_root, move_into_place, staging

__all__ = ["check_free", "store_log"]


def check_free(name: str) -> None:
    """Refuse a name that is no Minari id, or of a set that exists.

    Raises:
        ValueError: saying what to give instead.
    """
    match = DATASET_ID_RE.fullmatch(name)
    if not match or not re.search(r"-v\d+$", name):
        raise ValueError(f"--out must be the name of a Minari set, such as my/set-v0, got {name!r}")
    place = bundled_path("") / name
    if place.exists():
        base, version = name.rsplit("-v", 1)
        number = int(version) + 1
        while (bundled_path("") / f"{base}-v{number}").exists():
            number += 1
        raise ValueError(
            f"--out: {name} exists already in {place.parent} and is not replaced: give another "
            f"name, such as {base}-v{number}"
        )


def store_log(imported: ImportedLog, name: str) -> Path:
    """Write an imported log as a Minari set; nothing is left of one that fails.

    Returns:
        The folder of the set.

    Raises:
        ValueError: as :func:`check_free`.
        OSError: if it cannot be written.
    """
    check_free(name)
    root = bundled_path("")
    episodes = imported.episodes
    env_id = imported.dataset.env_id
    size = len(imported.observation_names)
    metadata = {
        "observation_names": list(imported.observation_names),
        "action_names": list(imported.action_names),
        "cut_pieces": [i for i, episode in enumerate(episodes) if episode["is_piece"]],
        "step_intervals": imported.intervals,
        "remarks": list(imported.remarks),
        "log_import": imported.settings,
        "versions": {p: importlib.metadata.version(p) for p in ("rambo_trl", "minari")},
    }
    numbers = sum(e["observations"].size + e["actions"].size + len(e["rewards"]) for e in episodes)
    with (
        staging(root, f"{name} cannot be written to {root} ({{}})") as scratch,
        minari_root(scratch),
        warnings.catch_warnings(),
    ):
        check_space(scratch, 10 * numbers + 20_000 * len(episodes) + 1_000_000)
        # Minari asks for an author, an e-mail address and a link to code
        warnings.simplefilter("ignore", UserWarning)
        stored = minari.create_dataset_from_buffers(
            name,
            buffer=[
                EpisodeBuffer(**{k: v for k, v in episode.items() if k != "is_piece"})
                for episode in episodes
            ],
            env=env_id,
            eval_env=env_id,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64),
            action_space=gymnasium.spaces.Box(
                imported.action_low, imported.action_high, dtype=np.float64
            ),
            description="imported from a log",
        )
        stored.storage.update_metadata(metadata)
        _make_namespace(name, root)
        if not move_into_place(scratch / name, root / name):
            raise ValueError(f"--out: {name} was written by another program meanwhile")
    return root / name


def _make_namespace(name: str, root: Path) -> None:
    """Let Minari list the set: it looks into the folders that it knows as namespaces."""
    if "/" not in name:
        return
    namespace = name.rsplit("/", 1)[0]
    with minari_root(root):
        if namespace not in list_local_namespaces():
            create_namespace(namespace)
