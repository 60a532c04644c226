"""How often is a report right? ``python benchmarks/tank_verdicts.py FOLDER --out RESULTS``.

Writes the heating tank's log, imports it, trains policies of very different quality from it, judges
them from the log alone and then in the simulator. ``RESULTS`` gets ``truth.csv``, ``truth.png`` and
``table.md``. What the folder holds is not done again, so that a study that was cut short goes on.

The judgement is that of ``recipes/offline_report.py``, in one process: the behaviour's critics are
fitted once, the runs without a model of their own are judged with RAMBO's, and those that were
trained on another reward by the one that counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _recipes  # noqa: F401  # for the launcher
import heating_tank
import launcher.launch  # noqa: F401  # so that every training finds it imported
import minari
import torch
from launcher.inspection import load_saved
from launcher.offline import discount_of, offline_values
from launcher.tank import ACTIONS, OBSERVATIONS, REWARD

from rambo_trl.data import OfflineDataset
from rambo_trl.data.__main__ import main as data_command
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation
from rambo_trl.reporting.offline_values import OFFLINE_VALUES_FILE, verdict

RECIPES = Path(heating_tank.__file__).parent
#: what a policy is trained for; only the first is what counts
REWARDS = {"logs": REWARD, "worst": f"-({REWARD})", "saving": "1 - 0.0003 * power_W"}
SMALL = "compile=false agent.hidden_sizes=[64,64]"
BC = f"{SMALL} agent.actor_lr=3e-3 epochs=2"
FREE = f"{SMALL} agent.actor_lr=2e-3 agent.critic_lr=2e-3 agent.tau=0.02 epochs=2"
RAMBO = (
    f"{SMALL} termination=learned model.hidden_sizes=[64,64,64] model.max_updates=800 "
    "model.holdout_every=400 model.lr=2e-3 cloning.updates=300 cloning.lr=3e-3 rollout_starts=1000 "
    "agent.gamma=0.99 imagined_episodes=0"  # all are judged with one discount factor
)
BARE = (
    "agent.regression_updates=0 agent.critic_warmup=0 agent.layer_norm=false agent.anchor_weight=0 "
    "agent.anchor_final=0 adversarial_weight=0"
)
#: a policy's name, the recipe, what it is trained for, and its settings: good ones, clones, clones
#: of the worst batches, for the wrong reward, and with too few updates or too much freedom
POLICIES = {
    "rambo": (
        "rambo",
        "logs",
        f"{RAMBO} epochs=3 agent_updates=150 model_updates=10 adversarial_weight=0.1 "
        "agent.regression_updates=300 agent.critic_warmup=100 agent.critic_lr=2e-3 "
        "agent.actor_lr=1e-3",
    ),
    "iql": ("iql", "logs", f"{FREE} agent.value_lr=2e-3 agent_updates=300"),
    "bc": ("bc", "logs", f"{BC} agent_updates=200"),
    "bc-best": ("bc", "logs", f"{BC} agent_updates=200 episode_share=0.1"),
    "bc-worst": ("bc", "worst", f"{BC} agent_updates=200 episode_share=0.1"),
    "bc-few": ("bc", "logs", f"{SMALL} agent.actor_lr=1e-3 epochs=1 agent_updates=60"),
    "td3_bc": ("td3_bc", "logs", f"{FREE} agent_updates=250"),
    "td3_bc-saving": ("td3_bc", "saving", f"{FREE} agent_updates=200"),
    "td3_bc-free": ("td3_bc", "logs", f"{FREE} agent_updates=200 agent.bc_alpha=50"),
    "iql-few": ("iql", "logs", f"{FREE} agent.value_lr=2e-3 epochs=1 agent_updates=60"),
    "rambo-bare": (
        "rambo",
        "logs",
        f"{RAMBO} {BARE} epochs=2 agent_updates=200 agent.actor_lr=1e-3",
    ),
}


def import_log(csv: Path, name: str, reward: str) -> None:
    """Import the log for a reward, unless there is such a set."""
    if name in minari.list_local_datasets():
        return
    words = [str(csv), "--out", name, "--episode", "batch", "--time", "timestamp"]
    words += ["--max-gap", "30", "--fill", "1", "--terminal", "trip", f"--reward={reward}"]
    words += ["--observation", *OBSERVATIONS, "--action", *ACTIONS]
    if data_command(words):
        raise RuntimeError(f"{csv} was not imported as {name}")


def run_recipe(words: Sequence[str]) -> None:
    """Run a recipe with its command line in this process."""
    sys.argv = [str(RECIPES / f"{words[0]}.py"), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def train(recipe: str, *words: str) -> None:
    """Run a recipe in a process of its own, which finds everything imported."""
    process = multiprocessing.get_context("fork").Process(
        target=run_recipe, args=([recipe, *words],)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{recipe} {' '.join(words)} ended with exit code {process.exitcode}")


def judge(runs: Sequence[Path], data: OfflineDataset, fit: dict[str, Any]) -> None:
    """Judge runs from the log alone; the first lends its model to those without."""
    first, evaluation = load_saved(runs[0]), None
    for path in runs:
        if (path / OFFLINE_VALUES_FILE).is_file():
            continue
        run = load_saved(path)
        if not torch.allclose(run.data.observation_mean, data.observation_mean):
            raise ValueError(f"{path} was trained on other observations than {data.name}'s")
        evaluation = evaluation or OfflineEvaluation(data, gamma=discount_of(first.cfg), fit=fit)
        run = replace(run, data=data, model=run.model or first.model)
        values = offline_values(path, run=run, evaluation=evaluation)
        print(f"{path.name}: {verdict(values).sentence}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Log, import, train, judge, play; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the log and the runs")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULTS")
    parser.add_argument("--seed", type=int, default=0, help="of the log (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(POLICIES), metavar="POLICY")
    parser.add_argument("--updates", type=int, default=1500, help="of fitted Q evaluation")
    parser.add_argument("--width", type=int, default=64, help="of its critics")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    csv = options.folder / f"tank-{options.seed}.csv"
    if not csv.is_file():
        heating_tank.main(["log", str(csv), "--seed", str(options.seed)])
    sets = {kind: f"tank/{kind}-v{options.seed}" for kind in REWARDS}
    for kind, name in sets.items():
        import_log(csv, name, REWARDS[kind])
    for policy in options.only:
        recipe, kind, settings = POLICIES[policy]
        if not (options.folder / policy / "policy.safetensors").is_file():
            run_dir = f"run_dir={options.folder / policy}"
            train(recipe, f"dataset={sets[kind]}", run_dir, *settings.split())
    runs = [options.folder / policy for policy in options.only]
    data = OfflineDataset.load(sets["logs"])
    judge(runs, data, {"updates": options.updates, "hidden_sizes": [options.width] * 2})
    played = [str(run) for run in runs]
    return heating_tank.main(["evaluate", *played, "--out", str(options.out)])


if __name__ == "__main__":
    sys.exit(main())
