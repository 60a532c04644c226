"""Parts shared by the recipes, built from the configuration.

Most functions return a part of the library or of TorchRL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from launcher.data_checks import termination_rule
from omegaconf import DictConfig
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import ValueOperator
from torchrl.objectives import LossModule, SACLoss
from tqdm import tqdm

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import (
    OfflineDataset,
    RealModelReplayBuffer,
    make_real_buffer,
    make_replay_buffer,
)
from rambo_trl.data.buffers import TRANSITION_KEYS
from rambo_trl.data.returns import early_rows
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv, LearnedTermination, fit_termination
from rambo_trl.envs.learned_termination import MAX_UPDATES
from rambo_trl.envs.termination import TerminationRule
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.evaluation import mode_values
from rambo_trl.experiment.run import Run
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.modules.statistics import largest_magnitude
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.runtime.progress import Bar
from rambo_trl.training.offline import OfflinePhase
from rambo_trl.training.phases import AgentPhase, ModelPhase

#: how many episode starts, and how many rows of the data, the critics are evaluated on
START_ROWS = VALUE_ROWS = 1000

Actor: TypeAlias = ProbabilisticTensorDictSequential
SAC = TypeVar("SAC", bound=SACLoss)
Env = TypeVar("Env", bound=EnsembleModelEnv)


# networks


def make_world_model(cfg: DictConfig, data: OfflineDataset) -> EnsembleWorldModel:
    """The ensemble of dynamics models, sized for the data."""
    return EnsembleWorldModel(
        data.observation_size,
        data.action_size,
        num_members=cfg.model.num_members,
        num_elites=cfg.model.num_elites,
        hidden_sizes=cfg.model.hidden_sizes,
        matmul_dtype=torch.bfloat16 if cfg.model_matmul_dtype == "bfloat16" else None,
        device=cfg.device,
    )


def make_policy(cfg: DictConfig, data: OfflineDataset) -> Actor:
    """The actor, a tanh-Gaussian policy."""
    return make_actor(
        data.observation_size,
        data.action_spec,
        hidden_sizes=cfg.agent.hidden_sizes,
        device=cfg.device,
    )


def make_critic(
    cfg: DictConfig, data: OfflineDataset, *, layer_norm: bool = False
) -> ValueOperator:
    """A critic Q(s, a), which the losses replicate."""
    return make_qvalue(
        data.observation_size,
        data.action_size,
        hidden_sizes=cfg.agent.hidden_sizes,
        layer_norm=layer_norm,
        device=cfg.device,
    )


# the agent


def make_sac(
    loss: type[SAC],
    cfg: DictConfig,
    data: OfflineDataset,
    actor: Actor,
    critic: ValueOperator,
    **settings: Any,
) -> SAC:
    """SAC's loss, or a class derived from it, with the discount factor set."""
    sac = loss(
        actor,
        critic,
        loss_function="l2",
        action_spec=data.action_spec,
        **{"alpha_init": cfg.agent.alpha_init, **settings},
    )
    sac.make_value_estimator(gamma=cfg.agent.gamma, device=cfg.device)
    return sac


def sac_settings(cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """What of RAMBO's SAC can be set besides: the number of critics and the entropy aimed at."""
    entropy = cfg.agent.target_entropy * data.action_size
    return {"num_qvalue_nets": cfg.num_critics, "target_entropy": entropy}


def make_agent_phase(cfg: DictConfig, sac: SACLoss, **settings: Any) -> AgentPhase:
    """Line 4 of Algorithm 1, with its optimisers and target networks."""
    return AgentPhase(
        sac,
        critic_lr=cfg.agent.critic_lr,
        actor_lr=cfg.agent.actor_lr,
        alpha_lr=cfg.agent.alpha_lr,
        tau=cfg.agent.tau,
        compile=cfg.compile,
        **settings,
    )


# data


def make_buffers(
    cfg: DictConfig, data: OfflineDataset, real: TensorDictReplayBuffer | None = None
) -> tuple[TensorDictReplayBuffer, TensorDictReplayBuffer, RealModelReplayBuffer]:
    """The data, a FIFO buffer of imagined transitions, and batches with a fixed share of each.

    A buffer of real transitions, ``real``, may stand in for one of the data.
    """
    if real is None:
        real = make_real_buffer(data, torch.device(cfg.device))
    rows = cfg.rollout_starts * cfg.rollout_length
    rows += cfg.get("imagined_episodes", 0) * cfg.get("imagined_steps", 0)
    imagined = make_replay_buffer(cfg.retained_epochs * rows, torch.device(cfg.device))
    mixed = RealModelReplayBuffer(
        real,
        imagined,
        real_fraction=cfg.agent.real_fraction,
        batch_size=cfg.agent.batch_size,
    )
    return real, imagined, mixed


def make_data_batches(
    cfg: DictConfig,
    transitions: TensorDictBase,
    *,
    keys: Sequence[NestedKey] = TRANSITION_KEYS,
    batch_size: int | None = None,
) -> RealModelReplayBuffer:
    """Batches of the data alone, by default of the agent's size."""
    real = make_real_buffer(transitions, torch.device(cfg.device))
    return RealModelReplayBuffer(
        real,
        make_replay_buffer(1),
        real_fraction=1.0,
        batch_size=batch_size or cfg.agent.batch_size,
        keys=keys,
    )


def start_observations(data: OfflineDataset, device: str) -> Tensor:
    """First observations of episodes [B, observation_size], at most :data:`START_ROWS`."""
    first = early_rows(data.transitions, 1)
    rows = first[draw_rows(len(first), START_ROWS)]
    return data.transitions["observation"][rows].to(device)


def mean_value(loss: LossModule, actor: TensorDictModuleBase, observation: Tensor) -> float:
    """The critics' mean value of the policy's mode action at the given observations."""
    return float(mode_values(loss, actor, observation).mean())


def critic_metrics(
    loss: LossModule, actor: TensorDictModuleBase, data: OfflineDataset, device: str
) -> Callable[[], dict[str, float]]:
    """The critics' mean values of the policy's mode, on rows of the data and at episode starts."""
    rows = data.transitions["observation"][draw_rows(len(data), VALUE_ROWS)].to(device)
    places = {"mean_q": rows, "start_value": start_observations(data, device)}
    return lambda: {name: mean_value(loss, actor, at) for name, at in places.items()}


def max_abs_reward(data: OfflineDataset) -> float:
    """The data's largest absolute reward, in the original, unscaled units."""
    return largest_magnitude(data.transitions["next", "reward"]) * data.reward_scale


# the model as an environment


def make_termination(cfg: DictConfig, data: OfflineDataset) -> TerminationRule:
    """The termination rule as configured; a learned one is fitted here, and again on resume."""
    rule = termination_rule(cfg, data)
    if not isinstance(rule, str):
        return rule
    with Bar(desc="fit the termination rule", total=MAX_UPDATES) as bar:
        learnt, fit = fit_termination(
            data.transitions,
            **data.statistics,
            seed=cfg.seed,
            device=cfg.device,
            bar=bar,
        )
        bar.total = bar.n  # it stops once nothing improves
    tqdm.write(f"termination rule: {fit}")
    return learnt


def learned_or_none(rule: TerminationRule) -> LearnedTermination | None:
    """The rule if it is learned, for checkpoints; None for any other."""
    return rule if isinstance(rule, LearnedTermination) else None


def make_model_env(
    env: type[Env],
    data: OfflineDataset,
    world_model: EnsembleWorldModel,
    starts: TensorDictBase,
    termination: TerminationRule,
    **settings: Any,
) -> Env:
    """The model as an environment that is reset to the observations of ``starts``, rows [N]."""
    return env(
        world_model,
        action_spec=data.action_spec,
        starts=starts,
        termination=termination,
        **data.statistics,
        **settings,
    )


def make_collector(cfg: DictConfig, env: EnsembleModelEnv, actor: Actor) -> ModelRolloutCollector:
    """Rollouts of ``rollout_length`` steps, by default with the actor's actions."""
    return ModelRolloutCollector(
        env,
        actor if cfg.rollout_policy == "current" else None,
        num_starts=cfg.rollout_starts,
        horizon=cfg.rollout_length,
        compile=cfg.compile,
    )


def make_adversarial_loss(
    cfg: DictConfig, world_model: EnsembleWorldModel, sac: SACLoss, adversarial_weight: float
) -> AdversarialModelLoss:
    """Lambda times the Model Gradient (Eq. 5) for an agent that trains by ``sac``."""
    return AdversarialModelLoss.from_loss(
        world_model,
        sac,
        adversarial_weight=adversarial_weight,
        gamma=cfg.agent.gamma,
        advantage_clip=cfg.advantage_clip,
        density=cfg.adversary_density,
    )


def make_adversary(
    cfg: DictConfig,
    env: EnsembleModelEnv,
    adversarial: AdversarialModelLoss,
    real: TensorDictReplayBuffer,
    data_term: TensorDictModuleBase | None = None,
    after_update: Callable[[dict[str, Tensor]], object] | None = None,
) -> ModelPhase:
    """Line 5 of Algorithm 1: the adversarial loss and the data term.

    The data term is by default the likelihood of real transitions under the elites (Eq. 9).
    ``after_update`` is called with the metrics of every update.
    """
    return ModelPhase(
        env,
        adversarial,
        data_term or EnsembleModelLoss(adversarial.world_model, members="elites"),
        real,
        batch_size=cfg.model.adversarial_batch_size or cfg.model.batch_size,
        real_batch_size=cfg.model.likelihood_batch_size,
        horizon=cfg.rollout_length,
        lr=cfg.model.adversarial_lr,
        compile=cfg.compile,
        after_update=after_update,
    )


def add_rollouts(
    imagined: TensorDictReplayBuffer, rollouts: TensorDictBase, keys: Any
) -> dict[str, float | int]:
    """Line 3 of Algorithm 1: add a round of rollouts [N] to the buffer; returns its metrics."""
    imagined.extend(rollouts.select(*keys))
    return {
        "model_transitions": rollouts.shape[0],
        "model_reward": float(rollouts["next", "reward"].mean()),
        "model_terminated": float(rollouts["next", "terminated"].float().mean()),
    }


def learn_in_model(
    run: Run,
    cfg: DictConfig,
    data: OfflineDataset,
    monitor: DivergenceMonitor,
    *,
    agent: AgentPhase,
    imagined: TensorDictReplayBuffer,
    mixed: RealModelReplayBuffer,
    collector: ModelRolloutCollector,
) -> None:
    """Lines 2 to 4 of Algorithm 1, for the methods whose model stays as it was fitted."""
    start_states = start_observations(data, cfg.device)
    for epoch in run.epochs(monitor=monitor, updates=cfg.agent_updates):
        with epoch.phase("rollouts"):
            epoch.log(add_rollouts(imagined, collector.collect(), mixed.keys))
        with epoch.phase("agent") as bar:
            epoch.log(agent.run(mixed.batches(cfg.agent_updates), bar))
            epoch.log({"start_value": mean_value(agent.loss, run.policy, start_states)})


def learn_from_data(
    run: Run,
    cfg: DictConfig,
    monitor: DivergenceMonitor,
    phase: OfflinePhase,
    batches: RealModelReplayBuffer,
    metrics: Callable[[], dict[str, float]] = dict,
) -> dict[str, Any]:
    """The epochs of a model-free method, with further metrics after each; returns the results."""
    for epoch in run.epochs(monitor=monitor, updates=cfg.agent_updates):
        with epoch.phase("agent") as bar:
            epoch.log(phase.run(batches.batches(cfg.agent_updates), bar))
            epoch.log(metrics())
    return run.finish(results={"agent_updates": run.progress["epoch"] * cfg.agent_updates})


def model_results(run: Run, cfg: DictConfig) -> dict[str, Any]:
    """The entries of ``results.json`` that every model-based method has."""
    progress = run.progress
    measured = ("holdout_mse", "model_passes", "reverse_holdout_mse")
    return {
        "rollout_length": cfg.rollout_length,
        "model_transitions": progress["transitions"],
        **{key: progress[key] for key in measured if key in progress},
    }
