"""A termination rule learned from the data, for environments without a known one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rambo_trl.data.scaling import normalize_action
from rambo_trl.runtime.progress import ProgressBar

__all__ = ["LearnedTermination", "TerminationFit", "fit_termination"]

#: gradient steps of the fit, unless it stops earlier
MAX_UPDATES = 20_000


@dataclass(frozen=True)
class TerminationFit:
    """The learned rule's accuracy on held-out rows.

    Attributes:
        terminal_rows: number of terminal rows among those held out.
        rows: number of rows held out.
        recall: share of the terminal rows that the rule ends; None without any.
        precision: share of terminal rows among those that the rule ends; None without any.
        false_ends: share of the other rows that the rule ends.
        updates: gradient steps of the fit.
    """

    terminal_rows: int
    rows: int
    recall: float | None
    precision: float | None
    false_ends: float
    updates: int

    def __str__(self) -> str:
        def share(x: float | None) -> str:
            return "-" if x is None else f"{100 * x:.1f} %"

        return (
            f"on {self.rows} held-out rows, {self.terminal_rows} of them terminal: recall "
            f"{share(self.recall)}, precision {share(self.precision)}, false ends "
            f"{share(self.false_ends)}"
        )


class LearnedTermination(nn.Module):
    """A termination rule given by an ensemble of classifiers of (state, action, next state).

    The probability of an end is the members' mean; a step ends the episode where it exceeds
    ``threshold``. It is called like any rule of :mod:`rambo_trl.envs.termination`, in the
    environment's units.

    Args:
        observation_mean: mean [observation_size] that normalises observations; a buffer.
        observation_std: standard deviation [observation_size], a buffer.
        action_low: the environment's action [action_size] for -1; by default actions are not
            scaled.
        action_high: the environment's action for 1.
        action_size: number of action entries.
        num_members: number of classifiers.
        hidden_sizes: widths of their SiLU layers.
        threshold: probability above which a step ends the episode.

    Raises:
        ValueError: if the threshold does not lie between 0 and 1.

    Examples:
        >>> import torch
        >>> from rambo_trl.envs import LearnedTermination
        >>> rule = LearnedTermination(torch.zeros(3), torch.ones(3), action_size=1)
        >>> rule(torch.zeros(5, 3), torch.zeros(5, 1), torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor | None
    action_high: Tensor | None

    def __init__(
        self,
        observation_mean: Tensor,
        observation_std: Tensor,
        *,
        action_size: int,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        num_members: int = 3,
        hidden_sizes: Sequence[int] = (64, 64),
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
        self.threshold = threshold
        self.register_buffer("observation_mean", observation_mean.clone())
        self.register_buffer("observation_std", observation_std.clone())
        # not in the state_dict, since the data set that the rule is made for has them
        for name, bound in (("action_low", action_low), ("action_high", action_high)):
            self.register_buffer(name, None if bound is None else bound.clone(), persistent=False)
        sizes = [2 * len(observation_mean) + action_size, *hidden_sizes, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5  # as in nn.Linear
            for parameters, shape in (
                (self.weights, (num_members, fan_in, fan_out)),
                (self.biases, (num_members, 1, fan_out)),
            ):
                parameters.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def logits(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Score steps between normalised observations [*, observation_size].

        Returns:
            log-odds of an end for each member, [num_members, *].
        """
        inputs = torch.cat([observation, action, next_observation], dim=-1)
        hidden = inputs.reshape(-1, inputs.shape[-1]).expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, nn.functional.silu(hidden) if i else hidden, weight)
        return hidden.reshape(-1, *inputs.shape[:-1])

    def probability(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Return the probability of an end [*] for steps in the environment's units."""
        before, after = (
            ((x - self.observation_mean) / self.observation_std).to(self.weights[0].dtype)
            for x in (observation, next_observation)
        )
        if self.action_low is not None and self.action_high is not None:
            action = normalize_action(action, self.action_low, self.action_high)
            action = action.to(before.dtype)
        return self.logits(before, action, after).sigmoid().mean(dim=0)

    def forward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Return whether each step ends the episode, boolean [*].

        A next observation that is not finite ends it.
        """
        probability = self.probability(observation, action, next_observation)
        return ~(probability <= self.threshold)


def fit_termination(
    transitions: TensorDictBase,
    *,
    observation_mean: Tensor,
    observation_std: Tensor,
    action_low: Tensor | None = None,
    action_high: Tensor | None = None,
    batch_size: int = 256,
    lr: float = 1e-3,
    holdout_fraction: float = 0.1,
    max_holdout: int = 10_000,
    max_updates: int = MAX_UPDATES,
    patience: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bar: ProgressBar | None = None,
) -> tuple[LearnedTermination, TerminationFit]:
    """Learn when episodes end from the data's ``("next", "terminated")`` by maximum likelihood.

    Terminal rows are rare, so half of each batch is terminal; a constant added to the log-odds
    corrects for that. Truncated rows count as not terminal. The caller's random state is not
    advanced.

    Args:
        transitions: the data [N], normalised.

    Keyword Args:
        observation_mean: the data's mean [observation_size].
        observation_std: the data's standard deviation [observation_size].
        action_low: the environment's action [action_size] for -1; by default the data's actions
            are in its units.
        action_high: the environment's action for 1.
        batch_size: rows per update.
        lr: Adam's learning rate.
        holdout_fraction: share of the terminal and of the other rows that is held out.
        max_holdout: largest number of rows held out.
        max_updates: largest number of updates.
        patience: stop after this many evaluations on the held-out rows (every 200 updates) without
            improvement; the best weights are kept.
        seed: of initialisation and batches.
        device: where the fit runs and the rule lives.
        bar: progress in updates.

    Returns:
        The rule and its accuracy on held-out rows.

    Raises:
        ValueError: if fewer than 2 rows are terminal or fewer than 2 are not.
    """
    terminated = transitions["next", "terminated"].reshape(-1)
    classes = [terminated.nonzero().squeeze(-1), (~terminated).nonzero().squeeze(-1)]
    for rows, word in zip(classes, ("terminal", "other"), strict=True):
        if len(rows) < 2:
            raise ValueError(
                f"a learned termination rule needs at least 2 {word} transitions, the data have "
                f"{len(rows)}: choose termination=none or a rule of your own"
            )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        generator = torch.Generator().manual_seed(seed)
        rule = LearnedTermination(
            observation_mean,
            observation_std,
            action_size=transitions["action"].shape[-1],
            action_low=action_low,
            action_high=action_high,
        )
    rule.to(device)
    held, kept = [], []
    for rows in classes:
        rows = rows[torch.randperm(len(rows), generator=generator)]
        limit = max(1, round(max_holdout * len(rows) / len(terminated)))
        cut = max(1, min(int(holdout_fraction * len(rows)), limit))
        held.append(rows[:cut])
        kept.append(rows[cut:])

    columns = [transitions[key] for key in ("observation", "action", ("next", "observation"))]

    def inputs(rows: Tensor) -> list[Tensor]:
        return [column[rows].to(device) for column in columns]

    holdout = torch.cat(held)
    held_inputs, held_ends = inputs(holdout), terminated[holdout].to(device)
    # log-odds in a balanced batch minus those in the data
    correction = float(torch.tensor(len(kept[1]) / len(kept[0])).log())
    optimizer = torch.optim.Adam(rule.parameters(), lr=lr, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    half = max(1, min(batch_size // 2, 4 * len(kept[0])))
    targets = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
    members = len(rule.weights[0])
    targets = targets.expand(members, -1)
    best, best_error, waited, updates = _copy(rule), float("inf"), 0, 0
    while updates < max_updates and waited < patience:
        for _ in range(200):
            rows = torch.cat([r[torch.randint(len(r), (half,), generator=generator)] for r in kept])
            logits = rule.logits(*inputs(rows))
            loss = loss_of(logits + correction, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if bar is not None:
                bar.update(1)
        updates += 200
        with torch.no_grad():
            logits = rule.logits(*held_inputs)
            error = float(loss_of(logits, held_ends.float().expand(members, -1)))
        if error < best_error:
            best, best_error, waited = _copy(rule), error, 0
        else:
            waited += 1
    rule.load_state_dict(best)
    rule.requires_grad_(False)
    with torch.no_grad():
        ends = rule.logits(*held_inputs).sigmoid().mean(dim=0) > rule.threshold
    true_ends, false_ends = int((ends & held_ends).sum()), int((ends & ~held_ends).sum())
    terminal = int(held_ends.sum())
    return rule, TerminationFit(
        terminal_rows=terminal,
        rows=len(holdout),
        recall=true_ends / terminal if terminal else None,
        precision=true_ends / (true_ends + false_ends) if true_ends + false_ends else None,
        false_ends=false_ends / (len(holdout) - terminal),
        updates=updates,
    )


def _copy(rule: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in rule.state_dict().items()}
