"""How a run begins: its folder, its data, what it is resumed from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from launcher.command_line import keys_set, name_of_data
from launcher.data_checks import check_before_data, check_data, check_task, load_data
from launcher.settings import (
    PLACES,
    RESUME_MAY_CHANGE,
    check_config,
    leaf_keys,
    method_settings,
    settle_budgets,
    with_later_settings,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import make_deterministic
from rambo_trl.experiment.folder import GIVEN_PARTS, RunFolder, new_folder
from rambo_trl.experiment.loggers import check_tracker
from rambo_trl.experiment.pretrained import part_file
from rambo_trl.experiment.video import check_video
from rambo_trl.runtime.places import expand_home


def choose_run_dir(cfg: DictConfig, task: str | None, words: Sequence[str] = ()) -> Path:
    """The run's folder: ``run_dir`` where it is set, else one under ``runs/``, not made here."""
    if cfg.run_dir is not None:
        return expand_home(cfg.run_dir)
    task = name_of_data(cfg, task, words)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    method = "" if cfg.method == "rambo" else f"{cfg.method}-"
    return Path("runs") / f"{method}{task}-{cfg.schedule_name}-seed{cfg.seed}-{stamp}"


def check_writable(path: Path) -> None:
    """Refuse a run folder that could not be made or written to, naming what is in the way."""
    parents = (path.absolute(), *path.absolute().parents)
    existing = next(p for p in parents if p.exists() or p.is_symlink())
    if not existing.is_dir():
        raise NotADirectoryError(f"run folder {path} cannot be made: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"run folder {path} cannot be made: {existing} is not writable")


def read_config(folder: RunFolder) -> DictConfig:
    """A run's own configuration; plain values only, no object is made of it.

    Raises:
        ValueError: if it cannot be read.
    """
    path = folder.path / "config.yaml"
    try:
        saved = OmegaConf.load(path)
        OmegaConf.to_container(saved, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable configuration: {error}") from error
    if not isinstance(saved, DictConfig) or not saved:
        raise ValueError(f"{path} is not a readable configuration: it holds no settings")
    return saved


def resumed_config(cfg: DictConfig, saved: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run to be resumed: its own, but for what the command line may change.

    Raises:
        ValueError: if one of them differs from the run's own and may not.
    """
    words = keys_set(overrides)
    merged = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(merged, DictConfig)
    merged.merge_with(with_later_settings(saved, leaf_keys(cfg)))
    method = saved.get("method", "rambo")  # runs older than the other methods do not name it
    if method != cfg.method:
        raise ValueError(
            f"{cfg.resume} is a run of method={method}, not {cfg.method}: resume it with "
            f"recipes/{method}.py"
        )
    # a task is known by its data, a schedule by its name
    known_by = {"dataset": "task", "schedule_name": "schedule"}
    for key in leaf_keys(cfg):
        if key not in words and known_by.get(key) not in words:
            continue
        given, kept = OmegaConf.select(cfg, key), OmegaConf.select(merged, key)
        # of a place, what lies there stays: a task's data are others, and none is not another one
        moved = key in words and None not in (given, kept)
        if key in RESUME_MAY_CHANGE and (key not in PLACES or moved):
            OmegaConf.update(merged, key, given)
        elif given != kept and key not in ("resume", "run_dir"):
            raise ValueError(
                f"a resumed run keeps its {key}={kept}, got {given}: leave it out, or start a "
                "new run"
            )
    return merged


def check_progress(cfg: DictConfig, folder: RunFolder, overrides: Sequence[str]) -> None:
    """Stop where a resumed run has nothing left to do, unless something else is asked for.

    Raises:
        ValueError: if it has done more epochs than it is now to have.
        SystemExit: with code 0 where it has ended, which is said.
    """
    done = max((int(row["epoch"] or 0) for row in folder.read_metrics()), default=0)
    if cfg.epochs < done:
        raise ValueError(
            f"epochs={cfg.epochs}, but the run has done {done}: give no fewer, or leave it out"
        )
    if not (folder.path / "results.json").is_file():
        return
    results = folder.read_results()
    if results.get("diverged"):
        how = f"it diverged in epoch {results['divergence']['epoch']}"
    elif results.get("epochs", 0) >= cfg.epochs:
        how = f"all its {done} epochs are done; epochs= with more of them resumes it"
    else:
        return
    print(f"the run is finished: {how}; its results are in {folder.path}", flush=True)
    if not set(keys_set(overrides)) - {"resume", "run_dir"}:
        raise SystemExit(0)


def check_places(cfg: DictConfig, path: Path) -> None:
    """Refuse a new run's folder that cannot be made, and files that are not there."""
    check_writable(path if cfg.run_dir is not None else path.parent)
    if cfg.run_dir is not None and path.exists():
        RunFolder.create(path)  # refuses a folder that holds a run
    for key in ("pretrained", *GIVEN_PARTS):
        value = cfg.get(key)
        if value in (None, "auto"):
            continue
        file = part_file(value, GIVEN_PARTS[key]) if key in GIVEN_PARTS else expand_home(value)
        if not file.is_file():
            what = f"no {file.name} in it" if expand_home(value).is_dir() else "no such file"
            raise FileNotFoundError(f"{key}={value}: there is {what}")


def prepare(
    cfg: DictConfig,
    *,
    published: Callable[[str], Mapping[str, Any]] | None = None,
    complete: Callable[[DictConfig], DictConfig] | None = None,
) -> tuple[DictConfig, OfflineDataset, RunFolder]:
    """Check the configuration, load the data, open or make the run folder and lock it.

    Args:
        cfg: composed by Hydra from the command line.
        published: a task's name to the values of settings that are null.
        complete: fills in what a new run's configuration has from elsewhere than tasks.

    Returns:
        The run's configuration (a resumed run's own, of its method's settings), data and folder.

    Raises:
        ValueError, KeyError, TypeError, OSError: one line on what to change. Nothing is written
            before everything has been checked.
    """
    hydra = HydraConfig.get()
    words = hydra.overrides.task
    keys = keys_set(words)
    cfg = method_settings(cfg)
    folder: RunFolder | None = None
    task: str | None = hydra.runtime.choices.get("task")  # finetune.py has none
    if cfg.resume is not None:
        folder = RunFolder.open(cfg.resume)
        folder.lock()
        cfg = resumed_config(cfg, read_config(folder), words)
    else:
        if complete is not None:
            cfg = complete(cfg)
        values = published(task) if published and task is not None else {}
        filled_in = {k: v for k, v in values.items() if OmegaConf.select(cfg, k) is None}
        for key, value in filled_in.items():
            OmegaConf.update(cfg, key, value)
        settle_budgets(cfg, keys)
    check_config(cfg)
    check_tracker(cfg.logger)
    check_video(cfg.video)
    if folder is not None:
        check_progress(cfg, folder, words)
    else:
        path = choose_run_dir(cfg, task, words)
        check_places(cfg, path)
    if cfg.deterministic:
        make_deterministic()
    check_before_data(cfg, task=task if folder is None and "task" in keys else None)
    dataset = load_data(cfg)
    if folder is None and task is not None:
        schedule = hydra.runtime.choices.get("schedule", cfg.schedule_name)
        check_task(cfg, dataset, task, words, schedule=schedule, filled_in=filled_in)
    check_data(cfg, dataset)
    if folder is None:
        folder = RunFolder.create(path if cfg.run_dir is not None else new_folder(path))
        folder.lock()
        folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    print(f"run folder: {folder.path}", flush=True)
    return cfg, dataset, folder
