"""Whether a run's adversary had an effect that stands out from the noise of the fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.transitions import draw_rows
from rambo_trl.objectives.value_budget import step_by_elite
from rambo_trl.reporting.adversary_measures import mode
from rambo_trl.training.gradient_step import set_rates
from rambo_trl.training.phases import ModelPhase

#: pairs of continuations, updates of each, rows of the data in whose states its outcome is measured
PAIRS, UPDATES, ROWS = 4, 100, 1000
#: how many standard errors an effect must be: the 97.5 % quantile of Student's t for as many pairs
CERTAINTY = float(stats.t.ppf(0.975, PAIRS - 1))
#: and what it must amount to over 1 / (1 - gamma) steps, as a share of the values' deviation
SHARE = 0.1


def adversary_effect(phase: ModelPhase, dataset: OfflineDataset, *, gamma: float) -> dict[str, Any]:
    """Continue a finished training in pairs: with the adversary, and without it.

    Both of a pair draw the same random numbers, so that only the adversary sets them apart: the
    continued fit, whose drift is often many times the adversary's effect, and its batches are in
    both. Pairs differ in their draws, and so in the adversary's effect, which is its noise. The
    adversary and the data pull against each other, so that a few updates show what they settle
    on. Everything is restored afterwards, random states included.

    Args:
        phase: the adversary's, after training.
        dataset: the data.

    Keyword Args:
        gamma: discount factor.

    Returns:
        The ``change`` of r + gamma V(s') at the policy's actions that the adversary makes, in the
        mean over states of the data, elites and pairs; its standard ``error`` over pairs; the
        ``spread`` of r + gamma V(s') over the states; whether the adversary has a ``measurable``
        effect, and the ``line`` that says so. Without an adversary only the last two.
    """
    loss = phase.adversarial_loss
    weight = loss.adversarial_weight
    if not float(weight):
        line = "there was no adversary (lambda = 0): no effect on the model was to be expected"
        return {"measurable": False, "line": line}
    if not phase.optimizer.state:
        line = "the adversary had no measurable effect: the model was never updated"
        return {"measurable": False, "line": line}
    rows = draw_rows(len(dataset), ROWS)
    observation = dataset.transitions["observation"][rows].to(weight.device)
    action = mode(loss.actor_network, observation)

    def values() -> Tensor:
        """Value r + gamma V(s') by elite, in the data's units [elites, rows]."""
        *_, value = step_by_elite(phase.env.world_model, phase.env, loss, observation, action)
        return value.double() * dataset.reward_scale

    spread = float(values().mean(dim=0).std())
    changes = torch.empty(PAIRS, dtype=torch.double)
    for pair in range(PAIRS):
        outcomes = []
        for adversary in (True, False):
            with _restored(phase):
                set_rates(phase.optimizer, [phase.lr])  # it may have fallen during training
                if not adversary:
                    weight.zero_()
                torch.manual_seed(pair)
                phase.run(UPDATES)
                outcomes.append(float(values().mean()))
        changes[pair] = outcomes[0] - outcomes[1]
    change, error = float(changes.mean()), float(changes.std()) / PAIRS**0.5
    measurable = -change > max(CERTAINTY * error, SHARE * (1 - gamma) * spread)
    if not math.isfinite(change + error + spread):
        line = "the adversary's effect cannot be measured: what the model predicts is not finite"
    else:
        steps = 1 / (1 - gamma)
        line = (
            f"the adversary had {'a' if measurable else 'no'} measurable effect: it changes "
            f"r + gamma V(s') at the policy's actions by {change:+.3g} +- {error:.2g}, over "
            f"1 / (1 - gamma) = {steps:.0f} steps by {change * steps:+.3g}, where values deviate "
            f"by {spread:.3g} over states"
        )
    return {
        "change": change, "error": error, "spread": spread, "measurable": measurable, "line": line,
    }  # fmt: skip


@contextmanager
def _restored(phase: ModelPhase) -> Iterator[None]:
    """Undo what updates of the model change: in place, as captured graphs need it."""

    def tensors() -> list[Tensor]:
        """Collected again after the updates: an optimiser may replace the tensors of its state."""
        states = phase.optimizer.state.values()
        moments = [x for entries in states for x in entries.values() if torch.is_tensor(x)]
        weight = phase.adversarial_loss.adversarial_weight
        return [*phase.env.world_model.state_dict().values(), weight, *moments]

    kept = [tensor.detach().clone() for tensor in tensors()]
    rates = [float(group["lr"]) for group in phase.optimizer.param_groups]
    after_update, phase.after_update = phase.after_update, None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        phase.after_update = after_update
        set_rates(phase.optimizer, rates)
        with torch.no_grad():
            for tensor, value in zip(tensors(), kept, strict=True):
                tensor.copy_(value)
