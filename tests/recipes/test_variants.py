"""The variants' settings of RAMBO's recipe: reached, resumed, refused; off by default."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launcher.command_line import compose_jobs
from launcher.start import resumed_config
from omegaconf import OmegaConf
from rambo import Rambo
from tensordict import TensorDict
from torchrl.data import Bounded
from training_run import Run

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.divergence import ModelErrorBound
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interruption
from rambo_trl.objectives import EnsembleModelLoss, ModelTrustLoss

ROOT = Path(__file__).parents[2]
TASK = ["schedule=smoke", "task=inverteddoublependulum-medium-replay", "dataset=test/idp/tiny-v0"]


def rambo(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/rambo.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_defaults_are_the_papers() -> None:
    (cfg,) = compose_jobs("rambo", [])
    assert cfg.num_critics == 2
    assert cfg.advantage_clip is None
    assert cfg.model_updates_every == 1
    assert cfg.model_term == "likelihood"
    assert cfg.likelihood_budget is None
    assert cfg.rollout_direction == "forward"
    assert cfg.model_matmul_dtype == "float32"


def pretrained(folder: Path, *words: str) -> Rambo:
    """RAMBO after its pretraining, on steps of noise: the same for whatever variant."""
    torch.manual_seed(0)
    observation, action = torch.randn(300, 2), 2 * torch.rand(300, 1) - 1
    following = TensorDict(
        observation=observation + 0.1 * action,
        reward=action + 0.3 * torch.randn(300, 1),
        terminated=torch.zeros(300, 1, dtype=torch.bool),
        batch_size=[300],
    )
    rows = TensorDict(observation=observation, action=action, next=following, batch_size=[300])
    dataset = OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))
    small = [
        "schedule=smoke", "termination=none", "rollout_length=2", "rollout_starts=50",
        "model_updates=6", "model.batch_size=64", "adversarial_weight=0.1",
    ]  # fmt: skip
    (cfg,) = compose_jobs("rambo", [*small, *words], check=lambda cfg: None)
    run = Run(cfg, dataset, RunFolder.create(folder), Interruption())
    rambo = Rambo(run)
    run.begin(rambo)
    rambo.pretrain()
    return rambo


def game(rambo: Rambo) -> dict[str, float]:
    """The metrics of the adversary's first turn."""
    row: dict[str, float] = {}
    for _ in rambo.run.epochs():
        row.update(rambo.roll_out())
        row.update(rambo.improve_agent())
        row.update(rambo.update_model())
        return row
    raise AssertionError("no epoch")


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_clip_of_the_advantage_reaches_the_adversary(
    clip: float | None, tmp_path: Path
) -> None:
    rambo = pretrained(tmp_path / "run", f"advantage_clip={clip or 'null'}")
    loss = rambo.adversary.adversarial_loss
    assert loss.advantage_clip == clip and loss.world_model is rambo.world_model
    rows = rambo.collector.collect()
    with torch.no_grad():
        advantage = loss.advantage(rows)[0]
        weight = (advantage - advantage.mean()) / advantage.std(correction=0)
        assert weight.abs().max() > 1
        if clip is not None:
            weight = weight.clamp(-clip, clip)
        wanted = 0.1 * (weight * rambo.world_model.log_prob(rows)).mean()
        torch.testing.assert_close(loss(rows)["loss_adversarial"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", ["likelihood", "kl", "total_variation"])
def test_the_models_term_is_what_the_adversary_is_held_to(term: str, tmp_path: Path) -> None:
    rambo = pretrained(tmp_path / "run", f"model_term={term}")
    loss, model = rambo.adversary.model_loss, rambo.world_model
    assert loss.world_model is model and loss.members == "elites"
    if term == "likelihood":
        assert isinstance(loss, EnsembleModelLoss) and rambo.trust is None
        assert "model_trust" not in rambo.stateful_parts()
        row = game(rambo)
        assert "loss_model" in row and "loss_trust" not in row
        return
    assert isinstance(loss, ModelTrustLoss) and loss.divergence == term
    assert rambo.trust is rambo.stateful_parts()["model_trust"] is loss
    # measured from the fitted model, not from the one that it was made of
    fitted = {key: value.clone() for key, value in model.state_dict().items()}
    row = game(rambo)
    assert "loss_model" not in row
    assert row["loss_trust"] == pytest.approx(row["model_trust_distance"]) and row["loss_trust"] > 0
    reference = loss.reference.state_dict()
    assert all(torch.equal(reference[key], value) for key, value in fitted.items())
    assert any((value != fitted[key]).any() for key, value in model.state_dict().items())


def among(rows: torch.Tensor, data: torch.Tensor) -> int:
    """How many rows are rows of the data."""
    return int((rows[:, None] == data[None]).all(-1).any(-1).sum())


@pytest.mark.parametrize(
    ("direction", "leaving", "arriving"),
    [("forward", 50, 0), ("both", 25, 25), ("reverse", 0, 50)],
)
def test_rollouts_leave_the_data_or_lead_into_it(
    direction: str, leaving: int, arriving: int, tmp_path: Path
) -> None:
    words = [f"rollout_direction={direction}"]
    if direction == "reverse":
        words.append("adversarial_weight=0")
    rambo = pretrained(tmp_path / "run", *words)
    data = rambo.run.dataset.transitions
    assert rambo.roll_out()["model_transitions"] == 100
    rows = rambo.model_buffer[:]
    # the first step of each rollout has one end in the data
    assert among(rows["observation"], data["observation"]) == leaving
    assert among(rows["next", "observation"], data["next", "observation"]) == arriving
    parts = {"reverse_model", "reverse_policy"} & set(rambo.stateful_parts())
    if direction == "forward":
        assert rambo.reverse is None and not parts
        return
    assert len(parts) == 2 and "reverse_holdout_mse" in rambo.results()
    # the reverse model was fitted to the data read backwards, where its input is what follows
    model = rambo.reverse.model
    following = data["next", "observation"].mean(0)
    assert (model.input_mean[:2] - following).abs().max() < 0.05
    assert (model.input_mean - rambo.world_model.input_mean).abs().max() > 0
    assert rambo.adversary.env is rambo.env and rambo.env.world_model is not model


def test_models_round_their_products_where_they_are_told_to(tmp_path: Path) -> None:
    words = ["rollout_direction=both", "model_matmul_dtype=bfloat16"]
    rounding = pretrained(tmp_path / "rounding", *words)
    models = [rounding.world_model, rounding.reverse.model]
    assert [model.matmul_dtype for model in models] == 2 * [torch.bfloat16]
    assert rounding.env.world_model is rounding.adversary.env.world_model is models[0]
    assert pretrained(tmp_path / "exact").world_model.matmul_dtype is None
    # the game is played with what was fitted
    rounding.roll_out()
    before = [weight.clone() for weight in models[0].weights]
    assert all(math.isfinite(value) for value in rounding.adversary.run(6).values())
    elites = models[0].elites
    assert all(
        (a[elites] != b[elites]).any() for a, b in zip(before, models[0].weights, strict=True)
    )


def test_a_run_keeps_the_digits_that_it_began_with() -> None:
    (cfg,) = compose_jobs("rambo", [])
    saved = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "model_matmul_dtype"])
    assert resumed_config(cfg, saved, []).model_matmul_dtype == "float32"
    word = "model_matmul_dtype=bfloat16"
    (cfg,) = compose_jobs("rambo", [word])
    with pytest.raises(ValueError, match="keeps its model_matmul_dtype=float32, got bfloat16"):
        resumed_config(cfg, saved, [word])


def test_the_way_back_is_cloned_or_random_and_pretrained_once(tmp_path: Path) -> None:
    words = ["rollout_direction=both", "pretrained=auto", f"cache_dir={tmp_path / 'cache'}"]
    first = pretrained(tmp_path / "first", *words)
    second = pretrained(tmp_path / "second", *words)
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 1
    for name in ("world_model", "actor", "reverse_model", "reverse_policy"):
        one, other = (run.pretrained_parts()[name].state_dict() for run in (first, second))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    fresh = pretrained(tmp_path / "fresh", "rollout_direction=both", "cloning.passes=0")
    before, after = fresh.reverse.policy.state_dict(), first.reverse.policy.state_dict()
    assert any((value != before[key]).any() for key, value in after.items())
    assert first.reverse.collector.policy is first.reverse.policy
    third = pretrained(tmp_path / "third", *words, "rollout_policy=random")
    assert third.reverse.policy is None is third.reverse.collector.policy
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 2
    assert "reverse_policy" not in third.stateful_parts()


@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.slow
def test_all_variants_at_once_and_resumed(tmp_path: Path) -> None:
    words = [
        *TASK,
        "num_critics=3",
        "advantage_clip=1.5",
        "model_updates_every=2",
        "model_term=kl",
        "likelihood_budget=0.001",
        "budget_lr=100",
        "rollout_direction=both",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = rambo(tmp_path, *words, "epochs=4", f"run_dir={whole}")
    assert ended.returncode == 0, ended.stderr
    found = rows(whole)
    # the adversary's turn comes in epochs 1 and 3
    assert [bool(row["loss_trust"]) for row in found] == [True, False, True, False]
    assert "loss_model" not in found[0]
    assert json.loads((whole / "results.json").read_text())["model_updates"] == 40
    # lambda moved from the task's own
    lambdas = [float(row["model_lambda"]) for row in found if row["model_lambda"]]
    assert lambdas[0] != pytest.approx(3e-4)
    assert lambdas[1] != pytest.approx(lambdas[0])

    assert rambo(tmp_path, *words, "epochs=2", f"run_dir={parts}").returncode == 0
    ended = rambo(tmp_path, f"resume={parts}", "epochs=4")
    assert ended.returncode == 0, ended.stderr
    for one, other in zip(found, rows(parts), strict=True):
        same = {
            key: value for key, value in one.items() if "return" not in key and "score" not in key
        }
        assert same == {key: other[key] for key in same}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("advantage_clip=0", "advantage_clip must be a finite number above 0 or null, got 0"),
        ("model_term=js", "model_term must be one of likelihood, kl, total_variation, got js"),
        ("model_updates_every=0", "model_updates_every must be a whole number of at least 1"),
        ("num_critics=0", "num_critics must be a whole number of at least 1, got 0"),
        ("likelihood_budget=-1", "likelihood_budget must be a finite number above 0 or null"),
        ("rollout_direction=back", "rollout_direction must be one of forward, reverse, both, got"),
        ("budget_lr=0", "budget_lr must be a finite number above 0, got 0"),
    ],
)
def test_bad_values_are_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compose_jobs("rambo", ["schedule=smoke", word])


def test_a_budget_needs_an_adversary() -> None:
    compose_jobs("rambo", ["adversarial_weight=3e-4", "likelihood_budget=0.5"])
    with pytest.raises(ValueError, match="likelihood_budget needs an adversarial_weight above 0"):
        compose_jobs("rambo", ["adversarial_weight=0", "likelihood_budget=0.5"])


def test_reverse_rollouts_need_settings_that_they_make_sense_with() -> None:
    compose_jobs("rambo", ["rollout_direction=both"])
    compose_jobs("rambo", ["rollout_direction=reverse", "adversarial_weight=0"])
    compose_jobs("rambo", ["termination=learned"])
    for words, message in (
        (["rollout_direction=reverse"], "use both, or adversarial_weight=0"),
        (["rollout_direction=both", "rollout_starts=1"], "needs 2 rollout_starts, got 1"),
        (["rollout_direction=both", "termination=learned"], "use none or MODULE:FUNCTION"),
    ):
        with pytest.raises(ValueError, match=message):
            compose_jobs("rambo", words)


def test_what_the_model_is_held_to_was_measured_on_the_same_rows(tmp_path: Path) -> None:
    rambo = pretrained(tmp_path / "run")
    kept = rambo.run.progress["fitted_error"]
    rows = rambo.run.dataset.transitions
    assert len(rambo.error_rows) == len(rows)  # which are fewer than a thousand
    bound = rambo.monitor().max_model_error
    assert isinstance(bound, ModelErrorBound) and bound.fitted.tolist() == kept
    # a run that is too old to have kept it has the fitted model's file
    with torch.no_grad():  # as the game does
        rambo.world_model.biases[-1].add_(1.0)
    rambo.run.progress.update(epoch=1)
    del rambo.run.progress["fitted_error"]
    drawn = torch.get_rng_state()
    torch.testing.assert_close(rambo.fitted_error().tolist(), kept)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert rambo.model_error().mean() > 0.5
    # or, without it, the holdout error for every entry
    del rambo.run.progress["fitted_error"]
    (tmp_path / "run/pretrained_model.safetensors").unlink()
    holdout = max(rambo.run.progress["holdout_mse"])
    assert rambo.fitted_error().tolist() == pytest.approx([holdout] * 3)


def test_the_model_s_error_is_that_of_the_elites(tmp_path: Path) -> None:
    rambo = pretrained(tmp_path / "run")
    model, rows = rambo.world_model, rambo.error_rows
    following = torch.cat([rows["next", "observation"], rows["next", "reward"]], dim=-1)
    with torch.no_grad():
        mean, _ = model.predict(rows["observation"], rows["action"], model.elites)
        scale = model.output_scale
        wanted = ((mean - following) / scale).square().mean(dim=(0, 1))
        every, _ = model.predict(rows["observation"], rows["action"])
    torch.testing.assert_close(rambo.model_error(), wanted, rtol=1e-4, atol=0)
    assert rambo.run.progress["fitted_error"] == rambo.model_error().tolist()
    others = ((every - following) / scale).square().mean(dim=(0, 1))
    assert not torch.allclose(others, wanted, rtol=1e-3)
