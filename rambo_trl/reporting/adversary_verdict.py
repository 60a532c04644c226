"""Whether a run's adversary had an effect that stands out from the noise of the fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.transitions import draw_rows
from rambo_trl.reporting.adversary_measures import mode, step_by_elite
from rambo_trl.training.phases import ModelPhase

#: updates of each continuation, rows of the data in whose states its outcome is measured
UPDATES, ROWS = 30, 1000
#: how many times the noise an effect must be: the 95 % quantile of Student's t with as many degrees
#: of freedom as there are elites, usually five, whose noise it is
NOISE_FACTOR = 2.0
#: and what it must amount to over 1 / (1 - gamma) steps, as a share of the values' deviation
SHARE = 0.1


def adversary_effect(phase: ModelPhase, dataset: OfflineDataset, *, gamma: float) -> dict[str, Any]:
    """Continue a finished training thrice: with the adversary, without it, with other batches.

    The first two draw the same random numbers, so that only the adversary sets them apart: the
    continued fit, whose drift is often many times the adversary's effect, is in both. The last
    two have no adversary and differ in their draws, which is the noise of the fit. The adversary
    and the data pull against each other, so that a few updates show what they settle on.
    Everything is restored afterwards, random states included.

    Args:
        phase: the adversary's, after training.
        dataset: the data.

    Keyword Args:
        gamma: discount factor.

    Returns:
        The ``change`` of r + gamma V(s') at the policy's actions that the adversary makes, in the
        mean over states of the data and elites; the ``noise`` of the same; the ``spread`` of
        r + gamma V(s') over the states; whether the adversary has a ``measurable`` effect, and the
        ``line`` that says so. Without an adversary only the last two.
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
    outcomes = []
    for seed, adversary in ((0, True), (0, False), (1, False)):
        with _restored(phase):
            if not adversary:
                weight.zero_()
            torch.manual_seed(seed)
            phase.run(UPDATES)
            outcomes.append(values().mean(dim=1))
    change = float((outcomes[0] - outcomes[1]).mean())
    noise = float((outcomes[2] - outcomes[1]).square().mean().div(2).sqrt())
    enough = max(NOISE_FACTOR * noise, SHARE * (1 - gamma) * spread)
    measurable = -change > enough
    if not math.isfinite(change + noise + spread):
        line = "the adversary's effect cannot be measured: what the model predicts is not finite"
    elif measurable:
        line = (
            f"the adversary had a measurable effect: it lowers r + gamma V(s') at the policy's "
            f"actions by {-change:.3g}, where other batches change it by {noise:.3g}"
        )
    else:
        line = (
            f"the adversary had no measurable effect: it changes r + gamma V(s') at the policy's "
            f"actions by {change:+.3g}, other batches change it by {noise:.3g}, and values deviate "
            f"by {spread:.3g} over states"
        )
    return {
        "change": change, "noise": noise, "spread": spread, "measurable": measurable, "line": line,
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
    after_update, phase.after_update = phase.after_update, None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        phase.after_update = after_update
        with torch.no_grad():
            for tensor, value in zip(tensors(), kept, strict=True):
                tensor.copy_(value)
