"""Pretraining takes as many updates whatever the data's size; older runs had passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launcher.command_line import compose_jobs
from launcher.parts import make_world_model
from launcher.pretraining import clone_with_bar, find_pretrained, fit_with_bar
from launcher.settings import check_config, method_settings, settle_budgets
from launcher.start import resumed_config
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.run import Stopwatch
from rambo_trl.modules import make_actor
from rambo_trl.training import pretraining


def composed(*words: str) -> DictConfig:
    (cfg,) = compose_jobs("rambo", list(words))
    settle_budgets(cfg, {word.split("=")[0] for word in words})
    return cfg


def test_a_lambda_that_is_asked_for_is_kept() -> None:
    assert composed().value_budget == 0.02
    assert composed("adversarial_weight=0.3").value_budget is None
    assert composed("adversarial_weight=3e-4").value_budget is None
    assert composed("adversarial_weight=0.3", "value_budget=0.2").value_budget == 0.2
    # without an adversary all other settings are as with it
    assert composed("adversarial_weight=0").value_budget == 0.02


def updates(cfg: DictConfig, rows: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Updates of a fit and of cloning, and looks at the held-out rows."""
    kind = torch.rand(rows, 1)
    following = TensorDict(
        observation=kind + 0.1 * torch.randn(rows, 1),
        reward=torch.randn(rows, 1),
        terminated=torch.ones(rows, 1, dtype=torch.bool),
        batch_size=[rows],
    )
    data = TensorDict(
        observation=kind, action=2 * torch.rand(rows, 1) - 1, next=following, batch_size=[rows]
    )
    dataset = OfflineDataset(data, action_spec=Bounded(-1, 1, shape=(1,)))
    run: Any = SimpleNamespace(dataset=dataset, watch=Stopwatch({}))
    fit = fit_with_bar(run, cfg, make_world_model(cfg, dataset), dataset.transitions, "model")
    actor = make_actor(1, dataset.action_spec, hidden_sizes=(4,))
    counted: list[object] = []
    monkeypatch.setattr(pretraining.MetricMeans, "add", lambda _, metrics: counted.append(metrics))
    monkeypatch.setattr(pretraining.MetricMeans, "read", lambda _: {})
    clone_with_bar(run, cfg, actor, dataset.transitions, "clone")
    return fit.updates, len(counted), len(fit.history)


FAST = (
    "schedule=quick", "compile=false", "model.hidden_sizes=[4]", "model.batch_size=64",
    "cloning.batch_size=64", "model.num_members=2", "model.num_elites=1",
)  # fmt: skip


@pytest.mark.parametrize("rows", [200, 400, 10_000])
def test_the_budget_is_that_of_the_schedule_for_sets_of_any_size(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model.max_updates=40", "model.holdout_every=5", "cloning.updates=30")
    assert updates(composed(*FAST, *words), rows, monkeypatch) == (40, 30, 8)


def test_a_number_of_passes_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed(*FAST, "model.max_passes=3", "cloning.passes=2")
    assert updates(cfg, 640, monkeypatch) == (3 * 9, 2 * 10, 3)
    # of a program that does not go through the command line
    (cfg,) = compose_jobs("rambo", [*FAST, "model.max_passes=3", "cloning.passes=2"])
    assert cfg.model.max_updates and cfg.cloning.updates
    assert updates(cfg, 640, monkeypatch) == (3 * 9, 2 * 10, 3)


def test_shipped_budgets_do_not_hang_on_the_datas_size() -> None:
    for schedule, decay in (("quick", "cosine"), ("thorough", "cosine"), ("smoke", "none")):
        cfg = composed(f"schedule={schedule}")
        assert cfg.model.max_updates % cfg.model.holdout_every == 0 and cfg.cloning.updates
        assert cfg.model.max_passes is cfg.cloning.passes is None
        assert cfg.model.lr_decay == decay


def test_only_the_budget_that_was_asked_for_is_kept() -> None:
    cfg = composed("schedule=paper", "cloning.updates=7")
    assert (cfg.cloning.updates, cfg.cloning.passes) == (7, None)
    cfg = composed("schedule=quick", "cloning.passes=7", "model.max_passes=9")
    assert (cfg.cloning.updates, cfg.cloning.passes) == (None, 7)
    assert (cfg.model.max_updates, cfg.model.max_passes) == (None, 9)
    with pytest.raises(ValueError, match="model.max_updates and model.max_passes both say how lo"):
        composed("model.max_updates=3", "model.max_passes=3")
    with pytest.raises(ValueError, match="cloning.updates or cloning.passes must be a number"):
        check_config(composed("schedule=paper", "cloning.passes=null"))
    # until patience is over
    check_config(composed("model.max_updates=null", "model.lr_decay=none"))
    with pytest.raises(ValueError, match="model.lr_decay=cosine needs model.max_updates"):
        composed("model.max_updates=null")


def older(schedule: str, fit: int | None, cloning: int) -> DictConfig:
    """A run's configuration from before there were budgets in updates."""
    cfg = method_settings(composed(f"schedule={schedule}"))
    with open_dict(cfg):
        del cfg.model["max_updates"], cfg.model["holdout_every"], cfg.cloning["updates"]
    cfg.model.max_passes, cfg.cloning.passes = fit, cloning
    return OmegaConf.create(OmegaConf.to_yaml(cfg))


@pytest.mark.parametrize(
    ("schedule", "fit", "cloning"), [("quick", 8, 5), ("smoke", 1, 1), ("paper", None, 50)]
)
def test_an_older_run_goes_on_with_its_passes(schedule: str, fit: int | None, cloning: int) -> None:
    saved = older(schedule, fit, cloning)
    (cfg,) = compose_jobs("rambo", ["resume=there"])
    resumed = resumed_config(cfg, saved, ["resume=there"])
    assert (resumed.model.max_updates, resumed.model.max_passes) == (None, fit)
    assert (resumed.cloning.updates, resumed.cloning.passes) == (None, cloning)
    (cfg,) = compose_jobs("rambo", ["resume=there", "model.max_updates=5"])
    with pytest.raises(ValueError, match="keeps its model.max_updates=None, got 5"):
        resumed_config(cfg, saved, ["resume=there", "model.max_updates=5"])


def test_an_older_file_of_the_same_pretraining_is_found() -> None:
    keys = [
        find_pretrained(cfg, {"dataset_digest": "data"}, net=torch.nn.Identity()).key
        for cfg in (composed("schedule=paper"), older("paper", None, 50))
    ]
    assert keys[0] == keys[1]


def test_a_run_without_a_model_gets_no_setting_of_one() -> None:
    (cfg,) = compose_jobs("bc", ["resume=there"])
    cfg = method_settings(cfg)
    saved = OmegaConf.create(OmegaConf.to_yaml(cfg))
    resumed = resumed_config(cfg, saved, ["resume=there"])
    assert "model" not in resumed and "cloning" not in resumed
