"""Checks of the model phase's parts before it begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from torch import Tensor, nn
from torchrl.data import ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.collectors.model_rollout import check_policy
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import trying
from rambo_trl.objectives import AdversarialModelLoss

__all__ = ["check_parts", "check_real_rows", "drawn_rows", "imagined_rows"]


def imagined_rows(
    env: EnsembleModelEnv,
    adversarial_loss: AdversarialModelLoss,
    observation: Tensor,
    action: Tensor,
    next_observation: Tensor,
    reward: Tensor,
    terminated: Tensor,
) -> TensorDict:
    """A step's rows [B] under the keys of the env and the loss."""
    keys = env.keys
    return TensorDict(
        {
            keys.observation: observation,
            keys.action: action,
            "next": {
                keys.observation: next_observation,
                keys.reward: reward,
                adversarial_loss.tensor_keys.terminated: terminated,
            },
        },
        observation.shape[:1],
    )


def drawn_rows(
    env: EnsembleModelEnv,
    adversarial_loss: AdversarialModelLoss,
    observation: Tensor,
    action: Tensor,
) -> TensorDict:
    """A step's rows [B] with what the world model's ``draw`` says of the member that drew each."""
    keys = env.keys
    rows = TensorDict({keys.observation: observation, keys.action: action}, observation.shape[:1])
    with evaluating(env.world_model), set_exploration_type(ExplorationType.RANDOM):
        rows = env.world_model.draw(rows)
    with torch.no_grad():
        sampled = (rows.get(key).detach() for key in (keys.next_observation, keys.next_reward))
        step = env.judge(observation, action, *sampled)
    return rows.update(imagined_rows(env, adversarial_loss, observation, action, *step))


def check_parts(
    env: EnsembleModelEnv, adversarial_loss: AdversarialModelLoss, model_loss: nn.Module
) -> None:
    """Try an imagined step and the adversarial loss on a few rows, drawing no random numbers.

    Raises:
        TypeError: if one of them has a wrong type.
        ValueError: if they do not belong together, or fail on such rows.
    """
    for name, part, kind in (
        ("env", env, EnsembleModelEnv),
        ("adversarial_loss", adversarial_loss, AdversarialModelLoss),
    ):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be an {kind.__name__}, got {type(part).__name__}")
    for name, loss in (("adversarial_loss", adversarial_loss), ("model_loss", model_loss)):
        if getattr(loss, "world_model", env.world_model) is not env.world_model:
            raise ValueError(f"{name} and env hold different world models: give both the same")
        if getattr(loss, "reduction", None) == "none":
            raise ValueError(f"{name} has reduction='none': an update needs 'mean' or 'sum'")
    by_member = adversarial_loss.density == "member"
    if by_member and type(env).transition is not EnsembleModelEnv.transition:
        raise ValueError(
            f"{type(env).__name__} has a transition of its own, which does not say which member "
            "drew: override judge instead, or use density='mixture'"
        )
    actor = adversarial_loss.actor_network
    check_policy(actor, env)
    with (
        trying("a step in the model fails", env.device),
        evaluating(env, actor),
        set_exploration_type(ExplorationType.RANDOM),
    ):
        rows = env.few_rows()
        imagined = (
            drawn_rows(env, adversarial_loss, *rows)
            if by_member
            else imagined_rows(env, adversarial_loss, *rows, *env.transition(*rows))
        )
    held = list(imagined.keys(True, True))
    with trying(f"the adversarial loss fails on imagined rows, which hold {held}", env.device):
        adversarial_loss.advantage(imagined)
        adversarial_loss.log_density(imagined)


def check_real_rows(real_buffer: ReplayBuffer, model_loss: nn.Module) -> None:
    """Check that the likelihood term names its input and that the data hold it.

    Raises:
        TypeError: if one of them has a wrong type.
        ValueError: if rows of the buffer lack an entry.
    """
    keys = getattr(model_loss, "in_keys", None)
    if not callable(model_loss) or not isinstance(keys, Sequence) or not keys:
        raise TypeError(
            "model_loss must be a loss module with in_keys, the entries of the data that it reads, "
            f"got {type(model_loss).__name__}"
        )
    if not isinstance(real_buffer, ReplayBuffer):
        raise TypeError(
            f"real_buffer must be a replay buffer, got {type(real_buffer).__name__}: extend a "
            "TensorDictReplayBuffer with the rows"
        )
    rows = real_buffer[:1] if len(real_buffer) else None
    if isinstance(rows, TensorDictBase):
        missing = [key for key in map(unravel_key, keys) if rows.get(key, None) is None]
        if missing:
            raise ValueError(
                f"model_loss reads {missing}, which real_buffer does not hold: it has "
                f"{list(rows.keys(True, True))}"
            )
