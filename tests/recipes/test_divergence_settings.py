"""What a run does once it has diverged: ``on_divergence`` through its epochs and its results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from launcher.command_line import compose_jobs
from run_evaluation import write_policy


def train(toy: Any, run: Any, mean_q: dict[int, float]) -> dict[str, Any]:
    """A run whose critics report these values in these epochs, and 1 in the others."""
    method = toy.Method()
    run.begin(method)
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            method.learn(row["epoch"])
            row["mean_q"] = mean_q.get(row["epoch"], 1.0)
    return run.finish()


def policy_of_epoch(toy: Any, epoch: int, run: Any, path: Path) -> bytes:
    method = toy.Method()
    method.learn(epoch)
    write_policy(path, method.actor, run.dataset, run.cfg)
    return path.read_bytes()


@pytest.mark.parametrize("value", [1e9, math.nan])
@pytest.mark.parametrize(("every", "good"), [(1, 1), (3, 0)])
@pytest.mark.parametrize(("setting", "epochs"), [("stop", [1, 2]), ("continue", [1, 2, 3, 4])])
def test_a_run_that_diverges_in_its_second_epoch(
    setting: str, epochs: list[int], every: int, good: int, value: float, tmp_path: Path, toy: Any
) -> None:
    words = (f"on_divergence={setting}", "epochs=4", f"checkpoint_every={every}")
    run = toy.run(tmp_path / "run", *words)
    # the fourth epoch's is the second divergence, which changes nothing any more
    train(toy, run, {2: value, 4: value})
    assert [row["epoch"] for row in run.folder.read_metrics()] == epochs
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["diverged"] is True and results["score"] == 0
    assert results["divergence"]["epoch"] == 2 and "mean" in results["divergence"]["reason"]
    assert results["epochs"] == results["agent_updates"] // run.cfg.agent_updates == epochs[-1]
    policies = [policy_of_epoch(toy, n, run, tmp_path / "policy.safetensors") for n in range(5)]
    assert len(set(policies)) == 5
    found = (tmp_path / "run/policy.safetensors").read_bytes()
    assert policies.index(found) == good, "that of the last checkpoint before it diverged"


def test_a_run_that_went_on_remembers_it_when_it_is_resumed(tmp_path: Path, toy: Any) -> None:
    words = ("on_divergence=continue", "checkpoint_every=1")
    for epochs in (3, 5):
        run = toy.run(tmp_path / "run", *words, f"epochs={epochs}")
        results = train(toy, run, {2: 1e9})
    assert [row["epoch"] for row in run.folder.read_metrics()] == [1, 2, 3, 4, 5]
    assert results["epochs"] == 5 and results["divergence"]["epoch"] == 2
    wanted = policy_of_epoch(toy, 1, run, tmp_path / "policy.safetensors")
    assert (tmp_path / "run/policy.safetensors").read_bytes() == wanted


def test_the_same_run_without_a_divergence_keeps_its_last_policy(tmp_path: Path, toy: Any) -> None:
    run = toy.run(tmp_path / "run", "on_divergence=stop", "epochs=4", "checkpoint_every=1")
    results = train(toy, run, {})
    assert results["diverged"] is False and results["divergence"] is None
    wanted = policy_of_epoch(toy, 4, run, tmp_path / "policy.safetensors")
    assert (tmp_path / "run/policy.safetensors").read_bytes() == wanted


def test_runs_stop_unless_told_otherwise() -> None:
    for name in ("rambo", "mopo", "morel", "combo", "cql", "iql", "td3_bc", "bc"):
        (cfg,) = compose_jobs(name, ["schedule=paper"], check=lambda cfg: None)
        assert cfg.on_divergence == "stop"


def test_a_resumed_run_remembers_the_entropy_that_its_bound_holds(tmp_path: Path, toy: Any) -> None:
    for epochs in (1, 3):
        run = toy.run(tmp_path / "run", "checkpoint_every=1", f"epochs={epochs}")
        run.begin(toy.Method())
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                first = row["epoch"] == 1
                row.update(alpha=1.0, entropy=5.0 if first else 0.0, mean_q=1.0 if first else 100.0)
        results = run.finish()
    # 2 * (1 + 5) / (1 - 0.9); without the entropy it were 20
    assert results["q_bound"] == pytest.approx(120) and results["diverged"] is False
