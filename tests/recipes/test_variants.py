"""The variants' settings of RAMBO's recipe: reached, resumed, refused; off by default."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import compose_jobs

ROOT = Path(__file__).parents[2]
TASK = ["schedule=smoke", "task=inverteddoublependulum-medium-replay", "dataset=test/idp/tiny-v0"]


def rambo(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/rambo.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_defaults_are_the_papers() -> None:
    (cfg,) = compose_jobs("rambo", [])
    assert cfg.num_critics == 2
    assert cfg.advantage_clip is None
    assert cfg.model_updates_every == 1
    assert cfg.model_term == "likelihood"
    assert cfg.likelihood_budget is None


@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.slow
def test_all_variants_at_once_and_resumed(tmp_path: Path) -> None:
    words = [
        *TASK,
        "num_critics=3",
        "advantage_clip=1.5",
        "model_updates_every=2",
        "model_term=kl",
        "likelihood_budget=0.001",
        "budget_lr=100",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = rambo(tmp_path, *words, "epochs=4", f"run_dir={whole}")
    assert ended.returncode == 0, ended.stderr
    found = rows(whole)
    # the adversary's turn comes in epochs 1 and 3
    assert [bool(row["loss_trust"]) for row in found] == [True, False, True, False]
    assert "loss_model" not in found[0]
    assert json.loads((whole / "results.json").read_text())["model_updates"] == 40
    # lambda moved from the task's own
    lambdas = [float(row["model_lambda"]) for row in found if row["model_lambda"]]
    assert lambdas[0] != pytest.approx(3e-4)
    assert lambdas[1] != pytest.approx(lambdas[0])

    assert rambo(tmp_path, *words, "epochs=2", f"run_dir={parts}").returncode == 0
    ended = rambo(tmp_path, f"resume={parts}", "epochs=4")
    assert ended.returncode == 0, ended.stderr
    for one, other in zip(found, rows(parts), strict=True):
        same = {
            key: value for key, value in one.items() if "return" not in key and "score" not in key
        }
        assert same == {key: other[key] for key in same}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("advantage_clip=0", "advantage_clip must be a finite number above 0 or null, got 0"),
        ("model_term=js", "model_term must be one of likelihood, kl, total_variation, got js"),
        ("model_updates_every=0", "model_updates_every must be a whole number of at least 1"),
        ("num_critics=0", "num_critics must be a whole number of at least 1, got 0"),
        ("likelihood_budget=-1", "likelihood_budget must be a finite number above 0 or null"),
        ("budget_lr=0", "budget_lr must be a finite number above 0, got 0"),
    ],
)
def test_bad_values_are_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compose_jobs("rambo", ["schedule=smoke", word])


def test_a_budget_needs_an_adversary() -> None:
    compose_jobs("rambo", ["adversarial_weight=3e-4", "likelihood_budget=0.5"])
    with pytest.raises(ValueError, match="likelihood_budget needs an adversarial_weight above 0"):
        compose_jobs("rambo", ["adversarial_weight=0", "likelihood_budget=0.5"])
