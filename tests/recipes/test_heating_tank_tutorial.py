"""The tutorial on the heating tank, as it stands in the docs, with the smallest schedule."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorials" / "heating_tank.md"


def commands() -> list[str]:
    """The page's commands, in turn, but for the study at its end, which takes minutes."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if not line.startswith("python benchmarks/")]


def small(words: list[str]) -> list[str]:
    """A command that takes seconds: few batches, and two short epochs in place of many."""
    if "recipes/heating_tank.py" in words:
        return [*words, "--batches", "24" if "log" in words else "10"]
    if words[1] == "recipes/offline_report.py":
        return [*words, "--updates", "50"]
    if not words[1].startswith("recipes/") or words[1] == "recipes/select_run.py":
        return words
    kept = [word for word in words if not re.match(r"(epochs|agent|model|cloning|rollout)", word)]
    return [*kept, "schedule=smoke"]


@pytest.mark.slow
def test_every_command_works_in_turn(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["MINARI_DATASETS_PATH"] = str(tmp_path / "minari")
    outputs = []
    for command in commands():
        words = [w.replace("recipes/", f"{ROOT}/recipes/") for w in small(shlex.split(command))]
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert len(outputs) > 6
    with (tmp_path / "truth" / "truth.csv").open() as file:
        truths = {row["run"]: row for row in csv.DictReader(file)}
    assert truths["tank-rambo"]["verdict"] in ("better", "not better", "cannot tell")
    assert float(truths["PI control"]["gain"]) == 0
    assert (tmp_path / "truth" / "truth.png").is_file() and (
        tmp_path / "tank-rambo" / "policy.onnx"
    ).is_file()
