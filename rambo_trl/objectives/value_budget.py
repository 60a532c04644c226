"""lambda from a budget for how far the adversary may lower the value of a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rambo_trl.objectives.adversarial_model import AdversarialModelLoss
from rambo_trl.objectives.density import device_of

__all__ = ["ValueBudget"]


class ValueBudget(nn.Module):
    r"""Hold lambda to where the adversary can lower the value of a step by a budget at most.

    With advantages standardised in each batch lambda has no unit: what it does to the values grows
    with the advantages' standard deviation :math:`\sigma`, which is small where the model is
    certain. Against a likelihood term of weight one, lambda tilts the model's density by
    :math:`\exp(-\lambda A / \sigma)`, which to first order lowers the expected advantage by

    .. math::
        \lambda \, \operatorname{Var}(A \mid s, a) / \sigma \le \lambda \sigma

    in the mean over states and actions. So this rule sets, after every update of the model,

    .. math::
        \lambda = \min(\lambda_{\max}, b / \bar\sigma)

    where :math:`\bar\sigma` is the running mean of the batches' :math:`\sigma`. A mean over batches
    keeps the weight of rare batches, in which episodes end, as large as it was.

    Args:
        adversarial_loss: the loss whose ``adversarial_weight`` is set; its current value is
            :math:`\lambda_{\max}`.
        budget: b, in the rewards' unit.

    Keyword Args:
        decay: of the running mean, by update.

    Raises:
        ValueError: if the budget is not positive and finite, ``decay`` lies outside of [0, 1), or
            the loss does not standardise advantages.

    The running mean is a buffer: after ``load_state_dict`` the adversarial loss has its lambda
    back. For a budget in units of the likelihood see
    :class:`~rambo_trl.objectives.LikelihoodBudget`.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SACLoss
        >>> from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
        >>> from rambo_trl.objectives import AdversarialModelLoss, ValueBudget
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> agent_loss = SACLoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec)
        >>> model = EnsembleWorldModel(3, 1)
        >>> loss = AdversarialModelLoss.from_loss(model, agent_loss, adversarial_weight=0.3)
        >>> budget = ValueBudget(loss, 1.0)
        >>> weight = budget.step(torch.tensor(8.0))  # the loss's advantage_std
        >>> torch.testing.assert_close(weight, torch.tensor(1 / 8))
    """

    adversarial_loss: AdversarialModelLoss
    mean_std: Tensor

    def __init__(
        self, adversarial_loss: AdversarialModelLoss, budget: float, *, decay: float = 0.99
    ) -> None:
        super().__init__()
        if not (math.isfinite(budget) and budget > 0):
            raise ValueError(f"budget must be positive and finite, got {budget}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if not adversarial_loss.normalize_advantage:
            raise ValueError(
                "a value budget needs advantages that are standardised in each batch: give the "
                "loss normalize_advantage=True"
            )
        # not a submodule: the loss, and the world model in it, are saved elsewhere
        self.__dict__["adversarial_loss"] = adversarial_loss
        self.budget, self.decay = budget, decay
        self.max_weight = float(adversarial_loss.adversarial_weight)
        device = device_of(adversarial_loss.world_model)
        self.register_buffer("mean_std", torch.tensor(math.nan, device=device))
        self.register_load_state_dict_post_hook(_restore_weight)

    @torch.no_grad()
    def step(self, advantage_std: Tensor) -> Tensor:
        r"""Take the advantages of one update into the mean.

        Args:
            advantage_std: :math:`\sigma` of the latest update, a scalar, in the rewards' unit.

        Returns:
            The new lambda, a scalar; no synchronisation takes place.
        """
        mean = torch.where(self.mean_std.isnan(), advantage_std, self.mean_std)
        self.mean_std.copy_(mean.lerp(advantage_std.to(mean), 1 - self.decay))
        return self._set_weight()

    def _set_weight(self) -> Tensor:
        # not a number before the first update
        weight = (self.budget / self.mean_std).nan_to_num(math.inf).clamp(max=self.max_weight)
        self.adversarial_loss.adversarial_weight.copy_(weight)  # captured graphs keep reading it
        return weight


def _restore_weight(budget: ValueBudget, incompatible_keys: object) -> None:
    budget._set_weight()
