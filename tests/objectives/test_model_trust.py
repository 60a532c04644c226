"""ModelTrustLoss against closed forms, its gradients, its reference, its use in the model phase."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Normal, kl_divergence
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SACLoss

from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss, ModelTrustLoss
from rambo_trl.objectives.functional import kl_estimate, squared_total_variation_estimate
from rambo_trl.training.phases import ModelPhase


def single(members: int = 1) -> EnsembleWorldModel:
    return EnsembleWorldModel(2, 1, num_members=members, num_elites=members, hidden_sizes=(8,))


def rows(number: int = 64) -> TensorDict:
    return TensorDict(observation=torch.randn(number, 2), action=torch.rand(number, 1),
                      batch_size=[number])  # fmt: skip


def moved(loss: ModelTrustLoss, scale: float = 0.2) -> None:
    """Move means and variances of the model, not of its reference."""
    with torch.no_grad():
        for parameter in (loss.world_model.weights[-1], loss.world_model.biases[-1]):
            parameter.add_(scale * torch.randn_like(parameter))


def gaussians(model: EnsembleWorldModel, batch: TensorDict) -> Normal:
    mean, log_var = model.predict(batch["observation"], batch["action"])
    return Normal(mean[0], (0.5 * log_var[0]).exp())


def test_kl_is_the_closed_form_and_so_is_its_gradient() -> None:
    model, batch = single(), rows()
    loss = ModelTrustLoss(model, num_samples=5000)
    moved(loss, 0.5)
    exact = kl_divergence(gaussians(loss.reference, batch), gaussians(model, batch)).sum(-1).mean()
    parameters = [model.weights[-1], model.biases[-1]]
    want = torch.autograd.grad(exact, parameters)
    out = loss(batch)
    got = torch.autograd.grad(out["loss_trust"], parameters)
    assert exact > 0.1
    assert out["loss_trust"].item() == pytest.approx(exact.item(), rel=0.05)
    assert out["trust_distance"].item() == out["loss_trust"].item()
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.02 * other.abs().max().item())


def test_squared_total_variation_is_the_closed_form() -> None:
    # equal variances: TV = 2 Phi(m / 2) - 1, with m the means' distance in standard deviations
    model, batch = single(), rows()
    loss = ModelTrustLoss(model, divergence="total_variation", num_samples=2)
    with torch.no_grad():
        model.biases[-1][..., :3].add_(torch.tensor([0.3, -0.2, 0.5]))
    ours, reference = gaussians(model, batch), gaussians(loss.reference, batch)
    distance = ((ours.mean - reference.mean) / ours.stddev).norm(dim=-1).detach().numpy()
    want = ((2 * stats.norm.cdf(distance / 2) - 1) ** 2).mean()
    got = [loss(batch)["loss_trust"].item() for _ in range(600)]
    error = torch.tensor(got).std().item() / math.sqrt(len(got))
    assert 0.01 < want < 0.9
    # two draws' own square would be too large by half their variance
    assert sum(got) / len(got) == pytest.approx(want, abs=4 * error)
    assert error < 0.02 * want


def test_estimators_by_hand() -> None:
    log_ratio = torch.tensor([[0.0], [math.log(0.5)], [math.log(2.0)]])
    torch.testing.assert_close(
        kl_estimate(log_ratio), torch.tensor([[0.0], [-0.5 + math.log(2)], [1 - math.log(2)]])
    )
    # missing mass 0, 1/2 and 0: no pair of draws misses any; with two of 1/2, one pair of three
    assert squared_total_variation_estimate(log_ratio).item() == 0
    twice = torch.tensor([[0.0], [math.log(0.5)], [math.log(0.5)]])
    assert squared_total_variation_estimate(twice).item() == pytest.approx(0.25 / 3)
    with pytest.raises(ValueError, match="at least 2 samples"):
        squared_total_variation_estimate(log_ratio[:1])


@pytest.mark.parametrize("divergence", ["kl", "total_variation"])
def test_no_pull_at_the_reference_itself(divergence: str) -> None:
    loss = ModelTrustLoss(single(3), divergence=divergence)
    out = loss(rows())
    out["loss_trust"].backward()
    assert out["loss_trust"].item() == pytest.approx(0, abs=1e-6)
    for parameter in loss.world_model.parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-5


@pytest.mark.parametrize("divergence", ["kl", "total_variation"])
def test_descent_leads_back_to_the_reference(divergence: str) -> None:
    loss, batch = ModelTrustLoss(single(), divergence=divergence, num_samples=8), rows()
    moved(loss)
    optimizer = torch.optim.Adam(loss.world_model.parameters(), lr=0.02)
    before = loss(batch)["trust_distance"]
    for _ in range(150):
        loss(batch)["loss_trust"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(batch)["trust_distance"] < 0.1 * before
    assert all(p.grad is None for p in loss.reference.parameters())


def test_the_reference_is_saved_and_anchored_anew() -> None:
    loss, batch = ModelTrustLoss(single(3), num_samples=50), rows()
    moved(loss)
    fresh = ModelTrustLoss(single(3), num_samples=50)
    fresh.load_state_dict(loss.state_dict())
    torch.manual_seed(2)
    want = loss(batch)["trust_distance"]
    torch.manual_seed(2)
    torch.testing.assert_close(fresh(batch)["trust_distance"], want)
    assert want > 0.01
    loss.anchor()
    assert loss(batch)["trust_distance"].item() == pytest.approx(0, abs=1e-6)
    trainable = {id(p) for p in loss.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in loss.world_model.parameters()}


def test_contract() -> None:
    loss, batch = ModelTrustLoss(single(3), weight=2.0), rows(6).reshape(3, 2)
    moved(loss)
    batch["next", "unread"] = torch.zeros(3, 2, 1)
    before = batch.clone()
    out = loss(batch)
    assert set(batch.keys(True)) == set(before.keys(True))
    assert set(out.keys()) == set(loss.out_keys)
    assert loss.in_keys == ["observation", "action"]
    torch.testing.assert_close(out["loss_trust"], 2 * out["trust_distance"])
    with pytest.raises(ValueError, match="divergence"):
        ModelTrustLoss(single(), divergence="js")
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        ModelTrustLoss(single(), divergence="total_variation", num_samples=1)


class Normal1d(TensorDictModule):
    """A world model of another kind, with nested keys: density and sampler alone."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(3, 3), [("s", "o"), ("s", "a")], [("next", "s")])

    def get_dist(self, tensordict: TensorDict) -> torch.distributions.Distribution:
        inputs = torch.cat([tensordict["s", "o"], tensordict["s", "a"]], -1)
        return torch.distributions.Independent(Normal(self.module(inputs), 0.5), 1)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        return tensordict.set(("next", "s"), self.get_dist(tensordict).sample())


def test_any_world_model_with_a_density() -> None:
    loss = ModelTrustLoss(Normal1d(), num_samples=4000)
    batch = TensorDict({"s": {"o": torch.randn(8, 2), "a": torch.randn(8, 1)}}, [8])
    with torch.no_grad():
        loss.world_model.module.bias.add_(torch.tensor([0.5, 0.0, 0.0]))
    # one standard deviation apart: half a nat
    assert loss(batch)["trust_distance"].item() == pytest.approx(0.5, rel=0.05)


def trust_phase(weight: float, **kwargs) -> ModelPhase:
    torch.manual_seed(0)
    spec = Bounded(-1, 1, shape=(1,))
    networks = make_actor(2, spec, hidden_sizes=(8,)), make_qvalue(2, 1, hidden_sizes=(8,))
    agent = SACLoss(*networks, action_spec=spec)
    model = EnsembleWorldModel(2, 1, num_members=3, num_elites=2, hidden_sizes=(8,))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100))
    buffer.extend(rows(100))
    return ModelPhase(
        EnsembleModelEnv(model, action_spec=spec, starts=buffer),
        AdversarialModelLoss.from_loss(model, agent, adversarial_weight=0.5),
        ModelTrustLoss(model, weight=weight),
        buffer,
        batch_size=32,
        lr=3e-3,
        **kwargs,
    )


def test_takes_the_likelihoods_place_in_the_model_phase() -> None:
    """Against a strong adversary the trust term holds the model nearer than nothing does."""
    distances = {}
    for weight in (1.0, 0.0):
        phase = trust_phase(weight)
        metrics = phase.run(100)
        assert {"loss_trust", "trust_distance", "loss_adversarial"} <= set(metrics)
        phase.model_loss.num_samples = 200
        distances[weight] = phase.model_loss(rows(100))["trust_distance"].item()
    assert distances[1.0] < 0.5 * distances[0.0]


@pytest.mark.slow
@pytest.mark.usefixtures("graphs_only")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    eager, compiled = (trust_phase(1.0, compile=compile).run(4) for compile in (False, True))
    assert eager["trust_distance"] > 0
    assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-5)


def test_likelihood_and_trust_agree_where_the_fit_is_the_truth() -> None:
    """With data drawn from the fit, both terms have one gradient, up to the likelihood's scale."""
    model, batch = single(), rows(4000)
    trust, likelihood = ModelTrustLoss(model, num_samples=4), EnsembleModelLoss(model)
    data = trust.reference(batch.clone())
    moved(trust)
    last = model.biases[-1]
    (want,) = torch.autograd.grad(likelihood(data)["loss_model"], [last])
    (got,) = torch.autograd.grad(trust(batch)["loss_trust"], [last])
    # the likelihood term is the mean over 3 dimensions of twice the negative log-density
    torch.testing.assert_close(got, want * 3 / 2, rtol=0.1, atol=0.05)
