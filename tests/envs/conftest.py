"""NeoRL-2's files, where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Columns = dict[str, np.ndarray]


@pytest.fixture
def neorl2_episodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[Columns]]:
    """Reads a file's episodes, columns by NeoRL-2's names; skips where it is not there.

    What it has read from, the library finds too.
    """

    def read(task: str, split: str) -> list[Columns]:
        beside = Path(__file__).parents[3] / "shared" / "data" / "neorl2"
        path = Path(os.environ.get("NEORL2_DATASETS_PATH", beside)) / f"{task}-{split}.npz"
        if not path.is_file():
            pytest.skip(f"needs {path}, or its folder in NEORL2_DATASETS_PATH")
        monkeypatch.setenv("NEORL2_DATASETS_PATH", str(path.parent))
        with np.load(path) as file:
            columns = dict(file)
        stops = np.flatnonzero(columns["done"] + columns["truncated"]) + 1
        parts = {key: np.split(value, stops[:-1]) for key, value in columns.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]

    return read
