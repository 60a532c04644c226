"""The model-free methods' losses against their papers' equations, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import BCLoss, CQLLoss, IQLLoss, TD3BCLoss

from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.objectives.cql import ConservativeQLoss

SPEC = Bounded(-1, 1, shape=(1,))
GAMMA = 0.9
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def batch(num: int = 4, low: float = -1.0, high: float = 1.0) -> TensorDict:
    terminated = torch.zeros(num, 1, dtype=torch.bool)
    terminated[0] = True
    return TensorDict(
        observation=torch.randn(num, 2),
        action=low + (high - low) * torch.rand(num, 1),
        next=TensorDict(
            observation=torch.randn(num, 2),
            reward=torch.randn(num, 1),
            terminated=terminated,
            done=terminated.clone(),
            batch_size=[num],
        ),
        batch_size=[num],
    )


def linear_critic(loss, which: int, weight: list[float], bias: float, target: bool = False) -> None:
    """Make a critic of ``hidden_sizes=[]`` the given linear function of (observation, action)."""
    params = loss.target_qvalue_network_params if target else loss.qvalue_network_params
    for name, value in (("weight", torch.tensor([weight])), ("bias", torch.tensor([bias]))):
        params.data["module", "0", name][which] = value


def touched(loss, term: torch.Tensor) -> dict[str, bool]:
    """Which of the loss's networks get a gradient from a term."""
    groups = ("actor_network_params", "qvalue_network_params", "value_network_params")
    found = {}
    for group in groups:
        if not hasattr(loss, group):
            continue
        parameters = list(getattr(loss, group).parameters())
        grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        found[group.split("_")[0]] = any(g is not None and bool(g.abs().sum() > 0) for g in grads)
    return found


class TestCQL:
    """The conservative term, Eq. 4 of the paper with importance sampling (appendix F)."""

    spec = Bounded(-2.0, 1.0, shape=(1,))

    def make(self, kind=ConservativeQLoss, **keywords):
        loss = kind(
            make_actor(2, self.spec, hidden_sizes=[8]),
            make_qvalue(2, 1, hidden_sizes=[]),
            action_spec=self.spec,
            loss_function="l2",
            **keywords,
        )
        loss.make_value_estimator(gamma=GAMMA)
        for which, slope in enumerate((0.7, -1.3)):
            linear_critic(loss, which, [0.5, -0.2, slope], 0.1 * which)
        return loss

    def term(self, loss, data) -> torch.Tensor:
        loss.q_loss(data)  # writes what cql_loss reads
        return loss.cql_loss(data)[0]

    def exact(self, data, temperature: float = 1.0) -> float:
        """T log of the integral of exp(Q / T) over the actions, less Q of the data's action."""
        state = data["observation"] @ torch.tensor([0.5, -0.2])
        total = 0.0
        for which, slope in enumerate((0.7, -1.3)):
            k = slope / temperature
            integral = (math.exp(k * 1.0) - math.exp(k * -2.0)) / k
            value = state + 0.1 * which
            soft = value + temperature * math.log(integral)
            total += float((soft - value - slope * data["action"].squeeze(-1)).mean())
        return total

    @pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (5.0, 1.0), (1.0, 0.5)])
    def test_is_the_papers(self, weight: float, temperature: float) -> None:
        loss = self.make(num_random=20_000, min_q_weight=weight, temperature=temperature)
        data = batch(3, -2.0, 1.0)
        expected = weight * self.exact(data, temperature)
        assert self.term(loss, data).item() == pytest.approx(expected, abs=0.05 * weight)

    def test_torchrls_own_is_another(self) -> None:
        """Why there is a subclass; once TorchRL's is the paper's, it can go."""
        data = batch(3, -2.0, 1.0)
        theirs = self.term(self.make(CQLLoss, num_random=2000), data.clone()).item()
        assert abs(theirs - self.exact(data)) > 0.5

    def test_each_proposal_is_valued_in_the_rows_own_state(self) -> None:
        """Moving the next states moves the term only through the policy's proposals."""
        loss = self.make(num_random=5000)
        data = batch(3, -2.0, 1.0)
        moved = data.clone()
        moved["next", "observation"] = moved["next", "observation"] + 3.0
        assert self.term(loss, moved).item() == pytest.approx(
            self.term(loss, data).item(), abs=0.15
        )

    def test_only_the_critics_learn_from_it(self) -> None:
        loss = self.make()
        assert touched(loss, self.term(loss, batch())) == {"actor": False, "qvalue": True}

    def test_pushes_the_data_up_and_the_rest_down(self) -> None:
        """The gradient by the slope is the mean of softmax actions less the data's action."""
        loss = self.make(num_random=20_000)
        data = batch(3, -2.0, 1.0)
        weight = loss.qvalue_network_params["module", "0", "weight"]
        (grad,) = torch.autograd.grad(self.term(loss, data), [weight])
        grid = torch.linspace(-2.0, 1.0, 20_001)
        for which, slope in enumerate((0.7, -1.3)):
            soft = ((slope * grid).softmax(0) * grid).sum()
            expected = soft - data["action"].mean()
            assert grad[which, 0, 2].item() == pytest.approx(expected.item(), abs=0.03)

    def test_forward_has_the_warm_starts_term_too(self) -> None:
        out = self.make()(batch(4, -1.9, 0.9))
        assert {"loss_actor", "loss_actor_bc", "loss_cql", "loss_qvalue", "loss_alpha"} <= set(
            out.keys()
        )

    @pytest.mark.parametrize(("low", "high"), [(-1.0, math.inf), (-math.inf, 1.0), (1.0, 1.0)])
    def test_bounds_that_uniform_actions_need(self, low: float, high: float) -> None:
        spec = Bounded(low, high, shape=(1,))
        with pytest.raises(ValueError, match="finite bounds are required"):
            ConservativeQLoss(make_actor(2, SPEC), make_qvalue(2, 1), action_spec=spec)

    def test_unbounded_actions_are_refused(self) -> None:
        with pytest.raises(TypeError, match="needs a Bounded action_spec, got Unbounded"):
            ConservativeQLoss(
                make_actor(2, SPEC), make_qvalue(2, 1), action_spec=Unbounded(shape=(1,))
            )


class TestIQL:
    """TorchRL's loss as the paper's Eq. 5 to 7, and what the recipe relies on."""

    def make(self) -> IQLLoss:
        value = ValueOperator(MLP(2, 1, num_cells=[], activation_class=nn.ReLU), ["observation"])
        loss = IQLLoss(
            make_actor(2, SPEC, hidden_sizes=[8]),
            make_qvalue(2, 1, hidden_sizes=[]),
            value,
            loss_function="l2",
            temperature=3.0,
            expectile=0.7,
        )
        loss.make_value_estimator(gamma=GAMMA)
        for which, (weight, bias) in enumerate((([1.0, 0.0, 0.5], 0.0), ([0.0, 1.0, 2.0], 0.3))):
            linear_critic(loss, which, weight, bias)
            linear_critic(loss, which, [2 * w for w in weight], bias, target=True)
        loss.value_network_params.data["module", "0", "weight"][:] = torch.tensor([[0.4, -0.6]])
        loss.value_network_params.data["module", "0", "bias"][:] = 0.05
        return loss

    def parts(self, data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lower target critic [B], V(s) [B], and the TD target [B]."""
        x, y = data["observation"].unbind(-1)
        a = data["action"].squeeze(-1)
        lower = torch.minimum(2 * x + a, 2 * y + 4 * a + 0.3)
        value = 0.4 * x - 0.6 * y + 0.05
        x, y = data["next", "observation"].unbind(-1)
        following = 0.4 * x - 0.6 * y + 0.05
        alive = 1 - data["next", "terminated"].float().squeeze(-1)
        return lower, value, data["next", "reward"].squeeze(-1) + GAMMA * alive * following

    def test_is_the_papers(self) -> None:
        loss, data = self.make(), batch(64)
        out = loss(data.clone())
        lower, value, target = self.parts(data)
        gap = lower - value
        weight = torch.where(gap > 0, 0.7, 0.3)
        assert out["loss_value"].item() == pytest.approx((weight * gap**2).mean().item(), rel=1e-4)
        x, y = data["observation"].unbind(-1)
        a = data["action"].squeeze(-1)
        errors = (x + 0.5 * a - target) ** 2 + (y + 2 * a + 0.3 - target) ** 2
        assert out["loss_qvalue"].item() == pytest.approx(errors.mean().item(), rel=1e-4)
        log_prob = loss.actor_network.get_dist(data.clone()).log_prob(data["action"])
        importance = (3.0 * gap).exp().clamp_max(100.0)
        assert (importance == 100).any() and (importance < 100).any()
        expected = -(importance * log_prob).mean().item()
        assert out["loss_actor"].item() == pytest.approx(expected, rel=1e-3)

    def test_each_term_trains_its_own_network(self) -> None:
        """Summed, as the recipe does, they must not reach into each other's networks."""
        loss = self.make()
        out = loss(batch(16))
        for name, group in (("loss_actor", "actor"), ("loss_qvalue", "qvalue"),
                            ("loss_value", "value")):  # fmt: skip
            found = touched(loss, out[name])
            assert found == {key: key == group for key in found}, name


class TestTD3BC:
    """TorchRL's loss as the paper's Eq. 3 to 5, with the shared actor's mode as the policy."""

    def make(self, **keywords) -> TD3BCLoss:
        loss = TD3BCLoss(
            make_actor(2, SPEC, hidden_sizes=[8]),
            make_qvalue(2, 1, hidden_sizes=[]),
            action_spec=SPEC,
            loss_function="l2",
            **keywords,
        )
        loss.make_value_estimator(gamma=GAMMA)
        for which, (weight, bias) in enumerate((([1.0, 0.0, 0.5], 0.0), ([0.0, 1.0, 2.0], 0.3))):
            linear_critic(loss, which, weight, bias)
            linear_critic(loss, which, [2 * w for w in weight], bias, target=True)
        return loss

    def test_the_actors_term(self) -> None:
        loss, data = self.make(alpha=2.5), batch(32)
        term, metrics = loss.actor_loss(data.clone())
        with torch.no_grad():
            # the mode, from the network's own weights
            hidden = data["observation"] @ self.weight(loss, "0").T + self.bias(loss, "0")
            mode = (hidden.relu() @ self.weight(loss, "2").T + self.bias(loss, "2"))[:, :1].tanh()
        first = (data["observation"][:, :1] + 0.5 * mode).squeeze(-1)
        factor = 2.5 / first.abs().mean()
        expected = -factor * first.mean() + (mode - data["action"]).square().mean()
        assert metrics["lmbd"].item() == pytest.approx(factor.item(), rel=1e-4)
        assert term.item() == pytest.approx(expected.item(), rel=1e-4)
        assert touched(loss, term) == {"actor": True, "qvalue": False}

    @staticmethod
    def weight(loss, layer: str) -> torch.Tensor:
        return loss.actor_network_params.data["module", "0", "module", "0", layer, "weight"]

    @staticmethod
    def bias(loss, layer: str) -> torch.Tensor:
        return loss.actor_network_params.data["module", "0", "module", "0", layer, "bias"]

    def test_the_scales_half_of_the_actor_gets_no_gradient(self) -> None:
        loss = self.make()
        term, _ = loss.actor_loss(batch(32))
        last = loss.actor_network_params["module", "0", "module", "0", "2", "bias"]
        (grad,) = torch.autograd.grad(term, [last])
        assert grad[0] != 0 and grad[1] == 0

    def test_the_critics_term(self) -> None:
        """With the noise fixed by the seed: clipped, and the action within its bounds."""
        loss, data = self.make(policy_noise=2.0, noise_clip=0.5), batch(64)
        torch.manual_seed(7)
        term, _ = loss.qvalue_loss(data.clone())
        torch.manual_seed(7)
        noise = (2.0 * torch.randn(64, 1)).clamp(-0.5, 0.5)
        following = data["next", "observation"]
        with torch.no_grad():
            hidden = following @ self.weight(loss, "0").T + self.bias(loss, "0")
            mode = (hidden.relu() @ self.weight(loss, "2").T + self.bias(loss, "2"))[:, :1].tanh()
        action = (mode + noise).clamp(-1, 1).squeeze(-1)
        x, y = following.unbind(-1)
        lower = torch.minimum(2 * x + action, 2 * y + 4 * action + 0.3)
        alive = 1 - data["next", "terminated"].float().squeeze(-1)
        target = data["next", "reward"].squeeze(-1) + GAMMA * alive * lower
        x, y = data["observation"].unbind(-1)
        a = data["action"].squeeze(-1)
        expected = ((x + 0.5 * a - target) ** 2 + (y + 2 * a + 0.3 - target) ** 2).mean()
        assert term.item() == pytest.approx(expected.item(), rel=1e-4)
        assert touched(loss, term) == {"actor": False, "qvalue": True}


class TestBC:
    """TorchRL's loss as maximum likelihood: it has other losses for other kinds of policies."""

    @pytest.mark.filterwarnings("ignore:The name target_")  # an annotation that TorchRL lacks
    def test_is_the_likelihood_of_a_squashed_gaussian(self) -> None:
        actor, data = make_actor(2, SPEC, hidden_sizes=[8]), batch(32, -0.95, 0.95)
        with torch.no_grad():
            found = actor(data.clone())
        loc, scale = found["loc"], found["scale"]
        before = data["action"].atanh()  # the draw that tanh squashed
        gaussian = -0.5 * ((before - loc) / scale).square() - (scale * (2 * math.pi) ** 0.5).log()
        log_prob = gaussian - (1 - data["action"].square()).log()  # |d tanh(x) / dx|
        loss = BCLoss(actor)
        term = loss(data)["loss_bc"]
        assert term.item() == pytest.approx(-log_prob.mean().item(), rel=1e-4)
        assert touched(loss, term) == {"actor": True}
