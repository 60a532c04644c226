"""What a policy is worth, as a section of the report's page."""

from __future__ import annotations

from rambo_trl.reporting.offline_values import Estimate, OfflineValues, verdict
from rambo_trl.reporting.tables import markdown

__all__ = ["METHODS", "WHOSE", "value_section"]

#: what a reader calls a way to estimate values, and whose they are
METHODS = {
    "fqe": "fitted Q evaluation",
    "logged": "the logged returns themselves",
    "doubly_robust": "weighted log (doubly robust)",
    "model": "rollouts in the fitted model",
    "adversarial_model": "rollouts in the adversarial model (pessimistic)",
}
WHOSE = {
    "policy": "the policy",
    "clone": "the clone that it began with",
    "behaviour": "the logged controller",
}


def value_section(values: OfflineValues) -> list[str]:
    """The lines of the section.

    Args:
        values: the estimates.
    """
    judged = verdict(values)
    reasons = [f"- {reason}" for reason in judged.reasons]
    if reasons:
        reasons = ["", "Why it cannot be told:", "", *reasons]
    methods = [m for m in METHODS if any(m in found for found in values.values.values())]
    horizon = "" if values.gamma >= 1 else f", about {1 / (1 - values.gamma):.0f} steps"
    held_out = values.held_out
    return [
        "## What the policy is worth",
        "",
        f"The value of a controller is its discounted return: the sum of rewards from the start of "
        f"an episode, where a reward a step later counts {values.gamma:g} times as much (so that "
        f"what counts is what lies ahead{horizon}). Each estimate is for the start states of "
        f"{held_out['held_out']} of {held_out['episodes']} logged episodes (or pieces of one), "
        f"which were set aside, with its {100 * values.confidence:g} % interval.",
        "",
        *_table("", {WHOSE[k]: found for k, found in values.values.items()}, values, methods),
        "",
        "The policy's advantage, by the same start states and so with less noise than the "
        "difference of two rows above:",
        "",
        *_table(
            "over",
            {WHOSE[key.split(" - ")[1]]: found for key, found in values.differences.items()},
            values,
            [m for m in methods if any(m in found for found in values.differences.values())],
        ),
        "",
        "![Values and differences with their intervals](values.png)",
        *reasons,
        "",
        "What the intervals assume:",
        "",
        *[f"- {assumption}" for assumption in values.assumptions],
        "",
        *_on_checks(values),
    ]


def _table(
    head: str,
    groups: dict[str, object],
    values: OfflineValues,
    methods: list[str],
) -> list[str]:
    rows = []
    for name, found in groups.items():
        assert isinstance(found, dict)
        rows.append([name, *(_cell(found.get(method)) for method in methods)])
    return markdown([head, *(METHODS[method] for method in methods)], rows)


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def _on_checks(values: OfflineValues) -> list[str]:
    """How far estimators are off where the truth is known, and what there is no estimate by."""
    lines = []
    for key, name in (("behaviour_gap_fqe", "fqe"), ("behaviour_gap_model", "model")):
        if (gap := values.checks.get(key)) is not None:
            lines.append(
                "- Where the truth is known, on the logged controller, the error by "
                f"{METHODS[name]} is {gap[0]:.4g} ({gap[1]:.4g} to {gap[2]:.4g}); logged returns "
                f"have a standard deviation of {values.value_std:.4g}."
            )
    lines += [
        f"- No estimate by {METHODS[method]}: {reason}."
        for method, reason in values.left_out.items()
        if method in METHODS
    ]
    return ["What was checked:", "", *lines] if lines else []
