"""ValueBudget: lambda by hand, its state, and how far values fall on a problem that is solved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rambo_trl.objectives import AdversarialModelLoss, ValueBudget


class Reward(nn.Module):
    """A model of the reward alone: N(mean, std^2) whatever state and action."""

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.zeros(())), std

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        away = (tensordict["next", "reward"].squeeze(-1) - self.mean) / self.std
        return -0.5 * away.square()


def adversarial(weight: float = 0.3, std: float = 1.0, **settings: Any) -> AdversarialModelLoss:
    zero = TensorDictModule(torch.zeros_like, ["observation"], ["action"])
    critic = TensorDictModule(
        lambda observation, action: 0 * action, ["observation", "action"], ["state_action_value"]
    )
    return AdversarialModelLoss(Reward(std), zero, critic, adversarial_weight=weight, **settings)


def test_steps_by_hand() -> None:
    loss = adversarial(0.3)
    budget = ValueBudget(loss, 1.0, decay=0.75)
    assert loss.adversarial_weight.item() == pytest.approx(0.3)
    assert budget.step(torch.tensor(8.0)).item() == pytest.approx(1 / 8)
    assert budget.step(torch.tensor(4.0)).item() == pytest.approx(1 / 7)
    assert loss.adversarial_weight.item() == pytest.approx(1 / 7)
    # advantages all but equal: no more than at the beginning
    for _ in range(20):
        budget.step(torch.tensor(0.0))
    assert loss.adversarial_weight.item() == pytest.approx(0.3)


def test_without_an_adversary_there_is_none() -> None:
    budget = ValueBudget(adversarial(0.0), 1.0)
    assert budget.step(torch.tensor(0.0)).item() == budget.step(torch.tensor(5.0)).item() == 0


def test_a_captured_graph_sees_the_new_weight() -> None:
    loss = adversarial()
    place = loss.adversarial_weight
    ValueBudget(loss, 1.0).step(torch.tensor(5.0))
    assert place is loss.adversarial_weight and place.item() == pytest.approx(0.2)


def test_a_mean_that_is_not_a_number_is_begun_anew() -> None:
    budget = ValueBudget(adversarial(0.3), 1.0)
    assert budget.step(torch.tensor(math.nan)).item() == pytest.approx(0.3)
    assert budget.step(torch.tensor(5.0)).item() == pytest.approx(0.2)


def test_loading_the_state_gives_the_loss_its_weight_back() -> None:
    budget = ValueBudget(adversarial(0.3), 1.0, decay=0.5)
    for std in (8.0, 4.0):
        budget.step(torch.tensor(std))
    assert list(budget.parameters()) == [] and set(budget.state_dict()) == {"mean_std"}
    other = ValueBudget(adversarial(0.3), 1.0, decay=0.5)
    other.load_state_dict(budget.state_dict())
    assert other.adversarial_loss.adversarial_weight.item() == pytest.approx(1 / 6)
    assert other.step(torch.tensor(2.0)).item() == pytest.approx(1 / 4)
    # of a run that took no update
    untouched = ValueBudget(adversarial(0.3), 1.0)
    other.load_state_dict(untouched.state_dict())
    assert other.adversarial_loss.adversarial_weight.item() == pytest.approx(0.3)


def test_settings_are_checked() -> None:
    for budget in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="budget must be positive and finite"):
            ValueBudget(adversarial(), budget)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
            ValueBudget(adversarial(), 1.0, decay=decay)
    with pytest.raises(ValueError, match="normalize_advantage=True"):
        ValueBudget(adversarial(normalize_advantage=False), 1.0)


@pytest.mark.parametrize(("std", "wanted"), [(0.5, -0.4 * 0.5), (4.0, -1.0), (16.0, -1.0)], ids=str)
def test_a_value_falls_by_the_budget_at_most(std: float, wanted: float) -> None:
    """The model's mean reward settles where the adversary and the data's likelihood balance.

    With lambda = 0.4 that is 0.4 standard deviations below the data's mean, unless the budget of
    one reward is less. Without the budget the last would fall by 6.4.
    """
    torch.manual_seed(0)
    loss = adversarial(0.4, std)
    model, budget = loss.world_model, ValueBudget(loss, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * std**2)
    means, rows = [], torch.zeros(1024, 1)
    for _ in range(400):
        reward = model.mean.detach() + std * torch.randn(1024, 1)
        after = {"observation": rows, "reward": reward}
        imagined = TensorDict({"observation": rows, "action": rows, "next": after}, [1024])
        out = loss(imagined)
        likelihood = 0.5 * (model.mean / std).square()  # the data's mean is 0
        (out["loss_adversarial"] + likelihood).backward()
        optimizer.step()
        optimizer.zero_grad()
        budget.step(out["advantage_std"])
        means.append(model.mean.item())
    assert sum(means[-300:]) / 300 == pytest.approx(wanted, rel=0.05)
