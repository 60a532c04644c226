"""How a run is evaluated, saved and logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rambo_trl.experiment.loggers import TrackerName


@dataclass(frozen=True)
class RunOptions:
    """How a run is evaluated, saved and logged.

    Attributes:
        epochs: how many.
        seed: decides the evaluations' seeds.
        device: where the policy lives.
        gamma: discount factor; None for a method without critics.
        schedule_name: of the schedule, for the results.
        evaluation_episodes: episodes of an evaluation.
        evaluation_every: epochs between evaluations.
        evaluation_last: the last so many epochs are evaluated too; the score is their mean.
        evaluate_beside: evaluate in a process beside training; on a GPU only where None.
        checkpoint_every: epochs between checkpoints.
        checkpoint_minutes: minutes after which there is one in any case; None for no limit.
        checkpoints_kept: the newest so many are kept.
        on_divergence: stop, or continue with the run marked.
        logger: where metrics go besides ``metrics.csv``.
        video: of the trained policy.
        settings: the whole configuration, plain values, for ``config.yaml`` and the logger.
        config_text: the same as YAML.
        given: files that pretrained parts are taken from, by their settings.
    """

    epochs: int
    seed: int = 0
    device: str = "cpu"
    gamma: float | None = None
    schedule_name: str = ""
    evaluation_episodes: int = 10
    evaluation_every: int = 10
    evaluation_last: int = 10
    evaluate_beside: bool | None = None
    checkpoint_every: int = 20
    checkpoint_minutes: float | None = 5
    checkpoints_kept: int = 1
    on_divergence: Literal["stop", "continue"] = "stop"
    logger: TrackerName = "csv"
    video: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    given: Mapping[str, Path] = field(default_factory=dict)
