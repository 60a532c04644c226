"""lambda from a budget for how far the model may lower the values of logged steps."""

from __future__ import annotations

import copy
import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives.adversarial_model import AdversarialModelLoss
from rambo_trl.objectives.likelihood_budget import LikelihoodBudget

__all__ = ["ValueBudget", "step_by_elite"]


class ValueBudget(nn.Module):
    r"""Adapt lambda so that the model lowers the values of logged steps by a budget at most.

    The adversary may change the model where the data say nothing (Eq. 7). How far it does so on
    the data, in what matters to the agent, is

    .. math::
        D = E_{(s, a) \sim D}\big[ E_{\hat T_{MLE}}[r + \gamma V(s')]
        - E_{\hat T_\phi}[r + \gamma V(s')] \big]

    with the agent's current V, the fitted model :math:`\hat T_{MLE}` and the model
    :math:`\hat T_\phi`. What one lambda does to it hangs on how certain the model is, so lambda
    is adapted: call :meth:`step` after every turn of the adversary. With b the budget

    .. math::
        \log \lambda \leftarrow \log \lambda + \eta \max(-1, 1 - D / b),

    the dual ascent of :class:`~rambo_trl.objectives.LikelihoodBudget` on another distance.

    Args:
        adversarial_loss: the loss whose ``adversarial_weight`` is set; its current value, which
            must be positive, is the start.
        env: of the loss's world model, an :class:`~rambo_trl.modules.EnsembleWorldModel`.
        rows: logged steps [N] on which D is measured.
        budget: b, in the rewards' unit.

    Keyword Args:
        rate: :math:`\eta`.
        min_weight: lambda's lower bound, above 0; by default 1e-3, or the start if that is less.
        max_weight: its upper bound; by default 1, or the start if that is more.

    Raises:
        TypeError: if the world model is no ``EnsembleWorldModel``.
        ValueError: if the budget, the rate, a bound or the starting weight is out of its range.

    The fitted model is a frozen copy of the world model as it is at construction; :meth:`anchor`
    takes a new one. It and lambda are in the ``state_dict``: after ``load_state_dict`` the
    adversarial loss has its lambda back.

    Reference: https://arxiv.org/abs/2204.12581, Eq. 7; for model errors measured in values
    Farahmand et al. 2017, https://proceedings.mlr.press/v54/farahmand17a.html

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SACLoss
        >>> from rambo_trl.envs import EnsembleModelEnv
        >>> from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
        >>> from rambo_trl.objectives import AdversarialModelLoss, ValueBudget
        >>> spec, model = Bounded(-1, 1, shape=(1,)), EnsembleWorldModel(3, 1)
        >>> rows = TensorDict(observation=torch.randn(9, 3), action=spec.rand((9,)), batch_size=[9])
        >>> agent_loss = SACLoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec)
        >>> loss = AdversarialModelLoss.from_loss(model, agent_loss, adversarial_weight=0.1)
        >>> env = EnsembleModelEnv(model, action_spec=spec, starts=rows)
        >>> budget = ValueBudget(loss, env, rows, 0.1)
        >>> budget.step()  # the model is still the fitted one
        tensor(0.)
        >>> loss.adversarial_weight > 0.1
        tensor(True)
    """

    adversarial_loss: AdversarialModelLoss
    env: EnsembleModelEnv
    rows: TensorDictBase

    def __init__(
        self,
        adversarial_loss: AdversarialModelLoss,
        env: EnsembleModelEnv,
        rows: TensorDictBase,
        budget: float,
        *,
        rate: float = 0.3,
        min_weight: float | None = None,
        max_weight: float | None = None,
    ) -> None:
        super().__init__()
        model, start = adversarial_loss.world_model, float(adversarial_loss.adversarial_weight)
        if not isinstance(model, EnsembleWorldModel):
            raise TypeError(
                f"a value budget needs an EnsembleWorldModel, got {type(model).__name__}"
            )
        for name, value in (("budget", budget), ("rate", rate)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        # no submodules: the loss, and the world model in it, are saved elsewhere
        self.__dict__.update(adversarial_loss=adversarial_loss, env=env, rows=rows)
        self.budget, self._start = budget, start
        self.ascent = LikelihoodBudget(  # on D in units of the budget
            adversarial_loss,
            1.0,
            lr=rate,
            min_weight=min(1e-3, start) if min_weight is None else min_weight,
            max_weight=max(1.0, start) if max_weight is None else max_weight,
        )
        self.reference = copy.deepcopy(model).requires_grad_(False)

    def anchor(self) -> None:
        """Make the current world model the fitted one."""
        self.reference.load_state_dict(self.adversarial_loss.world_model.state_dict())

    @property
    def doubt(self) -> Tensor:
        """The first lambda by today's, at most 1: a scalar; no synchronisation takes place.

        Lambda rises where the adversary finds little to lower: there the data leave little open.
        """
        return (self._start / self.adversarial_loss.adversarial_weight).clamp(max=1.0)

    @torch.no_grad()
    def fall(self) -> Tensor:
        """Measure D, a scalar in the rewards' unit; no random number is drawn."""
        loss = self.adversarial_loss
        observation, action = (self.rows.get(key) for key in loss.world_model.in_keys[:2])
        before, after = (
            step_by_elite(model, self.env, loss, observation, action)[2].mean()
            for model in (self.reference, loss.world_model)
        )
        return before - after

    @torch.no_grad()
    def step(self) -> Tensor:
        """Adapt lambda to the model as it is now.

        Returns:
            D, a scalar, in the rewards' unit.
        """
        fall = self.fall()
        # down no faster than up, and so where it is not finite
        self.ascent.step((fall / self.budget).nan_to_num(2.0, neginf=2.0).clamp(max=2.0))
        return fall


@torch.no_grad()
def step_by_elite(
    world_model: EnsembleWorldModel,
    env: EnsembleModelEnv,
    loss: AdversarialModelLoss,
    observation: Tensor,
    action: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What each elite promises for a step: the next state s', the reward r, and r + gamma V(s').

    Each elite's mean is taken: no random number is drawn.

    Args:
        world_model: the model.
        env: for its termination rule.
        loss: for its critics, its policy and its discount factor.
        observation: normalised, [B, observation_size].
        action: [B, action_size].

    Returns:
        Next state [elites, B, observation_size], normalised; reward and value, each [elites, B].
    """
    mean, _ = world_model.predict(observation, action, world_model.elites)
    elites, rows = mean.shape[:2]
    observation, action = observation.repeat(elites, 1), action.repeat(elites, 1)
    next_observation, reward = mean[..., :-1].flatten(0, 1), mean[..., -1:].flatten(0, 1)
    terminated = env.is_terminal(observation, action, next_observation)
    step = TensorDict(
        observation=observation,
        action=action,
        next={"observation": next_observation, "reward": reward, "terminated": terminated},
        batch_size=[elites * rows],
    )
    advantage, _, qvalue = loss.advantage(step)
    value = advantage + qvalue  # Eq. 5's r + gamma V(s')
    return mean[..., :-1], reward.view(elites, rows), value.view(elites, rows)
