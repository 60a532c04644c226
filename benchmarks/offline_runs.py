"""Runs to judge offline estimates by: ``python benchmarks/offline_runs.py OUT``.

Cheap trainings on four data sets, whose policies are good and bad: clones of all episodes, of the
best and of few, TD3+BC held to the data and hardly so, IQL, a RAMBO that starts from nothing, and
some that are stopped early. One process, which reads each set once. What is in OUT already stays,
so that a stopped call goes on. About ten minutes of one core, beside the fits of RAMBO's models.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

import _recipes  # noqa: F401  # for the launcher
import torch
from launcher.command_line import compose_jobs
from launcher.data_checks import load_data
from launcher.launch import make_run
from launcher.settings import method_settings
from measuring import writable_folder
from omegaconf import DictConfig, OmegaConf

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interruption

#: tasks of recipes/config/task
TASKS = (
    "hopper-medium-replay", "walker2d-medium-replay", "halfcheetah-medium-replay", "neorl2-dmsd"
)  # fmt: skip
#: run to recipe and settings
RUNS: dict[str, tuple[str, ...]] = {
    "bc": ("bc", "epochs=3"),
    "bc-short": ("bc", "epochs=2", "agent_updates=100"),
    "bc-best": ("bc", "epochs=2", "agent_updates=500", "episode_share=0.1"),
    "bc-few": ("bc", "epochs=2", "agent_updates=500", "episode_share=0.02"),
    "td3_bc-short": ("td3_bc", "epochs=2", "agent_updates=200"),
    "td3_bc": ("td3_bc", "epochs=2", "agent_updates=600"),
    "iql": ("iql", "epochs=2", "agent_updates=400"),
    "td3_bc-loose": ("td3_bc", "epochs=2", "agent_updates=600", "agent.bc_alpha=40"),
    "rambo-alone": (
        "rambo", "epochs=2", "agent_updates=300", "clone_behaviour=false", "agent.anchor_weight=0",
        "agent.critic_warmup=0", "agent.alpha_init=0.2", "adversarial_weight=0",
        "model.max_updates=9600",
    ),
}  # fmt: skip
#: of all; a compilation takes longer than these trainings gain by it
COMMON = ("seed=0", "compile=false", "evaluation.episodes=2", "evaluation.every=1000",
          "evaluation.last=1", "checkpoint_every=1000")  # fmt: skip


def configured(task: str, name: str, folder: Path, fitted: str | None) -> DictConfig:
    """A run's configuration, as its recipe's command line would make it.

    Args:
        task: one of :data:`TASKS`.
        name: one of :data:`RUNS`.
        folder: the run's.
        fitted: a run whose fitted model RAMBO takes; None: it fits one.
    """
    recipe, *settings = RUNS[name]
    if recipe == "rambo" and fitted:
        settings.append(f"fitted_model={fitted}")
    words = (f"task={task}", f"run_dir={folder}", *COMMON, *settings)
    (cfg,) = compose_jobs(recipe, words)
    published = getattr(importlib.import_module(recipe), "published", None)
    for key, value in (published(task) if published else {}).items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
    return method_settings(cfg)


def train(cfg: DictConfig, data: OfflineDataset) -> None:
    """Train one run in a folder of its own, which a stopped run before may have left."""
    path = Path(cfg.run_dir)
    shutil.rmtree(path, ignore_errors=True)
    folder = RunFolder.create(path)
    folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    seed_everything(cfg.seed)
    with Interruption() as signals:
        run = make_run(cfg, data, folder, signals)
        importlib.import_module(cfg.method).train(run, cfg, data)


def main() -> None:
    """Train what is missing, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=writable_folder, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=tuple(RUNS))
    parser.add_argument(
        "--fitted",
        nargs="+",
        default=[],
        metavar="TASK=RUN",
        help="runs whose fitted model to take, in place of fitting one",
    )
    args = parser.parse_args()
    fitted = dict(item.split("=", 1) for item in args.fitted)
    torch.set_num_threads(1)
    for task in args.tasks:
        data = None
        for name in args.runs:
            folder = args.out / task / name
            if (folder / "results.json").exists():
                continue
            cfg = configured(task, name, folder, fitted.get(task))
            data = data or load_data(cfg)
            print(f"{task}: {name}", flush=True)
            train(cfg, data)


if __name__ == "__main__":
    main()
