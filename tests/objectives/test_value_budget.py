"""ValueBudget: lambda by hand, its state, and two models of which one is less certain."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, ValueBudget

SPEC = Bounded(-1, 1, shape=(1,))


def parts(
    weight: float = 0.1, rows: int = 50
) -> tuple[AdversarialModelLoss, EnsembleModelEnv, TensorDict]:
    torch.manual_seed(0)
    data = TensorDict(observation=torch.randn(rows, 2), action=SPEC.rand((rows,)), batch_size=rows)
    model = EnsembleWorldModel(2, 1, hidden_sizes=(8,))
    agent = SACLoss(make_actor(2, SPEC), make_qvalue(2, 1), action_spec=SPEC)
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=weight)
    return loss, EnsembleModelEnv(model, action_spec=SPEC, starts=data), data


def lower_rewards(loss: AdversarialModelLoss, by: float) -> None:
    with torch.no_grad():  # the mean reward is the last of the first half of the outputs
        loss.world_model.biases[-1][..., 2] -= by / loss.world_model.output_scale[-1]


def test_the_fall_is_of_rewards_and_of_values_of_next_states() -> None:
    loss, env, rows = parts()
    budget = ValueBudget(loss, env, rows, 1.0)
    assert budget.fall().item() == 0
    lower_rewards(loss, 0.25)
    assert budget.fall().item() == pytest.approx(0.25, rel=1e-4)

    # and of gamma V(s'), by an independent computation
    torch.manual_seed(1)
    with torch.no_grad():
        loss.world_model.biases[-1].add_(torch.randn_like(loss.world_model.biases[-1]))

    def value(model: EnsembleWorldModel) -> float:
        total = 0.0
        for member in model.elites:
            mean, _ = model.predict(rows["observation"], rows["action"], member[None])
            state = mean[0, :, :2]
            after = TensorDict(observation=state, batch_size=len(state))
            dist = loss.actor_network.get_dist(after)
            after["action"] = dist.deterministic_sample
            q = torch.stack([c(after)["state_action_value"] for c in critics(loss)]).amin(dim=0)
            total += float((mean[0, :, 2:] + 0.99 * q).mean())
        return total / len(model.elites)

    with torch.no_grad():
        wanted = value(budget.reference) - value(loss.world_model)
    assert budget.fall().item() == pytest.approx(wanted, rel=1e-4)


def critics(loss: AdversarialModelLoss) -> list[nn.Module]:
    """Each critic as a function of a TensorDict that returns values [B, 1]."""
    (stacked,) = loss.qvalue_networks

    def one(number: int):  # type: ignore[no-untyped-def]
        return lambda rows: {
            "state_action_value": stacked(rows.copy())["state_action_value"][number]
        }

    return [one(0), one(1)]  # type: ignore[list-item]


def test_steps_by_hand() -> None:
    loss, env, rows = parts(0.1)
    place = loss.adversarial_weight
    budget = ValueBudget(loss, env, rows, 0.5, rate=0.2)
    # log lambda + 0.2 (1 - 0), then + 0.2 (1 - 0.25 / 0.5), then + 0.2 (1 - 0.75 / 0.5)
    for by, power in ((0.0, 0.2), (0.25, 0.3), (0.5, 0.2)):
        lower_rewards(loss, by)
        budget.step()
        assert place.item() == pytest.approx(0.1 * math.exp(power), rel=1e-4)
    # far above it, no faster down than up
    lower_rewards(loss, 100.0)
    assert budget.step().item() == pytest.approx(100.75, rel=1e-4)
    assert place.item() == pytest.approx(0.1, rel=1e-4)
    assert place is loss.adversarial_weight  # which a captured graph keeps reading


def test_doubt_is_the_first_lambda_by_todays() -> None:
    loss, env, rows = parts(0.1)
    budget = ValueBudget(loss, env, rows, 0.5, rate=math.log(4))
    assert budget.doubt == 1
    budget.step()  # nothing was lowered: lambda rises by a factor of 4
    assert budget.doubt == pytest.approx(0.25)
    saved = {key: value.clone() for key, value in budget.state_dict().items()}
    lower_rewards(loss, 100.0)
    for _ in range(2):
        budget.step()
    assert loss.adversarial_weight.item() == pytest.approx(0.025, rel=1e-4)
    assert budget.doubt == 1  # no more than at first
    budget.load_state_dict(saved)
    assert budget.doubt == pytest.approx(0.25)


def test_bounds_hold_and_what_is_not_finite_lowers_lambda() -> None:
    loss, env, rows = parts(0.1)
    budget = ValueBudget(loss, env, rows, 0.5, rate=10.0, min_weight=0.01, max_weight=0.5)
    budget.step()
    assert loss.adversarial_weight.item() == pytest.approx(0.5)
    for by in (math.nan, math.inf):
        lower_rewards(loss, by)
        budget.step()
        assert loss.adversarial_weight.item() == pytest.approx(0.01)


def test_loading_the_state_gives_lambda_and_the_fitted_model_back() -> None:
    loss, env, rows = parts(0.1)
    budget = ValueBudget(loss, env, rows, 0.5)
    assert not any(parameter.requires_grad for parameter in budget.parameters())
    lower_rewards(loss, 1.0)
    budget.step()
    saved = {key: value.clone() for key, value in budget.state_dict().items()}
    lower_rewards(loss, 1.0)
    budget.anchor()
    assert budget.step().item() == 0
    other = ValueBudget(loss, env, rows, 0.5)
    other.load_state_dict(saved)
    assert loss.adversarial_weight.item() == pytest.approx(0.1 * math.exp(-0.3), rel=1e-4)
    assert other.fall().item() == pytest.approx(2.0, rel=1e-4)


def test_settings_are_checked() -> None:
    loss, env, rows = parts(0.1)
    for settings, match in (
        ({"budget": 0.0}, "budget must be positive and finite, got 0"),
        ({"budget": math.inf}, "budget must be positive and finite, got inf"),
        ({"budget": 1.0, "rate": -1.0}, "rate must be positive and finite, got -1"),
        ({"budget": 1.0, "max_weight": 0.01}, "max_weight=0.01"),
        ({"budget": 1.0, "min_weight": 0.0}, "min_weight=0.0"),
    ):
        with pytest.raises(ValueError, match=match):
            ValueBudget(loss, env, rows, **settings)
    with pytest.raises(ValueError, match="adversarial_weight"):
        ValueBudget(*parts(0.0), 1.0)
    for weight in (1e-5, 3.0):  # a start beyond the bounds is one of them
        loss, env, rows = parts(weight)
        ValueBudget(loss, env, rows, 1.0).step()
        assert loss.adversarial_weight.item() == pytest.approx(min(3.0, weight * math.exp(0.3)))
