"""A run that has ended: its settings, data, policy, model and other parts, read from its folder."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from launcher.command_line import compose_jobs
from launcher.data_checks import load_data
from launcher.parts import Actor, make_policy
from launcher.pretraining import FITTED_MODEL
from launcher.schema import SETTINGS
from launcher.settings import leaf_keys, method_settings, with_later_settings
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.checkpoint import load_checkpoint, seed_everything, stateful
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.policy import load_into_actor, policy_path
from rambo_trl.experiment.pretrained import dataset_digest, load_parts
from rambo_trl.experiment.run import Inspection
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.training.phases import ModelPhase

#: settings that make the data of a run
_DATA = ("dataset", "env_id", "reward_shift", "reward_scale")


@dataclass(frozen=True)
class FinishedRun:
    """A run of RAMBO whose training has ended."""

    cfg: DictConfig
    data: OfflineDataset
    adversary: ModelPhase  # as its checkpoint has it
    fitted: EnsembleWorldModel  # before adversarial training
    epoch: int


@dataclass(frozen=True)
class SavedModel:
    """The world model of a run that has ended.

    Attributes:
        env: the model as training left it, with its termination rule.
        fitted: as it was fitted; None where the folder has no file of it.
        holdout_mse: every member's error on held-out rows after the fit, if it is recorded.
        random_state: torch's before pretraining, from which the held-out rows were drawn.
    """

    env: EnsembleModelEnv
    fitted: EnsembleWorldModel | None
    holdout_mse: Sequence[float] | None
    random_state: Tensor


@dataclass(frozen=True)
class SavedRun:
    """A run of any method whose training has ended, with the policy that it saved.

    Attributes:
        cfg: its settings, on the CPU and uncompiled.
        data: what it was trained on.
        actor: the policy of ``policy.safetensors``, from normalised observations to actions in
            [-1, 1].
        model: its world model; None for a method without.
    """

    cfg: DictConfig
    data: OfflineDataset
    actor: Actor
    model: SavedModel | None


def load_finished(path: Path, fitted_file: Path | None = None) -> FinishedRun:
    """Read the folder of a run of RAMBO.

    Args:
        path: the folder.
        fitted_file: holds the model before adversarial training; by default the folder's.

    Raises:
        OSError, ValueError: one line on what is missing or does not fit.
    """
    saved = _read_settings(path)
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
    cfg = _settings_of(saved, method)
    data = load_data(cfg)
    inspection, digest = _inspect(path, cfg, data), dataset_digest(data)
    parts = inspection.parts
    if not inspection.progress["epoch"]:
        raise ValueError(f"{path} has trained no epoch yet: there is none in its checkpoint")
    fitted = copy.deepcopy(parts["world_model"])
    load_parts(fitted_file, {"world_model": fitted}, data, digest=digest)
    if not torch.equal(fitted.elites, parts["world_model"].elites):  # which training leaves alone
        raise ValueError(f"{fitted_file} is of another fit than this run's: its elites differ")
    return FinishedRun(cfg, data, parts["model"], fitted, inspection.progress["epoch"])


def load_saved(path: Path, other: SavedRun | None = None) -> SavedRun:
    """Read the folder of a run of any method that has saved its policy.

    Args:
        path: the folder.
        other: a run whose data are taken where they are the same, in place of reading them again.

    Raises:
        OSError, ValueError: one line on what is missing or does not fit.
    """
    saved = _read_settings(path)
    if not policy_path(path).is_file():
        raise FileNotFoundError(
            f"{path} has no {policy_path(path).name}: the run has not ended; resume it with "
            f"resume={path}"
        )
    method = saved.get("method", "rambo")
    if method not in SETTINGS:
        raise ValueError(f"{path} is a run of method={method}, which is none of {list(SETTINGS)}")
    cfg = _settings_of(saved, method)
    same = other is not None and all(cfg[key] == other.cfg[key] for key in _DATA)
    data = other.data if other is not None and same else load_data(cfg)
    actor = make_policy(cfg, data)
    load_into_actor(path, actor, data)
    model = None
    if "termination" in cfg:  # as all methods with a model have, and no other
        inspection = _inspect(path, cfg, data)
        env, file = inspection.model_env, path / FITTED_MODEL
        assert env is not None
        fitted = None
        if file.is_file():
            fitted = copy.deepcopy(inspection.parts["world_model"])
            load_parts(file, {"world_model": fitted}, data, digest=dataset_digest(data))
        mse = inspection.progress.get("holdout_mse")
        model = SavedModel(env, fitted, mse, inspection.random_state)
    return SavedRun(cfg, data, actor, model)


def _read_settings(path: Path) -> DictConfig:
    RunFolder.open(path)
    saved = OmegaConf.load(path / "config.yaml")
    assert isinstance(saved, DictConfig)
    return saved


def _settings_of(saved: DictConfig, method: str) -> DictConfig:
    """A run's settings; those that are newer have what it had of them, or their defaults."""
    cfg = OmegaConf.create(OmegaConf.to_container(compose_jobs(method, [])[0], resolve=True))
    assert isinstance(cfg, DictConfig)
    cfg.merge_with(with_later_settings(saved, leaf_keys(cfg)))
    cfg = method_settings(cfg)
    cfg.device, cfg.compile = "cpu", False
    return cfg


def _inspect(path: Path, cfg: DictConfig, data: OfflineDataset) -> Inspection:
    """The run's parts as its checkpoint has them, a diverged one's as they last were good."""
    inspection, folder = Inspection(), RunFolder(path)
    seed_everything(cfg.seed)
    importlib.import_module(cfg.method).train(inspection, cfg, data)
    last_good = folder.checkpoint_dir / "last_good.pt"
    inspection.progress = load_checkpoint(
        last_good if last_good.is_file() else folder.checkpoint_dir / "last.pt",
        stateful(inspection.parts),
        restore_random=False,
    )
    digest = dataset_digest(data)
    if inspection.progress.get("dataset_digest", digest) != digest:
        raise ValueError(f"data set {data.name} is no longer what this run was trained on")
    return inspection
