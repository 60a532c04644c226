"""Build bundled data sets ahead of their first use.

``python recipes/build_dataset.py name=bundled/hopper/medium-replay-v1`` builds one, ``all=true``
all of them. A set that Minari's root holds already is only reported.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import hydra
import launcher.starting  # noqa: F401
import torch
from launcher.command_line import check_command_line
from launcher.schema import Settings, Text, Whole
from launcher.settings import check_config
from omegaconf import DictConfig

from rambo_trl.data import OfflineDataset, bundled_names
from rambo_trl.data.bundled import build_bundled, bundled_path
from rambo_trl.runtime.places import expand_home


class BuildSettings(Settings):
    """What each setting may be."""

    name: Text
    all: bool
    overwrite: bool
    policies_dir: Text | None
    threads: Whole


HEADER = ("name", "episodes", "steps", "mean return", "best", "score", "seconds")
ROW = "{:<42} {:>8} {:>8} {:>11} {:>8} {:>6} {:>7}"


def build(name: str, cfg: DictConfig) -> tuple[str, ...]:
    """Build one data set where it is missing, load it and return its row of the table."""
    started = time.perf_counter()
    if cfg.overwrite or name not in bundled_names() or not bundled_path(name).exists():
        build_bundled(
            name,
            policies_dir=None if cfg.policies_dir is None else expand_home(cfg.policies_dir),
            overwrite=cfg.overwrite,
        )
    data = OfflineDataset.load(name)
    returns = data.behaviour_return_mean, data.behaviour_return_best
    return (
        name,
        str(data.num_episodes),
        str(len(data)),
        *("-" if x is None else f"{x:.1f}" for x in (*returns, data.behaviour_score)),
        f"{time.perf_counter() - started:.1f}",
    )


@hydra.main(version_base="1.3", config_path="config", config_name="build_dataset")
def main(cfg: DictConfig) -> None:
    """Build what is asked for and print a table."""
    torch.set_num_threads(cfg.threads)
    rows, failed = [], []
    for name in bundled_names() if cfg.all else [cfg.name]:
        try:
            rows.append(build(name, cfg))
        except (ValueError, OSError) as error:
            failed.append(str(error))
    if rows:
        print(ROW.format(*HEADER))
        for row in rows:
            print(ROW.format(*row))
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    check_command_line("build_dataset", check=partial(check_config, model=BuildSettings))
    main()
