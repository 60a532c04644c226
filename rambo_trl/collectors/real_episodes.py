"""Whole episodes in the real environment, by TorchRL's collector."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import TransformedEnv

from rambo_trl.envs.real import SeededEpisodes
from rambo_trl.modules.modes import evaluating

__all__ = ["EpisodeCollector"]


class EpisodeCollector:
    """Plays whole episodes of a policy's own samples, one after the other.

    TorchRL's ``Collector`` steps the environment. Rounds end with an episode, so that a collector
    that is restored from its state goes on with the episode that would have come next.

    Args:
        env: of :func:`~rambo_trl.envs.make_real_env`.
        policy: an actor; its current weights act.

    Keyword Args:
        device: where the policy lives, and where rows are returned.

    Attributes:
        episodes: played so far.
    """

    def __init__(
        self,
        env: TransformedEnv,
        policy: TensorDictModuleBase,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env, self.policy, self.device = env, policy, device
        self.episodes = 0
        self._seeded: SeededEpisodes = env.base_env._env
        self._first_seed = self._seeded.next_seed
        self._collector: Collector | None = None

    def collect(self, num_steps: int) -> TensorDictBase:
        """Play episodes until there are ``num_steps`` steps or more.

        Returns:
            TensorDict [N], the episodes one after another. At an episode's end
            ``("next", "terminated")`` or ``("next", "truncated")`` is set, and
            ``("next", "observation")`` is the state that it ended in.
        """
        if self._collector is None:
            self._collector = self._begin()
        parts: list[TensorDictBase] = []
        with evaluating(self.policy):
            while sum(map(len, parts)) < num_steps:
                parts.append(self._collector.next().exclude("collector"))
                self.episodes += 1
        return torch.cat(parts)

    def _begin(self) -> Collector:
        with torch.random.fork_rng():  # it tries the policy
            collector = Collector(
                self.env,
                self.policy,
                frames_per_batch=1,  # so that none is of the next episode
                total_frames=-1,
                trajs_per_batch=1,
                traj_format="cat",
                policy_device=self.device,
                env_device="cpu",
                storing_device=self.device,
                auto_register_policy_transforms=False,
            )
        self._seeded.next_seed = self._first_seed + self.episodes
        collector.reset()
        return collector

    def state_dict(self) -> dict[str, Any]:
        """The number of episodes played; the random state is torch's."""
        return {"episodes": self.episodes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.shutdown()
        self.episodes = int(state_dict["episodes"])

    def shutdown(self) -> None:
        """Let TorchRL's collector go; the next round makes another one."""
        if self._collector is not None:
            self._collector.shutdown(close_env=False)
            self._collector = None
