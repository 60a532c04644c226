"""The tutorial on the heating tank, as it stands in the docs, with the smallest schedule."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from launcher import parts, valuing

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
@pytest.mark.filterwarnings("default")  # as for a user
@pytest.mark.usefixtures("brief_measures")
def test_every_command_works_in_turn(
    tmp_path: Path, run_command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    brief = partial(valuing.OfflineEvaluation, fit={"updates": 20, "regression_updates": 5})
    monkeypatch.setattr(valuing, "OfflineEvaluation", brief)
    monkeypatch.setattr(parts, "fit_termination", partial(parts.fit_termination, max_updates=500))
    assert len(commands()) > 6
    for command in commands():
        words = [w.replace("recipes/", f"{ROOT}/recipes/") for w in small(shlex.split(command))]
        run_command(tmp_path, words)
    with (tmp_path / "truth" / "truth.csv").open() as file:
        truths = {row["run"]: row for row in csv.DictReader(file)}
    assert truths["tank-rambo"]["verdict"] in ("better", "not better", "cannot tell")
    assert float(truths["PI control"]["gain"]) == 0
    assert (tmp_path / "truth" / "truth.png").is_file() and (
        tmp_path / "tank-rambo" / "policy.onnx"
    ).is_file()
