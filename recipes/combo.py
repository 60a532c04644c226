"""COMBO on an offline data set: critics pushed down on the model's rollouts, up on the data.

``python recipes/combo.py task=... schedule=...``; see ``config/combo.yaml`` for the keys and
https://arxiv.org/abs/2102.08363 for the method.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import launcher.starting  # noqa: F401
from model_based import ADVERSARY_ONLY, ModelBased, train_model_based
from training_run import launch

from rambo_trl.objectives import COMBOLoss

#: rollout length and conservative weight beta for D4RL's sets, from OfflineRL-Kit's recipes
PUBLISHED = {
    "halfcheetah-medium": (5, 0.5),
    "halfcheetah-medium-replay": (5, 0.5),
    "halfcheetah-medium-expert": (5, 5.0),
    "hopper-medium": (5, 5.0),
    "hopper-medium-replay": (5, 0.5),
    "hopper-medium-expert": (5, 5.0),
    "walker2d-medium": (1, 5.0),
    "walker2d-medium-replay": (1, 0.5),
    "walker2d-medium-expert": (1, 5.0),
}


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that they lack (the random sets) the milder ones."""
    horizon, weight = PUBLISHED.get(task.removeprefix("d4rl-"), (5, 0.5))
    return {"rollout_length": horizon, "conservative_weight": weight}


class COMBO(ModelBased):
    """SAC with conservative critics on real and imagined transitions."""

    label = "COMBO"

    def make_loss(self, *networks: Any, **settings: Any) -> COMBOLoss:
        """SAC's loss with the conservative term."""
        return COMBOLoss(
            *networks,
            num_real=self.mixed.num_real,
            conservative_weight=self.run.cfg.conservative_weight,
            penalized_actions=self.run.cfg.penalized_actions,
            **settings,
        )

    def results(self) -> dict[str, Any]:
        """With the conservative term's weight, and that the target is without entropy."""
        conservative = {
            "conservative_weight": self.run.cfg.conservative_weight,
            "deterministic_backup": True,
        }
        return {**conservative, **super().results()}


if __name__ == "__main__":
    train = partial(train_model_based, make_method=COMBO)
    launch("combo", train, unused=ADVERSARY_ONLY, published=published)
