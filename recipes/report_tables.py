"""A report's tables: scores of each configuration, totals, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from paper_results import ABLATION, RAMBO, SOURCE, published
from run_reading import Configuration
from run_statistics import interquartile_mean, iqm_interval

#: methods whose computation was corrected: what results.json says since then
CORRECTED = {"MOPO": "penalty_units", "COMBO": "deterministic_backup"}


def scores_of(configuration: Configuration) -> list[float]:
    """The runs' scores, without runs that have none."""
    return [run.score for run in configuration.runs if run.score is not None]


def spread(values: Iterable[float | None]) -> str:
    """Mean and standard deviation (divided by n, not n - 1), as text."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return "-"
    return f"{known.mean():.1f}" + (f" +- {known.std():.1f}" if known.size > 1 else "")


def iqm_text(scores: Sequence[Sequence[float]]) -> str:
    """Interquartile mean and interval of some tasks' scores, as text."""
    if not any(scores):
        return "-"
    interval = iqm_interval(scores)
    ends = "one seed" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
    return f"{interquartile_mean(np.concatenate(scores)):.1f} ({ends})"


def score_text(configuration: Configuration) -> str:
    """The score, or the return where the data have no reference scores."""
    if scores_of(configuration):
        return f"**{spread(scores_of(configuration))}**"
    returns = [run.mean_return for run in configuration.runs]
    parts = [f"return {spread(returns)}"] if any(r is not None for r in returns) else []
    diverged = sum(bool(run.results["diverged"]) for run in configuration.runs)
    if diverged:
        parts.append(f"{diverged} of {len(returns)} diverged")
    return ", ".join(parts) or "-"


def paper_text(configuration: Configuration) -> str:
    """The paper's number, marked where the data are others."""
    number = published(configuration.method, configuration.dataset)
    if number is None:
        return "-"
    std = "" if number.std is None else f" +- {number.std:.1f}"
    return f"{number.score:.1f}{std}" + ("" if number.same_data else " (other data)")


def total_text(scores: Sequence[Sequence[float]]) -> str:
    """The sum of some tasks' mean scores and its deviation, as text."""
    text = f"{sum(np.mean(task) for task in scores):.1f}"
    if min(map(len, scores)) < 2:
        return text
    # the tasks' seeds are independent of each other: their variances add up
    return f"{text} +- {np.sqrt(sum(np.var(task) for task in scores)):.1f}"


def score_or_return(results: Sequence[Mapping[str, Any]], score: str, mean_return: str) -> str:
    """A figure beside the score: a score itself, or a return where there are none."""
    scores = spread(found.get(score) for found in results)
    if scores != "-":
        return scores
    returns = spread(found.get(mean_return) for found in results)
    return returns if returns == "-" else f"return {returns}"


def score_table(found: Sequence[Configuration]) -> list[str]:
    """One row a configuration."""
    lines = [
        "| data set | method | seeds | epochs | data's mean | data's best | cloned | score | "
        "IQM (95 % interval) | paper | score by seed | minutes a run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for configuration in found:
        runs = configuration.runs
        first = runs[0].results
        epochs = sorted({run.results["epochs"] for run in runs})
        cells = [
            f"`{configuration.dataset}`",
            f"{configuration.label}, `{configuration.schedule}`",
            str(len(runs)),
            str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            score_or_return([first], "behaviour_score", "behaviour_return_mean"),
            score_or_return([first], "behaviour_score_best", "behaviour_return_best"),
            score_or_return([r.results for r in runs], "cloned_score", "cloned_return_mean"),
            score_text(configuration),
            iqm_text([scores_of(configuration)]),
            paper_text(configuration),
            ", ".join("-" if run.score is None else f"{run.score:.1f}" for run in runs),
            spread(run.minutes for run in runs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def totals(found: Sequence[Configuration]) -> list[str]:
    """Each method over the data sets that all methods have; nothing where there is one only.

    Where the paper's lambda is 0, RAMBO's runs are the ablation's as well.
    """
    rows: dict[tuple[str, str], dict[str, Configuration]] = {}
    for configuration in found:
        if scores_of(configuration):
            by_dataset = rows.setdefault((configuration.label, configuration.schedule), {})
            by_dataset[configuration.dataset] = configuration
    shared: set[str] = set()
    for configuration in [c for c in found if c.method == RAMBO and scores_of(c)]:
        ablation = replace(configuration, method=ABLATION)
        without = rows.get((ablation.label, ablation.schedule))
        if without and configuration.runs[0].results.get("adversarial_weight") == 0:
            without.setdefault(configuration.dataset, ablation)
            shared.add(configuration.dataset)
    common = set.intersection(*map(set, rows.values())) if rows else set()
    if len(common) < 2:
        return []
    intro = f"Over the {len(common)} data sets that all of them have: {', '.join(sorted(common))}."
    if both := len(shared & common):
        intro += f" On {both} of them the paper's lambda is 0: RAMBO is its own ablation there."
    lines = [
        "",
        intro,
        "",
        "| method | runs | total | IQM (95 % interval) | paper's total |",
        "|---|---|---|---|---|",
    ]
    for (label, schedule), by_dataset in rows.items():
        chosen = [by_dataset[dataset] for dataset in sorted(common)]
        scores = [scores_of(configuration) for configuration in chosen]
        known = [published(c.method, c.dataset) for c in chosen]
        paper = "-"
        if all(number is not None for number in known):
            same = all(number.same_data for number in known if number)
            paper = f"{sum(number.score for number in known if number):.1f}"
            paper += "" if same else " (other data)"
        count = sum(map(len, scores))
        lines.append(
            f"| {label}, `{schedule}` | {count} | **{total_text(scores)}** | {iqm_text(scores)} | "
            f"{paper} |"
        )
    return lines


def notes(found: Sequence[Configuration]) -> list[str]:
    """What a reader of the table must know about its rows."""
    runs = [run for configuration in found for run in configuration.runs]
    lines = []
    if any(len(configuration.runs) > 1 for configuration in found):
        lines.append(
            "+-: population standard deviation of a row's n runs (divided by n, not by n - 1); "
            "the paper's as published."
        )
    diverged = [run for run in runs if run.results["diverged"]]
    if scored := sum(run.scored for run in diverged):
        lines.append(f"{scored} of {len(runs)} runs diverged and count as 0.")
    if unscored := len(diverged) - scored:
        lines.append(
            f"{unscored} of {len(runs)} runs diverged on data without reference scores, where a "
            "return of 0 may be a high one: the mean returns leave them out."
        )
    twice = [
        f"{c.label} on {c.dataset}"
        for c in found
        if len({run.results["seed"] for run in c.runs}) < len(c.runs)
    ]
    if twice:
        lines.append(f"A seed occurs more than once: {'; '.join(twice)}.")
    before = {run.method for run in runs if CORRECTED.get(run.method, "seed") not in run.results}
    if before:
        lines.append(
            f"{' and '.join(sorted(before))}: from before a correction (MOPO's penalty was too "
            "small, COMBO's target held SAC's entropy), to be run again."
        )
    numbers = [published(c.method, c.dataset) for c in found]
    if any(numbers):
        text = f"paper: {SOURCE}."
        if any(number is not None and not number.same_data for number in numbers):
            text += (
                " Where it says other data, the data set here is of the same kind but not the "
                "same, and so is the simulator: the two numbers do not compare."
            )
        lines.append(text)
    return [part for line in lines for part in ("", line)]
