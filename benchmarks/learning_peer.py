"""The peer's side of ``learning.py``: OfflineRL-Kit's RAMBO with the settings of our recipe.

``python benchmarks/learning_peer.py PATH SETTING=VALUE ...`` composes what ``recipes/rambo.py``
would of these settings and builds the peer from it, out of its own classes and in the order of its
own example. PATH is a checkout, of which nothing is changed. The run folder is like a recipe's: a
row for each epoch, and a checkpoint, from which the same command goes on.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import _recipes  # noqa: F401  # for the launcher
import numpy as np
import torch
from compare import make_importable
from launcher.command_line import compose_jobs
from launcher.data_checks import termination_rule
from launcher.settings import method_settings
from learning_ours import CpuStopwatch, clock_columns
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rambo_trl.data import OfflineDataset, make_environment
from rambo_trl.experiment.checkpoint import Checkpoints, seed_everything
from rambo_trl.experiment.evaluation import evaluation_seed
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.objectives.model_likelihood import PUBLISHED_WEIGHT_DECAY

#: entries of the peer's replay buffer
ENTRIES = ("observations", "next_observations", "actions", "rewards", "terminals")


def check_data(data: OfflineDataset) -> None:
    """Refuse data that the peer can't be trained or judged on.

    Raises:
        ValueError: if they have no environment, or their actions are not from [-1, 1], which the
            peer's policy fills.
    """
    if data.environment is None:
        raise ValueError(f"{data.name} names no environment to play in: take another data set")
    if not ((data.action_low == -1).all() and (data.action_high == 1).all()):
        raise ValueError(f"{data.name} has actions beyond or within [-1, 1]: take another data set")


def as_d4rl(data: OfflineDataset) -> dict[str, np.ndarray]:
    """The transitions [N] as the peer's loader takes them, a dictionary in D4RL's layout."""
    rows = data.transitions
    return {
        "observations": rows["observation"].numpy(),
        "next_observations": rows["next", "observation"].numpy(),
        "actions": rows["action"].numpy(),
        "rewards": rows["next", "reward"].numpy(),
        "terminals": rows["next", "terminated"].numpy(),
    }


class Environment:
    """The data's environment as Gym's was before it became Gymnasium, which the peer expects.

    Attributes:
        seed: of the next episode.
    """

    def __init__(self, data: OfflineDataset) -> None:
        assert data.environment is not None
        self._env, self.seed = make_environment(data.environment), 0

    def reset(self) -> np.ndarray:
        """Begin an episode."""
        observation, _ = self._env.reset(seed=self.seed)
        self.seed += 1
        return observation

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, float(reward), terminated or truncated, info

    @staticmethod
    def get_normalized_score(episode_return: float) -> float:
        """Not used: returns are scored as ours are."""
        return episode_return


class Notes:
    """In the place of the peer's logger, which writes more: the means of an epoch.

    Attributes:
        means: of what was logged until :meth:`dumpkvs`.
    """

    def __init__(self, folder: Path) -> None:
        self.model_dir = self.checkpoint_dir = str(folder)
        self.means: dict[str, float] = {}
        self._values: dict[str, list[float]] = {}

    def log(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def logkv_mean(self, key: str, value: float) -> None:
        """Note one of several values."""
        self._values.setdefault(key, []).append(float(value))

    logkv = logkv_mean

    def dumpkvs(self, exclude: object = None) -> None:
        """End an epoch."""
        self.means = {key: statistics.fmean(values) for key, values in self._values.items()}
        self._values.clear()

    def set_timestep(self, timestep: int) -> None:
        """Not used."""

    def close(self) -> None:
        """Nothing is open."""


class Peer:
    """OfflineRL-Kit's RAMBO with our settings, its epochs one by one.

    Its files are imported here.

    Args:
        cfg: the settings of ``recipes/rambo.py``.
        data: with raw observations and rewards.
        folder: where the peer's own files go.
    """

    def __init__(self, cfg: DictConfig, data: OfflineDataset, folder: Path) -> None:
        from offlinerlkit.buffer import ReplayBuffer
        from offlinerlkit.dynamics import EnsembleDynamics
        from offlinerlkit.modules import ActorProb, Critic, EnsembleDynamicsModel, TanhDiagGaussian
        from offlinerlkit.nets import MLP
        from offlinerlkit.policy import RAMBOPolicy
        from offlinerlkit.policy_trainer import MBPolicyTrainer
        from offlinerlkit.utils.scaler import StandardScaler
        from offlinerlkit.utils.termination_fns import obs_unnormalization

        class Policy(RAMBOPolicy):
            """With the mean value of the policy's actions in the updates' batches, as ours."""

            def actforward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor]:
                action, log_prob = super().actforward(obs, deterministic)
                self.log_prob = log_prob.detach()
                return action, log_prob

            def learn(self, batch: Any) -> dict[str, float]:
                alpha = self._alpha
                losses = super().learn(batch)
                # the actor's loss is mean(alpha log pi - min Q), and its actions the last
                losses["mean_q"] = float(alpha * self.log_prob.mean()) - losses["loss/actor"]
                return losses

        class Trainer(MBPolicyTrainer):
            """Leaves evaluations to be timed apart."""

            def _evaluate(self) -> dict[str, list[float]]:
                return {"eval/episode_reward": [0.0], "eval/episode_length": [0.0]}

            def returns(self) -> list[float]:
                return super()._evaluate()["eval/episode_reward"]

        agent, model = cfg.agent, cfg.model
        observation_size, action_size = data.observation_size, data.action_size
        sizes = {
            "obs_shape": (observation_size,), "obs_dtype": np.float32, "action_dim": action_size,
            "action_dtype": np.float32,
        }  # fmt: skip
        self.cfg, self.notes, self.environment = cfg, Notes(folder), Environment(data)
        self.real = ReplayBuffer(len(data), **sizes)
        self.real.load_dataset(as_d4rl(data))
        mean, std = self.real.normalize_obs()
        imagined_rows = cfg.retained_epochs * cfg.rollout_starts * cfg.rollout_length
        self.imagined = ReplayBuffer(imagined_rows, **sizes)

        network = EnsembleDynamicsModel(
            observation_size, action_size, list(model.hidden_sizes), model.num_members,
            model.num_elites, weight_decays=list(PUBLISHED_WEIGHT_DECAY),
        )  # fmt: skip
        adam = torch.optim.Adam
        fit, adversary = (
            adam(network.parameters(), lr=rate) for rate in (model.lr, model.adversarial_lr)
        )
        rule: Any = termination_rule(cfg, data)

        def terminal(*step: np.ndarray) -> np.ndarray:
            ended = rule(*(torch.from_numpy(part) for part in step))
            return ended.numpy().reshape(-1, 1)

        terminal = obs_unnormalization(terminal, mean, std)
        inputs = np.zeros((1, observation_size + action_size), np.float32)
        scaler = StandardScaler(inputs, inputs + 1)  # until the fit, or a checkpoint, sets it
        self.dynamics = EnsembleDynamics(network, fit, scaler, terminal)

        backbone = MLP(observation_size, list(agent.hidden_sizes))
        actor = ActorProb(
            backbone,
            TanhDiagGaussian(
                backbone.output_dim, action_size, unbounded=True, conditioned_sigma=True
            ),
        )
        critics = [
            Critic(MLP(observation_size + action_size, list(agent.hidden_sizes))) for _ in range(2)
        ]
        self.log_alpha = torch.full((1,), agent.alpha_init).log().requires_grad_()
        self.optimizers = {
            "actor": adam(actor.parameters(), lr=agent.actor_lr),
            **{
                f"critic_{i}": adam(critic.parameters(), lr=agent.critic_lr)
                for i, critic in enumerate(critics)
            },
            "adversary": adversary,
            "alpha": adam([self.log_alpha], lr=agent.alpha_lr),
        }
        *optimizers, alpha = self.optimizers.values()
        self.policy = Policy(
            self.dynamics,
            actor,
            *critics,
            *optimizers,
            tau=agent.tau,
            gamma=agent.gamma,
            alpha=(-action_size, self.log_alpha, alpha),
            adv_weight=cfg.adversarial_weight,
            adv_train_steps=cfg.model_updates,
            adv_rollout_batch_size=model.batch_size,
            adv_rollout_length=cfg.rollout_length,
            scaler=StandardScaler(mean, std),
        )
        self.trainer = Trainer(
            self.policy,
            self.environment,
            self.real,
            self.imagined,
            self.notes,
            (cfg.agent_updates, cfg.rollout_starts, cfg.rollout_length),
            epoch=1,
            step_per_epoch=cfg.agent_updates,
            batch_size=agent.batch_size,
            real_ratio=agent.real_fraction,
            eval_episodes=cfg.evaluation.episodes,
            dynamics_update_freq=cfg.agent_updates,
        )

    def clone(self) -> None:
        """Clone the behaviour."""
        rows, cloning = self.real.sample_all(), self.cfg.cloning
        self.policy.pretrain(rows, cloning.passes, cloning.batch_size, cloning.lr, self.notes)

    def fit(self) -> None:
        """Fit the model."""
        model = self.cfg.model
        self.dynamics.train(
            self.real.sample_all(),
            self.notes,
            max_epochs=model.max_passes,
            max_epochs_since_update=model.patience,
            batch_size=model.batch_size,
            holdout_ratio=0.1,
            logvar_loss_coef=0.001,
        )

    def train_epoch(self) -> float:
        """Rollouts, the agent's updates, the adversary's; returns the mean value."""
        self.trainer.train()
        return self.notes.means["mean_q"]

    def evaluate(self, epoch: int) -> float:
        """The mean return, with the seeds that our run has in this epoch."""
        first = evaluation_seed(self.cfg.seed)
        self.environment.seed = first + epoch * self.cfg.evaluation.episodes
        return statistics.fmean(self.trainer.returns())

    # what a checkpoint holds

    @property
    def stateful_parts(self) -> dict[str, Any]:
        """All that decides how it goes on."""
        parts = {"policy": self.policy, "model": self.dynamics.model, "rest": self}
        return {**parts, **self.optimizers}

    def state_dict(self) -> dict[str, Any]:
        """The temperature, the model's scaler and the imagined rows."""
        scaler, buffer = self.dynamics.scaler, self.imagined
        return {
            "log_alpha": self.log_alpha.detach(),
            "scaler": [torch.from_numpy(array) for array in (scaler.mu, scaler.std)],
            "place": [buffer._ptr, buffer._size],
            "rows": {
                key: torch.from_numpy(getattr(buffer, key)[: buffer._size]) for key in ENTRIES
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.log_alpha.data.copy_(state["log_alpha"])
        self.policy._alpha = torch.clamp(self.log_alpha.detach().exp(), 0.0, 1.0)
        self.dynamics.scaler.mu, self.dynamics.scaler.std = (x.numpy() for x in state["scaler"])
        self.imagined._ptr, self.imagined._size = state["place"]
        for key, rows in state["rows"].items():
            getattr(self.imagined, key)[: len(rows)] = rows.numpy()


def train(cfg: DictConfig, data: OfflineDataset, folder: RunFolder) -> None:
    """Train the peer to the last epoch, from its checkpoint where there is one."""
    seed_everything(cfg.seed)
    peer = Peer(cfg, data, folder.path)
    checkpoints = Checkpoints(folder.checkpoint_dir, peer.stateful_parts)
    saved = checkpoints.load()
    progress: dict[str, Any] = saved or {"epoch": 0}
    folder.truncate_metrics(progress["epoch"])
    watch, parent = CpuStopwatch(progress), os.getppid()

    def evaluated(epoch: int) -> dict[str, float | None]:
        with watch("evaluation"):
            result = peer.evaluate(epoch)
        return {"return_mean": result, "score": data.normalized_score(result)}

    if saved is None:
        with watch("cloning"):
            peer.clone()
        with watch("model_fit"):
            peer.fit()
        progress["cloned"] = evaluated(0)
        checkpoints.save(progress)
    for epoch in range(progress["epoch"] + 1, cfg.epochs + 1):
        if os.getppid() != parent:
            raise SystemExit("who started this run has ended")
        with watch("epochs"):
            mean_q = peer.train_epoch()
        row = {"epoch": epoch, "mean_q": mean_q, **evaluated(epoch), **clock_columns(progress)}
        folder.append_metrics(row)
        print(row, flush=True)
        progress["epoch"] = epoch
        checkpoints.save(progress)


def main() -> None:
    """Compose the settings, load the data, train."""
    path, *words = sys.argv[1:]
    make_importable(Path(path))
    cfg = method_settings(compose_jobs("rambo", words)[0])
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    data = OfflineDataset.load(cfg.dataset, normalize=False)
    folder = RunFolder(cfg.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.lock()
    folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    train(cfg, data, folder)


if __name__ == "__main__":
    main()
