"""The seeds of evaluation: recorded, and used by nothing else and never twice."""

from __future__ import annotations

import json
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import behaviour
import numpy as np
import pytest
import run_evaluation
from launcher.command_line import compose_jobs
from omegaconf import DictConfig, OmegaConf
from run_evaluation import EVALUATION_SEED, Evaluation

from rambo_trl.data import bundled, names
from rambo_trl.experiment.evaluation import EvaluationResult
from rambo_trl.reporting import adversary_measures


def config(*words: str) -> DictConfig:
    (cfg,) = compose_jobs("bc", words, check=lambda cfg: None)
    return cfg


def episode_seeds(cfg: DictConfig) -> list[int]:
    """Every seed that a run may give an episode: of the cloned policy (epoch 0), and of epochs."""
    dataset: Any = SimpleNamespace(observation_layout=None, environment=None)
    evaluation = Evaluation(None, dataset, cfg)  # type: ignore[arg-type]
    return [
        evaluation._seed(epoch) + episode
        for epoch in range(cfg.epochs + 1)
        for episode in range(cfg.evaluation.episodes)
    ]


@pytest.mark.parametrize("schedule", ["smoke", "quick", "thorough", "paper"])
def test_no_episode_has_the_seed_of_another_or_of_data(schedule: str) -> None:
    found: list[int] = []
    for seed in range(4):
        found += episode_seeds(config(f"schedule={schedule}", f"seed={seed}"))
    assert len(set(found)) == len(found), "an epoch, or a run of another seed, has it too"
    # what builds data, and what a run itself is seeded with
    blocks = bundled._SEED_BLOCK * (1 + len(names.KINDS))
    assert min(found) >= max(blocks, bundled._REFERENCE_SEED + bundled._SEED_BLOCK)
    assert min(found) == EVALUATION_SEED > 3
    assert max(found) < adversary_measures.FIRST_SEED


def test_the_policies_that_play_data_were_chosen_on_episodes_of_their_own() -> None:
    cfg = OmegaConf.load(behaviour.__file__.replace("behaviour.py", "config/behaviour.yaml"))
    spans = []
    for seed in range(100):
        cfg.seed = seed
        first = behaviour.snapshot_seed(cfg)
        spans.append((first, first + cfg.eval_episodes - 1))
    assert all(last < first for (_, last), (first, _) in pairwise(spans))
    # between the seeds of the data's episodes and those of the reference returns and evaluations
    assert spans[0][0] >= bundled._SEED_BLOCK * (1 + len(names.KINDS))
    assert spans[-1][1] < bundled._REFERENCE_SEED < EVALUATION_SEED


def test_runs_of_distant_seeds_stay_apart() -> None:
    # those whose episodes come next to the ones that figures are drawn of, and the largest
    seeds = [0, 1, 88, 89, 90, 91, 2**31 - 2, 2**31 - 1]
    spans, figures = [], adversary_measures.FIRST_SEED
    for seed in seeds:
        found = episode_seeds(config("schedule=paper", f"seed={seed}"))
        spans.append((min(found), max(found)))
        assert max(found) < figures or min(found) > figures + 100_000
    assert all(last < first for (_, last), (first, _) in pairwise(spans))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The seeds of each evaluation, which is noted in place of being made."""
    found: list[range] = []

    def evaluate(*args: object, num_episodes: int, seed: int, **kwargs: object) -> EvaluationResult:
        found.append(range(seed, seed + num_episodes))
        return EvaluationResult(*(np.ones(num_episodes) for _ in range(3)))

    def submit(self: Any, path: Path, *, seed: int) -> Future[EvaluationResult]:
        future: Future[EvaluationResult] = Future()
        future.set_result(evaluate(num_episodes=self.num_episodes, seed=seed))
        return future

    monkeypatch.setattr(run_evaluation, "evaluate_policy", evaluate)
    monkeypatch.setattr(run_evaluation.EvaluationProcess, "submit", submit)
    return found


def train(toy: Any, path: Path, *words: str) -> dict[str, Any]:
    """A run of the toy method that is evaluated after each epoch; its results."""
    run = toy.run(path, *words, env_id="InvertedPendulum-v5")
    run.begin(toy.Method())
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            pass
    run.finish()
    return json.loads((path / "results.json").read_text())


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_evaluates_from_the_seed_that_its_results_name(
    seed: int, beside: bool, tmp_path: Path, played: list[range], toy: Any
) -> None:
    words = (f"evaluate_beside={str(beside).lower()}", "epochs=4", "evaluation.episodes=3")
    results = train(toy, tmp_path / "run", f"seed={seed}", *words)
    first = results["evaluation_seed"]
    assert first == EVALUATION_SEED + 10_000_000 * seed and results["evaluation_stride"] == 3
    # three episodes an epoch, from where the cloned policy's (epoch 0) end
    assert played == [range(first + 3 * epoch, first + 3 * epoch + 3) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize("numbers", [(10, 2), (2, 10), (4, 10, 1, 3)])
def test_a_run_resumed_with_another_number_of_episodes_repeats_no_seed(
    numbers: tuple[int, ...], tmp_path: Path, played: list[range], toy: Any
) -> None:
    for n, episodes in enumerate(numbers, 1):
        words = (f"evaluation.episodes={episodes}", f"epochs={3 * n}")
        results = train(toy, tmp_path / "run", *words)
        # an epoch's seeds can be told from what is recorded
        first = results["evaluation_seed"] + 3 * n * results["evaluation_stride"]
        assert played[-1] == range(first, first + episodes)
    assert [len(seeds) for seeds in played] == [n for n in numbers for _ in range(3)]
    every = [EVALUATION_SEED + i for i in range(numbers[0])]  # the cloned policy's
    every += [seed for seeds in played for seed in seeds]
    assert len(set(every)) == len(every)
