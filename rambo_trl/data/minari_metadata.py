"""The descriptions of Minari sets, read as UTF-8 whatever the locale."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minari.dataset.minari_storage import MinariStorage

__all__ = ["read_metadata", "utf8_metadata"]

_one_thread = threading.RLock()  # the method is the whole process's


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a set's ``metadata.json``.

    Args:
        folder: the one that holds it.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    metadata = json.loads((Path(folder) / "metadata.json").read_text(encoding="utf-8"))
    if not isinstance(metadata, dict):
        raise ValueError("it is no JSON object")
    return metadata


@contextmanager
def utf8_metadata() -> Iterator[None]:
    """Have Minari read descriptions as UTF-8; by itself it takes the locale's encoding."""
    with _one_thread:
        before = vars(MinariStorage)["read_raw_metadata"]
        MinariStorage.read_raw_metadata = staticmethod(read_metadata)
        try:
            yield
        finally:
            MinariStorage.read_raw_metadata = before
