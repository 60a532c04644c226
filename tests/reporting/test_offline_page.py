"""A report's page says in plain words what was measured, with and without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rambo_trl.reporting.offline_findings import find
from rambo_trl.reporting.offline_page import write_page
from rambo_trl.reporting.offline_values import Estimate, OfflineValues

NAMES = ["temp_C", "level_m", "reward"]


def actions(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "names": ["power_W", "flow_l_s"], "rows": 500, "low": [0.0, 0.0], "high": [9000.0, 0.08],
        "logged_low": [100.0, 0.01], "logged_high": [8000.0, 0.07], "outside": [0.0, 0.0],
        "rare": [0.02, 0.01], "at_limit": [0.0, 0.0], "logged_at_limit": [0.0, 0.0],
        "change": [50.0, 0.001], "logged_change": [100.0, 0.001], "difference": [400.0, 0.002],
        "policy": rng.uniform([0, 0], [9000, 0.08], (500, 2)),
        "logged": rng.uniform([100, 0.01], [8000, 0.07], (500, 2)), **changed,
    }  # fmt: skip


def support(**changed: Any) -> dict[str, Any]:
    return {
        "names": NAMES[:2], "logged": 20_000, "own": 2000, "actions": 0.012, "horizon": 4,
        "states": 0.02, "rollouts": 100, "by_step": [0.0, 0.01, 0.04, None],
        "alive": [1.0, 1.0, 0.5, 0.0], "columns": [0.75, 0.25], **changed,
    }  # fmt: skip


def model(**changed: Any) -> dict[str, Any]:
    one_step = {
        "columns": NAMES, "rows": 1000, "unseen": True, "where": "1000 rows that were held out",
        "std": [10.0, 0.0, 2.0], "error": [1.0, 0.0, 0.4], "relative": [0.1, float("nan"), 0.2],
        "no_change": [0.5, float("nan"), 0.4], "after_training": [0.2, float("nan"), 0.4],
    }  # fmt: skip
    k_step = {
        "steps": [1, 2], "relative": [[0.1, float("nan"), 0.2], [0.2, float("nan"), 0.3]],
        "no_change": [[0.5, float("nan"), 0.4], [0.7, float("nan"), 0.5]],
        "coverage": [0.9, 0.88], "pieces": 300, "unseen": False, "seen_ratio": 1.1,
    }  # fmt: skip
    calibration = {
        "levels": [0.5, 0.9], "coverage": [[0.5, float("nan"), 0.5], [0.91, float("nan"), 0.89]],
        "spread": [0.1, float("nan"), 0.2], "error": [0.1, float("nan"), 0.2],
        "group_spread": [0.1, 0.2], "group_error": [0.1, 0.25],
    }  # fmt: skip
    return {"one_step": one_step, "k_step": k_step, "calibration": calibration, **changed}


def values(low: float = 2.0, high: float = 6.0, *, with_model: bool = True) -> OfflineValues:
    methods = ("fqe", "model") if with_model else ("fqe",)
    gain, worth = Estimate((low + high) / 2, low, high), Estimate(50.0, 48.0, 52.0)
    return OfflineValues(
        dataset="my/tank-v0", gamma=0.99, confidence=0.9, value_std=10.0,
        held_out={"held_out": 25, "episodes": 100},
        values={
            "policy": dict.fromkeys(methods, worth),
            "behaviour": {"logged": worth, **dict.fromkeys(methods, worth)},
        },
        differences={"policy - behaviour": dict.fromkeys(methods, gain)},
        checks={"action_share_outside": 0.1, "behaviour_gap_fqe": [0.1, -0.5, 0.7]},
        left_out={} if with_model else {"model": "method=iql has no model"},
        assumptions=("the plant stays as it was",),
    )  # fmt: skip


def report(folder: Path, **changed: Any) -> str:
    measured = {
        "title": "`run` on `my/tank-v0`", "facts": ["Trained on 1000 rows."], "values": values(),
        "actions": actions(), "support": support(), "model": model(), **changed,
    }  # fmt: skip
    found = find(measured["actions"], measured["support"], measured["model"])
    written = write_page(measured, found, folder)
    text = (folder / "index.md").read_text(encoding="utf-8")
    assert written[0] == folder / "index.md" and all(path.stat().st_size for path in written)
    # every figure that is shown is there, and the other way round
    shown = {part.split(")")[0] for part in text.split("](")[1:]}
    assert shown == {path.name for path in folder.glob("*.png")}
    return text


def test_the_verdict_comes_first_and_every_part_has_its_place(tmp_path: Path) -> None:
    text = report(tmp_path)
    first = text.splitlines()[2]
    assert first.startswith("> **Verdict: better than the logged behaviour by 4 ")
    assert "supervised trial" in text.splitlines()[4]
    assert "arning" not in text and "**look**" not in text
    assert "| `temp_C` | 10 | 1 | 0.1 | 0.5 | 0.2 | 0.7 | 91 % |" in text
    assert "`level_m` |" not in text  # it never changes
    assert "1 columns that vary too little" in text
    assert "its error on the same rows is then 2 times as large" in text
    assert "squared error on held-out rows is not much larger: it is 1.1 times" in text
    assert "| `power_W` | 0 to 9000 | 100 to 8000 | 0 % | 2.0 % |" in text
    assert "**2.0 %** are unlike any logged one, in 100 rollouts" in text
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["model"]["one_step"]["relative"] == [0.1, None, 0.2]
    assert numbers["verdict"]["label"] == "better" and "policy" not in numbers["actions"]


def test_a_run_without_a_model_has_a_page_without_it(tmp_path: Path) -> None:
    report(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    plain = {key: support()[key] for key in ("names", "logged", "own", "actions")}
    text = report(tmp_path, model=None, support=plain, values=values(with_model=False))
    assert "Verdict: cannot tell" in text and "has no second opinion" in text
    assert "there is none to check" in text and "would get into are not known" in text
    assert "No estimate by rollouts in the fitted model: method=iql has no model." in text
    assert "calibration" not in text and "1.2 %" in text
    # the figures of the page before are gone, and nothing else
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.md", "report.json", "actions.png", "values.png", "notes.txt"}


NAN = float("nan")


def changed(part: str, **entries: Any) -> dict[str, Any]:
    """A model of which one part has other entries."""
    return {"model": model(**{part: {**model()[part], **entries}})}


@pytest.mark.parametrize(
    ("part", "level", "says"),
    [
        (
            {"actions": actions(outside=[0.3, 0.0])},
            "warning",
            "up to 30 % of its actions lie outside of the range that was logged, where nothing is "
            "known of their effect: power_W",
        ),
        (
            {"actions": actions(at_limit=[0.0, 0.5], logged_at_limit=[0.3, 0.04])},
            "look",
            "it holds flow_l_s at a limit in up to 50 % of the steps, the logged controller in "
            "4.0 %",
        ),
        ({"actions": actions(change=[300.0, 0.001])}, "look", "it moves power_W up to 3 times as"),
        ({"actions": actions(change=[500.0, 0.001])}, "warning", "it moves power_W up to 5 times"),
        ({"actions": actions(logged_change=[0.0, 0.001])}, "warning", "infinitely many times"),
        ({"support": support(actions=0.5)}, "warning", "in 50 % of the logged states its action"),
        (
            {"support": support(states=0.2)},
            "look",
            "20 % of the states that it gets into, as the model has it, are unlike any logged one "
            "(1 % of the log's own are), above all in temp_C",
        ),
        (
            changed("one_step", relative=[0.1, NAN, 0.38]),
            "look",
            "it knows hardly more than that of reward",
        ),
        (
            changed("k_step", relative=[[0.9] * 3] * 2),
            "warning",
            "2 steps ahead its error is 0.9 standard deviations",
        ),
        (
            changed("k_step", relative=[[float("inf")] * 3] * 2),
            "warning",
            "forecasts of 2 steps explode",
        ),
        (
            changed("calibration", coverage=[[0.3] * 3, [0.95, NAN, 0.7]]),
            "look",
            "it is too sure of itself on reward",
        ),
        (
            changed("calibration", coverage=[[0.3] * 3, [0.6, NAN, 0.5]]),
            "warning",
            "its 90 % intervals hold 55 % of what happened",
        ),
    ],
)
def test_what_is_out_of_the_ordinary_is_said_with_its_name(
    part: dict[str, Any], level: str, says: str
) -> None:
    usual = {"actions": actions(), "support": support(), "model": model()}
    assert {f.level for f in find(**usual)} == {"fine"}
    odd = [f for f in find(**(usual | part)) if f.level != "fine"]
    assert [f.level for f in odd] == [level] and says in odd[0].text


def test_forecasts_that_explode_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    part = changed("k_step", relative=[[0.1, NAN, 0.2], [float("inf"), NAN, float("inf")]])
    text = report(tmp_path, **part, support=support(states=0.0, columns=[0.0, 0.0]))
    assert "| `temp_C` | 10 | 1 | 0.1 | 0.5 | - | 0.7 | 91 % |" in text
    assert "that is due to" not in text
    assert text.splitlines()[6] == "> Warnings below, whatever the verdict: **1**."


def test_many_columns_are_cut_to_those_that_the_model_knows_least(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 80
    names = [f"c{i}" for i in range(size)]
    error = rng.uniform(0.1, 1.0, size).tolist()
    one_step = {**model()["one_step"], "columns": names, "std": [1.0] * size,
                "error": error, "relative": error, "no_change": [1.0] * size,
                "after_training": error}  # fmt: skip
    calibration = {**model()["calibration"], "coverage": [[0.5] * size, [0.9] * size]}
    many = {"one_step": one_step, "k_step": None, "calibration": calibration}
    text = report(tmp_path, model=many)
    shown = [name for name in names if f"| `{name}` |" in text]
    assert set(shown) == {names[i] for i in np.argsort(error)[-30:]}
    assert "50 columns" in text and "No logged episode is long enough" in text
