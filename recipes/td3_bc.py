"""TD3+BC on an offline data set: TD3 whose actor stays near the data's actions.

``python recipes/td3_bc.py task=... schedule=...``; see ``config/td3_bc.yaml`` for the keys and
https://arxiv.org/abs/2106.06860 for the method.
"""

from __future__ import annotations

from functools import partial

import launcher.starting  # noqa: F401
from model_free import MODEL_ONLY, TEMPERATURE_ONLY, ModelFree, train_model_free
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import SoftUpdate, TD3BCLoss
from training_run import Run, launch

from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, Player


class TD3BC(ModelFree):
    """TD3+BC on the data alone.

    The deterministic actor is the mode of the shared tanh-Gaussian: TorchRL's losses evaluate
    policies deterministically, and the scale's half of the outputs gets no gradient.
    """

    label = "TD3+BC"
    loss: TD3BCLoss

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        cfg = run.cfg.agent
        self.loss = loss = TD3BCLoss(
            self.actor,
            self.make_qvalue(),
            action_spec=run.dataset.action_spec,
            alpha=cfg.bc_alpha,
            policy_noise=cfg.policy_noise,
            noise_clip=cfg.noise_clip,
            loss_function="l2",
        )
        loss.make_value_estimator(gamma=cfg.gamma, device=self.device)
        critics = adam((loss.qvalue_network_params.parameters(), cfg.critic_lr))
        actor = adam((loss.actor_network_params.parameters(), cfg.actor_lr))
        self.phase = OfflinePhase(
            [
                Player(self.critic_losses, critics, name="the critics' update"),
                Player(self.actor_losses, actor, every=cfg.actor_every, name="the actor's update"),
            ],
            SoftUpdate(loss, tau=cfg.tau),
            target_every=cfg.actor_every,
            compile=run.cfg.compile,
        )

    def critic_losses(self, batch: TensorDictBase) -> TensorDictBase:
        """The critics' squared TD errors."""
        return TensorDict(loss_qvalue=self.loss.qvalue_loss(batch)[0])

    def actor_losses(self, batch: TensorDictBase) -> TensorDictBase:
        """The actor's, of its own state-actions and the data's."""
        term, metrics = self.loss.actor_loss(batch)
        return TensorDict(loss_actor=term, cloning_error=metrics["bc_loss"], weight=metrics["lmbd"])


if __name__ == "__main__":
    train = partial(train_model_free, make_method=TD3BC)
    launch("td3_bc", train, unused=[*MODEL_ONLY, *TEMPERATURE_ONLY], model_based=False)
