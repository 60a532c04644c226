"""The tutorial on own data, as it stands in the docs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rambo_trl import load_policy

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorials" / "own_data.md"


def blocks() -> list[tuple[str, str]]:
    """Return the language and text of each code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_command_works_in_turn(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["MINARI_DATASETS_PATH"] = str(tmp_path / "minari")
    outputs = []
    for language, text in blocks():
        if language == "python":
            command = [sys.executable, "-c", text]
        else:
            words = shlex.split(text.strip().replace("\\\n", " "))
            command = [word.replace("recipes/", f"{ROOT}/recipes/") for word in words]
            command = [sys.executable if word == "python" else word for word in command]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    (imported,) = [text for text in outputs if text.startswith("log ")]
    told = re.search(r"steps +(\d+) of (\d+), from each row", imported)
    assert told is not None
    kept, possible = map(int, told.groups())
    assert 0.9 * possible < kept < possible
    counts = re.search(r"(\d+) whole, (\d+) cut pieces", imported)
    assert counts is not None
    whole, pieces = map(int, counts.groups())
    assert 80 < whole < 100 and pieces > 0
    (report,) = [text for text in outputs if text.startswith("data set ")]
    assert f"{whole + pieces} episodes, {pieces} of them cut pieces" in report
    assert "\ncart_m_s " in report and "\ndrive " in report and "FAILED" not in report
    assert (tmp_path / "pendulum.png").is_file()
    known = load_policy(tmp_path / "pendulum").data
    assert known is not None and known.action_names == ("drive",)
    results = json.loads((tmp_path / "pendulum" / "results.json").read_text())
    assert results["behaviour_episodes"] == whole and results["cut_pieces"] == pieces
    assert results["dataset"] == "mine/pendulum-v0" and results["evaluated"] is True
    assert results["dataset_transitions"] == kept
    gaps = re.search(r"cut at (\d+) gaps", imported)
    assert gaps is not None
    told_last = f"{kept} of {possible + int(gaps[1])} transitions, as imported: True"
    assert outputs[-1].splitlines()[-1] == told_last
