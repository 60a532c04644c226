"""Compile what a run will need beside the fit of its model, in a process of its own.

The process is the same recipe with a few updates of each kind; what it compiles lies in the cache
of compiled code when the run gets there.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from launcher.command_line import setting
from launcher.settings import leaf_keys
from omegaconf import DictConfig, OmegaConf

#: in a rehearsal's environment, the process that it is for
_OF_PROCESS = "RAMBO_TRL_REHEARSAL_OF"
#: updates of a fit that takes longer than compiling, and rows that may lie in memory twice
_LONG_FIT, _MOST_ROWS = 5000, 1_000_000
#: what no compiled code depends on is done once or twice, and nothing is kept
_FEW = {
    "epochs": 1,
    "agent_updates": 2,
    "model_updates": 2,
    "model_updates_every": 1,
    "pretrained": "null",
    "model.max_updates": 1,
    "model.holdout_every": 1,
    "model.max_passes": "null",
    "cloning.updates": 2,
    "cloning.passes": "null",
    "agent.regression_updates": 2,
    "evaluation.episodes": 1,
    "evaluation.every": 1,
    "evaluation.last": 1,
    "evaluate_beside": "false",
    "logger": "csv",
    "video": "none",
    "on_divergence": "continue",
}
#: of those, what a run leaves out where it is 0
_OPTIONAL = ("model_updates", "cloning.updates", "agent.regression_updates")

_started: list[subprocess.Popen[bytes]] = []


def rehearse(cfg: DictConfig, words: Sequence[str], num_rows: int) -> None:
    """Start the rehearsal of a new run where there are minutes and a core for it.

    That is on a CPU, of which a core is free, while a model is fitted. It ends by itself, or once
    the run has ended and what it compiles is complete.

    Args:
        cfg: the run's settings.
        words: the command line's overrides.
        num_rows: of the data.
    """
    model = cfg.get("model")
    fitted = model is not None and "max_passes" in model
    if not fitted or is_rehearsal() or not hasattr(os, "sched_getaffinity"):
        return
    passes = model.max_passes
    updates = model.max_updates if passes is None else passes * num_rows // model.batch_size
    cores = len(os.sched_getaffinity(0)) - os.getloadavg()[0]
    worthwhile = (
        cfg.compile
        and torch.device(cfg.device).type == "cpu"
        and torch.get_num_threads() < cores
        and cfg.fitted_model is None
        and (updates or 0) >= _LONG_FIT
        and num_rows <= _MOST_ROWS
    )
    if not worthwhile:
        return
    few = [
        f"{key}={value}"
        for key, value in _FEW.items()
        if key in leaf_keys(cfg) and not (key in _OPTIONAL and not OmegaConf.select(cfg, key))
    ]
    path = Path(tempfile.gettempdir(), f"rambo_trl-rehearsal-{os.getpid()}", "run")
    process = subprocess.Popen(
        [sys.executable, sys.argv[0], *words, *few, *shlex.split(setting("run_dir", path))],
        env={**os.environ, _OF_PROCESS: str(os.getpid()), "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is typed in the terminal is for the run
    )
    _started.append(process)  # Popen warns of one that is forgotten


def is_rehearsal() -> bool:
    """Whether this process is one."""
    return _OF_PROCESS in os.environ


class Rehearsing(logging.Handler):
    """In a rehearsal, end it between two functions to compile once its run has ended.

    To end it within one would leave half a file in the cache.

    Args:
        folder: of the rehearsal; removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        logging.getLogger("rambo_trl.runtime.compiling").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        if os.getppid() != int(os.environ[_OF_PROCESS]):
            self.end()

    def end(self) -> NoReturn:
        """Leave nothing behind."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        os._exit(0)
