"""A policy kept to what its data show: limited actions, flagged observations, a fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rambo_trl.experiment.policy import Policy

__all__ = ["Guard", "GuardModule", "GuardedAction", "GuardedPolicy"]

#: what is done to actions: nothing; clipped to the logged range; also no faster than logged
Guard = Literal["flags", "range", "rate"]


class GuardedAction(NamedTuple):
    """What a :class:`GuardedPolicy` answers.

    Attributes:
        action: what to apply, [action_size] in the environment's units.
        far: names of the observation entries that are far outside the data by themselves, or where
            none is, in their combination.
        missing: names of those that are not finite.
        limited: names of the action entries that range or rate changed.
        distance: of the observation from the data's centre; infinite where a reading is missing.
        by_fallback: whether the action is the fallback's.
    """

    action: np.ndarray
    far: tuple[str, ...]
    missing: tuple[str, ...]
    limited: tuple[str, ...]
    distance: float
    by_fallback: bool

    @property
    def flagged(self) -> bool:
        """Whether the policy should not be trusted here."""
        return bool(self.far or self.missing)


class GuardModule(nn.Module):
    """The guard's arithmetic without memory, for exporters too.

    Args:
        policy: one that knows its data.
        guard: what is done to actions.

    Raises:
        ValueError: if the policy's file does not say what the guard needs, or there is no such
            guard.
    """

    far_low: Tensor
    far_high: Tensor
    centre: Tensor
    matrix: Tensor
    limit: Tensor
    action_low: Tensor
    action_high: Tensor
    action_change: Tensor

    def __init__(self, policy: Policy, guard: Guard) -> None:
        super().__init__()
        if guard not in get_args(Guard):
            raise ValueError(f"guard must be one of {', '.join(get_args(Guard))}, got {guard}")
        self.guard = guard
        data, mean = policy.data, policy.observation_mean
        limits = None if data is None else data.far_limits
        if data is None or limits is None or data.distance_matrix is None:
            raise ValueError(
                "this policy does not know what its data cover, as one that an older version "
                "wrote: train anew, or in Python set policy.data to the description of the data "
                "(OfflineDataset.load(...).description)"
            )
        if guard == "rate" and data.logged_action_change is None:
            raise ValueError(
                "guard=rate needs to know how fast logged actions changed, and no two of the "
                "data's rows follow each other: take guard=range"
            )
        bounds = policy.action_low
        action_dtype = torch.float32 if bounds is None else bounds.dtype
        for name, value, dtype in (
            ("far_low", limits[0], mean.dtype),
            ("far_high", limits[1], mean.dtype),
            ("centre", data.distance_centre, mean.dtype),
            ("matrix", data.distance_matrix, torch.float32),
            ("limit", data.distance_limit, torch.float32),
            ("action_low", data.logged_action_low, action_dtype),
            ("action_high", data.logged_action_high, action_dtype),
            ("action_change", data.logged_action_change or (), action_dtype),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=dtype, device=mean.device))

    def shares(self, observation: Tensor) -> Tensor:
        """The share [B, obs] of each entry in the square of the distance."""
        return ((observation - self.centre).float() @ self.matrix.T).square()

    def forward(
        self, observation: Tensor, action: Tensor, previous_action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Limit actions and judge observations.

        Args:
            observation: raw observations [B, observation_size].
            action: the policy's for them, [B, action_size].
            previous_action: the ones that were applied before, with NaN where there are none; for
                ``guard="rate"``.

        Returns:
            Limited actions [B, action_size], NaN where a reading is not finite; distances [B],
            there infinite; whether the observation is far outside or not finite, [B]; and which
            entries are by themselves, [B, observation_size].
        """
        readable = (observation - self.centre).float().isfinite().all(-1)
        distance = self.shares(observation).sum(-1).sqrt()
        distance = torch.where(distance < torch.inf, distance, torch.inf)
        # written so that a NaN is outside
        outside = ~((observation >= self.far_low) & (observation <= self.far_high))
        far = outside.any(-1) | (distance > self.limit)
        if self.guard != "flags":
            action = action.clamp(self.action_low, self.action_high)
        if self.guard == "rate" and previous_action is not None:
            low = previous_action - self.action_change
            near = action.clamp(low, previous_action + self.action_change)
            action = torch.where(previous_action.isfinite(), near, action)
        return torch.where(readable.unsqueeze(-1), action, torch.nan), distance, far, outside


class GuardedPolicy:
    """A policy for a control loop, one observation at a time.

    It limits actions to what the data show, tells observations that are far from the data, and
    acts by a fallback controller where it is given one. An observation is far outside where an
    entry is beyond the data's range by more than half of it (a constant entry where it has moved),
    or where the Mahalanobis distance from the data's mean exceeds ``policy.data.distance_limit``.

    With a fallback, a reading never raises an error, whatever it is.

    Args:
        policy: as :func:`~rambo_trl.load_policy` returns it; it must know its data.
        guard: ``"flags"`` leaves actions as they are, ``"range"`` clips each entry to the least
            and largest value in the logs, ``"rate"`` also keeps it within the largest change from
            a step to the next in the logs. Where the previous action is outside of the range, the
            rate decides.
        fallback: takes a flagged observation as it was given and returns what to apply, which is
            not limited.

    Attributes:
        previous_action: what was applied last, [action_size]; None after :meth:`reset`. Set it
            where another action was applied than the one returned.

    Raises:
        ValueError: see :class:`GuardModule`; also if the policy's weights are not finite.

    Examples:
        >>> guard = GuardedPolicy(policy, fallback=thermostat)  # doctest: +SKIP
        >>> step = guard(readings)  # doctest: +SKIP
        >>> apply(step.action)  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: Policy,
        guard: Guard = "rate",
        *,
        fallback: Callable[[ArrayLike], ArrayLike] | None = None,
    ) -> None:
        self._module = GuardModule(policy, guard)
        if not all(bool(weight.isfinite().all()) for weight in policy.actor.parameters()):
            raise ValueError("the policy's weights are not finite: its training diverged")
        self.policy, self.fallback = policy, fallback
        self.previous_action: np.ndarray | None = None

    def reset(self, previous_action: ArrayLike | None = None) -> None:
        """Start anew: the next action may be any in the range, or follows a given one."""
        given = None if previous_action is None else np.array(previous_action, np.float64)
        self.previous_action = given

    @torch.no_grad()
    def __call__(self, observation: ArrayLike) -> GuardedAction:
        """Choose the action for one observation.

        Args:
            observation: raw readings [observation_size]. None and NaN are missing ones.

        Raises:
            ValueError: without a fallback, if that is not so many numbers.
        """
        policy, module = self.policy, self._module
        assert policy.data is not None
        raw = self._read(observation)
        finite = (raw - module.centre).float().isfinite()
        size = len(policy.data.action_names)
        if bool(finite.all()):
            wanted = policy(raw)
        else:
            wanted = module.action_low.new_full((size,), torch.nan)
        previous = wanted.new_full((size,), torch.nan)
        if self.previous_action is not None:
            previous = wanted.new_tensor(self.previous_action)
        rows = (x[None] for x in (raw, wanted, previous))
        limited, distance, _, outside = (x[0] for x in module(*rows))
        far = outside & finite
        if bool(finite.all()) and not bool(far.any()):
            far = self._out_of_step(raw)
        step = GuardedAction(
            action=limited.cpu().numpy(),
            far=_chosen(policy.data.observation_names, far),
            missing=_chosen(policy.data.observation_names, ~finite),
            limited=_chosen(policy.data.action_names, (limited != wanted) & ~wanted.isnan()),
            distance=float(distance),
            by_fallback=False,
        )
        if self.fallback is not None and step.flagged:
            action = np.array(self.fallback(observation), step.action.dtype).reshape(-1)
            step = step._replace(action=action, limited=(), by_fallback=True)
        if np.isfinite(step.action).all():
            self.previous_action = step.action
        return step

    def _read(self, observation: ArrayLike) -> Tensor:
        """The readings [observation_size]; all of them missing where they are no such thing."""
        mean = self.policy.observation_mean
        try:
            values = np.asarray(observation, np.float64)
            if values.shape != mean.shape:
                raise ValueError(f"expected {len(mean)} readings, got shape {list(values.shape)}")
        except (TypeError, ValueError):
            if self.fallback is None:
                raise
            values = np.full(len(mean), np.nan)
        return torch.as_tensor(values, dtype=mean.dtype, device=mean.device)

    def _out_of_step(self, raw: Tensor) -> Tensor:
        """The fewest entries [obs] without whose shares the distance would be within its limit."""
        shares = self._module.shares(raw)
        largest = shares.argsort(descending=True)
        rest = shares[largest].flip(0).cumsum(0).flip(0)  # with this share and the smaller ones
        far = torch.empty_like(shares, dtype=torch.bool)
        far[largest] = ~(rest <= self._module.limit.square())
        return far


def _chosen(names: tuple[str, ...], chosen: Tensor) -> tuple[str, ...]:
    return tuple(n for n, is_one in zip(names, chosen.tolist(), strict=True) if is_one)
