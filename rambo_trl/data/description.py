"""What a policy's file tells of its data: names of the entries, range of the observations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rambo_trl.data.columns import entry_names, told_apart

__all__ = ["DataDescription"]

#: of the range of an entry, so much beyond it is far outside; of a constant one's value, or 1
_FAR, _FAR_FROM_CONSTANT = 0.5, 1e-3
_TOLD = 5


@dataclass(frozen=True)
class DataDescription:
    """What the data's entries are called, and the range of each observation entry.

    Args:
        observation_names: of the observation entries.
        action_names: of the action entries.
        observation_low: the data's least value of each observation entry, in its own unit; None
            where it is not known.
        observation_high: the largest.

    Raises:
        ValueError: if the range is no finite numbers, one a name.

    Examples:
        >>> data = DataDescription(("temp_C",), ("power_W",), (20.0,), (75.0,))
        >>> data.as_header()["action_names"]
        ['power_W']
    """

    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    observation_low: tuple[float, ...] | None = None
    observation_high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for bound in (self.observation_low, self.observation_high):
            if bound is not None and (
                len(bound) != len(self.observation_names) or not all(map(math.isfinite, bound))
            ):
                raise ValueError(f"the data's range must be finite numbers, one an entry: {bound}")

    @classmethod
    def of_header(cls, header: Mapping[str, Any], sizes: tuple[int, int]) -> DataDescription:
        """Read what :meth:`as_header` wrote.

        Args:
            header: with names and, optionally, the range.
            sizes: number of observation and of action entries.

        Raises:
            ValueError: if the names are not as many, or the range is no numbers.
        """
        observations, actions = (
            entry_names(header.get(f"{kind}_names"), size, kind, "the file")
            for kind, size in zip(("observation", "action"), sizes, strict=True)
        )
        low, high = (header.get(f"observation_{end}") for end in ("low", "high"))
        if low is None or high is None:
            return cls(observations, actions)
        return cls(observations, actions, tuple(low), tuple(high))

    def as_header(self) -> dict[str, Any]:
        """What is written into a file, as JSON has it."""
        found = vars(self)
        return {key: list(value) for key, value in found.items() if value is not None}

    def limits(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor] | None:
        """Beyond which normalised observations are far outside the data, [obs] each.

        Args:
            mean: the data's, [obs].
            std: likewise.
        """
        if self.observation_low is None or self.observation_high is None:
            return None
        low, high = (
            torch.tensor(bound, dtype=torch.float64, device=mean.device)
            for bound in (self.observation_low, self.observation_high)
        )
        room = _FAR * (high - low)
        still = _FAR_FROM_CONSTANT * high.abs().clamp_min(1)
        room = torch.where(low == high, still, room)
        return ((low - room - mean) / std).float(), ((high + room - mean) / std).float()

    def tell_far(self, observation: Tensor, far: Tensor) -> str:
        """Name the entries that lie far outside, with a value and the data's range.

        Args:
            observation: raw, [*, obs].
            far: bool of the same shape.
        """
        size = len(self.observation_names)
        values, far = observation.reshape(-1, size), far.reshape(-1, size)
        low, high = self.observation_low or (), self.observation_high or ()
        told = []
        for i in far.any(0).nonzero().flatten().tolist():
            value = float(values[int(far[:, i].nonzero()[0]), i])
            is_now, least, most = told_apart(value, low[i], high[i])
            known = f"{least} to {most}" if low[i] < high[i] else f"always {least}"
            told.append(f"{self.observation_names[i]} is {is_now} ({known} in the data)")
        more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        return ", ".join(told[:_TOLD]) + more
