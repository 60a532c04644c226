"""Sweeps: each job of ``-m`` in a process of its own, resumed where it was killed.

A job that fails takes no other with it, whichever Hydra launcher runs it. Give the sweep's folder
again (``hydra.sweep.dir=FOLDER``) and finished jobs are passed over, the others are resumed. A
search (``hydra/sweeper=optuna_offline``) is told of each job what the offline choice goes by.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from launcher.command_line import OFFLINE_SEARCHES, keys_set, name_of_data, setting
from launcher.settings import (
    PLACES,
    RESUME_MAY_CHANGE,
    leaf_keys,
    settle_budgets,
    with_later_settings,
)
from omegaconf import DictConfig, OmegaConf

from rambo_trl.experiment.folder import new_folder

BAD_INPUT = 2  # the exit code that no second try changes
SECONDS_TO_END = 8  # more than a run takes at most from a signal to its end
_PR_SET_PDEATHSIG = 1


def name_sweep() -> None:
    """Give a sweep without ``hydra.sweep.dir=`` a folder that no other one has."""
    if not any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in sys.argv[1:]):
        folder = new_folder(Path("runs/sweeps") / time.strftime("%Y%m%d-%H%M%S"))
        sys.argv.append(f"hydra.sweep.dir={folder}")


def sweep_job(script: str) -> Callable[[DictConfig], float | None]:
    """What Hydra runs as a job of a recipe's script, here or on another machine."""
    recipe, folder, cwd = str(Path(script).resolve()), str(Path(__file__).parents[1]), os.getcwd()

    # Workers are sent this function by value: all that it needs is named in it.
    def job(cfg: DictConfig) -> float | None:
        import sys

        if folder not in sys.path:
            sys.path.insert(0, folder)
        from launcher.sweep import run_job

        return run_job(cfg, recipe, cwd)

    return job


def run_job(cfg: DictConfig, recipe: str, cwd: str) -> float | None:
    """Run one job of a sweep, begun in ``cwd``, to its end, again if it is killed.

    Returns:
        What a search is told: how far the mean Q strays at the end of training, see
        :func:`select_run.unsteadiness`. To other sweepers, the run's score, or its mean return
        where its data have no reference scores; one that diverged has the score 0, and where
        there are no scores minus infinity.

    Raises:
        RuntimeError: if the job failed ``1 + retries`` times, its settings are refused, or its
            folder holds a run that has ended with other settings.
    """
    hydra = HydraConfig.get()
    job, choices = f"job {hydra.job.num}", hydra.runtime.choices
    data = name_of_data(cfg, choices["task"], hydra.overrides.task, cwd)
    name = f"{hydra.job.num:03d}-{cfg.method}-{data}-seed{cfg.seed}"
    path = Path(cwd, os.path.expanduser(cfg.run_dir or Path(hydra.sweep.dir) / name))
    # one job after the other speaks for itself; jobs side by side write a file each
    log = path.with_name(f"{path.name}.log") if choices["hydra/launcher"] != "basic" else None
    settings = [word for word in hydra.overrides.task if not word.startswith("run_dir=")]
    ended = path / "results.json"
    if ended.is_file():
        _check_settings(cfg, path, settings)
    cause = ""
    for attempts_left in reversed(range(1 + cfg.retries)):
        if ended.is_file():
            break
        begun = (path / "config.yaml").is_file()
        where = setting("resume" if begun else "run_dir", path)
        print(f"{job}: {where}{f', log: {log}' if log else ''}", flush=True)
        code = _run([sys.executable, recipe, *settings, *shlex.split(where)], cwd, log)
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == BAD_INPUT:
            break
        if code:
            print(f"{job} ended with {cause}{', once more' if attempts_left else ''}", flush=True)
    if not ended.is_file():
        raise RuntimeError(
            f"{job} ({' '.join(settings)}) failed with {cause}: see {log or 'above'}; the other "
            "jobs are not touched by it"
        )
    results = json.loads(ended.read_text(encoding="utf-8"))
    if results.get("diverged"):
        epoch, reason = (results["divergence"][key] for key in ("epoch", "reason"))
        print(f"{job} DIVERGED in epoch {epoch}: {reason}; see {path}", flush=True)
    if choices.get("hydra/sweeper") in OFFLINE_SEARCHES:
        from rambo_trl.reporting.selection import unsteadiness

        return unsteadiness(path)
    if results.get("diverged") and results["behaviour_score"] is None:
        return -math.inf
    return results["return_mean"] if results["score"] is None else results["score"]


def _check_settings(cfg: DictConfig, path: Path, words: Sequence[str]) -> None:
    """Refuse to take a finished run for one with other settings."""
    saved = OmegaConf.load(path / "config.yaml")
    assert isinstance(saved, DictConfig)
    saved, cfg, given_keys = with_later_settings(saved, leaf_keys(cfg)), cfg.copy(), keys_set(words)
    settle_budgets(cfg, given_keys)
    free = {"resume", "run_dir", *RESUME_MAY_CHANGE} - {"epochs", *PLACES}
    for key in leaf_keys(saved):  # which has none of other methods'
        if key in free or key not in leaf_keys(cfg):
            continue
        kept, given = OmegaConf.select(saved, key), OmegaConf.select(cfg, key)
        # a null that was not asked for may stand for a published value, which the run's file has
        if kept != given and (given is not None or key in given_keys):
            raise RuntimeError(
                f"{path} holds a run with {key}={kept}, not {given}: give this sweep another "
                "hydra.sweep.dir"
            )


def _run(command: Sequence[str], cwd: str, log: Path | None) -> int:
    """The exit code of a program that ends when this process does."""
    die_with_parent = None  # else a killed worker's job would keep its folder locked
    if sys.platform == "linux":
        die_with_parent = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.ExitStack() as stack:
        file = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file and subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        if threading.current_thread() is threading.main_thread():
            earlier = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            stack.callback(signal.signal, signal.SIGTERM, earlier)
        try:
            return process.wait()
        except BaseException as error:
            # it writes its checkpoint before it goes; a terminal and a scheduler have told it, and
            # a second signal would end it at once
            try:
                process.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(128 + signal.SIGINT) from None
            raise
