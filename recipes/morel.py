"""MOReL on an offline data set: rollouts that end, badly, where the model's members disagree.

``python recipes/morel.py task=... schedule=...``; see ``config/morel.yaml`` for the keys and
https://arxiv.org/abs/2005.05951 for the method. The agent is SAC where the paper's is NPG.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import launcher.starting  # noqa: F401
from model_based import ADVERSARY_ONLY, ModelBased, train_model_based
from tqdm import tqdm
from training_run import launch

from rambo_trl.envs import MORELHalting, PessimisticModelEnv
from rambo_trl.modules import EnsembleWorldModel


class MOReL(ModelBased):
    """SAC in the pessimistic MDP of a fitted model."""

    label = "MOReL (SAC)"
    halting: MORELHalting

    def make_env(self, world_model: EnsembleWorldModel, **settings: Any) -> PessimisticModelEnv:
        """The model's environment with halts; until the model is fitted it knows nothing."""
        return PessimisticModelEnv(world_model, pessimism=MORELHalting(0.0, 0.0), **settings)

    def on_fitted(self) -> None:
        """Take the threshold and the halt's reward from the data."""
        halting = self.run.cfg.halting
        self.halting = MORELHalting.from_data(
            self.world_model,
            self.run.dataset.transitions,
            num_stds=halting.num_stds,
            penalty=halting.penalty / self.reward_unit,
        )
        assert isinstance(self.env, PessimisticModelEnv)
        self.env.pessimism = self.halting
        tqdm.write(
            f"halting: beyond a disagreement of {self.halting.threshold:.4g}, with reward "
            f"{self.halting.halt_reward * self.reward_unit:.4g}"
        )

    def max_abs_reward(self) -> float:
        """The data's, or a halt's."""
        return max(super().max_abs_reward(), abs(self.halting.halt_reward) * self.reward_unit)

    def results(self) -> dict[str, Any]:
        """With what the data said about halting."""
        reward = self.halting.halt_reward * self.reward_unit
        halting = {"threshold": self.halting.threshold, "reward": reward}
        return {"halting": halting, **super().results()}


if __name__ == "__main__":
    launch("morel", partial(train_model_based, make_method=MOReL), unused=ADVERSARY_ONLY)
