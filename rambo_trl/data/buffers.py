"""Mini-batches with an exact share of real data (paper Algorithm 1, line 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import (
    ImmutableDatasetWriter,
    LazyTensorStorage,
    RoundRobinWriter,
    TensorDictReplayBuffer,
    TensorStorage,
)

from rambo_trl.data.offline_dataset import OfflineDataset

__all__ = ["RealModelReplayBuffer", "make_real_buffer", "make_replay_buffer"]

TRANSITION_KEYS: tuple[NestedKey, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "done"),
)


def make_replay_buffer(capacity: int, device: torch.device | str = "cpu") -> TensorDictReplayBuffer:
    """Build an empty first-in first-out buffer, as for the model's transitions.

    Args:
        capacity: number of transitions; the oldest make room for new ones.
        device: where they are stored.

    Returns:
        A TorchRL buffer that samples uniformly with replacement.
    """
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity, device=device), writer=RoundRobinWriter()
    )


def make_real_buffer(
    dataset: OfflineDataset | TensorDictBase, device: torch.device | str = "cpu"
) -> TensorDictReplayBuffer:
    """Build the read-only buffer of a data set's transitions.

    Args:
        dataset: or transitions [N]; shared, not copied, where the device is the same.
        device: where they are stored.

    Returns:
        A TorchRL buffer that samples uniformly with replacement.
    """
    rows = dataset if isinstance(dataset, TensorDictBase) else dataset.transitions
    return TensorDictReplayBuffer(
        storage=TensorStorage(rows.to(device), device=device),
        writer=ImmutableDatasetWriter(),
    )


class RealModelReplayBuffer:
    """Batches of which an exact number of rows is real, the others the model's.

    Rows are drawn uniformly with replacement from two TorchRL buffers. In every batch the
    first :attr:`num_real` rows are real.

    Args:
        real: buffer of the data's transitions.
        model: buffer of the model's transitions; it may be empty until the first batch.
        real_fraction: the share f of real rows, from 0 to 1 (0.5 in the paper).
        batch_size: number of rows of a batch.
        keys: entries that a batch holds; both buffers need them.

    Attributes:
        num_real: ``round(real_fraction * batch_size)``.
        num_model: the others.

    Raises:
        ValueError: if ``real_fraction`` or ``batch_size`` is out of range.

    Examples:
        >>> from tensordict import TensorDict
        >>> rows = TensorDict({"observation": torch.zeros(10, 3)}, batch_size=[10])
        >>> real, model = make_replay_buffer(10), make_replay_buffer(10)
        >>> _ = real.extend(rows), model.extend(rows + 1)
        >>> mixed = RealModelReplayBuffer(real, model, batch_size=8, keys=["observation"])
        >>> mixed.sample()["observation"].mean(-1)
        tensor([0., 0., 0., 0., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        real: TensorDictReplayBuffer,
        model: TensorDictReplayBuffer,
        *,
        real_fraction: float = 0.5,
        batch_size: int = 256,
        keys: Sequence[NestedKey] = TRANSITION_KEYS,
    ) -> None:
        if not 0.0 <= real_fraction <= 1.0:
            raise ValueError(f"real_fraction must lie in [0, 1], got {real_fraction}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.real = real
        self.model = model
        self.real_fraction = real_fraction
        self.batch_size = batch_size
        self.keys = list(keys)
        self.num_real = round(real_fraction * batch_size)
        self.num_model = batch_size - self.num_real

    def sample(self) -> TensorDict:
        """Draw one batch, a TensorDict [batch_size]; see :meth:`batches`."""
        return next(self.batches(1))

    def batches(self, num_batches: int, *, chunk_size: int = 50) -> Iterator[TensorDict]:
        """Iterate over batches, TensorDicts [batch_size], drawing the rows of many at a time.

        What is written into the buffers while iterating is seen from the next chunk on.

        Args:
            num_batches: how many batches.
            chunk_size: how many are drawn together, which spreads the cost of a draw.

        Raises:
            RuntimeError: if model rows are due and the model buffer is empty.
            KeyError: if a buffer lacks one of the keys.
        """
        for start in range(0, num_batches, chunk_size):
            yield from self._chunk(min(chunk_size, num_batches - start)).unbind(0)

    def endless(self) -> Iterator[TensorDict]:
        """Iterate over batches without end; what is drawn ahead is lost with the iterator."""
        while True:
            yield from self.batches(50)

    def state_dict(self) -> dict[str, Any]:
        """Return the model buffer's state; the real buffer is rebuilt from its data set."""
        return {
            "model": self.model.state_dict(),
            "real_fraction": self.real_fraction,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the model buffer.

        Raises:
            ValueError: if the state belongs to another fraction or batch size.
        """
        for key in ("real_fraction", "batch_size"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"the saved {key} is {state_dict[key]}, but this buffer's is "
                    f"{getattr(self, key)}"
                )
        self.model.load_state_dict(state_dict["model"])

    def _chunk(self, num_batches: int) -> TensorDict:
        """Draw batches at once, [num_batches, batch_size]."""
        parts = []
        for name, buffer, rows in (
            ("real", self.real, self.num_real),
            ("model", self.model, self.num_model),
        ):
            if rows == 0:
                continue
            if len(buffer) == 0:
                raise RuntimeError(
                    f"the {name} buffer is empty, but each batch needs {rows} of its rows "
                    f"(real_fraction={self.real_fraction}, batch_size={self.batch_size}): "
                    "fill it before sampling"
                )
            try:
                drawn = buffer.sample(num_batches * rows).select(*self.keys)
            except KeyError as error:
                raise KeyError(f"the {name} buffer lacks a key of {self.keys}: {error}") from None
            parts.append(drawn.reshape(num_batches, rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
