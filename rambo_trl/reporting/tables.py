"""A report's tables: scores or returns, totals, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.reporting.paper import ABLATION, RAMBO, SOURCE, published
from rambo_trl.reporting.runs import Configuration
from rambo_trl.reporting.statistics import interquartile_mean, iqm_interval

#: methods whose computation was corrected: what results.json says since then
CORRECTED = {"MOPO": "penalty_units", "COMBO": "deterministic_backup"}
Format = Callable[[float], str]


def scores_of(configuration: Configuration) -> list[float]:
    """The runs' scores, without runs that have none."""
    return [run.score for run in configuration.runs if run.score is not None]


def one_decimal(value: float) -> str:
    """A score, or a number of minutes."""
    return f"{value:.1f}"


def formatter(configuration: Configuration) -> Format:
    """How its scores are written, or its returns, whose size nobody knows beforehand."""
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
    form = formatter(configuration)
    text = f"**{spread(configuration.values, form)}**" if configuration.values else "-"
    diverged = sum(bool(run.results["diverged"]) for run in configuration.runs)
    if diverged and not configuration.scored:
        count = f"{diverged} of {len(configuration.runs)} diverged"
        text = count if text == "-" else f"{text}, {count}"
    return text


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


def value_tables(found: Sequence[Configuration]) -> list[str]:
    """One row a configuration, and a table of its own for what has returns but no scores."""
    scored = [c for c in found if c.scored]
    unscored = [c for c in found if not c.scored]
    lines = _value_table(scored, "score") if scored else []
    if unscored:
        lines += [*([""] if lines else []), *_value_table(unscored, "return")]
    return lines + _expectation_table([c for c in found if not c.values])


def _value_table(found: Sequence[Configuration], what: str) -> list[str]:
    """One row a configuration; what is ``"score"`` or ``"return"``."""
    mean, best, cloned = (
        ("behaviour_score", "behaviour_score_best", "cloned_score")
        if what == "score"
        else ("behaviour_return_mean", "behaviour_return_best", "cloned_return_mean")
    )
    paper = ["paper"] if what == "score" else []  # it has scores only
    columns = [
        "data set", "method", "seeds", "epochs", "data's mean", "data's best", "cloned", what,
        "IQM (95 % interval)", *paper, f"{what} by seed", "minutes a run",
    ]  # fmt: skip
    lines = [table_row(columns), "|" + "---|" * len(columns)]
    for configuration in found:
        results = [run.results for run in configuration.runs]
        epochs, form = sorted({r["epochs"] for r in results}), formatter(configuration)
        cells = [
            f"`{configuration.dataset}`",
            f"{configuration.label}, `{configuration.schedule}`",
            str(len(results)),
            str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            spread([results[0].get(mean)], form),
            spread([results[0].get(best)], form),
            spread((result.get(cloned) for result in results), form),
            value_text(configuration),
            iqm_text([configuration.values], form),
            *([paper_text(configuration)] if paper else []),
            ", ".join("-" if v is None else form(v) for v in configuration.by_run),
            spread(run.minutes for run in configuration.runs),
        ]
        lines.append(table_row(cells))
    return lines


def _expectation_table(found: Sequence[Configuration]) -> list[str]:
    """What the critics expect where nothing was evaluated; nothing where none says so."""
    columns = [
        "data set", "method", "mean Q", "value at the start", "logged return, mean", "best",
    ]  # fmt: skip
    lines = []
    for configuration in found:
        known = [run.results.get("sanity") or {} for run in configuration.runs]
        if any(sanity.get("mean_q") is not None for sanity in known):
            logged = known[0].get("logged_discounted_return") or {}
            cells = [
                f"`{configuration.dataset}`",
                f"{configuration.label}, `{configuration.schedule}`",
                *(
                    spread((s.get(k) for s in known), format_value)
                    for k in ("mean_q", "start_value")
                ),
                *(spread([logged.get(key)], format_value) for key in ("mean", "best")),
            ]
            lines.append(table_row(cells))
    if not lines:
        return []
    intro = (
        "Not evaluated: what the critics expect, beside the discounted returns of the logged "
        "episodes, truncated ones as if they went on."
    )
    return ["", intro, "", table_row(columns), "|" + "---|" * len(columns), *lines]


def table_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table, whatever a cell holds."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


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
            "return of 0 may be a high one: the returns leave them out."
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
    numbers = [published(c.method, c.dataset) for c in found if c.scored]
    if any(numbers):
        text = f"paper: {SOURCE}."
        if any(number is not None and not number.same_data for number in numbers):
            text += (
                " Where it says other data, the data set here is of the same kind but not the "
                "same, and so is the simulator: the two numbers do not compare."
            )
        lines.append(text)
    return [part for line in lines for part in ("", line)]
