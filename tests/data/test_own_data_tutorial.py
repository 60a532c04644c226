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
            command = [
                word.replace("recipes/", f"{ROOT}/recipes/") for word in shlex.split(text.strip())
            ]
            command = [sys.executable if word == "python" else word for word in command]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert any("100 episodes" in output and "FAILED" not in output for output in outputs)
    assert (tmp_path / "pendulum.png").is_file()
    reports = [text for text in outputs if text.startswith("data set ")]
    assert reports and all("\ncart_m_s " in text and "\ndrive " in text for text in reports)
    known = load_policy(tmp_path / "pendulum").data
    assert known is not None and known.action_names == ("drive",)
    results = json.loads((tmp_path / "pendulum" / "results.json").read_text())
    assert results["behaviour_episodes"] == 100 and results["cut_pieces"] == 0
    assert results["dataset"] == "mine/pendulum-v0"
    assert results["dataset_transitions"] > 300
    told = re.search(r"(\d+) of (\d+) transitions, in (\d+) pieces", outputs[-1])
    assert told is not None
    kept, every, pieces = map(int, told.groups())
    assert every > kept > 0.9 * every and pieces > 100
    lost = re.search(r"(\d+) of (\d+) terminal rows are lost", outputs[-1])
    assert lost is not None and int(lost[1]) < 0.1 * int(lost[2]) == 10
    from_file = json.loads((tmp_path / "from-file" / "results.json").read_text())
    assert from_file["evaluated"] is False
    assert any("stands in: prefer a file with next_observations" in text for text in outputs)
