"""A recipe as a program: command line, configuration, data, run folder; then its training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from launcher.command_line import CONFIG_DIR, check_command_line, refuse
from launcher.program import (
    EndingWell,
    announce_compilation,
    cannot_write,
    refusing_bad_input,
)
from launcher.rehearsal import Rehearsing, is_rehearsal, rehearse
from launcher.start import prepare
from launcher.sweep import name_sweep, sweep_job
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.folder import GIVEN_PARTS, RunFolder
from rambo_trl.experiment.pretrained import part_file
from rambo_trl.experiment.results import last_screen
from rambo_trl.experiment.run import Run, RunOptions
from rambo_trl.experiment.signals import Interruption
from rambo_trl.runtime.malloc import keep_freed_memory

Train = Callable[[Run, DictConfig, OfflineDataset], dict[str, Any]]


def make_run(
    cfg: DictConfig, data: OfflineDataset, folder: RunFolder, signals: Interruption
) -> Run:
    """What surrounds a training, as configured."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    options = RunOptions(
        epochs=cfg.epochs,
        seed=cfg.seed,
        device=cfg.device,
        gamma=cfg.agent.get("gamma"),
        schedule_name=cfg.schedule_name,
        evaluation_episodes=cfg.evaluation.episodes,
        evaluation_every=cfg.evaluation.every,
        evaluation_last=cfg.evaluation.last,
        evaluate_beside=cfg.evaluate_beside,
        checkpoint_every=cfg.checkpoint_every,
        checkpoint_minutes=cfg.checkpoint_minutes,
        checkpoints_kept=cfg.checkpoints_kept,
        on_divergence=cfg.on_divergence,
        logger=cfg.logger,
        video=cfg.video,
        settings={str(key): value for key, value in settings.items()},
        config_text=OmegaConf.to_yaml(cfg, resolve=True),
        given={k: part_file(cfg[k], p) for k, p in GIVEN_PARTS.items() if cfg.get(k) is not None},
    )
    return Run(data, folder, signals, options, say=partial(tqdm.write, file=sys.stdout))


def choose_gpu(device: str) -> None:
    """Set the default CUDA device; ``cuda`` without a number is torch's own choice."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)


def launch(
    name: str,
    train: Train,
    *,
    published: Callable[[str], Mapping[str, Any]] | None = None,
    complete: Callable[[DictConfig], DictConfig] | None = None,
) -> None:
    """Run a recipe: check the command line, compose, train, print what came of it.

    Args:
        name: the method's, and of its file in ``config/``.
        train: trains a run and returns its results.

    Keyword Args:
        published: a task's name to the published values of settings that may be null.
        complete: fills in what a new run's configuration has from elsewhere than tasks.
    """
    check_command_line(name)

    def main(cfg: DictConfig) -> None:
        with EndingWell() as ending:
            with refusing_bad_input():
                cfg, data, ending.folder = prepare(cfg, published=published, complete=complete)
            if cfg.threads is not None:  # torch's own choice knows what this process may use
                torch.set_num_threads(cfg.threads)
            torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
            keep_freed_memory()
            choose_gpu(cfg.device)
            announce_compilation()
            rehearsing = Rehearsing(ending.folder.path) if is_rehearsal() else None
            if rehearsing is None and cfg.resume is None:
                rehearse(cfg, HydraConfig.get().overrides.task, len(data))
            seed_everything(cfg.seed)
            run = make_run(cfg, data, ending.folder, ending.signals)
            ending.saved = run.saved_text
            try:
                results = train(run, cfg, data)
            except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
                if run.begun or cannot_write(error):
                    raise
                refuse(error)  # the parts do not fit each other or the run's checkpoint
            finally:  # it would wait for the evaluations beside a run that has failed
                run.abandon()
                if rehearsing is not None:
                    rehearsing.end()
            print(last_screen(results, ending.folder), flush=True)

    job: Callable[[DictConfig], Any] = main
    args = get_args_parser().parse_args()
    if args.multirun and not (args.help or args.cfg):
        name_sweep()
        job = sweep_job(sys.argv[0])
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(job)()
