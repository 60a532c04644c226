"""Train a behaviour policy online with TorchRL's SAC and keep snapshots along the way.

``python recipes/behaviour.py env=Hopper-v5`` writes every evaluated snapshot to the run
folder, and at the end one bundle, ``<env>.safetensors``: snapshots spread over the whole
training, among them the medium and the expert policy. With ``bundle_until=medium`` the bundle is
``<env>-to-medium.safetensors``, and its last snapshot is the medium policy.
``recipes/build_dataset.py`` rolls bundles out into Minari data sets.
"""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path
from typing import Annotated, Literal

import hydra
import launcher.starting  # noqa: F401
import torch
from gymnasium.spaces import Box
from launcher.command_line import check_command_line
from launcher.program import announce_compilation
from launcher.schema import AgentWithCritics, Positive, Seed, Sizes, Text, Whole
from launcher.settings import check_config
from omegaconf import DictConfig
from pydantic import Field
from safetensors.torch import load_file, save_file
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import DoubleToFloat, GymEnv, TransformedEnv
from torchrl.objectives import SACLoss

from rambo_trl.data import make_environment
from rambo_trl.data.playing import try_environment
from rambo_trl.experiment.evaluation import evaluate_policy
from rambo_trl.modules.actor_critic import make_actor, make_qvalue
from rambo_trl.runtime.malloc import keep_freed_memory
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import Bar
from rambo_trl.training.phases import AgentPhase

#: snapshots are evaluated on episodes seeded from here: neither data nor evaluations have these
SNAPSHOT_SEED = 800_000
#: the evaluations of a training, in its run folder
TABLE = "snapshots.csv"

Until = Literal["expert", "medium"]


def select_snapshots(
    rows: list[dict[str, float]],
    num_snapshots: int,
    medium_range: tuple[float, float],
    until: Until = "expert",
) -> tuple[list[int], int, int | None]:
    """Choose which snapshots to bundle: evenly spaced in steps, with medium and expert.

    Args:
        rows: ``step``, ``return_mean`` and ``return_std`` of every snapshot, by step.
        num_snapshots: how many to keep.
        medium_range: the medium snapshot's mean return lies in this range.
        until: the last snapshot to keep. Up to ``"medium"`` they are what D4RL calls medium-replay,
            and there is no expert.

    Returns:
        The chosen rows' indices, and the indices of the medium and the expert row: expert is
        the best mean return, medium the steadiest within the range.

    Raises:
        ValueError: if no snapshot's return lies in ``medium_range``.
    """
    low, high = medium_range
    candidates = [i for i, row in enumerate(rows) if low <= row["return_mean"] <= high]
    if not candidates:
        raise ValueError(f"no snapshot has a mean return in medium_range={medium_range}")
    medium = min(candidates, key=lambda i: rows[i]["return_std"])
    if until == "medium":
        spread = torch.linspace(0, medium, num_snapshots).round().int().tolist()
        return sorted(set(spread)), medium, None
    expert = max(range(len(rows)), key=lambda i: rows[i]["return_mean"])
    spread = torch.linspace(0, expert, max(num_snapshots - 1, 2)).round().int().tolist()
    chosen = sorted({*spread, medium, expert})
    return chosen, medium, expert


def write_bundle(run_dir: Path, cfg: DictConfig) -> Path:
    """Gather the chosen snapshots of a run folder into one half-precision bundle."""
    with (run_dir / TABLE).open(encoding="utf-8") as f:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    chosen, medium, expert = select_snapshots(
        rows, cfg.num_snapshots, tuple(cfg.medium_range), cfg.bundle_until
    )
    tensors, listed = {}, []
    for n, i in enumerate(chosen):
        state = load_file(run_dir / f"snapshot-{int(rows[i]['step']):07d}.safetensors")
        tensors.update({f"{n:02d}/{key}": value.half() for key, value in state.items()})
        listed.append(rows[i])
    header = {
        "env_id": cfg.env,
        "hidden_sizes": list(cfg.hidden_sizes),
        "seed": cfg.seed,
        "snapshots": listed,
        "medium": chosen.index(medium),
        "expert": None if expert is None else chosen.index(expert),
    }
    name = re.sub("[:/]", "-", cfg.env) + ("-to-medium" if expert is None else "")
    path = run_dir / f"{name}.safetensors"
    save_file(tensors, path, metadata={"behaviour": json.dumps(header)})
    return path


def snapshot_seed(cfg: DictConfig) -> int:
    """The seed of a snapshot's first episode; all snapshots of a training play the same ones."""
    return SNAPSHOT_SEED + cfg.seed * cfg.eval_episodes


class BehaviourSettings(AgentWithCritics):
    """What each setting may be; the agent is SAC, as in the recipes that learn from data."""

    alpha_lr: Positive
    seed: Seed
    compile: bool
    env: Text
    total_steps: Whole
    init_random_steps: Annotated[int, Field(ge=0)]
    updates_per_step: Positive
    eval_every: Whole
    eval_episodes: Whole
    stop_return: float | None
    medium_range: Annotated[list[float], Field(min_length=2, max_length=2)]
    num_snapshots: Annotated[int, Field(ge=3)]
    bundle_until: Until
    critic_hidden_sizes: Sizes | None
    buffer_size: Whole
    threads: Whole
    run_dir: Text


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be trained, before any work starts.

    Raises:
        ValueError: if a setting is out of its range, if the environment is not installed or is not
            one of vectors, or if another training's snapshots would be written over.
    """
    check_config(cfg, BehaviourSettings)
    if cfg.medium_range[0] > cfg.medium_range[1]:
        raise ValueError(f"medium_range must have the lower number first, got {cfg.medium_range}")
    table = expand_home(cfg.run_dir) / TABLE
    if table.exists():
        raise ValueError(f"{table} is there already: choose another run_dir")
    env = make_environment(str(cfg.env))
    try:
        for what in ("observation", "action"):
            space = getattr(env, f"{what}_space")
            if not isinstance(space, Box) or len(space.shape) != 1:
                raise ValueError(
                    f"env={cfg.env}: its {what}s are not vectors of numbers, but {space}"
                )
        try_environment(env)
    finally:
        env.close()


@hydra.main(version_base="1.3", config_path="config", config_name="behaviour")
def main(cfg: DictConfig) -> None:
    """Train, snapshot, bundle."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    keep_freed_memory()
    announce_compilation()
    run_dir = expand_home(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)

    env = TransformedEnv(GymEnv(cfg.env), DoubleToFloat())
    env.set_seed(cfg.seed)
    observation_size = env.observation_spec["observation"].shape[-1]
    action_spec = env.action_spec
    actor = make_actor(observation_size, action_spec, hidden_sizes=cfg.hidden_sizes)
    qvalue = make_qvalue(
        observation_size,
        action_spec.shape[-1],
        hidden_sizes=cfg.critic_hidden_sizes or cfg.hidden_sizes,
    )
    loss = SACLoss(actor, qvalue, loss_function="l2", action_spec=action_spec)
    loss.make_value_estimator(gamma=cfg.gamma)
    agent = AgentPhase(
        loss,
        critic_lr=cfg.critic_lr,
        actor_lr=cfg.actor_lr,
        alpha_lr=cfg.alpha_lr,
        tau=cfg.tau,
        compile=cfg.compile,
    )
    frames_per_batch = 100
    collector = Collector(
        env,
        actor,
        frames_per_batch=frames_per_batch,
        total_frames=cfg.total_steps,
        init_random_frames=cfg.init_random_steps,
        auto_register_policy_transforms=False,
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(cfg.buffer_size), batch_size=cfg.batch_size
    )

    table = (run_dir / TABLE).open("w", newline="", encoding="utf-8")
    writer = csv.DictWriter(table, ["step", "return_mean", "return_std", "length_mean", "seconds"])
    writer.writeheader()
    started = time.perf_counter()

    def snapshot(step: int) -> float:
        result = evaluate_policy(
            actor, cfg.env, num_episodes=cfg.eval_episodes, seed=snapshot_seed(cfg)
        )
        save_file(
            {k: v.contiguous() for k, v in actor.state_dict().items() if k.startswith("module.0.")},
            run_dir / f"snapshot-{step:07d}.safetensors",
        )
        writer.writerow(
            {
                "step": step,
                "return_mean": round(result.return_mean, 2),
                "return_std": round(result.return_std, 2),
                "length_mean": round(float(result.lengths.mean()), 1),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        table.flush()
        return result.return_mean

    with Bar(desc=f"SAC on {cfg.env}", total=cfg.total_steps) as bar:
        snapshot(0)
        alpha = 1.0
        step, next_eval = 0, cfg.eval_every
        for batch in collector:
            buffer.extend(batch.exclude("collector", "loc", "scale").reshape(-1))
            step += batch.numel()
            bar.update(batch.numel())
            if step >= cfg.init_random_steps:
                updates = int(frames_per_batch * cfg.updates_per_step)
                alpha = agent.run(buffer.sample() for _ in range(updates))["alpha"]
                collector.update_policy_weights_()
            if step >= next_eval:
                next_eval += cfg.eval_every
                score = snapshot(step)
                bar.set_postfix(eval_return=f"{score:.0f}", alpha=f"{alpha:.3f}")
                if cfg.stop_return is not None and score >= cfg.stop_return:
                    break
    collector.shutdown()
    table.close()
    print(f"bundle written: {write_bundle(run_dir, cfg)}")


if __name__ == "__main__":
    check_command_line("behaviour", check)
    main()
