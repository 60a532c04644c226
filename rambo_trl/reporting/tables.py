"""A report's tables: scores or returns, totals, and notes on how to read them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rambo_trl.reporting.paper import ABLATION, RAMBO, SOURCE, published
from rambo_trl.reporting.runs import Configuration
from rambo_trl.runtime.numbers import format_value

#: methods whose computation was corrected: what results.json says since then
CORRECTED = {"MOPO": "penalty_units", "COMBO": "deterministic_backup"}
#: of ``results.csv``
COLUMNS = (
    "method", "dataset", "schedule", "settings", "seed", "epochs", "agent_updates",
    "model_updates", "behaviour_score", "behaviour_score_best", "cloned_score", "score",
    "return_mean", "diverged", "minutes",
)  # fmt: skip
#: keys of results.json: the data's mean and best episode and the cloned policy
SCORE_KEYS = ("behaviour_score", "behaviour_score_best", "cloned_score")
RETURN_KEYS = ("behaviour_return_mean", "behaviour_return_best", "cloned_return_mean")
Format = Callable[[float], str]
#: bootstrap samples; the intervals' ends then repeat to a few tenths of a per cent
RESAMPLES = 5000


def interquartile_mean(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of the middle half, the lowest and the highest quarter left out.

    Of three scores or fewer nothing can be left out: it is then the mean.

    Args:
        scores: any shape.
        axis: along which; all of them by default.

    Reference: https://arxiv.org/abs/2108.13264, sec. 4.3
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def iqm_interval(
    scores: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the interquartile mean of all scores, by stratified bootstrap.

    Each sample draws, with replacement and within each task, as many runs as the task has.

    Args:
        scores: the runs' scores, task by task; numbers of runs may differ.

    Keyword Args:
        level: probability that the interval is to have.
        seed: of the bootstrap.

    Returns:
        Its ends; None if a task has a single run, whose spread is not known.

    Reference: https://arxiv.org/abs/2108.13264, sec. 4.1
    """
    if not scores or min(map(len, scores)) < 2:
        return None
    result = stats.bootstrap(
        [np.asarray(task, dtype=float) for task in scores],
        lambda *tasks, axis: interquartile_mean(np.concatenate(tasks, axis=axis), axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def one_decimal(value: float) -> str:
    """A score, or a number of minutes."""
    return f"{value:.1f}"


def formatter(configuration: Configuration) -> Format:
    """Formats a score, or a return, which may be of any size."""
    return one_decimal if configuration.scored else format_value


def spread(values: Iterable[float | None], form: Format = one_decimal) -> str:
    """Mean and standard deviation (divided by n, not n - 1), as text."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return "-"
    return form(known.mean()) + (f" +- {form(known.std())}" if known.size > 1 else "")


def iqm_text(values: Sequence[Sequence[float]], form: Format = one_decimal) -> str:
    """Interquartile mean and interval of some tasks' scores or returns, as text."""
    if not any(values):
        return "-"
    interval = iqm_interval(values)
    ends = "one seed" if interval is None else f"{form(interval[0])} to {form(interval[1])}"
    return f"{form(float(interquartile_mean(np.concatenate(values))))} ({ends})"


def value_text(configuration: Configuration) -> str:
    """The score; or the return, and how many have none because they diverged."""
    text = "-"
    if configuration.values:
        text = f"**{spread(configuration.values, formatter(configuration))}**"
    diverged = sum(run.diverged for run in configuration.runs)
    if diverged and not configuration.scored:
        count = f"{diverged} of {len(configuration.runs)} diverged"
        text = count if text == "-" else f"{text}, {count}"
    return text


def paper_text(configuration: Configuration) -> str:
    """The paper's number, marked where its data set is another one."""
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


def markdown(
    columns: Sequence[str], rows: Sequence[Sequence[str]], intro: str | None = None
) -> list[str]:
    """The lines of a Markdown table, whatever its cells hold; with an intro none without rows."""
    if intro is not None:
        return ["", intro, "", *markdown(columns, rows)] if rows else []
    head, *body = (
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in (columns, *rows)
    )
    return [head, "|" + "---|" * len(columns), *body]


def name_cells(configuration: Configuration) -> list[str]:
    """Data set and method."""
    label = f"{configuration.label}, `{configuration.schedule}`"
    return [f"`{configuration.dataset}`", label]


def value_tables(configurations: Sequence[Configuration]) -> list[str]:
    """One row a configuration, in separate tables for data sets with and without scores."""
    scored = [c for c in configurations if c.scored]
    unscored = [c for c in configurations if not c.scored]
    lines = _value_table(scored, "score", SCORE_KEYS) if scored else []
    if unscored:
        lines += [*([""] if lines else []), *_value_table(unscored, "return", RETURN_KEYS)]
    return lines + _expectation_table([c for c in configurations if not c.values])


def _value_table(
    configurations: Sequence[Configuration], what: str, keys: Sequence[str]
) -> list[str]:
    mean, best, cloned = keys
    columns = [
        "data set", "method", "seeds", "epochs", "data's mean", "data's best", "cloned", what,
        "IQM (95 % interval)", *(["paper"] if what == "score" else []),  # it has scores only
        f"{what} by seed", "minutes a run",
    ]  # fmt: skip
    rows = []
    for c in configurations:
        results, form = [run.results for run in c.runs], formatter(c)
        rows.append(
            [
                *name_cells(c),
                str(len(results)),
                c.epochs,
                spread([results[0].get(mean)], form),
                spread([results[0].get(best)], form),
                spread((result.get(cloned) for result in results), form),
                value_text(c),
                iqm_text([c.values], form),
                *([paper_text(c)] if what == "score" else []),
                ", ".join("-" if v is None else form(v) for v in c.by_run),
                spread(run.minutes for run in c.runs),
            ]
        )
    return markdown(columns, rows)


def _expectation_table(configurations: Sequence[Configuration]) -> list[str]:
    """What the critics expect where nothing was evaluated; nothing where it is not recorded."""
    rows = []
    for c in configurations:
        known = [run.results.get("sanity") or {} for run in c.runs]
        if any(sanity.get("mean_q") is not None for sanity in known):
            logged = known[0].get("logged_discounted_return") or {}
            expected = [[s.get(key) for s in known] for key in ("mean_q", "start_value")]
            expected += [[logged.get(key)] for key in ("mean", "best")]
            rows.append([*name_cells(c), *(spread(values, format_value) for values in expected)])
    intro = (
        "Not evaluated: what the critics expect, beside the discounted returns of the logged "
        "episodes, truncated ones as if they went on."
    )
    columns = ["data set", "method", "mean Q", "value at the start", "logged return, mean", "best"]
    return markdown(columns, rows, intro)


def totals(configurations: Sequence[Configuration]) -> list[str]:
    """Each method over the data sets that all methods have; nothing where there is one only.

    Where the paper's lambda is 0, RAMBO's runs are the ablation's as well.
    """
    groups: dict[tuple[str, str], dict[str, Configuration]] = {}
    for c in configurations:
        if c.scored and c.values:
            groups.setdefault((c.label, c.schedule), {})[c.dataset] = c
    shared: set[str] = set()
    for c in configurations:
        if c.method == RAMBO and c.scored and c.values:
            ablation = replace(c, method=ABLATION)
            without = groups.get((ablation.label, ablation.schedule))
            if without and c.runs[0].results.get("adversarial_weight") == 0:
                without.setdefault(c.dataset, ablation)
                shared.add(c.dataset)
    common = sorted(set.intersection(*map(set, groups.values()))) if groups else []
    if len(common) < 2:
        return []
    intro = f"Over the {len(common)} data sets that all of them have: {', '.join(common)}."
    if both := len(shared.intersection(common)):
        intro += f" On {both} of them the paper's lambda is 0: RAMBO is its own ablation there."
    rows = []
    for (label, schedule), by_dataset in groups.items():
        chosen = [by_dataset[dataset] for dataset in common]
        scores = [c.values for c in chosen]
        known = [n for c in chosen if (n := published(c.method, c.dataset)) is not None]
        paper = "-"
        if len(known) == len(chosen):
            other = "" if all(n.same_data for n in known) else " (other data)"
            paper = f"{sum(n.score for n in known):.1f}{other}"
        total = f"**{total_text(scores)}**"
        name, count = f"{label}, `{schedule}`", str(sum(map(len, scores)))
        rows.append([name, count, total, iqm_text(scores), paper])
    columns = ["method", "runs", "total", "IQM (95 % interval)", "paper's total"]
    return markdown(columns, rows, intro)


def notes(configurations: Sequence[Configuration]) -> list[str]:
    """What a reader of the table must know about its rows."""
    runs = [run for c in configurations for run in c.runs]
    lines = []
    if any(len(c.runs) > 1 for c in configurations):
        lines.append(
            "+-: population standard deviation of a row's n runs (divided by n, not by n - 1); "
            "the paper's as published."
        )
    diverged = [run for run in runs if run.diverged]
    if scored := sum(run.scored for run in diverged):
        lines.append(f"{scored} of {len(runs)} runs diverged and count as 0.")
    if unscored := len(diverged) - scored:
        lines.append(
            f"{unscored} of {len(runs)} runs diverged on data without reference scores, where a "
            "return of 0 may be a high one: the returns leave them out."
        )
    twice = [
        f"{c.label} on {c.dataset}"
        for c in configurations
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
    numbers = [published(c.method, c.dataset) for c in configurations if c.scored]
    if any(numbers):
        text = f"paper: {SOURCE}."
        if any(number is not None and not number.same_data for number in numbers):
            text += (
                " Where it says other data, the data set here is of the same kind but not the "
                "same, and so is the simulator: the two numbers do not compare."
            )
        lines.append(text)
    return [part for line in lines for part in ("", line)]


def write_results(configurations: Sequence[Configuration], path: Path) -> None:
    """Write ``results.csv``: one row a run."""
    rows = [
        {
            **run.results,
            "method": run.method,
            "settings": _settings_text(c),
            "score": run.score,
            "return_mean": run.mean_return,
            "minutes": run.minutes,
        }
        for c in configurations
        for run in c.runs
    ]
    _write_csv(path, COLUMNS, rows)


def write_summary(configurations: Sequence[Configuration], path: Path) -> None:
    """Write ``table.csv``: one row a configuration, the table's numbers."""
    rows = []
    for c in configurations:
        paper = published(c.method, c.dataset)
        rows.append(
            {
                "dataset": c.dataset,
                "method": c.method,
                "schedule": c.schedule,
                "settings": _settings_text(c),
                "seeds": len(c.runs),
                "diverged": sum(run.diverged for run in c.runs),
                **_aggregates("score", [run.score for run in c.runs]),
                **_aggregates("return", [run.mean_return for run in c.runs]),
                "paper_score": paper and paper.score,
                "paper_std": paper and paper.std,
                "paper_same_data": paper and paper.same_data,
            }
        )
    _write_csv(path, list(rows[0]), rows)


def _aggregates(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, deviation and interquartile mean with its interval, without runs that have none."""
    known = [value for value in values if value is not None]
    low, high = iqm_interval([known]) or (None, None)
    return {
        f"{name}_mean": float(np.mean(known)) if known else None,
        f"{name}_std": float(np.std(known)) if len(known) > 1 else None,
        f"{name}_iqm": float(interquartile_mean(np.array(known))) if known else None,
        f"{name}_iqm_low": low,
        f"{name}_iqm_high": high,
    }


def _settings_text(configuration: Configuration) -> str:
    return " ".join(f"{key}={value}" for key, value in configuration.differs.items())


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
