"""A buffer of real transitions that begins with the data's and grows by those of an environment."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import (
    LazyTensorStorage,
    RandomSampler,
    RoundRobinWriter,
    Storage,
    TensorDictReplayBuffer,
)

__all__ = ["OnlineRows", "OnlineShareSampler"]


class OnlineShareSampler(RandomSampler):
    """Draws from a growing buffer with a fixed share of the rows that came later.

    Uniformly with replacement on each side. Online and offline rows alternate, so that not only
    a draw but every batch that it is cut into has its share, give or take a row. While there are no
    online rows all are offline. With a half it is the symmetric sampling of RLPD (Ball et al. 2023,
    https://arxiv.org/abs/2302.02948, sec. 4.1).

    TorchRL's ``OfflineToOnlineReplayBuffer`` has such shares too, but it puts the offline rows of
    a draw before the others, and is no ``ReplayBuffer``, which environments and losses ask for.

    Args:
        num_offline: rows that the buffer began with.
        online_share: of each draw, in [0, 1].

    Raises:
        ValueError: if the share is not in [0, 1].
    """

    def __init__(self, num_offline: int, online_share: float) -> None:
        super().__init__()
        if not 0 <= online_share <= 1:
            raise ValueError(f"online_share must lie in [0, 1], got {online_share}")
        self.num_offline, self.online_share = num_offline, online_share

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw row numbers [batch_size]."""
        num_online = len(storage) - self.num_offline
        device = getattr(storage, "device", None)
        rows = torch.randint(self.num_offline, (batch_size,), device=device)
        if num_online > 0 and self.online_share > 0:
            count = torch.arange(batch_size + 1, dtype=torch.float64, device=device)
            # a little more, so that 10 * 0.3 is 3
            online = (count * self.online_share + 1e-9).floor().diff() > 0
            later = torch.randint(num_online, (batch_size,), device=device)
            rows = torch.where(online, self.num_offline + later, rows)
        return rows, {}


class OnlineRows:
    """The data's transitions in a buffer, and behind them those of an environment.

    The data are copied, not changed. A checkpoint holds the online rows alone.

    Args:
        offline: the data's transitions [N].
        capacity: room for so many online rows.

    Keyword Args:
        online_share: of the online rows in each draw; None draws uniformly from all.
        device: where they are stored.

    Attributes:
        buffer: TorchRL's, for batches, start states and the model's likelihood term.
    """

    def __init__(
        self,
        offline: TensorDictBase,
        capacity: int,
        *,
        online_share: float | None = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        self._offline, size = offline, len(offline)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(size + capacity, device=device),
            sampler=None if online_share is None else OnlineShareSampler(size, online_share),
            writer=RoundRobinWriter(),
        )
        self.buffer.extend(offline)

    def __len__(self) -> int:
        """Return the number of online rows."""
        return len(self.buffer) - len(self._offline)

    def extend(self, rows: TensorDictBase) -> None:
        """Add transitions [M] in the data's units; entries that the data lack are left out.

        Raises:
            ValueError: if there is no room for them.
        """
        free = self.buffer.storage.max_size - len(self.buffer)
        if len(rows) > free:  # the first to make room would be the data's
            raise ValueError(f"{len(rows)} rows do not fit into a buffer with room for {free}")
        keys = self._offline.keys(include_nested=True, leaves_only=True)
        self.buffer.extend(rows.select(*keys))

    def state_dict(self) -> dict[str, Any]:
        """The online rows."""
        return {"rows": self.buffer[len(self._offline) :].to_dict() if len(self) else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: if there is no room for so many.
        """
        self.buffer.empty()
        self.buffer.extend(self._offline)
        if (rows := state_dict["rows"]) is not None:
            self.extend(TensorDict(rows, [len(rows["action"])]))
