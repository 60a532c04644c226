"""A term that holds SAC's actor to the actions of the data."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule, SACLoss

__all__ = ["BehaviourAnchorLoss"]


class BehaviourAnchorLoss(LossModule):
    r"""Hold SAC's actor to the actions of the data.

    The loss of rows of the data is

    .. math::
        w \, \operatorname{mean}_B \frac1n |\mu(s) - a|^2

    with :math:`\mu(s)` the policy's mode and n the number of action entries, to be added to SAC's
    loss. It is TD3+BC's term (Fujimoto and Gu 2021, https://arxiv.org/abs/2106.06860, Eq. 3) but
    for the factor: theirs is the mean absolute value of the critics, which grows with an offset of
    the rewards and vanishes where an adversary makes the values small. A w that measures how much
    values differ in the data, such as the standard deviation of the
    :func:`~rambo_trl.data.returns.discounted_returns`, does neither.

    Args:
        agent: SAC's loss. The gradient reaches its actor; it stays out of ``parameters()``.
        weight: w, in the rewards' unit.

    Attributes:
        weight: as a tensor, which a schedule may change in place.

    The output's ``anchor_distance`` is the mean squared distance, detached.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SACLoss
        >>> from rambo_trl.modules import make_actor, make_qvalue
        >>> spec = Bounded(-1, 1, shape=(2,))
        >>> sac = SACLoss(make_actor(3, spec), make_qvalue(3, 2), action_spec=spec)
        >>> rows = TensorDict(observation=torch.randn(8, 3), action=spec.rand((8,)), batch_size=[8])
        >>> BehaviourAnchorLoss(sac, weight=10.0)(rows)["loss_anchor"].backward()
    """

    weight: Tensor

    def __init__(self, agent: SACLoss, weight: float) -> None:
        if weight < 0:
            raise ValueError(f"the anchor's weight must not be negative, got {weight}")
        super().__init__()
        self._agent = (agent,)  # in a tuple, so that it is no submodule
        device = agent.log_alpha.device
        self.register_buffer("weight", torch.tensor(float(weight), device=device), persistent=False)
        self.in_keys = [*agent.actor_network.in_keys, agent.tensor_keys.action]
        self.out_keys = ["loss_anchor", "anchor_distance"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of rows of the data [*B]; the input is left unchanged."""
        (agent,) = self._agent
        action = tensordict.get(agent.tensor_keys.action)
        with agent.actor_network_params.to_module(agent.actor_network):
            dist = agent.actor_network.get_dist(tensordict.select(*agent.actor_network.in_keys))
        distance = (dist.deterministic_sample - action).square().mean()
        return TensorDict(loss_anchor=self.weight * distance, anchor_distance=distance.detach())
