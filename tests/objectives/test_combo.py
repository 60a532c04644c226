"""COMBOLoss: numbers by hand, whom the extra term trains, the LossModule contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.objectives import COMBOLoss

SPEC = Bounded(-1, 1, shape=(1,))
SAC_TERMS = ["loss_actor", "loss_qvalue", "loss_alpha"]
CHOICES = ["rollout", "policy", "logsumexp"]


def make_loss(cls: type[SACLoss] = COMBOLoss, **kwargs) -> SACLoss:
    kwargs = {"action_spec": SPEC, "loss_function": "l2"} | kwargs
    if cls is COMBOLoss:
        kwargs = {"num_real": 6} | kwargs
    loss = cls(
        make_actor(3, SPEC, hidden_sizes=(8,)), make_qvalue(3, 1, hidden_sizes=(8,)), **kwargs
    )
    SoftUpdate(loss, tau=0.005)
    return loss


def make_batch(rows: int = 16) -> TensorDict:
    ended = torch.rand(rows, 1) < 0.3
    return TensorDict(
        {
            "observation": torch.randn(rows, 3),
            "action": 2 * torch.rand(rows, 1) - 1,
            "next": {
                "observation": torch.randn(rows, 3),
                "reward": torch.randn(rows, 1),
                "terminated": ended,
                "done": ended.clone(),
            },
        },
        [rows],
    )


class LinearCritic(nn.Module):
    """Q(s, a) = weight * s + slope * a."""

    def __init__(self, weight: float, slope: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.weight * observation + self.slope * action


@pytest.fixture
def hand_loss(narrow_actor: Callable[[], ProbabilisticActor]) -> Callable[..., COMBOLoss]:
    """Makes a loss of critics that are known too."""

    def make(**kwargs) -> COMBOLoss:
        actor = narrow_actor()
        critics = [
            ValueOperator(LinearCritic(w, s), in_keys=["observation", "action"])
            for w, s in ((1.0, 2.0), (-1.0, 0.5))
        ]
        kwargs = {"num_real": 2, "conservative_weight": 0.5, "action_spec": SPEC} | kwargs
        loss = COMBOLoss(actor, critics, **kwargs)
        SoftUpdate(loss, tau=0.005)
        return loss

    return make


# two rows of data, three of the model
HAND_S = torch.tensor([[1.0], [2.0], [0.0], [3.0], [-3.0]])
HAND_A = torch.tensor([[0.5], [-0.5], [1.0], [0.0], [-0.25]])


def hand_batch() -> TensorDict:
    batch = make_batch(5)
    batch["observation"], batch["next", "observation"] = HAND_S, HAND_S.clone()
    batch["action"] = HAND_A
    return batch


# Q1 = s + 2 a: 2, 1 on the data and 2, 3, -3.5 in the model: 1.5 - 3 * 0.5 = 0.5 - 1.5
# Q2 = -s + a / 2: -0.75, -2.25 and 0.5, -3, 2.875, so 0.125 + 1.5
HAND_DATA = (1.5, -1.5)
HAND_MODEL = (0.5, 0.125)


def test_rollout_term_by_hand(hand_loss: Callable[..., COMBOLoss]) -> None:
    out = hand_loss()(hand_batch())
    want = 0.5 * (HAND_MODEL[0] - HAND_DATA[0] + HAND_MODEL[1] - HAND_DATA[1])
    assert out["loss_conservative"].item() == pytest.approx(want)
    assert out["data_qvalue"].item() == pytest.approx(0.0, abs=1e-6)
    assert out["penalized_qvalue"].item() == pytest.approx(0.3125)


def test_rollout_gradient_by_hand(hand_loss: Callable[..., COMBOLoss]) -> None:
    loss = hand_loss()
    loss(hand_batch())["loss_conservative"].backward()
    grad = loss.qvalue_network_params
    # 0.5 * (mean of s, or of a, over the model's rows less that over the data's), either critic
    for key, gap in (("weight", 0.0 - 1.5), ("slope", 0.25 - 0.0)):
        got = grad.get(("module", key)).grad
        torch.testing.assert_close(got, torch.full((2,), 0.5 * gap))


def test_policy_term_by_hand(hand_loss: Callable[..., COMBOLoss]) -> None:
    out = hand_loss(penalized_actions="policy")(hand_batch())
    action = math.tanh(1)
    # mean s of the model's rows is 0
    want = 0.5 * (2 * action - HAND_DATA[0] + 0.5 * action - HAND_DATA[1])
    assert out["loss_conservative"].item() == pytest.approx(want, abs=1e-4)


def test_logsumexp_term_against_integration(hand_loss: Callable[..., COMBOLoss]) -> None:
    # int exp(w s + c a) da over [-1, 1] = exp(w s) * 2 sinh(c) / c; the mean of s is 0
    want = sum(math.log(2 * math.sinh(c) / c) for c in (2.0, 0.5)) - sum(HAND_DATA)
    values = []
    for spread in (0.7, 1.0):  # whatever the policy, the integral is the same
        loss = hand_loss(penalized_actions="logsumexp", num_actions=20_000)
        actor = loss.actor_network
        actor.module[0].module.forward = lambda s, spread=spread: (
            torch.full_like(s, 0.3),
            torch.full_like(s, spread),
        )
        values.append(loss(hand_batch())["loss_conservative"].item())
    assert values == pytest.approx([0.5 * want] * 2, abs=0.02)


def test_logsumexp_with_other_bounds_than_one() -> None:
    spec = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 5.0]))
    loss = COMBOLoss(
        make_actor(3, spec, hidden_sizes=(8,)),
        make_qvalue(3, 2, hidden_sizes=(8,)),
        action_spec=spec,
        num_real=2,
        penalized_actions="logsumexp",
        num_actions=500,
        conservative_weight=1.0,
    )
    SoftUpdate(loss, tau=0.005)
    for parameter in loss.qvalue_network_params.parameters():
        parameter.data.zero_()
    batch = make_batch(4)
    batch["action"] = spec.rand([4])
    # Q = 0: the log of the actions' volume, from two critics
    got = loss(batch)["loss_conservative"].item()
    assert got == pytest.approx(2 * math.log(15), abs=0.1)


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_of_the_term_reach_the_critics_only(choice: str) -> None:
    loss = make_loss(penalized_actions=choice)
    batch = make_batch()
    for key in batch.keys(True, True):
        if batch[key].is_floating_point():
            batch[key].requires_grad_()
    loss(batch)["loss_conservative"].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.qvalue_network_params.parameters())
    trained = {id(p) for p in loss.qvalue_network_params.parameters()}
    others = {n: p for n, p in loss.named_parameters() if id(p) not in trained}
    assert {"log_alpha"} < set(others)
    assert {n for n, p in others.items() if p.grad is not None} == set()


def test_each_sac_term_trains_what_it_trains_in_sac() -> None:
    for term in SAC_TERMS:
        touched = []
        for cls in (SACLoss, COMBOLoss):
            loss = make_loss(cls)
            loss(make_batch())[term].backward()
            touched.append({n for n, p in loss.named_parameters() if p.grad is not None})
        assert touched[0] == touched[1] != set()


def test_sacs_own_terms_are_unchanged_where_the_entropy_stays_in_the_target() -> None:
    plain, conservative = make_loss(SACLoss), make_loss(deterministic_backup=False)
    conservative.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch()
    torch.manual_seed(1)
    want = plain(batch.clone())
    torch.manual_seed(1)
    got = conservative(batch.clone())
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)


def test_the_target_is_without_entropy() -> None:
    """r + gamma * (1 - terminated) * min Q'(s', a'), and the other two terms are SAC's."""
    plain, loss, batch = make_loss(SACLoss), make_loss(), make_batch()
    loss.load_state_dict(plain.state_dict(), strict=False)
    loss.target_qvalue_network_params.apply_(lambda p: p.data.mul_(1.5))  # not the critics' own
    torch.manual_seed(1)
    want = plain(batch.clone())
    torch.manual_seed(1)
    out = loss(batch.clone())
    for key in ("loss_actor", "loss_alpha"):
        torch.testing.assert_close(out[key], want[key])

    def qvalues(params: TensorDict, observation: Tensor, action: Tensor) -> list[Tensor]:
        found = []
        for i in range(2):
            with params[i].data.to_module(loss.qvalue_network):
                found.append(loss.qvalue_network(observation, action).squeeze(-1))
        return found

    following = batch["next"]
    with torch.no_grad(), loss.actor_network_params.data.to_module(loss.actor_network):
        dist = loss.actor_network.get_dist(following.copy())
    torch.manual_seed(1)
    action = dist.rsample()
    with torch.no_grad():
        promised = torch.minimum(
            *qvalues(loss.target_qvalue_network_params, following["observation"], action)
        )
        going_on = (~following["terminated"]).squeeze(-1)
        target = following["reward"].squeeze(-1) + 0.99 * going_on * promised
        now = qvalues(loss.qvalue_network_params, batch["observation"], batch["action"])
        error = sum((value - target).square().mean() for value in now)
    torch.testing.assert_close(out["loss_qvalue"], error)


def test_beta_scales_linearly_and_can_be_scheduled() -> None:
    loss, batch = make_loss(conservative_weight=2.0), make_batch()
    full = loss(batch)["loss_conservative"]
    assert full.abs() > 1e-3
    loss.conservative_weight = 0.5
    torch.testing.assert_close(loss(batch)["loss_conservative"], full / 4)
    loss.conservative_weight = 0.0
    assert loss(batch)["loss_conservative"] == 0
    assert "conservative_weight" in loss.state_dict()


def test_reductions_agree(hand_loss: Callable[..., COMBOLoss]) -> None:
    out = {
        reduction: hand_loss(
            reduction=reduction,
            **({"scalar_output_mode": "exclude"} if reduction == "none" else {}),
        )(hand_batch())["loss_conservative"]
        for reduction in ("mean", "sum", "none")
    }
    assert out["none"].shape == (5,)
    torch.testing.assert_close(out["none"].mean(), out["mean"])
    torch.testing.assert_close(out["sum"], 5 * out["mean"])
    # the first row's share: both critics' values, 2 and -0.75, times beta and 5 / 2, negative
    assert out["none"][0].item() == pytest.approx(-0.5 * 2.5 * (2 - 0.75))


def test_output_and_its_metrics() -> None:
    loss = make_loss()
    out = loss(make_batch())
    assert set(out.keys()) == set(loss.out_keys)
    assert set(loss.out_keys) == {
        *SAC_TERMS, "alpha", "entropy", "loss_conservative", "penalized_qvalue", "data_qvalue",
    }  # fmt: skip
    for key, value in out.items():
        assert value.requires_grad == key.startswith("loss"), key
    loss = make_loss(reduction="none", scalar_output_mode="exclude")
    assert set(loss(make_batch()).keys()) == {*SAC_TERMS, "loss_conservative"}


@pytest.mark.parametrize("choice", CHOICES)
def test_input_keeps_its_entries(choice: str) -> None:
    loss, batch = make_loss(penalized_actions=choice), make_batch()
    before, as_sac_leaves_it = batch.clone(), batch.clone()
    loss(batch)
    make_loss(SACLoss)(as_sac_leaves_it)
    assert set(batch.keys(True)) == set(as_sac_leaves_it.keys(True))
    assert (batch.select(*before.keys()) == before).all()


@pytest.mark.parametrize("choice", CHOICES)
def test_keys_can_be_renamed_and_nested(choice: str) -> None:
    spec = Composite(agent=Composite(move=SPEC), observation=Unbounded((3,)))
    plain = make_loss(penalized_actions=choice)
    actor = make_actor(3, SPEC, hidden_sizes=(8,))
    actor = ProbabilisticActor(
        actor.module[0],
        in_keys=["loc", "scale"],
        out_keys=[("agent", "move")],
        distribution_class=TanhNormal,
        distribution_kwargs={"tanh_loc": False},
    )
    qvalue = ValueOperator(
        make_qvalue(3, 1, hidden_sizes=(8,)).module,
        in_keys=["observation", ("agent", "move")],
        out_keys=[("q", "value")],
    )
    loss = COMBOLoss(
        actor,
        qvalue,
        action_spec=spec,
        loss_function="l2",
        num_real=6,
        penalized_actions=choice,
        target_entropy=-1.0,
    )
    loss.set_keys(action=("agent", "move"), state_action_value=("q", "value"), reward="gain")
    SoftUpdate(loss, tau=0.005)
    loss.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch()
    renamed = batch.exclude("action", ("next", "reward"))
    renamed["agent", "move"], renamed["next", "gain"] = batch["action"], batch["next", "reward"]
    torch.manual_seed(2)
    want = plain(batch)
    torch.manual_seed(2)
    got = loss(renamed)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value)


def test_tensors_instead_of_a_tensordict() -> None:
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(1)
    want = loss(batch)
    torch.manual_seed(1)
    got = loss(**batch.select(*loss.in_keys).flatten_keys("_"))
    for key, value in zip(loss.out_keys, got, strict=True):
        torch.testing.assert_close(value, want[key])


@pytest.mark.parametrize("rows", [5, 6])
def test_batches_without_model_rows_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="more than num_real=6 rows"):
        make_loss()(make_batch(rows))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_real": 0}, "num_real"),
        ({"conservative_weight": -1.0}, "conservative_weight"),
        ({"conservative_weight": math.inf}, "conservative_weight"),
        ({"penalized_actions": "all"}, "penalized_actions"),
        ({"num_actions": 0}, "num_actions"),
        ({"skip_done_states": True}, "deterministic_backup=False"),
        ({"penalized_actions": "logsumexp", "action_spec": Unbounded((1,))}, "Bounded"),
    ],
)
def test_settings_are_checked(kwargs: dict, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        make_loss(**kwargs)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    loss, batch = make_loss(penalized_actions="logsumexp"), make_batch()
    loss(batch)  # the target entropy is made on first use

    def objective(batch: TensorDict) -> Tensor:
        out = loss(batch)
        return torch.stack([out[k] for k in (*SAC_TERMS, "loss_conservative")])

    results = []
    for run in (objective, torch.compile(objective, backend="aot_eager", fullgraph=True)):
        loss.zero_grad()
        torch.manual_seed(3)
        terms = run(batch.clone())
        terms.sum().backward()
        gradients = [p.grad.clone() for p in loss.qvalue_network_params.parameters()]
        results.append((terms.detach(), gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
