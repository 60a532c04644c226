"""lambda by dual ascent on a budget for the model's distance from the data (paper Eq. 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rambo_trl.objectives.adversarial_model import AdversarialModelLoss
from rambo_trl.objectives.density import device_of

__all__ = ["LikelihoodBudget"]


class LikelihoodBudget(nn.Module):
    r"""Adapt lambda so that the model's distance from the data stays within a budget.

    The Lagrangian of the paper's Eq. 7 is :math:`V + \nu (D - \xi)`, with D the model's distance
    from the data and :math:`\nu \ge 0` its multiplier. The paper fixes :math:`\nu` and weighs the
    other term instead, :math:`\lambda = 1 / \nu` (Eq. 8). Here :math:`\nu` is optimised as the
    equation states, by gradient ascent on its logarithm, which keeps it positive:

    .. math::
        \log \nu \leftarrow \log \nu + \eta \, (D - \xi).

    Lambda falls while the model exceeds the budget and rises, up to ``max_weight``, while it is
    within. Like a target-network updater, call :meth:`step` after every model update.

    Args:
        adversarial_loss: the loss whose ``adversarial_weight`` is set; its current value, which
            must be positive, is the start.
        budget: :math:`\xi`, in the units of the argument of :meth:`step`: the loss term
            ``loss_model`` of :class:`~rambo_trl.objectives.EnsembleModelLoss` (then the value
            after the maximum-likelihood fit plus the allowance), or the distance of
            :class:`~rambo_trl.objectives.ModelTrustLoss`.

    Keyword Args:
        lr: :math:`\eta`, per unit of that term.
        min_weight: lambda's lower bound, above 0.
        max_weight: its upper bound; otherwise it would grow forever under a slack budget.

    Raises:
        ValueError: if a bound, the rate or the starting weight is out of its range.

    The multiplier and the budget are buffers: after ``load_state_dict`` the adversarial loss has
    its lambda back.

    Reference: https://arxiv.org/abs/2204.12581, Eq. 7; for the method Boyd and Vandenberghe,
    Convex Optimization, ch. 5.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SACLoss
        >>> from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
        >>> from rambo_trl.objectives import AdversarialModelLoss, LikelihoodBudget
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> agent_loss = SACLoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec)
        >>> adversarial = AdversarialModelLoss.from_loss(EnsembleWorldModel(3, 1), agent_loss)
        >>> budget = LikelihoodBudget(adversarial, budget=-20.0, lr=0.1)
        >>> before = adversarial.adversarial_weight.clone()
        >>> weight = budget.step(torch.tensor(-19.0))  # 1 above the budget
        >>> torch.testing.assert_close(weight, before * torch.exp(torch.tensor(-0.1)))
    """

    adversarial_loss: AdversarialModelLoss
    budget: Tensor
    log_multiplier: Tensor

    def __init__(
        self,
        adversarial_loss: AdversarialModelLoss,
        budget: float,
        *,
        lr: float = 1e-2,
        min_weight: float = 1e-6,
        max_weight: float = 1.0,
    ) -> None:
        super().__init__()
        start = float(adversarial_loss.adversarial_weight)
        if not math.isfinite(budget):
            raise ValueError(f"budget must be finite, got {budget}")
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        # tolerances, since the weight is stored in single precision
        if not 0 < min_weight <= start * (1 + 1e-6) <= max_weight * (1 + 2e-6) < math.inf:
            raise ValueError(
                "with a budget adversarial_weight must lie between 0 <"
                f" min_weight={min_weight} and max_weight={max_weight} < inf, got {start}"
            )
        # not a submodule: the loss, and the world model in it, are saved elsewhere
        self.__dict__["adversarial_loss"] = adversarial_loss
        self.lr = lr
        self._bounds = (-math.log(max_weight), -math.log(min_weight))
        device = device_of(adversarial_loss.world_model)
        self.register_buffer("budget", torch.tensor(float(budget), device=device))
        self.register_buffer("log_multiplier", torch.tensor(-math.log(start), device=device))
        self.register_load_state_dict_post_hook(_restore_weight)
        self._set_weight()

    def _set_weight(self) -> Tensor:
        weight = (-self.log_multiplier).exp()
        current = self.adversarial_loss.adversarial_weight
        if current.device == weight.device:
            current.copy_(weight)  # in place: a captured graph keeps reading it
        else:
            self.adversarial_loss.adversarial_weight = weight
        return weight

    @torch.no_grad()
    def step(self, distance: Tensor) -> Tensor:
        """Take one ascent step of the multiplier.

        Args:
            distance: D of the latest model update, a scalar, in the budget's units.

        Returns:
            The new lambda, a scalar; no synchronisation takes place.
        """
        self.log_multiplier.add_(self.lr * (distance.detach() - self.budget)).clamp_(*self._bounds)
        return self._set_weight()


def _restore_weight(budget: LikelihoodBudget, incompatible_keys: object) -> None:
    budget._set_weight()
