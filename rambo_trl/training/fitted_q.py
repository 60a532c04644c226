"""Fitted Q evaluation: the discounted value of a fixed policy from logged episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import HardUpdate

from rambo_trl.data.returns import discounted_returns
from rambo_trl.modules import make_qvalue
from rambo_trl.objectives import FittedQEvaluationLoss
from rambo_trl.objectives.rebrac import with_next_actions
from rambo_trl.training.gradient_step import (
    FlatSoftUpdate,
    GradientStep,
    MetricMeans,
    ProgressBar,
    adam,
    cosine_decay,
    set_rates,
)

__all__ = ["FittedQ", "fit_q_evaluation"]

#: maps states [*B, observation_size] to actions [*B, action_size], both in the learner's units
Act = Callable[[Tensor], Tensor]

#: the start states' value is looked at so many times during a fit; it has settled if it moves by
#: less than this share of its distance from the logged returns over the last half, and its Bellman
#: residual amounts to less
_CHECKS, _DRIFT = 20, 0.1
#: a fit has diverged where this share of the bootstrapped values leaves what the rewards allow
_CLIPPED = 0.05
#: the critics' start is forgotten but for exp(-this)
_FORGET = 4.0
#: draws of a sampled policy's action in each state that is evaluated, and rows at once
_DRAWS, _CHUNK = 16, 8192


@dataclass(frozen=True, eq=False)
class FittedQ:
    """The critics of a policy, fitted by fitted Q evaluation.

    Attributes:
        loss: holds them.
        policy: what was evaluated; None for the logged behaviour.
        deterministic: whether it is its mode.
        history: the critics' mean value of the start states during the fit,
            [checks, num_qvalue_nets], in the rewards' unit.
        value_std: standard deviation of the logged discounted returns.
        clipped: share of bootstrapped values beyond what the rewards allow, at the end.
        td_error: root mean square, at the end.
        residual: mean of target minus value, at the end, in the rewards' unit.
        num_updates: gradient steps.
    """

    loss: FittedQEvaluationLoss
    policy: Act | None
    deterministic: bool
    history: np.ndarray
    value_std: float
    clipped: float
    td_error: float
    residual: float
    num_updates: int

    @torch.no_grad()
    def values(self, rows: TensorDictBase) -> Tensor:
        """Every critic's value of the policy in the rows' states.

        Args:
            rows: [N] with ``observation``, and for the logged behaviour its ``action``.

        Returns:
            [num_qvalue_nets, N], in the rewards' unit.
        """
        chunks = rows.select("observation", "action", strict=False).split(_CHUNK)
        return torch.cat([self._values(chunk) for chunk in chunks], dim=1)

    def _values(self, rows: TensorDictBase) -> Tensor:
        if self.policy is None:
            return self.loss.value(rows, target=True)
        draws = [
            self.loss.value(
                TensorDict(
                    observation=rows["observation"],
                    action=self.policy(rows["observation"]),
                    batch_size=rows.batch_size,
                ),
                target=True,
            )
            for _ in range(1 if self.deterministic else _DRAWS)
        ]
        return torch.stack(draws).mean(dim=0)

    @property
    def _scale(self) -> float:
        """The value's distance from the logged mean, at least the logged standard deviation."""
        return max(self.value_std, abs(float(self.history[-1].mean()) - self.loss.value_loc))

    @property
    def drift(self) -> float:
        """How far the mean moved in the last half, as a share of its distance from the logs."""
        mean = self.history.mean(axis=1)
        return float(mean[-1] - mean[-1 - len(mean) // 2]) / self._scale

    @property
    def remaining(self) -> float:
        """How far it would still move if the Bellman residual is that of every step, likewise."""
        return self.residual / (1 - self.loss.gamma) / self._scale

    @property
    def unsettled(self) -> str | None:
        """Why the estimate cannot be used, in one sentence; None where it can."""
        if not (np.isfinite(self.history).all() and math.isfinite(self.td_error)):
            return "fitted Q evaluation diverged: its values are not finite"
        if self.clipped > _CLIPPED:
            return (
                f"fitted Q evaluation diverged: {self.clipped:.0%} of its bootstrapped values lie "
                "beyond what the data's rewards allow"
            )
        moved = max(abs(self.drift), abs(self.remaining))
        if moved > _DRIFT:
            return (
                f"fitted Q evaluation has not settled within {self.num_updates} updates: its value "
                f"still moves by {moved:.0%} of its distance from the logged returns"
            )
        return None


def fit_q_evaluation(
    transitions: TensorDictBase,
    policy: Act | None,
    *,
    episodes: np.ndarray,
    starts: TensorDictBase,
    gamma: float,
    deterministic: bool = True,
    num_qvalue_nets: int = 8,
    hidden_sizes: Sequence[int] = (128, 128),
    updates: int = 3000,
    regression_updates: int = 500,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    compile: bool = False,
    bar: ProgressBar | None = None,
) -> FittedQ:
    """Fit an ensemble of critics to the value of a fixed policy.

    Every critic learns from its own bootstrap of the episodes, so that their spread says how far
    another set of episodes would have led elsewhere. They begin at the logged returns of their
    episodes, the behaviour's value, and forget this beginning. Fits of several policies with the
    same seed draw the same episodes, rows and initial weights, so that differences between
    policies are less noisy than the values. The global random state is left as it was.

    Args:
        transitions: the data [N], normalised, episode by episode.
        policy: maps normalised states to the learner's actions; where None the logged behaviour is
            evaluated, by the actions that the data have next.

    Keyword Args:
        episodes: the rows to learn from, [E, 2] of first rows and those after the last ones; see
            :class:`~rambo_trl.data.blocks.EpisodeBlocks`.
        starts: rows [S] of the states in which the value is followed during the fit.
        gamma: discount factor in [0, 1).
        deterministic: whether the policy gives the same action for the same state, which is then
            computed once. Otherwise it is asked anew in each update.
        num_qvalue_nets: critics.
        hidden_sizes: widths of their layers, which are normalised.
        updates: gradient steps of fitted Q evaluation.
        regression_updates: gradient steps on the logged returns, before.
        batch_size: rows per critic and update.
        lr: Adam's learning rate, which falls to 0 along half a cosine.
        seed: of everything that is drawn.
        compile: compile the updates.
        bar: progress in updates.

    Returns:
        The critics, with what says whether they can be used.

    Raises:
        ValueError: if there are no episodes or updates, or a discount factor is not in [0, 1).
    """
    if len(episodes) == 0 or updates < 1:
        raise ValueError(
            f"fitted Q evaluation needs episodes and updates, got {len(episodes)} and {updates}"
        )
    rows = _rows_with_actions(transitions, policy, gamma, deterministic)
    used = rows[torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in episodes]))]
    returns, reward = used["return"], used["next", "reward"]
    std = float(returns.std())
    std = std if std > 1e-6 * max(1.0, float(returns.abs().max())) else 1.0
    bounds = [float(reward.min()) / (1 - gamma), float(reward.max()) / (1 - gamma)]
    if used["next", "terminated"].any():  # nothing follows
        bounds = [min(bounds[0], 0.0), max(bounds[1], 0.0)]
    actor = None
    if policy is not None and not deterministic:
        actor = TensorDictModule(policy, ["observation"], ["action"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = rows["observation"].shape[-1], rows["action"].shape[-1]
        loss = FittedQEvaluationLoss(
            make_qvalue(*sizes, hidden_sizes=hidden_sizes, layer_norm=True),
            actor,
            gamma=gamma,
            value_range=(bounds[0], bounds[1]),
            value_loc=float(returns.mean()),
            value_scale=std,
            num_qvalue_nets=num_qvalue_nets,
            deterministic=deterministic,
        )
        bootstrap = _bootstrap(episodes, rows["known"].numpy(), num_qvalue_nets)

        def regression(batch: TensorDictBase) -> TensorDictBase:
            wanted = (batch["return"].squeeze(-1) - loss.value_loc) / loss.value_scale
            error = (loss.standardised(batch) - wanted).square()
            return TensorDict(loss_returns=error.mean(dim=-1).sum())

        optimizer = adam((loss.qvalue_network_params.parameters(), lr))
        step = GradientStep(regression, optimizer, compile=compile, name="the critics' regression")
        for _ in range(regression_updates):
            step(rows[_draw(bootstrap, batch_size)])
            if bar is not None:
                bar.update(1)
        HardUpdate(loss, value_network_update_interval=1).step()
        # the targets' lag decides how many backups the updates amount to
        tau = min(0.5, max(0.005, _FORGET / ((1 - gamma) * updates)))
        target_update = FlatSoftUpdate(loss, tau=tau)
        optimizer = adam((loss.qvalue_network_params.parameters(), lr))
        step = GradientStep(loss, optimizer, compile=compile, name="fitted Q evaluation")
        fitted = FittedQ(loss, policy, deterministic, np.empty(0), std, 0.0, 0.0, 0.0, updates)
        history, means, decay = [], MetricMeans(), cosine_decay(updates)
        every = max(1, updates // _CHECKS)
        for number in range(updates):
            set_rates(optimizer, [lr * decay(number)])
            means.add(step(rows[_draw(bootstrap, batch_size)]))
            target_update.step()
            if bar is not None:
                bar.update(1)
            if (number + 1) % every == 0 or number + 1 == updates:
                history.append(fitted.values(starts).mean(dim=1).tolist())
                metrics, means = means.read(), MetricMeans()
    return FittedQ(
        loss,
        policy,
        deterministic,
        np.array(history),
        std,
        metrics["clipped"],
        metrics["td_error"],
        metrics["residual"],
        updates,
    )


def _rows_with_actions(
    transitions: TensorDictBase, policy: Act | None, gamma: float, deterministic: bool
) -> TensorDict:
    """What the fit reads of the data: the policy's next actions and the logged returns too."""
    keys = [("next", key) for key in ("observation", "reward", "terminated", "done")]
    rows = transitions.select("observation", "action", *keys)
    rows["next"] = rows["next"].copy()
    rows["return"] = discounted_returns(transitions, gamma)
    rows["known"] = torch.ones(len(rows), dtype=torch.bool)
    if policy is None:
        rows["known"], following = _following_actions(rows)
        rows["next", "action"] = following
    elif deterministic:
        with torch.no_grad():
            chunks = rows["next", "observation"].split(_CHUNK)
            rows["next", "action"] = torch.cat([policy(chunk) for chunk in chunks])
    return rows


def _following_actions(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Of which rows the logged next action is known [N], and that action [N, action_size]."""
    numbered = rows.copy().set("number", torch.arange(len(rows)))
    known = with_next_actions(numbered)
    mask, action = torch.zeros(len(rows), dtype=torch.bool), rows["action"].clone()
    mask[known["number"]] = True
    action[known["number"]] = known["next", "action"]
    return mask, action


def _bootstrap(episodes: np.ndarray, known: np.ndarray, num_members: int) -> list[Tensor]:
    """The rows of each member's own draw of the episodes, with replacement."""
    rows = [np.flatnonzero(known[a:b]) + a for a, b in episodes]
    drawn = torch.randint(len(rows), (num_members, len(rows))).tolist()
    return [torch.from_numpy(np.concatenate([rows[e] for e in member])) for member in drawn]


def _draw(bootstrap: list[Tensor], batch_size: int) -> Tensor:
    """Row numbers of a batch for each member, [M, batch_size]."""
    shares = torch.rand(len(bootstrap), batch_size, dtype=torch.float64)
    return torch.stack(
        [rows[(u * len(rows)).long()] for rows, u in zip(bootstrap, shares, strict=True)]
    )
