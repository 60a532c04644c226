"""The Model Gradient (paper Eq. 5) against finite differences of the value itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss

GAMMA = 0.875  # exact in float32, the precision of the coefficient


def finite_differences(value: Callable[[], Tensor], parameters: list[Tensor]) -> Tensor:
    """Central differences of a scalar by every entry of the parameters, flat."""
    out = []
    with torch.no_grad():
        for parameter in parameters:
            flat = parameter.view(-1)
            for i in range(flat.numel()):
                original, step = flat[i].item(), 1e-5
                flat[i] = original + step
                above = value().item()
                flat[i] = original - step
                below = value().item()
                flat[i] = original
                out.append((above - below) / (2 * step))
    return torch.tensor(out, dtype=torch.float64)


def flat_gradient(parameters: list[Tensor]) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in parameters])


class OutcomeModel(TensorDictModuleBase):
    """A categorical over four outcomes (next state, reward, end) for each of 3 x 2 pairs."""

    in_keys = ["observation", "action"]
    out_keys = [("next", "observation"), ("next", "reward")]
    next_state = torch.tensor([0, 1, 2, 2])
    reward = torch.tensor([0.3, -1.0, 2.0, 5.0]).double()
    terminated = torch.tensor([False, False, False, True])

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(3, 2, 4).double())

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        state = tensordict["observation"].squeeze(-1).long()
        action = tensordict["action"].squeeze(-1).long()
        outcome = (tensordict["next", "reward"] - self.reward).abs().argmin(-1)
        assert torch.equal(
            self.next_state[outcome], tensordict["next", "observation"].squeeze(-1).long()
        )
        log_probs = self.logits.log_softmax(-1)[state, action]
        return log_probs.gather(-1, outcome.unsqueeze(-1)).squeeze(-1)


POLICY = torch.tensor([1, 0, 1])
START = torch.tensor([0.6, 0.4, 0.0]).double()


def policy_chain(model: OutcomeModel) -> tuple[Tensor, Tensor, Tensor]:
    """Under the fixed policy: outcome probabilities [3, 4], transitions, expected rewards."""
    probs = model.logits.softmax(-1)[torch.arange(3), POLICY]
    transitions = torch.zeros(3, 3, dtype=torch.float64)
    for k in range(4):
        if not model.terminated[k]:
            transitions[:, model.next_state[k]] += probs[:, k]
    return probs, transitions, probs @ model.reward


def start_value(model: OutcomeModel) -> Tensor:
    """The discounted value of the policy in the model, solved exactly."""
    _, transitions, reward = policy_chain(model)
    identity = torch.eye(3, dtype=torch.float64)
    return START @ torch.linalg.solve(identity - GAMMA * transitions, reward)


class TabularCritic(nn.Module):
    """Exact Q of the policy in the model, plus an offset."""

    def __init__(self, model: OutcomeModel, offset: float) -> None:
        super().__init__()
        _, transitions, reward = policy_chain(model)
        identity = torch.eye(3, dtype=torch.float64)
        value = torch.linalg.solve(identity - GAMMA * transitions, reward)
        following = torch.where(model.terminated, 0.0, value[model.next_state])
        table = model.logits.softmax(-1) @ (model.reward + GAMMA * following)
        self.register_buffer("table", table.detach() + offset)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.table[observation.squeeze(-1).long(), action.squeeze(-1).long()].unsqueeze(-1)


class TabularActor(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return POLICY[observation.squeeze(-1).long()].double().unsqueeze(-1)


@pytest.mark.parametrize("baseline", [True, False])
def test_gradient_of_the_discounted_value_of_a_discrete_model(baseline: bool) -> None:
    """Every outcome of every state enumerated, weighted with its exact probability.

    The value is that of whole trajectories from the start distribution, so this also pins
    that states are weighted by their discounted visits, ends count no further value, the
    smaller critic is taken and the loss descends (its gradient is that of +V).
    """
    model = OutcomeModel()
    want = finite_differences(lambda: start_value(model), [model.logits])

    with torch.no_grad():
        probs, transitions, _ = policy_chain(model)
        identity = torch.eye(3, dtype=torch.float64)
        visits = torch.linalg.solve((identity - GAMMA * transitions).T, START)
    state = torch.arange(3).double().reshape(3, 1, 1).expand(3, 4, 1)
    batch = TensorDict(
        {
            "observation": state,
            "action": TabularActor()(state),
            "next": {
                "observation": model.next_state.double().expand(3, 4).unsqueeze(-1),
                "reward": model.reward.expand(3, 4).unsqueeze(-1),
                "terminated": model.terminated.expand(3, 4).unsqueeze(-1),
            },
        },
        [3, 4],
    )
    critics = [
        TensorDictModule(
            TabularCritic(model, offset), ["observation", "action"], ["state_action_value"]
        )
        for offset in (1.0, 0.0)
    ]
    loss = AdversarialModelLoss(
        model,
        TensorDictModule(TabularActor(), ["observation"], ["action"]),
        critics,
        adversarial_weight=1.0,
        gamma=GAMMA,
        normalize_advantage=False,
        baseline=baseline,
        reduction="none",
    )
    each = loss(batch)["loss_adversarial"]
    assert each.shape == (3, 4)
    (visits[:, None] * probs * each).sum().backward()
    assert want.abs().max() > 0.05
    torch.testing.assert_close(flat_gradient([model.logits]), want, rtol=1e-6, atol=1e-8)


# A Gaussian ensemble, one-dimensional, where a step's expected value is an integral.


class SmoothCritic(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.sin(1.3 * observation) + 0.5 * observation * action + self.shift


class SmoothActor(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(0.7 * observation + 0.2)


def smooth_value(observation: Tensor) -> Tensor:
    """V(s') = min of the critics at the policy's action, written out."""
    action = torch.tanh(0.7 * observation + 0.2)
    return torch.sin(1.3 * observation) + 0.5 * observation * action


OBSERVATION, ACTION = 0.4, -0.3


def gaussian_model() -> EnsembleWorldModel:
    model = EnsembleWorldModel(
        1, 1, num_members=3, num_elites=2, hidden_sizes=(3,), log_var_init=(-3.0, 0.0)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.elites.copy_(torch.tensor([2, 0]))
    return model


def predict_pair(model: EnsembleWorldModel) -> tuple[Tensor, Tensor]:
    """The elites' means and standard deviations [2, 2] at the one state-action pair."""
    mean, log_var = model.predict(
        torch.full((1, 1), OBSERVATION).double(),
        torch.full((1, 1), ACTION).double(),
        model.elites,
    )
    return mean[:, 0], (0.5 * log_var[:, 0]).exp()


def quadrature() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def expected_step_value(model: EnsembleWorldModel) -> Tensor:
    """E[r + gamma V(s')] under the elites' mixture, integrated over s'."""
    mean, std = predict_pair(model)
    nodes, weights = quadrature()
    following = mean[:, :1] + std[:, :1] * nodes
    return (mean[:, 1] + GAMMA * (smooth_value(following) * weights).sum(-1)).mean()


def smooth_loss(model: EnsembleWorldModel, **kwargs) -> AdversarialModelLoss:
    critics = [
        TensorDictModule(SmoothCritic(c), ["observation", "action"], ["state_action_value"])
        for c in (0.7, 0.0)
    ]
    actor = TensorDictModule(SmoothActor(), ["observation"], ["action"])
    return AdversarialModelLoss(
        model,
        actor,
        critics,
        adversarial_weight=1.0,
        gamma=GAMMA,
        normalize_advantage=False,
        **kwargs,
    )


def step_batch(following: Tensor, reward: Tensor) -> TensorDict:
    return TensorDict(
        {
            "observation": torch.full_like(following, OBSERVATION),
            "action": torch.full_like(following, ACTION),
            "next": {
                "observation": following,
                "reward": reward,
                "terminated": torch.zeros_like(following, dtype=torch.bool),
            },
        },
        following.shape[:1],
    )


@pytest.mark.parametrize("baseline", [True, False])
def test_gradient_of_a_gaussian_ensembles_value_by_quadrature(baseline: bool) -> None:
    model = gaussian_model()
    parameters = list(model.parameters())
    want = finite_differences(lambda: expected_step_value(model), parameters)

    with torch.no_grad():
        mean, std = predict_pair(model)
    nodes, weights = quadrature()
    following = (mean[:, :1] + std[:, :1] * nodes)[:, :, None].expand(2, 60, 60)
    reward = (mean[:, 1:] + std[:, 1:] * nodes)[:, None, :].expand(2, 60, 60)
    weight = (weights[:, None] * weights / 2).expand(2, 60, 60)
    batch = step_batch(following.reshape(-1, 1), reward.reshape(-1, 1))
    each = smooth_loss(model, baseline=baseline, reduction="none")(batch)["loss_adversarial"]
    (each * weight.reshape(-1)).sum().backward()
    assert want.abs().max() > 0.1
    torch.testing.assert_close(flat_gradient(parameters), want, rtol=1e-4, atol=1e-6)
    # the member that is no elite has no part in the value
    assert model.weights[0].grad[1].abs().max() == 0


def test_gradient_by_the_models_own_samples_is_unbiased_and_the_baseline_helps() -> None:
    model = gaussian_model()
    parameters = list(model.parameters())
    want = finite_differences(lambda: expected_step_value(model), parameters)
    rows, chunks = 2000, 100
    errors = {}
    for baseline in (True, False):
        loss = smooth_loss(model, baseline=baseline)
        gradients = []
        for _ in range(chunks):
            model.zero_grad()
            observation = torch.full((rows, 1), OBSERVATION).double()
            following, reward = model.sample(observation, torch.full_like(observation, ACTION))
            loss(step_batch(following, reward))["loss_adversarial"].backward()
            gradients.append(flat_gradient(parameters))
        stacked = torch.stack(gradients)
        errors[baseline] = stacked.std(0) / chunks**0.5
        z = (stacked.mean(0) - want) / errors[baseline].clamp_min(1e-9)
        assert z.abs().max() < 4.5, f"baseline={baseline}: {z}"
        # and the test can tell: another sign would be many standard errors off
        assert (2 * want.abs() / errors[baseline].clamp_min(1e-9)).max() > 30
    assert errors[True].norm() < errors[False].norm()


# The member's density in place of the mixture's.


def apart_model(num_elites: int) -> EnsembleWorldModel:
    """Members that overlap but differ, so that it matters which of them drew."""
    model = EnsembleWorldModel(
        1, 1, num_members=4, num_elites=num_elites, hidden_sizes=(3,), log_var_init=(-3.0, 0.0)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.biases[-1][:, 0, 0] += torch.linspace(-1, 1, 4)
    model.elites.copy_(torch.tensor([2, 0, 3][:num_elites]))
    return model


class SameElite(EnsembleWorldModel):
    """Wrong: whichever elite drew, the density is the first one's."""

    def draw(self, tensordict: TensorDict) -> TensorDict:
        rows = super().draw(tensordict)
        mean, log_var = self.predict(rows["observation"], rows["action"], self.elites)
        rows[self.drawn_key] = TensorDict({"mean": mean[0], "log_var": log_var[0]}, rows.shape)
        return rows


class OneDraws(EnsembleWorldModel):
    """Wrong: always the first elite draws."""

    def predict_drawn(self, rows, *batches):
        mean, log_var = self.predict(*rows, self.elites[:1])
        return [(mean[0], log_var[0])]


class Unequal(EnsembleWorldModel):
    """Wrong: the second elite draws a row less often than the others."""

    def predict_drawn(self, rows, *batches):
        mean, log_var = self.predict(*rows, self.elites)
        row = torch.arange(len(rows[0]))
        elite = torch.randint(self.num_elites, (len(row),))
        elite = torch.where((elite == 1) & (torch.rand(len(row)) < 0.2), 0, elite)
        return [(mean[elite, row], log_var[elite, row])]


def deviation(model: EnsembleWorldModel, chunks: int, rows: int, **kwargs) -> Tensor:
    """How many standard errors the drawn members' mean gradient is off the mixture's."""
    parameters = list(model.parameters())
    want = finite_differences(lambda: expected_step_value(model), parameters)
    loss = smooth_loss(model, density="member", **kwargs)
    gradients = []
    for _ in range(chunks):
        model.zero_grad()
        states = torch.full((rows, 1), OBSERVATION).double()
        drawn = model.draw(
            TensorDict(observation=states, action=torch.full_like(states, ACTION)).auto_batch_size_(
                1
            )
        )
        loss(drawn)["loss_adversarial"].backward()
        gradients.append(flat_gradient(parameters))
    stacked = torch.stack(gradients)
    error = (stacked.std(0) / chunks**0.5).clamp_min(1e-9)
    return (stacked.mean(0) - want) / error


@pytest.mark.parametrize("num_elites", [2, 3])
@pytest.mark.parametrize("rows", [4, 2000])  # which three blocks hold with padding
def test_the_drawn_members_gradient_has_the_mixtures_as_its_mean(
    num_elites: int, rows: int
) -> None:
    z = deviation(apart_model(num_elites), 100 if rows > 4 else 1000, rows)
    assert z.abs().max() < 4.5, z


@pytest.mark.parametrize("wrong", [SameElite, OneDraws, Unequal])
def test_a_gradient_of_the_wrong_member_is_found_out(wrong: type[EnsembleWorldModel]) -> None:
    model = apart_model(3)
    model.__class__ = wrong
    assert deviation(model, 100, 2000).abs().max() > 10


def test_given_what_was_drawn_the_mean_over_who_drew_is_the_mixtures_gradient() -> None:
    # exact: E[grad log T_i | s', r] with the responsibilities of the mixture, not of the draw
    model = apart_model(3)
    parameters = list(model.parameters())
    rows = step_batch(torch.tensor([[0.9]]).double(), torch.tensor([[-0.2]]).double())
    want = torch.autograd.grad(model.log_prob(rows), parameters)
    mean, log_var = model.predict(rows["observation"], rows["action"], model.elites)
    member = []
    for prediction in zip(mean, log_var, strict=True):
        rows[model.drawn_key] = TensorDict(dict(zip(("mean", "log_var"), prediction, strict=True)))
        member.append(model.member_log_prob(rows).squeeze(0))
    share = torch.stack(member).softmax(0).detach()
    assert share.max() < 0.9  # none explains the row alone
    got = torch.autograd.grad((share * torch.stack(member)).sum(), parameters)
    torch.testing.assert_close(got, want)
