"""SAC whose critics are those of the plain policy evaluation: no entropy in their target."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

__all__ = ["DeterministicBackupSACLoss"]


class DeterministicBackupSACLoss(SACLoss):
    r"""TorchRL's ``SACLoss`` without the entropy in the critics' target.

    SAC's soft target, :math:`r + \gamma (\min_i \bar Q_i(s', a') - \alpha \log \pi(a' | s'))`,
    loses its last term:

    .. math::
        y = r + \gamma (1 - d) \min_i \bar Q_i(s', a'), \quad a' \sim \pi(\cdot | s'),

    which is known as the deterministic backup. Critics then estimate the return alone, so that
    what a method subtracts from them, or compares with the data's returns, is in its unit. Actor
    and temperature keep their entropy. It is the target of CQL, COMBO (Yu et al. 2021, Eq. 4) and
    MOBILE (Sun et al. 2023) and an option for any other method built on SAC.

    Args:
        actor_network: as in :class:`~torchrl.objectives.SACLoss`.
        qvalue_network: as there.
        value_network: as there, with ``deterministic_backup=False`` only.

    Keyword Args:
        deterministic_backup: False gives SACLoss's own target.
        **kwargs: :class:`~torchrl.objectives.SACLoss`'s.

    Raises:
        ValueError: if ``deterministic_backup`` comes with a ``value_network`` or with
            ``skip_done_states``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SoftUpdate
        >>> from rambo_trl.modules import make_actor, make_qvalue
        >>> from rambo_trl.objectives import DeterministicBackupSACLoss
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> loss = DeterministicBackupSACLoss(
        ...     make_actor(3, spec), make_qvalue(3, 1), action_spec=spec)
        >>> target_update = SoftUpdate(loss, tau=0.005)
        >>> ended = torch.zeros(8, 1, dtype=torch.bool)
        >>> batch = TensorDict(
        ...     observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...     next=TensorDict(observation=torch.randn(8, 3), reward=torch.randn(8, 1),
        ...                     terminated=ended, done=ended.clone(), batch_size=[8]),
        ...     batch_size=[8])
        >>> loss(batch)["loss_qvalue"].shape
        torch.Size([])
    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | list[TensorDictModuleBase],
        value_network: TensorDictModule | None = None,
        *,
        deterministic_backup: bool = True,
        **kwargs: Any,
    ) -> None:
        if deterministic_backup and (value_network is not None or kwargs.get("skip_done_states")):
            raise ValueError(
                "deterministic_backup=True takes neither a value_network nor skip_done_states: "
                "leave them out, or set deterministic_backup=False"
            )
        super().__init__(actor_network, qvalue_network, value_network, **kwargs)
        self.deterministic_backup = deterministic_backup

    @torch.no_grad()
    def _policy_actions(self, tensordict: TensorDictBase, num: int) -> tuple[Tensor, Tensor]:
        """Actions of the current policy [num, *B, action_size], log-densities [num, *B]."""
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            dist = self.actor_network.get_dist(tensordict.copy())
        if hasattr(dist, "rsample_and_log_prob"):
            # scores the sample before it is squashed, which is exact at the actions' bounds
            return dist.rsample_and_log_prob((num,))
        action = dist.sample((num,))
        return action, dist.log_prob(action)

    @torch.no_grad()
    def _target_values(self, tensordict: TensorDictBase) -> Tensor:
        """The target critics' lower value of fresh actions of the policy: [*B, 1]."""
        action, _ = self._policy_actions(tensordict, 1)
        values = self._vmap_qnetworkN0(
            tensordict.copy().set(self.tensor_keys.action, action[0]),
            self.target_qvalue_network_params,
        ).get(self.tensor_keys.state_action_value)
        return values.amin(0)

    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        """SACLoss's target [*B], with or without the entropy."""
        if not self.deterministic_backup:
            return super()._compute_target_v2(tensordict)
        tensordict = tensordict.clone(False)
        value = self._target_values(tensordict.get("next"))
        tensordict.set(("next", self.value_estimator.tensor_keys.value), value)
        return self.value_estimator.value_estimate(tensordict).squeeze(-1)
