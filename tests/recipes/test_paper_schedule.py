"""``schedule=paper`` is the paper's Algorithm 1: each figure, where it takes effect."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from launcher.parts import make_buffers
from omegaconf import DictConfig, OmegaConf

from rambo_trl.data import OfflineDataset

ROOT = Path(__file__).parents[2]
TASK = "task=inverteddoublependulum-medium-replay"
ACTION_SIZE, OBSERVATION_SIZE = 1, 9


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "recipes" / "config"), version_base="1.3"):
        return compose("rambo", overrides=["dataset=test/idp/tiny-v0", "compile=false", *overrides])


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    return composed("schedule=paper", TASK)


@pytest.fixture(scope="module")
def data(cfg: DictConfig, tiny_dataset: None) -> OfflineDataset:
    return OfflineDataset.load(cfg.dataset)


def widths(module: torch.nn.Module) -> list[int]:
    return [layer.out_features for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def test_the_published_values_reach_the_parts(
    cfg: DictConfig, data: OfflineDataset, parts_of: Callable[..., Any]
) -> None:
    rambo = parts_of("rambo", cfg, data)
    agent, adversary, model = (rambo.parts[key] for key in ("agent", "model", "world_model"))
    # an epoch
    assert (cfg.epochs, cfg.agent_updates, cfg.model_updates) == (2000, 1000, 1000)
    assert rambo.updates == 2000
    assert rambo.results["agent_updates"] == rambo.results["model_updates"] == 1000
    collector = rambo.parts["collector"].forward
    assert collector.num_starts == 50_000 and collector.policy is rambo.policy
    assert collector.horizon == adversary.horizon == cfg.rollout_length
    assert rambo.parts["model_buffer"]._storage.max_size == 5 * 50_000 * cfg.rollout_length
    mixed = make_buffers(cfg, data)[2]
    assert (mixed.batch_size, mixed.num_real, mixed.num_model) == (256, 128, 128)

    # the agent
    loss, groups = agent.loss, agent.optimizer.param_groups
    assert [group["lr"] for group in groups] == [3e-4, 1e-4, 1e-4]  # critics, actor, temperature
    assert groups[2]["params"] == [loss.log_alpha]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in rambo.policy.parameters()}
    assert agent.target_update.eps == pytest.approx(1 - 0.005)
    assert (loss.loss_function, loss.num_qvalue_nets) == ("l2", 2)
    assert float(loss.log_alpha.detach().exp()) == 1.0
    assert float(loss.target_entropy) == -ACTION_SIZE
    assert float(loss.value_estimator.gamma) == pytest.approx(0.99)
    assert widths(rambo.policy) == [256, 256, 2 * ACTION_SIZE]
    critics = [tuple(p.shape) for p in loss.qvalue_network_params.parameters()]
    assert sorted(shape for shape in critics if len(shape) == 3) == sorted(
        [(2, 256, OBSERVATION_SIZE + ACTION_SIZE), (2, 256, 256), (2, 1, 256)]
    )

    # the model and the adversary
    assert (model.num_members, model.num_elites) == (7, 5)
    assert model.hidden_sizes == (200, 200, 200, 200)
    assert adversary.model_loss.weight_decay == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    assert adversary.optimizer.param_groups[0]["lr"] == 3e-4
    assert adversary.batch_size == adversary.real_batch_size == 256
    adversarial = adversary.adversarial_loss
    assert adversary.env.world_model is adversarial.world_model is model
    assert float(adversarial.adversarial_weight) == pytest.approx(cfg.adversarial_weight)
    assert float(adversarial.gamma) == pytest.approx(0.99)
    assert (adversarial.reduction, adversarial.normalize_advantage) == ("mean", True)
    assert not adversarial.per_dimension and adversarial.advantage_clip is None
    assert adversarial.density == "mixture"
    assert float(adversarial.entropy_coeff) == 0


def test_what_comes_before_adversarial_training_and_what_is_measured(cfg: DictConfig) -> None:
    fit = {"lr": 3e-4, "batch_size": 256, "patience": 10, "min_improvement": 0.01}
    assert {key: cfg.model[key] for key in fit} == fit
    # until 10 passes bring no improvement, each with a look at the held-out rows
    assert {cfg.model[k] for k in ("max_passes", "max_updates", "holdout_every")} == {None}
    cloning = {"updates": None, "passes": 50, "batch_size": 256, "lr": 1e-4, "episode_share": 1.0}
    assert OmegaConf.to_container(cfg.cloning) == cloning
    assert cfg.model.lr_decay == "none"
    assert OmegaConf.to_container(cfg.evaluation) == {"episodes": 10, "every": 10, "last": 10}


def test_a_value_of_the_schedule_reaches_what_it_is_for(
    data: OfflineDataset, parts_of: Callable[..., Any]
) -> None:
    # other values than the defaults of the parts, which would hide a setting that goes nowhere
    cfg = composed(
        "schedule=paper", TASK, "rollout_length=3", "rollout_starts=70", "retained_epochs=2",
        "adversarial_weight=0.5", "agent.gamma=0.9", "agent.tau=0.25", "agent.critic_lr=1e-2",
        "agent.actor_lr=2e-2", "agent.alpha_lr=3e-2", "agent.alpha_init=0.1",
        "agent.target_entropy=-2.5",
        "agent.real_fraction=0.25", "agent.batch_size=40", "model.batch_size=24",
        "model.adversarial_lr=4e-2", "num_critics=3", "advantage_clip=0.5",
        "model.adversarial_batch_size=32", "model.likelihood_batch_size=8",
        "adversary_density=member", "agent_updates=7", "model_updates=6", "model_updates_every=2",
    )  # fmt: skip
    rambo = parts_of("rambo", cfg, data)
    agent, adversary = rambo.parts["agent"], rambo.parts["model"]
    assert rambo.updates == 10
    assert rambo.parts["model_buffer"]._storage.max_size == 2 * 70 * 3
    collector = rambo.parts["collector"].forward
    assert (collector.num_starts, collector.horizon) == (70, 3)
    assert (adversary.batch_size, adversary.real_batch_size, adversary.horizon) == (32, 8, 3)
    assert adversary.optimizer.param_groups[0]["lr"] == 4e-2
    adversarial = adversary.adversarial_loss
    assert float(adversarial.adversarial_weight) == adversarial.advantage_clip == 0.5
    assert adversarial.density == "member"
    for gamma in (adversarial.gamma, agent.loss.value_estimator.gamma, rambo.monitor.gamma):
        assert float(gamma) == pytest.approx(0.9)
    assert [g["lr"] for g in agent.optimizer.param_groups] == [1e-2, 2e-2, 3e-2]
    assert agent.target_update.eps == pytest.approx(0.75)
    assert float(agent.loss.log_alpha.detach().exp()) == pytest.approx(0.1)
    assert float(agent.loss.target_entropy) == -2.5 * ACTION_SIZE
    assert agent.loss.num_qvalue_nets == 3
    mixed = make_buffers(cfg, data)[2]
    assert (mixed.num_real, mixed.num_model) == (10, 30)

    # without an adversary the model is not updated
    cfg.adversarial_weight = 0.0
    rambo = parts_of("rambo", cfg, data)
    assert (rambo.updates, rambo.results["model_updates"]) == (7, 0)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("epochs", "epochs"),
        ("agent updates an epoch", "agent_updates"),
        ("model updates an epoch", "model_updates"),
        ("model batch", "model.batch_size"),
        ("rollout starts an epoch", "rollout_starts"),
        ("target rate tau", "agent.tau"),
    ],
)
def test_the_page_of_schedules_says_what_is_set(row: str, key: str) -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    line = next(x for x in page.splitlines() if x.startswith(f"| {row} |"))
    cells = [cell.strip().replace(",", "") for cell in line.split("|")[2:6]]
    for cell, schedule in zip(cells, ("paper", "thorough", "quick", "smoke"), strict=True):
        assert re.fullmatch(r"[\d.]+", cell), f"{row}: {cell}"
        assert float(cell) == OmegaConf.select(composed(f"schedule={schedule}"), key)


def test_the_page_of_schedules_has_the_learning_rates() -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    schedules = ("paper", "thorough", "quick", "smoke")
    line = next(x for x in page.splitlines() if x.startswith("| critic, actor, temperature lr |"))
    told = dict(zip(schedules, (cell.strip() for cell in line.split("|")[2:6]), strict=True))
    for schedule in schedules:
        same = re.fullmatch(r"as `(\w+)`", told[schedule])
        rates = [float(x) for x in told[same[1] if same else schedule].split(",")]
        agent = composed(f"schedule={schedule}").agent
        assert rates == [agent.critic_lr, agent.actor_lr, agent.alpha_lr], schedule
