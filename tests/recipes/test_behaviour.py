"""The recipe that trains behaviour policies: what it bundles is what the data sets are made of."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import behaviour
import numpy as np
import pytest
from behaviour import select_snapshots
from launcher.command_line import check_command_line

from rambo_trl.data import OfflineDataset
from rambo_trl.data.bundled import build_bundled

RECIPE = Path(__file__).parents[2] / "recipes" / "behaviour.py"
ENV_ID = "InvertedDoublePendulum-v5"


def row(step: int, mean: float, std: float) -> dict[str, float]:
    return {"step": step, "return_mean": mean, "return_std": std}


def test_snapshots_span_the_training_up_to_the_best() -> None:
    rows = [row(i, mean, 1.0) for i, mean in enumerate((0, 10, 50, 40, 90, 80))]
    chosen, medium, expert = select_snapshots(rows, 3, (30, 60))
    assert expert == 4, "the best, not the last"
    assert medium == 2
    assert chosen == [0, 2, 4], "medium and expert are among them, nothing after the expert"
    rows[2]["return_std"] = 5.0
    assert select_snapshots(rows, 3, (30, 60))[1] == 3, "the steadiest in the range"
    assert select_snapshots(rows, 3, (30, 60), "medium") == ([0, 2, 3], 3, None), "none after it"
    with pytest.raises(
        ValueError, match=r"no snapshot has a mean return in medium_range=\(60, 70\)"
    ):
        select_snapshots(rows, 3, (60, 70))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("env=Nope", "environment Nope is not installed"),
        (
            "env=CartPole-v1",
            "env=CartPole-v1: its actions are not vectors of numbers, but Discrete(2)",
        ),
        ("total_steps=abc", "total_steps must be a valid integer, got abc"),
        ("updates_per_step=0", "updates_per_step must be greater than 0, got 0"),
        ("medium_range=[1800,800]", "medium_range must have the lower number first, got [1800"),
        ("bundle_until=end", "bundle_until must be 'expert' or 'medium', got end"),
        ("medium_range=[7]", "medium_range must have at least 2 items, got [7]"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    setting: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        check_command_line("behaviour", behaviour.check, argv=[setting])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}") and said.count("\n") == 1


def test_another_trainings_snapshots_are_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_command_line("behaviour", behaviour.check, argv=[f"run_dir={tmp_path}"])
    (tmp_path / "snapshots.csv").write_text("step,return_mean\n")
    with pytest.raises(SystemExit):
        check_command_line("behaviour", behaviour.check, argv=[f"run_dir={tmp_path}"])
    assert "snapshots.csv is there already: choose another run_dir" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the collector's own deprecations
def test_a_training_leaves_a_bundle_that_data_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "policies"
    words = {
        "env": ENV_ID,
        "total_steps": 2_000,
        "init_random_steps": 300,
        "eval_every": 500,
        "eval_episodes": 3,
        "hidden_sizes": "[64,64]",
        "actor_lr": 1e-3,
        "medium_range": "[0,10000]",
        "num_snapshots": 3,
        "compile": "false",
        "run_dir": run_dir,
    }
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *(f"{k}={v}" for k, v in words.items())])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    runpy.run_path(str(RECIPE), run_name="__main__")

    with (run_dir / "snapshots.csv").open() as file:
        snapshots = [{k: float(v) for k, v in r.items()} for r in csv.DictReader(file)]
    assert [s["step"] for s in snapshots] == [0, 500, 1_000, 1_500, 2_000]
    returns = [s["return_mean"] for s in snapshots]
    assert max(returns[1:]) > 1.4 * returns[0], "it learns"

    name = "bundled/inverteddoublependulum/expert-v0"
    build_bundled(name, num_steps=500, policies_dir=run_dir)
    played = OfflineDataset.load(name).behaviour_returns
    assert np.mean(played) > 1.2 * returns[0], "it is the trained policy that plays"
