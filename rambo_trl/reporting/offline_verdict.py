"""One plain sentence on whether a policy is better than what logged the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["Verdict", "verdict"]

Label = Literal["better", "not better", "cannot tell"]

#: share of the policy's actions that may be less likely than 99 % of the logged ones
MOST_OUTSIDE = 0.5
#: discounted share of imagined states that may be far outside the data
MOST_IMAGINED_OUTSIDE = 0.2
#: standard deviations of the logged returns: a difference below the first is none, and an estimator
#: that is off by more than the second where the truth is known is not believed
SMALL, WRONG = 0.1, 0.5


class Interval(Protocol):
    """What is read of an :class:`~rambo_trl.reporting.offline_values.Estimate`."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def excludes_zero(self) -> bool: ...


class Values(Protocol):
    """What is read of :class:`~rambo_trl.reporting.offline_values.OfflineValues`."""

    @property
    def confidence(self) -> float: ...
    @property
    def value_std(self) -> float: ...
    @property
    def held_out(self) -> Mapping[str, int]: ...
    @property
    def checks(self) -> Mapping[str, Any]: ...
    @property
    def unsettled(self) -> tuple[str, ...]: ...
    @property
    def left_out(self) -> Mapping[str, str]: ...

    def difference(
        self, versus: Literal["behaviour"], method: Literal["fqe", "doubly_robust", "model"]
    ) -> Interval | None: ...


@dataclass(frozen=True)
class Verdict:
    """Whether the policy is better than the logged behaviour.

    Attributes:
        label: ``"better"``, ``"not better"`` or ``"cannot tell"``.
        sentence: one plain sentence for the user.
        reasons: why it cannot be told; nothing where it can.
        would_settle: what to do to know more, one sentence each.
    """

    label: Label
    sentence: str
    reasons: tuple[str, ...]
    would_settle: tuple[str, ...]


def verdict(values: Values) -> Verdict:
    """Judge a policy by its offline estimates.

    It is called better only where the interval of the paired difference by fitted Q evaluation lies
    above 0, a second estimator of another kind (rollouts in the fitted model, or the doubly robust
    estimate) does not contradict it, and nothing speaks against the estimates: the fit has settled,
    it reproduces the logged returns of held-out episodes, and the data hold actions like the
    policy's. It is called not better where the interval lies below what counts as a difference (a
    tenth of the standard deviation of the logged returns), under the same conditions. Otherwise
    nothing is claimed.

    Args:
        values: what was measured.
    """
    difference = values.difference("behaviour", "fqe")
    reasons = _doubts(values)
    share = f"{values.confidence:.0%} confidence"
    if difference is None:
        reasons.append("there is no estimate by fitted Q evaluation")
    small = SMALL * values.value_std
    second, name = _second_opinion(values)
    if difference is not None:
        above, below = difference.low > 0, difference.high < small
        if not (above or below):
            reasons.append(
                f"the policy's advantage lies between {difference.low:.4g} and "
                f"{difference.high:.4g} ({share}), which includes none and one that matters"
            )
        elif second is not None and (second.high < 0 if above else second.low > small):
            reasons.append(
                f"the estimators contradict each other: fitted Q evaluation says {difference}, "
                f"{name} {second}"
            )
    if reasons or difference is None:
        return Verdict(
            "cannot tell",
            f"cannot tell whether the policy is better than the logged behaviour: {reasons[0]}",
            tuple(reasons),
            _remedies(values),
        )
    under = "if the assumptions below hold"
    if difference.low > 0:
        sentence = (
            f"better than the logged behaviour by {difference.mean:.4g} in discounted return "
            f"({difference.low:.4g} to {difference.high:.4g} with {share}), {under}"
        )
        return Verdict("better", sentence, (), (_TRIAL,))
    what = "worse" if difference.high < 0 else "no better"
    sentence = (
        f"not better: {what} than the logged behaviour, a difference of {difference.mean:.4g} in "
        f"discounted return ({difference.low:.4g} to {difference.high:.4g} with {share}), {under}"
    )
    return Verdict("not better", sentence, (), (_TRIAL,))


_TRIAL = "a short supervised trial of the policy beside the logged controller"


def _second_opinion(values: Values) -> tuple[Interval | None, str]:
    """The difference by the estimator that does not share fitted Q evaluation's errors."""
    robust = values.difference("behaviour", "doubly_robust")
    if robust is not None:
        return robust, "the doubly robust estimate"
    if _model_doubt(values) is None:
        return values.difference("behaviour", "model"), "the fitted model"
    return None, ""


def _model_doubt(values: Values) -> str | None:
    """Why the fitted model's rollouts cannot be a second opinion."""
    if values.difference("behaviour", "model") is None:
        why = values.left_out.get("model")
        return "there is no model to compare with" + (f" ({why})" if why else "")
    outside = values.checks.get("model_share_outside")
    if outside is not None and outside > MOST_IMAGINED_OUTSIDE:
        return (
            f"{outside:.0%} of the states that the model imagines for the policy are far outside "
            "the data"
        )
    gap = values.checks.get("behaviour_gap_model")
    if gap is not None and _off(gap, values.value_std):
        return f"the model is off by {gap[0]:.4g} on the logged behaviour's own value"
    return None


def _off(gap: list[float], value_std: float) -> bool:
    """Whether an estimator misses the logged returns, beyond noise and by what matters."""
    mean, low, high = gap
    return (low > 0 or high < 0) and abs(mean) > WRONG * value_std


def _doubts(values: Values) -> list[str]:
    """Why no estimate should be believed."""
    # the verdict is on policy and behaviour: the clone's value is told beside them
    doubts = [reason for reason in values.unsettled if not reason.startswith("clone: ")]
    outside = values.checks.get("action_share_outside")
    if outside is not None and outside > MOST_OUTSIDE:
        doubts.append(
            f"in {outside:.0%} of the states its action is one that the data hardly ever show"
        )
    gap = values.checks.get("behaviour_gap_fqe")
    if gap is not None and _off(gap, values.value_std):
        doubts.append(
            f"fitted Q evaluation is off by {gap[0]:.4g} on the logged behaviour's own value"
        )
    if _second_opinion(values)[0] is None:
        doubt = _model_doubt(values)
        doubts.append(f"fitted Q evaluation has no second opinion: {doubt}")
    return doubts


def _remedies(values: Values) -> tuple[str, ...]:
    """What would settle it."""
    remedies = []
    outside = values.checks.get("action_share_outside")
    if outside is not None and outside > MOST_OUTSIDE:
        remedies.append(
            "logs with actions like the policy's, or a policy held closer to the data "
            "(agent.anchor_weight)"
        )
    if values.unsettled:
        remedies.append("more updates of fitted Q evaluation")
    if values.difference("behaviour", "model") is None:
        remedies.append("a fitted model of the same data as a second opinion")
    difference = values.difference("behaviour", "fqe")
    if difference is not None and not difference.excludes_zero:
        remedies.append(
            f"more logged episodes: {values.held_out.get('episodes', 0)} leave this interval, "
            "which shrinks with the root of their number"
        )
    return (*remedies, _TRIAL)
