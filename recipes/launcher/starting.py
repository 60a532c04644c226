"""A sign for who waits at a terminal: imported by programs before what takes seconds to import."""

from __future__ import annotations

import sys
from pathlib import Path

program = Path(sys.argv[0]).resolve()
if program.parent == Path(__file__).resolve().parents[1] and sys.stderr.isatty():
    print("loading PyTorch and TorchRL ...", file=sys.stderr, flush=True)
