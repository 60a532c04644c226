"""The adversarial loss outside of RAMBO: other models, nested keys, and the pages' examples."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, TD3Loss

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss, functional

DOCS = Path(__file__).parents[2] / "docs"
SPEC = Bounded(-1, 1, shape=(1,))


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def execute(source: str) -> dict:
    names: dict = {}
    exec(compile(source, "docs", "exec"), names)
    return names


#: the blocks that another test of this file runs
ELSEWHERE = [("reuse.md", 0), ("online.md", 0)]
PAGES = [
    (page, number)
    for page in ("reuse.md", "world_models.md", "online.md", "methods.md", "variants.md")
    for number in range(len(blocks(page)))
]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(("page", "number"), [one for one in PAGES if one not in ELSEWHERE])
def test_every_block_runs(page: str, number: int) -> None:
    names = execute(blocks(page)[number])
    model = names.get("world_model")
    assert model is None or all(p.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_robust_training_online_gains_where_the_world_is_not_the_simulator() -> None:
    names = execute(blocks("online.md")[0])
    (plain_in, plain_out), (robust_in, robust_out) = names["plain"], names["robust"]
    # all sails up: 1 in the simulator, 1 - 1.5 in a headwind of 1.5
    assert plain_in > 0.9 and plain_out < -0.35
    # less sail, which is better out there and still sails
    assert robust_out > plain_out + 0.25
    assert 0.05 < robust_in < plain_in - 0.1


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_mbpo_needs_fewer_than_ten_lines_to_be_robust() -> None:
    source = blocks("reuse.md")[0].splitlines()
    marked = [line for line in source if "# robust" in line]
    assert 0 < len(marked) < 10
    plain = execute("\n".join(line for line in source if line not in marked))
    robust = execute("\n".join(source))
    # the model is fitted to the data in both, and played against the agent with the lines alone
    terms = [set(names["losses"].keys()) for names in (plain, robust)]
    assert ["loss_adversarial" in found for found in terms] == [False, True]
    assert all("loss_model" in found for found in terms)
    assert robust["losses"]["loss_adversarial"].requires_grad
    assert robust["adversary"].world_model is robust["world_model"]
    assert all(p.isfinite().all() for p in robust["world_model"].parameters())


# World models that are not the library's


def nested_agent(deterministic: bool) -> SACLoss | TD3Loss:
    """Observation and action, value and reward, all nested."""
    actor_net = MLP(in_features=3, out_features=1 if deterministic else 2, num_cells=[8])
    observation, action = ("agent", "observation"), ("agent", "action")
    critic = ValueOperator(
        MLP(in_features=4, out_features=1, num_cells=[8]),
        in_keys=[observation, action],
        out_keys=[("agent", "value")],
    )
    if deterministic:
        actor = TensorDictModule(nn.Sequential(actor_net, nn.Tanh()), [observation], [action])
        agent = TD3Loss(actor, critic, action_spec=SPEC)
    else:
        actor = ProbabilisticActor(
            TensorDictModule(
                nn.Sequential(actor_net, NormalParamExtractor()),
                [observation],
                [("agent", "loc"), ("agent", "scale")],
            ),
            in_keys={"loc": ("agent", "loc"), "scale": ("agent", "scale")},
            out_keys=[action],
            distribution_class=TanhNormal,
        )
        agent = SACLoss(actor, critic, action_spec=SPEC)
    agent.set_keys(
        action=action,
        state_action_value=("agent", "value"),
        reward=("agent", "reward"),
        terminated=("agent", "over"),
    )
    return agent


@pytest.mark.parametrize("deterministic", [False, True])
def test_nested_keys_from_the_agents_loss_to_the_model(deterministic: bool) -> None:
    agent = nested_agent(deterministic)
    model = EnsembleWorldModel(
        3,
        1,
        hidden_sizes=(8,),
        observation_key=("agent", "observation"),
        action_key=("agent", "action"),
        reward_key=("agent", "reward"),
    )
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=1.0)
    assert loss.in_keys == [
        ("agent", "observation"),
        ("agent", "action"),
        ("next", "agent", "observation"),
        ("next", "agent", "reward"),
        ("next", "agent", "over"),
    ]
    batch = TensorDict(
        {"agent": {"observation": torch.randn(16, 3), "action": torch.rand(16, 1)}}, [16]
    )
    batch = model(batch)
    batch["next", "agent", "over"] = torch.rand(16, 1) < 0.3
    advantage, value, qvalue = loss.advantage(batch)
    over = batch["next", "agent", "over"].squeeze(-1)
    want = batch["next", "agent", "reward"].squeeze(-1) + 0.99 * value * ~over - qvalue
    torch.testing.assert_close(advantage, want)
    out = loss(batch.select(*loss.in_keys))
    out["loss_adversarial"].backward()
    want = (functional.standardize(advantage) * model.log_prob(batch)).mean()
    torch.testing.assert_close(out["loss_adversarial"], want)
    assert all(p.grad is None for p in agent.parameters())


class Members(nn.Module):
    """A user's ensemble: separate networks of unit variance, its mixture's density by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        inputs = torch.cat([tensordict["observation"], tensordict["action"]], -1)
        outcome = torch.cat([tensordict["next", "observation"], tensordict["next", "reward"]], -1)
        each = [Normal(net(inputs), 1.0).log_prob(outcome).sum(-1) for net in self.nets]
        return torch.logsumexp(torch.stack(each), 0) - math.log(len(self.nets))


def single_gaussian(event_dims: int) -> ProbabilisticTensorDictSequential:
    """TorchRL's modules, one distribution for each of next observation and reward."""

    class Net(nn.Linear):
        def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
            mean = super().forward(torch.cat([observation, action], -1))
            one = torch.ones_like(mean)
            return mean[..., :3], one[..., :3], mean[..., 3:], one[..., 3:]

    def dist(loc: Tensor, scale: Tensor) -> Independent:
        return Independent(Normal(loc, scale), event_dims)

    names = {"o": ("next", "observation"), "r": ("next", "reward")}
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            Net(4, 4),
            ["observation", "action"],
            [("params", p, k) for p in names for k in ("loc", "scale")],
        ),
        ProbabilisticTensorDictModule(
            ["params"],
            list(names.values()),
            distribution_class=CompositeDistribution,
            distribution_kwargs={
                "distribution_map": dict.fromkeys(names, dist),
                "name_map": names,
            },
        ),
    )


class DistributionOnly(nn.Module):
    """No log_prob: the distribution over (next observation, reward) alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def get_dist(self, tensordict: TensorDict) -> Independent:
        inputs = torch.cat([tensordict["observation"], tensordict["action"]], -1)
        return Independent(Normal(self.net(inputs), 1.0), 1)


class PerDimension(DistributionOnly):
    """A log-density for each dimension, as an unreduced Normal gives it."""

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        dist = self.get_dist(tensordict).base_dist
        following = tensordict["next"]
        return dist.log_prob(torch.cat([following["observation"], following["reward"]], -1))


class Column(PerDimension):
    """[B, 1], which would broadcast against advantages [B] to [B, B]."""

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        return super().log_prob(tensordict).sum(-1, keepdim=True)


def joint(model: nn.Module, batch: TensorDict) -> Tensor:
    """Its log-density by hand: unit variances, dimensions summed, members averaged as densities."""
    inputs = torch.cat([batch["observation"], batch["action"]], -1)
    outcome = torch.cat([batch["next", "observation"], batch["next", "reward"]], -1)
    nets = [m for m in model.modules() if isinstance(m, nn.Linear)]
    densities = []
    for net in nets:
        error = outcome - nn.functional.linear(inputs, net.weight, net.bias)
        densities.append((-0.5 * error.square().sum(-1)).exp() / (2 * math.pi) ** 2)
    return torch.stack(densities).mean(0).log()


@pytest.mark.parametrize(
    "make",
    [
        Members,
        DistributionOnly,
        PerDimension,
        Column,
        lambda: single_gaussian(1),
        lambda: single_gaussian(0),
    ],
    ids=["members", "get_dist", "per dimension", "column", "composite", "composite, unreduced"],
)
@pytest.mark.parametrize("shape", [(24,), (4, 6)])
def test_world_models_of_other_kinds(make, shape: tuple[int, ...]) -> None:
    model = make()
    actor = TensorDictModule(lambda o: o[..., :1].tanh(), ["observation"], ["action"])
    critic = TensorDictModule(
        lambda o, a: o.sum(-1, keepdim=True) + a, ["observation", "action"], ["state_action_value"]
    )
    loss = AdversarialModelLoss(model, actor, critic, adversarial_weight=1.0)
    batch = TensorDict(
        {
            "observation": torch.randn(24, 3),
            "action": torch.randn(24, 1),
            "next": {"observation": torch.randn(24, 3), "reward": torch.randn(24, 1)},
        },
        [24],
    )
    weight = functional.standardize(loss.advantage(batch)[0])
    want = (weight * joint(model, batch)).mean()
    parameters = list(model.parameters())
    want_gradients = torch.autograd.grad(want, parameters)
    out = loss(batch.reshape(shape))["loss_adversarial"]
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(torch.autograd.grad(out, parameters), want_gradients)


def test_a_density_of_another_batch_is_refused() -> None:
    class Transposed(PerDimension):
        def log_prob(self, tensordict: TensorDict) -> Tensor:
            return super().log_prob(tensordict).T

    actor = TensorDictModule(lambda o: o[..., :1], ["observation"], ["action"])
    critic = TensorDictModule(lambda o, a: a, ["observation", "action"], ["state_action_value"])
    loss = AdversarialModelLoss(Transposed(), actor, critic)
    batch = TensorDict(
        {
            "observation": torch.randn(8, 3),
            "action": torch.randn(8, 1),
            "next": {"observation": torch.randn(8, 3), "reward": torch.randn(8, 1)},
        },
        [8],
    )
    with pytest.raises(ValueError, match=r"shape \[4, 8\], expected \[8\]"):
        loss(batch)
