"""A Minari root of its own and a tiny policy bundle for each test that asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchrl.data import Bounded

from rambo_trl.modules.actor_critic import make_actor


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point Minari to an empty folder."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


@pytest.fixture(scope="session")
def policies_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three untrained snapshots for InvertedDoublePendulum-v5."""
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    tensors, snapshots = {}, []
    for n in range(3):
        actor = make_actor(9, Bounded(-1, 1, shape=(1,)), hidden_sizes=[8, 8])
        tensors |= {f"{n:02d}/{k}": v.detach().half() for k, v in actor.named_parameters()}
        snapshots.append({"step": 1000.0 * n, "return_mean": 60.0 + 100 * n, "return_std": 1.0})
    header = {
        "env_id": "InvertedDoublePendulum-v5",
        "hidden_sizes": [8, 8],
        "seed": 0,
        "snapshots": snapshots,
        "medium": 1,
        "expert": 2,
    }
    save_file(
        tensors,
        folder / "InvertedDoublePendulum-v5.safetensors",
        metadata={"behaviour": json.dumps(header)},
    )
    return folder
