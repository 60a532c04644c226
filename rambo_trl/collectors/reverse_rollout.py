"""Imagined rollouts that lead into states of the data instead of away from them."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from rambo_trl.collectors.model_rollout import ModelRolloutCollector
from rambo_trl.modules.world_models import TransitionKeys

__all__ = ["ReverseRolloutCollector", "reverse_transitions"]


def reverse_transitions(
    transitions: TensorDictBase, keys: TransitionKeys | None = None
) -> TensorDictBase:
    """Transitions read backwards: from the next state and the action to the state and reward.

    Args:
        transitions: [*B] with observation, action, and under ``"next"`` observation and reward.
        keys: of these entries; the usual ones by default.

    Returns:
        [*B] with the two observations exchanged, sharing memory with the input. A world model
        fitted to it is a reverse model p(s, r | s', a), an actor cloned on it a reverse policy
        pi(a | s'), and an env with it as ``starts`` begins in the data's next states. There are
        no flags, since ends are defined in the forward direction.
    """
    keys = keys or TransitionKeys()
    successor = transitions.get("next")
    return TensorDict(
        {
            keys.observation: successor.get(keys.observation),
            keys.action: transitions.get(keys.action),
            "next": TensorDict(
                {
                    keys.observation: transitions.get(keys.observation),
                    keys.reward: successor.get(keys.reward),
                },
                transitions.batch_size,
            ),
        },
        transitions.batch_size,
    )


class ReverseRolloutCollector(ModelRolloutCollector):
    r"""Iterate over flat TensorDicts of imagined transitions that end in states of the data.

    ROMI's reverse imagination: from a state s' of the data an action a is sampled from a reverse
    policy, then the predecessor s and the reward from a reverse model p(s, r | s', a), and so on
    from s. Read forwards these rollouts lead into the data from outside, whereas forward rollouts
    leave it. RAMBO's authors name them as a remedy for AntMaze (sec. 6).

    Rollouts stop at predecessors in which an episode would have ended, since no transition starts
    there; such rows are left out. The other arguments are
    :class:`~rambo_trl.collectors.ModelRolloutCollector`'s.

    Args:
        env: the env of a reverse model, a world model fitted to :func:`reverse_transitions` of the
            data, which are its ``starts`` too; with the forward env's termination rule, which
            must depend on the next observation alone, as those of
            :mod:`rambo_trl.envs.termination` do.
        policy: a reverse policy, reading s' as the observation, such as an actor cloned on the
            reversed data; None for uniformly random actions.

    The items' entries are those of forward rollouts, in the forward direction; ``terminated``
    comes from the rule, ``truncated`` is false.

    Reference: Wang et al. 2021, https://arxiv.org/abs/2110.00188, whose reverse policy is a
    conditional variational autoencoder.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from rambo_trl.collectors import ReverseRolloutCollector, reverse_transitions
        >>> from rambo_trl.envs import EnsembleModelEnv
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> data = TensorDict(
        ...     observation=torch.randn(100, 3), action=torch.rand(100, 1),
        ...     next=TensorDict(observation=torch.randn(100, 3), reward=torch.randn(100, 1),
        ...                     batch_size=[100]),
        ...     batch_size=[100])
        >>> reverse_env = EnsembleModelEnv(
        ...     EnsembleWorldModel(3, 1), starts=reverse_transitions(data),
        ...     action_spec=Bounded(-1, 1, shape=(1,)))
        >>> ReverseRolloutCollector(reverse_env, num_starts=10, horizon=3).collect().shape
        torch.Size([30])
    """

    @torch.no_grad()
    def collect(self) -> TensorDictBase:
        """Roll back once from ``num_starts`` next states; flat TensorDict [valid transitions]."""
        backwards = super().collect()
        # the rule, applied backwards, marks predecessors in which the episode was over
        backwards = backwards[~backwards["next", "terminated"].squeeze(-1)]
        keys = self.env.keys
        out = reverse_transitions(backwards, keys)
        terminated = self.env.is_terminal(
            out[keys.observation], out[keys.action], out[keys.next_observation]
        )
        out["next", "terminated"] = terminated
        out["next", "truncated"] = torch.zeros_like(terminated)
        out["next", "done"] = terminated.clone()
        return out
