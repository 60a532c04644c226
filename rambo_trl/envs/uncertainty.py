"""Pessimism by the ensemble's uncertainty: MOPO's penalty and MOReL's halting.

Both keep the model's next observations and change the reward of a step or where it ends.
:class:`PessimisticModelEnv` applies either to every step of a world model's env, be it taken by
``rollout()``, by a TorchRL ``Collector`` or by the
:class:`~rambo_trl.collectors.ModelRolloutCollector`, which steps plain tensors.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rambo_trl.envs.ensemble_model_env import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import require_ensemble

__all__ = [
    "MOPOPenalty",
    "MORELHalting",
    "Pessimism",
    "PessimisticModelEnv",
    "largest_disagreement",
    "largest_std_norm",
]


def largest_std_norm(log_var: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    r"""MOPO's uncertainty :math:`u(s, a) = \max_i \lVert \Sigma_i(s, a) \rVert_F`.

    The Frobenius norm is that of the members' diagonal matrix of standard deviations, as the
    authors compute it (Yu et al. 2020, sec. 4).

    Args:
        log_var: log-variances of the members' outputs [M, B, D].
        scale: what each output's standard deviation is multiplied by [D].

    Returns:
        [B]
    """
    return ((0.5 * log_var).exp() * scale).norm(dim=-1).amax(dim=0)


def largest_disagreement(mean: Tensor) -> Tensor:
    r"""MOReL's discrepancy :math:`\max_{i,j} \lVert f_i(s, a) - f_j(s, a) \rVert_2`.

    Args:
        mean: the members' predicted successors [M, B, D].

    Returns:
        [B], zero for a single member (Kidambi et al. 2020, sec. 4).
    """
    members = range(mean.shape[0])
    pairs = [(i, j) for i in members for j in members if i < j]
    largest = torch.zeros_like(mean[0, :, 0])
    for i, j in pairs:  # one pair at a time: memory for one difference only
        largest = torch.maximum(largest, (mean[i] - mean[j]).norm(dim=-1))
    return largest


class Pessimism(Protocol):
    """Adjusts rewards and ends of steps to the ensemble's uncertainty."""

    def __call__(
        self,
        world_model: EnsembleWorldModel,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adjust a batch of steps.

        Args:
            world_model: the ensemble.
            observation: normalised [B, observation_size].
            action: [B, action_size].
            reward: the sampled rewards [B, 1].
            terminated: whether they ended the episode [B, 1].

        Returns:
            The new reward [B, 1] and terminated [B, 1]; the arguments are left unchanged.
        """
        ...


class MOPOPenalty:
    r"""MOPO: :math:`\tilde r = r - \lambda \max_i \lVert \Sigma_i(s, a) \rVert_F`.

    The maximum runs over all members, elites or not, and the norm over the standard deviations of
    next observation and reward, as in the authors' code. Their published coefficients are for
    deviations in the data's units: for a model of normalised data give ``units``.

    Args:
        coefficient: MOPO's lambda, the weight of the penalty (0.5 to 5 in its experiments).

    Keyword Args:
        units: the size of 1 in each of the model's outputs in the data's units
            [observation_size + 1]: the standard deviations that observations were divided by and,
            last, the reward's divisor; on the model's device. None: the model predicts in the
            data's units.

    Raises:
        ValueError: if the coefficient is negative or not finite, or a unit is not finite and
            positive.

    Reference: https://arxiv.org/abs/2005.13239, sec. 4
    """

    def __init__(self, coefficient: float, *, units: Tensor | None = None) -> None:
        if not (math.isfinite(coefficient) and coefficient >= 0):
            raise ValueError(f"coefficient must be finite and not negative, got {coefficient}")
        self.coefficient = float(coefficient)
        if units is not None and not (units.isfinite() & (units > 0)).all():
            raise ValueError(f"units must be finite and positive, got {units.tolist()}")
        self.units = units

    def of(self, log_var: Tensor) -> Tensor:
        """The penalty, in the model's units of reward.

        Args:
            log_var: log-variances of the members' outputs [M, B, observation_size + 1].

        Returns:
            [B]
        """
        if self.units is None:
            return self.coefficient * largest_std_norm(log_var)
        scale = self.units.to(log_var)
        return self.coefficient * largest_std_norm(log_var, scale / scale[-1])

    def __call__(
        self,
        world_model: EnsembleWorldModel,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Penalise the rewards; ends stay as they are. See :class:`Pessimism`."""
        with torch.no_grad():
            _, log_var = world_model.predict(observation, action)
        return reward - self.of(log_var).unsqueeze(-1), terminated


class MORELHalting:
    r"""MOReL: where the members disagree too much, the rollout ends with a fixed reward.

    In MOReL's pessimistic MDP an unknown state-action, one at which
    :math:`\max_{i,j} \lVert f_i(s, a) - f_j(s, a) \rVert_2` exceeds the threshold, leads to an
    absorbing state HALT with reward :math:`-\kappa`. Here the step itself gets ``halt_reward``
    and terminates. All members count, by their mean next observations in normalised units;
    predicted rewards do not, as in the paper.

    Args:
        threshold: the disagreement beyond which a state-action is unknown;
            :meth:`from_data` measures it on the data.
        halt_reward: the reward of such a step, :math:`-\kappa`: at most the data's smallest
            reward. Times :math:`1 / (1 - \gamma)` it is the return of an absorbing HALT.

    Raises:
        ValueError: if the threshold is negative or a value is not finite.

    Reference: https://arxiv.org/abs/2005.05951, Def. 1 and 2
    """

    def __init__(self, threshold: float, halt_reward: float) -> None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold must be finite and not negative, got {threshold}")
        if not math.isfinite(halt_reward):
            raise ValueError(f"halt_reward must be finite, got {halt_reward}")
        self.threshold = float(threshold)
        self.halt_reward = float(halt_reward)

    @classmethod
    def from_data(
        cls,
        world_model: EnsembleWorldModel,
        transitions: TensorDictBase,
        *,
        num_stds: float | None = None,
        penalty: float = 0.0,
        chunk_size: int = 10_000,
    ) -> MORELHalting:
        """Set threshold and reward from the data that the ensemble was fitted to.

        Args:
            world_model: the fitted ensemble.
            transitions: the data [N], normalised.

        Keyword Args:
            num_stds: the threshold is the data's mean disagreement plus this many standard
                deviations; None takes the largest disagreement in the data instead.
            penalty: how far ``halt_reward`` lies below the data's smallest reward.
            chunk_size: rows evaluated at a time.

        Raises:
            ValueError: if the penalty is negative, or the threshold is.
        """
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"penalty must be finite and not negative, got {penalty}")
        require_ensemble(world_model, cls.__name__)
        with torch.no_grad(), evaluating(world_model):
            disagreement = torch.cat(
                [
                    _disagreement(
                        world_model,
                        rows.get(world_model.observation_key).to(world_model.input_mean),
                        rows.get(world_model.action_key).to(world_model.input_mean),
                    )
                    for rows in transitions.split(chunk_size)
                ]
            )
        threshold = (
            disagreement.max()
            if num_stds is None
            else disagreement.mean() + num_stds * disagreement.std(correction=0)
        )
        worst = transitions.get(world_model.next_reward_key).min()
        return cls(float(threshold), float(worst) - penalty)

    def __call__(
        self,
        world_model: EnsembleWorldModel,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Halt the unknown steps. See :class:`Pessimism`."""
        with torch.no_grad():
            disagreement = _disagreement(world_model, observation, action)
            unknown = (disagreement > self.threshold).unsqueeze(-1)
        return reward.masked_fill(unknown, self.halt_reward), terminated | unknown


def _disagreement(world_model: EnsembleWorldModel, observation: Tensor, action: Tensor) -> Tensor:
    mean, _ = world_model.predict(observation, action)
    return largest_disagreement(mean[..., :-1])  # the reward comes last


class PessimisticModelEnv(EnsembleModelEnv):
    """An :class:`~rambo_trl.envs.EnsembleModelEnv` whose steps are judged pessimistically.

    With the same seed the next observations are those of the plain env, since the pessimism
    draws no random numbers. It costs one evaluation of all members per step.

    Args:
        world_model: as in :class:`~rambo_trl.envs.EnsembleModelEnv`.

    Keyword Args:
        pessimism: a :class:`MOPOPenalty`, a :class:`MORELHalting` or another
            :class:`Pessimism`.
        **kwargs: those of :class:`~rambo_trl.envs.EnsembleModelEnv`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from rambo_trl.collectors import ModelRolloutCollector
        >>> from rambo_trl.envs import MOPOPenalty, PessimisticModelEnv
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> starts = TensorDict(observation=torch.randn(100, 3), batch_size=[100])
        >>> env = PessimisticModelEnv(
        ...     EnsembleWorldModel(3, 1), pessimism=MOPOPenalty(1.0), starts=starts,
        ...     action_spec=Bounded(-1, 1, shape=(1,)))
        >>> ModelRolloutCollector(env, num_starts=20, horizon=5).collect().shape
        torch.Size([100])
    """

    def __init__(
        self, world_model: EnsembleWorldModel, *, pessimism: Pessimism, **kwargs: Any
    ) -> None:
        super().__init__(world_model, **kwargs)
        if isinstance(pessimism, (MOPOPenalty, MORELHalting)):
            require_ensemble(world_model, type(pessimism).__name__)
        self.pessimism = pessimism

    def judge(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The pessimistic outcome of a step. See :class:`EnsembleModelEnv`."""
        _, reward, terminated = super().judge(observation, action, next_observation, reward)
        reward, terminated = self.pessimism(
            self.world_model, observation, action, reward, terminated
        )
        return next_observation, reward, terminated
