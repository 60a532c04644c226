"""The recipe as a user runs it: a whole run, a killed one resumed, bad input refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import select_run

from rambo_trl import load_policy

RECIPES = Path(__file__).parents[2] / "recipes"
ENV_ID = "InvertedDoublePendulum-v5"
pytestmark = pytest.mark.usefixtures("tiny_dataset")
TINY = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "compile=false", "threads=1",
    "dataset=test/idp/tiny-v0", "evaluation.episodes=2",
)  # fmt: skip


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(RECIPES / "rambo.py"), *TINY, *overrides]


def run(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*overrides), cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_run_leaves_a_whole_folder(tmp_path: Path) -> None:
    done = run("run_dir=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines.count("run folder: first") == 2 and lines[-1] == "run folder: first"
    folder = tmp_path / "first"
    results = json.loads((folder / "results.json").read_text())
    for key in (
        "score", "return_mean", "return_std", "behaviour_return_mean", "behaviour_score",
        "diverged", "seed", "dataset", "env", "agent_updates", "model_updates",
        "model_transitions", "seconds", "versions",
    ):  # fmt: skip
        assert key in results
    assert results["agent_updates"] == results["model_updates"] == 40
    assert results["env"] == ENV_ID and results["diverged"] is False
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:  # an episode of the pendulum is worth less the more it is discounted
        assert float(row["discounted_return_mean"]) < float(row["return_mean"])
        assert np.isfinite(float(row["start_value"]))
    last = [float(row["return_mean"]) for row in rows if row["return_mean"]][-1]
    assert results["return_mean"] == pytest.approx(last)
    path = results["path"]
    assert np.isfinite([path[key] for key in ("return_truth", "return_model", "model_error")]).all()
    # the same measure on rows like those that were fitted, so not of another size
    assert min(results["holdout_mse"]) < path["holdout_error"] < max(results["holdout_mse"])
    for name in ("learning_curve.png", "policy_path.png", "config.yaml", "checkpoint/last.pt"):
        assert (folder / name).stat().st_size > 0
    policy = load_policy(folder / "policy.safetensors")
    action = policy(np.zeros((3, 9)))
    assert action.shape == (3, 1) and np.abs(action).max() <= 1


@pytest.mark.gpu
def test_deterministic_runs_on_a_gpu_repeat(tmp_path: Path) -> None:
    settings = ("device=cuda", "deterministic=true", "compile=true", "seed=3")
    for name in ("one", "two"):
        done = run(f"run_dir={name}", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "policy.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_evaluations_beside_training_change_nothing(
    tmp_path: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("epochs=5", "checkpoint_every=3", "evaluation.every=2")
    for name, beside in (("within", "false"), ("beside", "true")):
        capsys.readouterr()
        words = (f"run_dir={name}", f"evaluate_beside={beside}")
        run_recipe(tmp_path, "rambo", *TINY, *settings, *words)
    folders = [tmp_path / name for name in ("within", "beside")]
    for file in ("metrics.csv", "policy.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert "epoch    5 | return" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_lambda_of_one_is_caught_in_the_epoch_that_breaks_the_model(
    tmp_path: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0).normal
    observations, noise = draw(size=(1000, 11)), draw(size=(1000, 12))
    actions = np.random.default_rng(1).uniform(-1, 1, (1000, 1))
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": actions[:, 0] + 0.3 * noise[:, 11],
        "next_observations": 0.9 * observations + 0.3 * actions + 0.05 * noise[:, :11],
        "terminals": np.zeros(1000, bool),
        "timeouts": np.arange(1000) % 100 == 99,
    }
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for key, values in arrays.items():
            file[key] = values
    settings = (
        "dataset=log.hdf5", "env_id=none", "termination=none", "odd_data=accept", "threads=1",
        "schedule=smoke", "compile=false", "agent_updates=10", "model_updates=60", "epochs=2",
        "model.lr=3e-3", "model.adversarial_lr=3e-3", "model.batch_size=128", "model.max_passes=12",
        "model.num_members=3", "model.num_elites=2",
    )  # fmt: skip
    found = {}
    for weight in (1, 3e-4):
        mine = (*settings, f"adversarial_weight={weight}", f"run_dir=weight{weight}")
        run_recipe(tmp_path, "rambo", *mine)
        found[weight] = json.loads((tmp_path / f"weight{weight}/results.json").read_text())
    assert found[1]["divergence"]["epoch"] == found[1]["epochs"] == 1
    assert "the model's error in " in found[1]["divergence"]["reason"]
    assert found[3e-4]["divergence"] is None and found[3e-4]["epochs"] == 2
    # and the offline choice leaves it out
    assert (
        select_run.main(["--rule", "q", *(str(tmp_path / f"weight{weight}") for weight in found)])
        == 0
    )
    said = capsys.readouterr().out
    assert f"out: {tmp_path / 'weight1'}: {found[1]['divergence']['reason']}\n" in said
    assert "chosen: RAMBO (adversarial_weight=0.0003), smoke" in said
