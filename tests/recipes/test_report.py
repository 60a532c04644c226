"""The report reads run folders only, averages over seeds and says what diverged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import report

from rambo_trl.training.run_folder import RunFolder


def make_run(path: Path, *, seed: int, score: float, diverged: bool = False) -> str:
    folder = RunFolder.create(path)
    folder.write_config("seed: 0\n")
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "score": score * epoch / 3 if epoch > 1 else None})
    folder.write_results(
        {
            "method": "RAMBO", "dataset": "bundled/hopper/medium-replay-v0", "schedule": "quick",
            "seed": seed, "epochs": 3, "agent_updates": 30, "model_updates": 3,
            "behaviour_score": 10.0, "behaviour_score_best": 98.0, "cloned_score": 9.0,
            "score": 0.0 if diverged else score, "return_mean": 1.0, "diverged": diverged,
            "seconds": {"agent": 60.0, "model": 30.0},
        }
    )  # fmt: skip
    return str(path)


def test_table_averages_over_seeds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", seed=s, score=x) for s, x in ((1, 40.0), (0, 20.0))]
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results:quick -->\nold\n<!-- end of results:quick -->\nb\n")
    out = tmp_path / "quick"
    assert report.main([*runs, "--out", str(out), "--readme", str(readme)]) == 0
    table = (out / "table.md").read_text()
    assert "**30.0 +- 10.0**" in table and "20.0, 40.0" in table and "| 1.5 +- 0.0 |" in table
    text = readme.read_text()
    assert text.startswith("a\n<!-- results:quick -->\n") and text.endswith("-->\nb\n")
    assert table in text and "old" not in text
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["1", "0"] and rows[0]["minutes"] == "1.5"
    assert (out / "learning_curves.png").stat().st_size > 10_000


def test_a_diverged_run_counts_as_zero_and_is_named(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", seed=0, score=40.0),
        make_run(tmp_path / "b", seed=1, score=90.0, diverged=True),
    ]
    assert report.main([*runs, "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out/table.md").read_text()
    assert "**20.0 +- 20.0**" in table and "1 of 2 runs diverged" in table


def test_bad_input_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    run = make_run(tmp_path / "a", seed=0, score=1.0)
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    assert report.main([run, "--out", str(tmp_path / "out"), "--readme", str(readme)]) == 2
    assert not (tmp_path / "out").exists() and readme.read_text() == "no markers\n"
    assert capsys.readouterr().err.count("error:") == 2
