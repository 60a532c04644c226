"""A report on one run as a page: Markdown and figures, written into a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rambo_trl.experiment.folder import write_atomically
from rambo_trl.reporting.offline_figures import (
    draw_actions,
    draw_calibration,
    draw_distance,
    draw_model_error,
    draw_values,
    worst_columns,
)
from rambo_trl.reporting.offline_findings import Finding, percent
from rambo_trl.reporting.offline_value_section import value_section
from rambo_trl.reporting.offline_values import verdict
from rambo_trl.reporting.tables import markdown

__all__ = ["PAGE", "write_page"]

#: the page and its numbers, in the report's folder
PAGE, NUMBERS = "index.md", "report.json"
_MARKS = {"fine": "fine", "look": "**look**", "warning": "**WARNING**"}
#: in the report, for the figures alone
_DRAWN_ONLY = ("policy", "logged")


def write_page(report: Mapping[str, Any], findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Write the page, its figures and ``report.json``; other files of the folder stay.

    Args:
        report: ``title``, ``facts`` (sentences on the run and its data), ``values``
            (:class:`~rambo_trl.reporting.offline_values.OfflineValues`), and what
            :func:`~rambo_trl.reporting.offline_measures.measure_run` returns.
        findings: in the order of the page.
        folder: made where it is missing.

    Returns:
        The files written, the page first.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Any], None]] = {
        "values.png": lambda file: draw_values(report["values"], file),
        "actions.png": lambda file: draw_actions(report["actions"], file),
    }
    if "by_step" in report["support"]:
        drawings["distance.png"] = lambda file: draw_distance(report["support"], file)
    if report["model"] is not None:
        drawings["model_error.png"] = lambda file: draw_model_error(report["model"], file)
        drawings["calibration.png"] = lambda file: draw_calibration(report["model"], file)
    for name, draw in drawings.items():
        file = io.BytesIO()
        draw(file)
        write_atomically(folder / name, file.getvalue())
    for name in _FIGURES - drawings.keys():  # an earlier report's, of other settings
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / NUMBERS, _numbers(report, findings))
    text = "\n".join(_page(report, findings)) + "\n"
    write_atomically(folder / PAGE, text.encode())
    return [folder / name for name in (PAGE, NUMBERS, *drawings)]


_FIGURES = frozenset(
    f"{name}.png" for name in ("actions", "distance", "model_error", "calibration", "values")
)


def _numbers(report: Mapping[str, Any], findings: Sequence[Finding]) -> bytes:
    """What was measured as JSON; what is not finite becomes null."""
    numbers = {
        "title": report["title"],
        "facts": report["facts"],
        "verdict": asdict(verdict(report["values"])),
        "actions": {k: v for k, v in report["actions"].items() if k not in _DRAWN_ONLY},
        "support": report["support"],
        "model": report["model"],
        "findings": [vars(finding) for finding in findings],
    }
    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=1) + "\n").encode()


def _page(report: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    judged = verdict(report["values"])
    warnings = sum(finding.level == "warning" for finding in findings)
    warned = [">", f"> Warnings below, whatever the verdict: **{warnings}**."] if warnings else []
    return [
        f"# Offline report: {report['title']}",
        "",
        f"> **Verdict: {judged.sentence}.**",
        ">",
        f"> What would settle it: {'; '.join(judged.would_settle)}.",
        *warned,
        "",
        *report["facts"],
        "",
        "## In short",
        "",
        *markdown(["", "finding"], [[_MARKS[f.level], f.text] for f in findings]),
        "",
        *value_section(report["values"]),
        "",
        *_on_actions(report["actions"]),
        "",
        *_on_support(report["support"]),
        "",
        *_on_model(report["model"]),
    ]


def _number(value: float | None) -> str:
    return (
        "-"
        if value is None or not np.isfinite(value)
        else f"{value:.{4 if abs(value) >= 1000 else 3}g}"
    )


def _on_actions(actions: Mapping[str, Any]) -> list[str]:
    rows = []
    for i, name in enumerate(actions["names"]):
        ranges = [
            f"{_number(actions[low][i])} to {_number(actions[high][i])}"
            for low, high in (("low", "high"), ("logged_low", "logged_high"))
        ]
        shares = [
            percent(actions[key][i]) for key in ("outside", "rare", "at_limit", "logged_at_limit")
        ]
        changes = [_number(actions[key][i]) for key in ("change", "logged_change", "difference")]
        rows.append([f"`{name}`", *ranges, *shares, *changes])
    columns = [
        "action", "limits", "logged", "policy outside of the logged range",
        "policy in the logged outer 2 %", "policy at a limit", "log at a limit",
        "policy's change a step", "log's change a step", "mean difference from the log",
    ]  # fmt: skip
    return [
        "## What it does with the actions",
        "",
        f"The policy was asked in {actions['rows']} logged states, one after another, and its "
        "actions stand beside those that were logged there. Ranges, changes and differences are "
        "in the action's own unit.",
        "",
        *markdown(columns, rows),
        "",
        "![How often each value of an action is used](actions.png)",
        "",
        "Outside of the logged range nobody knows what an action does; near the edge little is "
        "known. A policy that moves its actions more than the log did wears the plant; the log's "
        "own changes include whatever it was excited with.",
    ]


def _on_support(support: Mapping[str, Any]) -> list[str]:
    lines = [
        "## How far from the data it goes",
        "",
        f"An action or a state counts as unlike the data where the nearest of {support['logged']} "
        "logged ones is farther away, in standard deviations of the columns, than it is for 99 % "
        f"of {support['own']} rows of other logged episodes: 1 % of the log's own are.",
        "",
        f"- In **{percent(support['actions'])}** of the logged states the policy's action is "
        "unlike any logged in such a state.",
    ]
    if "states" not in support:
        return [
            *lines,
            "- The method has no model of the process, so the states that the policy would get "
            "into are not known.",
        ]
    order = np.argsort(-np.array(support["columns"]), kind="stable")[:5]
    shares = [f"`{support['names'][i]}` {percent(support['columns'][i])}" for i in order]
    lines.append(
        f"- Of the states that it gets into **{percent(support['states'])}** are unlike any logged "
        f"one, in {support['rollouts']} rollouts of the model as it was fitted, over "
        f"{support['horizon']} steps from the starts of logged episodes."
    )
    if support["states"] > 0:
        lines.append(f"- Where they are, that is due to: {', '.join(shares)}.")
    return [
        *lines,
        "",
        "![Share of states unlike any logged one by step](distance.png)",
        "",
        "Far from the data the model's forecasts and the values above are guesses. A share that "
        "grows with the steps is the policy leaving the data, or the model's errors adding up: "
        "compare it with the model's error below.",
    ]


def _on_model(model: Mapping[str, Any] | None) -> list[str]:
    if model is None:
        return [
            "## The model",
            "",
            "The method learns from the data without a model of the process: there is none to "
            "check.",
        ]
    one_step, k_step, spread = (model[key] for key in ("one_step", "k_step", "calibration"))
    at_90 = spread["coverage"][spread["levels"].index(0.9)]
    shown, rows = worst_columns(model), []
    for i in shown:
        cells = [one_step["std"][i], one_step["error"][i]]
        cells += [one_step[key][i] for key in ("relative", "no_change")]
        if k_step is not None:
            cells += [k_step[key][-1][i] for key in ("relative", "no_change")]
        rows.append([f"`{one_step['columns'][i]}`", *map(_number, cells), percent(at_90[i])])
    columns = ["column", "standard deviation", "error of one step", "in standard deviations",
               "no change"]  # fmt: skip
    if k_step is not None:
        columns += [f"{k_step['steps'][-1]} steps ahead", "no change"]
    columns.append("log within its 90 % interval")
    left_out = len(one_step["columns"]) - len(shown)
    lines = [
        "## How well the model knows the process",
        "",
        f"One step ahead: {one_step['where']}. The first two numbers are in the column's own unit, "
        "the others in its standard deviations, beside the forecast that nothing changes. Errors "
        "are root mean squares.",
        "",
        *markdown(columns, rows),
    ]
    if left_out:
        lines += [
            "",
            f"{left_out} columns that vary too little or that the model knows better are left out "
            f"here; all are in `{NUMBERS}`.",
        ]
    lines += ["", "![The model's error by column and by steps ahead](model_error.png)", ""]
    lines += _on_k_step(k_step)
    lines += [
        "",
        "![Coverage of the model's intervals, and its spread against its error](calibration.png)",
        "",
        "On the left, how often the logged value lies within the interval that the model gives it "
        "with 90 % probability. On the right, groups of forecasts from those that the model is "
        "surest of to those that it is least sure of: points on the dashed line err as much as "
        "they say.",
    ]
    after, before = (np.array(one_step[key], dtype=float) for key in ("after_training", "relative"))
    if not np.array_equal(after, before, equal_nan=True):
        ratio = float(np.nanmedian(after / before))
        lines += [
            "",
            f"The policy was trained in this model after an adversary had changed it: its error on "
            f"the same rows is then {ratio:.2g} times as large (median column). It is meant to be "
            "pessimistic away from the data, so what is judged here is the model as it was fitted.",
        ]
    return lines


def _on_k_step(k_step: Mapping[str, Any] | None) -> list[str]:
    if k_step is None:
        return ["No logged episode is long enough to judge forecasts of several steps."]
    seen = "validation episodes, from which the fit did not learn."
    if not k_step["unseen"]:
        seen = "logged episodes. The fit has learnt from most of their rows"
        ratio = k_step["seen_ratio"]
        seen += (
            f"; that matters little if its squared error on held-out rows is not much larger: it "
            f"is {ratio:.2g} times that on these."
            if ratio is not None
            else "."
        )
    coverage = ", ".join(
        f"{percent(share)} after {step}"
        for step, share in zip(k_step["steps"], k_step["coverage"], strict=True)
    )
    return [
        f"Several steps ahead: {k_step['pieces']} pieces of {seen} The model is given the logged "
        "actions and its own forecasts. Of the log, nine tenths should lie within the interval "
        f"that holds nine tenths of its sampled rollouts; there lie {coverage} steps.",
    ]
