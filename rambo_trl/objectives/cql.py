"""CQL(H) on continuous actions: TorchRL's loss with the paper's log-sum-exp."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded
from torchrl.objectives import CQLLoss

from rambo_trl.modules.actor_critic import action_bounds

__all__ = ["ConservativeQLoss"]


class ConservativeQLoss(CQLLoss):
    r"""TorchRL's ``CQLLoss`` whose conservative term is that of CQL(H).

    For each critic the term is (Kumar et al. 2020, Eq. 4, with its weight :math:`\alpha` =
    ``min_q_weight`` and temperature :math:`T`)

    .. math::
        \alpha \, E_{s, a \sim D}\left[T \log \int \exp(Q(s, a') / T) \, da' - Q(s, a)\right],

    the integral estimated by importance sampling from ``num_random`` uniform actions, as many
    of the policy in s and as many of the policy in the next state, all valued in s
    (its appendix F).

    ``CQLLoss`` (TorchRL 0.14) has three proposals in each log-sum-exp, whatever
    ``num_random``, and averages over those; it values the next state's actions in the next
    state and assumes the action space [-1, 1]. All else is ``CQLLoss``. Its output holds
    ``loss_actor_bc``, which replaces ``loss_actor`` in a warm start: do not add both.

    Args:
        actor_network: as in ``CQLLoss``.
        qvalue_network: as in ``CQLLoss``.

    Keyword Args:
        action_spec: bounds of the actions.
        **kwargs: those of ``CQLLoss``.

    Raises:
        TypeError: if the actions are not bounded.
        ValueError: if their bounds are not finite, or a lower one is not below its upper one.

    Reference: https://arxiv.org/abs/2006.04779
    """

    def __init__(
        self, actor_network: Any, qvalue_network: Any, *, action_spec: Bounded, **kwargs: Any
    ) -> None:
        bounds = action_bounds(action_spec, type(self).__name__)
        super().__init__(actor_network, qvalue_network, action_spec=action_spec, **kwargs)
        # not in the state_dict, since the policy saves its bounds
        for name, bound in zip(("low", "high"), bounds, strict=True):
            bound = bound.to(self.log_alpha.device)
            self.register_buffer(f"action_{name}", bound, persistent=False)

    def cql_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """The conservative term, summed over the critics, of a batch [*B]; after ``q_loss``."""
        keys, num = self.tensor_keys, self.num_random
        rows = tensordict.batch_size
        width = self.action_high - self.action_low
        shape = (*rows, num, width.shape[-1])
        uniform = torch.rand(shape, dtype=width.dtype, device=width.device)
        actions = [self.action_low + width * uniform]
        log_densities = [-width.log().sum().expand(*rows, num)]
        for states in (tensordict, tensordict.get("next")):
            drawn, log_density = self._get_policy_actions(
                states.copy(), self.actor_network_params, num_actions=num
            )
            actions.append(drawn.get(keys.action).reshape(*rows, num, -1).detach())
            log_densities.append(log_density.reshape(*rows, num).detach())
        # every proposal is valued in the row's state, the next state's proposals too
        proposals = tensordict.select(*self.qvalue_network.in_keys).unsqueeze(-1)
        proposals = proposals.expand(*rows, 3 * num).set(keys.action, torch.cat(actions, dim=-2))
        qvalue = self._vmap_qvalue_networkN0(proposals, self.qvalue_network_params)
        qvalue = qvalue.get(keys.state_action_value).squeeze(-1)
        weighted = qvalue / self.temperature - torch.cat(log_densities, dim=-1)
        soft_maximum = self.temperature * (weighted.logsumexp(dim=-1) - math.log(3 * num))
        data_qvalue = torch.stack([tensordict.get(keys.pred_q1), tensordict.get(keys.pred_q2)])
        gap = self.min_q_weight * (soft_maximum - data_qvalue.squeeze(-1))
        # with_lagrange reads them here
        tensordict.set(keys.cql_q1_loss, gap[0])
        tensordict.set(keys.cql_q2_loss, gap[1])
        loss = self._reduce_loss(gap.sum(dim=0), tensordict=tensordict)
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )
        return loss, {}
