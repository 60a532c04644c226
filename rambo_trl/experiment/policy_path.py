"""The trained policy's own path: what the model promises along it, beside what is there.

A model that is accurate on held-out rows of the data may be wrong where the policy goes, above all
after the reset, which is a small share of the rows. The critics then learn from a promise that the
environment does not keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data import OfflineDataset
from rambo_trl.data.environment import time_limit
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.episodes import PlayedStep
from rambo_trl.experiment.evaluation import evaluate_policy
from rambo_trl.experiment.sanity import most_plausible
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating
from rambo_trl.runtime.numbers import format_value as text

__all__ = ["ImaginedStep", "PolicyPath", "follow_policy", "imagined_rewards", "imagined_steps"]

Act = Callable[[Tensor], Tensor]

#: episodes in the environment, start states of the data without one, and rollouts in the model
#: from each episode's start
EPISODES, STARTS, REPEATS = 10, 100, 10
#: steps that are followed at most: beyond, little is left of what a model knows
MOST_STEPS = 300
#: the model and the environment disagree grossly where their returns differ by more than so many
#: standard errors, by a third of the larger one and by a tenth of what the data's rewards amount to
_ERRORS, _SHARES = 2.0, (1 / 3, 0.1)


@dataclass(frozen=True, eq=False)
class PolicyPath:
    """Rewards along a policy's path, in the data's units, with the data's shift.

    Attributes:
        numbers: what ``results.json`` holds under ``path``. The ``steps`` that were followed, and
            undiscounted returns over them: ``return_model``; with an environment also
            ``return_truth``, else ``return_logged_mean`` and ``return_logged_best``. With an
            environment further ``model_error``, the model's mean squared one-step error on the path
            there, and ``holdout_error``, that on held-out rows after the fit (or None). Whether to
            ``distrust`` the model, and a ``line`` for the user or None.
        rewards: name of a curve to its mean reward by step [steps], 0 after an end.
        error: the model's mean squared one-step error by step [at most steps]; None without an
            environment.
    """

    numbers: dict[str, Any]
    rewards: dict[str, np.ndarray]
    error: np.ndarray | None = None


def follow_policy(
    env: EnsembleModelEnv,
    policy: TensorDictModuleBase,
    dataset: OfflineDataset,
    *,
    seed: int,
    holdout_mse: Sequence[float] | None = None,
) -> PolicyPath | None:
    """Play a policy's mode in the environment and in the model, from the same start states.

    Without an environment the model's rollouts start where the data's whole episodes do and stand
    beside what these gave. The model's rewards are its own, without any penalty. The global random
    state is left as it was.

    Args:
        env: the model, with its termination rule.
        policy: reads ``"observation"`` and writes ``"action"``, on the model's device.
        dataset: the data.

    Keyword Args:
        seed: of the first episode and of the model's noise.
        holdout_mse: every member's error after the fit.

    Returns:
        The path; None where there is neither an environment nor a whole episode.
    """

    def act(observation: Tensor) -> Tensor:
        rows = TensorDict(observation=observation, batch_size=observation.shape[:1])
        return policy(rows)["action"]

    with (
        torch.no_grad(),
        torch.random.fork_rng(),
        evaluating(policy, env),
        set_exploration_type(ExplorationType.DETERMINISTIC),
    ):
        torch.manual_seed(seed)
        if dataset.environment is not None:
            return _beside_environment(env, policy, act, dataset, seed, holdout_mse)
        if len(dataset.whole_episodes):
            return _beside_log(env, act, dataset)
    return None


def _beside_environment(
    env: EnsembleModelEnv,
    policy: TensorDictModuleBase,
    act: Act,
    dataset: OfflineDataset,
    seed: int,
    holdout_mse: Sequence[float] | None,
) -> PolicyPath:
    """The policy's episodes, and rollouts of the model from their start states."""
    environment, layout = dataset.environment, dataset.observation_layout
    assert environment is not None
    steps = min(time_limit(environment) or MOST_STEPS, MOST_STEPS)
    played: list[PlayedStep] = []
    evaluate_policy(
        policy,
        environment,
        num_episodes=EPISODES,
        seed=seed,
        flatten=None if layout is None else layout.flatten,
        device=env.device,
        max_steps=steps,
        on_step=played.append,
        **dataset.statistics,
    )
    rows = _as_transitions(played, dataset)
    episode, step = rows["episode"], rows["step"]
    truth = torch.zeros(steps, EPISODES, dtype=torch.float64)
    truth[step, episode] = rows["next", "reward"].flatten().double() * dataset.reward_scale
    terminated = torch.zeros(EPISODES, dtype=torch.bool)
    terminated[episode[rows["next", "terminated"].flatten()]] = True
    model, counted = _imagined(
        env, act, dataset, rows["observation"][step == 0], episode.bincount(), terminated, steps
    )
    error = _one_step_error(env.world_model, rows.to(env.device)).double().cpu()
    fitted = None
    if holdout_mse is not None:
        fitted = fmean(holdout_mse[member] for member in env.world_model.elites.tolist())
    steps = int(counted.any(dim=1).sum())
    numbers = {
        "steps": steps,
        "return_truth": float(truth.sum(dim=0).mean()),
        "return_model": float(model.sum(dim=0).mean()),
        "model_error": float(error.mean()),
        "holdout_error": fitted,
    }
    gap = (model - truth).sum(dim=0)  # by episode
    numbers |= _compared(numbers, float(gap.std() / EPISODES**0.5), dataset)
    curves = {"environment": truth, "model": model}
    return PolicyPath(
        numbers,
        {name: rewards[:steps].mean(dim=1).numpy() for name, rewards in curves.items()},
        (step.bincount(error) / step.bincount()).numpy(),
    )


def _as_transitions(played: Sequence[PlayedStep], dataset: OfflineDataset) -> TensorDict:
    """Steps as rows like the data's, in the learner's units, with their episode and number."""

    def column(key: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(step, key) for step in played]))

    reward = (column("reward").unsqueeze(-1) + dataset.reward_shift) / dataset.reward_scale
    return TensorDict(
        observation=dataset.normalize(column("observation")).float(),
        action=dataset.normalize_action(column("action")).float(),
        next={
            "observation": dataset.normalize(column("next_observation")).float(),
            "reward": reward.float(),
            "terminated": column("terminated").unsqueeze(-1),
        },
        episode=column("episode"),
        step=column("number"),
        batch_size=[len(played)],
    )


def _one_step_error(world_model: EnsembleWorldModel, rows: TensorDict) -> Tensor:
    """The elites' mean squared error on each row [N], as that on held-out rows is measured."""
    mean, _ = world_model.predict(rows["observation"], rows["action"], world_model.elites)
    target = torch.cat([rows["next", "observation"], rows["next", "reward"]], dim=-1)
    return ((mean - target) / world_model.output_scale).square().mean(dim=(0, 2))


def _compared(
    numbers: dict[str, Any], standard_error: float, dataset: OfflineDataset
) -> dict[str, Any]:
    """Whether the model's return differs grossly from the environment's, and the sentence."""
    steps, truth, model = (numbers[key] for key in ("steps", "return_truth", "return_model"))
    usual = steps * dataset.reward_scale * float(dataset.transitions["next", "reward"].abs().mean())
    larger = max(abs(truth), abs(model))
    enough = max(_ERRORS * standard_error, _SHARES[0] * larger, _SHARES[1] * usual)
    if abs(model - truth) <= enough and math.isfinite(model):
        return {"distrust": False, "line": None}
    error = f"its one-step error there is {numbers['model_error']:.3g}"
    if numbers["holdout_error"] is not None:
        error += f", on held-out data after the fit {numbers['holdout_error']:.3g}"
    more = not model < truth
    line = (
        f"in the first {steps} steps of an episode the model promises {text(model / steps, 2)} a "
        f"step where the environment gives {text(truth / steps, 2)} (returns of {text(model)} and "
        f"{text(truth)}): "
    )
    line += "distrust it" if more else "it is too pessimistic"
    return {"distrust": more, "line": f"{line} on the policy's own path ({error})"}


def _beside_log(env: EnsembleModelEnv, act: Act, dataset: OfflineDataset) -> PolicyPath:
    """Rollouts of the model from the starts of logged episodes, beside these episodes."""
    reward = dataset.transitions["next", "reward"].flatten().double().numpy()
    reward = reward * dataset.reward_scale
    first, last = dataset.whole_episodes.T
    steps = min(int((last - first).max()), MOST_STEPS)
    logged = [reward[a : min(b, a + steps)] for a, b in dataset.whole_episodes]
    returns = np.array([episode.sum() for episode in logged])
    mean = np.zeros(steps)
    for episode in logged:
        mean[: len(episode)] += episode / len(logged)
    best = logged[int(returns.argmax())]

    some = draw_rows(len(logged), STARTS)
    starts, ends = (torch.from_numpy(rows[some.numpy()]) for rows in (first, last))
    terminated = dataset.transitions["next", "terminated"][ends - 1].flatten()
    observation = dataset.transitions["observation"][starts]
    model, _ = _imagined(env, act, dataset, observation, ends - starts, terminated, steps)
    promise = float(model.sum(dim=0).mean())
    distrust = not promise <= most_plausible(returns)
    line = (
        f"over {steps} steps from the data's start states the model promises the policy a return "
        f"of {text(promise)}, "
    )
    if distrust:
        line += (
            f"where the best logged episode gave {text(returns.max())} (mean "
            f"{text(returns.mean())}): distrust it"
        )
    else:
        line += (
            f"logged episodes gave {text(returns.mean())} in the mean and {text(returns.max())} "
            "at best"
        )
    numbers = {
        "steps": steps,
        "return_model": promise,
        "return_logged_mean": float(returns.mean()),
        "return_logged_best": float(returns.max()),
        "distrust": distrust,
        "line": line,
    }
    curves = {
        "model": model.mean(dim=1).numpy(),
        "mean logged episode": mean,
        "best logged episode": np.pad(best, (0, steps - len(best))),
    }
    return PolicyPath(numbers, curves)


def _imagined(
    env: EnsembleModelEnv,
    act: Act,
    dataset: OfflineDataset,
    start: Tensor,
    lengths: Tensor,
    terminated: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Rewards in the model beside episodes of certain lengths, in the data's units.

    Where an episode was cut, not terminated, the model's rewards beyond it do not count.

    Args:
        env: the model.
        act: maps normalised states to actions.
        dataset: for its unit of rewards.
        start: the episodes' first states [B, observation_size], normalised.
        lengths: of the episodes [B].
        terminated: whether they ended in a terminal state [B].
        steps: to follow.

    Returns:
        Mean rewards [steps, B] over the rollouts from each start, and which of them count.
    """
    counted = torch.arange(steps)[:, None] < torch.where(terminated, steps, lengths)
    start = start.to(env.device).repeat(REPEATS, 1)
    rewards = imagined_rewards(env.world_model, env, act, start, steps).double().cpu()
    rewards = rewards.view(steps, REPEATS, -1).mean(dim=1) * dataset.reward_scale
    return torch.where(counted, rewards, 0.0), counted


def imagined_rewards(
    world_model: EnsembleWorldModel,
    env: EnsembleModelEnv,
    act: Act,
    start: Tensor,
    horizon: int,
) -> Tensor:
    """Rewards of rollouts in a model, [horizon, B]; 0 after a predicted end.

    Args:
        world_model: the model.
        env: for its termination rule.
        act: maps normalised states to actions.
        start: normalised states [B, observation_size].
        horizon: steps.
    """
    steps = imagined_steps(world_model, env, act, start, horizon)
    return torch.stack([(step.reward * step.alive).squeeze(-1) for step in steps])


class ImaginedStep(NamedTuple):
    """A step of rollouts in a model.

    Attributes:
        observation: normalised [B, observation_size].
        action: [B, action_size].
        reward: [B, 1].
        alive: boolean [B, 1], whether the rollout had not ended before.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    alive: Tensor


@torch.no_grad()
def imagined_steps(
    world_model: EnsembleWorldModel,
    env: EnsembleModelEnv,
    act: Act,
    start: Tensor,
    horizon: int,
) -> Iterator[ImaginedStep]:
    """The steps of rollouts in a model, one after another; as for :func:`imagined_rewards`."""
    observation = start
    alive = torch.ones_like(start[:, :1], dtype=torch.bool)
    for _ in range(horizon):
        action = act(observation)
        next_observation, reward = world_model.sample(observation, action)
        yield ImaginedStep(observation, action, reward, alive)
        alive = alive & ~env.is_terminal(observation, action, next_observation)
        # an ended row stands still in its last valid state, so that nothing overflows
        observation = torch.where(alive, next_observation, observation)
