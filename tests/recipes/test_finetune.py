"""From an offline run on in its environment: what is met, kept, resumed, and refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import report
import torch
from launcher import start as run_start
from launcher.command_line import compose_jobs
from launcher.data_checks import check_data
from launcher.finetuning import load_offline_run, run_settings, with_settings_of_run
from launcher.settings import method_settings
from omegaconf import DictConfig, OmegaConf

from rambo_trl import load_policy
from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import read_checkpoint
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.modules import make_actor

OFFLINE = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "dataset=test/idp/tiny-v0",
    "agent.actor_average=0.9", "adversarial_weight=0.1",
)  # fmt: skip
ONLINE = (
    "run=offline", "compile=false", "online_steps=30", "agent_updates=15", "model_updates=10",
    "evaluation.episodes=2", "agent.critic_warmup=5", "checkpoint_every=1",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_dataset: None, run_recipe: Callable[..., None]
) -> Path:
    """A folder with an offline run."""
    cwd = tmp_path_factory.mktemp("finetune")
    run_recipe(cwd, "rambo", *OFFLINE, "run_dir=offline")
    return cwd


@pytest.fixture(scope="module")
def whole(place: Path, run_recipe: Callable[..., None]) -> Path:
    """One that went on for four epochs without a break."""
    run_recipe(place, "finetune", *ONLINE, "epochs=4", "run_dir=whole")
    return place / "whole"


def metrics(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def settings_for(place: Path, *words: str) -> DictConfig:
    (cfg,) = compose_jobs("finetune", [f"run={place / 'offline'}", *words])
    return method_settings(cfg)


def test_a_run_goes_on_from_the_offline_one(place: Path, whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    rows = metrics(whole)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    # the policy that it starts from is the offline run's, evaluated anew
    before, offline = (results["before_return_mean"], place / "offline/results.json")
    assert before == pytest.approx(json.loads(offline.read_text())["return_mean"], rel=0.5)
    assert results["method"] == "RAMBO, then online" and results["adversarial_weight"] == 0.1
    assert results["agent_updates"] == 60 and results["model_updates"] == 40
    # rows grow by what was collected, and only whole episodes are
    steps = [int(row["online_steps"]) for row in rows]
    assert results["online_steps"] == steps[-1]
    assert all(step >= 30 * (n + 1) for n, step in enumerate(steps))
    online = read_checkpoint(whole / "checkpoint/last.pt", device="cpu")["parts"]["online_rows"]
    met = online["rows"]
    assert len(met["action"]) == steps[-1]
    done, terminated, truncated = (
        met["next"][key].flatten() for key in ("done", "terminated", "truncated")
    )
    assert int(done.sum()) == results["online_episodes"] and done[-1]
    assert terminated.any() and (done == (terminated ^ truncated)).all()
    assert met["action"].abs().max() <= 1
    # the policy has moved, and acts in the environment's units
    policies = [load_policy(folder) for folder in (place / "offline", whole)]
    actions = [policy(np.zeros((1, 9))) for policy in policies]
    assert actions[1].shape == (1, 1) and not np.allclose(*actions)
    for name in ("learning_curve.png", "policy_path.png", "config.yaml"):
        assert (whole / name).stat().st_size > 0


def test_the_data_are_as_before(place: Path, whole: Path) -> None:
    digests = [
        read_checkpoint(folder / "checkpoint/last.pt", device="cpu")["progress"]["dataset_digest"]
        for folder in (place / "offline", whole)
    ]
    assert digests[0] == digests[1]
    assert (
        len(OfflineDataset.load("test/idp/tiny-v0"))
        == json.loads((whole / "results.json").read_text())["dataset_transitions"]
    )


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_equals_an_unbroken_one_and_seeds_repeat(
    place: Path, whole: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(place, "finetune", *ONLINE, "epochs=2", "run_dir=broken")
    assert metrics(place / "broken") == metrics(whole)[:2]
    shutil.move(place / "offline", place / "away")  # a run is whole without the one before it
    try:
        run_recipe(place, "finetune", "resume=broken", "epochs=4")
    finally:
        shutil.move(place / "away", place / "offline")
    assert "resuming after epoch 2" in "".join(capsys.readouterr())
    assert metrics(place / "broken") == metrics(whole)
    policies = [
        (folder / "policy.safetensors").read_bytes() for folder in (place / "broken", whole)
    ]
    assert policies[0] == policies[1]


def test_reports_read_it(place: Path, whole: Path) -> None:
    assert report.main([str(place / "offline"), str(whole), "--out", str(place / "report")]) == 0
    assert "RAMBO, then online" in (place / "report/table.md").read_text()


def test_settings_are_the_run_s_unless_they_are_given(place: Path) -> None:
    cfg = with_settings_of_run(settings_for(place, "agent.tau=0.5", "online_steps=7"))
    assert cfg.dataset == "test/idp/tiny-v0" and cfg.schedule_name == "smoke"
    assert cfg.adversarial_weight == 0.1 and cfg.agent.actor_average == 0.9
    assert cfg.agent.tau == 0.5 and cfg.source.agent.tau == 0.005
    settings = run_settings(cfg)
    assert settings.agent.tau == 0.5 and settings.agent.hidden_sizes == [32, 32]
    assert settings.epochs == 20 and settings.agent.lr_decay == "none"
    assert settings.agent.anchor_weight == 0  # the run had none
    off = with_settings_of_run(settings_for(place, "adversarial_weight=0"))
    assert run_settings(off).adversarial_weight == 0


@pytest.mark.parametrize(("began", "starts_with"), [(0.5, 0.02), (0.0, 0.0)])
def test_the_anchor_goes_on_where_the_offline_run_s_ended(
    place: Path, tmp_path: Path, began: float, starts_with: float
) -> None:
    shutil.copytree(place / "offline", tmp_path / "offline")
    file = tmp_path / "offline/config.yaml"
    saved = OmegaConf.load(file)
    saved.agent.anchor_weight, saved.agent.anchor_final = began, 0.02
    OmegaConf.save(saved, file)
    cfg = with_settings_of_run(settings_for(tmp_path))
    assert (cfg.agent.anchor_weight, cfg.agent.anchor_final) == (starts_with, 0.0)
    given = with_settings_of_run(settings_for(tmp_path, "agent.anchor_weight=0.3"))
    assert given.agent.anchor_weight == 0.3

    # where it yields to lambda, at what lambda had left of it
    saved.agent.anchor_yields, saved.value_budget = True, 0.02
    OmegaConf.save(saved, file)
    metrics = tmp_path / "offline/metrics.csv"
    head, *rows = metrics.read_text().splitlines()
    metrics.write_text("\n".join([f"{head},model_lambda", *(f"{row},0.4" for row in rows)]) + "\n")
    cfg = with_settings_of_run(settings_for(tmp_path))
    assert cfg.agent.anchor_weight == pytest.approx(starts_with / 4)
    # where a likelihood budget set lambda, it never yielded
    saved.likelihood_budget = 0.1
    OmegaConf.save(saved, file)
    cfg = with_settings_of_run(settings_for(tmp_path))
    assert cfg.agent.anchor_weight == starts_with


def test_lambda_is_the_one_that_training_ended_with(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "offline", tmp_path / "offline")
    file = tmp_path / "offline/metrics.csv"
    head, *rows = file.read_text().splitlines()
    adapted = [f"{row},{weight}" for row, weight in zip(rows, (0.3, 0.02), strict=True)]
    file.write_text("\n".join([f"{head},model_lambda", *adapted]) + "\n")
    assert with_settings_of_run(settings_for(tmp_path)).adversarial_weight == 0.02
    given = with_settings_of_run(settings_for(tmp_path, "adversarial_weight=0.5"))
    assert given.adversarial_weight == 0.5
    # the last epoch of a run with an update of the model every second one has none
    file.write_text("\n".join([f"{head},model_lambda", adapted[0], f"{rows[1]},"]) + "\n")
    assert with_settings_of_run(settings_for(tmp_path)).adversarial_weight == 0.3


def test_parts_are_those_of_the_offline_run(place: Path) -> None:
    cfg = with_settings_of_run(settings_for(place))
    data = OfflineDataset.load("test/idp/tiny-v0", reward_scale="auto")
    folder = RunFolder(place / "offline")
    saved = read_checkpoint(folder.checkpoint_dir / "last.pt", device="cpu")
    actor = make_actor(9, data.action_spec, hidden_sizes=(32, 32))
    average = torch.optim.swa_utils.AveragedModel(actor)
    progress = {"dataset_digest": saved["progress"]["dataset_digest"]}
    new: Any = SimpleNamespace(progress=progress, dataset=data)
    load_offline_run(new, cfg, averaged_actor=average, termination=None)
    for key, value in average.state_dict().items():
        assert torch.equal(value, saved["parts"]["averaged_actor"][key])
    assert progress["holdout_mse"] == saved["progress"]["holdout_mse"]
    other: Any = SimpleNamespace(progress={"dataset_digest": "another"}, dataset=data)
    with pytest.raises(ValueError, match="tiny-v0 is not what .*offline was trained on"):
        load_offline_run(other, cfg, averaged_actor=average)
    wide = make_actor(9, data.action_spec, hidden_sizes=(8, 8))
    average = torch.optim.swa_utils.AveragedModel(wide)
    with pytest.raises(ValueError, match="its averaged_actor does not fit"):
        load_offline_run(new, cfg, averaged_actor=average)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "td3_bc"}, "is a run of method=td3_bc: only a run of recipes/rambo.py has the"),
    ({"method": "finetune"}, "is such a run itself: go on with resume="),
    ({"method": "rambo", "gone": "checkpoint"}, "nothing to go on from"),
    ({"method": "rambo", "gone": "config.yaml"}, "holds no run: config.yaml is missing"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_runs_that_cannot_go_on_are_refused(
    place: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "offline"
    shutil.copytree(place / "offline", folder)
    saved = OmegaConf.load(folder / "config.yaml")
    saved.method = change["method"]
    OmegaConf.save(saved, folder / "config.yaml")
    if gone := change.get("gone"):
        (shutil.rmtree if (folder / gone).is_dir() else Path.unlink)(folder / gone)
    with pytest.raises((ValueError, OSError), match=words):
        with_settings_of_run(settings_for(tmp_path))


def test_no_run_is_refused() -> None:
    (cfg,) = compose_jobs("finetune", [])
    with pytest.raises(ValueError, match="give run=, the folder of a finished run"):
        with_settings_of_run(method_settings(cfg))


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("none", "without an environment: there is none to go on in, give its env_id"),
        (
            "InvertedPendulum-v5",
            "shape .9,. is expected, got .4,.; give another env_id",
        ),
    ],
)
def test_environments_that_do_not_fit_are_refused_before_anything_is_written(
    place: Path, tmp_path: Path, env_id: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"run={place / 'offline'}", f"env_id={env_id}", f"run_dir={tmp_path / 'new'}"]
    (cfg,) = compose_jobs("finetune", given)
    hydra = SimpleNamespace(
        overrides=SimpleNamespace(task=given), runtime=SimpleNamespace(choices={})
    )
    monkeypatch.setattr(run_start.HydraConfig, "get", lambda: hydra)
    with pytest.raises(ValueError, match=words):
        run_start.prepare(cfg, complete=with_settings_of_run)
    assert not (tmp_path / "new").exists()


def test_offline_methods_still_take_data_without_an_environment(
    place: Path, capsys: pytest.CaptureFixture[str], composed: Callable[..., DictConfig]
) -> None:
    data = OfflineDataset.load("test/idp/tiny-v0")
    data.has_simulator = False
    cfg = composed("td3_bc", "schedule=smoke", "agent.batch_size=8")
    check_data(cfg, data)
    assert "without an environment: the policy is not evaluated" in capsys.readouterr().err
