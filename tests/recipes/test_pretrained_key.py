"""Which runs share a fitted model and a cloned policy: what the cache's key is made of."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import compose_jobs
from omegaconf import DictConfig, OmegaConf
from run_start import PRETRAINING, find_pretrained
from tensordict import TensorDict
from torchrl.data import Bounded
from training_run import Run

from rambo_trl.data import OfflineDataset
from rambo_trl.training.checkpoint import seed_everything
from rambo_trl.training.interruption import Interruption
from rambo_trl.training.pretrained import dataset_digest
from rambo_trl.training.run_folder import RunFolder

#: a task whose behaviour is cloned
BASE = ("schedule=smoke", "task=hopper-medium-replay", "pretrained=auto")
CLASSES = {"rambo": "Rambo", "mopo": "MOPO", "morel": "MOReL", "combo": "COMBO"}


@cache
def shipped(name: str) -> DictConfig:
    (cfg,) = compose_jobs(name, BASE, check=lambda cfg: None)
    published = getattr(importlib.import_module(name), "published", lambda task: {})
    for key, value in published("").items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
    return cfg


def compose(name: str, *words: str) -> DictConfig:
    cfg = shipped(name).copy()
    for word in words:
        key, value = word.split("=")
        # settings that there are, and other values
        OmegaConf.update(cfg, key, OmegaConf.from_dotlist([f"x={value}"]).x, force_add=False)
    return cfg


def key_of(cfg: DictConfig, digest: str = "data") -> str:
    return find_pretrained(cfg, {"dataset_digest": digest}, net=torch.nn.Identity()).key


#: of the game and of what comes after pretraining
SHARED = [
    "adversarial_weight=0", "adversarial_weight=0.01", "model.adversarial_lr=1", "epochs=7",
    "model_updates=3", "agent_updates=3", "rollout_length=9", "rollout_starts=7",
    "retained_epochs=2", "agent.critic_lr=1", "agent.actor_lr=1", "agent.gamma=0.5",
    "agent.real_fraction=0.1", "advantage_clip=2", "model_term=kl", "likelihood_budget=1",
    "on_divergence=continue", "checkpoint_every=9", "run_dir=elsewhere", "evaluation.every=9",
]  # fmt: skip
#: what decides the fit, the clone or what is measured of it
OWN = [
    "seed=1", "model.lr=1", "model.num_members=9", "model.num_elites=1", "model.batch_size=17",
    "model.hidden_sizes=[7]", "model.patience=9", "model.min_improvement=0.5", "model.max_passes=9",
    "cloning.passes=9", "cloning.lr=1", "cloning.batch_size=17", "clone_behaviour=false",
    "agent.hidden_sizes=[7]", "evaluation.episodes=9", "num_critics=3", "compile=true",
    "deterministic=true",
]  # fmt: skip


@pytest.mark.parametrize("word", SHARED)
def test_runs_that_differ_in_the_game_only_share_a_file(word: str) -> None:
    cfg = compose("rambo", word)
    assert cfg != compose("rambo") and key_of(cfg) == key_of(compose("rambo"))


@pytest.mark.parametrize("word", OWN)
def test_runs_that_pretrain_otherwise_have_files_of_their_own(word: str) -> None:
    assert compose("rambo").clone_behaviour is True
    assert key_of(compose("rambo", word)) != key_of(compose("rambo"))


def test_every_setting_of_the_fit_and_the_clone_is_tried() -> None:
    tried = {word.split("=")[0] for word in OWN}
    cfg = compose("rambo")
    settings = {f"{group}.{key}" for group in ("model", "cloning") for key in cfg[group]}
    assert settings - tried == {"model.adversarial_lr"}


def test_the_data_and_the_threads_have_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("rambo")
    assert key_of(cfg, "data") == key_of(cfg, "data") != key_of(cfg, "other data")
    here = key_of(cfg)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert key_of(cfg) != here


# --- the key is right about it: runs that share one begin pretraining in the same state, and one
# that loads the file goes on as one that has pretrained


def data(shift: float = 0.0) -> OfflineDataset:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(300, 2, generator=generator)
    action = 2 * torch.rand(300, 1, generator=generator) - 1
    following = TensorDict(
        observation=observation + 0.1 * action,
        reward=action + shift,
        terminated=(observation[:, :1] > 1),
        batch_size=[300],
    )
    rows = TensorDict(observation=observation, action=action, next=following, batch_size=[300])
    return OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))


def begun(folder: Path, name: str, *words: str) -> Any:
    """A method right before its pretraining."""
    small = ("model.batch_size=64", "cloning.batch_size=64", "termination=none", "threads=1")
    cfg = compose(name, *small, "clone_behaviour=true", *words, f"cache_dir={folder}/cache")
    path = RunFolder.create(folder / f"run{len(list(folder.iterdir()))}")
    run = Run(cfg, data(), path, Interruption())
    seed_everything(cfg.seed)
    method = getattr(importlib.import_module(name), CLASSES[name])(run)
    run.begin(method)
    return method


def state(method: Any) -> dict[str, torch.Tensor]:
    """All that pretraining starts from, or leaves behind."""
    parts = {"model": method.world_model, "actor": method.actor}
    found = {f"{name}.{k}": v for name, m in parts.items() for k, v in m.state_dict().items()}
    found["random"] = torch.get_rng_state()
    return {k: v.detach().clone() for k, v in found.items() if isinstance(v, torch.Tensor)}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


OTHERS: list[tuple[str, tuple[str, ...]]] = [
    ("mopo", ()),
    ("morel", ()),
    ("combo", ()),
    ("rambo", ("adversarial_weight=0",)),
    ("rambo", ("model_term=kl",)),
    ("rambo", ("likelihood_budget=1", "advantage_clip=1")),
    ("rambo", ("rollout_policy=random", "retained_epochs=1", "agent.batch_size=17")),
]


@pytest.mark.parametrize(("name", "words"), OTHERS)
def test_runs_that_share_a_key_begin_in_the_same_state(
    name: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    one = begun(tmp_path, "rambo")
    wanted, key = state(one), key_of(one.run.cfg)
    other = begun(tmp_path, name, *words)
    assert key_of(other.run.cfg) == key
    assert differences(state(other), wanted) == []
    assert differences(state(begun(tmp_path, name, *words, "seed=1")), wanted)


def test_a_run_with_another_adversary_goes_on_from_the_file_as_if_it_had_pretrained(
    tmp_path: Path,
) -> None:
    one = begun(tmp_path, "rambo", "adversarial_weight=0.1")
    before = state(one)
    one.pretrain()
    wanted = state(one)
    assert differences(before, wanted)
    (file,) = (tmp_path / "cache").glob("*.pt")
    assert file.stem == key_of(one.run.cfg, dataset_digest(data()))

    other = begun(tmp_path, "rambo", "adversarial_weight=0")
    other._pretrain = None  # it is not needed
    other.pretrain()
    assert differences(state(other), wanted) == []
    for measured in PRETRAINING:
        assert other.run.progress[measured] == one.run.progress[measured]

    for n, words in enumerate((["seed=1"], ["model.lr=1e-2"], ["cloning.lr=1e-2"]), start=2):
        begun(tmp_path, "rambo", *words).pretrain()
        assert len(list((tmp_path / "cache").glob("*.pt"))) == n, words


def test_other_data_is_another_digest() -> None:
    assert dataset_digest(data()) != dataset_digest(data(shift=1e-3))
