"""What the data say of a policy's value, without a simulator; as JSON in the run folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from rambo_trl.experiment.folder import write_atomically
from rambo_trl.reporting.offline_verdict import Verdict, verdict

__all__ = [
    "OFFLINE_VALUES_FILE",
    "Estimate",
    "Method",
    "OfflineValues",
    "Samples",
    "Verdict",
    "Who",
    "verdict",
]

#: in a run folder
OFFLINE_VALUES_FILE = "offline_values.json"
_FORMAT = 1

#: whose value it is; the behaviour is what logged the data
Who = Literal["policy", "clone", "behaviour"]
#: how it was estimated; ``logged`` are the logged discounted returns themselves
Method = Literal["fqe", "logged", "doubly_robust", "model", "adversarial_model"]


@dataclass(frozen=True)
class Estimate:
    """A discounted return from the data's start states, or a difference of two.

    Attributes:
        mean: in the unit of the data's rewards.
        low: lower end of the interval, at the values' confidence.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(
        cls,
        by_start: ArrayLike,
        by_member: ArrayLike | None = None,
        *,
        confidence: float,
        others: Sequence[tuple[float, int]] = (),
    ) -> Estimate:
        """The mean over start states, with the spread of an ensemble.

        Start states and members are two sources of error, whose variances add: that of the mean
        over start states, and that between members, which are bootstraps of the episodes, or models
        that could each be the true one. The interval is Student's, with the degrees of freedom of
        the source that has fewer.

        Args:
            by_start: estimates [S], by start state.
            by_member: [M] means by member of an ensemble, where there is one.

        Keyword Args:
            confidence: probability that the interval should hold the true value.
            others: variances of further sources of error, with their degrees of freedom.
        """
        start = np.asarray(by_start, dtype=np.float64)
        mean, freedom = float(start.mean()), list(others)
        variance = sum(part for part, _ in others)
        for values, number in ((start, len(start)), (by_member, 1)):
            spread = None if values is None else np.asarray(values, dtype=np.float64)
            if spread is not None and len(spread) > 1:
                part = float(spread.var(ddof=1)) / number
                variance += part
                freedom.append((part, len(spread) - 1))
        if not freedom:
            return cls(mean, -math.inf, math.inf)
        # Welch and Satterthwaite's degrees of freedom of a sum of variances
        below = sum(part**2 / df for part, df in freedom)
        df = variance**2 / below if below > 0 else min(df for _, df in freedom)
        half = float(student.ppf(0.5 + confidence / 2, df)) * math.sqrt(variance)
        return cls(mean, mean - half, mean + half)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, eq=False)
class Samples:
    """What an estimate is made of, the same start states and bootstraps for all policies.

    Attributes:
        by_start: by held-out start state, over the ensemble [S].
        by_member: by member of the ensemble, over the start states [M].
    """

    by_start: np.ndarray
    by_member: np.ndarray

    @classmethod
    def mean_of(cls, samples: Collection[Samples]) -> Samples:
        """The mean over several policies, start by start and member by member."""
        return cls(
            np.mean([each.by_start for each in samples], axis=0),
            np.mean([each.by_member for each in samples], axis=0),
        )

    def __sub__(self, other: Samples) -> Samples:
        """The difference to another policy, paired by start state and by member."""
        return Samples(self.by_start - other.by_start, self.by_member - other.by_member)

    def estimate(self, confidence: float, others: Sequence[tuple[float, int]] = ()) -> Estimate:
        """See :meth:`Estimate.of`."""
        return Estimate.of(self.by_start, self.by_member, confidence=confidence, others=others)


@dataclass(frozen=True)
class OfflineValues:
    """Estimates of discounted returns from the data's start states.

    All of them are in the unit of the data's rewards, with the shift that the run adds to these.

    Attributes:
        dataset: its name.
        gamma: discount factor.
        confidence: of all intervals.
        value_std: standard deviation of the logged discounted returns, against which differences
            are judged.
        held_out: episodes (or blocks of one) that estimates were judged on, and their number in
            all: ``{"held_out": 55, "episodes": 222}``.
        values: by whose value it is and by method; what could not be estimated is not there.
        differences: ``"policy - behaviour"`` and ``"policy - clone"``, paired by start state and
            ensemble member, by method.
        samples: by whose value it is, what the estimate by fitted Q evaluation is made of: with it
            the policies of several runs can be compared in pairs.
        checks: what says whether the estimates can be believed. ``action_share_outside``: the share
            of held-out states in which the policy's action is less likely under the fitted
            behaviour than 99 % of the logged ones. ``behaviour_gap_fqe`` and
            ``behaviour_gap_model``: how far an estimator is off where the truth is known, the
            logged returns of held-out episodes, as [mean, low, high]. ``model_share_outside``:
            discounted share of the states imagined for the policy that are far outside the data.
            ``effective_sample_size``: of the importance weights, in episodes.
        unsettled: why fitted Q evaluation cannot be used, one sentence each.
        left_out: method to the reason why there is no estimate by it.
        assumptions: under which the intervals mean what they say.
    """

    dataset: str
    gamma: float
    confidence: float
    value_std: float
    held_out: Mapping[str, int]
    values: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    samples: Mapping[str, Samples] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    unsettled: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()

    def value(self, who: Who, method: Method) -> Estimate | None:
        """One estimate; None where there is none."""
        return self.values.get(who, {}).get(method)

    def difference(self, versus: Literal["behaviour", "clone"], method: Method) -> Estimate | None:
        """How much better the policy is; None where that is not known."""
        return self.differences.get(f"policy - {versus}", {}).get(method)

    def write(self, folder: str | os.PathLike[str], name: str = OFFLINE_VALUES_FILE) -> Path:
        """Write them, with their verdict, into a run folder; returns the file."""
        content = {"format": _FORMAT, **asdict(self), "verdict": asdict(verdict(self))}
        content["samples"] = {
            who: {"by_start": x.by_start.tolist(), "by_member": x.by_member.tolist()}
            for who, x in self.samples.items()
        }
        path = Path(folder) / name
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
        return path

    @classmethod
    def read(cls, folder: str | os.PathLike[str], name: str = OFFLINE_VALUES_FILE) -> OfflineValues:
        """Read what :meth:`write` wrote.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if it is of another version.
        """
        path = Path(folder) / name
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is of another version: measure it again")
        content.pop("verdict", None)
        for key in ("values", "differences"):
            content[key] = {
                who: {method: Estimate(**estimate) for method, estimate in methods.items()}
                for who, methods in content[key].items()
            }
        content["samples"] = {
            who: Samples(np.array(x["by_start"]), np.array(x["by_member"]))
            for who, x in content.get("samples", {}).items()
        }
        for key in ("unsettled", "assumptions"):
            content[key] = tuple(content[key])
        return cls(**content)
