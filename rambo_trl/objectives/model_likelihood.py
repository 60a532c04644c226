"""The likelihood term of Eq. 9 as a TorchRL loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import LossModule

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.world_models import require_ensemble
from rambo_trl.objectives import functional
from rambo_trl.objectives.density import device_of

__all__ = ["EnsembleModelLoss"]

#: decay of the five layers in the authors' configuration
PUBLISHED_WEIGHT_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)


class EnsembleModelLoss(LossModule):
    r"""Maximum-likelihood loss of an :class:`~rambo_trl.modules.EnsembleWorldModel`.

    Per member the mean over batch and dimensions of
    :math:`(\mu - y)^2 e^{-\log\sigma^2} + \log\sigma^2`, summed over members, where
    :math:`y` is the recorded next observation and reward, all in units of the world model's
    ``output_scale`` (which adds a constant to the negative log-density); plus weight decay and the
    penalty on the learnt log-variance bounds. This is the second term of the paper's Eq. 9, and
    on its own the loss of the model's pretraining.

    Args:
        world_model: the ensemble.

    Keyword Args:
        weight_decay: one coefficient per layer; by default the published ones, interpolated for
            other depths than five layers.
        bound_weight: weight of ``sum(max_log_var) - sum(min_log_var)``.
        members: ``"all"``, or ``"elites"`` to fit the elites only. Members share nothing but
            the log-variance bounds, so leaving the others out changes the elites only
            through these.
        reduction: ``"mean"`` (published), ``"sum"`` over the batch, or ``"none"``.
        beta: of the beta-NLL (Seitzer et al. 2022, https://arxiv.org/abs/2203.09168): each term of
            the likelihood is weighted by :math:`\sigma^{2\beta}`, so that entries which are
            predicted to a thousandth do not drown the others, such as a reward with a sharp peak.
            Between 0, the likelihood (published), and 1, the squared error for the means.

    The input holds a batch [B] that all members learn from, or one batch per member [M, B]; the
    latter may hold the members' predictions (:attr:`prediction_key`), which are then not
    recomputed. The output's ``loss_model``, ``loss_bounds`` and ``loss_decay`` add up to the
    objective; ``mse`` [members] is a detached metric.

    Reference: https://arxiv.org/abs/2204.12581

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> from rambo_trl.objectives import EnsembleModelLoss
        >>> loss = EnsembleModelLoss(EnsembleWorldModel(3, 1))
        >>> batch = TensorDict(
        ...     observation=torch.randn(8, 3), action=torch.randn(8, 1),
        ...     next=TensorDict(observation=torch.randn(8, 3), reward=torch.randn(8, 1),
        ...                     batch_size=[8]),
        ...     batch_size=[8])
        >>> out = loss(batch)
        >>> (out["loss_model"] + out["loss_bounds"] + out["loss_decay"]).backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Entries read from the input.

        Attributes:
            observation: defaults to the world model's ``observation_key``.
            action: defaults to the world model's ``action_key``.
            next_observation: the recorded next observation, defaults to the world model's.
            next_reward: the recorded reward, defaults to the world model's.
        """

        observation: NestedKey | None = None
        action: NestedKey | None = None
        next_observation: NestedKey | None = None
        next_reward: NestedKey | None = None

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    out_keys = ["loss_model", "loss_bounds", "loss_decay", "mse"]
    _schedulable_buffers = frozenset({"bound_weight"})
    #: optional entry with the fitted members' ``mean`` and ``log_var`` [M, B, D]
    prediction_key = "member_prediction"

    def __init__(
        self,
        world_model: EnsembleWorldModel,
        *,
        weight_decay: Sequence[float] | None = None,
        bound_weight: float = 1e-3,
        members: Literal["all", "elites"] = "all",
        reduction: Literal["mean", "sum", "none"] = "mean",
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if members not in ("all", "elites"):
            raise ValueError(f"members must be 'all' or 'elites', got {members!r}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must lie between 0 and 1, got {beta}")
        require_ensemble(world_model, type(self).__name__)
        self.world_model = world_model
        num_layers = len(world_model.weights)
        if weight_decay is None:
            grid = np.linspace(0, len(PUBLISHED_WEIGHT_DECAY) - 1, num_layers)
            published = range(len(PUBLISHED_WEIGHT_DECAY))
            weight_decay = np.interp(grid, published, PUBLISHED_WEIGHT_DECAY).tolist()
        if len(weight_decay) != num_layers:
            raise ValueError(
                f"weight_decay needs one value for each of the {num_layers} layers, "
                f"got {len(weight_decay)}"
            )
        self.weight_decay = [float(c) for c in weight_decay]
        self.members = members
        self.reduction = reduction
        self.beta = float(beta)
        self.register_coeff_buffer("bound_weight", bound_weight, device=device_of(world_model))
        # set now: setting them at first use would make a compiled loss recompile
        self._set_in_keys()

    def _set_in_keys(self) -> None:
        names = ("observation", "action", "next_observation", "next_reward")
        self.in_keys = [self._key(name) for name in names]

    def _key(self, name: str) -> NestedKey:
        key = getattr(self.tensor_keys, name)
        return getattr(self.world_model, f"{name}_key") if key is None else key

    def _targets(self, tensordict: TensorDictBase) -> Tensor:
        return torch.cat(
            [
                tensordict.get(self._key("next_observation")),
                tensordict.get(self._key("next_reward")),
            ],
            dim=-1,
        )

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a real batch, [B] or [M, B].

        Raises:
            ValueError: if the batch is [M, B] with an M other than the number of members
                that are fitted.
        """
        model = self.world_model
        elites_only = self.members == "elites"
        num_members = model.num_elites if elites_only else model.num_members
        # called with keywords the batch size is a guess, the action's shape is not
        batch = tensordict.get(self._key("action")).shape[:-1]
        if len(batch) not in (1, 2) or (len(batch) == 2 and batch[0] != num_members):
            raise ValueError(
                f"EnsembleModelLoss needs a batch [B] or [{num_members}, B], one per member, "
                f"got {list(batch)}"
            )
        known = tensordict.get(self.prediction_key, None)
        if known is not None:
            mean, log_var = known.get("mean"), known.get("log_var")
        else:
            mean, log_var = model.predict(
                tensordict.get(self._key("observation")),
                tensordict.get(self._key("action")),
                model.elites if elites_only else None,
            )
        target = self._targets(tensordict)
        scale = model.output_scale
        error = (mean - target) / scale
        nll = functional.ensemble_nll(
            error, log_var - 2 * scale.log(), torch.zeros_like(target), self.beta
        )
        if self.reduction == "mean":
            nll = nll.mean(dim=-1).sum()
        elif self.reduction == "sum":
            nll = nll.sum()
        weights, _ = model.layers(model.elites if elites_only else None)
        bounds = functional.log_var_bound_penalty(model.min_log_var, model.max_log_var)
        out = TensorDict(
            {
                "loss_model": nll,
                "loss_bounds": self.bound_weight * bounds,
                "loss_decay": functional.weight_decay_penalty(weights, self.weight_decay),
                "mse": error.detach().square().mean(dim=(-2, -1)),
            }
        )
        self._clear_weakrefs(tensordict, out)
        return out

    @torch.no_grad()
    def member_mse(self, tensordict: TensorDictBase) -> Tensor:
        """Mean squared error of every member on shared rows [B], in units of ``output_scale``.

        Returns:
            [num_members], the criterion of early stopping and of the choice of elites.
        """
        return self._squared_error(tensordict).mean(dim=(-2, -1))

    @torch.no_grad()
    def entry_mse(self, tensordict: TensorDictBase) -> Tensor:
        """The elites' mean squared error of each predicted entry on rows [B].

        Returns:
            [observation_size + 1], the reward last, in units of ``output_scale``.
        """
        error = self._squared_error(tensordict)
        return error[self.world_model.elites].mean(dim=(0, 1))

    def _squared_error(self, tensordict: TensorDictBase) -> Tensor:
        """Every member's squared errors on shared rows [B], [num_members, B, D]."""
        mean, _ = self.world_model.predict(
            tensordict.get(self._key("observation")), tensordict.get(self._key("action"))
        )
        error = (mean - self._targets(tensordict)) / self.world_model.output_scale
        return error.square()
