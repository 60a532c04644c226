"""MOPO on an offline data set: rollouts whose rewards are penalised by the model's uncertainty.

``python recipes/mopo.py task=... schedule=...``; see ``config/mopo.yaml`` for the keys and
https://arxiv.org/abs/2005.13239 for the method.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import launcher.starting  # noqa: F401
import torch
from model_based import ADVERSARY_ONLY, ModelBased, train_model_based
from training_run import launch

from rambo_trl.envs import MOPOPenalty, PessimisticModelEnv
from rambo_trl.modules import EnsembleWorldModel

#: rollout length h and penalty lambda for D4RL's sets, from the authors' configuration files
PUBLISHED = {
    "halfcheetah-random": (5, 0.5),
    "halfcheetah-medium": (1, 1.0),
    "halfcheetah-medium-replay": (5, 1.0),
    "halfcheetah-medium-expert": (5, 5.0),
    "hopper-random": (5, 1.0),
    "hopper-medium": (5, 5.0),
    "hopper-medium-replay": (5, 1.0),
    "hopper-medium-expert": (5, 1.0),
    "walker2d-random": (1, 1.0),
    "walker2d-medium": (5, 5.0),
    "walker2d-medium-replay": (1, 1.0),
    "walker2d-medium-expert": (1, 2.0),
}


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that the paper lacks the most common ones."""
    horizon, coefficient = PUBLISHED.get(task.removeprefix("d4rl-"), (5, 1.0))
    return {"rollout_length": horizon, "penalty_coefficient": coefficient}


class MOPO(ModelBased):
    """SAC in a model whose rewards are lowered by the members' largest standard deviation."""

    label = "MOPO"
    penalty: MOPOPenalty

    def make_env(self, world_model: EnsembleWorldModel, **settings: Any) -> PessimisticModelEnv:
        """The model's environment with penalised rewards; lambda is for the data's own units."""
        std, cfg = self.run.dataset.observation_std, self.run.cfg
        units = torch.cat([std, std.new_tensor([self.reward_unit])]).to(cfg.device)
        self.penalty = MOPOPenalty(cfg.penalty_coefficient, units=units)
        return PessimisticModelEnv(world_model, pessimism=self.penalty, **settings)

    def max_abs_reward(self) -> float:
        """The data's, and the largest penalty: log-variances have an upper bound."""
        model = self.world_model
        largest = model.max_log_var.detach() + 2 * model.output_scale.log()
        penalty = float(self.penalty.of(largest[None, None])) * self.reward_unit
        return super().max_abs_reward() + penalty

    def results(self) -> dict[str, Any]:
        """With the penalty's coefficient, and that it is for the data's own units."""
        penalty = {
            "penalty_coefficient": self.run.cfg.penalty_coefficient,
            "penalty_units": "data",
        }
        return {**penalty, **super().results()}


if __name__ == "__main__":
    train = partial(train_model_based, make_method=MOPO)
    launch("mopo", train, unused=ADVERSARY_ONLY, published=published)
