"""MOBILE as a TorchRL loss: SAC whose targets are lowered where the members' backups disagree."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    dispatch,
)
from torch import Tensor
from torchrl.objectives import SACLoss

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.world_models import require_ensemble
from rambo_trl.objectives.density import device_of
from rambo_trl.objectives.deterministic_backup import DeterministicBackupSACLoss

__all__ = ["MOBILELoss"]


class MOBILELoss(DeterministicBackupSACLoss):
    r"""SAC with targets penalised by the model-Bellman inconsistency.

    The inconsistency of a state-action is how much the Bellman backups under the single members
    :math:`T_m` of an ensemble disagree (Sun et al. 2023):

    .. math::
        u(s, a) = \operatorname{Std}_m\left[\frac 1 N \sum_{n=1}^N \min_i \bar Q_i(s'_{mn}, a'_{mn})
        \right], \quad s'_{mn} \sim T_m(\cdot | s, a), \; a'_{mn} \sim \pi(\cdot | s'_{mn}),

    the sample's standard deviation over the elites, with the target critics :math:`\bar Q_i`. As in
    the authors' implementation, to which the published coefficients belong, the backups are
    compared by their successors' values, without :math:`\gamma`, the reward and the model's
    termination. The critics' target is then

    .. math::
        y = r - \beta \, u(s, a) + \gamma (1 - d) \min_i \bar Q_i(s', a')

    on the model's rows, and without the penalty on the data's; with ``min_target`` it is cut off
    below. It has no entropy term. Actor and temperature are SAC's.

    Batches [B] must hold the data's rows first, as those of
    :class:`~rambo_trl.data.RealModelReplayBuffer` do; their entries are SACLoss's.

    Args:
        actor_network: as in :class:`~torchrl.objectives.SACLoss`.
        qvalue_network: as there.
        value_network: as there, with ``deterministic_backup=False`` only.

    Keyword Args:
        world_model: the ensemble, with the keys of the actor's observation and the action; used as
            it is at each call, and no part of the loss's parameters or state.
        num_real: number of rows, at the front of a batch, that are the data's;
            ``RealModelReplayBuffer.num_real``.
        penalty_coefficient: beta (0.1 to 5 in the paper's experiments). A buffer: it can be
            assigned to and scheduled.
        num_samples: successors N of each member.
        min_target: lower bound of the target, in the unit of the rewards; None for none.
        deterministic_backup: False puts SAC's entropy into the target.
        **kwargs: :class:`~torchrl.objectives.SACLoss`'s.

    Beyond SAC's entries the output holds the detached metric ``inconsistency``, the mean of u over
    the model's rows. With ``reduction="none"`` it is left out, as SACLoss leaves out its own.

    Raises:
        TypeError: if the world model is no ensemble.
        ValueError: if a setting is out of range or the ensemble has one elite only; in the forward
            pass, if a batch has no model rows.

    Reference: https://proceedings.mlr.press/v202/sun23q.html

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SoftUpdate
        >>> from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
        >>> from rambo_trl.objectives import MOBILELoss
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> loss = MOBILELoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec, num_real=4,
        ...                   world_model=EnsembleWorldModel(3, 1, hidden_sizes=(8,)))
        >>> target_update = SoftUpdate(loss, tau=0.005)
        >>> ended = torch.zeros(8, 1, dtype=torch.bool)
        >>> batch = TensorDict(
        ...     observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...     next=TensorDict(observation=torch.randn(8, 3), reward=torch.randn(8, 1),
        ...                     terminated=ended, done=ended.clone(), batch_size=[8]),
        ...     batch_size=[8])
        >>> bool(loss(batch)["inconsistency"] > 0)
        True
    """

    _out_keys: list[NestedKey] | None
    _schedulable_buffers = SACLoss._schedulable_buffers | {"penalty_coefficient"}
    penalty_coefficient: Tensor
    world_model: EnsembleWorldModel

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | list[TensorDictModuleBase],
        value_network: TensorDictModule | None = None,
        *,
        world_model: EnsembleWorldModel,
        num_real: int,
        penalty_coefficient: float = 1.0,
        num_samples: int = 10,
        min_target: float | None = None,
        **kwargs: Any,
    ) -> None:
        require_ensemble(world_model, type(self).__name__)
        if world_model.num_elites < 2:
            raise ValueError("MOBILELoss compares an ensemble's elites: it needs at least 2, got 1")
        if not (math.isfinite(penalty_coefficient) and penalty_coefficient >= 0):
            raise ValueError(
                f"penalty_coefficient must be finite and not negative, got {penalty_coefficient}"
            )
        for name, value, least in (("num_real", num_real, 0), ("num_samples", num_samples, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__(actor_network, qvalue_network, value_network, **kwargs)
        # a reference only: its parameters are neither the agent's nor its state
        self.__dict__["world_model"] = world_model
        self.num_real = num_real
        self.num_samples = num_samples
        self.min_target = min_target
        device = device_of(self.actor_network_params)
        self.register_coeff_buffer("penalty_coefficient", float(penalty_coefficient), device=device)

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries of the output, SACLoss's first."""
        if self._out_keys is None:
            self._out_keys = [*super().out_keys, "inconsistency"]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    @torch.no_grad()
    def inconsistency(self, tensordict: TensorDictBase) -> Tensor:
        """The model-Bellman inconsistency u [B] of state-actions [B], with fresh samples."""
        model = self.world_model
        mean, log_var = model.predict(
            tensordict.get(model.observation_key), tensordict.get(model.action_key), model.elites
        )
        mean, std = mean[..., :-1], (0.5 * log_var[..., :-1]).exp()  # the reward comes last
        noise = torch.randn((self.num_samples, *mean.shape), dtype=mean.dtype, device=mean.device)
        successor = mean + noise * std
        rows = TensorDict(
            {model.observation_key: successor.flatten(0, 2)}, [successor.shape[:3].numel()]
        )
        value = self._target_values(rows).reshape(successor.shape[:3])
        return value.mean(dim=0).std(dim=0)

    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        """The target [*B] of the rewards as given, cut off below."""
        target = super()._compute_target_v2(tensordict)
        return target if self.min_target is None else target.clamp_min(self.min_target)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute SAC's terms of a mixed batch [B], with the penalty on the model's rows."""
        rows = tensordict.batch_size[0] if tensordict.ndim == 1 else 0
        if rows <= self.num_real:
            raise ValueError(
                f"MOBILELoss needs batches of more than num_real={self.num_real} rows, the "
                f"data's first and then the model's; got batch size {list(tensordict.batch_size)}"
            )
        model = self.world_model
        inputs = tensordict.select(model.observation_key, model.action_key)
        inconsistency = self.inconsistency(inputs[self.num_real :])
        penalty = self.penalty_coefficient * inconsistency
        penalty = torch.cat([penalty.new_zeros(self.num_real), penalty])
        reward_key = ("next", self.tensor_keys.reward)
        penalised, reward = tensordict.clone(False), tensordict.get(reward_key)
        penalised.set(reward_key, reward - penalty.reshape(reward.shape))
        out = super().forward(penalised)
        tensordict.set(self.tensor_keys.priority, penalised.get(self.tensor_keys.priority))
        if self.reduction != "none":
            out.set("inconsistency", inconsistency.mean())
        elif self.scalar_output_mode == "non_tensor":
            out.set_non_tensor("inconsistency", inconsistency.mean())
        return out
