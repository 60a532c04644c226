"""A Minari root, a tiny policy bundle, stored sets and heard warnings for tests that ask."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from safetensors.torch import save_file
from torchrl.data import Bounded

from rambo_trl.modules.actor_critic import make_actor


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point Minari to an empty folder."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


@pytest.fixture
def store(minari_root: Path) -> Callable[..., Path]:
    """A function that stores episodes as a Minari set and returns the folder of its files."""

    def store(name: str, *episodes: dict[str, Any], **settings: Any) -> Path:
        first = episodes[0]
        spaces = {
            "observation_space": Box(-np.inf, np.inf, np.shape(first["observations"])[1:], float)
            if not isinstance(first["observations"], dict)
            else None,
            "action_space": Box(-1.0, 1.0, first["actions"].shape[1:], np.float32),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari asks for an author and the like
            minari.create_dataset_from_buffers(
                name, buffer=[EpisodeBuffer(**each) for each in episodes], **(spaces | settings)
            )
        return minari_root / name / "data"

    return store


@pytest.fixture(scope="session")
def policies_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write untrained snapshots for InvertedDoublePendulum-v5 and, of both kinds, for Hopper-v5."""
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    for env_id, sizes, file, expert in (
        ("InvertedDoublePendulum-v5", (9, 1), "InvertedDoublePendulum-v5", 2),
        ("Hopper-v5", (11, 3), "Hopper-v5", 2),
        ("Hopper-v5", (11, 3), "Hopper-v5-to-medium", None),
    ):
        tensors, snapshots = {}, []
        for n in range(3):
            spec = Bounded(-1, 1, shape=sizes[1:])
            actor = make_actor(sizes[0], spec, hidden_sizes=[8, 8])
            tensors |= {f"{n:02d}/{k}": v.detach().half() for k, v in actor.named_parameters()}
            step = (1000.0 if expert else 10.0) * n
            snapshots.append({"step": step, "return_mean": 60.0 + 100 * n, "return_std": 1.0})
        header = {
            "env_id": env_id,
            "hidden_sizes": [8, 8],
            "seed": 0,
            "snapshots": snapshots,
            "medium": 1 if expert else 2,
            "expert": expert,
        }
        save_file(
            tensors, folder / f"{file}.safetensors", metadata={"behaviour": json.dumps(header)}
        )
    return folder
