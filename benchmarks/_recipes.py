"""Importing this first lets a benchmark import what lies in recipes/."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
