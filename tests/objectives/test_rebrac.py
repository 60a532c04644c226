"""ReBRACLoss against the paper's equations, on numbers worked out by hand; its next actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate, TD3BCLoss

from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.objectives import ReBRACLoss
from rambo_trl.objectives.rebrac import with_next_actions

SPEC = Bounded(-1, 1, shape=(2,))
GAMMA = 0.9
#: critics as linear functions of two observation and two action entries
WEIGHTS = np.array([[1.0, 0.0, 0.5, -1.0], [0.0, 1.0, 2.0, 0.3]])
BIASES = np.array([0.0, 0.3])


def make_loss(kind=ReBRACLoss, **kwargs):
    if kind is ReBRACLoss:
        kwargs = {"actor_penalty": 0.4, "critic_penalty": 0.7} | kwargs
    loss = kind(
        make_actor(2, SPEC, hidden_sizes=[8]),
        make_qvalue(2, 2, hidden_sizes=[]),
        action_spec=SPEC,
        loss_function="l2",
        **kwargs,
    )
    loss.make_value_estimator(gamma=GAMMA)
    SoftUpdate(loss, tau=0.005)
    for params, factor in (
        (loss.qvalue_network_params, 1.0),
        (loss.target_qvalue_network_params, 1.5),
    ):
        weight, bias = torch.as_tensor(factor * WEIGHTS), torch.as_tensor(BIASES)
        params.data["module", "0", "weight"][:] = weight.float()[:, None]
        params.data["module", "0", "bias"][:] = bias.float()[:, None]
    # not the actor's own
    loss.target_actor_network_params.apply_(lambda p: p.data.mul_(1.3))
    return loss


def make_batch(rows: int = 64) -> TensorDict:
    ended = torch.zeros(rows, 1, dtype=torch.bool)
    ended[::3] = True
    following = TensorDict(
        observation=torch.randn(rows, 2),
        action=2 * torch.rand(rows, 2) - 1,
        reward=torch.randn(rows, 1),
        terminated=ended,
        done=ended.clone(),
        batch_size=[rows],
    )
    return TensorDict(
        observation=torch.randn(rows, 2),
        action=2 * torch.rand(rows, 2) - 1,
        next=following,
        batch_size=[rows],
    )


def mode(params: TensorDict, observation: torch.Tensor) -> np.ndarray:
    """The actor's action, without its module."""
    weights = {
        (layer, kind): params.data["module", "0", "module", "0", layer, kind].double().numpy()
        for layer in "02"
        for kind in ("weight", "bias")
    }
    hidden = observation.double().numpy() @ weights["0", "weight"].T + weights["0", "bias"]
    out = np.maximum(hidden, 0) @ weights["2", "weight"].T + weights["2", "bias"]
    return np.tanh(out[:, :2])


def qvalues(observation: torch.Tensor, action: np.ndarray, factor: float = 1.0) -> np.ndarray:
    rows = np.concatenate([observation.double().numpy(), action], axis=1)
    return factor * WEIGHTS @ rows.T + BIASES[:, None]


def test_the_actors_term_by_hand() -> None:
    loss, batch = make_loss(), make_batch()
    term, metrics = loss.actor_loss(batch)
    action = mode(loss.actor_network_params, batch["observation"])
    lower = qvalues(batch["observation"], action).min(0)
    distance = np.square(action - batch["action"].numpy()).sum(1)  # summed over the entries
    expected = np.mean(0.4 * distance - lower / np.abs(lower).mean())
    assert term.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["bc_loss"].item() == pytest.approx(distance.mean(), rel=1e-4)
    assert metrics["lmbd"].item() == pytest.approx(1 / np.abs(lower).mean(), rel=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_the_critics_term_by_hand(penalty: float) -> None:
    """With the noise fixed by the seed: clipped, and the action within its bounds."""
    loss = make_loss(critic_penalty=penalty, policy_noise=2.0, noise_clip=0.5)
    batch = make_batch()
    torch.manual_seed(7)
    term, _ = loss.qvalue_loss(batch.clone())
    torch.manual_seed(7)
    noise = (2.0 * torch.randn(64, 2)).clamp(-0.5, 0.5).numpy()
    following = batch["next"]
    action = mode(loss.target_actor_network_params, following["observation"]) + noise
    action = action.clip(-1, 1)
    distance = np.square(action - following["action"].numpy()).sum(1)
    lower = qvalues(following["observation"], action, 1.5)
    lower = lower.min(0) - penalty * distance
    target = following["reward"].squeeze(-1).numpy()
    target = target + GAMMA * ~following["terminated"].squeeze(-1).numpy() * lower
    now = qvalues(batch["observation"], batch["action"].double().numpy())
    expected = np.square(now - target).mean(1).sum()
    assert term.item() == pytest.approx(expected, rel=1e-4)


def test_each_term_trains_its_own_network() -> None:
    loss, batch = make_loss(), make_batch()
    for term, wanted in (("actor_loss", "actor"), ("qvalue_loss", "qvalue")):
        loss.zero_grad()
        getattr(loss, term)(batch.clone())[0].backward()
        trained = {name.split("_")[0] for name, p in loss.named_parameters() if p.grad is not None}
        assert trained == {wanted}


def test_the_output_is_td3_bcs() -> None:
    loss, batch = make_loss(), make_batch()
    before = batch.clone()
    out = loss(batch)
    assert set(out.keys()) == set(make_loss(TD3BCLoss)(make_batch()).keys())
    assert (batch.select(*before.keys()) == before).all()
    assert ("next", "action") in loss.in_keys


def test_without_a_penalty_the_critics_are_td3_bcs() -> None:
    torch.manual_seed(0)
    plain, loss, batch = make_loss(TD3BCLoss), make_loss(critic_penalty=0.0), make_batch()
    loss.load_state_dict(plain.state_dict())
    terms = []
    for which in (plain, loss):
        torch.manual_seed(3)
        terms.append(which.qvalue_loss(batch.clone())[0])
    torch.testing.assert_close(terms[1], terms[0])


@pytest.mark.parametrize("name", ["actor_penalty", "critic_penalty"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        make_loss(**{name: value})


# --- the data's next actions


def rows(done: list[int], terminated: list[int]) -> TensorDict:
    num = len(done)
    flags = {k: torch.tensor(v).bool()[:, None] for k, v in locals().items() if k != "num"}
    following = TensorDict(observation=torch.randn(num, 2), **flags, batch_size=[num])
    action = torch.arange(float(num))[:, None]
    return TensorDict(action=action, next=following, batch_size=[num])


def test_next_actions_stay_within_their_episode() -> None:
    # one that terminates after row 1, one that is cut off after row 4, and a part of one
    data = rows([0, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0])
    before = data.clone()
    out = with_next_actions(data)
    # the cut-off one's last row and that of the part have no next action
    assert out["action"].flatten().tolist() == [0, 1, 2, 3, 5]
    assert out["next", "action"].flatten().tolist() == [1, 1, 3, 4, 6]
    assert (data == before).all() and ("next", "action") not in data.keys(True)


def test_all_rows_stay_where_all_actions_are_known() -> None:
    out = with_next_actions(rows([0, 0, 1, 0, 1], [0, 0, 1, 0, 1]))
    assert out["next", "action"].flatten().tolist() == [1, 2, 2, 4, 4]


def test_rows_that_nothing_follows_are_refused() -> None:
    with pytest.raises(ValueError, match="use another method"):
        with_next_actions(rows([1, 1, 1], [0, 0, 0]))
