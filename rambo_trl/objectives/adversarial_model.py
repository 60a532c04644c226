"""RAMBO's adversarial model loss (paper Eq. 5 and 9) as a TorchRL loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase, TensorDictParams, dispatch
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import keys_read, next_key
from rambo_trl.objectives import functional
from rambo_trl.objectives.density import (
    check_density,
    check_draws,
    device_of,
    member_log_prob,
    transition_log_prob,
)

__all__ = ["AdversarialModelLoss"]


class _LiveNetwork:
    """A network of another loss, called with that loss's live parameters.

    ``expanded`` says that the parameters are stacked along a first dimension (an ensemble of
    critics); so are then the outputs.
    """

    def __init__(
        self, module: TensorDictModuleBase, params: TensorDictParams, *, expanded: bool
    ) -> None:
        self.module = module
        self.params = params
        self.in_keys = module.in_keys
        self.out_keys = module.out_keys
        # layers that are random in evaluation mode too differ by critic, as in TorchRL's losses
        self._call = (
            torch.vmap(self._with_params, (None, 0), randomness="different")
            if expanded
            else self._with_params
        )

    def modules(self) -> Iterator[nn.Module]:
        """The network's modules, which the other loss's ``train()`` does not reach."""
        return self.module.modules()

    def _with_params(self, tensordict: TensorDictBase, params: TensorDictBase) -> TensorDictBase:
        with params.to_module(self.module, preserve_module_state=False):
            return self.module(tensordict)

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict, self.params)

    def get_dist(self, tensordict: TensorDictBase) -> Distribution:
        with self.params.to_module(self.module, preserve_module_state=False):
            return self.module.get_dist(tensordict)


class AdversarialModelLoss(LossModule):
    r"""The Model Gradient: change the model so that the agent's value in it falls.

    Given a batch that was imagined with the model (states visited by the policy, actions of
    the policy, successors and rewards sampled from the model), the loss is

    .. math::
        \lambda \, \operatorname{mean}_B [\hat A \log T(s', r | s, a)], \quad
        A = r + \gamma (1 - d) V(s') - Q(s, a),

    with :math:`\hat A` the advantage standardised over the batch, :math:`V(s')` the smallest
    critic at the policy's mode in s', and Q the smallest critic. Its gradient is the paper's
    Eq. 5: REINFORCE with the model as the policy, nothing is differentiated through the
    sample, the critics or the actor. Added to
    :class:`~rambo_trl.objectives.EnsembleModelLoss` on a real batch it is Eq. 9.

    As published, T is the density of the whole mixture of an ensemble's members. With
    ``density="member"`` it is the density of the one member that drew (s', r), which needs no
    other member to be evaluated. The gradient of log T is the mean of the members' gradients over
    which of them may have drawn, :math:`E[\nabla \log T_i \mid s', r]` (Fisher's identity), so
    that the loss's gradient has the same mean; which member drew adds variance.

    Gradients reach the world model only: actor and critics are kept out of ``parameters()``
    and of the ``state_dict``. Actor, critics and world model are evaluated in evaluation mode,
    whatever their own: no running statistics change, nothing is dropped out.

    Args:
        world_model: any module with ``log_prob(tensordict)`` [*B], the log-density of the
            recorded ``("next", ...)`` entries, such as a TorchRL probabilistic module, or with
            ``get_dist(tensordict)`` over (next observation, reward). With ``density="member"`` a
            :class:`~rambo_trl.modules.world_models.DrawsByMember`.
        actor_network: writes the action; evaluated at its mode.
        qvalue_network: writes the state-action value [*B, 1] or [*B]; a single critic, a sequence
            of them, or a module that writes an ensemble's values stacked in front, [K, *B, 1], or
            [K, *B] where that is unambiguous. It may read entries that the actor does not, such
            as a goal, which the batch then holds for both states.

    Keyword Args:
        adversarial_weight: lambda, the weight of the adversary (3e-4 or 0 in the paper's
            experiments). A buffer: it can be assigned to and scheduled.
        gamma: discount factor.
        normalize_advantage: standardise the advantage over the batch (published).
        advantage_clip: largest magnitude of the (standardised) advantage, so that no single
            row drives an update; None, the default, leaves it as it is.
        baseline: subtract Q(s, a); without it the gradient has the same mean and more
            variance (paper sec. 5.1).
        entropy_coeff: weight of the policy's entropy in s', estimated by one sample, that is
            added to V(s'). 0, the default, computes none; else the actor needs ``get_dist``. A
            number, which can be assigned to.
        per_dimension: divide the log-density by the number of predicted entries. The published
            log-density is their sum, so that the same lambda acts more strongly on larger states.
        reduction: ``"mean"`` (published), ``"sum"`` or ``"none"`` over the batch. A sum would
            make lambda a batch size times stronger than published.
        density: ``"mixture"`` (published), or ``"member"``: that of the member that drew, for
            batches that the world model's ``draw`` wrote in the same update.

    The output holds ``loss_adversarial`` and the detached metrics ``advantage_mean``,
    ``advantage_std``, ``model_log_prob``, ``value`` and ``qvalue``.

    Reference: https://arxiv.org/abs/2204.12581

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded
        >>> from torchrl.objectives import SACLoss
        >>> from tensordict import TensorDict
        >>> from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
        >>> from rambo_trl.objectives import AdversarialModelLoss
        >>> spec = Bounded(-1, 1, shape=(1,))
        >>> agent_loss = SACLoss(make_actor(3, spec), make_qvalue(3, 1), action_spec=spec)
        >>> model = EnsembleWorldModel(3, 1)
        >>> loss = AdversarialModelLoss.from_loss(model, agent_loss, adversarial_weight=3e-4)
        >>> batch = TensorDict(observation=torch.randn(8, 3), action=torch.rand(8, 1),
        ...                    batch_size=[8])
        >>> batch = model(batch)
        >>> batch["next", "terminated"] = torch.zeros(8, 1, dtype=torch.bool)
        >>> loss(batch)["loss_adversarial"].backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Entries read from the input.

        Attributes:
            action: the action taken in the model.
            reward: the sampled reward, under ``"next"``, [*B, 1] or [*B].
            terminated: whether the sampled next state ends the episode, under ``"next"``;
                false where the entry is missing.
            state_action_value: the critics' output.
        """

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        state_action_value: NestedKey = "state_action_value"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    actor_network: TensorDictModuleBase
    qvalue_networks: tuple[TensorDictModuleBase, ...]
    out_keys = [
        "loss_adversarial",
        "advantage_mean",
        "advantage_std",
        "model_log_prob",
        "value",
        "qvalue",
    ]
    _schedulable_buffers = frozenset({"adversarial_weight", "gamma"})

    def __init__(
        self,
        world_model: TensorDictModuleBase,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        adversarial_weight: float = 3e-4,
        gamma: float = 0.99,
        normalize_advantage: bool = True,
        advantage_clip: float | None = None,
        baseline: bool = True,
        entropy_coeff: float = 0.0,
        per_dimension: bool = False,
        reduction: Literal["mean", "sum", "none"] = "mean",
        density: Literal["mixture", "member"] = "mixture",
    ) -> None:
        super().__init__()
        if density not in ("mixture", "member"):
            raise ValueError(f"density must be 'mixture' or 'member', got {density!r}")
        check_draws(world_model) if density == "member" else check_density(world_model)
        if not (math.isfinite(adversarial_weight) and adversarial_weight >= 0):
            raise ValueError(
                f"adversarial_weight must be finite and not negative, got {adversarial_weight}"
            )
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        if advantage_clip is not None and not advantage_clip > 0:
            raise ValueError(f"advantage_clip must be positive or None, got {advantage_clip}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.world_model = world_model
        critics = (
            tuple(qvalue_network) if isinstance(qvalue_network, Sequence) else (qvalue_network,)
        )
        # Kept out of the module tree: this loss must neither train nor save the agent.
        self.__dict__["actor_network"] = actor_network
        self.__dict__["qvalue_networks"] = critics
        self.normalize_advantage = normalize_advantage
        self.advantage_clip = advantage_clip
        self.baseline = baseline
        self.per_dimension = per_dimension
        self.entropy_coeff = entropy_coeff
        self.reduction = reduction
        self.density = density
        device = device_of(world_model)
        self.register_coeff_buffer("adversarial_weight", float(adversarial_weight), device=device)
        self.register_coeff_buffer("gamma", float(gamma), device=device)
        # set now: setting them at first use would make a compiled loss recompile
        self._set_in_keys()

    @classmethod
    def from_loss(
        cls,
        world_model: TensorDictModuleBase,
        actor_critic_loss: LossModule,
        *,
        adversarial_weight: float = 3e-4,
        gamma: float | None = None,
        **kwargs: object,
    ) -> AdversarialModelLoss:
        """Take actor and critics, live, from a TorchRL actor-critic loss.

        Args:
            world_model: as in the constructor.
            actor_critic_loss: a loss with an ``actor_network`` and a ``qvalue_network`` (SAC,
                TD3, REDQ, CQL) or ``value_network`` (DDPG). Its parameters are used live, with
                its keys for action, reward, termination and value.
            adversarial_weight: as in the constructor.
            gamma: discount factor; by default the current one of the loss's value estimator, or
                0.99 (TorchRL's default too) where none has been made yet.
            **kwargs: further keywords of the constructor.

        Raises:
            TypeError: if the loss has no actor or no critic.
        """
        params = actor_critic_loss.__dict__.get("_modules", {})
        critic_name = next(
            (
                n
                for n in ("qvalue_network", "value_network")
                if params.get(f"{n}_params") is not None
            ),
            None,
        )
        if params.get("actor_network_params") is None or critic_name is None:
            raise TypeError(
                "from_loss needs an actor-critic loss with actor_network and qvalue_network "
                f"(or value_network), got {type(actor_critic_loss).__name__}"
            )
        critic_params = params[f"{critic_name}_params"]
        actor = _LiveNetwork(
            actor_critic_loss.actor_network, params["actor_network_params"], expanded=False
        )
        critic = _LiveNetwork(
            getattr(actor_critic_loss, critic_name),
            critic_params,
            expanded=len(critic_params.batch_size) > 0,
        )
        loss = cls(
            world_model,
            actor,
            critic,
            adversarial_weight=adversarial_weight,
            gamma=_discount_of(actor_critic_loss) if gamma is None else gamma,
            **kwargs,  # type: ignore[arg-type]
        )
        keys = {
            name: getattr(actor_critic_loss.tensor_keys, name)
            for name in ("action", "reward", "terminated", "state_action_value")
            if hasattr(actor_critic_loss.tensor_keys, name)
        }
        loss.set_keys(**keys)
        return loss

    def _set_in_keys(self) -> None:
        action = unravel_key(self.tensor_keys.action)
        actors = keys_read(self.actor_network)
        critics = [key for critic in self.qvalue_networks for key in getattr(critic, "in_keys", ())]
        written = getattr(self.actor_network, "out_keys", ())
        self._state_keys = tuple(dict.fromkeys(k for k in (*actors, *critics) if k != action))
        # for the next state the actor itself writes those of its outputs that critics read
        self._next_keys = tuple(k for k in self._state_keys if k in actors or k not in written)
        self.in_keys = [
            *self._state_keys,
            self.tensor_keys.action,
            *(next_key(key) for key in self._next_keys),
            next_key(self.tensor_keys.reward),
            next_key(self.tensor_keys.terminated),
        ]

    def _min_qvalue(self, tensordict: TensorDictBase) -> Tensor:
        """The smallest critic's value, [*B]."""
        key, shape = self.tensor_keys.state_action_value, tensordict.batch_size
        values = [
            _each_critic(critic(tensordict.copy()), key, shape) for critic in self.qvalue_networks
        ]
        return torch.cat(values).amin(dim=0)

    def _next_value(self, tensordict: TensorDictBase) -> Tensor:
        """The agent's value of the next states at the policy's mode, [*B]."""
        successor = tensordict.get("next").select(*self._next_keys, strict=False)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            successor = self.actor_network(successor)
        value = self._min_qvalue(successor)
        if self.entropy_coeff:
            dist = self.actor_network.get_dist(successor)
            log_prob = dist.log_prob(dist.sample()).reshape(value.shape)
            value = value - self.entropy_coeff * log_prob
        return value

    def advantage(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Advantage, V(s') and Q(s, a) of an imagined batch, each [*B], without gradient.

        Raises:
            KeyError: if the batch lacks the reward, or everything under ``"next"``.
        """
        shape = tensordict.batch_size
        successor = tensordict.get("next", None)
        reward = None if successor is None else successor.get(self.tensor_keys.reward, None)
        if reward is None:
            needed = self.in_keys[:-1]  # the last one, terminated, may be missing
            missing = [key for key in needed if tensordict.get(key, None) is None]
            raise KeyError(f"the imagined batch lacks {missing}: this loss reads {needed}")
        with torch.no_grad(), evaluating(self.actor_network, *self.qvalue_networks):
            reward = reward.reshape(shape)
            terminated = successor.get(self.tensor_keys.terminated, None)
            terminated = (
                torch.zeros_like(reward, dtype=torch.bool)
                if terminated is None
                else terminated.reshape(shape)
            )
            next_value = self._next_value(tensordict)
            known = (*self._state_keys, self.tensor_keys.action)
            qvalue = self._min_qvalue(tensordict.select(*known, strict=False))
            baseline = qvalue if self.baseline else torch.zeros_like(qvalue)
            advantage = functional.model_advantage(
                baseline, reward, next_value, terminated, self.gamma
            )
        return advantage, next_value, qvalue

    def log_density(self, tensordict: TensorDictBase) -> Tensor:
        """The log-density of an imagined batch [*B] that the loss weights: [*B]."""
        keys = [next_key(key) for key in (*keys_read(self.actor_network), self.tensor_keys.reward)]
        with evaluating(self.world_model):
            if self.density == "member":
                log_prob = member_log_prob(self.world_model, tensordict)
            else:
                log_prob = transition_log_prob(self.world_model, tensordict, keys)
        if self.per_dimension:
            batch = tensordict.batch_size.numel()
            log_prob = log_prob * (batch / sum(tensordict.get(key).numel() for key in keys))
        return log_prob

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of an imagined batch [*B]; the input is left unchanged."""
        advantage, next_value, qvalue = self.advantage(tensordict)
        weight = functional.standardize(advantage) if self.normalize_advantage else advantage
        if self.advantage_clip is not None:
            weight = weight.clamp(-self.advantage_clip, self.advantage_clip)
        log_prob = self.log_density(tensordict)
        loss = self._reduce_loss(self.adversarial_weight * weight * log_prob, tensordict=tensordict)
        metrics = {
            "advantage_mean": advantage.mean(),
            "advantage_std": advantage.std(correction=0),
            "model_log_prob": log_prob.detach().mean(),
            "value": next_value.mean(),
            "qvalue": qvalue.mean(),
        }
        out = TensorDict({"loss_adversarial": loss, **metrics})
        self._clear_weakrefs(tensordict, out)
        return out


def _each_critic(out: TensorDictBase, key: NestedKey, shape: torch.Size) -> Tensor:
    """The critics' values for a batch [*B], as [K, *B]; a KeyError without them."""
    value = out.get(key, None)
    if value is None:
        raise KeyError(
            f"the critics return no {key!r} but {list(out.keys(True, True))}: name their value "
            "with set_keys(state_action_value=...)"
        )
    return functional.each_critic(value, shape, out.batch_size, f"the critics' {key!r}")


def _discount_of(actor_critic_loss: LossModule) -> float:
    """The discount factor of the agent's targets."""
    # not .value_estimator, which would make one
    estimator = getattr(actor_critic_loss, "_value_estimator", None)
    return float(getattr(estimator, "gamma", 0.99))


# TorchRL's metaclass turns every public attribute whose name ends in "loss" into an instance
# method under deterministic exploration; from_loss is a class method: put the original back.
setattr(  # noqa: B010
    AdversarialModelLoss, "from_loss", vars(AdversarialModelLoss)["from_loss"].__wrapped__
)
