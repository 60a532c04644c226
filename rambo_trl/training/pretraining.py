"""Pretraining: the maximum-likelihood model and the cloned actor (Algorithm 1, line 1)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor
from torchrl.data import Bounded
from torchrl.objectives import BCLoss

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.world_models import require_ensemble
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.runtime.cuda_graphs import capture_on_gpu
from rambo_trl.training.gradient_step import (
    GradientStep,
    MetricMeans,
    ProgressBar,
    adam,
    cosine_decay,
    set_rates,
)

__all__ = [
    "EarlyStopping",
    "ModelFit",
    "clip_actions",
    "clone_behaviour",
    "draw_split",
    "fit_world_model",
    "train_on_rows",
]


class EarlyStopping:
    """Track each member's best holdout error and weights, and decide when to stop.

    A member improves when its error falls by more than ``min_improvement`` relative to its
    best so far; after ``patience`` evaluations without any improvement the fit is over.

    Args:
        world_model: the ensemble.
        patience: evaluations without improvement, one per pass over the data as published (the
            published configuration's 10 means 11).
        min_improvement: relative (1 % in the published configuration).
    """

    def __init__(
        self, world_model: EnsembleWorldModel, *, patience: int = 10, min_improvement: float = 0.01
    ) -> None:
        self.world_model = world_model
        self.patience = patience
        self.min_improvement = min_improvement
        self.stale_evaluations = 0
        self.best_error = torch.full((world_model.num_members,), math.inf)
        self._best = [p.detach().clone() for p in self._member_parameters()]

    def _member_parameters(self) -> list[Tensor]:
        return [*self.world_model.weights, *self.world_model.biases]

    def update(self, holdout_error: Tensor) -> bool:
        """Record the errors [num_members] of an evaluation; True when it is time to stop."""
        error = holdout_error.to(self.best_error)
        first = self.best_error.isinf() & error.isfinite()
        improved = first | (error < self.best_error * (1 - self.min_improvement))
        self.best_error = torch.where(improved, error, self.best_error)
        members = improved.nonzero().squeeze(-1)
        for best, parameter in zip(self._best, self._member_parameters(), strict=True):
            index = members.to(best.device)
            best[index] = parameter.detach()[index]
        self.stale_evaluations = 0 if improved.any() else self.stale_evaluations + 1
        return self.stale_evaluations >= self.patience

    @torch.no_grad()
    def restore(self) -> Tensor:
        """Restore every member's best weights; returns their errors [num_members]."""
        for best, parameter in zip(self._best, self._member_parameters(), strict=True):
            parameter.copy_(best)
        return self.best_error


@dataclass
class ModelFit:
    """What the maximum-likelihood fit did.

    Attributes:
        holdout_mse: best holdout error of every member, mean over dimensions.
        elites: indices of the members chosen.
        passes: passes over the bootstraps, fractions included.
        updates: gradient steps.
        history: the members' holdout errors at each evaluation.
    """

    holdout_mse: list[float]
    elites: list[int]
    passes: float
    updates: int
    history: list[list[float]] = field(default_factory=list)


def fit_world_model(
    world_model: EnsembleWorldModel,
    transitions: TensorDictBase,
    *,
    holdout: TensorDictBase | None = None,
    batch_size: int = 256,
    lr: float = 3e-4,
    holdout_fraction: float = 0.1,
    max_holdout: int = 1000,
    patience: int = 10,
    min_improvement: float = 0.01,
    max_passes: int | None = None,
    max_updates: int | None = None,
    holdout_every: int | None = None,
    lr_decay: Literal["none", "cosine"] = "none",
    beta: float = 0.0,
    standardize_reward: bool = True,
    compile: bool = False,
    on_pass: Callable[[int, Tensor], None] | None = None,
    bar: ProgressBar | None = None,
) -> ModelFit:
    """Fit the ensemble by maximum likelihood and choose its elites (paper sec. 5.2).

    Every member learns from its own bootstrap of the training rows, until no member's holdout
    error fell by more than ``min_improvement`` for ``patience`` evaluations; each member is then
    restored to its best, and those with the lowest holdout error become the elites. As published
    the error is evaluated after each pass over the rows, so that the number of updates grows with
    the data; ``max_updates`` and ``holdout_every`` make it independent of their size.

    Args:
        world_model: the ensemble; its input statistics are set here.
        transitions: the data [N], normalised.

    Keyword Args:
        holdout: rows [M] to measure the holdout error on, all of them, normalised by the data's
            statistics; the model then learns from all of ``transitions``. By default rows are drawn
            from these and held out.
        batch_size: rows per member and update.
        lr: Adam's learning rate.
        holdout_fraction: share of the rows held out, but not more than ``max_holdout``.
        max_holdout: largest number of rows held out.
        patience: evaluations without improvement before the fit stops.
        min_improvement: smallest relative improvement that counts.
        max_passes: largest number of passes.
        max_updates: largest number of updates.
        holdout_every: updates between evaluations of the holdout error; there is one at the end
            in any case. By default a pass, or a fifth of ``max_updates`` if that is less.
        lr_decay: ``"cosine"`` lets the rate fall to 0 along half a cosine over ``max_updates``,
            with which a fit needs fewer of them; the published rate is constant.
        beta: weighs the entries' terms of the likelihood, see
            :class:`~rambo_trl.objectives.EnsembleModelLoss`; the published fit has 0.
        standardize_reward: predict the standardised reward, so that its unit does not matter;
            False predicts the reward itself, as published.
        compile: compile the update.
        on_pass: called after each evaluation with its number and the holdout errors [num_members].
        bar: progress in updates.

    Raises:
        ValueError: if there are fewer than two rows, if no row would be held out or all, if
            ``holdout`` has none, if a number of updates or passes is less than 1, or if the rate
            decays without ``max_updates``.
    """
    given = {"max_passes": max_passes, "max_updates": max_updates, "holdout_every": holdout_every}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 or None, got {value}")
    if lr_decay == "cosine" and max_updates is None:
        raise ValueError("lr_decay='cosine' needs max_updates, over which the rate falls")
    require_ensemble(world_model, "fit_world_model")
    num_rows = transitions.shape[0]
    if num_rows < 2:
        raise ValueError(f"fitting a world model needs at least 2 transitions, got {num_rows}")
    if not (0 < holdout_fraction < 1 and max_holdout >= 1):
        raise ValueError(
            "holdout_fraction must lie between 0 and 1 and max_holdout be at least 1, got "
            f"{holdout_fraction} and {max_holdout}"
        )
    device = world_model.input_mean.device
    data = transitions.select(*world_model.in_keys, *world_model.out_keys).to(device)
    # the training rows are not copied, they may be memory-mapped: only their numbers are
    held_out, train = draw_split(num_rows, holdout_fraction, max_holdout, device=device)
    if holdout is None:
        holdout = data[held_out]
    elif len(holdout):
        holdout = holdout.select(*data.keys(True, True)).to(device)
        train = torch.cat([held_out, train])
    else:
        raise ValueError("holdout has no rows: give some, or leave it out")
    world_model.fit_input_statistics(
        data.get(world_model.observation_key), data.get(world_model.action_key), train
    )
    if standardize_reward:
        world_model.fit_reward_statistics(data.get(world_model.next_reward_key), train)
    loss = EnsembleModelLoss(world_model, beta=beta)
    name = "the fit's update"
    optimizer = adam((world_model.parameters(), lr))
    update = GradientStep(loss, optimizer, compile=compile, name=name)
    step = capture_on_gpu(update.__call__, compile, name=name)
    stopping = EarlyStopping(world_model, patience=patience, min_improvement=min_improvement)

    num_train = len(train)
    batch_size = min(batch_size, num_train)
    bootstrap = _bootstraps(train, world_model.num_members)
    del held_out, train
    per_pass = num_train // batch_size
    limit = math.inf if max_passes is None else max_passes * per_pass
    if max_updates is not None:
        limit = min(limit, max_updates)
        holdout_every = holdout_every or min(per_pass, -(-max_updates // 5))
    batches = _batches(lambda: _shuffled(bootstrap), batch_size)
    history: list[list[float]] = []
    decay = cosine_decay(max_updates) if lr_decay == "cosine" and max_updates else None
    for updates in itertools.count(1):
        if decay is not None:
            set_rates(optimizer, [lr * decay(updates - 1)])
        step(data[next(batches)])
        if bar is not None:
            bar.update(1)
        if updates % (holdout_every or per_pass) and updates < limit:
            continue
        error = loss.member_mse(holdout)
        history.append(error.tolist())
        stop = stopping.update(error)
        if on_pass is not None:
            on_pass(len(history), error)
        if stop or updates >= limit:
            break
    best = stopping.restore()
    world_model.set_elites(best.to(device))
    elites = world_model.elites.tolist()
    return ModelFit(best.tolist(), elites, updates / per_pass, updates, history)


def draw_split(
    num_rows: int,
    fraction: float = 0.1,
    most: int = 1000,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw the rows that :func:`fit_world_model` holds out, and those that it learns from.

    The same random state gives the same split again, with which a fit can be judged afterwards.

    Args:
        num_rows: rows of the data.
        fraction: share of them that is held out.
        most: largest number of rows held out.
        device: of whose generator they are drawn.

    Returns:
        Row numbers, [M] held out (at least one: early stopping and the choice of elites need an
        error) and [num_rows - M] others, in random order.
    """
    num_holdout = max(1, min(int(fraction * num_rows), most))
    order = torch.rand(num_rows, device=device).argsort()
    return order[:num_holdout], order[num_holdout:]


def _batches(shuffle: Callable[[], Tensor], batch_size: int) -> Iterator[Tensor]:
    """Endless batches of row numbers [*, batch_size], dropping each pass's incomplete last one.

    Args:
        shuffle: returns the order of a pass's rows, [*, N].
        batch_size: at most N.
    """
    while True:
        rows = shuffle()
        for start in range(0, rows.shape[-1] - batch_size + 1, batch_size):
            yield rows[..., start : start + batch_size]


def _bootstraps(train: Tensor, num_members: int) -> Tensor:
    """Resample the training rows' numbers [N] with replacement for each member, [M, N].

    On the CPU they are 32-bit to save memory.
    """
    small = not train.is_cuda and int(train.max()) < 2**31
    bootstrap = torch.randint(
        len(train),
        (num_members, len(train)),
        dtype=torch.int32 if small else torch.int64,
        device=train.device,
    )
    for member in bootstrap:
        member.copy_(train[member])
    return bootstrap


def _shuffled(bootstrap: Tensor) -> Tensor:
    """Shuffle each member's rows [M, N] independently."""
    if bootstrap.is_cuda:
        keys = torch.rand(bootstrap.shape, device=bootstrap.device)
        return bootstrap.gather(-1, keys.argsort(dim=-1))
    # on the CPU member by member, to save memory
    rows = torch.empty_like(bootstrap)
    for member, out in zip(bootstrap, rows, strict=True):
        torch.index_select(member, 0, torch.rand(len(member)).argsort(), out=out)
    return rows


def clip_actions(action: Tensor, action_spec: Bounded, margin: float = 1e-3) -> Tensor:
    """Move actions slightly inside their bounds, where a tanh policy's density is finite.

    Args:
        action: [*, action_size].
        action_spec: the bounds.
        margin: width of the margin on each side, as a share of the half range.
    """
    return action.clamp(*_inner_bounds(action_spec, action.device, margin))


def _inner_bounds(
    action_spec: Bounded, device: torch.device, margin: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Bounds slightly inside those of the spec."""
    low, high = action_spec.space.low.to(device), action_spec.space.high.to(device)
    width = margin * (high - low) / 2
    return low + width, high - width


def clone_behaviour(
    actor: ProbabilisticTensorDictSequential,
    transitions: TensorDictBase,
    action_spec: Bounded,
    *,
    passes: int = 50,
    updates: int | None = None,
    batch_size: int = 256,
    lr: float = 1e-4,
    compile: bool = False,
    bar: ProgressBar | None = None,
) -> dict[str, float]:
    """Behaviour-clone the actor by maximum likelihood (the start of the MuJoCo experiments).

    Args:
        actor: a tanh-Gaussian policy.
        transitions: the data [N], normalised.
        action_spec: bounds; targets are clipped slightly inside them, because the density of a
            tanh policy at its bounds is infinite.

    Keyword Args:
        passes: passes over the data (50 in the published configuration).
        updates: number of gradient steps, instead of ``passes``.
        batch_size: rows per update.
        lr: Adam's learning rate.
        compile: compile the update.
        bar: progress in updates.

    Returns:
        Mean metrics (``loss_bc``) of the last, perhaps incomplete, pass.
    """
    device = next(actor.parameters()).device
    data = transitions.select("observation", "action").to(device)
    bounds = _inner_bounds(action_spec, device)
    with warnings.catch_warnings():
        # a missing annotation in TorchRL 0.14's BCLoss
        warnings.filterwarnings("ignore", "The name target_actor_network_params")
        loss = BCLoss(actor)
    loss.in_keys  # noqa: B018  # which TorchRL else sets inside the graph

    def losses(batch: TensorDictBase) -> TensorDictBase:
        return loss(batch.set("action", batch["action"].clamp(*bounds)))

    if updates is None:
        updates = passes * (data.shape[0] // min(batch_size, data.shape[0]))
    optimizer = adam((loss.parameters(), lr))
    name = "the cloning update"
    return train_on_rows(losses, optimizer, data, updates, batch_size, compile, name, bar)


def train_on_rows(
    losses: Callable[[TensorDictBase], TensorDictBase],
    optimizer: torch.optim.Optimizer,
    rows: TensorDictBase,
    updates: int,
    batch_size: int,
    compile: bool,
    name: str,
    bar: ProgressBar | None,
) -> dict[str, float]:
    """Gradient steps on shuffled passes over rows [N]; the mean metrics of the last pass."""
    update = GradientStep(losses, optimizer, compile=compile, name=name)
    step = capture_on_gpu(update.__call__, compile, name=name)
    num_rows = rows.shape[0]
    batch_size = min(batch_size, num_rows)
    per_pass = num_rows // batch_size
    batches = _batches(lambda: torch.rand(num_rows, device=rows.device).argsort(), batch_size)
    means = MetricMeans()
    for number in range(updates):
        if number % per_pass == 0:
            means = MetricMeans()
        means.add(step(rows[next(batches)]))
        if bar is not None:
            bar.update(1)
    return means.read()
