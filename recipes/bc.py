"""Behaviour cloning on an offline data set, by maximum likelihood.

``python recipes/bc.py task=... schedule=...``; see ``config/bc.yaml`` for the keys.
"""

from __future__ import annotations

import warnings
from functools import partial

import launcher.starting  # noqa: F401
from model_free import MODEL_ONLY, TEMPERATURE_ONLY, ModelFree, train_model_free
from tensordict import TensorDictBase
from torchrl.objectives import BCLoss
from training_run import Run, launch

from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, Player
from rambo_trl.training.pretraining import clip_actions


class BC(ModelFree):
    """The tanh-Gaussian policy that makes the data most likely."""

    label = "BC"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        with warnings.catch_warnings():
            # torchrl 0.14 lacks an annotation of its own in BCLoss and says so at length
            warnings.filterwarnings("ignore", "The name target_actor_network_params")
            self.loss = BCLoss(self.actor)
        optimizer = adam((self.loss.parameters(), run.cfg.agent.actor_lr))
        self.phase = OfflinePhase([Player(self.loss, optimizer)], compile=run.cfg.compile)

    def prepare(self, transitions: TensorDictBase) -> TensorDictBase:
        """Move actions off the bounds, where a tanh policy's density is infinite."""
        action_spec = self.run.dataset.action_spec
        return transitions.set("action", clip_actions(transitions["action"], action_spec))


if __name__ == "__main__":
    unused = [*MODEL_ONLY, *TEMPERATURE_ONLY, "agent.critic_lr", "agent.gamma", "agent.tau"]
    launch("bc", partial(train_model_free, make_method=BC), unused=unused, model_based=False)
