"""SAC's target with and without its entropy, against a computation of its own."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded
from torchrl.objectives import SACLoss, SoftUpdate

from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, DeterministicBackupSACLoss

SPEC = Bounded(-1, 1, shape=(2,))
GAMMA, ALPHA = 0.9, 0.3


def make_loss(cls: type[SACLoss] = DeterministicBackupSACLoss, **kwargs) -> SACLoss:
    loss = cls(
        make_actor(3, SPEC, hidden_sizes=(8,)),
        make_qvalue(3, 2, hidden_sizes=(8,)),
        action_spec=SPEC,
        loss_function="l2",
        alpha_init=ALPHA,
        **kwargs,
    )
    loss.make_value_estimator(gamma=GAMMA)
    SoftUpdate(loss, tau=0.005)
    # not the critics' own
    loss.target_qvalue_network_params.apply_(lambda p: p.data.mul_(1.5))
    return loss


def make_batch(rows: int = 32) -> TensorDict:
    ended = torch.rand(rows, 1) < 0.3
    following = TensorDict(
        observation=torch.randn(rows, 3),
        reward=torch.randn(rows, 1),
        terminated=ended,
        done=ended | (torch.rand(rows, 1) < 0.3),  # cut off: not terminal
        batch_size=[rows],
    )
    return TensorDict(
        observation=torch.randn(rows, 3),
        action=2 * torch.rand(rows, 2) - 1,
        next=following,
        batch_size=[rows],
    )


def values(loss: SACLoss, params: TensorDict, observation: Tensor, action: Tensor) -> Tensor:
    found = []
    for i in range(2):
        with params[i].data.to_module(loss.qvalue_network):
            found.append(loss.qvalue_network(observation, action).squeeze(-1))
    return torch.stack(found)


@pytest.mark.parametrize("entropy", [False, True])
def test_the_critics_term_by_hand(entropy: bool) -> None:
    loss, batch = make_loss(deterministic_backup=not entropy), make_batch()
    torch.manual_seed(1)
    out = loss(batch.clone())
    following = batch["next"]
    with torch.no_grad(), loss.actor_network_params.data.to_module(loss.actor_network):
        dist = loss.actor_network.get_dist(following.copy())
    torch.manual_seed(1)
    with torch.no_grad():
        action, log_prob = dist.rsample_and_log_prob()
        promised = values(
            loss, loss.target_qvalue_network_params, following["observation"], action
        ).amin(0)
        if entropy:
            promised = promised - ALPHA * log_prob
        going_on = (~following["terminated"]).squeeze(-1)
        target = following["reward"].squeeze(-1) + GAMMA * going_on * promised
        now = values(loss, loss.qvalue_network_params, batch["observation"], batch["action"])
    error = (now - target).square().mean(-1).sum()
    torch.testing.assert_close(out["loss_qvalue"].detach(), error)


def test_actor_and_temperature_are_sacs() -> None:
    plain, loss, batch = make_loss(SACLoss), make_loss(), make_batch()
    loss.load_state_dict(plain.state_dict())
    outs = []
    for which in (plain, loss):
        torch.manual_seed(1)
        outs.append(which(batch.clone()))
    for key in ("loss_actor", "loss_alpha", "alpha", "entropy"):
        torch.testing.assert_close(outs[1][key], outs[0][key])
    assert abs(outs[1]["loss_qvalue"] - outs[0]["loss_qvalue"]) > 1e-3


@pytest.mark.parametrize("term", ["loss_actor", "loss_qvalue", "loss_alpha"])
def test_each_term_trains_what_it_trains_in_sac(term: str) -> None:
    touched = []
    for cls in (SACLoss, DeterministicBackupSACLoss):
        loss = make_loss(cls)
        loss(make_batch())[term].backward()
        touched.append({name for name, p in loss.named_parameters() if p.grad is not None})
    assert touched[0] == touched[1] != set()


def test_the_adversary_takes_it_as_any_sac_loss() -> None:
    loss = make_loss()
    adversarial = AdversarialModelLoss.from_loss(EnsembleWorldModel(3, 2), loss)
    assert float(adversarial.gamma) == pytest.approx(GAMMA)


def test_what_it_cannot_do_without_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="deterministic_backup=False"):
        make_loss(skip_done_states=True)
    make_loss(skip_done_states=True, deterministic_backup=False)
