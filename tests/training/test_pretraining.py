"""The maximum-likelihood fit, early stopping and behaviour cloning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.modules import EnsembleWorldModel, make_actor
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.training import pretraining
from rambo_trl.training.pretraining import (
    EarlyStopping,
    clip_actions,
    clone_behaviour,
    fit_world_model,
)

NOISE = torch.tensor([0.3, 0.1, 0.2])  # of the two observation entries and the reward


def linear_system(observation: Tensor, action: Tensor) -> Tensor:
    """Means of the next observation and the reward."""
    x, y, a = observation[:, :1], observation[:, 1:], action
    return torch.cat([0.9 * x + 0.5 * a, y - 0.4 * x, x + y - a], dim=-1)


def linear_transitions(rows: int) -> TensorDict:
    observation, action = torch.randn(rows, 2), 2 * torch.rand(rows, 1) - 1
    target = linear_system(observation, action) + NOISE * torch.randn(rows, 3)
    return TensorDict(
        {
            "observation": observation,
            "action": action,
            "next": {"observation": target[:, :2], "reward": target[:, 2:]},
        },
        [rows],
    )


def small_model(**kwargs) -> EnsembleWorldModel:
    return EnsembleWorldModel(2, 1, hidden_sizes=(16,), **kwargs)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_sizes": (32,)}, {"hidden_sizes": (32, 32), "matmul_dtype": torch.bfloat16}],
    ids=["exact", "rounded"],
)
def test_fit_recovers_a_linear_gaussian_system(settings: dict) -> None:
    model = EnsembleWorldModel(2, 1, num_members=3, num_elites=2, **settings)
    data = linear_transitions(3000)
    before = data.clone()
    fit = fit_world_model(model, data, lr=1e-2, batch_size=128, patience=4, max_passes=20)
    assert (data == before).all()
    observation, action = torch.randn(300, 2), 2 * torch.rand(300, 1) - 1
    with torch.no_grad():
        mean, log_var = model.predict(observation, action, model.elites)
    error = (mean - linear_system(observation, action)).square().mean(1).sqrt()
    assert (error < 0.15).all(), error
    ratio = (0.5 * log_var).exp().mean(1) / NOISE
    assert (ratio - 1).abs().max() < 0.2, ratio
    # the reported error is that of the model as it is left, on rows that it was not fitted on
    floor = NOISE.square().mean().item()
    assert all(0.8 * floor < e < 1.6 * floor for e in fit.holdout_mse)
    assert fit.passes == len(fit.history) <= 20


def test_early_stopping_restores_each_members_best_weights() -> None:
    model = small_model(num_members=3, num_elites=2)
    stopping = EarlyStopping(model, patience=3)

    def mark(value: float) -> None:
        with torch.no_grad():
            for parameter in [*model.weights, *model.biases]:
                parameter.fill_(value)

    errors = [
        # member 0 improves by more than 1 % in passes 0 and 2, 1 in 0 and 1, 2 in 0 only
        [1.00, 1.0, 1.0],
        [0.995, 0.5, 2.0],
        [0.98, 0.6, 0.995],
        [0.975, 0.496, 0.991],  # improvements, but none by more than 1 %
        [0.979, 0.499, math.nan],
    ]
    for i, error in enumerate(errors):
        mark(float(i))
        assert stopping.update(torch.tensor(error)) is False, f"pass {i}"
    mark(5.0)
    assert stopping.update(torch.tensor([1.0, 1.0, 1.0])) is True, "the third pass in a row"
    bounds = [p.detach().clone() for p in (model.min_log_var, model.max_log_var)]
    best = stopping.restore()
    torch.testing.assert_close(best, torch.tensor([0.98, 0.5, 1.0]))
    for parameter in [*model.weights, *model.biases]:
        for member, marked in enumerate((2.0, 1.0, 0.0)):
            assert (parameter[member] == marked).all()
    # the bounds are shared by the members and stay
    torch.testing.assert_close([model.min_log_var, model.max_log_var], bounds)


def test_any_improvement_starts_the_patience_anew() -> None:
    stopping = EarlyStopping(small_model(num_members=2, num_elites=1), patience=2)
    sequence = [[1.0, 1.0], [1.0, 1.0], [1.0, 0.5], [1.0, 1.0], [1.0, 1.0]]
    stops = [stopping.update(torch.tensor(e)) for e in sequence]
    assert stops == [False, False, False, False, True]


class RecordingModel(EnsembleWorldModel):
    """Remembers the rows, by the name in their first entry, that each member was fitted on."""

    def __init__(self) -> None:
        super().__init__(1, 1, hidden_sizes=(2,))
        self.fitted: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def predict(self, observation: Tensor, action: Tensor, members: Tensor | None = None):
        (self.fitted if torch.is_grad_enabled() else self.held_out).append(observation[..., 0])
        return super().predict(observation, action, members)


def named_transitions(rows: int) -> TensorDict:
    return TensorDict(
        {
            "observation": torch.arange(float(rows))[:, None],
            "action": torch.zeros(rows, 1),
            "next": {"observation": torch.zeros(rows, 1), "reward": torch.zeros(rows, 1)},
        },
        [rows],
    )


def test_members_learn_from_bootstraps_of_their_own_and_never_from_the_holdout() -> None:
    model = RecordingModel()
    fit_world_model(model, named_transitions(400), batch_size=40, max_passes=2)
    held_out = set(model.held_out[0].tolist())
    assert len(held_out) == 40
    # from all over the data, not the last episodes: within six standard errors of the mean
    assert np.mean(list(held_out)) == pytest.approx(199.5, abs=6 * 400 / (12 * 40) ** 0.5)
    train = np.array(sorted(set(range(400)) - held_out))
    assert model.input_mean[0].item() == pytest.approx(train.mean(), rel=1e-5)
    assert model.input_std[0].item() == pytest.approx(train.std(), rel=1e-5)
    assert all(set(rows.tolist()) == held_out for rows in model.held_out)
    assert all(batch.shape == (7, 40) for batch in model.fitted)
    assert len(model.fitted) == 2 * 9
    first, second = (torch.cat(model.fitted[i : i + 9], dim=1) for i in (0, 9))
    seen = [row.sort().values for row in first]
    for member in range(7):
        assert held_out.isdisjoint(seen[member].tolist())
        # a bootstrap holds about 63 % of the rows, some of them several times
        share = len(seen[member].unique()) / 360
        assert share == pytest.approx(1 - 1 / math.e, abs=0.1)
        # the same rows in the next pass, in another order
        torch.testing.assert_close(second[member].sort().values, seen[member])
        assert not torch.equal(second[member], first[member])
        for other in range(member):
            assert not torch.equal(seen[member], seen[other])


@pytest.mark.parametrize(
    ("rows", "kwargs", "held_out"),
    [
        (400, {}, 40),
        (400, {"max_holdout": 15}, 15),
        (30, {"holdout_fraction": 0.01}, 1),
        (5, {}, 1),
        (2, {}, 1),
        (10_100, {}, 1000),
    ],
)
def test_number_of_rows_held_out(rows: int, kwargs: dict, held_out: int) -> None:
    model = RecordingModel()
    fit_world_model(model, named_transitions(rows), max_passes=1, **kwargs)
    assert model.held_out[0].shape == (held_out,)


def test_given_rows_are_the_holdout_and_all_others_are_learnt_from() -> None:
    model, rows = RecordingModel(), named_transitions(460)
    fit_world_model(model, rows[:400], holdout=rows[400:], batch_size=40, max_passes=2)
    assert all(error_rows.tolist() == list(range(400, 460)) for error_rows in model.held_out)
    learnt = np.arange(400)
    assert model.input_mean[0].item() == pytest.approx(learnt.mean(), rel=1e-5)
    assert model.input_std[0].item() == pytest.approx(learnt.std(), rel=1e-5)
    assert len(model.fitted) == 2 * 10  # none of the 400 is left out
    assert max(batch.max() for batch in model.fitted) < 400
    with pytest.raises(ValueError, match="holdout has no rows"):
        fit_world_model(model, rows[:400], holdout=rows[:0])


def test_fits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 transitions"):
        fit_world_model(RecordingModel(), named_transitions(1))
    for kwargs in ({"holdout_fraction": 0.0}, {"holdout_fraction": 1.0}, {"max_holdout": 0}):
        with pytest.raises(ValueError, match="holdout_fraction"):
            fit_world_model(RecordingModel(), named_transitions(100), **kwargs)


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"max_updates": 20, "holdout_every": 8}, [8, 16, 20]),  # passes of 9 updates
        ({"max_updates": 20}, [4, 8, 12, 16, 20]),
        ({"max_updates": 200}, [*range(9, 200, 9), 200]),
        ({"max_updates": 3, "holdout_every": 8}, [3]),
        ({"max_updates": 20, "max_passes": 1, "holdout_every": 20}, [9]),
        ({"max_passes": 3}, [9, 18, 27]),
    ],
)
def test_a_budget_in_updates_is_kept_whatever_a_pass_is(
    settings: dict, evaluations: list[int]
) -> None:
    class Bar:
        updates = 0

        def update(self, n: int = 1) -> None:
            self.updates += n

    bar, seen = Bar(), []
    fit = fit_world_model(
        RecordingModel(),
        named_transitions(400),
        batch_size=40,
        patience=100,
        on_pass=lambda i, error: seen.append((i, bar.updates, len(error))),
        bar=bar,
        **settings,
    )
    assert seen == [(i, updates, 7) for i, updates in enumerate(evaluations, 1)]
    assert fit.updates == bar.updates == evaluations[-1]
    assert len(fit.history) == len(evaluations) and fit.passes == pytest.approx(evaluations[-1] / 9)


@pytest.mark.parametrize("rows", [60, 5000])
def test_as_many_updates_for_few_rows_as_for_many(rows: int) -> None:
    data = linear_transitions(rows)
    fit = fit_world_model(
        small_model(), data, batch_size=128, max_updates=30, holdout_every=10, patience=9
    )
    assert (fit.updates, len(fit.history), len(fit.elites)) == (30, 3, 5)
    assert all(map(math.isfinite, fit.holdout_mse))


def test_patience_counts_evaluations() -> None:
    model, data = small_model(), linear_transitions(400)
    settings = {"lr": 1e-9, "batch_size": 40, "patience": 3, "holdout_every": 2}
    assert fit_world_model(model, data, max_updates=1000, **settings).updates == 2 * (1 + 3)


def test_evaluations_draw_no_random_numbers() -> None:
    models = [small_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    data, drawn = linear_transitions(400), []
    for model, settings in zip(models, ({"max_passes": 2}, {"max_updates": 18}), strict=True):
        torch.manual_seed(3)
        fit_world_model(model, data, batch_size=40, **settings)
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


def test_a_rate_that_falls_ends_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Noting(pretraining.GradientStep):
        def __call__(self, *batches: TensorDict) -> dict[str, Tensor]:
            rates.append(self.optimizer.param_groups[0]["lr"])
            return super().__call__(*batches)

    monkeypatch.setattr(pretraining, "GradientStep", Noting)
    settings = {"max_updates": 8, "batch_size": 16, "lr": 0.1, "lr_decay": "cosine"}
    fit_world_model(small_model(), linear_transitions(60), **settings)
    want = [0.05 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]
    assert rates == pytest.approx(want)
    del settings["max_updates"]
    with pytest.raises(ValueError, match="max_updates"):
        fit_world_model(small_model(), linear_transitions(60), **settings)


@pytest.mark.parametrize("name", ["max_passes", "max_updates", "holdout_every"])
def test_a_budget_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1 or None, got 0"):
        fit_world_model(RecordingModel(), named_transitions(100), **{name: 0})


LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 5.0])


def test_clip_actions_on_asymmetric_bounds() -> None:
    action = torch.tensor([[-2.0, 5.0], [1.0, 0.0], [-0.5, 2.5], [-7.0, 9.0]])
    got = clip_actions(action, Bounded(LOW, HIGH), margin=0.1)
    want = torch.tensor([[-1.85, 4.75], [0.85, 0.25], [-0.5, 2.5], [-1.85, 4.75]])
    torch.testing.assert_close(got, want)


def policy_by_hand(observation: Tensor) -> Tensor:
    return LOW + (HIGH - LOW) * torch.sigmoid(2 * observation[:, :2])


def clone(action: Tensor, observation: Tensor, **kwargs):
    spec = Bounded(LOW, HIGH)
    actor = make_actor(3, spec, hidden_sizes=(32,))
    data = TensorDict({"observation": observation, "action": action}, observation.shape[:1])
    before = data.clone()
    metrics = clone_behaviour(actor, data, spec, batch_size=64, **kwargs)
    assert (data == before).all(), "the caller's actions stay as they are"
    return actor, metrics


def test_cloned_mode_is_the_datas_policy() -> None:
    observation = torch.randn(1000, 3)
    action = policy_by_hand(observation) + 0.05 * torch.randn(1000, 2)
    actor, metrics = clone(action.clamp(LOW, HIGH), observation, passes=15, lr=2e-2)
    observation = torch.randn(200, 3)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = actor(TensorDict({"observation": observation}, [200]))["action"]
    error = (mode - policy_by_hand(observation)).abs().mean(0)
    assert (error < 0.15 * (HIGH - LOW) / 5).all(), error
    assert set(metrics) == {"loss_bc"}


@pytest.mark.slow
@pytest.mark.usefixtures("graphs_only")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_cloning_update_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rambo_trl.runtime.compiling"):
        clone(torch.zeros(200, 2), torch.randn(200, 3), passes=1, compile=True)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "compiling the cloning update"
    ]


def test_actions_at_the_bounds_can_be_cloned() -> None:
    observation = torch.randn(500, 3)
    action = torch.where(observation[:, :2] > 0, HIGH, LOW)
    actor, metrics = clone(action, observation, passes=10, lr=1e-2)
    assert math.isfinite(metrics["loss_bc"])
    assert all(p.isfinite().all() for p in actor.parameters())
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = actor(TensorDict({"observation": observation}, [500]))["action"]
    middle = (LOW + HIGH) / 2
    assert ((mode > middle) == (action > middle)).float().mean() > 0.97


def script_errors(monkeypatch: pytest.MonkeyPatch, *passes: list[float]) -> None:
    """Let the holdout errors be these, pass by pass."""
    errors = iter(passes)
    monkeypatch.setattr(EnsembleModelLoss, "member_mse", lambda *_: torch.tensor(next(errors)))


def test_fit_stops_by_the_patience_and_improvement_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script_errors(monkeypatch, *([1.0 - 0.05 * n] * 7 for n in range(9)))
    fit = fit_world_model(
        RecordingModel(), named_transitions(50), patience=2, min_improvement=0.2, max_passes=9
    )
    # 0.95 and 0.9 are no 20 % below 1.0
    assert fit.passes == 3 and fit.holdout_mse == [1.0] * 7


def test_fit_leaves_each_members_best_weights_and_chooses_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script_errors(
        monkeypatch,
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        [0.99, 0.98, 0.97, 0.05, 0.06, 0.07, 0.08],
    )
    model, after = RecordingModel(), []
    fit = fit_world_model(
        model,
        named_transitions(50),
        max_passes=2,
        on_pass=lambda *_: after.append(model.weights[0].detach().clone()),
    )
    assert (after[0] != after[1]).flatten(1).any(1).all()
    want = torch.cat([after[0][:3], after[1][3:]])
    assert torch.equal(model.weights[0].detach(), want)
    assert fit.elites == [3, 4, 5, 6, 0]


def test_cloning_sees_every_row_and_shuffles_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(batch) -> dict:
        seen.append(batch["observation"][:, 0].clone())
        return {}

    monkeypatch.setattr(pretraining, "GradientStep", lambda *args, **kwargs: record)
    observation = torch.arange(128.0)[:, None].expand(128, 3)
    clone(torch.ones(128, 2), observation, updates=5)  # in batches of 64
    assert len(seen) == 5
    seen.clear()
    clone(torch.ones(128, 2), observation, passes=2)
    assert len(seen) == 4
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    for rows in (first, second):
        assert torch.equal(rows.sort().values, observation[:, 0])
        assert not torch.equal(rows, observation[:, 0])
    assert not torch.equal(first, second)


def test_rewards_of_any_unit_are_learnt_alike() -> None:
    def fitted(scale: float, **settings) -> tuple[EnsembleWorldModel, float]:
        torch.manual_seed(0)
        data = linear_transitions(600)
        data["next", "reward"] = scale * data["next", "reward"]
        model = small_model()
        fit_world_model(model, data, lr=1e-2, batch_size=64, max_passes=5, **settings)
        with torch.no_grad():
            mean, _ = model.predict(data["observation"], data["action"])
        reward = data["next", "reward"] / scale
        error = (mean.mean(0)[:, -1:] / scale - reward).square().mean() / reward.var()
        return model, error.item()

    in_plain_units = fitted(1.0)[1]
    for unit in (1e6, 1e-6, 1e20):
        model, error = fitted(unit)
        assert error < 0.1 and error == pytest.approx(in_plain_units, rel=0.2)
        assert float(model.reward_std) > 0.1 * unit
    # as published: the unit decides
    for unit in (1e6, 1e-6):
        model, error = fitted(unit, standardize_reward=False)
        assert float(model.reward_std) == 1 and error > 0.5


def test_a_noiseless_state_does_not_drown_the_reward_with_beta() -> None:
    """A reward with a peak at 0, of a state that is known to a thousandth."""

    def reward_error(beta: float) -> float:
        torch.manual_seed(0)
        observation, action = 2 * torch.rand(4000, 6) - 1, 2 * torch.rand(4000, 1) - 1
        following = observation + 0.1 * action
        rows = TensorDict(
            observation=observation,
            action=action,
            next=TensorDict(
                observation=following,
                reward=-(following[:, :1].abs() + 0.05).log(),
                batch_size=[4000],
            ),
            batch_size=[4000],
        )
        model = EnsembleWorldModel(6, 1, num_members=1, num_elites=1, hidden_sizes=(32, 32))
        train, rest = rows[:3000], rows[3000:]
        fit_world_model(
            model, train, holdout=rest, lr=1e-3, max_updates=1200, lr_decay="cosine", beta=beta
        )
        return EnsembleModelLoss(model).entry_mse(rest)[-1].item()  # of a variance of 1

    assert reward_error(0.5) < 0.3 < 0.6 < reward_error(0.0)
