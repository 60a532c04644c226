"""A report shows what the adversary did to its runs' models, where that has been measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report
from matplotlib.figure import Figure

from rambo_trl.reporting.adversary_report import draw_effects, effect_table, read_effects
from rambo_trl.reporting.runs import Configuration, configurations, find_runs

MakeRun = Callable[..., str]
HOPPER, CHEETAH = "bundled/hopper/medium-replay-v0", "bundled/halfcheetah/medium-replay-v0"


def effect(size: float, *, epoch: int = 20, states: bool = True) -> dict[str, Any]:
    """What ``adversary_effect.py`` writes, as far as a report reads it; sizes are the medians."""

    def way(key: str, first: float, last: float) -> dict[str, list[float]]:
        line = [first, 99.0, last]  # what lies between is of no interest
        low, high = [x - 1 for x in line], [2 * x for x in line]
        return {key: line, f"{key}_low": low, f"{key}_high": high}

    result: dict[str, Any] = {
        "adversarial_weight": 3e-4, "epoch": epoch,
        "policy_actions": way("value", -size, -2 * size),
        "random_actions": way("value", -size, -4 * size),
    }  # fmt: skip
    if states:
        result["next_states"] = {
            "policy_actions": {**way("moved", size, 3 * size), "fitted": [0.04, 0.5, 0.6]},
            "random_actions": {**way("moved", size, 5 * size), "fitted": [0.04, 0.7, 0.8]},
        }
    return result


@pytest.fixture
def measured(make_run: MakeRun, tmp_path: Path) -> Path:
    """Three runs whose effect has been measured, of one of them not all, and one without."""
    for name, seed, dataset, found in (
        ("a", 0, HOPPER, effect(0.5)),
        ("b", 1, HOPPER, effect(1.5, epoch=12)),
        ("c", 0, CHEETAH, effect(0.1, states=False)),
    ):
        make_run(tmp_path / f"runs/{name}", seed=seed, dataset=dataset, adversarial_weight=3e-4)
        (tmp_path / f"runs/{name}/adversary_effect.json").write_text(json.dumps(found))
    make_run(tmp_path / "runs/d", seed=2, adversarial_weight=3e-4)
    return tmp_path / "runs"


def found_in(folder: Path) -> list[Configuration]:
    return configurations(find_runs([folder])[0])


def test_effects_are_read_where_they_are(measured: Path) -> None:
    other, first, second = read_effects(found_in(measured))
    assert [e.run.results["seed"] for e in (first, second)] == [0, 1]
    assert (second.epoch, second.adversarial_weight) == (12, 3e-4) and other.moved is None
    # median, lower and upper quartile at the data's actions, the policy's and random ones
    assert first.value == [(-0.5, -1.5, -1.0), (-1.0, -2.0, -2.0), (-2.0, -3.0, -4.0)]
    assert first.moved == [(0.5, -0.5, 1.0), (1.5, 0.5, 3.0), (2.5, 1.5, 5.0)]
    assert first.error == 0.04


def test_the_report_tells_and_draws_them(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(measured), "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out and "`adversary_effect.png`" in table
    # the mean of both seeds' medians
    assert f"| `{HOPPER}` | RAMBO, `quick` | 0.0003 | 2 | -1 | -2 | -4 | 1 | 3 | 5 |" in table
    row = f"| `{CHEETAH}` | RAMBO, `quick` | 0.0003 | 1 | -0.1 | -0.2 | -0.4 | - | - | - |"
    assert row in table and (tmp_path / "out/adversary_effect.png").stat().st_size > 10_000


def test_without_any_there_is_nothing_of_them(tmp_path: Path) -> None:
    assert effect_table([]) == [] and not draw_effects([], tmp_path / "adversary_effect.png")
    assert not list(tmp_path.iterdir())


def test_each_run_s_effect_is_drawn_where_it_belongs(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda f, *_, **__: drawn.append(f))
    assert draw_effects(read_effects(found_in(measured)), tmp_path / "x.png")
    _, nothing, value, moved = drawn[0].axes
    assert [text.get_text() for text in nothing.texts] == ["not measured"]
    labels = [label.get_text().splitlines()[1] for label in value.get_yticklabels()]
    assert labels == ["lambda = 0.0003, seed 0", "lambda = 0.0003, seed 1, epoch 12"]

    def points(axes: Any, marker: str) -> list[tuple[float, int]]:
        lines = [line for line in axes.lines if line.get_marker() == marker]
        return sorted((round(y), float(x)) for line in lines
                      for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))  # fmt: skip

    assert points(value, "o") == [(0, -2.0), (0, -1.0), (0, -0.5), (1, -6.0), (1, -3.0), (1, -1.5)]
    assert points(moved, "o") == [(0, 0.5), (0, 1.5), (0, 2.5), (1, 1.5), (1, 4.5), (1, 7.5)]
    assert points(moved, "|") == [(0, 0.04), (1, 0.04)]
    bars = [line.get_xdata() for line in value.lines if line.get_marker() == "None"][1:]
    assert sorted(map(tuple, bars))[:2] == [(-7.0, -12.0), (-4.0, -6.0)]


@pytest.mark.parametrize("text", ["{", "[]", '{"epoch": 1, "adversarial_weight": 1}'])
def test_another_file_of_that_name_is_named(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (measured / "a/adversary_effect.json").write_text(text)
    assert report.main([str(measured), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "a/adversary_effect.json is not what" in line
    assert not (tmp_path / "out").exists()


def test_a_report_reads_no_model() -> None:
    # the recipes that train, and what reads their checkpoints, are not even imported
    code = "import report, sys; print('\\n'.join(sys.modules))"
    folder = Path(report.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "rambo_trl.reporting.adversary_report" in loaded
    assert not loaded & {
        "rambo_trl.reporting.adversary_measures", "rambo", "launcher.inspection",
        "hydra", "omegaconf",
    }  # fmt: skip
