"""What the schedules set, for programs that read runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rambo_trl.reporting.runs import read_settings


def read_schedules() -> dict[str, dict[str, Any]]:
    """The settings of each schedule, under dotted keys, by the schedule's name."""
    folder = Path(__file__).parents[1] / "config" / "schedule"
    return {file.stem: read_settings(file) for file in folder.glob("*.yaml")}
