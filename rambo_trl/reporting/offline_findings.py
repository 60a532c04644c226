"""What a report on a run without its environment found, each in a sentence that a reader acts on.

The limits are rules of thumb; the numbers that they are held against stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rambo_trl.data.columns import listed

__all__ = ["Finding", "find"]

#: of the model's error over that of no change: hardly better
_HARDLY_BETTER = 0.9
#: coverage of a 90 % interval: a column is too sure of itself, the model is
_SURE, _MUCH_TOO_SURE = 0.8, 0.7
#: shares of a policy's actions
_OUTSIDE, _FAR_OUTSIDE, _AT_LIMIT = 0.01, 0.1, 0.2
#: times the logged controller's change a step
_BUSY, _MUCH_TOO_BUSY = 2.0, 4.0
#: shares of actions and states that are unlike any logged one, where 1 % of the log's own are
_UNLIKE, _MOSTLY_UNLIKE = 0.1, 0.4


Level = Literal["fine", "look", "warning"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: ``"fine"``, ``"look"`` where a human should judge, ``"warning"`` where it speaks
            against use of the policy or trust in the report.
        text: a sentence without a full stop.
    """

    level: Level
    text: str


def percent(share: float) -> str:
    """A share as text, with as many digits as it needs.

    Examples:
        >>> [percent(x) for x in (0.0, 0.0004, 0.0321, 0.456, 1.0)]
        ['0 %', '0.04 %', '3.2 %', '46 %', '100 %']
    """
    value = 100 * share
    digits = 0 if value == 0 or value >= 10 else 1 if value >= 1 else 2
    return f"{value:.{digits}f} %"


def _level(value: float, look: float, warning: float) -> Level:
    return "warning" if value > warning else "look" if value > look else "fine"


def _names(names: Sequence[str], which: np.ndarray) -> str:
    return listed([name for name, chosen in zip(names, which, strict=True) if chosen])


def find(
    actions: Mapping[str, Any], support: Mapping[str, Any], model: Mapping[str, Any] | None
) -> list[Finding]:
    """The findings, those on the policy first.

    Args:
        actions: what :func:`~rambo_trl.reporting.policy_support.action_use` returns.
        support: what :func:`~rambo_trl.reporting.policy_support.distance_from_data` returns.
        model: ``one_step``, ``k_step`` and ``calibration``, what the functions of
            :mod:`rambo_trl.reporting.model_accuracy` return; None for a run without a model.
    """
    findings = [*_on_actions(actions), *_on_support(support, actions)]
    return findings if model is None else [*findings, *_on_model(model)]


def _on_actions(actions: Mapping[str, Any]) -> list[Finding]:
    names = actions["names"]
    outside, limit, logged_limit, change, logged_change = (
        np.array(actions[key])
        for key in ("outside", "at_limit", "logged_at_limit", "change", "logged_change")
    )
    findings = []
    beyond = outside > _OUTSIDE
    text = "its actions stay within the range that was logged"
    if beyond.any():
        text = (
            f"up to {percent(outside.max())} of its actions lie outside of the range that was "
            f"logged, where nothing is known of their effect: {_names(names, beyond)}"
        )
    findings.append(Finding(_level(outside.max(), _OUTSIDE, _FAR_OUTSIDE), text))
    often = (limit > _AT_LIMIT) & (limit > 2 * logged_limit)
    if often.any():
        findings.append(
            Finding(
                "look",
                f"it holds {_names(names, often)} at a limit in up to {percent(limit.max())} of "
                f"the steps, the logged controller in {percent(logged_limit[limit.argmax()])}",
            )
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(change > 0, change / logged_change, 0.0)
    busy = ratio > _BUSY
    text = f"it moves its actions {_times(np.median(ratio))} as much in a step as the log"
    if busy.any():
        text = (
            f"it moves {_names(names, busy)} up to {_times(ratio.max())} as much in a step as the "
            "logged controller: mind the wear, or limit the rate"
        )
    findings.append(Finding(_level(ratio.max(), _BUSY, _MUCH_TOO_BUSY), text))
    return findings


def _times(ratio: float) -> str:
    if not np.isfinite(ratio):
        return "infinitely many times"
    return f"{ratio:.2g} times"


def _on_support(support: Mapping[str, Any], actions: Mapping[str, Any]) -> list[Finding]:
    far = support["actions"]
    findings = [
        Finding(
            _level(far, _UNLIKE, _MOSTLY_UNLIKE),
            f"in {percent(far)} of the logged states its action is unlike any that was logged in "
            "such a state (1 % of the logged controller's own are)",
        )
    ]
    if "states" in support:
        far = support["states"]
        text = (
            f"{percent(far)} of the states that it gets into, as the model has it, are unlike any "
            "logged one (1 % of the log's own are)"
        )
        if far > _UNLIKE:
            text += f", above all in {_blamed(support)}"
        findings.append(Finding(_level(far, _UNLIKE, _MOSTLY_UNLIKE), text))
    return findings


def _blamed(support: Mapping[str, Any]) -> str:
    """The columns that make up most of the distance of far states."""
    shares = np.array(support["columns"])
    order = np.argsort(-shares, kind="stable")
    enough = int(np.searchsorted(np.cumsum(shares[order]), 0.5)) + 1
    return listed([support["names"][i] for i in order[: min(enough, 3)]])


def _on_model(model: Mapping[str, Any]) -> list[Finding]:
    one_step, k_step = model["one_step"], model["k_step"]
    names, (error, still) = (
        one_step["columns"],
        (np.array(one_step[key], dtype=float) for key in ("relative", "no_change")),
    )
    varies = np.isfinite(error)
    if not varies.any():
        return []
    ratio = np.where(varies, error / np.maximum(still, 1e-12), np.nan)
    poor = ratio > _HARDLY_BETTER
    middle = float(np.nanmedian(ratio))
    text = f"one step ahead the model's error is {_fraction(middle)} that of assuming no change"
    if poor.any():
        text += f"; it knows hardly more than that of {_names(names, poor)}"
    level: Level = "warning" if middle > _HARDLY_BETTER else "look" if poor.any() else "fine"
    findings = [Finding(level, text)]
    if k_step is not None:
        findings.append(_on_steps(k_step, varies))
    coverage = np.array(model["calibration"]["coverage"], dtype=float)
    at_90 = coverage[model["calibration"]["levels"].index(0.9)]
    sure, middle = at_90 < _SURE, float(np.nanmedian(at_90))
    text = f"its 90 % intervals hold {percent(middle)} of what happened (median column)"
    if sure.any():
        text += f"; it is too sure of itself on {_names(names, sure)}"
    level = "warning" if middle < _MUCH_TOO_SURE else "look" if sure.any() else "fine"
    return [*findings, Finding(level, text)]


def _on_steps(k_step: Mapping[str, Any], varies: np.ndarray) -> Finding:
    last, still = (
        np.array(k_step[key][-1], dtype=float)[varies] for key in ("relative", "no_change")
    )
    if not np.isfinite(last).all():
        return Finding(
            "warning", f"forecasts of {k_step['steps'][-1]} steps explode: do not believe long ones"
        )
    ratio = float(np.median(last / np.maximum(still, 1e-12)))
    text = (
        f"{k_step['steps'][-1]} steps ahead its error is {np.median(last):.2g} standard deviations "
        f"of a column (median), {_fraction(ratio)} that of assuming no change"
    )
    return Finding("warning" if ratio > 1 else "look" if ratio > _HARDLY_BETTER else "fine", text)


def _fraction(ratio: float) -> str:
    return f"{ratio:.2g} times"
