"""One epoch of a run: its phases, their seconds and its metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rambo_trl.experiment.evaluation import score_text
from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.runtime.progress import Bar

Metrics = dict[str, Any]

#: what the progress bar calls phases that have other names in ``results.json``
_PHASES = {"rollouts": "imagined rollouts", "model": "adversary"}


class Stopwatch:
    """Seconds per phase.

    Args:
        seconds: phase to seconds so far; added to.

    Attributes:
        bar: says which phase it is, where there is one.
        worked: phase to seconds of this process, without those that compilation took.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.worked: dict[str, float] = {}
        self.bar: Bar | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the block's duration to a phase."""
        bar = self.bar
        waited = 0.0
        if bar is not None:
            bar.set_postfix_str(_PHASES.get(phase, phase))
            waited = bar.waited
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed
        if bar is not None:
            elapsed -= bar.waited - waited
        self.worked[phase] = self.worked.get(phase, 0.0) + elapsed


class Epoch:
    """One epoch: its phases are timed, what is logged becomes its row of ``metrics.csv``.

    Attributes:
        number: from 1.
        row: the metrics so far.
    """

    def __init__(self, number: int, watch: Stopwatch, bar: Bar) -> None:
        self.number, self.row = number, Metrics(epoch=number)
        self._watch, self._bar = watch, bar

    @contextmanager
    def phase(self, name: str) -> Iterator[Bar]:
        """Time a block as one phase; yields the progress bar of gradient steps."""
        with self._watch(name):
            yield self._bar

    def log(self, metrics: Mapping[str, Any], *, prefix: str = "") -> None:
        """Add metrics to the row, under their names after ``prefix``; ``loss_*`` keep theirs."""
        for name, value in metrics.items():
            self.row[name if name.startswith("loss") else f"{prefix}{name}"] = value


def epoch_line(row: Mapping[str, Any]) -> str:
    """What an epoch did, as a line."""
    parts = [f"epoch {row['epoch']:4d}"]
    if row["return_mean"] is not None:
        parts.append(f"return {format_value(row['return_mean']):>8}{score_text(row)}")
    if "mean_q" in row:
        parts.append(f"mean Q {format_value(row['mean_q'], 2):>8}")
    if "loss_model" in row:
        parts.append(f"model loss {row['loss_model']:7.3f}")
    if "model_trust_distance" in row:  # with model_term=kl or total_variation
        parts.append(f"trust distance {row['model_trust_distance']:.3g}")
    if "model_advantage_mean" in row:
        mean, std = row["model_advantage_mean"], row["model_advantage_std"]
        parts.append(f"advantage {mean:6.2f} +- {std:.2f}")
    return " | ".join(parts)
