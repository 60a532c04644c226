"""The tutorial on own data, as it stands in the docs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from rambo_trl import load_policy

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorials" / "own_data.md"


def blocks() -> list[tuple[str, str]]:
    """Return the language and text of each code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as for a user
def test_every_command_works_in_turn(
    tmp_path: Path,
    run_command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    outputs = []
    for language, text in blocks():
        if language == "python":
            exec(text, {"__name__": "__main__"})
        else:
            words = shlex.split(text.strip().replace("\\\n", " "))
            run_command(tmp_path, [w.replace("recipes/", f"{ROOT}/recipes/") for w in words])
        outputs.append(capsys.readouterr().out)
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
