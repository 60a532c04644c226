"""COMBO's conservative critics as a TorchRL loss: SAC, with Q pushed down off the data."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    dispatch,
)
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.objectives import SACLoss

from rambo_trl.modules.actor_critic import action_bounds
from rambo_trl.objectives.density import device_of
from rambo_trl.objectives.deterministic_backup import DeterministicBackupSACLoss

__all__ = ["COMBOLoss"]

_PENALIZED = ("rollout", "policy", "logsumexp")


class COMBOLoss(DeterministicBackupSACLoss):
    r"""SAC whose critics are pushed down on the model's state-actions and up on the data's.

    To SAC's terms this adds, for each critic, COMBO's conservative one (Yu et al. 2021, Eq. 4),

    .. math::
        \beta \left( E_{s, a \sim \rho}[Q(s, a)] - E_{s, a \sim D}[Q(s, a)] \right),

    where D is the data and :math:`\rho` the state-actions visited in the model's rollouts.
    ``penalized_actions`` chooses how the first expectation is estimated:

    - ``"rollout"``, the equation as it stands: the batch's model rows, with the actions that the
      policy took when they were imagined, :math:`\rho(s, a) = d^\pi_M(s) \pi(a | s)`;
    - ``"policy"``: the model rows' states with fresh actions of the current policy;
    - ``"logsumexp"``: :math:`\log \int \exp Q(s, a) da` at the model rows' states, the largest
      such expectation up to the entropy of the actions, as in implementations derived from
      CQL. It is estimated by importance sampling from ``num_actions`` uniform actions and as
      many of the policy.

    The term is summed over the critics like SAC's, whose squared error (``loss_function="l2"``)
    lacks Eq. 4's factor 1/2: beta is half as strong as in the equation, as in published
    implementations. Its gradients reach the critics only. The equation's backup is that of the
    plain policy evaluation, without SAC's entropy; actor and temperature keep it.

    Batches [B] must hold the data's rows first, as those of
    :class:`~rambo_trl.data.RealModelReplayBuffer` do; their entries are SACLoss's.

    Args:
        actor_network: as in :class:`~torchrl.objectives.SACLoss`.
        qvalue_network: as there.
        value_network: as there.

    Keyword Args:
        num_real: number of rows, at the front of a batch, that are the data's;
            ``RealModelReplayBuffer.num_real``.
        conservative_weight: beta (0.5, 1 or 5 in COMBO's experiments). A buffer: it can be
            assigned to and scheduled.
        penalized_actions: where Q is pushed down, see above.
        num_actions: sampled actions of each kind for ``"logsumexp"``.
        deterministic_backup: leave SAC's entropy out of the critics' target, as the equation and
            published implementations do; not with a ``value_network`` or ``skip_done_states``.
        **kwargs: :class:`~torchrl.objectives.SACLoss`'s. ``"logsumexp"`` needs a bounded
            ``action_spec``.

    Beyond SAC's entries the output holds ``loss_conservative``, weighted, and the detached
    metrics ``penalized_qvalue`` and ``data_qvalue``, the two expectations averaged over the
    critics. With ``reduction="none"`` the entries are each row's share, so that their mean is the
    term; the metrics are then left out, as SACLoss leaves out its own.

    Raises:
        TypeError: if ``"logsumexp"`` has no bounded ``action_spec``.
        ValueError: if a setting is out of range; in the forward pass, if a batch has no model
            rows.

    Reference: https://arxiv.org/abs/2102.08363

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SoftUpdate
        >>> from rambo_trl.modules import make_actor, make_qvalue
        >>> from rambo_trl.objectives import COMBOLoss
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> loss = COMBOLoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec, num_real=4)
        >>> target_update = SoftUpdate(loss, tau=0.005)
        >>> batch = TensorDict(
        ...     observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...     next=TensorDict(observation=torch.randn(8, 3), reward=torch.randn(8, 1),
        ...                     terminated=torch.zeros(8, 1, dtype=torch.bool),
        ...                     done=torch.zeros(8, 1, dtype=torch.bool), batch_size=[8]),
        ...     batch_size=[8])
        >>> loss(batch)["loss_conservative"].shape
        torch.Size([])
    """

    _out_keys: list[NestedKey] | None
    _schedulable_buffers = SACLoss._schedulable_buffers | {"conservative_weight"}

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | list[TensorDictModuleBase],
        value_network: TensorDictModule | None = None,
        *,
        num_real: int,
        conservative_weight: float = 1.0,
        penalized_actions: Literal["rollout", "policy", "logsumexp"] = "rollout",
        num_actions: int = 10,
        deterministic_backup: bool = True,
        action_spec: TensorSpec | None = None,
        **kwargs: Any,
    ) -> None:
        if penalized_actions not in _PENALIZED:
            raise ValueError(
                f"penalized_actions must be one of {_PENALIZED}, got {penalized_actions!r}"
            )
        if not (math.isfinite(conservative_weight) and conservative_weight >= 0):
            raise ValueError(
                f"conservative_weight must be finite and not negative, got {conservative_weight}"
            )
        for name, value in (("num_real", num_real), ("num_actions", num_actions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__(
            actor_network,
            qvalue_network,
            value_network,
            deterministic_backup=deterministic_backup,
            action_spec=action_spec,
            **kwargs,
        )
        self.num_real = num_real
        self.penalized_actions = penalized_actions
        self.num_actions = num_actions
        device = device_of(self.actor_network_params)
        self.register_coeff_buffer("conservative_weight", float(conservative_weight), device=device)
        if penalized_actions == "logsumexp":
            if isinstance(action_spec, Composite):
                action_spec = action_spec[self.tensor_keys.action]
            bounds = action_bounds(action_spec, "penalized_actions='logsumexp'")
            # not in the state_dict, since the policy saves its bounds
            for name, bound in zip(("low", "high"), bounds, strict=True):
                self.register_buffer(f"action_{name}", bound.to(self.device), persistent=False)

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries of the output, SACLoss's first."""
        if self._out_keys is None:
            self._out_keys = [
                *super().out_keys,
                "loss_conservative",
                "penalized_qvalue",
                "data_qvalue",
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    def _qvalues(self, tensordict: TensorDictBase) -> Tensor:
        """Every critic's value of state-actions [*B]: [critics, *B], with its gradient."""
        inputs = tensordict.select(*self.qvalue_network.in_keys)
        values = self._vmap_qnetworkN0(inputs, self.qvalue_network_params)
        return values.get(self.tensor_keys.state_action_value).squeeze(-1)

    def _penalized_qvalues(self, model: TensorDictBase) -> Tensor:
        """The estimate of E_rho[Q] on the model's rows [*M]: [critics, *M]."""
        if self.penalized_actions == "rollout":
            return self._qvalues(model)
        action_key = self.tensor_keys.action
        if self.penalized_actions == "policy":
            action, _ = self._policy_actions(model, 1)
            return self._qvalues(model.set(action_key, action[0]))
        action, log_density = self._policy_actions(model, self.num_actions)
        width = self.action_high - self.action_low
        uniform = self.action_low + width * torch.rand_like(action)
        log_uniform = -width.log().sum().expand_as(log_density)
        proposals = 2 * self.num_actions
        states = model.expand(proposals, *model.batch_size)
        qvalue = self._qvalues(states.set(action_key, torch.cat([action, uniform])))
        weighted = qvalue - torch.cat([log_density, log_uniform])
        return weighted.logsumexp(dim=1) - math.log(proposals)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute SAC's terms and the conservative one of a mixed batch [B, *]."""
        rows = tensordict.batch_size[0] if tensordict.ndim else 0
        num_model = rows - self.num_real
        if num_model < 1:
            raise ValueError(
                f"COMBOLoss needs batches of more than num_real={self.num_real} rows, the "
                f"data's first and then the model's; got batch size {list(tensordict.batch_size)}"
            )
        inputs = tensordict.select(
            *{*self.qvalue_network.in_keys, *self.actor_network.in_keys, self.tensor_keys.action}
        )
        data_qvalue = self._qvalues(inputs[: self.num_real])
        penalized_qvalue = self._penalized_qvalues(inputs[self.num_real :])
        # each row's share: their mean over the batch is the difference of the two means
        shares = torch.cat(
            [
                data_qvalue.sum(0) * (-rows / self.num_real),
                penalized_qvalue.sum(0) * (rows / num_model),
            ]
        )
        conservative = self._reduce_loss(
            self.conservative_weight * shares,
            tensordict=tensordict,
            weights=self._maybe_get_priority_weight(tensordict),
        )
        out = super().forward(tensordict)
        out.set("loss_conservative", conservative)
        metrics = {
            "penalized_qvalue": penalized_qvalue.detach().mean(),
            "data_qvalue": data_qvalue.detach().mean(),
        }
        if self.reduction != "none":
            out.update(metrics)
        elif self.scalar_output_mode == "non_tensor":
            for name, value in metrics.items():
                out.set_non_tensor(name, value)
        self._clear_weakrefs(tensordict, out, "actor_network_params", "qvalue_network_params")
        return out
