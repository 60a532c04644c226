"""Fitted Q evaluation as a TorchRL loss: an ensemble of critics of one fixed policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictParams
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

__all__ = ["FittedQEvaluationLoss"]


class FittedQEvaluationLoss(LossModule):
    r"""Regress an ensemble of critics on the Bellman targets of a fixed policy.

    Fitted Q evaluation (Le, Voloshin and Yue 2019, https://arxiv.org/abs/1903.08738, sec. 4.1)
    learns the discounted value of a policy :math:`\pi` that is not changed, from transitions of
    any other. Each critic i has targets of its own target network,

    .. math::
        y_i = r + \gamma (1 - d) \, \operatorname{clip}\left(\bar Q_i(s', a'), v_{\min},
            v_{\max}\right), \quad a' \sim \pi(\cdot | s'),

    and no minimum over critics is taken, so that each is an estimate on its own. A terminal next
    state (d = 1, ``terminated``) adds nothing, a truncated one is bootstrapped like any other.
    Targets within the range that the rewards allow cannot grow without bound. The critics'
    networks predict :math:`(Q - m) / \sigma`, so that neither the unit nor an offset of the
    rewards matters to their training.

    Args:
        qvalue_network: reads observation and action; it is copied ``num_qvalue_nets`` times, each
            copy with weights of its own.
        actor_network: the policy, which is left alone; where None the batches hold its actions as
            ``("next", "action")``. With the logged actions there, the logged behaviour is
            evaluated.

    Keyword Args:
        gamma: discount factor in [0, 1).
        value_range: :math:`v_{\min}` and :math:`v_{\max}`, in the rewards' unit.
        value_loc: m, in the rewards' unit.
        value_scale: :math:`\sigma`, likewise; positive.
        num_qvalue_nets: critics.
        deterministic: evaluate the policy's mode; False its samples.

    Batches are [B], or [num_qvalue_nets, B] with rows of its own for each critic, as a bootstrap
    needs. In the output ``loss_qvalue`` is the mean squared error in the unit of :math:`\sigma^2`,
    summed over critics; the detached metrics ``pred_value``, ``td_error`` (root mean square) and
    ``residual`` (mean of target minus value) are in the rewards' unit, and ``clipped`` is the share
    of the bootstrapped values that left the range.

    Raises:
        ValueError: if a setting is out of range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.objectives import SoftUpdate
        >>> from rambo_trl.modules import make_qvalue
        >>> from rambo_trl.objectives import FittedQEvaluationLoss
        >>> loss = FittedQEvaluationLoss(make_qvalue(3, 1, layer_norm=True), gamma=0.9,
        ...                              value_range=(0.0, 10.0), num_qvalue_nets=4)
        >>> target_update = SoftUpdate(loss, tau=0.05)
        >>> batch = TensorDict(
        ...     observation=torch.randn(4, 8, 3), action=torch.rand(4, 8, 1),
        ...     next=TensorDict(observation=torch.randn(4, 8, 3), reward=torch.rand(4, 8, 1),
        ...                     action=torch.rand(4, 8, 1), batch_size=[4, 8],
        ...                     terminated=torch.zeros(4, 8, 1, dtype=torch.bool)),
        ...     batch_size=[4, 8])
        >>> loss(batch)["loss_qvalue"].backward()
        >>> loss.value(batch).shape
        torch.Size([4, 8])
    """

    @dataclass
    class _AcceptedKeys:
        """Entries of a batch that :meth:`set_keys` can name otherwise."""

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        state_action_value: NestedKey = "state_action_value"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    qvalue_network: TensorDictModuleBase
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    out_keys = ["loss_qvalue", "pred_value", "td_error", "residual", "clipped"]

    def __init__(
        self,
        qvalue_network: TensorDictModuleBase,
        actor_network: TensorDictModuleBase | None = None,
        *,
        gamma: float,
        value_range: tuple[float, float],
        value_loc: float = 0.0,
        value_scale: float = 1.0,
        num_qvalue_nets: int = 8,
        deterministic: bool = True,
    ) -> None:
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
        low, high = map(float, value_range)
        if not (low <= high and math.isfinite(high - low)):
            raise ValueError(f"value_range must be two finite numbers in order, got {value_range}")
        if not (0 < value_scale < math.inf and math.isfinite(value_loc)):
            raise ValueError(
                "value_scale must be positive and value_loc finite, got "
                f"{value_scale} and {value_loc}"
            )
        if num_qvalue_nets < 1:
            raise ValueError(f"num_qvalue_nets must be at least 1, got {num_qvalue_nets}")
        super().__init__()
        self.convert_to_functional(
            qvalue_network, "qvalue_network", num_qvalue_nets, create_target_params=True
        )
        self._actor = (actor_network,)  # in a tuple, so that it is no submodule
        self.gamma, self.value_range = float(gamma), (low, high)
        self.value_loc, self.value_scale = float(value_loc), float(value_scale)
        self.num_qvalue_nets, self.deterministic = num_qvalue_nets, deterministic

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that a batch needs."""
        (actor,), keys = self._actor, self.tensor_keys
        network = self.qvalue_network.in_keys
        following = [("next", key) for key in network if key != keys.action]
        acted = [("next", keys.action)] if actor is None else []
        if actor is not None:
            following += [("next", k) for k in actor.in_keys if ("next", k) not in following]
        return [*network, *following, *acted, ("next", keys.reward), ("next", keys.terminated)]

    def _by_critic(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Rows [B] for all critics, or [num_qvalue_nets, B] as they are."""
        if tensordict.ndim == 1:
            return tensordict.expand(self.num_qvalue_nets, *tensordict.batch_size)
        if tensordict.batch_size[0] != self.num_qvalue_nets:
            raise ValueError(
                f"batches of shape [B] or [{self.num_qvalue_nets}, B] are needed, one row of the "
                f"latter for each critic, got {list(tensordict.batch_size)}"
            )
        return tensordict

    def standardised(self, tensordict: TensorDictBase, *, target: bool = False) -> Tensor:
        """What each critic's network, or its target, predicts of rows: (Q - m) / sigma.

        Args:
            tensordict: [B] or [num_qvalue_nets, B], with observation and action.
            target: whether the target networks predict.

        Returns:
            [num_qvalue_nets, B]
        """
        network = self.qvalue_network
        params = self.target_qvalue_network_params if target else self.qvalue_network_params

        def predict(params: TensorDictBase, rows: TensorDictBase) -> Tensor:
            with params.to_module(network, preserve_module_state=False):
                return network(rows).get(self.tensor_keys.state_action_value)

        rows = self._by_critic(tensordict.select(*network.in_keys))
        return torch.vmap(predict)(params, rows).squeeze(-1)

    def value(self, tensordict: TensorDictBase, *, target: bool = False) -> Tensor:
        """Every critic's value of rows, in the rewards' unit; see :meth:`standardised`."""
        return self.value_loc + self.value_scale * self.standardised(tensordict, target=target)

    @torch.no_grad()
    def act(self, states: TensorDictBase) -> TensorDictBase:
        """States [*B] with the policy's actions; as they are where there is no policy."""
        (actor,) = self._actor
        if actor is None:
            return states
        kind = ExplorationType.DETERMINISTIC if self.deterministic else ExplorationType.RANDOM
        with set_exploration_type(kind):
            acted = actor(states.select(*actor.in_keys))
        action_key = self.tensor_keys.action
        return states.copy().set(action_key, acted.get(action_key))

    @torch.no_grad()
    def target(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The critics' targets of a batch in the rewards' unit, and where they were clipped.

        Returns:
            Both [num_qvalue_nets, B].
        """
        following, keys = tensordict.get("next"), self.tensor_keys
        following = self.act(following)
        value = self.value(following, target=True)
        bounded = value.clamp(*self.value_range)
        reward, terminated = (
            following.get(key).squeeze(-1) for key in (keys.reward, keys.terminated)
        )
        going_on = ~terminated
        return reward + self.gamma * going_on * bounded, (bounded != value) & going_on

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch [B] or [num_qvalue_nets, B], which is left unchanged."""
        target, clipped = self.target(tensordict)
        wanted = (target - self.value_loc) / self.value_scale
        predicted = self.standardised(tensordict)
        square = (predicted - wanted).square()
        with torch.no_grad():
            value = self.value_loc + self.value_scale * predicted.mean()
            error = self.value_scale * square.mean().sqrt()
            residual = self.value_scale * (wanted - predicted).mean()
        return TensorDict(
            loss_qvalue=square.mean(dim=-1).sum(),
            pred_value=value,
            td_error=error,
            residual=residual,
            clipped=clipped.float().mean(),
        )
