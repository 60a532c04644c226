"""AdversarialModelLoss: numbers, where gradients go, live agents, the LossModule contract."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import (
    CQLLoss,
    DDPGLoss,
    IQLLoss,
    LossModule,
    REDQLoss,
    SACLoss,
    SoftUpdate,
    TD3BCLoss,
    TD3Loss,
)

from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, COMBOLoss

SPEC = Bounded(-1, 1, shape=(1,))
METRICS = ["advantage_mean", "advantage_std", "model_log_prob", "value", "qvalue"]


def make_model(**kwargs) -> EnsembleWorldModel:
    return EnsembleWorldModel(3, 1, num_elites=3, hidden_sizes=(8, 8), **kwargs)


def deterministic_actor() -> TensorDictModule:
    net = nn.Sequential(MLP(in_features=3, out_features=1, num_cells=[8]), nn.Tanh())
    return TensorDictModule(net, ["observation"], ["action"])


def networks() -> tuple[nn.Module, nn.Module]:
    return make_actor(3, SPEC, hidden_sizes=(8,)), make_qvalue(3, 1, hidden_sizes=(8,))


def deterministic() -> tuple[nn.Module, nn.Module]:
    return deterministic_actor(), make_qvalue(3, 1, hidden_sizes=(8,))


def sac(**kwargs) -> SACLoss:
    return SACLoss(*networks(), action_spec=SPEC, **kwargs)


def state_value() -> ValueOperator:
    return ValueOperator(MLP(in_features=3, out_features=1, num_cells=[8]))


AGENTS: dict[str, Callable[[], LossModule]] = {
    "SAC": sac,
    "TD3": lambda: TD3Loss(*deterministic(), action_spec=SPEC),
    "DDPG": lambda: DDPGLoss(*deterministic()),
    "REDQ": lambda: REDQLoss(*networks(), action_spec=SPEC),
    "CQL": lambda: CQLLoss(*networks(), action_spec=SPEC),
    "SAC with five critics": lambda: sac(num_qvalue_nets=5),
    "TD3+BC": lambda: TD3BCLoss(*deterministic(), action_spec=SPEC),
    "IQL": lambda: IQLLoss(*networks(), state_value()),
    "COMBO": lambda: COMBOLoss(*networks(), action_spec=SPEC, num_real=4),
}


def each_qvalue(agent: LossModule, td: TensorDict) -> Tensor:
    """The values of a loss's critics, network by network: [K, *B]."""
    values = []
    for params in agent.qvalue_network_params.data.unbind(0):
        with params.to_module(agent.qvalue_network):
            value = agent.qvalue_network(td.copy())["state_action_value"]
        values.append(value.reshape(td.batch_size))
    return torch.stack(values)


def at_the_mode(agent: LossModule, td: TensorDict) -> TensorDict:
    with (
        agent.actor_network_params.data.to_module(agent.actor_network),
        set_exploration_type(ExplorationType.DETERMINISTIC),
    ):
        return agent.actor_network(td.copy())


def imagined(model: EnsembleWorldModel, rows: int = 16) -> TensorDict:
    td = TensorDict(
        {"observation": torch.randn(rows, 3), "action": 2 * torch.rand(rows, 1) - 1}, [rows]
    )
    td = model(td)
    td["next", "terminated"] = torch.rand(rows, 1) < 0.3
    return td


# A hand-made agent: Q1 = obs . 1 + 2 a, Q2 = 1 + 3 a, policy's mode 0.5 everywhere.


class FirstCritic(nn.Module):
    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return observation.sum(-1, keepdim=True) + 2 * action


class SecondCritic(nn.Module):
    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return 1 + 3 * action


class RecordedDensity(nn.Module):
    """A world model of another kind: its log-density is a parameter per row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.density = nn.Parameter(torch.linspace(-2, 1, rows))

    def log_prob(self, tensordict: TensorDict) -> Tensor:
        return self.density.reshape(tensordict.batch_size)


def hand_agent() -> tuple[TensorDictModule, list[TensorDictModule]]:
    actor = TensorDictModule(
        lambda observation: torch.full_like(observation[..., :1], 0.5),
        ["observation"],
        ["action"],
    )
    critics = [
        TensorDictModule(c, ["observation", "action"], ["state_action_value"])
        for c in (FirstCritic(), SecondCritic())
    ]
    return actor, critics


def hand_batch() -> TensorDict:
    return TensorDict(
        {
            "observation": torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, -1.0], [0.0, 5.0]]),
            "action": torch.tensor([[1.0], [-1.0], [0.0], [1.0]]),
            "next": {
                "observation": torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, -4.0], [9.0, 9.0]]),
                "reward": torch.tensor([[1.0], [0.0], [-1.0], [2.0]]),
                "terminated": torch.tensor([[False], [False], [False], [True]]),
                "truncated": torch.tensor([[False], [True], [False], [False]]),
                "done": torch.tensor([[False], [True], [False], [True]]),
            },
        },
        [4],
    )


# Q(s, a): min(4, 4), min(-2, -2), min(1, 1), min(7, 4); V(s'): min(1, 2.5), min(7, 2.5),
# min(-2, 2.5), and 2.5 beyond the end, which must not count. gamma = 0.5.
HAND_Q = torch.tensor([4.0, -2.0, 1.0, 4.0])
HAND_V = torch.tensor([1.0, 2.5, -2.0, 2.5])
HAND_ADVANTAGE = torch.tensor([1 + 0.5 - 4, 0 + 1.25 + 2, -1 - 1 - 1, 2 + 0 - 4])
HAND_LOG_PROB = torch.tensor([-2.0, -1.0, 0.0, 1.0])


def hand_loss(**kwargs) -> AdversarialModelLoss:
    actor, critics = hand_agent()
    kwargs = {"adversarial_weight": 0.25, "gamma": 0.5} | kwargs
    return AdversarialModelLoss(RecordedDensity(4), actor, critics, **kwargs)


def test_advantage_by_hand() -> None:
    """Smallest critic, policy's mode, ends cut the bootstrap, truncation does not."""
    advantage, value, qvalue = hand_loss().advantage(hand_batch())
    torch.testing.assert_close(qvalue, HAND_Q)
    torch.testing.assert_close(value, HAND_V)
    torch.testing.assert_close(advantage, HAND_ADVANTAGE)
    advantage, _, _ = hand_loss(baseline=False).advantage(hand_batch())
    torch.testing.assert_close(advantage, HAND_ADVANTAGE + HAND_Q)


def test_missing_terminated_counts_as_going_on() -> None:
    batch = hand_batch().exclude(("next", "terminated"))
    advantage, _, _ = hand_loss().advantage(batch)
    torch.testing.assert_close(advantage, HAND_ADVANTAGE + torch.tensor([0, 0, 0, 1.25]))


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ("next", [("next", "observation"), ("next", "reward")]),
        (("next", "reward"), [("next", "reward")]),
    ],
)
def test_missing_entries_are_named(
    entry: str | tuple[str, ...], missing: list[tuple[str, ...]]
) -> None:
    with pytest.raises(KeyError, match=re.escape(f"the imagined batch lacks {missing}: ")):
        hand_loss()(hand_batch().exclude(entry))


class JoinedDensity(nn.Module):
    """The distribution over (next observation, reward) alone."""

    def get_dist(self, tensordict: TensorDict) -> Independent:
        inputs = torch.cat([tensordict["observation"], tensordict["action"]], dim=-1)
        return Independent(Normal(inputs, 1.0), 1)


@pytest.mark.parametrize("make", [make_model, JoinedDensity])
@pytest.mark.parametrize("batch_size", [(16,), (4, 4)])
def test_rewards_may_have_no_last_dimension(make: Callable, batch_size: tuple[int, ...]) -> None:
    loss = AdversarialModelLoss.from_loss(make(), sac(), per_dimension=True)
    batch = imagined(make_model()).exclude("prediction").reshape(batch_size)
    want = loss(batch)
    flat = batch.copy().set(("next", "reward"), batch["next", "reward"].squeeze(-1))
    out = loss(flat)
    assert flat["next", "reward"].shape == batch_size
    for key in loss.out_keys:
        torch.testing.assert_close(out[key], want[key])


def test_a_world_model_may_want_rewards_without_a_last_dimension() -> None:
    class FlatReward(nn.Module):
        def log_prob(self, tensordict: TensorDict) -> Tensor:
            return Normal(tensordict["observation"].sum(-1), 1.0).log_prob(
                tensordict["next", "reward"]
            )

    batch = hand_batch()
    batch["next", "reward"] = batch["next", "reward"].squeeze(-1)
    actor, critics = hand_agent()
    out = AdversarialModelLoss(FlatReward(), actor, critics)(batch)
    want = FlatReward().log_prob(batch).mean()
    torch.testing.assert_close(out["model_log_prob"], want)


def test_loss_and_metrics_by_hand() -> None:
    out = hand_loss(normalize_advantage=False)(hand_batch())
    # advantages -2.5, 3.25, -3, -2 times log-densities -2, -1, 0, 1: 5 - 3.25 + 0 - 2 = -0.25
    assert out["loss_adversarial"].item() == pytest.approx(0.25 * -0.25 / 4)
    assert out["advantage_mean"].item() == pytest.approx(-4.25 / 4)
    want_std = math.sqrt(((HAND_ADVANTAGE - HAND_ADVANTAGE.mean()) ** 2).mean())
    assert out["advantage_std"].item() == pytest.approx(want_std)
    assert out["model_log_prob"].item() == pytest.approx(-0.5)
    assert out["value"].item() == pytest.approx(1.0)
    assert out["qvalue"].item() == pytest.approx(1.75)

    standard = (HAND_ADVANTAGE - HAND_ADVANTAGE.mean()) / want_std
    out = hand_loss()(hand_batch())
    want = 0.25 * (standard * HAND_LOG_PROB).mean().item()
    assert out["loss_adversarial"].item() == pytest.approx(want)


def test_advantages_are_clipped_after_they_are_standardised() -> None:
    standard = (HAND_ADVANTAGE - HAND_ADVANTAGE.mean()) / HAND_ADVANTAGE.std(correction=0)
    assert standard.abs().max() > 1.5
    out = hand_loss(advantage_clip=0.5)(hand_batch())
    want = 0.25 * (standard.clamp(-0.5, 0.5) * HAND_LOG_PROB).mean().item()
    assert out["loss_adversarial"].item() == pytest.approx(want)
    assert out["advantage_mean"].item() == pytest.approx(-4.25 / 4)  # as it is, unclipped
    loose = hand_loss(advantage_clip=100.0)(hand_batch())["loss_adversarial"]
    torch.testing.assert_close(loose, hand_loss()(hand_batch())["loss_adversarial"])


@pytest.mark.parametrize("batch_size", [(4,), (2, 2)])
def test_any_batch_shape(batch_size: tuple[int, ...]) -> None:
    want = hand_loss()(hand_batch())["loss_adversarial"]
    got = hand_loss()(hand_batch().reshape(batch_size))["loss_adversarial"]
    torch.testing.assert_close(got, want)


def test_lambda_scales_linearly_and_can_be_scheduled() -> None:
    agent, model = sac(), make_model()
    batch = imagined(model)
    values, gradients = {}, {}
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=1.0)
    for weight in (1.0, 0.1, 0.0):
        loss.adversarial_weight = weight
        model.zero_grad()
        out = loss(batch)["loss_adversarial"]
        out.backward()
        values[weight] = out.detach()
        gradients[weight] = model.weights[-1].grad.clone()
    assert values[1.0].abs() > 1e-3
    torch.testing.assert_close(values[0.1], 0.1 * values[1.0])
    torch.testing.assert_close(gradients[0.1], 0.1 * gradients[1.0])
    assert values[0.0] == 0
    assert gradients[0.0].abs().max() == 0
    assert "adversarial_weight" in loss.state_dict()


def test_reduction_is_the_published_mean() -> None:
    model, agent = make_model(), sac()
    batch = imagined(model)
    out = {
        r: AdversarialModelLoss.from_loss(model, agent, reduction=r)(batch)["loss_adversarial"]
        for r in ("mean", "sum", "none")
    }
    default = AdversarialModelLoss.from_loss(model, agent)
    torch.testing.assert_close(default(batch)["loss_adversarial"], out["mean"])
    assert out["none"].shape == (16,)
    torch.testing.assert_close(out["none"].mean(), out["mean"])
    torch.testing.assert_close(out["sum"], 16 * out["mean"])
    twice = torch.cat([batch, batch])
    torch.testing.assert_close(default(twice)["loss_adversarial"], out["mean"])


def test_log_density_is_summed_over_dimensions() -> None:
    # published: lambda weighs the joint density of all entries of the next state and reward
    model, agent = make_model(), sac()
    batch = imagined(model)
    out = AdversarialModelLoss.from_loss(model, agent)(batch)
    torch.testing.assert_close(out["model_log_prob"], model.log_prob(batch).mean().detach())
    # as an option lambda means the same for states of all sizes: here 3 entries and the reward
    per_entry = AdversarialModelLoss.from_loss(model, agent, per_dimension=True)(batch)
    for name in ("model_log_prob", "loss_adversarial"):
        torch.testing.assert_close(per_entry[name], out[name] / 4)


@pytest.mark.parametrize("rows", [(16,), (4, 4)])
def test_the_density_of_the_member_that_drew_takes_the_mixtures_place(
    rows: tuple[int, ...],
) -> None:
    agent, model = sac(), make_model()
    given = imagined(model).select("observation", "action").reshape(rows)
    batch = model.draw(given)
    found = {
        density: AdversarialModelLoss.from_loss(model, agent, density=density)(batch)
        for density in ("mixture", "member")
    }
    want = {"mixture": model.log_prob(batch), "member": model.member_log_prob(batch)}
    for density, out in found.items():
        torch.testing.assert_close(out["model_log_prob"], want[density].mean().detach())
    assert found["member"]["loss_adversarial"] != found["mixture"]["loss_adversarial"]
    for name in ("advantage_mean", "advantage_std", "value", "qvalue"):
        torch.testing.assert_close(found["member"][name], found["mixture"][name])
    per_entry = AdversarialModelLoss.from_loss(model, agent, density="member", per_dimension=True)
    got = per_entry(batch)["loss_adversarial"]
    torch.testing.assert_close(got, found["member"]["loss_adversarial"] / 4)
    with pytest.raises(KeyError, match="draw them with draw"):
        per_entry(imagined(model))


@pytest.mark.parametrize("agent", AGENTS)
def test_takes_actor_and_critics_live_from_a_torchrl_loss(agent: str) -> None:
    actor_critic, model = AGENTS[agent](), make_model()
    loss = AdversarialModelLoss.from_loss(model, actor_critic)
    batch = imagined(model)
    out = loss(batch)
    out["loss_adversarial"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert all(p.grad is None for p in actor_critic.parameters())

    # the actor changes, then the critics: so do the values, at once
    critic = "value" if agent == "DDPG" else "qvalue"
    for network, changes in (("actor", {"value"}), (critic, {"value", "qvalue"})):
        with torch.no_grad():
            for parameter in getattr(actor_critic, f"{network}_network_params").parameters():
                parameter.add_(0.5)
        after = loss(batch)
        changed = {m for m in ("value", "qvalue") if not torch.isclose(after[m], out[m])}
        assert changed == changes, network
        out = after


@pytest.mark.parametrize("number", [1, 2, 5])
def test_values_are_of_sacs_smallest_critic_at_the_policys_mode(number: int) -> None:
    """V and Q recomputed with SACLoss's own parameters, network by network."""
    agent, model = sac(num_qvalue_nets=number), make_model()
    batch = imagined(model)
    _, value, qvalue = AdversarialModelLoss.from_loss(model, agent).advantage(batch)
    values = each_qvalue(agent, batch.select("observation", "action"))
    torch.testing.assert_close(qvalue, values.amin(dim=0))
    # every critic is the smallest somewhere, so none of them is passed over unnoticed
    assert len(values.argmin(dim=0).unique()) > (number > 1)
    after = at_the_mode(agent, batch["next"].select("observation"))
    torch.testing.assert_close(after["action"], after["loc"].tanh(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, each_qvalue(agent, after).amin(dim=0))


@pytest.mark.parametrize("surroundings", [ExplorationType.RANDOM, ExplorationType.MEAN])
def test_value_is_at_the_mode_whatever_the_exploration_around(
    surroundings: ExplorationType,
) -> None:
    model = make_model()
    loss = AdversarialModelLoss.from_loss(model, sac())
    batch = imagined(model)
    want = loss.advantage(batch)[0]
    with set_exploration_type(surroundings):
        torch.testing.assert_close(loss.advantage(batch)[0], want, rtol=0, atol=0)


def test_gradients_reach_the_world_model_only() -> None:
    agent, model = sac(), make_model()
    frozen = {n for n, p in agent.named_parameters() if not p.requires_grad}
    model.elites.copy_(torch.tensor([6, 1, 3]))
    loss = AdversarialModelLoss.from_loss(model, agent)
    batch = imagined(model)
    for key in batch.keys(True, True):
        if batch[key].is_floating_point():
            batch[key].requires_grad_()
    loss(batch)["loss_adversarial"].backward()
    assert all(p.grad is None for p in agent.parameters())
    assert {n for n, p in agent.named_parameters() if not p.requires_grad} == frozen
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "log_var" in name:
            continue
        touched = parameter.grad.flatten(1).any(1).nonzero().flatten().tolist()
        assert touched == [1, 3, 6], name
    assert model.max_log_var.grad.abs().sum() > 0


def test_agent_is_neither_trained_nor_saved_by_this_loss() -> None:
    model = make_model()
    agents = [sac(), make_actor(3, SPEC, hidden_sizes=(8,))]
    critic = make_qvalue(3, 1, hidden_sizes=(8,))
    losses = [
        AdversarialModelLoss.from_loss(model, agents[0]),
        AdversarialModelLoss(model, agents[1], [critic, critic]),
        AdversarialModelLoss(model, agents[1], critic),
    ]
    for loss in losses:
        assert {id(p) for p in loss.parameters()} == {id(p) for p in model.parameters()}
        names = {f"world_model.{k}" for k in model.state_dict()}
        assert set(loss.state_dict()) == names | {"adversarial_weight", "gamma"}


def test_every_metric_is_detached_and_the_input_unchanged() -> None:
    model = make_model()
    loss, batch = AdversarialModelLoss.from_loss(model, sac()), imagined(model)
    before = batch.clone()
    out = loss(batch)
    assert set(batch.keys(True)) == set(before.keys(True)) and (batch == before).all()
    assert set(out.keys()) == set(loss.out_keys) == {"loss_adversarial", *METRICS}
    assert out["loss_adversarial"].requires_grad
    assert not any(out[key].requires_grad for key in METRICS)


def test_entropy_bonus_raises_the_value_by_the_policys_entropy() -> None:
    agent, model = sac(), make_model()
    batch = imagined(model, rows=1).expand(20_000)
    loss = AdversarialModelLoss.from_loss(model, agent)
    state = torch.get_rng_state()
    plain = loss.advantage(batch)[1]
    assert torch.equal(torch.get_rng_state(), state), "without a bonus nothing is sampled"
    loss.entropy_coeff = 0.5
    bonus = loss.advantage(batch)[1] - plain
    with agent.actor_network_params.data.to_module(agent.actor_network):
        dist = agent.actor_network.get_dist(batch["next"].select("observation")[:1].clone())
    # entropy of the squashed Gaussian by integration over the action
    action = torch.linspace(-1, 1, 20_001)[1:-1]
    log_density = dist.log_prob(action[:, None])
    entropy = -torch.trapezoid(log_density.exp() * log_density, action).item()
    assert bonus.std() > 0
    assert bonus.mean().item() == pytest.approx(0.5 * entropy, abs=0.02)


def test_keys_can_be_renamed_and_nested() -> None:
    actor, critics = hand_agent()
    actor = TensorDictModule(actor.module, ["observation"], [("agent", "move")])
    critics = [
        TensorDictModule(c.module, ["observation", ("agent", "move")], [("q", "value")])
        for c in critics
    ]
    loss = AdversarialModelLoss(
        RecordedDensity(4), actor, critics, adversarial_weight=0.25, gamma=0.5
    )
    assert loss.in_keys == [
        "observation",
        ("agent", "move"),  # the critics read it, and nothing says yet that it is the action
        "action",
        ("next", "observation"),
        ("next", "reward"),
        ("next", "terminated"),
    ]
    loss.set_keys(
        action=("agent", "move"),
        reward=("agent", "gain"),
        terminated=("agent", "over"),
        state_action_value=("q", "value"),
    )
    assert loss.in_keys == [
        "observation",
        ("agent", "move"),
        ("next", "observation"),
        ("next", "agent", "gain"),
        ("next", "agent", "over"),
    ]
    batch = hand_batch()
    renamed = TensorDict(
        {
            "observation": batch["observation"],
            "agent": {"move": batch["action"]},
            "next": {
                "observation": batch["next", "observation"],
                "agent": {
                    "gain": batch["next", "reward"],
                    "over": batch["next", "terminated"],
                },
            },
        },
        [4],
    )
    want = hand_loss()(batch)
    got = loss(renamed)
    for key in loss.out_keys:
        torch.testing.assert_close(got[key], want[key])
    loss.in_keys = ["observation"]
    assert loss.in_keys == ["observation"]
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(colour="red")


# Values of other shapes: [*B], [*B, 1] and, of K critics, [K, *B, 1] are clear


class Stacked(TensorDictModuleBase):
    """K critics in one module, which says itself what the batch of its output is."""

    def __init__(self, critics: list[TensorDictModule], *, column: bool, labelled: bool) -> None:
        super().__init__()
        self.critics, self.column, self.labelled = nn.ModuleList(critics), column, labelled
        self.in_keys, self.out_keys = ["observation", "action"], ["state_action_value"]

    def forward(self, tensordict: TensorDict) -> TensorDict:
        value = torch.stack([c(tensordict.copy())["state_action_value"] for c in self.critics])
        batch_size = value.shape[:-1] if self.labelled else []
        value = value if self.column else value.squeeze(-1)
        return TensorDict({"state_action_value": value}, batch_size)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_values_of_every_clear_shape(shape: tuple[int, ...], column: bool, labelled: bool) -> None:
    batch = hand_batch().reshape(shape)
    actor, critics = hand_agent()

    def qvalue(critics: object) -> Tensor:
        loss = AdversarialModelLoss(RecordedDensity(4), actor, critics, gamma=0.5)
        return loss.advantage(batch)[2]

    flat = [
        TensorDictModule(lambda o, a, c=c: c.module(o, a).squeeze(-1), c.in_keys, c.out_keys)
        for c in critics
    ]
    torch.testing.assert_close(qvalue(critics if column else flat), HAND_Q.reshape(shape))
    # three critics, so that without a label [K, *B] can't be [*B, K]
    stacked = Stacked([*critics, critics[0]], column=column, labelled=labelled)
    torch.testing.assert_close(qvalue(stacked), HAND_Q.reshape(shape))


@pytest.mark.parametrize("rows", [2, 3])
def test_as_many_critics_as_rows(rows: int) -> None:
    batch = hand_batch()[:rows]
    actor, critics = hand_agent()
    critics = (critics * 2)[:rows]
    for column, labelled in ((True, True), (True, False), (False, True)):
        stacked = Stacked(critics, column=column, labelled=labelled)
        loss = AdversarialModelLoss(RecordedDensity(rows), actor, stacked)
        torch.testing.assert_close(loss.advantage(batch)[2], HAND_Q[:rows])
    # [2, 2]: two critics of two rows or two rows of two critics? Nothing tells.
    loss = AdversarialModelLoss(
        RecordedDensity(rows), actor, Stacked(critics, column=False, labelled=False)
    )
    with pytest.raises(ValueError, match=rf"shape \[{rows}, {rows}\], expected"):
        loss(batch)


@pytest.mark.parametrize("rows", [2, 16])
def test_the_critics_of_a_torchrl_loss_may_write_no_last_dimension(rows: int) -> None:
    net = MLP(in_features=4, out_features=1, num_cells=[8])
    critic = TensorDictModule(
        lambda o, a: net(o, a).squeeze(-1), ["observation", "action"], ["state_action_value"]
    )
    critic.net = net
    agent = SACLoss(make_actor(3, SPEC, hidden_sizes=(8,)), critic, action_spec=SPEC)
    model = make_model()
    batch = imagined(model, rows)
    _, _, qvalue = AdversarialModelLoss.from_loss(model, agent).advantage(batch)
    torch.testing.assert_close(qvalue, each_qvalue(agent, batch).amin(dim=0))


class TwoHeads(nn.Module):
    def __init__(self, column: bool) -> None:
        super().__init__()
        self.net, self.column = MLP(in_features=4, out_features=2, num_cells=[8]), column

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value = self.net(observation, action)
        return value.unsqueeze(-1) if self.column else value


@pytest.mark.parametrize("shape", [(2,), (16,), (2, 2), (8, 2), (1,)])
@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("of_a_loss", [True, False])
def test_heads_behind_the_rows_are_refused(
    shape: tuple[int, ...], column: bool, of_a_loss: bool
) -> None:
    """Their minimum would be taken across rows."""
    model, actor = make_model(), make_actor(3, SPEC, hidden_sizes=(8,))
    critic = ValueOperator(TwoHeads(column), in_keys=["observation", "action"])
    loss = (
        AdversarialModelLoss.from_loss(model, SACLoss(actor, critic, action_spec=SPEC))
        if of_a_loss
        else AdversarialModelLoss(model, actor, [make_qvalue(3, 1), critic])
    )
    found = [2] * of_a_loss + [*shape, 2] + [1] * column
    match = re.escape(
        f"'state_action_value' has shape {found}, expected [*B], [*B, 1] or, of K critics, "
        f"[K, *B, 1], for a batch of {list(shape)}"
    )
    batch = imagined(model, math.prod(shape)).reshape(shape)
    with pytest.raises(ValueError, match=match):
        loss(batch)


def test_a_single_transition_has_no_rows_to_mix() -> None:
    _, critics = hand_agent()
    for column in (True, False):
        stacked = Stacked(critics, column=column, labelled=False)
        loss = AdversarialModelLoss(RecordedDensity(1), hand_agent()[0], stacked)
        torch.testing.assert_close(loss.advantage(hand_batch()[3])[2], HAND_Q[3])


@pytest.mark.parametrize("key", ["q", ("critic", "q")])
def test_a_value_that_no_critic_writes_is_named(key: str | tuple[str, ...]) -> None:
    loss = hand_loss()
    loss.set_keys(state_action_value=key)
    with pytest.raises(KeyError, match=re.escape(f"no {key!r}")) as error:
        loss(hand_batch())
    assert "'state_action_value'" in str(error.value)


# Critics that see more than the actor


def goal_agent(key: str | tuple[str, ...] = "goal") -> SACLoss:
    critic = ValueOperator(
        MLP(in_features=6, out_features=1, num_cells=[8]), ["observation", key, "action"]
    )
    return SACLoss(make_actor(3, SPEC, hidden_sizes=(8,)), critic, action_spec=SPEC)


@pytest.mark.parametrize("key", ["goal", ("task", "goal")])
def test_critics_may_read_what_the_actor_does_not(key: str | tuple[str, ...]) -> None:
    agent, model = goal_agent(key), make_model()
    batch = imagined(model)
    batch[key] = torch.randn(16, 2)
    batch["next", key] = torch.randn(16, 2)  # another, to tell which one is read
    batch["next", "done"] = batch["next", "terminated"]
    SoftUpdate(agent, tau=0.005)
    agent(batch.clone())
    loss = AdversarialModelLoss.from_loss(model, agent)
    following = ("next", key) if isinstance(key, str) else ("next", *key)
    assert loss.in_keys == [
        "observation",
        key,
        "action",
        ("next", "observation"),
        following,
        ("next", "reward"),
        ("next", "terminated"),
    ]
    _, value, qvalue = loss.advantage(batch.select(*loss.in_keys))
    torch.testing.assert_close(qvalue, each_qvalue(agent, batch).amin(dim=0))
    after = at_the_mode(agent, batch["next"])
    torch.testing.assert_close(value, each_qvalue(agent, after).amin(dim=0))
    # the density is still that of what the model predicts
    torch.testing.assert_close(loss(batch)["model_log_prob"], model.log_prob(batch).mean().detach())
    for lacking in (key, following):
        with pytest.raises(KeyError, match="goal"):
            loss(batch.exclude(lacking))


def test_critics_may_read_what_the_actor_writes() -> None:
    """A feature of the state, say: recorded with the action, and computed anew in s'."""
    actor = TensorDictModule(
        lambda o: (o.sum(-1, keepdim=True), torch.full_like(o[..., :1], 0.5)),
        ["observation"],
        ["feature", "action"],
    )
    critic = TensorDictModule(lambda f, a: f + 2 * a, ["feature", "action"], ["state_action_value"])
    loss = AdversarialModelLoss(RecordedDensity(4), actor, critic)
    assert loss.in_keys == [
        "observation",
        "feature",
        "action",
        ("next", "observation"),
        ("next", "reward"),
        ("next", "terminated"),
    ]
    batch = hand_batch().set("feature", torch.ones(4, 1))
    _, value, qvalue = loss.advantage(batch)
    torch.testing.assert_close(qvalue, 1 + 2 * batch["action"].squeeze(-1))
    torch.testing.assert_close(value, batch["next", "observation"].sum(-1) + 1)


def test_keywords_do_instead_of_a_tensordict() -> None:
    model = make_model()
    loss = AdversarialModelLoss.from_loss(model, sac(), adversarial_weight=1.0)
    batch = imagined(model)
    want = loss(batch)
    keywords = {key if isinstance(key, str) else "_".join(key): batch[key] for key in loss.in_keys}
    got = dict(zip(loss.out_keys, loss(**keywords), strict=True))
    for name in loss.out_keys:
        torch.testing.assert_close(got[name], want[name])
    loss.select_out_keys("loss_adversarial")
    torch.testing.assert_close(loss(**keywords), want["loss_adversarial"])


def test_state_dict_round_trip() -> None:
    agent, model = sac(), make_model()
    model.elites.copy_(torch.tensor([6, 1, 3]))
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=0.7, gamma=0.5)
    other = AdversarialModelLoss.from_loss(make_model(), agent)
    batch = imagined(model)
    other.load_state_dict(loss.state_dict())
    for key in loss.out_keys:
        torch.testing.assert_close(other(batch)[key], loss(batch)[key])


def test_the_discount_is_the_agents_unless_given() -> None:
    agent, model = sac(), make_model()
    assert float(AdversarialModelLoss.from_loss(model, agent).gamma) == pytest.approx(0.99)
    agent.make_value_estimator(gamma=0.9)
    assert float(AdversarialModelLoss.from_loss(model, agent).gamma) == pytest.approx(0.9)
    given = AdversarialModelLoss.from_loss(model, agent, gamma=0.5)
    assert float(given.gamma) == pytest.approx(0.5)


def test_agents_and_models_need_their_parts() -> None:
    with pytest.raises(TypeError, match="actor_network and qvalue_network"):
        AdversarialModelLoss.from_loss(make_model(), nn.Linear(1, 1))
    with pytest.raises(TypeError, match="log_prob"):
        AdversarialModelLoss(nn.Linear(1, 1), *hand_agent())
    with pytest.raises(
        TypeError, match=r"member_log_prob.*RecordedDensity lacks them: use density='mix"
    ):
        hand_loss(density="member")


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"adversarial_weight": -1.0}, "adversarial_weight"),
        ({"adversarial_weight": math.nan}, "adversarial_weight"),
        ({"gamma": 1.5}, "gamma"),
        ({"reduction": "max"}, "reduction"),
        ({"density": "elite"}, "density must be 'mixture' or 'member', got 'elite'"),
        ({"advantage_clip": 0.0}, "advantage_clip"),
        ({"advantage_clip": math.nan}, "advantage_clip"),
    ],
)
def test_settings_are_checked(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        hand_loss(**kwargs)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    agent, model = sac(), make_model()
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=1.0)
    batch = imagined(model)

    def objective(batch: TensorDict) -> tuple[Tensor, Tensor]:
        out = loss(batch)
        return out["loss_adversarial"], out["advantage_mean"]

    results = []
    for run in (objective, torch.compile(objective, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        value, metric = run(batch)
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        results.append((value.detach(), metric, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
