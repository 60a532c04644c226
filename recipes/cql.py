"""CQL on an offline data set: SAC whose critics are pushed down off the data.

``python recipes/cql.py task=... schedule=...``; see ``config/cql.yaml`` for the keys and
https://arxiv.org/abs/2006.04779 for the method.
"""

from __future__ import annotations

from functools import partial

import launcher.starting  # noqa: F401
from model_free import MODEL_ONLY, ModelFree, train_model_free
from tensordict import TensorDictBase
from torchrl.objectives import SoftUpdate
from training_run import Run, launch

from rambo_trl.objectives.cql import ConservativeQLoss
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, Player


class CQL(ModelFree):
    """CQL(H) with a fixed weight, on the data alone."""

    label = "CQL"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        cfg = run.cfg.agent
        self.loss = loss = ConservativeQLoss(
            self.actor,
            self.make_qvalue(),
            loss_function="l2",
            alpha_init=cfg.alpha_init,
            action_spec=run.dataset.action_spec,
            min_q_weight=cfg.conservative_weight,
            num_random=cfg.num_actions,
        )
        loss.make_value_estimator(gamma=cfg.gamma, device=self.device)
        optimizer = adam(
            (loss.qvalue_network_params.parameters(), cfg.critic_lr),
            (loss.actor_network_params.parameters(), cfg.actor_lr),
            ([loss.log_alpha], cfg.alpha_lr),
        )
        players = [Player(self.losses, optimizer)]
        target_update = SoftUpdate(loss, tau=cfg.tau)
        self.phase = OfflinePhase(players, target_update, compile=run.cfg.compile)

    def losses(self, batch: TensorDictBase) -> TensorDictBase:
        """CQL's terms, without the cloning term that would stand in for the actor's."""
        return self.loss(batch).exclude("loss_actor_bc")


if __name__ == "__main__":
    train = partial(train_model_free, make_method=CQL)
    launch("cql", train, unused=MODEL_ONLY, model_based=False)
