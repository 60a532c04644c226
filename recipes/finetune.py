"""Offline to online: go on from a run of RAMBO in the real environment, or in its simulator.

``python recipes/finetune.py run=runs/RUN`` plays the run's policy, adds what it meets to the data,
refits the model on both, with or without the adversary, and trains the agent on real and imagined
transitions. See ``config/finetune.yaml`` for the keys and ``docs/finetuning.md``.
"""

from __future__ import annotations

import math
from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.finetuning import (
    load_offline_run,
    online_metrics,
    room_for,
    run_settings,
    with_settings_of_run,
)
from launcher.launch import launch
from launcher.variants import DataTerm, agent_variants, averaged_actor
from omegaconf import DictConfig
from torchrl.objectives import SACLoss

from rambo_trl.collectors import EpisodeCollector
from rambo_trl.data import OfflineDataset, OnlineRows
from rambo_trl.envs import EnsembleModelEnv, make_real_env
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.evaluation import episode_seed, score_text
from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.experiment.run import Run
from rambo_trl.modules.statistics import largest_magnitude
from rambo_trl.objectives import DeterministicBackupSACLoss
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.reporting.paper import rambo_label


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Go on from an offline run with its agent, its model and its data.

    Args:
        run: times, logs, evaluates, checkpoints and resumes.
        cfg: the settings of ``config/finetune.yaml``, and the offline run's own in ``source``.
        data: the offline run's.

    Returns:
        The contents of ``results.json``.
    """
    # the offline run's networks, as in rambo.py
    settings = run_settings(cfg)
    world_model = parts.make_world_model(settings, data)
    actor = parts.make_policy(settings, data)
    critic = parts.make_critic(settings, data, layer_norm=settings.agent.layer_norm)
    loss = DeterministicBackupSACLoss if settings.agent.deterministic_backup else SACLoss
    sac = parts.make_sac(loss, settings, data, actor, critic, **parts.sac_settings(settings, data))
    averaged = averaged_actor(settings, actor)
    agent = parts.make_agent_phase(
        settings, sac, **agent_variants(settings, data, sac, actor, averaged)
    )

    # the real buffer: the data, and behind them what the policy's own samples meet
    online = OnlineRows(
        data.transitions, room_for(cfg, data), online_share=cfg.online_share, device=cfg.device
    )
    player = EpisodeCollector(
        make_real_env(data, seed=episode_seed(cfg.seed)), actor, device=cfg.device
    )
    real, imagined, mixed = parts.make_buffers(settings, data, online.buffer)

    # the model as an environment that starts from real states, old and new, and its updates: the
    # likelihood of real transitions, and with a lambda above 0 the adversary's term
    termination = parts.make_termination(settings, data)
    env = parts.make_model_env(EnsembleModelEnv, data, world_model, real, termination)
    collector = parts.make_collector(settings, env, actor)
    adversarial_loss = parts.make_adversarial_loss(
        settings, world_model, sac, cfg.adversarial_weight
    )
    data_term = DataTerm(settings, data, adversarial_loss, env)
    model = parts.make_adversary(settings, env, adversarial_loss, real, data_term.loss)

    learned = parts.learned_or_none(termination)
    run.track(
        label=f"{rambo_label(cfg.adversarial_weight, data.name)}, then online",
        policy=actor if averaged is None else averaged.module,
        reward_unit=data.reward_scale,
        termination=learned,
        world_model=world_model,
        agent=agent,
        averaged_actor=averaged,
        model_buffer=imagined,
        collector=collector,
        model=model,
        online_rows=online,
        player=player,
    )
    progress = run.progress
    if "before" not in progress:
        load_offline_run(
            run,
            cfg,
            world_model=world_model,
            agent_loss=sac,
            averaged_actor=averaged,
            termination=learned,
        )
        if averaged is not None and not averaged.n_averaged:
            averaged.update_parameters(actor)  # the offline run had none
        data_term.record_fit(run)
        with run.watch("evaluation"):
            progress["before"] = run.evaluation(0)
        run.checkpoint()
    before = progress["before"]
    run.say(f"before: return {format_value(before['return_mean'])}{score_text(before)}")

    start_states = parts.start_observations(data, cfg.device)
    monitor = DivergenceMonitor(
        parts.max_abs_reward(data),
        settings.agent.gamma,
        max_model_error=data_term.error_bound(run),
    )
    updates = cfg.agent_updates + cfg.model_updates // cfg.model_updates_every
    for epoch in run.epochs(monitor=monitor, updates=updates):
        # whole episodes: where the last one went beyond the epoch's steps, fewer follow
        wanted = epoch.number * cfg.online_steps - len(online)
        with epoch.phase("environment"):
            met = player.collect(wanted) if wanted > 0 else None
            epoch.log(online_metrics(met, data, world_model))
            if met is not None:
                online.extend(met)
            epoch.log({"online_steps": len(online)})
        # a better policy may meet larger rewards than the data's, and its values are no divergence
        reward = largest_magnitude(real[:]["next", "reward"])
        monitor.max_abs_reward = reward * data.reward_scale
        if cfg.model_updates and (epoch.number - 1) % cfg.model_updates_every == 0:
            with epoch.phase("model") as bar:
                epoch.log(model.run(cfg.model_updates, bar), prefix="model_")
                epoch.log(data_term.end_turn())
        with epoch.phase("rollouts"):
            epoch.log(parts.add_rollouts(imagined, collector.collect(), mixed.keys))
        with epoch.phase("agent") as bar:
            epoch.log(agent.run(mixed.batches(cfg.agent_updates), bar))
            epoch.log({"start_value": parts.mean_value(sac, actor, start_states)})

    epochs = progress["epoch"]
    results = run.finish(
        results={
            "agent_updates": epochs * cfg.agent_updates,
            "adversarial_weight": cfg.adversarial_weight,
            "model_updates": math.ceil(epochs / cfg.model_updates_every) * cfg.model_updates,
            **parts.model_results(run, settings),
            "run": cfg.run,
            "online_steps": len(online),
            "online_episodes": player.episodes,
            "before_score": before["score"],
            "before_return_mean": before["return_mean"],
        },
        adversary=adversary_effect(model, data, gamma=settings.agent.gamma),
        model_env=env,
    )
    run.say(
        f"after {len(online)} real steps: return {format_value(results['return_mean'])}"
        f"{score_text(results)}; before {format_value(before['return_mean'])}{score_text(before)}"
    )
    return results


if __name__ == "__main__":
    launch("finetune", train, complete=with_settings_of_run)
