"""An adversary's effect is told from the noise of the fit beside it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.data.buffers import make_real_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.checkpoint import load_optimizer
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.reporting import adversary_verdict
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.training.phases import ModelPhase

GAMMA = 0.99


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model shows in fewer updates what they settle on."""
    monkeypatch.setattr(adversary_verdict, "UPDATES", 20)


def trained(weight: float) -> tuple[ModelPhase, OfflineDataset]:
    """A model that was fitted against an adversary, and its data."""
    torch.manual_seed(0)
    state, action = torch.randn(400, 2), torch.rand(400, 1) * 2 - 1
    rows = TensorDict(
        observation=state,
        action=action,
        next={
            "observation": state + 0.1 * action + 0.05 * torch.randn(400, 2),
            "reward": state.sum(-1, keepdim=True) + 0.1 * torch.randn(400, 1),
            "terminated": torch.zeros(400, 1, dtype=torch.bool),
            "truncated": torch.arange(400).unsqueeze(-1) % 40 == 39,
        },
        batch_size=[400],
    )
    spec = Bounded(-1, 1, shape=(1,))
    data = OfflineDataset(rows, action_spec=spec)
    model = EnsembleWorldModel(2, 1, hidden_sizes=(32,))
    env = EnsembleModelEnv(model, action_spec=spec, starts=data.transitions)
    networks = make_actor(2, spec, hidden_sizes=(32, 32)), make_qvalue(2, 1, hidden_sizes=(32, 32))
    loss = AdversarialModelLoss.from_loss(
        model, SACLoss(*networks, action_spec=spec), adversarial_weight=weight, gamma=GAMMA
    )
    likelihood = EnsembleModelLoss(model, members="elites")
    real = make_real_buffer(data)
    phase = ModelPhase(env, loss, likelihood, real, batch_size=64, horizon=2)
    phase.run(100)
    return phase, data


@pytest.mark.parametrize(("weight", "effect"), [(1e-12, False), (1e-3, False), (100.0, True)])
def test_an_adversary_is_told_from_the_noise_of_the_fit(
    weight: float, effect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase, data = trained(weight)
    state = [x for entries in phase.optimizer.state.values() for x in entries.values()]
    tensors = [*phase.env.world_model.state_dict().values(), *filter(torch.is_tensor, state)]
    before, random = [x.clone() for x in tensors], torch.get_rng_state()
    measured = adversary_effect(phase, data, gamma=GAMMA)
    assert measured["measurable"] is effect, measured
    no = "a" if effect else "no"
    assert measured["line"].startswith(f"the adversary had {no} measurable effect: it ")
    assert np.isfinite([measured["change"], measured["error"], measured["spread"]]).all()
    # all is as it was
    assert all(map(torch.equal, before, tensors)) and torch.equal(random, torch.get_rng_state())
    assert float(phase.adversarial_loss.adversarial_weight) == pytest.approx(weight)
    assert json.loads(json.dumps(measured)) == measured
    # small changes are no effect, however little noise there is
    monkeypatch.setattr(adversary_verdict, "SHARE", 1e9)
    assert not adversary_effect(phase, data, gamma=GAMMA)["measurable"]


def test_what_is_measured_of_a_checkpoint_is_what_was_at_the_training_s_end() -> None:
    phase, data = trained(1e-3)
    optimizer = phase.optimizer
    state, want = copy.deepcopy(optimizer.state_dict()), adversary_effect(phase, data, gamma=GAMMA)
    optimizer.state.clear()  # as in a process of its own
    optimizer._gathered = None
    state["param_groups"][0]["lr"] = 1e-7  # a rate that fell during training
    load_optimizer(optimizer, state)
    for _ in range(2):  # the first step after it puts other tensors in the state's place
        assert adversary_effect(phase, data, gamma=GAMMA) == want
    optimizer.state.clear()
    assert "never updated" in adversary_effect(phase, data, gamma=GAMMA)["line"]
    phase.adversarial_loss.adversarial_weight = 0.0
    measured = adversary_effect(phase, data, gamma=GAMMA)
    assert not measured["measurable"] and "no adversary (lambda = 0)" in measured["line"]
