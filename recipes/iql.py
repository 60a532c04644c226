"""IQL on an offline data set: expectile values, and a policy cloned by its advantages.

``python recipes/iql.py task=... schedule=...``; see ``config/iql.yaml`` for the keys and
https://arxiv.org/abs/2110.06169 for the method.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import launcher.starting  # noqa: F401
from model_free import MODEL_ONLY, TEMPERATURE_ONLY, ModelFree, train_model_free
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate
from training_run import Run, launch

from rambo_trl.data.environment import is_scored_by_success
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, Player, cosine_decay
from rambo_trl.training.pretraining import clip_actions

#: expectile and inverse temperature by the family of tasks, from the authors' code; other tasks
#: have those of locomotion
PUBLISHED = {"antmaze": (0.9, 10.0)}
LOCOMOTION = (0.7, 3.0)


def published(task: str) -> dict[str, Any]:
    """The settings for a task."""
    family = task.removeprefix("d4rl-").split("-")[0]
    expectile, temperature = PUBLISHED.get(family, LOCOMOTION)
    return {"agent.expectile": expectile, "agent.temperature": temperature}


class IQL(ModelFree):
    """Implicit Q-learning on the data alone."""

    label = "IQL"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        cfg = run.cfg.agent
        values = MLP(
            in_features=run.dataset.observation_size,
            out_features=1,
            num_cells=list(cfg.hidden_sizes),
            activation_class=nn.ReLU,
            device=self.device,
        )
        self.loss = loss = IQLLoss(
            self.actor,
            self.make_qvalue(),
            ValueOperator(values, in_keys=["observation"]),
            loss_function="l2",
            temperature=cfg.temperature,
            expectile=cfg.expectile,
        )
        loss.make_value_estimator(gamma=cfg.gamma, device=self.device)
        optimizer = adam(
            (loss.actor_network_params.parameters(), cfg.actor_lr),
            (loss.qvalue_network_params.parameters(), cfg.critic_lr),
            (loss.value_network_params.parameters(), cfg.value_lr),
        )
        decay = cosine_decay(run.cfg.epochs * run.cfg.agent_updates)
        player = Player(loss, optimizer, lr_factor=[decay, _constant, _constant])
        target_update = SoftUpdate(loss, tau=cfg.tau)
        self.phase = OfflinePhase([player], target_update, compile=run.cfg.compile)

    def prepare(self, transitions: TensorDictBase) -> TensorDictBase:
        """Scale the rewards by the episodes' returns; move actions off the tanh's bounds.

        As by the authors, rewards stay as they are where an episode's return is success.
        """
        dataset = self.run.dataset
        transitions["action"] = clip_actions(transitions["action"], dataset.action_spec)
        factor = dataset.reward_scale / self.reward_unit
        transitions["next", "reward"] = transitions["next", "reward"] * factor
        return transitions

    @property
    def reward_unit(self) -> float:
        """The range of the episodes' returns over 1000, where rewards are scaled by it.

        Raises:
            ValueError: if all episodes have the same return, or none is whole.
        """
        dataset = self.run.dataset
        if not self.run.cfg.agent.scale_rewards or is_scored_by_success(
            dataset.env_spec or dataset.env_id
        ):
            return dataset.reward_scale
        returns = dataset.behaviour_returns
        if len(returns) == 0:
            raise ValueError(
                "no episode of the data is whole, by the range of whose returns rewards are "
                "scaled: set agent.scale_rewards=false"
            )
        if returns.max() == returns.min():
            raise ValueError(
                "all episodes of the data have the same return, by whose range rewards are "
                "scaled: set agent.scale_rewards=false"
            )
        return float(returns.max() - returns.min()) / 1000


def _constant(update: int) -> float:
    return 1.0


if __name__ == "__main__":
    train = partial(train_model_free, make_method=IQL)
    unused = [*MODEL_ONLY, *TEMPERATURE_ONLY]
    launch("iql", train, unused=unused, published=published, model_based=False)
