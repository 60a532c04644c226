"""ReBRAC as a TorchRL loss: TD3+BC with a penalty of its own for the critics."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import TD3BCLoss
from torchrl.objectives.utils import distance_loss

__all__ = ["ReBRACLoss", "with_next_actions"]


def with_next_actions(transitions: TensorDictBase) -> TensorDictBase:
    """Add the data's next actions, for :class:`ReBRACLoss`, as ``("next", "action")``.

    Args:
        transitions: [N] in the order in which they were recorded, with ``("next", "done")`` true
            in the last row of each episode; left unchanged.

    Returns:
        [M], without the last rows of episodes that were cut off, whose next action is not known.
        After a terminal row nothing follows, and its own action stands in.

    Raises:
        ValueError: if no row is left: all of them are ends of episodes that were cut off.
    """
    action, done = transitions["action"], transitions["next", "done"].flatten()
    following = torch.where(done.unsqueeze(-1), action, action.roll(-1, dims=0))
    known = ~done | transitions["next", "terminated"].flatten()
    known[-1] &= done[-1]  # a row that nothing follows, as after a part of an episode
    if not known.any():
        raise ValueError(
            "ReBRAC needs the actions that follow each other in episodes, and each row of these "
            "data is the end of one that was cut off: use another method, such as td3_bc"
        )
    out = transitions.copy()
    out["next"] = transitions["next"].copy().set("action", following)
    return out if known.all() else out[known]


class ReBRACLoss(TD3BCLoss):
    r"""TorchRL's ``TD3BCLoss`` with penalties for actor and critics that do not depend on another.

    The critics' target is penalised by the squared distance of the target policy's next action to
    the data's, the actor's loss by that of its own action (Tarasov et al. 2023, sec. 3; both
    distances are sums over the action's entries):

    .. math::
        y = r + \gamma (1 - d) \left(\min_i \bar Q_i(s', \tilde a')
            - \beta_2 \lVert \tilde a' - a' \rVert^2 \right), \quad
        L_\pi = \beta_1 \lVert \pi(s) - a \rVert^2
            - \frac{\min_i Q_i(s, \pi(s))}{\operatorname{mean} |\min_i Q_i|},

    where :math:`\tilde a'` is the target actor's action with TD3's clipped noise. The rest of the
    method lies in networks and training: critics with LayerNorm, three hidden layers
    and large batches.

    Args:
        actor_network: as in :class:`~torchrl.objectives.TD3BCLoss`, deterministic or evaluated by
            its mode.
        qvalue_network: as there.

    Keyword Args:
        actor_penalty: beta_1, the weight of the actor's distance; Q has size 1.
        critic_penalty: beta_2, the weight of the critics', in the unit of the rewards.
        **kwargs: those of :class:`~torchrl.objectives.TD3BCLoss`, without ``alpha``.

    Batches [*B] need ``("next", "action")``, see :func:`with_next_actions`. The entries of the
    output are ``TD3BCLoss``'s: ``bc_loss`` is the mean distance of the actor's actions, ``lmbd``
    one over the mean size of Q.

    Raises:
        ValueError: if a penalty is negative or not finite.

    Reference: https://arxiv.org/abs/2305.09836

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SoftUpdate
        >>> from rambo_trl.modules import make_actor, make_qvalue
        >>> from rambo_trl.objectives import ReBRACLoss
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> loss = ReBRACLoss(make_actor(3, spec), make_qvalue(3, 1, layer_norm=True),
        ...                   action_spec=spec, actor_penalty=0.01, critic_penalty=0.001)
        >>> target_update = SoftUpdate(loss, tau=0.005)
        >>> ended = torch.zeros(8, 1, dtype=torch.bool)
        >>> batch = TensorDict(
        ...     observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...     next=TensorDict(observation=torch.randn(8, 3), reward=torch.randn(8, 1),
        ...                     action=torch.rand(8, 1), terminated=ended, done=ended.clone(),
        ...                     batch_size=[8]),
        ...     batch_size=[8])
        >>> loss(batch)["loss_qvalue"].shape
        torch.Size([])
    """

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: Any,
        *,
        actor_penalty: float = 1.0,
        critic_penalty: float = 1.0,
        **kwargs: Any,
    ) -> None:
        for name, value in (("actor_penalty", actor_penalty), ("critic_penalty", critic_penalty)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        super().__init__(actor_network, qvalue_network, **kwargs)
        self.actor_penalty = float(actor_penalty)
        self.critic_penalty = float(critic_penalty)

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        self._in_keys.append(("next", self.tensor_keys.action))

    def _values(self, tensordict: TensorDictBase, params: TensorDictBase) -> Tensor:
        """Every critic's value of state-actions [*B]: [critics, *B]."""
        inputs = tensordict.select(*self.qvalue_network.in_keys)
        inputs = inputs.expand(self.num_qvalue_nets, *inputs.batch_size)
        values = self._vmap_qvalue_network00(inputs, params)
        return values.get(self.tensor_keys.state_action_value).squeeze(-1)

    def _act(self, states: TensorDictBase, params: TensorDictBase) -> TensorDictBase:
        """States [*B] with the actions of an actor with these parameters."""
        with params.to_module(self.actor_network, preserve_module_state=False):
            return self.actor_network(states.select(*self.actor_network.in_keys))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """The actor's term of a batch [*B], and the metrics of ``TD3BCLoss``."""
        weights = self._maybe_get_priority_weight(tensordict)
        action_key = self.tensor_keys.action
        acted = self._act(tensordict, self.actor_network_params)
        value = self._values(acted, self._cached_detach_qvalue_network_params).amin(0)
        distance = (acted.get(action_key) - tensordict.get(action_key)).square().sum(-1)
        scale = 1 / value.abs().mean().detach()
        loss = self._reduce_loss(
            self.actor_penalty * distance - scale * value, tensordict=tensordict, weights=weights
        )
        self._release(tensordict)
        metrics = {
            "state_action_value_actor": value.detach(),
            "bc_loss": distance.detach().mean(),
            "lmbd": scale,
        }
        return loss, metrics

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict]:
        """The critics' term of a batch [*B], and the metrics of ``TD3BCLoss``."""
        weights = self._maybe_get_priority_weight(tensordict)
        tensordict = tensordict.clone(False)
        following, action_key = tensordict.get("next"), self.tensor_keys.action
        with torch.no_grad():
            acted = self._act(following, self.target_actor_network_params)
            action = acted.get(action_key)
            noise = (torch.randn_like(action) * self.policy_noise).clamp(
                -self.noise_clip, self.noise_clip
            )
            action = (action + noise).clamp(self.min_action, self.max_action)
            distance = (action - following.get(action_key)).square().sum(-1)
            value = self._values(
                acted.set(action_key, action), self.target_qvalue_network_params
            ).amin(0)
            value = value - self.critic_penalty * distance
            value_key = ("next", self.tensor_keys.state_action_value)
            target = self.value_estimator.value_estimate(
                tensordict.set(value_key, value.unsqueeze(-1))
            ).squeeze(-1)
        predicted = self._values(tensordict, self.qvalue_network_params)
        error = distance_loss(predicted, target.expand_as(predicted), self.loss_function)
        loss = self._reduce_loss(error.sum(0), tensordict=tensordict, weights=weights)
        self._release(tensordict)
        metrics = {
            "td_error": (predicted - target).square().detach(),
            "next_state_value": value,
            "pred_value": predicted.detach(),
            "target_value": target,
        }
        return loss, metrics

    def _release(self, tensordict: TensorDictBase) -> None:
        networks = ("actor_network_params", "qvalue_network_params")
        self._clear_weakrefs(tensordict, *networks, *(f"target_{name}" for name in networks))
