"""A user's own world models and likelihood terms: keys, adversarial training, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    LazyTensorStorage,
    ReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.envs import check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.collectors import ModelRolloutCollector, ReverseRolloutCollector
from rambo_trl.envs import EnsembleModelEnv, MOPOPenalty, PessimisticModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.world_models import DrawsByMember, TransitionKeys, transition_keys
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss, ModelTrustLoss
from rambo_trl.training.phases import ModelPhase
from rambo_trl.training.pretraining import fit_world_model

SPEC = Bounded(-1, 1, shape=(1,))
PLAIN = TransitionKeys()
NESTED = TransitionKeys(("boat", "state"), ("boat", "sail"), ("boat", "gain"))


CRITIC_KEYS = ["observation", "action"], ["state_action_value"]


class Wrapped(TensorDictModuleBase):
    """An ensemble that shows no more than any world model does."""

    def __init__(self, keys: TransitionKeys = PLAIN) -> None:
        super().__init__()
        self.inner = EnsembleWorldModel(
            3,
            1,
            hidden_sizes=(8,),
            observation_key=keys.observation,
            action_key=keys.action,
            reward_key=keys.reward,
        )
        self.in_keys, self.out_keys = self.inner.in_keys, self.inner.out_keys

    def forward(self, rows: TensorDict) -> TensorDict:
        return self.inner(rows)

    def log_prob(self, rows: TensorDict) -> Tensor:
        return self.inner.log_prob(rows)


class Likelihood(TensorDictModuleBase):
    """A user's term."""

    def __init__(self, world_model: nn.Module, keys: TransitionKeys = PLAIN) -> None:
        super().__init__()
        self.world_model = world_model
        self.in_keys = [keys.observation, keys.action, keys.next_observation, keys.next_reward]
        self.out_keys = ["loss_model"]

    def forward(self, rows: TensorDict) -> TensorDict:
        return TensorDict(loss_model=-self.world_model.log_prob(rows).mean())


def rows(keys: TransitionKeys = PLAIN, number: int = 40) -> TensorDict:
    return TensorDict(
        {
            keys.observation: torch.randn(number, 3),
            keys.action: SPEC.rand((number,)),
            keys.next_observation: torch.randn(number, 3),
            keys.next_reward: torch.randn(number, 1),
            "not for the loss": torch.randn(number, 1),
        },
        [number],
    )


def make_buffer(keys: TransitionKeys = PLAIN) -> TensorDictReplayBuffer:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(40))
    buffer.extend(rows(keys))
    return buffer


def make_actor(
    keys: TransitionKeys = PLAIN, inputs: int = 3, outputs: int = 1, **names: Any
) -> TensorDictModule:
    read, written = names.get("reads", keys.observation), names.get("writes", keys.action)
    return TensorDictModule(nn.Linear(inputs, outputs), [read], [written])


class Critic(nn.Linear):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(torch.cat(inputs, -1))


def make_loss(
    model: nn.Module, keys: TransitionKeys = PLAIN, *reads: Any, **kwargs: Any
) -> AdversarialModelLoss:
    read = [keys.observation, keys.action, *reads]
    critic = TensorDictModule(Critic(4, 1), read, ["state_action_value"])
    loss = AdversarialModelLoss(model, make_actor(keys), critic, **kwargs)
    loss.set_keys(action=keys.action, reward=keys.reward, terminated=("boat", "sunk"))
    return loss


def make_env(model: Any = None, keys: TransitionKeys = PLAIN, **kwargs: Any) -> EnsembleModelEnv:
    given = {"action_spec": SPEC, "starts": rows(keys)} | kwargs
    return EnsembleModelEnv(Wrapped(keys) if model is None else model, **given)


def make_phase(
    keys: TransitionKeys = PLAIN, model: nn.Module | None = None, **kwargs: Any
) -> ModelPhase:
    model = Wrapped(keys) if model is None else model
    loss = make_loss(model, keys, adversarial_weight=kwargs.pop("weight", 1.0))
    env = make_env(model, keys, termination=lambda o, a, n: n[..., 0] > 1)
    return ModelPhase(
        env, loss, Likelihood(model, keys), make_buffer(keys), batch_size=16, horizon=2, **kwargs
    )


@pytest.mark.parametrize("keys", [PLAIN, NESTED], ids=["plain", "nested"])
@pytest.mark.parametrize("batch_size", [(), (2, 3)])
def test_specs(keys: TransitionKeys, batch_size: tuple[int, ...]) -> None:
    env = make_env(keys=keys, batch_size=batch_size)
    check_env_specs(env)
    td = env.rollout(3, make_actor(keys))
    assert td[keys.next_reward].shape == (*batch_size, 3, 1)
    assert td[keys.action].requires_grad  # the policy's, not a random one
    torch.testing.assert_close(
        td[keys.observation][..., 1:, :], td[keys.next_observation][..., :-1, :]
    )


@pytest.mark.parametrize("keys", [PLAIN, NESTED], ids=["plain", "nested"])
def test_rollouts_are_those_of_the_same_model_as_an_ensemble(keys: TransitionKeys) -> None:
    model, starts, actor = Wrapped(keys), rows(keys), make_actor(keys)
    found = []
    for given in (model, model.inner):
        env = make_env(given, keys, starts=starts, termination=lambda o, a, n: n[..., 0] > 1)
        torch.manual_seed(3)
        collector = ModelRolloutCollector(env, actor, num_starts=20, horizon=3)
        found.append(collector.collect())
    ours, ensembles = found
    assert set(ours.keys(True, True)) == set(ensembles.keys(True, True))
    assert (ours == ensembles).all()
    assert {keys.observation, keys.next_reward} <= set(ours.keys(True, True))
    torch.testing.assert_close(ours[keys.action], actor(ours.copy())[keys.action])
    assert ours["next", "terminated"].any() and ours["next", "truncated"].any()


def test_reverse_rollouts_with_nested_keys() -> None:
    env = make_env(keys=NESTED)
    td = ReverseRolloutCollector(env, make_actor(NESTED), num_starts=10, horizon=2).collect()
    starts = {tuple(x) for x in env.starts[NESTED.observation].tolist()}
    assert [tuple(x) in starts for x in td[NESTED.next_observation].tolist()] == [True] * 10 + [
        False
    ] * 10


@pytest.mark.parametrize("keys", [PLAIN, NESTED], ids=["plain", "nested"])
def test_adversarial_training_uses_the_models_keys(keys: TransitionKeys) -> None:
    phase = make_phase(keys)
    imagined, real = [], []
    phase.adversarial_loss.register_forward_pre_hook(lambda _, args: imagined.append(args[0]))
    phase.model_loss.register_forward_pre_hook(lambda _, args: real.append(args[0]))
    before = [p.detach().clone() for p in phase.env.world_model.parameters()]
    metrics = phase.run(4)
    assert {"loss_adversarial", "loss_model", "advantage_mean"} <= set(metrics)
    assert [r.shape for r in real] == [(16,)] * 4
    assert set(real[0].keys(True, True)) == set(phase.model_loss.in_keys)
    for first, second in ((0, 1), (2, 3)):
        sunk = imagined[first]["next", "boat", "sunk"]
        going = ~sunk.squeeze(-1)
        assert sunk.any() and going.any()
        torch.testing.assert_close(
            imagined[second][keys.observation][going], imagined[first][keys.next_observation][going]
        )
    after = list(phase.env.world_model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_adversary_lowers_the_value_in_a_model_of_any_kind() -> None:
    found = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        phase = make_phase(NESTED, weight=weight, lr=3e-3)
        phase.env.termination = None
        torch.manual_seed(1)
        found.append(phase.run(80)["value"])
    assert found[1] < found[0] - 0.1


class Components(TensorDictModuleBase):
    """Two Gaussians whose shares are learnt too; it says by an index which of them drew."""

    in_keys = ["observation", "action"]
    out_keys = [("next", "observation"), ("next", "reward")]

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2 * 5)

    def parts(self, rows: TensorDict) -> tuple[Tensor, Normal]:
        x = self.net(torch.cat([rows["observation"], rows["action"]], -1)).unflatten(-1, (2, 5))
        return x[..., 4].log_softmax(-1), Normal(x[..., :4], 0.7)

    def draw(self, rows: TensorDict) -> TensorDict:
        log_share, parts = self.parts(rows)
        which = torch.distributions.Categorical(logits=log_share).sample()
        value = parts.rsample()[torch.arange(len(which)), which]  # whose gradient must not count
        rows["which"] = which
        rows["next", "observation"], rows["next", "reward"] = value.split([3, 1], -1)
        return rows

    forward = draw

    def member_log_prob(self, rows: TensorDict) -> Tensor:
        return self.joint(rows).gather(-1, rows["which"].unsqueeze(-1)).squeeze(-1)

    def log_prob(self, rows: TensorDict) -> Tensor:
        return self.joint(rows).logsumexp(-1)

    def joint(self, rows: TensorDict) -> Tensor:
        log_share, parts = self.parts(rows)
        value = torch.cat([rows["next", "observation"], rows["next", "reward"]], -1)
        return log_share + parts.log_prob(value.unsqueeze(-2)).sum(-1)


@pytest.mark.parametrize("density", ["mixture", "member"])
def test_a_model_that_says_which_component_drew(density: Any) -> None:
    found = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        model = Components()
        assert isinstance(model, DrawsByMember) and not isinstance(Wrapped(), DrawsByMember)
        actor, critic = make_actor(), TensorDictModule(Critic(4, 1), *CRITIC_KEYS)
        loss = AdversarialModelLoss(
            model, actor, critic, adversarial_weight=weight, density=density
        )
        seen = []
        loss.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        settings = {"batch_size": 64, "horizon": 2, "lr": 3e-3}
        phase = ModelPhase(make_env(model), loss, Likelihood(model), make_buffer(), **settings)
        torch.manual_seed(1)
        found.append(phase.run(150)["value"])
        assert ("which" in seen[0]) == (density == "member")
        assert not seen[0]["next", "observation"].requires_grad
    assert found[1] < found[0] - 0.15


def test_a_model_that_does_not_say_so() -> None:
    with pytest.raises(TypeError, match=r"draw\(tensordict\).*Wrapped lacks them"):
        make_loss(Wrapped(), density="member")


@pytest.mark.parametrize(
    ("members", "shape"), [(None, (16,)), ("all", (3, 16)), ("elites", (2, 16))]
)
def test_a_likelihood_may_ask_for_a_batch_for_each_member(
    members: str | None, shape: tuple[int, ...]
) -> None:
    model = EnsembleWorldModel(3, 1, num_members=3, num_elites=2, hidden_sizes=(8,))
    model.elites.copy_(torch.tensor([2, 0]))
    loss = Likelihood(model)
    if members:
        loss.members = members
    phase = ModelPhase(make_env(model), make_loss(model), loss, make_buffer(), batch_size=16)
    seen = []
    loss.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    before = model.weights[0].detach().clone()
    phase.run(2)
    assert seen == [shape] * 2
    moved = (model.weights[0] != before).flatten(1).any(1)
    assert moved.tolist() == [True, False, True]  # whose density it is


def test_nothing_random_is_used_up_by_trying_the_parts() -> None:
    model = Wrapped()
    loss, starts, data = make_loss(model), rows(), make_buffer()
    state = torch.get_rng_state()
    env = EnsembleModelEnv(model, action_spec=SPEC, starts=starts)
    ModelRolloutCollector(env, loss.actor_network)
    ModelPhase(env, loss, Likelihood(model), data)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.slow
@pytest.mark.usefixtures("graphs_only")
def test_compiled_equals_eager() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        phase = make_phase(NESTED, compile=compiled)
        torch.manual_seed(1)
        found.append(phase.run(4))
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)


# TorchRL's own modules


def independent(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def composite() -> ProbabilisticTensorDictSequential:
    """A Gaussian of unit variance for each part, moved by the bias."""

    class Net(nn.Linear):
        def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
            mean = super().forward(torch.cat([observation, action], -1))
            one = torch.ones_like(mean)
            return mean[..., :3], one[..., :3], mean[..., 3:], one[..., 3:]

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
                "distribution_map": dict.fromkeys(names, independent),
                "name_map": names,
            },
        ),
    )


def test_a_sequence_that_names_its_distribution_s_parameters() -> None:
    model = composite()
    assert "params" in model.in_keys  # TorchRL's
    assert transition_keys(model) == PLAIN
    assert ModelTrustLoss(model).in_keys == ["observation", "action"]


@pytest.mark.parametrize("exploration", [None, ExplorationType.DETERMINISTIC])
def test_the_model_samples_whatever_the_exploration(exploration: ExplorationType | None) -> None:
    model = composite()
    env = make_env(model)
    observation, action = torch.zeros(4000, 3), torch.zeros(4000, 1)
    with set_exploration_type(exploration):
        following, reward, _ = env.transition(observation, action)
        rolled = env.rollout(1, lambda td: td.set("action", torch.zeros(1)))
    mean = model[0].module.bias
    got = torch.cat([following, reward], -1)
    torch.testing.assert_close(got.mean(0), mean.detach(), rtol=0, atol=6 / 4000**0.5)
    torch.testing.assert_close(got.std(0), torch.ones(4), rtol=0.1, atol=0)
    assert not got.requires_grad and rolled.shape == (1,)


def test_the_trust_term_draws_from_models_that_follow_the_exploration() -> None:
    model, batch = composite(), rows(number=4000)
    loss = ModelTrustLoss(model)
    with torch.no_grad():
        model[0].module.bias += 0.5
    # four entries a half of a standard deviation away; the mode would give 0.11
    assert loss(batch)["trust_distance"].item() == pytest.approx(4 * 0.5**2 / 2, rel=0.1)


# What does not fit


class Other(Wrapped):
    """A model with other keys, or another shape or failure of what it writes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.change = lambda out: out
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, td: TensorDict) -> TensorDict:
        return self.change(super().forward(td))


def flat_reward(out: TensorDict) -> TensorDict:
    return out.set(("next", "reward"), out["next", "reward"].squeeze(-1))


def two_rewards(out: TensorDict) -> TensorDict:
    return out.set(("next", "reward"), out["next", "reward"].expand(-1, 2))


def wide(out: TensorDict) -> TensorDict:
    return out.set(("next", "observation"), torch.zeros(2, 4))


def double(out: TensorDict) -> TensorDict:
    return out.set(("next", "observation"), out["next", "observation"].double())


def test_rewards_may_have_no_last_dimension() -> None:
    env = make_env(Other(change=flat_reward))
    check_env_specs(env)
    assert ModelRolloutCollector(env, num_starts=4, horizon=2).collect()[
        "next", "reward"
    ].shape == (8, 1)


OUT = [("next", "observation"), ("next", "reward")]
WITH_ENDS = [*OUT, ("next", "terminated")]


def starts_of(*shape: int) -> TensorDict:
    return TensorDict(observation=torch.randn(shape), batch_size=[9])


def empty_starts() -> EnsembleModelEnv:
    return make_env(starts=TensorDictReplayBuffer(storage=LazyTensorStorage(4)))


def penalised() -> EnsembleModelEnv:
    given = {"action_spec": SPEC, "starts": rows()}
    return PessimisticModelEnv(Wrapped(), pessimism=MOPOPenalty(1.0), **given)


BAD_TYPES: list[tuple[Callable[[], Any], str]] = [
    (lambda: make_env(nn.Linear(1, 1)), "TensorDict module.*Linear: wrap it"),
    (lambda: make_env(print), "TensorDict module"),
    (lambda: make_env(starts=torch.randn(9, 3)), "starts must be .*got Tensor"),
    (lambda: make_env(termination="Hopper-v5"), "termination must be a function.*got str"),
    (lambda: make_env(action_spec=Categorical(3)), "got Categorical"),
    (lambda: make_env(action_spec=Composite(action=SPEC)), "got Composite"),
    (penalised, "MOPOPenalty needs the members"),
    (lambda: EnsembleModelLoss(Wrapped()), "EnsembleModelLoss needs the members"),
    (lambda: fit_world_model(Wrapped(), rows()), "fit_world_model needs the members"),
    (lambda: ModelTrustLoss(NoKeys()), "with in_keys and out_keys, got NoKeys"),
]
BAD_VALUES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: make_env(Other(in_keys=["observation", "action", "goal"])),
        "reads .*'goal'.*expected one observation",
    ),
    (
        lambda: make_env(Other(out_keys=["observation", "reward"])),
        r"writes \['observation', 'reward'\]: expected .*'next'",
    ),
    (lambda: make_env(Other(out_keys=OUT[:1])), "a reward"),
    (lambda: make_env(Other(out_keys=WITH_ENDS)), "'terminated'.* termination rule"),
    (
        lambda: make_env(Other(change=two_rewards)),
        r"writes shape \[2, 2\] as \('next', 'reward'\) of 2 rows, expected \[2, 1\] or \[2\]",
    ),
    (lambda: make_env(Other(change=wide)), r"writes shape \[2, 4\].*expected \[2, 3\]"),
    (
        lambda: make_env(Other(change=double)),
        r"writes torch.float64 as \('next', 'observation'\), expected torch.float32",
    ),
    (lambda: make_env(Other(change=lambda out: out.exclude("next"))), "writes nothing"),
    (lambda: make_env(starts=starts_of(9, 5)), "Wrapped fails on 2 rows .*RuntimeError"),
    (lambda: make_env(composite(), action_spec=Bounded(-1, 1, shape=(2,))), "fails on 2 rows"),
    (lambda: make_env(starts=rows(NESTED)), "starts must hold .* 'observation', got .*'boat'"),
    (lambda: make_env(starts=rows()[:0]), "starts hold no rows"),
    (lambda: make_env(starts=starts_of(9)), r"shape \[9\]: .* \[N\] for \[N, observation_size\]"),
    (empty_starts, "fill the buffer first"),
    (
        lambda: make_env(action_spec=Bounded(-1, 1, shape=(4, 1))),
        r"\[4, 1\], expected \[action_size\]",
    ),
]


class NoKeys(nn.Module):
    def log_prob(self, td: TensorDict) -> Tensor:
        return td["observation"].sum(-1)


@pytest.mark.parametrize(
    ("kind", "make", "match"),
    [*((TypeError, *case) for case in BAD_TYPES), *((ValueError, *case) for case in BAD_VALUES)],
)
def test_models_and_starts_that_do_not_fit(kind: type, make: Callable, match: str) -> None:
    with pytest.raises(kind, match=match):
        make()


@pytest.mark.parametrize(
    ("policy", "kind", "match"),
    [
        (nn.Linear(3, 1), TypeError, "reads 'observation' and writes 'action', got Linear"),
        ("random", TypeError, "got str"),
        (make_actor(writes="act"), ValueError, r"must write 'action' \[2, 1\].* only \['act'\]"),
        (
            make_actor(reads="obs"),
            ValueError,
            r"hold 'observation' \[2, 3\] and nothing else \(KeyError.*obs",
        ),
        (make_actor(outputs=2), ValueError, r"shape \[2, 2\] for 2 rows"),
        (make_actor(inputs=5), ValueError, "fails on rows.*RuntimeError"),
        (lambda td: td["observation"], ValueError, "to a TensorDict; it writes Tensor"),
    ],
)
def test_policies_that_do_not_fit(policy: Any, kind: type, match: str) -> None:
    with pytest.raises(kind, match=match):
        ModelRolloutCollector(make_env(), policy)


def phase_of(**parts: Any) -> ModelPhase:
    model = parts.pop("model", None) or Wrapped()
    given = {
        "env": make_env(model),
        "adversarial_loss": make_loss(model),
        "model_loss": Likelihood(model),
        "real_buffer": make_buffer(),
    }
    return ModelPhase(**given | parts)


def adversary(*args: Any, **kwargs: Any) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda model: {"adversarial_loss": make_loss(model, *args, **kwargs)}


@pytest.mark.parametrize(
    ("parts", "kind", "match"),
    [
        (lambda m: {"env": nn.Identity()}, TypeError, "env must be an EnsembleModelEnv"),
        (
            lambda m: {"adversarial_loss": make_loss(Wrapped())},
            ValueError,
            "adversarial_loss and env hold different world models",
        ),
        (
            lambda m: {"model_loss": Likelihood(Wrapped())},
            ValueError,
            "model_loss and env hold different world models",
        ),
        (adversary(reduction="none"), ValueError, "adversarial_loss has reduction='none'"),
        (adversary(PLAIN, "goal"), ValueError, "adversarial loss fails on imagined rows.*goal"),
        (adversary(NESTED), ValueError, "policy fails on rows that hold 'observation'.*boat"),
        (
            lambda m: {"real_buffer": rows()},
            TypeError,
            "real_buffer must be a replay buffer, got TensorDict",
        ),
        (
            lambda m: {"real_buffer": make_buffer(NESTED)},
            ValueError,
            r"model_loss reads \['observation'.*does not hold",
        ),
        (lambda m: {"model_loss": nn.Identity()}, TypeError, "must be a loss module with in_keys"),
    ],
)
def test_parts_of_the_model_phase_that_do_not_fit(
    parts: Callable[[nn.Module], dict[str, Any]], kind: type, match: str
) -> None:
    model = Wrapped()
    with pytest.raises(kind, match=match):
        phase_of(model=model, **parts(model))


def test_a_term_that_adds_nothing_is_refused() -> None:
    class Nameless(Likelihood):
        def forward(self, td: TensorDict) -> TensorDict:
            return TensorDict(loss=super().forward(td)["loss_model"])

    model = Wrapped()
    with pytest.raises(ValueError, match=r"begin with 'loss_', such as loss_model, got \['loss'\]"):
        phase_of(model=model, model_loss=Nameless(model)).run(1)


def test_a_buffer_s_rows_are_looked_at_when_they_are_drawn() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(4))
    env = make_env(EnsembleWorldModel(3, 1, hidden_sizes=(8,)), starts=buffer)  # still empty
    buffer.extend(TensorDict(observation=torch.randn(4, 5), batch_size=[4]))
    with pytest.raises(ValueError, match=r"shape \[6, 5\], expected \[6, 3\]"):
        env.sample_starts(6)
