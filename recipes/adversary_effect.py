"""What the adversary did to a run's model: ``python recipes/adversary_effect.py RUN``.

Compares the model as it was fitted (``pretrained_model.safetensors`` in the run folder) with the
one that the game left behind: on the data and away from it, one step and many. The game is to leave
the former alone and to lower the value of the latter (paper sec. 4.2), until the policy's value in
the model is a lower bound on its value in the environment (Proposition 1). Writes
``adversary_effect.png`` and ``adversary_effect.json`` into the run folder, or where ``--out`` says.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import compose_jobs, describe
from data_checks import load_data
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf
from rambo import FITTED_MODEL, Rambo
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from training_run import Run

from rambo_trl.data import OfflineDataset, make_environment, mujoco_messages_logged
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.training.checkpoint import load_checkpoint
from rambo_trl.training.interruption import Interruption
from rambo_trl.training.pretrained import dataset_digest
from rambo_trl.training.run_folder import RunFolder, write_atomically

#: rows of the data, steps of the way off the data, real episodes, imagined ones from each start
ROWS, STEPS, EPISODES, REPEATS = 2000, 11, 20, 20
#: seed of the first real episode: no other part of a run uses it
FIRST_SEED = 900_000_000
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#222222", "#666666"


@dataclass(frozen=True)
class Game:
    """A run whose game is over.

    Attributes:
        rambo: its parts, as its checkpoint has them.
        fitted: the world model before the game.
        epoch: epochs played.
    """

    rambo: Rambo
    fitted: EnsembleWorldModel
    epoch: int


def load_game(path: Path, fitted_file: Path | None = None) -> Game:
    """Read a run folder.

    Args:
        path: the run folder.
        fitted_file: the model before the game, or a file of the cache of pretrained parts; the
            run folder's own by default.

    Raises:
        OSError, ValueError: one line on what is missing or does not fit.
    """
    folder = RunFolder.open(path)
    saved = OmegaConf.load(path / "config.yaml")
    assert isinstance(saved, DictConfig)
    method = saved.get("method", "rambo")
    if method != "rambo":
        raise ValueError(f"{path} is a run of method={method}: only RAMBO's model has an adversary")
    if not saved.get("adversarial_weight"):
        raise ValueError(f"{path} has adversarial_weight=0: its model is the fitted one")
    fitted_file = fitted_file or path / FITTED_MODEL
    if not fitted_file.is_file():
        raise FileNotFoundError(
            f"there is no {fitted_file}, the model before the game: name one with --pretrained "
            "(the file that pretrained=auto keeps in cache_dir will do)"
        )
    # settings that are newer than the run have their defaults
    cfg = OmegaConf.create(OmegaConf.to_container(compose_jobs("rambo", [])[0], resolve=True))
    assert isinstance(cfg, DictConfig)
    cfg.merge_with(saved)
    cfg.device, cfg.compile = "cpu", False
    dataset = load_data(cfg)
    rambo = Rambo(Run(cfg, dataset, folder, Interruption()))
    last_good = folder.checkpoint_dir / "last_good.pt"
    progress = load_checkpoint(
        last_good if last_good.is_file() else folder.checkpoint_dir / "last.pt",
        rambo.stateful_parts(),
        restore_random=False,
    )
    if progress.get("dataset_digest", dataset_digest(dataset)) != dataset_digest(dataset):
        raise ValueError(f"data set {dataset.name} is no longer what this run was trained on")
    if not progress["epoch"]:
        raise ValueError(f"{path} has not played yet: there is no epoch in its checkpoint")
    return Game(rambo, read_fitted(fitted_file, rambo.world_model), progress["epoch"])


def read_fitted(file: Path, world_model: EnsembleWorldModel) -> EnsembleWorldModel:
    """Read the model that a game began with.

    Args:
        file: ``pretrained_model.safetensors``, or a file of the cache of pretrained parts.
        world_model: the model after the game.

    Raises:
        ValueError: if the file cannot be read or is of another fit.
    """
    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)["parts"]["world_model"]
        )
        fitted = copy.deepcopy(world_model)
        fitted.load_state_dict(state)
    except (SafetensorError, RuntimeError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{file} does not hold this run's model: {describe(error)}") from error
    except Exception as error:  # torch.load raises what the unpickler stumbles over
        raise ValueError(f"{file} is not readable: {describe(error)}") from error
    for name in ("input_mean", "input_std", "elites"):  # what the game leaves as it is
        if not torch.equal(getattr(fitted, name), getattr(world_model, name)):
            raise ValueError(f"{file} is of another fit than this run's: its {name} differs")
    return fitted


@torch.no_grad()
def one_step(
    world_model: EnsembleWorldModel,
    env: EnsembleModelEnv,
    loss: AdversarialModelLoss,
    observation: Tensor,
    action: Tensor,
) -> tuple[Tensor, Tensor]:
    """What a model promises for a step: the reward r, and r + gamma V(s').

    Each elite's mean is taken, and the mean over elites: no random number is drawn.

    Args:
        world_model: the model.
        env: for its termination rule.
        loss: for its critics, its policy and its discount factor.
        observation: normalised, [B, observation_size].
        action: [B, action_size].

    Returns:
        Reward and value, each [B].
    """
    mean, _ = world_model.predict(observation, action, world_model.elites)
    elites, rows = mean.shape[:2]
    observation, action = observation.repeat(elites, 1), action.repeat(elites, 1)
    following, reward = mean[..., :-1].flatten(0, 1), mean[..., -1:].flatten(0, 1)
    step = TensorDict(
        {
            "observation": observation,
            "action": action,
            "next": {
                "observation": following,
                "reward": reward,
                "terminated": env.is_terminal(observation, action, following),
            },
        },
        batch_size=[elites * rows],
    )
    advantage, _, qvalue = loss.advantage(step)
    value = advantage + qvalue  # Eq. 5's r + gamma V(s')
    return reward.view(elites, rows).mean(dim=0), value.view(elites, rows).mean(dim=0)


def off_the_data(
    models: tuple[EnsembleWorldModel, EnsembleWorldModel],
    env: EnsembleModelEnv,
    loss: AdversarialModelLoss,
    data: TensorDict,
    target: Tensor,
) -> dict[str, list[float]]:
    """How the promise for a step has changed, on the way from the data's actions to others.

    Args:
        models: before and after the game.
        env: for its termination rule.
        loss: for its critics and its policy.
        data: rows [B] with observation and action.
        target: the actions that the way leads to, [B, action_size].

    Returns:
        By share of the way: ``share``, mean change of the reward, and median and quartiles of
        the change of r + gamma V(s').
    """
    change: dict[str, list[float]] = {
        key: [] for key in ("share", "reward", "value", "value_low", "value_high")
    }
    for share in torch.linspace(0, 1, STEPS).tolist():
        action = data["action"] + share * (target - data["action"])
        before, after = (
            one_step(model, env, loss, data["observation"], action) for model in models
        )
        low, median, high = (after[1] - before[1]).quantile(torch.tensor([0.25, 0.5, 0.75]))
        change["share"].append(share)
        change["reward"].append(float((after[0] - before[0]).mean()))
        change["value"].append(float(median))
        change["value_low"].append(float(low))
        change["value_high"].append(float(high))
    return change


def mode(actor: TensorDictModuleBase, observation: Tensor) -> Tensor:
    """The policy's mode in normalised states, [B, action_size]."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return actor(TensorDict({"observation": observation}, observation.shape[:1]))["action"]


@torch.no_grad()
def imagined_rewards(
    world_model: EnsembleWorldModel,
    env: EnsembleModelEnv,
    act: Callable[[Tensor], Tensor],
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
    observation, rewards = start, []
    alive = torch.ones_like(start[:, :1], dtype=torch.bool)
    for _ in range(horizon):
        action = act(observation)
        following, reward = world_model.sample(observation, action)
        rewards.append((reward * alive).squeeze(-1))
        alive = alive & ~env.is_terminal(observation, action, following)
        # an ended row stands still in its last valid state, so that nothing overflows
        observation = torch.where(alive, following, observation)
    return torch.stack(rewards)


def real_rewards(
    dataset: OfflineDataset, act: Callable[[Tensor], Tensor], horizon: int, reward_shift: float
) -> tuple[Tensor, Tensor]:
    """Rewards of the policy's episodes in the environment, 0 after their end.

    Args:
        dataset: names the environment, normalises its states.
        act: maps normalised states to actions.
        horizon: steps.
        reward_shift: added to every reward, as in training.

    Returns:
        The normalised start states [EPISODES, observation_size] and the rewards
        [horizon, EPISODES].
    """
    assert dataset.environment is not None
    layout = dataset.observation_layout
    flatten = np.asarray if layout is None else layout.flatten

    def normalise(observation: Any) -> Tensor:
        raw = torch.as_tensor(flatten(observation), dtype=torch.float32)
        return (raw - dataset.observation_mean) / dataset.observation_std

    with mujoco_messages_logged():
        env = make_environment(dataset.environment)
    starts, rewards = [], torch.zeros(horizon, EPISODES)
    try:
        for episode in range(EPISODES):
            observation = normalise(env.reset(seed=FIRST_SEED + episode)[0])
            starts.append(observation)
            for step in range(horizon):
                action = act(observation[None])[0].numpy()
                raw, reward, terminated, truncated, _ = env.step(action)
                rewards[step, episode] = float(reward) + reward_shift
                if terminated or truncated:
                    break
                observation = normalise(raw)
    finally:
        env.close()
    return torch.stack(starts), rewards


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


def measure(game: Game, horizon: int) -> dict[str, Any]:
    """Everything that the figure shows, as numbers."""
    rambo, cfg, dataset = game.rambo, game.rambo.run.cfg, game.rambo.run.dataset
    env, loss = rambo.env, rambo.adversary.adversarial_loss
    models = (game.fitted, rambo.world_model)
    torch.manual_seed(0)
    rows = torch.randperm(len(dataset))[:ROWS]
    data = dataset.transitions[rows]
    errors = [
        float(EnsembleModelLoss(model).member_mse(data)[model.elites].mean()) for model in models
    ]
    space = dataset.action_spec.space
    uniform = space.low + torch.rand_like(data["action"]) * (space.high - space.low)

    def act(observation: Tensor) -> Tensor:
        return mode(rambo.actor, observation)

    start, rewards = data["observation"][:EPISODES], {}
    if dataset.environment is not None:
        start, rewards["real"] = real_rewards(dataset, act, horizon, cfg.reward_shift)
    for name, model in zip(("fitted", "adversarial"), models, strict=True):
        torch.manual_seed(0)  # the same noise for both
        rewards[name] = imagined_rewards(model, env, act, start.repeat(REPEATS, 1), horizon)
    steps = credible_steps(
        (rewards["fitted"], rewards["adversarial"]),
        float(dataset.transitions["next", "reward"].abs().max()),
    )
    returns = {
        name: discounted(values[:steps], cfg.agent.gamma, len(start))
        for name, values in rewards.items()
    }
    return {
        "dataset": dataset.name,
        "seed": cfg.seed,
        "epoch": game.epoch,
        "adversarial_weight": cfg.adversarial_weight,
        "gamma": cfg.agent.gamma,
        "horizon": steps,
        "horizon_asked": horizon,
        "rows": len(data),
        "model_error": {"fitted": errors[0], "adversarial": errors[1]},
        "policy_actions": off_the_data(models, env, loss, data, act(data["observation"])),
        "random_actions": off_the_data(models, env, loss, data, uniform),
        "returns": returns,
    }


def verdict(found: Mapping[str, Any]) -> list[str]:
    """What was found, in words."""
    error, policy = found["model_error"], found["policy_actions"]["value"]
    random, returns = found["random_actions"]["value"], found["returns"]
    last = {name: curve["mean"][-1] for name, curve in returns.items()}
    lines = [
        f"error on {found['rows']} rows of the data: {error['fitted']:.4g} before the game, "
        f"{error['adversarial']:.4g} after",
        f"change of r + gamma V(s'): {policy[0]:+.4g} at the data's actions, {policy[-1]:+.4g} at "
        f"the policy's, {random[-1]:+.4g} at random ones (medians)",
        f"discounted return of {found['horizon']} steps: "
        + ", ".join(f"{value:.4g} {_PLACES[name]}" for name, value in last.items()),
    ]
    if found["horizon"] < found["horizon_asked"]:
        lines.append(
            f"longer rollouts are not compared: from step {found['horizon'] + 1} on a model's mean "
            "reward is beyond twice the data's largest, so it cannot be believed"
        )
    if "real" in last:
        gap = last["adversarial"] - last["real"]
        error_bar = 2 * float(
            np.hypot(*(returns[name]["standard_error"][-1] for name in ("real", "adversarial")))
        )
        what = "a lower bound on" if gap < -error_bar else "above"
        if abs(gap) <= error_bar:
            what = "within two standard errors of"
        lines.append(f"the value in the adversarial model is {what} the environment's")
    return lines


_PROMISED = "what the critics promise, without entropy"
_COUNTED = "with the entropy that SAC counts"
_TRUE = "what the environment gives"
_PLACES = {
    "real": "in the environment",
    "fitted": "in the fitted model",
    "adversarial": "in the adversarial model",
}


def draw(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Four panels: off the data, along a rollout, and the game's course.

    Args:
        found: what :func:`measure` returns.
        rows: of ``metrics.csv``.
        path: the PNG to write.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (one, many), (believed, achieved) = figure.subplots(2, 2)
    one.axhline(0, color=GREY, linewidth=1)
    for key, color, label in (
        ("random_actions", ORANGE, "towards random actions"),
        ("policy_actions", BLUE, "towards the policy's actions"),
    ):
        change = found[key]
        one.fill_between(
            change["share"], change["value_low"], change["value_high"], color=color, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
        one.plot(change["share"], change["value"], color=color, linewidth=2.4, label=label)
    error = found["model_error"]
    one.set_title(
        "one step: what the game did to the model's promise\n"
        f"(error on the data: {error['fitted']:.3g} before, {error['adversarial']:.3g} after)",
        loc="left",
    )
    one.set_xlabel("way off the data (0: the data's action, 1: the other action)")
    one.set_ylabel("change of r + gamma V(s')")
    for name, color in (("fitted", ORANGE), ("adversarial", BLUE), ("real", BLACK)):
        if name in found["returns"]:
            _band(many, found["returns"][name], color, _PLACES[name])
    starts = "" if "real" in found["returns"] else ", from states of the data"
    many.set_title(f"many steps: the policy's discounted return{starts}", loc="left")
    many.set_xlabel("step")
    many.set_ylabel("discounted return so far")
    promised, true = _promises(rows, found["gamma"]), _series(rows, "discounted_return_mean")
    panels: list[tuple[Axes, tuple[str, ...], str, str]] = [
        (achieved, ("score", "return_mean"), "", "during the game: what the policy achieves")
    ]
    if promised:
        believed.plot(*zip(*promised, strict=True), color=BLUE, linewidth=2, label=_PROMISED)
        counted = _series(rows, "start_value")
        believed.plot(*zip(*counted, strict=True), color=BLUE, linewidth=1, ls=":", label=_COUNTED)
        if true:
            x, y = zip(*true, strict=True)
            believed.plot(x, y, color=BLACK, linewidth=1.4, marker="o", ms=3.5, label=_TRUE)
        believed.set_title("during the game: the value of the start states", loc="left")
        believed.set_xlabel("epoch")
        believed.set_ylabel("discounted return")
        believed.legend(frameon=False, fontsize=9)
    else:  # a run of before it was recorded
        title = "during the game: the value in the adversarial model"
        panels.append((believed, ("mean_q",), "mean Q", title))
    for axes, keys, label, title in panels:
        points: list[tuple[float, float]] = []
        for key in keys:
            points = _series(rows, key)
            if points:
                label = label or {"score": "normalised score", "return_mean": "return"}[key]
                break
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=BLUE, linewidth=2, marker="o" if len(x) < 40 else None, ms=3.5)
        else:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
    if rows:  # side by side, both over the whole game
        for axes in (believed, achieved):
            axes.set_xlim(0, rows[-1]["epoch"] + 1)
    for axes in (many, believed, achieved):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (one, many):
        axes.legend(frameon=False, fontsize=9)
    for axes in (one, many, believed, achieved):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(
        f"{found['dataset']}, lambda = {found['adversarial_weight']:g}, seed {found['seed']}, "
        f"after {found['epoch']} epochs",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def _promises(rows: Sequence[Mapping[str, Any]], gamma: float) -> list[tuple[float, float]]:
    """Epoch and the value of the start, less what SAC adds to every later reward.

    The entropy is the epoch's mean, as if it were the same in every state and for ever: an
    estimate, too large where episodes end early.
    """
    later = gamma / (1 - gamma)
    return [
        (row["epoch"], row["start_value"] - later * row["alpha"] * row["entropy"])
        for row in rows
        if row.get("start_value") is not None
    ]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Epoch and value, where there is one."""
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _band(axes: Axes, curve: Mapping[str, Sequence[float]], color: str, label: str) -> None:
    mean, error = np.array(curve["mean"]), np.array(curve["standard_error"])
    x = np.arange(1, len(mean) + 1)
    axes.fill_between(x, mean - 2 * error, mean + 2 * error, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=color, linewidth=2.2, label=label)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, tell; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of RAMBO")
    parser.add_argument("--out", type=Path, help="where to write, by default the run folder")
    parser.add_argument("--pretrained", type=Path, help="the model before the game")
    parser.add_argument("--horizon", type=int, default=100, help="steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    out: Path = options.out or options.run
    try:
        if options.horizon < 1:
            raise ValueError(f"--horizon must be at least 1, got {options.horizon}")
        game = load_game(options.run, options.pretrained)
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    found = measure(game, options.horizon)
    write_atomically(out / "adversary_effect.json", (json.dumps(found, indent=2) + "\n").encode())
    metrics = game.rambo.run.folder.read_metrics()
    draw(found, [row for row in metrics if (row["epoch"] or 0) <= game.epoch],
         out / "adversary_effect.png")  # fmt: skip
    print("\n".join(verdict(found)))
    print(f"figure: {out / 'adversary_effect.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
