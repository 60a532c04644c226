"""The paper's Single Transition Example (sec. 6, Table 3), one row of the table a method.

``python recipes/single_transition.py`` plays Algorithm 1 on a problem small enough to look at as
a whole, with the adversary (RAMBO), with conservative critics instead (COMBO) and with neither,
over several seeds. It prints the table beside the paper's numbers and draws what the model and the
critics believe of every action as training goes on. See ``config/single_transition.yaml``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import hydra
import launcher.starting  # noqa: F401
import torch
from launcher.command_line import check_command_line
from launcher.program import refusing_bad_input
from omegaconf import DictConfig, OmegaConf
from single_transition_figure import draw
from single_transition_training import METHODS, Run, train

from rambo_trl.experiment.folder import RunFolder, new_folder, package_versions
from rambo_trl.runtime.progress import Bar


def train_all(cfg: DictConfig) -> list[Run]:
    """Every method over every seed, in as many processes as asked for."""
    jobs = [(name, seed) for name in cfg.methods for seed in cfg.seeds]
    workers = min(cfg.workers or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(train, name, seed, cfg) for name, seed in jobs]
        with Bar(total=len(jobs), desc="runs") as bar:
            for future in as_completed(futures):
                run = future.result()
                bar.update()
                bar.set_postfix_str(f"{run.method} seed {run.seed}: {run.true_reward:.2f}")
        return [future.result() for future in futures]


def summarise(runs: Sequence[Run]) -> dict[str, dict[str, object]]:
    """Per method the seeds' results, with mean and (sample) standard deviation."""
    summary: dict[str, dict[str, object]] = {}
    for name in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == name]
        rewards = torch.tensor([run.true_reward for run in own])
        paper = METHODS[name].paper
        summary[name] = {
            "true_reward_mean": rewards.mean().item(),
            "true_reward_std": rewards.std().item() if len(own) > 1 else None,
            "paper_mean": paper and paper[0],
            "paper_std": paper and paper[1],
            "runs": [
                {
                    key: getattr(run, key)
                    for key in ("seed", "mode", "true_reward", "predicted_reward", "seconds")
                }
                for run in own
            ],
        }
    return summary


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: true reward of the final policies, beside the paper's."""

    def spread(mean: object, std: object) -> str:
        if mean is None:
            return "-"
        return f"{mean:.2f}" + ("" if std is None else f" +- {std:.2f}")

    lines = [f"{'':<14}{'true reward':>14}{'paper':>14}   the policies' actions"]
    for name, row in summary.items():
        actions = "  ".join(f"{run['mode']:.2f}" for run in row["runs"])
        ours = spread(row["true_reward_mean"], row["true_reward_std"])
        paper = spread(row["paper_mean"], row["paper_std"])
        lines.append(f"{METHODS[name].title:<14}{ours:>14}{paper:>14}   {actions}")
    return "\n".join(lines)


def check(cfg: DictConfig) -> None:
    """Refuse a configuration that cannot run before any work starts."""
    unknown = [name for name in cfg.methods if name not in METHODS]
    if unknown or not cfg.methods:
        raise ValueError(f"methods must be some of {list(METHODS)}, got {list(cfg.methods)}")
    seeds = cfg.seeds if OmegaConf.is_list(cfg.seeds) else []
    if not all(type(seed) is int for seed in seeds) or not 0 < len(seeds) == len(set(seeds)):
        raise ValueError(f"seeds must be different whole numbers, got {cfg.seeds}")


@hydra.main(version_base="1.3", config_path="config", config_name="single_transition")
def main(cfg: DictConfig) -> None:
    """Run, print the table, write the results and the figure."""
    with refusing_bad_input():
        check(cfg)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = cfg.run_dir or new_folder(Path("runs") / f"single-transition-{stamp}")
        folder = RunFolder.create(path)
    print(f"run folder: {folder.path}", flush=True)
    folder.write_config(OmegaConf.to_yaml(cfg))
    runs = train_all(cfg)
    summary = summarise(runs)
    settings = OmegaConf.to_container(cfg.combo)
    folder.write_results({"methods": summary, "combo": settings, "versions": package_versions()})
    draw(runs, folder.path / "single_transition.png")
    print(format_table(summary))
    print(f"run folder: {folder.path}")


if __name__ == "__main__":
    check_command_line("single_transition", check)
    main()
