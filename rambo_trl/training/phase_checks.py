"""What the model phase cannot play with is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict, TensorDictBase, unravel_key
from torch import nn
from torchrl.data import ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.collectors.model_rollout import check_policy
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import trying
from rambo_trl.objectives import AdversarialModelLoss

__all__ = ["check_model_loss", "check_players", "check_real_rows"]


def check_players(
    env: EnsembleModelEnv, adversarial_loss: AdversarialModelLoss, model_loss: nn.Module
) -> None:
    """Try an imagined step and the adversarial loss on a few rows; no random number is used up.

    Raises:
        TypeError: if one of them is of another kind.
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
            raise ValueError(f"{name} holds another world model than env: give both the same")
        if getattr(loss, "reduction", None) == "none":
            raise ValueError(f"{name} has reduction='none': an update needs 'mean' or 'sum'")
    actor = adversarial_loss.actor_network
    check_policy(actor, env)
    keys = env.keys
    with (
        trying("a step in the model fails", env.device),
        evaluating(env, actor),
        set_exploration_type(ExplorationType.RANDOM),
    ):
        observation, action = env.few_rows()
        following, reward, terminated = env.transition(observation, action)
    imagined = TensorDict(
        {
            keys.observation: observation,
            keys.action: action,
            keys.next_observation: following,
            keys.next_reward: reward,
            ("next", adversarial_loss.tensor_keys.terminated): terminated,
        },
        observation.shape[:1],
    )
    held = list(imagined.keys(True, True))
    with trying(f"the adversarial loss fails on imagined rows, which hold {held}", env.device):
        adversarial_loss.advantage(imagined)
        adversarial_loss.log_density(imagined)


def check_real_rows(real_buffer: ReplayBuffer, model_loss: nn.Module) -> None:
    """Refuse a loss that does not say what it reads, and data that do not hold it.

    Raises:
        TypeError: if one of them is of another kind.
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


def check_model_loss(found: object, model_loss: nn.Module) -> None:
    """Refuse the output of a likelihood term that adds nothing to the update.

    Raises:
        ValueError: if it has no entry ``loss_*``.
    """
    names = list(found.keys()) if isinstance(found, TensorDictBase) else type(found).__name__
    if isinstance(names, str) or not any(str(name).startswith("loss_") for name in names):
        raise ValueError(
            f"model_loss ({type(model_loss).__name__}) must return a TensorDict with terms whose "
            f"names begin with 'loss_', such as loss_model, got {names}"
        )
