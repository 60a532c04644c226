"""RAMBO on an offline data set: the paper's Algorithm 1, top to bottom.

``python recipes/rambo.py`` trains on the default task in minutes; ``schedule=paper`` is the
published schedule. See ``config/rambo.yaml`` for the keys, and https://arxiv.org/abs/2204.12581 for
the algorithm. Parts that other methods have too are made in ``launcher/parts.py``.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher.launch import launch
from launcher.parts import (
    fill_buffer,
    learnt_only,
    make_adversary,
    make_agent_phase,
    make_buffers,
    make_critic,
    make_env,
    make_policy,
    make_sac,
    make_termination,
    make_world_model,
    max_abs_reward,
    mean_value,
    model_results,
    start_observations,
)
from launcher.pretraining import pretrain
from launcher.variants import ModelConstraint, Rollouts
from omegaconf import DictConfig
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.objectives import AdversarialModelLoss
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.reporting.paper import rambo_label


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train a policy on the data by Algorithm 1.

    Args:
        run: what surrounds the algorithm: it times, logs, evaluates, checkpoints and resumes.
        cfg: the settings of ``config/rambo.yaml``.
        data: transitions with actions in [-1, 1] and standardised observations.

    Returns:
        What ``results.json`` says.
    """
    # networks: the ensemble of Gaussian dynamics models, the tanh-Gaussian policy, a critic Q(s, a)
    world_model = make_world_model(cfg, data)
    actor, critic = make_policy(cfg, data), make_critic(cfg, data)

    # replay buffers: the data, the imagined transitions, and batches with a fixed share of each
    real, imagined, mixed = make_buffers(cfg, data)

    # the agent: TorchRL's soft actor-critic loss, and its updates (AgentPhase)
    sac = make_sac(SACLoss, cfg, data, actor, critic, num_qvalue_nets=cfg.num_critics)
    agent = make_agent_phase(cfg, sac)

    # the model as a TorchRL environment whose episodes start in states of the data, and rollouts of
    # the policy in it (ModelRolloutCollector)
    starts, termination = real.storage[:], make_termination(cfg, data)
    env = make_env(EnsembleModelEnv, data, world_model, starts, termination)
    collector = Rollouts(cfg, data, env, actor, starts, termination)

    # the adversary: lambda times the Model Gradient (Eq. 5) lowers the agent's value in the model,
    # and the likelihood of real transitions holds the model to the data; together they are Eq. 9
    # (ModelPhase)
    adversarial = AdversarialModelLoss.from_loss(
        world_model,
        sac,
        adversarial_weight=cfg.adversarial_weight,
        gamma=cfg.agent.gamma,
        advantage_clip=cfg.advantage_clip,
    )
    constraint = ModelConstraint(cfg, data, adversarial)
    adversary = make_adversary(
        cfg, env, adversarial, real, constraint.loss, after_update=constraint.after_update
    )
    model_updates = cfg.model_updates if cfg.adversarial_weight > 0 else 0

    # all that checkpoints hold: a run that resumes finds it as it was
    run.track(
        label=rambo_label(cfg.adversarial_weight, data.name),
        policy=actor,
        reward_unit=data.reward_scale,
        termination=learnt_only(termination),
        world_model=world_model,
        agent=agent,
        model_buffer=imagined,
        collector=collector,
        model=adversary,
        model_trust=constraint.trust,
        likelihood_budget=constraint.budget,
        **collector.pretrained_parts,
    )

    # line 1: the model by maximum likelihood, and the cloned policy
    pretrain(run, cfg, data, world_model, actor, collector)
    constraint.anchor(run)

    at_start = start_observations(data, cfg.device)
    monitor = DivergenceMonitor(
        max_abs_reward(data), cfg.agent.gamma, max_model_error=constraint.error_bound(run)
    )
    updates = cfg.agent_updates + model_updates // cfg.model_updates_every
    for epoch in run.epochs(monitor=monitor, updates=updates):  # line 2
        with epoch.phase("rollouts"):  # line 3: k-step rollouts of the policy in the model
            epoch.log(fill_buffer(imagined, collector, mixed.keys))
        with epoch.phase("agent") as bar:  # line 4: the agent, on real and imagined transitions
            epoch.log(agent.run(mixed.batches(cfg.agent_updates), bar))
            epoch.log({"start_value": mean_value(sac, actor, at_start)})
        # line 5: the model, against the agent and true to the data
        if model_updates and (epoch.number - 1) % cfg.model_updates_every == 0:
            with epoch.phase("model") as bar:
                epoch.log(adversary.run(model_updates, bar), prefix="model_")
                epoch.log(constraint.metrics(), prefix="model_")

    done = run.progress["epoch"]
    return run.finish(
        results={
            "agent_updates": done * cfg.agent_updates,
            "adversarial_weight": cfg.adversarial_weight,
            "model_updates": -(-done // cfg.model_updates_every) * model_updates,
            **model_results(run, cfg),
        },
        adversary=adversary_effect(adversary, data, gamma=cfg.agent.gamma),
    )


if __name__ == "__main__":
    launch("rambo", train)
