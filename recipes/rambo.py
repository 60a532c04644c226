"""RAMBO on an offline data set: the paper's Algorithm 1, top to bottom.

``python recipes/rambo.py`` trains on the default task in minutes; ``schedule=paper`` is the
published schedule. See ``config/rambo.yaml`` for the keys, and https://arxiv.org/abs/2204.12581 for
the algorithm. Parts shared with other methods are built in ``launcher/parts.py``.
"""

from __future__ import annotations

import math
from typing import Any

import launcher.starting  # noqa: F401  # prints a notice before the slow imports
from launcher import parts
from launcher.launch import launch
from launcher.pretraining import pretrain, start_critics
from launcher.variants import DataTerm, RolloutCollector, agent_variants, averaged_actor, start_rows
from omegaconf import DictConfig
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.objectives import DeterministicBackupSACLoss
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.reporting.paper import rambo_label
from rambo_trl.training.gradient_step import cosine_decay, set_rates


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train a policy on the data by Algorithm 1.

    Args:
        run: times, logs, evaluates, checkpoints and resumes the algorithm.
        cfg: the settings of ``config/rambo.yaml``; lambda is ``adversarial_weight``, k
            ``rollout_length``.
        data: transitions with actions in [-1, 1], standardised observations and scaled rewards.

    Returns:
        The contents of ``results.json``.
    """
    # networks: an ensemble of Gaussian dynamics models, a tanh-Gaussian policy, and a critic
    # Q(s, a), which the SAC loss replicates
    world_model = parts.make_world_model(cfg, data)
    actor = parts.make_policy(cfg, data)
    critic = parts.make_critic(cfg, data, layer_norm=cfg.agent.layer_norm)

    # replay buffers: the data, the imagined transitions, and batches with a fixed share of each
    real, imagined, mixed = parts.make_buffers(cfg, data)

    # the agent: TorchRL's SAC loss, which trains `actor` itself
    loss = DeterministicBackupSACLoss if cfg.agent.deterministic_backup else SACLoss
    sac = parts.make_sac(loss, cfg, data, actor, critic, **parts.sac_settings(cfg, data))
    averaged = averaged_actor(cfg, actor)

    # the model as a TorchRL environment that resets to states from the data, and the collector of
    # k-step rollouts in it, by default a ModelRolloutCollector with the current policy
    data_rows, termination = real.storage[:], parts.make_termination(cfg, data)
    starts = start_rows(cfg, data, data_rows)
    env = parts.make_model_env(EnsembleModelEnv, data, world_model, starts, termination)
    collector = RolloutCollector(cfg, data, env, actor, data_rows, termination)

    # the adversary: a loss whose gradient is lambda times the Model Gradient (Eq. 5, advantages
    # standardised in each batch), and a data term, by default the likelihood of real transitions.
    # Their sum is Eq. 9; a ModelPhase minimises it on fresh rollouts
    adversarial_loss = parts.make_adversarial_loss(cfg, world_model, sac, cfg.adversarial_weight)
    data_term = DataTerm(cfg, data, adversarial_loss, env)
    adversary = parts.make_adversary(
        cfg, env, adversarial_loss, real, data_term.loss, after_update=data_term.after_update
    )
    # the agent's update loop, an AgentPhase
    budget = data_term.value_budget if cfg.agent.anchor_yields else None
    variants = agent_variants(cfg, data, sac, actor, averaged, budget)
    agent = parts.make_agent_phase(cfg, sac, **variants)
    # with lambda = 0 line 5 is skipped (the ablation of Table 2), or only fits further (`refit`)
    model_updates = cfg.model_updates if cfg.adversarial_weight > 0 or cfg.refit else 0

    # everything that a checkpoint saves, so that the run can resume
    run.track(
        label=rambo_label(cfg.adversarial_weight, data.name),
        policy=actor if averaged is None else averaged.module,
        reward_unit=data.reward_scale,
        termination=parts.learned_or_none(termination),
        world_model=world_model,
        agent=agent,
        averaged_actor=averaged,
        model_buffer=imagined,
        collector=collector,
        model=adversary,
        model_trust=data_term.trust,
        likelihood_budget=data_term.budget,
        value_budget=data_term.value_budget,
        **collector.pretrained_parts,
    )

    # line 1: fit the model by maximum likelihood. Not in Algorithm 1: with clone_behaviour the
    # actor is cloned from the data, and reverse rollouts (further) pretrain a model of their own
    pretrain(run, cfg, data, world_model, actor, further=collector)
    start_critics(run, cfg, data, sac)  # not in Algorithm 1 either
    if averaged is not None and not run.progress["epoch"]:
        averaged.update_parameters(actor)  # the average begins with the clone
    data_term.record_fit(run)  # its error, and the reference model of the variants of Eq. 7 and 8

    # the run counts as diverged where critic values or model errors leave what the data allow
    start_states = parts.start_observations(data, cfg.device)
    monitor = DivergenceMonitor(
        parts.max_abs_reward(data), cfg.agent.gamma, max_model_error=data_term.error_bound(run)
    )
    falls = cosine_decay(cfg.epochs) if cfg.model.adversarial_lr_decay == "cosine" else None
    updates_per_epoch = cfg.agent_updates + model_updates // cfg.model_updates_every
    # line 2: n_iter = cfg.epochs iterations
    for epoch in run.epochs(monitor=monitor, updates=updates_per_epoch):
        # line 3: k-step rollouts of the policy in the model
        with epoch.phase("rollouts"):
            epoch.log(parts.add_rollouts(imagined, collector.collect(), mixed.keys))
        # line 4: update the agent on real and imagined transitions
        with epoch.phase("agent") as bar:
            epoch.log(agent.run(mixed.batches(cfg.agent_updates), bar))
            epoch.log({"start_value": parts.mean_value(sac, actor, start_states)})
        # line 5: update the model to lower the agent's value while still fitting the data; in
        # epochs 1, 1 + model_updates_every and so on
        if model_updates and (epoch.number - 1) % cfg.model_updates_every == 0:
            if falls is not None:
                set_rates(adversary.optimizer, [adversary.lr * falls(epoch.number - 1)])
            with epoch.phase("model") as bar:
                epoch.log(adversary.run(model_updates, bar), prefix="model_")
                epoch.log(data_term.end_turn())

    epochs_done = run.progress["epoch"]
    return run.finish(
        results={
            "agent_updates": epochs_done * cfg.agent_updates,
            "adversarial_weight": cfg.adversarial_weight,
            "model_updates": math.ceil(epochs_done / cfg.model_updates_every) * model_updates,
            **parts.model_results(run, cfg),
        },
        # how far the adversary lowers values: some updates with and without it, then undone
        adversary=adversary_effect(adversary, data, gamma=cfg.agent.gamma),
        # what the model promises along the policy's own path, beside what the environment gives
        model_env=env,
    )


if __name__ == "__main__":
    launch("rambo", train)
