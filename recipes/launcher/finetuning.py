"""What fine-tuning takes from an offline run: its settings, its networks; and what it meets."""

from __future__ import annotations

from typing import Any

import torch
from launcher.command_line import CONFIG_DIR
from launcher.schema import SETTINGS
from launcher.settings import check_config, keys_of, leaf_keys, with_later_settings
from launcher.start import read_config
from launcher.variants import has_value_budget
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase

from rambo_trl.data import OfflineDataset
from rambo_trl.data.environment import time_limit
from rambo_trl.experiment.checkpoint import read_checkpoint, restore_parts
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.run import Run
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss

#: room for a last episode of an environment without a time limit
_LONG_EPISODE = 10_000
#: pretraining's outcome, which the run's results repeat
_MEASURED = ("holdout_mse", "model_passes")
#: what fine-tuning does in one way, whatever the offline run did
_PLAIN = {
    "agent.lr_decay": "none",
    "rollout_direction": "forward",
    "model_term": "likelihood",
    "likelihood_budget": None,
    "value_budget": None,
}


def with_settings_of_run(cfg: DictConfig) -> DictConfig:
    """Fill in what ``config/finetune.yaml`` leaves to the offline run, and all of that as source.

    Raises:
        OSError, ValueError: one line on what is missing in the run, or does not fit.
    """
    if cfg.run is None:
        raise ValueError("give run=, the folder of a finished run of recipes/rambo.py")
    folder = RunFolder.open(cfg.run)
    saved = read_config(folder)
    method = saved.get("method", "rambo")
    if method == "finetune":
        raise ValueError(
            f"{cfg.run} is such a run itself: go on with resume={cfg.run} and more epochs"
        )
    if method != "rambo":
        raise ValueError(
            f"{cfg.run} is a run of method={method}: only a run of recipes/rambo.py has the world "
            "model and critics to go on from"
        )
    if not _checkpoint(folder).is_file():
        raise FileNotFoundError(f"there is no {_checkpoint(folder)}: nothing to go on from")
    source = with_later_settings(saved, keys_of(SETTINGS["rambo"]))
    check_config(source, SETTINGS["rambo"])  # which lacks what came after it
    adapted = [row.get("model_lambda") for row in folder.read_metrics()]
    last_weight = next((x for x in reversed(adapted) if x is not None), None)
    if cfg.agent.anchor_weight is None:  # it goes on where the offline run's ended
        held = source.agent
        cfg.agent.anchor_weight = held.anchor_final if held.anchor_weight else 0.0
        if held.anchor_yields and has_value_budget(source) and last_weight:
            cfg.agent.anchor_weight *= min(1.0, source.adversarial_weight / last_weight)
    if cfg.adversarial_weight is None:  # so does lambda, where a budget adapted it
        cfg.adversarial_weight = last_weight
    own = OmegaConf.load(CONFIG_DIR / "finetune.yaml")
    assert isinstance(own, DictConfig)
    for key in set(leaf_keys(own)).intersection(leaf_keys(source)):
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, OmegaConf.select(source, key))
    cfg.source = OmegaConf.to_container(source, resolve=True)
    return cfg


def run_settings(cfg: DictConfig) -> DictConfig:
    """The offline run's settings, with those of fine-tuning in their place, for its parts."""
    settings = OmegaConf.create(OmegaConf.to_container(cfg.source, resolve=True))
    assert isinstance(settings, DictConfig)
    settings = with_later_settings(settings, keys_of(SETTINGS["rambo"]))
    for key in set(leaf_keys(cfg)).intersection(leaf_keys(settings)):
        OmegaConf.update(settings, key, OmegaConf.select(cfg, key))
    for key, value in _PLAIN.items():
        OmegaConf.update(settings, key, value)
    return settings


def _checkpoint(folder: RunFolder) -> Any:
    """A diverged run's last good checkpoint, or the newest one."""
    last_good = folder.checkpoint_dir / "last_good.pt"
    return last_good if last_good.is_file() else folder.checkpoint_dir / "last.pt"


def load_offline_run(run: Run, cfg: DictConfig, **parts: Any) -> None:
    """Give parts the states that the offline run ended with.

    Args:
        run: the new run, whose progress takes over what pretraining measured.
        cfg: names the offline run.
        **parts: by their names in its checkpoint; those that are None, and an average that it did
            not have, are left alone.

    Raises:
        OSError, ValueError: if the checkpoint cannot be read, or is of other data or networks.
    """
    path = _checkpoint(RunFolder.open(cfg.run))
    state = read_checkpoint(path, device=cfg.device)
    progress, digest = state["progress"], run.progress["dataset_digest"]
    if progress.get("dataset_digest", digest) != digest:
        raise ValueError(f"data set {run.dataset.name} is not what {cfg.run} was trained on")
    if not progress["epoch"]:
        raise ValueError(f"{cfg.run} has trained no epoch yet: there is none in its checkpoint")
    wanted = {name: part for name, part in parts.items() if part is not None}
    if "averaged_actor" not in state["parts"]:
        wanted.pop("averaged_actor", None)
    restore_parts(path, wanted, state["parts"])
    run.progress.update({key: progress[key] for key in _MEASURED if key in progress})


def room_for(cfg: DictConfig, data: OfflineDataset) -> int:
    """How many online rows a run can have, its last episode included."""
    return cfg.epochs * cfg.online_steps + (time_limit(data.environment) or _LONG_EPISODE)


@torch.no_grad()
def online_metrics(
    met: TensorDictBase | None, data: OfflineDataset, world_model: EnsembleWorldModel
) -> dict[str, float | None]:
    """What an epoch's episodes gave, and how well the model knew their rows before it saw them.

    Args:
        met: whole episodes [N], None for none.
        data: says how rewards are scaled.
        world_model: the model.
    """
    if met is None:
        return dict.fromkeys(("online_return", "online_length", "online_model_error"))
    episodes = int(met["next", "done"].sum())
    reward = met["next", "reward"].double() * data.reward_scale - data.reward_shift
    error = EnsembleModelLoss(world_model, members="elites").entry_mse(met).mean()
    return {
        "online_return": float(reward.sum()) / episodes,
        "online_length": len(met) / episodes,
        "online_model_error": float(error),
    }
