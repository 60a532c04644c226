"""The variants' settings of RAMBO's recipe: reached, resumed, refused; off by default."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import rambo
import torch
from launcher.command_line import compose_jobs
from launcher.launch import make_run
from launcher.start import resumed_config
from launcher.variants import DataTerm, fading_anchor
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import discounted_returns, early_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.divergence import ModelErrorBound
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.run import Run
from rambo_trl.experiment.signals import Interruption
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss, ModelTrustLoss
from rambo_trl.training.gradient_step import set_rates

pytestmark = pytest.mark.usefixtures("brief_ending")
SMALL = (
    "schedule=smoke", "termination=none", "rollout_length=2", "rollout_starts=50", "epochs=1",
    "agent_updates=2", "model_updates=6", "model.batch_size=64", "adversarial_weight=0.1",
    "model.max_updates=40", "model.holdout_every=20", "cloning.updates=20", "agent.batch_size=64",
)  # fmt: skip


def configured(*words: str) -> DictConfig:
    (cfg,) = compose_jobs("rambo", [*SMALL, *words], check=lambda cfg: None)
    return cfg


@functools.cache
def noise() -> OfflineDataset:
    """Steps of noise."""
    torch.manual_seed(0)
    observation, action = torch.randn(300, 2), 2 * torch.rand(300, 1) - 1
    after = TensorDict(
        observation=observation + 0.1 * action,
        reward=action + 0.3 * torch.randn(300, 1),
        terminated=torch.zeros(300, 1, dtype=torch.bool),
        batch_size=[300],
    )
    rows = TensorDict(observation=observation, action=action, next=after, batch_size=[300])
    return OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))


class Trained:
    """A run of RAMBO, by default of one epoch, with its parts as they are at its end."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, cfg = folder, configured(*words)
        new = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
        run = make_run(cfg, noise(), new, Interruption())
        track = run.track

        def noting(**parts: Any) -> None:
            self.parts = parts
            track(**parts)

        run.track = noting  # type: ignore[method-assign]
        seed_everything(0)
        self.run: Run = run
        self.results = rambo.train(run, cfg, noise())

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    @property
    def fitted(self) -> dict[str, torch.Tensor]:
        """The model before adversarial training."""
        return load_file(self.folder / "pretrained_model.safetensors")


@pytest.mark.parametrize("schedule", ["paper", "smoke"])
def test_the_defaults_are_the_papers(schedule: str) -> None:
    (cfg,) = compose_jobs("rambo", [f"schedule={schedule}"])
    assert cfg.num_critics == 2
    assert cfg.advantage_clip is None
    assert cfg.adversary_density == "mixture"
    assert cfg.model.adversarial_batch_size is cfg.model.likelihood_batch_size is None
    assert cfg.model_updates_every == 1
    assert cfg.model_term == "likelihood"
    assert cfg.likelihood_budget is cfg.value_budget is None
    assert cfg.rollout_direction == "forward"
    assert cfg.model_matmul_dtype == "float32"
    agent, critic = cfg.agent, ("layer_norm", "deterministic_backup", "regression_updates")
    others = ("critic_warmup", "actor_average", "anchor_weight", "anchor_yields")
    assert not any(agent[key] for key in (*critic, *others))
    assert agent.target_entropy == -1.0
    assert agent.lr_decay == cfg.model.lr_decay == "none"
    assert cfg.model.adversarial_lr_decay == "none" and cfg.model.beta == 0
    assert cfg.cloning.episode_share == 1 and not cfg.refit and not cfg.early_share


def test_the_anchor_fades_by_a_constant_ratio_or_to_nothing() -> None:
    halves = [fading_anchor(0.04, share) for share in (0.0, 0.5, 1.0)]
    assert halves == pytest.approx([1.0, 0.2, 0.04])
    assert [fading_anchor(0.0, share) for share in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert fading_anchor(4.0, 0.5) == 2.0  # it may grow


@pytest.mark.parametrize("term", ["likelihood", "kl", "total_variation"])
def test_the_models_term_is_what_the_adversary_is_held_to(
    term: str, parts_of: Callable[..., Any]
) -> None:
    parts = parts_of("rambo", configured(f"model_term={term}"), noise()).parts
    loss, model = parts["model"].model_loss, parts["world_model"]
    assert loss.world_model is model and loss.members == "elites"
    if term == "likelihood":
        assert isinstance(loss, EnsembleModelLoss) and parts["model_trust"] is None
    else:
        assert isinstance(loss, ModelTrustLoss) and loss.divergence == term
        assert parts["model_trust"] is loss
    assert parts["likelihood_budget"] is parts["value_budget"] is None


def test_a_trust_term_is_measured_from_the_fitted_model(tmp_path: Path) -> None:
    trained = Trained(tmp_path / "run", "model_term=kl")
    (row,), fitted = trained.rows, trained.fitted
    assert "loss_model" not in row
    assert float(row["loss_trust"]) == pytest.approx(float(row["model_trust_distance"]))
    assert float(row["loss_trust"]) > 0
    reference = trained.parts["model_trust"].reference.state_dict()
    assert all(torch.equal(reference[key], value) for key, value in fitted.items())
    model = trained.parts["world_model"].state_dict()
    assert any((model[key] != value).any() for key, value in fitted.items())


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
    if direction == "both":  # models round their products where they are told to
        words.append("model_matmul_dtype=bfloat16")
    trained = Trained(tmp_path / "run", *words)
    parts, data, (row,) = trained.parts, noise().transitions, trained.rows
    assert float(row["model_transitions"]) == 100
    rollouts = parts["model_buffer"][:]
    # the first step of each rollout has one end in the data
    assert among(rollouts["observation"], data["observation"]) == leaving
    assert among(rollouts["next", "observation"], data["next", "observation"]) == arriving
    names = {"reverse_model", "reverse_policy"} & parts.keys()
    assert parts["model"].env.world_model is parts["world_model"]
    dtype = torch.bfloat16 if direction == "both" else None
    assert parts["world_model"].matmul_dtype is dtype
    if direction == "forward":
        assert not names and "reverse_holdout_mse" not in trained.results
        return
    assert len(names) == 2 and "reverse_holdout_mse" in trained.results
    # the reverse model was fitted to the data read backwards, where its input is what follows
    model = parts["reverse_model"]
    assert model.matmul_dtype is dtype
    after = data["next", "observation"].mean(0)
    assert (model.input_mean[:2] - after).abs().max() < 0.05
    assert (model.input_mean - parts["world_model"].input_mean).abs().max() > 0
    if direction == "both":  # the adversary has moved all of the forward model's elites
        elites, moved = parts["world_model"].elites, parts["world_model"].state_dict()
        weights = [key for key in moved if key.startswith("weights")]
        assert weights
        assert all((moved[k][elites] != trained.fitted[k][elites]).any() for k in weights)


def test_a_run_keeps_the_digits_that_it_began_with() -> None:
    (cfg,) = compose_jobs("rambo", [])
    saved = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "model_matmul_dtype"])
    assert resumed_config(cfg, saved, []).model_matmul_dtype == "float32"
    word = "model_matmul_dtype=bfloat16"
    (cfg,) = compose_jobs("rambo", [word])
    with pytest.raises(ValueError, match="keeps its model_matmul_dtype=float32, got bfloat16"):
        resumed_config(cfg, saved, [word])


def test_the_way_back_is_cloned_or_random_and_pretrained_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = ["rollout_direction=both", "pretrained=auto", f"cache_dir={cache}", "epochs=0"]
    runs = [Trained(tmp_path / name, *words) for name in ("first", "second")]
    assert len(list(cache.glob("*.pt"))) == 1
    for name in ("world_model", "policy", "reverse_model", "reverse_policy"):
        one, other = (run.parts[name].state_dict() for run in runs)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    fresh = Trained(tmp_path / "fresh", "rollout_direction=both", "cloning.passes=0", "epochs=0")
    cloned = runs[0].parts["reverse_policy"]
    before = fresh.parts["reverse_policy"].state_dict()
    assert any((value != before[key]).any() for key, value in cloned.state_dict().items())
    assert runs[0].parts["collector"].reverse.policy is cloned
    random = Trained(tmp_path / "random", *words, "rollout_policy=random")
    assert random.parts["collector"].reverse.policy is None
    assert "reverse_policy" not in random.parts and len(list(cache.glob("*.pt"))) == 2


#: what checkpoints hold: the names of earlier versions, whose runs are resumed
USUAL = {
    "actor", "world_model", "agent_loss", "agent_optimizer", "model_buffer", "collector",
    "model_optimizer",
}  # fmt: skip
ALL = (
    "num_critics=3", "advantage_clip=1.5", "model_updates_every=2", "model_term=kl",
    "likelihood_budget=0.001", "budget_lr=100", "rollout_direction=both",
    "termination=none", "adversary_density=member", "model.adversarial_batch_size=24",
    "model.likelihood_batch_size=10",
)  # fmt: skip


def test_all_variants_at_once_and_resumed(tmp_path: Path) -> None:
    whole = Trained(tmp_path / "whole", *ALL, "epochs=4")
    rows = whole.rows
    # the adversary's turn comes in epochs 1 and 3
    assert [bool(row["loss_trust"]) for row in rows] == [True, False, True, False]
    assert "loss_model" not in rows[0]
    assert whole.results["model_updates"] == 2 * 6
    # lambda moved from the task's own
    lambdas = [float(row["model_lambda"]) for row in rows if row["model_lambda"]]
    assert lambdas[0] != pytest.approx(0.1) and lambdas[1] != pytest.approx(lambdas[0])
    further = {"model_trust", "likelihood_budget", "reverse_model", "reverse_policy"}
    saved = torch.load(whole.run.checkpoints.last, weights_only=True)["parts"]
    assert saved.keys() == (USUAL - {"actor"}) | further

    Trained(tmp_path / "parts", *ALL, "epochs=2")
    resumed = Trained(tmp_path / "parts", *ALL, "epochs=4")
    assert resumed.rows == rows and resumed.run.progress["epoch"] == 4


def test_a_value_budget_adapts_lambda_and_is_resumed(tmp_path: Path) -> None:
    words = ("value_budget=0.001", "epochs=4")
    whole = Trained(tmp_path / "whole", *words)
    rows, weight = whole.rows, 0.1  # where lambda starts
    for row in rows:
        weight *= math.exp(0.3 * max(-1.0, 1 - float(row["model_value_fall"]) / 0.001))
        assert float(row["model_lambda"]) == pytest.approx(weight, rel=1e-4)
    assert len({row["model_value_fall"] for row in rows}) == 4
    saved = torch.load(whole.run.checkpoints.last, weights_only=True)["parts"]
    assert saved.keys() == (USUAL - {"actor"}) | {"value_budget"}
    reference = saved["value_budget"]["reference.weights.0"]
    torch.testing.assert_close(reference, whole.fitted["weights.0"])
    Trained(tmp_path / "parts", words[0], "epochs=2")
    resumed = Trained(tmp_path / "parts", *words)
    assert resumed.rows == rows and resumed.run.progress["epoch"] == 4


def test_the_anchor_yields_where_lambda_rises(parts_of: Callable[..., Any]) -> None:
    words = ("value_budget=100", "agent.anchor_weight=0.2", "agent.anchor_final=0.2")
    weights: dict[bool, list[float]] = {}
    for yields in (False, True):
        cfg = configured(*words, f"agent.anchor_yields={yields}")
        parts = parts_of("rambo", cfg, noise()).parts
        agent, weights[yields] = parts["agent"], []
        for _ in range(2):
            agent._schedules.step()
            weights[yields].append(float(agent.anchor.weight))
            parts["value_budget"].step()  # far below the budget: lambda rises
    (first, second), (same, lighter) = weights[False], weights[True]
    assert first == second == same
    assert lighter == pytest.approx(math.exp(-0.3) * first, rel=1e-3)


def test_lambda_0_stays_0_whatever_the_budget(parts_of: Callable[..., Any]) -> None:
    cfg = configured("value_budget=0.001", "adversarial_weight=0")
    assert parts_of("rambo", cfg, noise()).parts["value_budget"] is None


def test_whole_episodes_are_imagined_besides(tmp_path: Path) -> None:
    plain = Trained(tmp_path / "plain")
    words = ("imagined_episodes=3", "imagined_steps=40", "rollout_starts=10", "termination=none")
    trained = Trained(tmp_path / "run", *words)
    collector, data = trained.parts["collector"], noise().transitions
    assert plain.parts["collector"].episodes is None
    length = trained.parts["collector"].forward.horizon
    assert int(trained.rows[0]["model_transitions"]) == 10 * length + 3 * 40
    rows = collector.collect()[10 * length :].reshape(40, 3)
    assert (rows["observation"][1:] == rows["next", "observation"][:-1]).all()
    starts = rows["observation"][0]
    first = data["observation"][early_rows(data, 1)]
    assert (torch.cdist(starts, first).amin(dim=1) == 0).all()
    # a model that runs away is held near the data
    model = trained.parts["world_model"]
    with torch.no_grad():
        model.biases[-1][..., :2] += 100.0
    observation = collector.collect()[10 * length :]["next", "observation"]
    low, high = data["observation"].aminmax(dim=0)
    assert ((observation - high - (high - low)) < 1e-5).all()
    assert observation.max() > high.max()


def test_imagined_episodes_are_no_longer_than_the_data_s(parts_of: Callable[..., Any]) -> None:
    rows = noise().transitions[:30].clone()
    rows["next", "observation"][:-1] = rows["observation"][1:]
    rows["next", "terminated"][[19, 29]] = True
    short = OfflineDataset(rows.exclude(("next", "done")), action_spec=noise().action_spec)
    for steps, wanted in ((500, 20), (7, 7)):
        cfg = configured("imagined_episodes=3", f"imagined_steps={steps}")
        assert parts_of("rambo", cfg, short).parts["collector"].episodes.horizon == wanted
    words = ("imagined_episodes=3", "rollout_direction=reverse", "adversarial_weight=0")
    assert parts_of("rambo", configured(*words), short).parts["collector"].episodes is None


@pytest.mark.parametrize(
    "word",
    ["advantage_clip=0", "model_term=js", "model_updates_every=0", "num_critics=0",
     "likelihood_budget=-1", "value_budget=0", "rollout_direction=back", "budget_lr=0",
     "agent.target_entropy=1"],
)  # fmt: skip
def test_bad_values_are_refused(word: str) -> None:
    key, value = word.split("=")
    with pytest.raises(ValueError, match=f"^{key} must be .*, got {value}"):
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


def constrained(**settings: Any) -> tuple[DataTerm, EnsembleWorldModel]:
    """A model as drawn, and what holds it to the data."""
    torch.manual_seed(0)
    spec, model = Bounded(-1, 1, shape=(1,)), EnsembleWorldModel(2, 1, hidden_sizes=(8,))
    agent = SACLoss(make_actor(2, spec), make_qvalue(2, 1), action_spec=spec)
    defaults = {"model_term": "likelihood", "likelihood_budget": None, "value_budget": None}
    others = {"adversarial_weight": 0.1, "budget_lr": 0.1, "device": "cpu"}
    cfg = OmegaConf.create({**defaults, **others, **settings})
    loss = AdversarialModelLoss.from_loss(model, agent, adversarial_weight=0.1)
    env = EnsembleModelEnv(model, action_spec=spec, starts=noise().transitions)
    return DataTerm(cfg, noise(), loss, env), model


class Progress:
    """A run that has none."""

    def __init__(self, progress: Mapping[str, Any]) -> None:
        self.progress = dict(progress)


def test_what_the_model_is_held_to_was_measured_on_the_same_rows() -> None:
    data_term, model = constrained()
    run: Any = Progress({"epoch": 0, "holdout_mse": [0.3, 0.7]})
    drawn = torch.get_rng_state()
    data_term.record_fit(run)
    kept = run.progress["fitted_error"]
    assert kept == data_term.model_error().tolist() == data_term.end_turn()["model_error"].tolist()
    with torch.no_grad():  # as adversarial training does
        model.biases[-1].add_(1.0)
    run.progress["epoch"] = 1
    data_term.record_fit(run)  # of a run that is resumed
    bound = data_term.error_bound(run)
    assert isinstance(bound, ModelErrorBound)
    assert torch.equal(bound.fitted, torch.tensor(kept)) and kept != pytest.approx([0.7] * 3)
    assert data_term.model_error().mean() > sum(kept) / 3 + 0.5
    # a run that is too old to have kept it has the holdout error for every entry
    del run.progress["fitted_error"]
    assert data_term.error_bound(run).fitted.tolist() == pytest.approx([0.7] * 3)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_model_s_error_is_that_of_the_elites() -> None:
    data_term, model = constrained()
    model.elites.copy_(torch.arange(1, 1 + len(model.elites)))
    rows = noise().transitions  # which are fewer than a thousand
    after = torch.cat([rows["next", "observation"], rows["next", "reward"]], dim=-1)
    scale = model.output_scale
    with torch.no_grad():
        mean, _ = model.predict(rows["observation"], rows["action"], model.elites)
        every, _ = model.predict(rows["observation"], rows["action"])
    wanted = ((mean - after) / scale).square().mean(dim=(0, 1))
    torch.testing.assert_close(data_term.model_error(), wanted, rtol=1e-4, atol=0)
    others = ((every - after) / scale).square().mean(dim=(0, 1))
    assert not torch.allclose(others, wanted, rtol=1e-3)


def test_a_budget_begins_where_the_fit_ends() -> None:
    data_term, _ = constrained(likelihood_budget=0.5)
    budget, rows = data_term.budget, noise().transitions
    assert budget is not None and data_term.trust is None
    with torch.no_grad():
        fitted = data_term.loss(rows)["loss_model"]
    data_term.record_fit(Progress({"epoch": 0}))  # type: ignore[arg-type]
    assert float(budget.budget) == pytest.approx(0.5 + float(fitted), rel=1e-5)
    weight = float(budget.adversarial_loss.adversarial_weight)
    assert data_term.end_turn()["model_lambda"] == pytest.approx(weight)
    assert data_term.after_update is not None
    data_term.after_update({"loss_model": fitted + 10.0})  # far beyond it
    assert data_term.end_turn()["model_lambda"] < weight
    assert constrained()[0].after_update is None


AGENT = (
    "agent.layer_norm=true", "agent.regression_updates=20", "agent.critic_warmup=1",
    "agent.lr_decay=cosine", "agent.anchor_weight=0.2", "agent.anchor_final=0.05",
    "agent.anchor_yields=true", "value_budget=0.02",
    "agent.deterministic_backup=true", "agent.anchor_batch_size=16", "agent.actor_average=0.5",
    "early_share=0.5", "early_steps=3", "model.adversarial_lr_decay=cosine", "model.beta=0.5",
)  # fmt: skip


def test_an_agent_that_starts_from_the_data_is_resumed_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*AGENT, "epochs=3", "checkpoint_every=1"]
    whole = Trained(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:  # as if a signal waited for the first epoch's end
        patch.setattr(Interruption, "received", True)
        assert len(Trained(tmp_path / "halves", *words).rows) == 1
    resumed = Trained(tmp_path / "halves", *words)
    assert resumed.rows == whole.rows and len(whole.rows) == 3
    agent = whole.parts["agent"]
    assert any("norm" in type(m).__name__.lower() for m in agent.loss.qvalue_network.modules())
    # the last of 6 updates was taken after 5: the cosine, and the line from 0.2 to 0.05
    rates = [group["lr"] for group in agent.optimizer.param_groups]
    share = 0.5 * (1 + math.cos(math.pi * 5 / 6))
    settings = configured(*words).agent
    assert rates == pytest.approx(
        [share * lr for lr in (settings.critic_lr, settings.actor_lr, settings.alpha_lr)]
    )
    spread = float(discounted_returns(noise().transitions, settings.gamma).std())
    doubt = 0.1 / float(whole.rows[1]["model_lambda"])  # lambda in the last epoch, and at first
    assert doubt < 1
    weight = 0.2 * 0.25 ** (5 / 6) * spread * doubt
    assert float(agent.anchor.weight) == pytest.approx(weight, rel=1e-5)
    assert "loss_anchor" in whole.rows[0] and whole.run.progress["critics"] > 0


def test_the_adversarys_rate_falls_by_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def record(optimizer: torch.optim.Optimizer, values: list[float]) -> None:
        set_rates(optimizer, values)
        rates.append(float(optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(rambo, "set_rates", record)
    Trained(tmp_path, "epochs=3", "model.adversarial_lr_decay=cosine")
    whole = configured().model.adversarial_lr
    assert rates == pytest.approx([whole, 0.75 * whole, 0.25 * whole])


def test_a_likelihood_budget_takes_the_place_of_one_of_the_values() -> None:
    data_term, model = constrained(value_budget=0.5)
    assert data_term.budget is None and data_term.after_update is None
    with torch.no_grad():  # rewards fall by far more than the budget
        model.biases[-1][..., 2] -= 10.0
    metrics = data_term.end_turn()
    assert metrics["model_value_fall"] > 5
    assert metrics["model_lambda"] == pytest.approx(0.1 * math.exp(-0.3))
    data_term, _ = constrained(value_budget=0.5, likelihood_budget=0.5)
    assert data_term.budget is not None and data_term.value_budget is None
