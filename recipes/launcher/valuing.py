"""The values of several runs on one data set, measured where they are missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.command_line import describe
from launcher.inspection import load_saved
from launcher.offline import NO_DISCOUNT, offline_values
from tqdm import tqdm

from rambo_trl.experiment.policy import policy_path
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation
from rambo_trl.reporting.offline_values import OFFLINE_VALUES_FILE, OfflineValues
from rambo_trl.reporting.runs import Record
from rambo_trl.reporting.selection import check_one_dataset, why_discarded

__all__ = ["values_of_runs"]


def values_of_runs(
    runs: Sequence[Record], *, again: bool = False, gamma: float | None = None
) -> list[tuple[Record, OfflineValues | None]]:
    """Read or measure what each run's policy is worth; progress is said on the screen.

    Args:
        runs: on one data set.

    Keyword Args:
        again: measure what has been measured too.
        gamma: discount factor of all values; by default the runs' own, the smallest where they
            differ. Values with another one than the run's have a file of their own.

    Returns:
        Runs with their values; None for a run that its training rules out, which is not measured.
        A run that cannot be valued, such as one without a policy file, is named and left out.

    Raises:
        ValueError: one line on what to change.
    """
    check_one_dataset(runs)
    able: list[Record] = []
    for run in runs:
        if policy_path(run.path).is_file():
            able.append(run)
        else:
            print(f"left out, no {policy_path(run.path).name}: {run.path}", file=sys.stderr)
    if not able:
        raise ValueError("none of these runs has a policy to value: --rule q goes by mean Q alone")
    trained = sorted({x for run in able if (x := _discount(run))})
    if gamma is None:
        gamma = min(trained, default=NO_DISCOUNT)
        if len(trained) > 1:
            discounts = " and ".join(f"{x:g}" for x in trained)
            line = f"these runs discount by {discounts}: all are valued with {gamma:g} (--gamma)"
            print(line, file=sys.stderr)
    files = {
        run.path: OFFLINE_VALUES_FILE
        if (_discount(run) or NO_DISCOUNT) == gamma
        else f"offline_values_gamma{gamma:g}.json"
        for run in able
    }
    missing = [
        run
        for run in able
        if not why_discarded(run) and (again or not _known(run.path, files[run.path]))
    ]
    evaluation, saved = None, None
    for number, run in enumerate(missing, 1):
        line = f"valuing {run.path} ({number} of {len(missing)}; some minutes each)"
        tqdm.write(line, file=sys.stderr)
        try:
            saved = load_saved(run.path, saved)
            if evaluation is None or evaluation.data is not saved.data:
                evaluation = OfflineEvaluation(saved.data, gamma=gamma)
            name = files[run.path]
            offline_values(run.path, again=True, run=saved, evaluation=evaluation, name=name)
        except (OSError, ValueError) as error:
            tqdm.write(f"left out, {describe(error)}: {run.path}", file=sys.stderr)
            able.remove(run)
    if not able:
        raise ValueError("none of these runs could be valued")
    return [
        (run, None if why_discarded(run) else OfflineValues.read(run.path, files[run.path]))
        for run in able
    ]


def _discount(run: Record) -> float | None:
    """The discount factor that a run was trained with; cloning alone needs none."""
    return run.settings.get("agent.gamma") or run.settings.get("gamma")


def _known(path: Path, name: str) -> bool:
    """Whether a run's folder holds its values, with what comparisons between runs need."""
    return (path / name).is_file() and "policy" in OfflineValues.read(path, name).samples
