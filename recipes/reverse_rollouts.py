"""Imagined rollouts that lead into the data, in the place of RAMBO's forward ones or beside them.

ROMI's reverse imagination (Wang et al. 2021, https://arxiv.org/abs/2110.00188), which the paper
names as an outlook for AntMaze (sec. 6). See ``docs/variants.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from model_based import ModelBased, clone_with_bar, fit_with_bar, make_world_model
from tensordict import TensorDictBase

from rambo_trl.collectors import (
    ModelRolloutCollector,
    ReverseRolloutCollector,
    reverse_transitions,
)
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.checkpoint import Stateful
from rambo_trl.modules import make_actor


class ReverseRollouts:
    """A model of where the data came from, a policy that says how, and the rollouts of both.

    The model and its fit are configured as the forward model's. The policy is cloned from the
    data with the settings of behaviour cloning; with ``rollout_policy=random`` there is none.

    Args:
        method: whose data, termination rule and configuration they share.
        num_starts: rollouts an epoch.
    """

    def __init__(self, method: ModelBased, num_starts: int) -> None:
        self.run = method.run
        cfg, dataset = self.run.cfg, self.run.dataset
        # as the data's buffer has them: on a GPU they are there once
        self.transitions = reverse_transitions(method.real.storage[:])
        self.model = make_world_model(self.run)
        self.policy = None
        if cfg.rollout_policy == "current":
            self.policy = make_actor(
                dataset.observation_size,
                dataset.action_spec,
                hidden_sizes=cfg.agent.hidden_sizes,
                device=cfg.device,
            )
        env = EnsembleModelEnv(
            self.model,
            action_spec=dataset.action_spec,
            starts=self.transitions,
            termination=method.termination,
            observation_mean=dataset.observation_mean,
            observation_std=dataset.observation_std,
            action_low=dataset.action_low,
            action_high=dataset.action_high,
        )
        self.collector = ReverseRolloutCollector(
            env,
            self.policy,
            num_starts=num_starts,
            horizon=cfg.rollout_length,
            compile=cfg.compile,
        )

    def pretrain(self) -> None:
        """Fit the model and clone the policy, on the data read backwards."""
        fit = fit_with_bar(self.run, self.model, self.transitions, "reverse model")
        self.run.progress["reverse_holdout_mse"] = fit.holdout_mse
        if self.policy is not None:
            clone_with_bar(self.run, self.policy, self.transitions, "clone the way back")

    def stateful_parts(self) -> dict[str, Stateful]:
        """What pretraining changes here, for checkpoints."""
        policy = {} if self.policy is None else {"reverse_policy": self.policy}
        return {"reverse_model": self.model, **policy}


class BothDirections:
    """Forward and reverse rollouts in one batch.

    Args:
        forward: those that leave the data.
        reverse: those that lead into it.
    """

    def __init__(self, forward: ModelRolloutCollector, reverse: ReverseRolloutCollector) -> None:
        self.forward, self.reverse = forward, reverse

    def collect(self) -> TensorDictBase:
        """One round of both; flat TensorDict [valid transitions]."""
        return torch.cat([self.forward.collect(), self.reverse.collect()])

    def state_dict(self) -> dict[str, Any]:
        """Both collectors' states."""
        return {"forward": self.forward.state_dict(), "reverse": self.reverse.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.forward.load_state_dict(state_dict["forward"])
        self.reverse.load_state_dict(state_dict["reverse"])
