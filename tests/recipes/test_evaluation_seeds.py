"""The seeds of evaluation: used by nothing else and never twice, whatever the schedule."""

from __future__ import annotations

from itertools import pairwise

import behaviour
import pytest
from launcher.command_line import compose_jobs
from omegaconf import OmegaConf

from rambo_trl.data import bundled, names
from rambo_trl.experiment.evaluation import EVALUATION_SEED, evaluation_seed
from rambo_trl.reporting import adversary_measures


def episode_seeds(schedule: str, seed: int) -> range:
    """Every seed that a run may give an episode: of the cloned policy (epoch 0), and of epochs."""
    words = [f"schedule={schedule}", f"seed={seed}"]
    (cfg,) = compose_jobs("bc", words, check=lambda cfg: None)
    first = evaluation_seed(cfg.seed)
    return range(first, first + (cfg.epochs + 1) * cfg.evaluation.episodes)


@pytest.mark.parametrize("schedule", ["smoke", "quick", "thorough", "paper"])
def test_no_episode_has_the_seed_of_another_or_of_data(schedule: str) -> None:
    spans = [episode_seeds(schedule, seed) for seed in range(4)]
    assert all(one[-1] < other[0] for one, other in pairwise(spans))
    # what builds data, and what a run itself is seeded with
    blocks = bundled._SEED_BLOCK * (1 + len(names.KINDS))
    assert spans[0][0] >= max(blocks, bundled._REFERENCE_SEED + bundled._SEED_BLOCK)
    assert spans[0][0] == EVALUATION_SEED > 3
    assert spans[-1][-1] < adversary_measures.FIRST_SEED


def test_runs_of_distant_seeds_stay_apart() -> None:
    # those whose episodes come next to the ones that figures are drawn of, and the largest
    seeds = [0, 1, 88, 89, 90, 91, 2**31 - 2, 2**31 - 1]
    spans, figures = [episode_seeds("paper", seed) for seed in seeds], adversary_measures.FIRST_SEED
    assert all(span[-1] < figures or span[0] > figures + 100_000 for span in spans)
    assert all(one[-1] < other[0] for one, other in pairwise(spans))


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
