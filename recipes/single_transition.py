"""The paper's Single Transition Example (sec. 6, Table 3): one row of the table a method.

``python recipes/single_transition.py`` plays the game of Algorithm 1 on a problem small enough
to look at as a whole, with the adversary and without it, over several seeds. It prints the
table beside the paper's numbers and draws what the model and the critics believe of every
action as training goes on. See ``config/single_transition.yaml`` for every key.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.single_transition import expected_reward, make_single_transition_data
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import fit_world_model


class SuccessorRewardEnv(EnsembleModelEnv):
    """The model's env with the one thing that is known of the problem: reward = successor."""

    def transition(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following, _, terminated = super().transition(observation, action)
        return following, following, terminated


def one_step(observation, action, next_observation):
    return torch.ones(action.shape[:-1], dtype=torch.bool)


def train(seed, cfg, adversarial, verbose=True):
    torch.manual_seed(seed)
    spec = Bounded(-1.0, 1.0, (1,))
    data = make_single_transition_data(cfg.num_transitions)
    real = make_replay_buffer(len(data)); real.extend(data)
    model = EnsembleWorldModel(1, 1, num_members=cfg.members, num_elites=cfg.elites, hidden_sizes=cfg.model_hidden)
    t=time.perf_counter()
    fit = fit_world_model(model, data, batch_size=cfg.batch_size, lr=cfg.fit_lr, patience=cfg.patience)
    if verbose: print("fit", time.perf_counter()-t, fit.passes, fit.holdout_mse)
    loss = SACLoss(make_actor(1, spec, hidden_sizes=cfg.hidden), make_qvalue(1, 1, hidden_sizes=cfg.hidden), loss_function="l2", action_spec=spec, alpha_init=cfg.alpha_init, target_entropy=cfg.target_entropy)
    loss.make_value_estimator(gamma=0.99)
    agent = AgentPhase(loss, critic_lr=cfg.critic_lr, actor_lr=cfg.actor_lr, alpha_lr=cfg.alpha_lr, compile=cfg.compile)
    env = SuccessorRewardEnv(model, action_spec=spec, starts=real, termination=one_step)
    collector = ModelRolloutCollector(env, loss.actor_network, num_starts=cfg.starts, horizon=1)
    rollouts = make_replay_buffer(5 * cfg.starts)
    mixed = RealModelReplayBuffer(real, rollouts, real_fraction=cfg.real_fraction, batch_size=cfg.batch_size)
    phase = ModelPhase(env, AdversarialModelLoss.from_loss(model, loss, adversarial_weight=cfg.lam), EnsembleModelLoss(model, members="elites"), real, batch_size=cfg.batch_size, horizon=1, lr=cfg.model_lr, compile=cfg.compile)
    ta=tm=0
    for e in range(cfg.epochs):
        a=time.perf_counter()
        rollouts.extend(collector.collect().select(*mixed.keys))
        agent.run(mixed.batches(cfg.agent_updates))
        b=time.perf_counter()
        if adversarial: phase.run(cfg.model_updates)
        c=time.perf_counter()
        if e==0: print("first", b-a, c-b)
        else: ta+=b-a; tm+=c-b
        if verbose and (e+1) % cfg.every == 0:
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                td = loss.actor_network(TensorDict(observation=torch.zeros(1,1), batch_size=[1]))
                grid = torch.tensor([-1,-.725,-.4,-.125,0,.125,.25,.4,.55,.6,.65,.7,.75,.8,.85,1.]).unsqueeze(-1)
                m = model.predict(torch.zeros_like(grid), grid, model.elites)[0][..., 0].mean(0)
            print(e+1, f"mode {td['action'].item():.3f} true {expected_reward(td['action']).item()} scale {td['scale'].item():.3f} alpha {loss.log_alpha.exp().item():.4f}", [round(x,2) for x in m.tolist()], flush=True)
    if verbose: print("ms/update", 1e3*ta/(cfg.epochs-1)/cfg.agent_updates, 1e3*tm/(cfg.epochs-1)/cfg.model_updates)
    return td["action"].item()
