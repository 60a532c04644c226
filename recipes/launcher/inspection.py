"""A finished run of RAMBO: its parts, and the world model as it was fitted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import rambo
import torch
from launcher.command_line import compose_jobs
from launcher.data_checks import load_data
from launcher.pretraining import FITTED_MODEL
from launcher.settings import leaf_keys, with_later_settings
from omegaconf import DictConfig, OmegaConf

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import load_checkpoint, stateful
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.pretrained import dataset_digest, load_parts
from rambo_trl.experiment.run import Inspection
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.training.phases import ModelPhase


@dataclass(frozen=True)
class FinishedRun:
    """A run of RAMBO whose training has ended."""

    cfg: DictConfig
    data: OfflineDataset
    adversary: ModelPhase  # as its checkpoint has it
    fitted: EnsembleWorldModel  # before adversarial training
    epoch: int


def load_finished(path: Path, fitted_file: Path | None = None) -> FinishedRun:
    """Read a run folder.

    Args:
        path: the folder.
        fitted_file: holds the model before adversarial training; by default the folder's.

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
            f"there is no {fitted_file}, the model before adversarial training: name one with "
            "--pretrained (the file that pretrained=auto keeps in cache_dir will do)"
        )
    # settings that are newer than the run have what it had of them, or their defaults
    cfg = OmegaConf.create(OmegaConf.to_container(compose_jobs("rambo", [])[0], resolve=True))
    assert isinstance(cfg, DictConfig)
    cfg.merge_with(with_later_settings(saved, leaf_keys(cfg)))
    cfg.device, cfg.compile = "cpu", False
    data = load_data(cfg)
    inspection = Inspection()
    rambo.train(inspection, cfg, data)
    parts = inspection.parts
    last_good = folder.checkpoint_dir / "last_good.pt"
    progress = load_checkpoint(
        last_good if last_good.is_file() else folder.checkpoint_dir / "last.pt",
        stateful(parts),
        restore_random=False,
    )
    digest = dataset_digest(data)
    if progress.get("dataset_digest", digest) != digest:
        raise ValueError(f"data set {data.name} is no longer what this run was trained on")
    if not progress["epoch"]:
        raise ValueError(f"{path} has trained no epoch yet: there is none in its checkpoint")
    fitted = copy.deepcopy(parts["world_model"])
    load_parts(fitted_file, {"world_model": fitted}, data, digest=digest)
    if not torch.equal(fitted.elites, parts["world_model"].elites):  # which training leaves alone
        raise ValueError(f"{fitted_file} is of another fit than this run's: its elites differ")
    return FinishedRun(cfg, data, parts["model"], fitted, progress["epoch"])
