"""The seeds of evaluation: recorded, and used by nothing else and never twice."""

from __future__ import annotations

import json
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adversary_effect
import numpy as np
import pytest
import run_support
import torch
from command_line import compose_jobs
from omegaconf import DictConfig
from run_support import EVALUATION_SEED, Evaluation
from tensordict import TensorDict
from torchrl.data import Bounded
from training_run import Run

from rambo_trl.data import OfflineDataset, bundled
from rambo_trl.modules import make_actor
from rambo_trl.training.divergence import DivergenceMonitor
from rambo_trl.training.evaluation import EvaluationResult
from rambo_trl.training.interruption import Interruption
from rambo_trl.training.run_folder import RunFolder

SPEC = Bounded(-1, 1, shape=(1,))


def config(*words: str) -> DictConfig:
    (cfg,) = compose_jobs("bc", words, check=lambda cfg: None)
    return cfg


def episode_seeds(cfg: DictConfig) -> list[int]:
    """Every seed that a run may give an episode: of the cloned policy (epoch 0), and of epochs."""
    dataset: Any = SimpleNamespace(observation_layout=None, environment=None)
    evaluation = Evaluation(make_actor(1, SPEC), dataset, cfg)
    return [
        evaluation._seed(epoch) + episode
        for epoch in range(cfg.epochs + 1)
        for episode in range(cfg.evaluation.episodes)
    ]


@pytest.mark.parametrize("schedule", ["smoke", "quick", "paper"])
def test_no_episode_has_the_seed_of_another_or_of_data(schedule: str) -> None:
    found: list[int] = []
    for seed in range(4):
        found += episode_seeds(config(f"schedule={schedule}", f"seed={seed}"))
    assert len(set(found)) == len(found), "an epoch, or a run of another seed, has it too"
    # what builds data, and what a run itself is seeded with
    blocks = bundled._SEED_BLOCK * (1 + len(bundled._KINDS))
    assert min(found) >= max(blocks, bundled._REFERENCE_SEED + bundled._SEED_BLOCK)
    assert min(found) == EVALUATION_SEED > 3
    assert max(found) < adversary_effect.FIRST_SEED


def test_runs_of_distant_seeds_stay_apart() -> None:
    # those whose episodes come next to the ones that figures are drawn of, and the largest
    seeds = [0, 1, 88, 89, 90, 91, 2**31 - 2, 2**31 - 1]
    spans, figures = [], adversary_effect.FIRST_SEED
    for seed in seeds:
        found = episode_seeds(config("schedule=paper", f"seed={seed}"))
        spans.append((min(found), max(found)))
        assert max(found) < figures or min(found) > figures + 100_000
    assert all(last < first for (_, last), (first, _) in pairwise(spans))


class Idle:
    """A method that learns nothing."""

    label = "idle"
    updates = 1

    def __init__(self) -> None:
        self.actor = make_actor(1, SPEC, hidden_sizes=(4,))

    def stateful_parts(self) -> dict[str, Any]:
        return {"actor": self.actor}

    def monitor(self) -> DivergenceMonitor:
        return DivergenceMonitor(1.0, 0.9)

    def results(self) -> dict[str, Any]:
        return {}


def make_run(path: Path, *words: str) -> Run:
    rows, numbers = 20, torch.linspace(-1, 1, 20).unsqueeze(-1)
    following = TensorDict(
        observation=numbers,
        reward=numbers,
        terminated=torch.ones(rows, 1, dtype=torch.bool),
        batch_size=[rows],
    )
    transitions = TensorDict(observation=numbers, action=numbers, next=following, batch_size=[rows])
    # never made: evaluations are recorded instead
    dataset = OfflineDataset(transitions, action_spec=SPEC, env_id="InvertedPendulum-v5")
    cfg = config("schedule=smoke", "agent.hidden_sizes=[4]", *words)
    return Run(cfg, dataset, RunFolder.create(path), Interruption())


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_evaluates_from_the_seed_that_its_results_name(
    seed: int, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts: list[int] = []
    result = EvaluationResult(np.ones(3), np.ones(3), np.ones(3))

    def evaluate(*args: object, num_episodes: int, seed: int, **kwargs: object) -> EvaluationResult:
        assert num_episodes == 3
        firsts.append(seed)
        return result

    def submit(self: Any, path: Path, *, seed: int) -> Future[EvaluationResult]:
        future: Future[EvaluationResult] = Future()
        future.set_result(evaluate(num_episodes=self.num_episodes, seed=seed))
        return future

    monkeypatch.setattr(run_support, "evaluate_policy", evaluate)
    monkeypatch.setattr(run_support.EvaluationProcess, "submit", submit)
    run = make_run(
        tmp_path / "run",
        f"seed={seed}",
        f"evaluate_beside={str(beside).lower()}",
        "epochs=4",
        "evaluation.episodes=3",
    )
    run.begin(Idle())
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            pass
    run.finish()
    results = json.loads((tmp_path / "run/results.json").read_text())
    first = results["evaluation_seed"]
    assert first == EVALUATION_SEED + 10_000_000 * seed
    # three episodes an epoch, from where the cloned policy's (epoch 0) end
    assert firsts == [first + 3 * epoch for epoch in (1, 2, 3, 4)]
