"""The updates of the model-free methods: intervals, target updates, learning rates."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn

from rambo_trl.training import OfflinePhase, UpdateStep, cosine_decay, offline

LR = 0.1


class CountingTarget:
    """Stands in for TorchRL's updater."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        self.steps += 1


def slope_one(parameter: nn.Parameter, name: str):
    """A loss with gradient 1: each of SGD's steps takes the learning rate off the parameter."""

    def losses(batch: TensorDictBase) -> TensorDictBase:
        return TensorDict({f"loss_{name}": parameter.sum(), "seen": batch["x"].mean()})

    return losses


def make_phase(**keywords):
    fast, slow, still = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    target = CountingTarget()
    both = torch.optim.SGD([{"params": [slow]}, {"params": [still]}], lr=LR)

    def joint(batch: TensorDictBase) -> TensorDictBase:
        return slope_one(slow, "slow")(batch).update(slope_one(still, "still")(batch))

    steps = [
        UpdateStep(slope_one(fast, "fast"), torch.optim.SGD([fast], lr=LR)),
        UpdateStep(joint, both, every=3, lr_factor=[cosine_decay(4), lambda n: 1.0]),
    ]
    return OfflinePhase(steps, target, target_every=2, **keywords), (fast, slow, still), target


def batches(num: int):
    return [TensorDict(x=torch.full((2,), float(i)), batch_size=[2]) for i in range(num)]


def test_intervals_targets_and_learning_rates() -> None:
    phase, (fast, slow, still), target = make_phase()
    metrics = phase.run(batches(7))
    assert fast.item() == pytest.approx(-7 * LR)  # every update
    assert still.item() == pytest.approx(-2 * LR)  # updates 3 and 6
    # the factors of the steps taken, not of the updates: 1, then half a cosine's quarter
    assert slow.item() == pytest.approx(-LR * (1 + 0.5 * (1 + math.cos(math.pi / 4))))
    assert target.steps == 3  # after updates 2, 4 and 6
    assert phase.updates == 7
    # metrics are means over each step's updates; of one name the later step's are kept
    assert metrics["seen"] == pytest.approx((2 + 5) / 2)
    assert set(metrics) == {"loss_fast", "loss_slow", "loss_still", "seen"}


def test_the_cosine_falls_to_zero_and_stays() -> None:
    factor = cosine_decay(10)
    assert [factor(n) for n in (0, 5, 10, 25)] == pytest.approx([1, 0.5, 0, 0])


def test_a_restored_phase_continues_alike() -> None:
    whole, parameters, _ = make_phase()
    whole.run(batches(5))
    saved = whole.state_dict()
    values = [p.detach().clone() for p in parameters]
    whole.run(batches(6))

    restored, others, target = make_phase()
    restored.load_state_dict(saved)
    with torch.no_grad():
        for parameter, value in zip(others, values, strict=True):
            parameter.copy_(value)
    restored.run(batches(6))
    for one, other in zip(parameters, others, strict=True):
        assert torch.equal(one, other)
    assert target.steps == 3  # updates 6, 8 and 10
    assert restored.updates == whole.updates == 11


def test_an_interval_below_one_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    step = UpdateStep(slope_one(parameter, "x"), torch.optim.SGD([parameter], lr=1), every=0)
    with pytest.raises(ValueError, match="interval of at least 1"):
        OfflinePhase([step])


def test_the_old_names_are_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="UpdateStep"):
        assert offline.Player is UpdateStep
    for name, member in (("evaluation", "evaluate_policy"), ("video", "record_video")):
        old, new = (
            import_module(f"rambo_trl.{room}.{name}") for room in ("training", "experiment")
        )
        with pytest.warns(DeprecationWarning, match=f"use rambo_trl.experiment.{name}"):
            assert getattr(old, member) is getattr(new, member)
