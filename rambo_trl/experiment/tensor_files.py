"""Safetensors files with a JSON object beside the tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rambo_trl.data.storage import why_unreadable
from rambo_trl.experiment.folder import write_atomically
from rambo_trl.runtime.places import expand_home


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    key: str,
    header: Mapping[str, Any],
) -> None:
    """Write tensors, and a header in the metadata's ``key``, in one step."""
    # clones, since tensors that share one storage cannot be written
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(expand_home(path), save(copies, metadata={key: json.dumps(header)}))


def read_safetensors(
    path: Path, key: str, kind: str
) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
    """The header in the metadata's ``key``, None without one, and the tensors.

    Raises:
        ValueError: if the file cannot be read, saying that it is not a ``kind``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key, "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        why = why_unreadable(error, damaged=f"is not a {kind}, or only a part of one")
        raise ValueError(f"{path} {why}") from None
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        header = None
    return header if isinstance(header, dict) else None, tensors
