"""LikelihoodBudget: the multiplier's ascent, bounds and state, and a constrained problem solved."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rambo_trl.objectives import AdversarialModelLoss, LikelihoodBudget


class ShiftedNormal(nn.Module):
    """A model of the reward alone: N(mean, 1) whatever state and action."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        return -0.5 * (tensordict["next", "reward"].squeeze(-1) - self.mean).square()


def adversarial(weight: float = 0.1) -> AdversarialModelLoss:
    zero = TensorDictModule(torch.zeros_like, ["observation"], ["action"])
    critic = TensorDictModule(
        lambda observation, action: 0 * action, ["observation", "action"], ["state_action_value"]
    )
    return AdversarialModelLoss(
        ShiftedNormal(), zero, critic, adversarial_weight=weight, normalize_advantage=False
    )


def test_steps_by_hand() -> None:
    loss = adversarial(0.1)
    budget = LikelihoodBudget(loss, 2.0, lr=0.5)
    # log nu = log 10 + 0.5 (3 - 2), then + 0.5 (1.5 - 2)
    assert budget.step(torch.tensor(3.0)).item() == pytest.approx(0.1 * math.exp(-0.5))
    assert loss.adversarial_weight.item() == pytest.approx(0.1 * math.exp(-0.5))
    budget.step(torch.tensor(1.5))
    assert loss.adversarial_weight.item() == pytest.approx(0.1 * math.exp(-0.25))


def test_bounds_hold() -> None:
    loss = adversarial(0.1)
    budget = LikelihoodBudget(loss, 0.0, lr=1.0, min_weight=0.01, max_weight=0.5)
    assert budget.step(torch.tensor(100.0)).item() == pytest.approx(0.01)
    assert budget.step(torch.tensor(-100.0)).item() == pytest.approx(0.5)
    # no windup: beyond a bound the multiplier stands still
    assert budget.step(torch.tensor(1.0)).item() == pytest.approx(0.5 * math.exp(-1))


def test_the_start_may_be_a_bound() -> None:
    for weight in (0.1, 3e-4, 0.7):
        LikelihoodBudget(adversarial(weight), 0.0, min_weight=weight, max_weight=weight)


def test_no_gradient_and_no_parameters() -> None:
    loss = adversarial()
    budget = LikelihoodBudget(loss, 0.0)
    budget.step(torch.tensor(1.0, requires_grad=True))
    assert not loss.adversarial_weight.requires_grad
    assert list(budget.parameters()) == []
    assert set(budget.state_dict()) == {"budget", "log_multiplier"}


def test_loading_the_state_gives_the_loss_its_weight_back() -> None:
    budget = LikelihoodBudget(adversarial(0.1), 2.0, lr=0.5)
    budget.step(torch.tensor(5.0))
    other = LikelihoodBudget(adversarial(0.3), 7.0, lr=0.5)
    other.load_state_dict(budget.state_dict())
    assert other.adversarial_loss.adversarial_weight.item() == pytest.approx(0.1 * math.exp(-1.5))
    assert other.step(torch.tensor(2.0)).item() == pytest.approx(0.1 * math.exp(-1.5))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"budget": math.nan}, "budget must be finite"),
        ({"budget": 0.0, "lr": 0.0}, "lr must be positive"),
        ({"budget": 0.0, "max_weight": 0.01}, "max_weight"),
        ({"budget": 0.0, "min_weight": 0.0}, "min_weight"),
    ],
)
def test_settings_are_checked(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LikelihoodBudget(adversarial(0.1), **kwargs)
    with pytest.raises(ValueError, match="adversarial_weight"):
        LikelihoodBudget(adversarial(0.0), 0.0)


@pytest.mark.parametrize("weight", [0.02, 1.0])
def test_the_constrained_minimum_is_found_from_either_side(weight: float) -> None:
    """min mean s.t. mean^2 / 2 <= 0.18: the mean -0.6, with multiplier 1 / 0.6."""
    torch.manual_seed(0)
    loss = adversarial(weight)
    model, data = loss.world_model, torch.randn(1024)
    data = (data - data.mean()) / data.std(correction=0)
    # the fit's loss is 0.5; 0.18 nats may be spent
    budget = LikelihoodBudget(loss, 0.68, lr=0.5, max_weight=10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means, weights = [], []
    for _ in range(400):
        rows = torch.zeros(1024, 1)
        reward = model.mean.detach() + torch.randn(1024, 1)
        batch = TensorDict(
            {"observation": rows, "action": rows, "next": {"observation": rows, "reward": reward}},
            [1024],
        )
        likelihood = 0.5 * (data - model.mean).square().mean()
        (loss(batch)["loss_adversarial"] + likelihood).backward()
        optimizer.step()
        optimizer.zero_grad()
        budget.step(likelihood)
        means.append(model.mean.item())
        weights.append(loss.adversarial_weight.item())
    # the Model Gradient of E[r] is 1: minimum of lambda mean + mean^2 / 2 at mean = -lambda
    assert sum(means[-150:]) / 150 == pytest.approx(-0.6, abs=0.03)
    assert sum(weights[-150:]) / 150 == pytest.approx(0.6, abs=0.05)
