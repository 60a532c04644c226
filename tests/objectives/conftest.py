from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal


class NarrowPolicy(nn.Module):
    """Always close to tanh(1)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.loc.expand_as(observation)
        return loc, torch.full_like(observation, 1e-5)


@pytest.fixture
def narrow_actor() -> Callable[[], ProbabilisticActor]:
    """Makes an actor whose action is known, for losses by hand."""

    def make() -> ProbabilisticActor:
        return ProbabilisticActor(
            TensorDictModule(NarrowPolicy(), ["observation"], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=Bounded(-1, 1, shape=(1,)),
            distribution_class=TanhNormal,
            distribution_kwargs={"tanh_loc": False},
        )

    return make
