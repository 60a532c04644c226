"""A trust term: keep the model close to its maximum-likelihood fit (paper Eq. 8)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import check_sampler, keys_read
from rambo_trl.objectives import functional
from rambo_trl.objectives.density import check_density, device_of, transition_log_prob

__all__ = ["ModelTrustLoss"]


class ModelTrustLoss(LossModule):
    r"""The distance between the model and its maximum-likelihood fit on data rows.

    The paper's Eq. 8 weighs the model's value against
    :math:`E_D[TV(\hat T_{MLE}(\cdot|s, a), \hat T_\phi(\cdot|s, a))^2]`, then replaces it by the
    likelihood (Eq. 9). This loss is Eq. 8's term, estimated without bias from next states sampled
    from the fit, or the Kullback-Leibler divergence :math:`KL(\hat T_{MLE} \| \hat T_\phi)`,
    which bounds it (Pinsker: :math:`2\,TV^2 \le KL`) and still has a gradient where the two hardly
    overlap. It takes the place of :class:`~rambo_trl.objectives.EnsembleModelLoss` beside
    :class:`~rambo_trl.objectives.AdversarialModelLoss`.

    With x sampled from the fit p and q the model, the estimators are the mean of
    :math:`q/p - 1 - \log(q/p)` for KL, which is non-negative and whose gradient vanishes
    at q = p for every sample, and for :math:`TV = E_p[(1 - q/p)_+]` the mean product over pairs
    of samples.

    Args:
        world_model: the model being trained: any module that writes a sampled next state when
            called and has ``log_prob`` (or ``get_dist``, see
            :class:`~rambo_trl.objectives.AdversarialModelLoss`).

    Keyword Args:
        divergence: ``"kl"`` or ``"total_variation"``, the latter squared as in Eq. 8.
        num_samples: next states sampled for each row; total variation needs at least two.
        weight: of the term. A buffer: it can be assigned to and scheduled.

    The reference is a frozen copy of ``world_model`` as it is at construction; :meth:`anchor`
    takes a new one. It is part of the ``state_dict``. Both are compared in evaluation mode. The
    input holds data rows [*B], of which observations and actions are read. The output holds
    ``loss_trust`` and, detached, ``trust_distance``, in nats or a squared probability.

    Reference: https://arxiv.org/abs/2204.12581, Eq. 6 to 8

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> from rambo_trl.objectives import ModelTrustLoss
        >>> loss = ModelTrustLoss(EnsembleWorldModel(3, 1))
        >>> batch = TensorDict(observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...                    batch_size=[8])
        >>> loss(batch)["trust_distance"]  # the model is still its own reference
        tensor(0.)
    """

    @dataclass
    class _AcceptedKeys:
        """None: the loss reads the world model's keys."""

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    out_keys = ["loss_trust", "trust_distance"]
    _schedulable_buffers = frozenset({"weight"})

    #: only the elites make up the density, and only they are trained
    members: Literal["elites"] = "elites"

    def __init__(
        self,
        world_model: TensorDictModuleBase,
        *,
        divergence: Literal["kl", "total_variation"] = "kl",
        num_samples: int = 2,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_density(world_model)
        check_sampler(world_model)
        if divergence not in ("kl", "total_variation"):
            raise ValueError(f"divergence must be 'kl' or 'total_variation', got {divergence!r}")
        least = 2 if divergence == "total_variation" else 1
        if num_samples < least:
            raise ValueError(
                f"num_samples must be at least {least} for {divergence!r}, got {num_samples}"
            )
        self.world_model = world_model
        self.reference = copy.deepcopy(world_model).requires_grad_(False)
        self.divergence = divergence
        self.num_samples = num_samples
        self.register_coeff_buffer("weight", float(weight), device=device_of(world_model))
        self.in_keys = keys_read(world_model)

    def anchor(self) -> None:
        """Make the current world model the reference."""
        self.reference.load_state_dict(self.world_model.state_dict())

    def _log_ratio(self, tensordict: TensorDictBase) -> Tensor:
        """Compute log q - log p of samples from the reference, [num_samples, *B]."""
        rows = tensordict.select(*keys_read(self.world_model))
        rows = rows.expand(self.num_samples, *rows.batch_size).clone()
        shape, rows = rows.batch_size, rows.reshape(-1)  # one dimension, for any model
        keys = [key for key in self.world_model.out_keys if key[0] == "next"]
        with evaluating(self.world_model, self.reference):
            # losses run under deterministic exploration, which would return the mode
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                rows = self.reference(rows)
                reference = transition_log_prob(self.reference, rows, keys)
            log_ratio = transition_log_prob(self.world_model, rows, keys) - reference
        return log_ratio.reshape(shape)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the distance on data rows [*B]; the input is left unchanged."""
        log_ratio = self._log_ratio(tensordict)
        if self.divergence == "kl":
            distance = functional.kl_estimate(log_ratio).mean()
        else:
            distance = functional.squared_total_variation_estimate(log_ratio).mean()
        out = TensorDict(
            {"loss_trust": self.weight * distance, "trust_distance": distance.detach()}
        )
        self._clear_weakrefs(tensordict, out)
        return out
