"""MOBILELoss: the inconsistency by hand, where the penalty goes, what is trained and learnt."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import SoftUpdate

from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import DeterministicBackupSACLoss, MOBILELoss
from rambo_trl.training.phases import AgentPhase

SPEC = Bounded(-1, 1, shape=(1,))
GAMMA = 0.9
ACTION = math.tanh(1.0)
ELITES = [2, 0, 3]
OFFSETS = np.array([1.0, 100.0, -2.0, 0.5])


class KnownModel(EnsembleWorldModel):
    """Member m predicts s' = s + offset[m] * a with a given standard deviation."""

    def __init__(self, std: float = 1e-8) -> None:
        super().__init__(1, 1, num_members=4, num_elites=3, hidden_sizes=(2,))
        self.elites.copy_(torch.tensor(ELITES))
        self.std = std

    def predict(
        self, observation: Tensor, action: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert members is self.elites
        offsets = torch.as_tensor(OFFSETS, dtype=torch.float32)[members]
        mean = observation + offsets[:, None, None] * action
        mean = torch.cat([mean, torch.full_like(mean, 1e3)], -1)  # rewards must not count
        return mean, torch.full_like(mean, 2 * math.log(self.std))


class LinearCritic(nn.Module):
    """Q(s, a) = weight * s + slope * a + bias."""

    def __init__(self, weight: float, slope: float, bias: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([weight, slope, bias]))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        weight, slope, bias = self.values.unbind()
        return weight * observation + slope * action + bias


#: of the target critics, which are not the critics' own
TARGETS = np.array([[1.0, 2.0, 0.3], [-0.5, 0.5, 1.0]])
CRITICS = np.array([[0.4, -1.0, 0.0], [0.2, 0.7, -0.6]])


@pytest.fixture
def hand_loss(narrow_actor: Callable[[], ProbabilisticActor]) -> Callable[..., MOBILELoss]:
    """Makes a loss of critics that are known too."""

    def make(model: EnsembleWorldModel | None = None, **kwargs) -> MOBILELoss:
        actor = narrow_actor()
        critics = [
            ValueOperator(LinearCritic(*c), in_keys=["observation", "action"]) for c in CRITICS
        ]
        kwargs = {"num_real": 2, "penalty_coefficient": 0.7, "action_spec": SPEC} | kwargs
        loss = MOBILELoss(
            actor, critics, world_model=model or KnownModel(), loss_function="l2", **kwargs
        )
        loss.make_value_estimator(gamma=GAMMA)
        SoftUpdate(loss, tau=0.005)
        loss.target_qvalue_network_params.data["module", "values"][:] = torch.as_tensor(
            TARGETS, dtype=torch.float32
        )
        return loss

    return make


S = np.array([1.0, 2.0, 0.0, 3.0, -3.0])
A = np.array([0.5, -0.5, 1.0, 0.1, -0.25])
NEXT_S = np.array([0.2, -1.0, 2.0, -2.0, 0.5])
REWARD = np.array([1.0, -0.5, 0.3, 2.0, -1.5])
ENDED = np.array([False, True, False, True, False])


def column(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=None if values.dtype == bool else torch.float32)[:, None]


def hand_batch() -> TensorDict:
    following = TensorDict(
        observation=column(NEXT_S),
        reward=column(REWARD),
        terminated=column(ENDED),
        done=column(ENDED),
        batch_size=[5],
    )
    return TensorDict(observation=column(S), action=column(A), next=following, batch_size=[5])


def lower(params: np.ndarray, state: np.ndarray, action: np.ndarray | float) -> np.ndarray:
    return np.minimum(*(w * state + c * action + b for w, c, b in params))


def hand_inconsistency() -> np.ndarray:
    """[5], of successors and actions that do not vary."""
    members = [lower(TARGETS, S + OFFSETS[m] * A, ACTION) for m in ELITES]
    return np.std(members, axis=0, ddof=1)


def test_the_inconsistency_by_hand(hand_loss: Callable[..., MOBILELoss]) -> None:
    for num_samples in (1, 10):
        found = hand_loss(num_samples=num_samples).inconsistency(hand_batch())
        np.testing.assert_allclose(found.numpy(), hand_inconsistency(), rtol=1e-3)


def test_the_inconsistency_is_of_the_members_means_over_samples(
    hand_loss: Callable[..., MOBILELoss],
) -> None:
    """With normal values: the means' variance, and 1 / N of the samples'."""
    spread, rows = 0.8, 40_000
    model = KnownModel(std=spread)
    one = hand_batch()[:1].expand(rows).clone()
    one["action"].fill_(1.0)
    between = np.var(OFFSETS[ELITES], ddof=1)  # weights of the first critic are 1
    for num_samples in (1, 4):
        loss = hand_loss(model, num_samples=num_samples)
        # the second critic's bias: never the lower one
        loss.target_qvalue_network_params.data["module", "values"][1, 2] += 1e3
        variance = float(loss.inconsistency(one).square().mean())
        assert variance == pytest.approx(between + spread**2 / num_samples, rel=0.03)


@pytest.mark.parametrize("min_target", [None, 0.0, 0.4])
def test_the_critics_term_by_hand(
    min_target: float | None, hand_loss: Callable[..., MOBILELoss]
) -> None:
    """The model's rows are penalised, the data's are not; then targets are cut off below."""
    out = hand_loss(min_target=min_target)(hand_batch())
    penalty = 0.7 * hand_inconsistency() * (np.arange(5) >= 2)
    target = REWARD - penalty + GAMMA * ~ENDED * lower(TARGETS, NEXT_S, ACTION)
    assert (target < 0).any() and (target > 0.4).any()
    if min_target is not None:
        target = np.maximum(target, min_target)
    now = [w * S + c * A + b for w, c, b in CRITICS]
    error = sum(np.mean((values - target) ** 2) for values in now)
    assert out["loss_qvalue"].item() == pytest.approx(error, rel=1e-4)
    assert out["inconsistency"].item() == pytest.approx(hand_inconsistency()[2:].mean(), rel=1e-3)


def test_without_a_penalty_it_is_the_deterministic_backup(
    hand_loss: Callable[..., MOBILELoss],
) -> None:
    loss, batch = hand_loss(penalty_coefficient=0.0), hand_batch()
    plain = DeterministicBackupSACLoss.forward(loss, batch.clone())
    out = loss(batch.clone())
    assert out["loss_qvalue"].item() == pytest.approx(plain["loss_qvalue"].item(), rel=1e-4)


def test_the_coefficient_can_be_scheduled(hand_loss: Callable[..., MOBILELoss]) -> None:
    loss, batch = hand_loss(), hand_batch()
    before = loss(batch)["loss_qvalue"]
    loss.penalty_coefficient = 0.0
    assert abs(loss(batch)["loss_qvalue"] - before) > 0.1
    assert "penalty_coefficient" in loss.state_dict()


def real_loss(**kwargs) -> MOBILELoss:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    kwargs = {"num_real": 6, "action_spec": SPEC, "world_model": model} | kwargs
    loss = MOBILELoss(
        make_actor(3, SPEC, hidden_sizes=(8,)), make_qvalue(3, 1, hidden_sizes=(8,)), **kwargs
    )
    SoftUpdate(loss, tau=0.005)
    return loss


def real_batch(rows: int = 16) -> TensorDict:
    ended = torch.rand(rows, 1) < 0.3
    following = TensorDict(
        observation=torch.randn(rows, 3),
        reward=torch.randn(rows, 1),
        terminated=ended,
        done=ended.clone(),
        batch_size=[rows],
    )
    return TensorDict(
        observation=torch.randn(rows, 3),
        action=2 * torch.rand(rows, 1) - 1,
        next=following,
        batch_size=[rows],
    )


def test_the_world_model_is_neither_trained_nor_part_of_the_state() -> None:
    loss = real_loss()
    out = loss(real_batch())
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(p.grad is None for p in loss.world_model.parameters())
    own = {id(p) for p in loss.parameters()}
    assert own.isdisjoint(id(p) for p in loss.world_model.parameters())
    assert not [key for key in loss.state_dict() if "world_model" in key]
    assert not out["inconsistency"].requires_grad


def test_the_critics_term_trains_the_critics_only() -> None:
    loss = real_loss()
    loss(real_batch())["loss_qvalue"].backward()
    trained = {name for name, p in loss.named_parameters() if p.grad is not None}
    assert trained and all(name.startswith("qvalue_network_params") for name in trained)


def test_output_and_input() -> None:
    loss, batch = real_loss(), real_batch()
    before = batch.clone()
    out = loss(batch)
    assert set(out.keys()) == set(loss.out_keys)
    assert (batch.select(*before.keys()) == before).all()
    assert batch["td_error"].shape == (16,)  # as SACLoss leaves it
    loss = real_loss(reduction="none", scalar_output_mode="exclude")
    assert set(loss(real_batch()).keys()) == {"loss_actor", "loss_qvalue", "loss_alpha"}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"penalty_coefficient": -1.0}, "penalty_coefficient"),
        ({"penalty_coefficient": math.nan}, "penalty_coefficient"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_real": -1}, "num_real"),
        ({"world_model": nn.Linear(1, 1)}, "EnsembleWorldModel, got Linear"),
        ({"world_model": EnsembleWorldModel(3, 1, num_elites=1)}, "at least 2, got 1"),
        ({"skip_done_states": True}, "deterministic_backup=False"),
    ],
)
def test_settings_are_checked(kwargs: dict, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        real_loss(**kwargs)


@pytest.mark.parametrize("rows", [5, 6])
def test_batches_without_model_rows_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="more than num_real=6 rows"):
        real_loss()(real_batch(rows))


#: up to which action the members agree
EDGE = 0.3


class Slopes(EnsembleWorldModel):
    """The action leads from (0, 0) to (1, place); beyond ``EDGE`` members promise ever more."""

    def __init__(self) -> None:
        super().__init__(2, 1, num_members=3, num_elites=3, hidden_sizes=(2,))

    def predict(
        self, observation: Tensor, action: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        place = action + torch.tensor([0.0, 2.0, 1.0])[:, None, None] * (action - EDGE).relu()
        mean = torch.cat([torch.ones_like(place), place, torch.zeros_like(place)], dim=-1)
        return mean, torch.full_like(mean, -9.0)


def learnt_mode(penalty_coefficient: float) -> float:
    """The policy's action in (0, 0), where the step that follows pays its place and ends."""
    torch.manual_seed(0)
    model, actor = Slopes(), make_actor(2, SPEC, hidden_sizes=(16,))
    loss = MOBILELoss(
        actor,
        make_qvalue(2, 1, hidden_sizes=(32, 32)),
        world_model=model,
        num_real=64,
        penalty_coefficient=penalty_coefficient,
        num_samples=2,
        loss_function="l2",
        action_spec=SPEC,
        alpha_init=0.02,
        fixed_alpha=True,
    )
    loss.make_value_estimator(gamma=GAMMA)
    agent = AgentPhase(loss, critic_lr=1e-2, actor_lr=1e-2, tau=0.05)
    last = torch.arange(128)[:, None] < 64  # the real rows

    def batch() -> TensorDict:
        action, place = 2 * torch.rand(128, 1) - 1, 4 * torch.rand(128, 1) - 1.5
        mean, _ = model.predict(torch.zeros(128, 2), action)
        reached = mean[torch.randint(3, (128,)), torch.arange(128), :2]
        following = TensorDict(
            observation=reached,
            reward=torch.where(last, place, 0.0),
            terminated=last,
            done=last.clone(),
            batch_size=[128],
        )
        start = torch.where(last, torch.cat([torch.ones(128, 1), place], -1), 0.0)
        return TensorDict(observation=start, action=action, next=following, batch_size=[128])

    agent.run(batch() for _ in range(150))
    with torch.no_grad():
        start = TensorDict(observation=torch.zeros(1, 2), batch_size=[1])
        return float(actor.get_dist(start).deterministic_sample)


def test_the_policy_stays_where_the_members_agree() -> None:
    # beyond the edge the mean promises two more a unit, and the members spread by one
    assert learnt_mode(penalty_coefficient=0.0) > 0.8
    assert EDGE - 0.2 < learnt_mode(penalty_coefficient=5.0) < EDGE + 0.2


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    loss, batch = real_loss(), real_batch()
    loss(batch)  # the target entropy is made on first use

    def objective(batch: TensorDict) -> Tensor:
        out = loss(batch)
        return torch.stack([out[k] for k in ("loss_actor", "loss_qvalue", "inconsistency")])

    results = []
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    for run in (objective, compiled):
        loss.zero_grad()
        torch.manual_seed(3)
        terms = run(batch.clone())
        terms.sum().backward()
        gradients = [p.grad.clone() for p in loss.qvalue_network_params.parameters()]
        results.append((terms.detach(), gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
