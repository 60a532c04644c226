"""What adversarial training did to the world model: the model before it against the one after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data import OfflineDataset
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.episodes import PlayedStep, rollout_episodes
from rambo_trl.experiment.policy_path import imagined_rewards
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.objectives.value_budget import step_by_elite
from rambo_trl.training.phases import ModelPhase

#: a world model before and after adversarial training
Models = tuple[EnsembleWorldModel, EnsembleWorldModel]
#: rows of the data, steps of the way off the data, real episodes, imagined ones from each start
ROWS, STEPS, EPISODES, REPEATS = 2000, 11, 20, 20
#: seed of the first real episode: no other part of a run uses it
FIRST_SEED = 900_000_000


def quartiles(key: str, values: Tensor) -> dict[str, float]:
    """The median of values [B] as ``key``, the quartiles as ``key_low`` and ``key_high``."""
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {key: median, f"{key}_low": low, f"{key}_high": high}


def off_the_data(
    models: Models,
    env: EnsembleModelEnv,
    loss: AdversarialModelLoss,
    data: TensorDict,
    target: Tensor,
    unit: float = 1.0,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """How a step's promise has changed and its next state moved, from the data's actions to others.

    Both are of the elites' mean prediction. A distance is the root mean square over a state's
    entries, in standard deviations of the data: its states are normalised (paper sec. 5.2).

    Args:
        models: before and after adversarial training.
        env: for its termination rule.
        loss: for its critics and its policy.
        data: rows [B] with observation, action and next observation, normalised.
        target: the actions that the way leads to, [B, action_size].
        unit: of the rewards.

    Returns:
        Both by ``share`` of the way. Of the promise: the mean change of the ``reward``; median and
        quartiles over rows of the change of r + gamma V(s'), ``value``. Of the next state: median
        and quartiles of the distance between the two models' predictions, ``moved``; the medians of
        each one's distance from the next state that the data have, ``fitted`` and ``adversarial``.
        Where the share is 0 these are the models' errors; further on they hold what the other
        action does as well.
    """
    promises, states = [], []
    true = data["next", "observation"]
    for share in torch.linspace(0, 1, STEPS).tolist():
        action = data["action"] + share * (target - data["action"])
        before, after = (
            [x.mean(dim=0) for x in step_by_elite(model, env, loss, data["observation"], action)]
            for model in models
        )
        change = {"reward": float((after[1] - before[1]).mean())}
        change |= quartiles("value", after[2] - before[2])
        promises.append({"share": share, **{key: x * unit for key, x in change.items()}})
        moved, *errors = (
            x.square().mean(dim=-1).sqrt()
            for x in (after[0] - before[0], before[0] - true, after[0] - true)
        )
        medians = [float(error.quantile(0.5)) for error in errors]
        states.append({"share": share, **quartiles("moved", moved)})
        states[-1] |= zip(("fitted", "adversarial"), medians, strict=True)
    change_by_share, moved_by_share = (
        {key: [point[key] for point in points] for key in points[0]}
        for points in (promises, states)
    )
    return change_by_share, moved_by_share


def mode(actor: Callable[[TensorDict], TensorDict], observation: Tensor) -> Tensor:
    """The policy's mode in normalised states [B, observation_size], [B, action_size]."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return actor(TensorDict({"observation": observation}, observation.shape[:1]))["action"]


def real_rewards(
    dataset: OfflineDataset, act: Callable[[Tensor], Tensor], horizon: int
) -> tuple[Tensor, Tensor]:
    """Rewards of the policy's episodes in the environment, 0 after their end.

    Args:
        dataset: names the environment, normalises its states; its shift is added to every reward,
            as in training.
        act: maps normalised states to actions.
        horizon: steps.

    Returns:
        The normalised start states [EPISODES, observation_size] and the rewards
        [horizon, EPISODES].
    """
    assert dataset.environment is not None

    def normalise(observation: np.ndarray) -> Tensor:
        return dataset.normalize(torch.as_tensor(observation)).float()

    def play(observation: np.ndarray) -> np.ndarray:
        return dataset.denormalize_action(act(normalise(observation))).numpy()

    layout, played = dataset.observation_layout, list[PlayedStep]()
    rollout_episodes(
        play,
        dataset.environment,
        num_episodes=EPISODES,
        seed=FIRST_SEED,
        flatten=None if layout is None else layout.flatten,
        max_steps=horizon,
        on_step=played.append,
    )
    rewards = torch.zeros(horizon, EPISODES)
    for step in played:
        rewards[step.number, step.episode] = step.reward + dataset.reward_shift
    starts = np.stack([step.observation for step in played if step.number == 0])
    return normalise(starts), rewards


def discounted(rewards: Tensor, gamma: float, groups: int) -> dict[str, list[float]]:
    """Discounted return after each step: its mean, and its standard error over start states.

    Args:
        rewards: [horizon, B].
        gamma: discount factor.
        groups: start states; the B columns are so many, repeated.
    """
    weights = gamma ** torch.arange(rewards.shape[0])
    sums = (rewards * weights[:, None]).cumsum(dim=0)
    by_start = sums.view(rewards.shape[0], -1, groups).mean(dim=1)
    error = by_start.std(dim=1) / groups**0.5
    return {"mean": by_start.mean(dim=1).tolist(), "standard_error": error.tolist()}


def credible_steps(rewards: Sequence[Tensor], largest: float) -> int:
    """Steps for which models can be believed.

    Args:
        rewards: of rollouts in each model, [horizon, B].
        largest: the largest absolute reward in the data. A model whose mean is beyond twice
            that, the margin of the monitor of divergence, has rollouts that explode.

    Returns:
        The steps before the first at which one of the models is beyond it; at least 1.
    """
    horizon = rewards[0].shape[0]
    believed = [(r.abs().mean(dim=1) <= 2 * largest).long().cumprod(dim=0).sum() for r in rewards]
    return max(1, min(horizon, *map(int, believed)))


def measure(
    phase: ModelPhase,
    fitted: EnsembleWorldModel,
    dataset: OfflineDataset,
    *,
    gamma: float,
    horizon: int,
) -> dict[str, Any]:
    """Everything that the figure shows, as numbers.

    Args:
        phase: the adversary's, after training.
        fitted: the model before it.
        dataset: the data.

    Keyword Args:
        gamma: discount factor of the returns.
        horizon: steps of rollouts, fewer where a model explodes before.
    """
    env, loss = phase.env, phase.adversarial_loss
    models = (fitted, env.world_model)
    torch.manual_seed(0)
    data = dataset.transitions[draw_rows(len(dataset), ROWS)]
    errors = [
        float(EnsembleModelLoss(model).member_mse(data)[model.elites].mean()) for model in models
    ]
    space = dataset.action_spec.space
    uniform = space.low + torch.rand_like(data["action"]) * (space.high - space.low)

    def act(observation: Tensor) -> Tensor:
        return mode(loss.actor_network, observation)

    targets = {"policy_actions": act(data["observation"]), "random_actions": uniform}
    start, rewards = data["observation"][draw_rows(len(data), EPISODES)], {}
    if dataset.environment is not None:
        start, rewards["real"] = real_rewards(dataset, act, horizon)
    unit = dataset.reward_scale
    for name, model in zip(("fitted", "adversarial"), models, strict=True):
        torch.manual_seed(0)  # the same noise for both
        imagined = imagined_rewards(model, env, act, start.repeat(REPEATS, 1), horizon)
        rewards[name] = imagined * unit
    largest = float(dataset.transitions["next", "reward"].abs().max()) * unit
    steps = credible_steps((rewards["fitted"], rewards["adversarial"]), largest)
    ways = {
        name: off_the_data(models, env, loss, data, target, unit)
        for name, target in targets.items()
    }
    return {
        "dataset": dataset.name,
        "gamma": gamma,
        "horizon": steps,
        "horizon_asked": horizon,
        "rows": len(data),
        "model_error": {"fitted": errors[0], "adversarial": errors[1]},
        **{name: change for name, (change, _) in ways.items()},
        "next_states": {name: moved for name, (_, moved) in ways.items()},
        "returns": {
            name: discounted(values[:steps], gamma, len(start)) for name, values in rewards.items()
        },
    }
