"""What the model-based methods share: the fitted model, rollouts in it, SAC on mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from launcher.data_checks import termination_rule
from launcher.program import refusing_bad_input
from launcher.start import PRETRAINING, find_pretrained
from run_evaluation import mode_values, score_text
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor
from torchrl.data import Bounded
from torchrl.objectives import SACLoss
from tqdm import tqdm
from training_run import Metrics, Run

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_real_buffer, make_replay_buffer
from rambo_trl.data.rows import draw_rows
from rambo_trl.envs import EnsembleModelEnv, LearnedTermination, fit_termination
from rambo_trl.envs.learned_termination import MAX_UPDATES
from rambo_trl.envs.termination import TerminationRule
from rambo_trl.experiment.checkpoint import Stateful
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.experiment.policy import load_into_actor
from rambo_trl.experiment.pretrained import load_fitted_model, save_fitted_model
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.modules.statistics import largest_magnitude
from rambo_trl.runtime.progress import Bar, busy
from rambo_trl.training.phases import AgentPhase
from rambo_trl.training.pretraining import ModelFit, clone_behaviour, fit_world_model

#: the model as it was fitted, in the run folder
FITTED_MODEL = "pretrained_model.safetensors"
#: settings of the tasks and schedules that only the adversary of RAMBO has
ADVERSARY_ONLY = ("adversarial_weight", "model_updates", "model.adversarial_lr")
#: first states of episodes in which the agent's value is followed
START_ROWS = 1000


def first_rows(done: Tensor) -> Tensor:
    """The first rows of episodes, at most :data:`START_ROWS` of them.

    Args:
        done: [N, 1], true in an episode's last row.
    """
    before = torch.cat([torch.ones(1, dtype=torch.bool), done[:-1].flatten()])
    rows = before.nonzero().flatten()
    return rows[draw_rows(len(rows), START_ROWS)]


def fit_with_bar(
    run: Run, world_model: EnsembleWorldModel, transitions: TensorDictBase, name: str
) -> ModelFit:
    """Fit an ensemble by maximum likelihood, with a bar and a line on the outcome."""
    cfg = run.cfg
    passes, updates = cfg.model.max_passes, cfg.model.max_updates
    if passes is not None:  # in the place of updates
        updates = None
    total = updates if passes is None else passes * (len(run.dataset) // cfg.model.batch_size)
    with run.watch("model_fit"), Bar(desc=f"fit the {name}", total=total) as bar:
        fit = fit_world_model(
            world_model,
            transitions,
            batch_size=cfg.model.batch_size,
            lr=cfg.model.lr,
            patience=cfg.model.patience,
            min_improvement=cfg.model.min_improvement,
            max_passes=passes,
            max_updates=updates,
            holdout_every=cfg.model.holdout_every if passes is None else None,
            standardize_reward=cfg.reward_scale != 1,
            compile=cfg.compile,
            on_pass=lambda n, error: bar.set_postfix(holdout_mse=f"{error.mean():.4f}"),
            bar=bar,
        )
        bar.total = bar.n  # it may have stopped early
    tqdm.write(
        f"{name}: {fit.updates} updates ({fit.passes:.3g} passes), holdout mse "
        f"{min(fit.holdout_mse):.4f} to {max(fit.holdout_mse):.4f}, elites {fit.elites}"
    )
    return fit


def cloning_updates(run: Run) -> int:
    """How many updates behaviour cloning takes."""
    cfg = run.cfg.cloning
    return cfg.updates if cfg.passes is None else cfg.passes * (len(run.dataset) // cfg.batch_size)


def clone_with_bar(
    run: Run,
    actor: ProbabilisticTensorDictSequential,
    transitions: TensorDictBase,
    description: str,
) -> None:
    """Behaviour-clone an actor, with a bar."""
    cfg = run.cfg.cloning
    updates = cloning_updates(run)
    with run.watch("cloning"), Bar(desc=description, total=updates) as bar:
        clone_behaviour(
            actor,
            transitions,
            run.dataset.action_spec,
            updates=updates,
            batch_size=cfg.batch_size,
            lr=cfg.lr,
            compile=run.cfg.compile,
            bar=bar,
        )


def make_world_model(run: Run) -> EnsembleWorldModel:
    """A model of the data's sizes, as configured."""
    cfg, dataset = run.cfg, run.dataset
    return EnsembleWorldModel(
        dataset.observation_size,
        dataset.action_size,
        num_members=cfg.model.num_members,
        num_elites=cfg.model.num_elites,
        hidden_sizes=cfg.model.hidden_sizes,
        matmul_dtype=torch.bfloat16 if cfg.model_matmul_dtype == "bfloat16" else None,
        device=cfg.device,
    )


class RolloutSource(Protocol):
    """What imagined transitions come from."""

    def collect(self) -> TensorDictBase:
        """One round of rollouts; flat TensorDict [valid transitions]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What decides the next round, but for the random state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


class ModelBased:
    """World model, actor, critics, rollouts and mixed batches, put together as configured.

    Args:
        run: its configuration and data.
    """

    label = ""

    def __init__(self, run: Run) -> None:
        cfg, dataset = run.cfg, run.dataset
        self.run = run
        device = torch.device(cfg.device)
        sizes = (dataset.observation_size, dataset.action_size)
        self.world_model = make_world_model(run)
        self.actor = make_actor(
            dataset.observation_size,
            dataset.action_spec,
            hidden_sizes=cfg.agent.hidden_sizes,
            device=device,
        )
        self.real = make_real_buffer(dataset, device)
        self.model_buffer = make_replay_buffer(
            cfg.retained_epochs * cfg.rollout_starts * cfg.rollout_length, device
        )
        self.mixed = RealModelReplayBuffer(
            self.real,
            self.model_buffer,
            real_fraction=cfg.agent.real_fraction,
            batch_size=cfg.agent.batch_size,
        )
        self.loss = self.make_loss(
            self.actor,
            make_qvalue(*sizes, hidden_sizes=cfg.agent.hidden_sizes, device=device),
            loss_function="l2",
            alpha_init=cfg.agent.alpha_init,
            action_spec=dataset.action_spec,
        )
        self.loss.make_value_estimator(gamma=cfg.agent.gamma, device=cfg.device)
        self.agent = AgentPhase(
            self.loss,
            critic_lr=cfg.agent.critic_lr,
            actor_lr=cfg.agent.actor_lr,
            alpha_lr=cfg.agent.alpha_lr,
            tau=cfg.agent.tau,
            compile=cfg.compile,
        )
        self.termination = self._termination_rule()
        self.env = self.make_env(
            self.world_model,
            action_spec=dataset.action_spec,
            starts=self.real.storage[:],  # not the buffer: of a start only the state is read
            termination=self.termination,
            observation_mean=dataset.observation_mean,
            observation_std=dataset.observation_std,
            action_low=dataset.action_low,
            action_high=dataset.action_high,
        )
        first = first_rows(dataset.transitions["next", "done"])
        self.start_rows = dataset.transitions["observation"][first].to(device)
        self.collector: RolloutSource = ModelRolloutCollector(
            self.env,
            self.actor if cfg.rollout_policy == "current" else None,
            num_starts=cfg.rollout_starts,
            horizon=cfg.rollout_length,
            compile=cfg.compile,
        )

    def make_loss(self, *networks: Any, **settings: Any) -> SACLoss:
        """The agent's loss."""
        return SACLoss(*networks, **settings)

    def make_env(self, world_model: EnsembleWorldModel, **settings: Any) -> EnsembleModelEnv:
        """The environment that the rollouts are taken in."""
        return EnsembleModelEnv(world_model, **settings)

    def _termination_rule(self) -> TerminationRule:
        """The rule as chosen; a learnt one is fitted here, alike for a resumed run."""
        cfg, dataset = self.run.cfg, self.run.dataset
        rule = termination_rule(cfg, dataset)
        if not isinstance(rule, str):
            return rule
        with Bar(desc="fit the termination rule", total=MAX_UPDATES) as bar:
            learnt, fit = fit_termination(
                dataset.transitions,
                observation_mean=dataset.observation_mean,
                observation_std=dataset.observation_std,
                action_low=dataset.action_low,
                action_high=dataset.action_high,
                seed=cfg.seed,
                device=cfg.device,
                bar=bar,
            )
            bar.total = bar.n  # it stops once nothing improves
        tqdm.write(f"termination rule: {fit}")
        return learnt

    def on_fitted(self) -> None:
        """What depends on the fitted model; called before the first epoch, resumed or not."""

    def _keep_fitted_model(self) -> None:
        """A file of it, for other runs and for what is compared with it."""
        progress = self.run.progress
        save_fitted_model(
            self.run.folder.path / FITTED_MODEL,
            self.world_model,
            digest=progress["dataset_digest"],
            measured={key: progress[key] for key in ("holdout_mse", "model_passes")},
        )

    @property
    def updates(self) -> int:
        """Gradient steps of an epoch."""
        return self.run.cfg.agent_updates

    def stateful_parts(self) -> dict[str, Stateful]:
        """Everything that decides the run's future, for checkpoints."""
        learnt = isinstance(self.termination, LearnedTermination)
        return {
            **({"termination": self.termination} if learnt else {}),
            "world_model": self.world_model,
            "agent_loss": self.agent.loss,
            "agent_optimizer": self.agent.optimizer,
            "model_buffer": self.model_buffer,
            "collector": self.collector,
        }

    def pretrained_parts(self) -> dict[str, Stateful]:
        """What pretraining changes, for runs that share it."""
        return {"world_model": self.world_model, "actor": self.actor}

    def max_abs_reward(self) -> float:
        """The largest absolute reward that the agent may be given, in the data's units."""
        rewards = self.run.dataset.transitions["next", "reward"]
        return largest_magnitude(rewards) * self.reward_unit

    @property
    def reward_unit(self) -> float:
        """What a reward of 1 in training is in the data's units."""
        return self.run.dataset.reward_scale

    def monitor(self) -> DivergenceMonitor:
        """Says when the critics leave what the rewards allow."""
        return DivergenceMonitor(self.max_abs_reward(), self.run.cfg.agent.gamma)

    def results(self) -> dict[str, Any]:
        """What ``results.json`` says of a model-based method only."""
        progress = self.run.progress
        return {
            "rollout_length": self.run.cfg.rollout_length,
            "model_transitions": progress["transitions"],
            "holdout_mse": progress["holdout_mse"],
            "model_passes": progress["model_passes"],
        }

    def sanity(self) -> dict[str, Any]:
        """What the method takes off the data's rewards at most."""
        return {"penalty": self.max_abs_reward() - ModelBased.max_abs_reward(self)}

    def pretrain(self) -> None:
        """The maximum-likelihood model and its elites, and the cloned actor; or files of them."""
        run = self.run
        if "cloned" not in run.progress:
            with refusing_bad_input():
                self._load_given_parts()
                pretrained = find_pretrained(run.cfg, run.progress, **self.pretrained_parts())
            with ExitStack() as stack:
                with busy("waiting for a run that pretrains the same"):
                    stack.enter_context(pretrained.claimed())
                with refusing_bad_input():
                    found = pretrained.load()
                if found is None:
                    self._pretrain()
                    pretrained.save({k: run.progress[k] for k in PRETRAINING if k in run.progress})
                else:
                    tqdm.write(f"pretrained: {pretrained.path}")
                    run.progress.update(found)
            run.checkpoint()
        if not run.progress["epoch"]:
            self._keep_fitted_model()
        self.on_fitted()

    def _load_given_parts(self) -> None:
        """Take the model, the policy or both from the files that the settings name."""
        run, cfg, dataset = self.run, self.run.cfg, self.run.dataset
        low, high = dataset.action_low, dataset.action_high
        if cfg.cloned_policy is not None:
            load_into_actor(
                cfg.cloned_policy,
                self.actor,
                observation_mean=dataset.observation_mean,
                observation_std=dataset.observation_std,
                action_spec=Bounded(low, high, dtype=low.dtype),
            )
            tqdm.write(f"cloned policy: {cfg.cloned_policy}")
        if cfg.fitted_model is not None:
            digest = run.progress["dataset_digest"]
            fit = load_fitted_model(cfg.fitted_model, self.world_model, digest=digest)
            run.progress.update({key: fit[key] for key in ("holdout_mse", "model_passes")})
            tqdm.write(f"fitted model: {cfg.fitted_model}")

    def _pretrain(self) -> None:
        run, cfg = self.run, self.run.cfg
        if "holdout_mse" not in run.progress:
            fit = fit_with_bar(run, self.world_model, run.dataset.transitions, "model")
            run.progress.update(holdout_mse=fit.holdout_mse, model_passes=fit.passes)
            run.checkpoint()
        cloned: dict[str, float | None] = {}
        clone = cfg.cloned_policy is None and cfg.clone_behaviour and cloning_updates(run) > 0
        if clone:
            clone_with_bar(run, self.actor, run.dataset.transitions, "clone the behaviour")
        if clone or cfg.cloned_policy is not None:
            with run.watch("evaluation"), busy("evaluating the cloned policy"):
                cloned = run.evaluation(0)
            if cloned["return_mean"] is not None:
                tqdm.write(
                    f"behaviour cloning: return {format_value(cloned['return_mean'])}"
                    f"{score_text(cloned)}"
                )
        run.progress["cloned"] = cloned

    def roll_out(self) -> Metrics:
        """Fill the model buffer with k-step rollouts from states of the data."""
        with self.run.watch("rollouts"):
            rollouts = self.collector.collect()
            self.model_buffer.extend(rollouts.select(*self.mixed.keys))
        return {
            "model_transitions": rollouts.shape[0],
            "model_reward": float(rollouts["next", "reward"].mean()),
            "model_terminated": float(rollouts["next", "terminated"].float().mean()),
        }

    def improve_agent(self) -> Metrics:
        """Update the agent on real and imagined transitions; tell what it expects at the start."""
        with self.run.watch("agent"):
            metrics = self.agent.run(self.mixed.batches(self.run.cfg.agent_updates), self.run.bar)
            values = mode_values(self.loss, self.actor, self.start_rows)
        metrics["start_value"] = float(values.mean())
        return metrics


def train_model_based(run: Run, make_method: Callable[[Run], ModelBased]) -> dict[str, Any]:
    """Fit a model once, then roll out and improve the agent in it, epoch by epoch."""
    with refusing_bad_input():
        method = make_method(run)
        run.begin(method)
    method.pretrain()
    for row in run.epochs():
        with run.epoch(row):
            row.update(method.roll_out())
            row.update(method.improve_agent())
    return run.finish()
