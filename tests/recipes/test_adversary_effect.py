"""The adversary's effect is measured right: on models changed by a known amount."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adversary_effect
import gymnasium
import numpy as np
import pytest
import torch
from adversary_effect import describe_effect
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss
from rambo_trl.objectives.value_budget import step_by_elite
from rambo_trl.reporting import adversary_measures, adversary_report
from rambo_trl.reporting.adversary_measures import (
    credible_steps,
    discounted,
    imagined_rewards,
    measure,
    mode,
    off_the_data,
    real_rewards,
)

MakeRun = Callable[..., str]
GAMMA = 0.9
SPEC = Bounded(-1, 1, shape=(1,))
REWARD = 2  # entry of the model's output, after the two of the state


def crosses(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """A termination rule: the first entry of the next state is above 5."""
    return next_observation[..., 0] > 5


@pytest.fixture
def parts() -> tuple[EnsembleWorldModel, EnsembleModelEnv, AdversarialModelLoss]:
    """A linear model, its env and a critic, all as drawn."""
    model = EnsembleWorldModel(2, 1, num_members=3, num_elites=2, hidden_sizes=())
    rows = TensorDict({"observation": torch.randn(64, 2)}, [64])
    env = EnsembleModelEnv(model, action_spec=SPEC, starts=rows, termination=crosses)
    agent = SACLoss(make_actor(2, SPEC), make_qvalue(2, 1), action_spec=SPEC)
    return model, env, AdversarialModelLoss.from_loss(model, agent, gamma=GAMMA)


def lowered(
    model: EnsembleWorldModel, *, by: float = 0.0, by_action: float = 0.0
) -> EnsembleWorldModel:
    """The model with a reward that is lower by ``by + by_action * action``."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.biases[-1][..., REWARD] -= by
        other.weights[-1][:, 2, REWARD] -= by_action
    return other


def data(rows: int = 50) -> TensorDict:
    """Rows whose action is 0 and whose state stays as it is."""
    state = torch.randn(rows, 2)
    columns = {"observation": state, "action": torch.zeros(rows, 1), "next": {"observation": state}}
    return TensorDict(columns, [rows])


def test_a_step_s_promise_by_hand(parts: tuple[Any, Any, Any]) -> None:
    model, env, loss = parts
    observation, action = 3 * torch.randn(200, 2), torch.rand(200, 1)
    state, reward, value = step_by_elite(model, env, loss, observation, action)
    states, rewards, values = [], [], []
    for member in model.elites:
        w, b = model.weights[0][member], model.biases[0][member]
        out = (torch.cat([observation, action], dim=-1) @ w + b)[:, :3]
        next_observation = observation + out[:, :2]
        step = TensorDict({"next": {"observation": next_observation}}, [200])
        goes_on = (next_observation[:, 0] <= 5).float()
        states.append(next_observation)
        rewards.append(out[:, REWARD])
        values.append(out[:, REWARD] + GAMMA * goes_on * loss._next_value(step))
    torch.testing.assert_close(state, torch.stack(states))
    torch.testing.assert_close(reward, torch.stack(rewards))
    torch.testing.assert_close(value, torch.stack(values), rtol=1e-4, atol=1e-4)
    assert 0 < (observation[:, 0] > 5).sum() < 200  # the rule matters


def test_the_change_is_found_where_it_was_made(parts: tuple[Any, Any, Any]) -> None:
    model, env, loss = parts
    rows, target = data(), torch.ones(50, 1)
    change, _ = off_the_data((model, lowered(model, by_action=2.0)), env, loss, rows, target)
    # nothing at the data's action, twice the way off it
    for key in ("reward", "value", "value_low", "value_high"):
        expected = [-2 * share for share in change["share"]]
        assert change[key] == pytest.approx(expected, abs=1e-4), key
    models = model, lowered(model, by=0.5)
    everywhere, _ = off_the_data(models, env, loss, rows, target, unit=4.0)
    assert everywhere["share"] == change["share"]
    for key in ("reward", "value"):
        assert everywhere[key] == pytest.approx([-2.0] * len(change["share"]), abs=4e-4)


def test_next_states_move_as_far_as_the_elites_were_moved(parts: tuple[Any, Any, Any]) -> None:
    fitted, env, loss = parts
    fitted.elites.copy_(torch.tensor([2, 0]))
    after = copy.deepcopy(fitted)
    with torch.no_grad():
        after.biases[-1][2, :, 0] += 0.6  # one of two elites: the mean moves by half of it
        after.weights[-1][:, 2, 0] -= 2.0  # by the action, -2 in all
        after.biases[-1][1] += 100.0  # no elite
        after.biases[-1][..., REWARD] += 50.0  # no state
    rows = data()
    weight, bias = (x[0][fitted.elites].mean(dim=0) for x in (fitted.weights, fitted.biases))
    inputs = torch.cat([rows["observation"], rows["action"]], dim=-1)
    predicted = rows["observation"] + (inputs @ weight + bias)[:, :2].detach()
    rows["next"] = TensorDict({"observation": predicted + torch.tensor([0.4, 0.0])}, [50])
    _, found = off_the_data((fitted, after), env, loss, rows, torch.ones(50, 1))
    moved = [abs(0.3 - 2 * share) / 2**0.5 for share in found["share"]]
    assert found["share"] == pytest.approx([k / 10 for k in range(11)])
    for key in ("moved", "moved_low", "moved_high"):
        assert found[key] == pytest.approx(moved, abs=1e-5), key
    # from the data's next state: the errors at its action, then with what the action does
    x, y = weight[2, :2].tolist()
    for share in (0, 1):
        off = {"fitted": share * x - 0.4, "adversarial": share * (x - 2) + 0.3 - 0.4}
        for key, entry in off.items():
            distance = ((entry**2 + (share * y) ** 2) / 2) ** 0.5
            assert found[key][-share] == pytest.approx(distance, abs=1e-5), (key, share)


def test_next_states_are_told_by_median_and_quartiles(parts: tuple[Any, Any, Any]) -> None:
    fitted, env, loss = parts
    after = copy.deepcopy(fitted)
    with torch.no_grad():
        after.weights[-1][:, 2, 1] += 2**0.5  # a row moves by its action
    rows = data(5)
    target = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0]).unsqueeze(-1)
    _, moved = off_the_data((fitted, after), env, loss, rows, target)
    got = [moved[key][-1] for key in ("moved_low", "moved", "moved_high")]
    assert got == pytest.approx([0.1, 0.2, 0.5], abs=1e-5)


def test_imagined_rewards_stop_at_a_predicted_end(parts: tuple[Any, Any, Any]) -> None:
    model, env, _ = parts
    with torch.no_grad():
        model.weights[0].zero_()
        model.biases[0].zero_()
        model.biases[0][..., 0] = 2.0  # two up each step
        model.biases[0][..., REWARD] = 1.0
        model.biases[0][..., 3:] = -50.0  # hardly any noise
        model.min_log_var.fill_(-50.0)
    start = torch.tensor([[0.0, 0.0], [-4.0, 0.0], [4.0, 0.0]])
    rewards = imagined_rewards(model, env, lambda x: torch.zeros(len(x), 1), start, 4)
    expected = [[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 1, 0]]
    torch.testing.assert_close(rewards, torch.tensor(expected).float(), atol=1e-3, rtol=0)


def test_discounted_returns_and_their_error() -> None:
    # two start states, each twice: the error is over start states, not over rollouts
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 0.0, 2.0]])
    curve = discounted(rewards, 0.5, groups=2)
    assert curve["mean"] == pytest.approx([2.5, 3.0])
    # means by start state: (1 + 3) / 2 and (2 + 4) / 2, then 2 and 4
    assert curve["standard_error"] == pytest.approx([0.5, 1.0])


def test_rollouts_that_explode_are_not_compared() -> None:
    fine, exploding = torch.full((5, 4), -1.0), torch.full((5, 4), 0.5)
    exploding[3, 0] = 1e9  # one of four is enough, and what follows is lost
    assert credible_steps((fine, fine), 0.5) == 5 == credible_steps((fine, fine), 1.0)
    assert credible_steps((fine, exploding), 1.0) == 3
    assert credible_steps((fine, exploding), 0.4) == 1  # there is always a step to show


def made_up(real: float, adversarial: float) -> dict[str, Any]:
    """What was measured, as far as the figure needs it."""
    share = [k / 10 for k in range(11)]

    def change(size: float) -> dict[str, list[float]]:
        value = [-size * x for x in share]
        spread = {"value_low": [2 * v for v in value], "value_high": [0.5 * v for v in value]}
        return {"share": share, "reward": value, "value": value, **spread}

    def moved(size: float) -> dict[str, list[float]]:
        value = [0.01 + size * x for x in share]
        spread = {"moved_low": [0.5 * v for v in value], "moved_high": [2 * v for v in value]}
        true = {"fitted": [0.04 + x for x in share], "adversarial": [0.05 + x for x in share]}
        return {"share": share, "moved": value, **spread, **true}

    curves = {"real": real, "fitted": 50.0, "adversarial": adversarial}
    return {
        "dataset": "bundled/hopper/medium-replay-v0", "seed": 0, "epoch": 20,
        "adversarial_weight": 3e-4, "gamma": 0.99, "horizon": 30, "horizon_asked": 30, "rows": 100,
        "model_error": {"fitted": 0.01, "adversarial": 0.011},
        "policy_actions": change(2.0), "random_actions": change(8.0),
        "next_states": {"policy_actions": moved(0.25), "random_actions": moved(0.5)},
        "returns": {
            name: {"mean": [end * k / 30 for k in range(1, 31)], "standard_error": [1.0] * 30}
            for name, end in curves.items()
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("adversarial", "expected"),
    [(30.0, "is a lower bound on"), (39.0, "is within two standard"), (60.0, "is above")],
)
def test_what_is_said(adversarial: float, expected: str) -> None:
    effect = made_up(40.0, adversarial)
    text = "\n".join(describe_effect(effect))
    assert expected in text and "0.01 before adversarial training, 0.011 after" in text
    assert "-0 at the data's actions, -2 at the policy's, -8 at random ones" in text
    assert "moved by 0.01 standard" in text and "0.26 at the policy's, 0.51 at random" in text
    assert "they lie 0.04 before adversarial training, 0.05 after" in text
    assert "longer rollouts" not in text
    del effect["returns"]["real"]
    assert len(describe_effect(effect)) == 4
    effect["horizon_asked"] = 50
    assert "from step 31 on" in describe_effect(effect)[-1]


class TestFigure:
    @pytest.fixture
    def panels_of(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
        """Draws a figure; returns its panels."""
        drawn: list[Figure] = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda f, path: (drawn.append(f), save(f, path)))

        def draw(effect: dict[str, Any], rows: list[dict[str, Any]]) -> list[Axes]:
            adversary_report.draw(effect, rows, tmp_path / "a.png")
            assert (tmp_path / "a.png").stat().st_size > 20_000
            return drawn[-1].axes

        return draw

    def test_what_was_not_recorded_has_no_panel(self, panels_of: Callable[..., Any]) -> None:
        effect = made_up(40.0, 30.0)
        assert len(panels_of(effect, [{"epoch": 1, "start_value": None}])) == 3
        del effect["returns"]["real"]
        *_, returns, believed = panels_of(effect, [{"epoch": 1, "mean_q": 1.0}])
        labels = [text.get_text() for text in returns.get_legend().get_texts()]
        assert labels == ["in the fitted model", "in the adversarial model"]
        assert believed.get_ylabel() == "mean Q"

    def test_training_is_drawn_as_a_whole(self, panels_of: Callable[..., Any]) -> None:
        rows = [
            {"epoch": e, "mean_q": 1.0, "return_mean": 3.0 if e == 40 else None} for e in range(41)
        ]
        *_, believed, achieved = panels_of(made_up(40.0, 30.0), rows)
        # one evaluation alone would be a panel of its own
        assert believed.get_xlim() == achieved.get_xlim() == (0, 41)

    def test_next_states_are_drawn_beside_the_data_s_own(
        self, panels_of: Callable[..., Any]
    ) -> None:
        effect = made_up(40.0, 30.0)
        axes = panels_of(effect, [])[1]
        lines = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata())]
        ways = [effect["next_states"][key] for key in ("random_actions", "policy_actions")]
        assert lines == [way["moved"] for way in ways] + [
            way[key] for key in ("fitted", "adversarial") for way in ways
        ]
        assert axes.get_yscale() == "log"
        title = axes.get_title(loc="left")
        assert "(on the data 0.01; error 0.04 before, 0.05 after)" in title

    def test_the_start_s_value_is_drawn_beside_what_it_came_to(
        self, panels_of: Callable[..., Any]
    ) -> None:
        rows = [
            {"epoch": e, "start_value": 2.0 * e, "alpha": 0.5, "entropy": -1.0, "score": 5.0,
             "discounted_return_mean": 3.0 if e % 2 == 0 else None}
            for e in range(1, 5)
        ]  # fmt: skip
        axes = panels_of({**made_up(40.0, 30.0), "gamma": 0.9}, rows)[3]
        later = 0.5 * (0.9 + 0.9**2 / (1 - 0.9))
        promised, counted, true = axes.lines
        assert list(counted.get_ydata()) == [2, 4, 6, 8]
        assert promised.get_ydata() == pytest.approx([v + later for v in (2, 4, 6, 8)])
        assert (list(true.get_xdata()), list(true.get_ydata())) == ([2, 4], [3, 3])


def test_bad_input_is_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in (
        ([str(tmp_path / "none")], "does not exist"),
        ([make_run(tmp_path / "a", settings={"method": "mopo"})], "only RAMBO's"),
        ([make_run(tmp_path / "b", settings={"adversarial_weight": 0.0})], "adversarial_weight=0"),
        ([make_run(tmp_path / "c", settings={"adversarial_weight": 1e-3})], "--pretrained"),
        ([str(tmp_path / "c"), "--horizon", "0"], "--horizon"),
    ):
        assert adversary_effect.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and expected in line


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_dataset")
def test_a_run_from_its_start_to_its_figure(
    tmp_path: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("schedule=smoke", "task=inverteddoublependulum-medium-replay",
             "dataset=test/idp/tiny-v0", "adversarial_weight=0.1", "run_dir=run")  # fmt: skip
    run_recipe(tmp_path, "rambo", *words)
    assert adversary_effect.main([str(run), "--horizon", "5", "--out", str(tmp_path / "out")]) == 0
    effect = json.loads((tmp_path / "out/adversary_effect.json").read_text())
    assert effect["epoch"] == 2 and set(effect["returns"]) == {"real", "fitted", "adversarial"}
    assert len(effect["returns"]["real"]["mean"]) == 5
    # training has moved the model
    assert effect["model_error"]["fitted"] != effect["model_error"]["adversarial"]
    random, policy = (effect["next_states"][key] for key in ("random_actions", "policy_actions"))
    assert random["moved"][0] == policy["moved"][0] > 0 and random["moved"][-1] > 0
    assert random["moved"][-1] != policy["moved"][-1] and random["fitted"] != random["adversarial"]
    assert (tmp_path / "out/adversary_effect.png").stat().st_size > 20_000
    assert not (run / "adversary_effect.json").exists()
    assert "error on" in capsys.readouterr().out
    key, other = "rambo_trl_fitted_model", tmp_path / "other.safetensors"
    header, state = read_safetensors(run / "pretrained_model.safetensors", key, "model")
    write_safetensors(other, state | {"elites": state["elites"].flip(0)}, key, header or {})
    assert adversary_effect.main([str(run), "--pretrained", str(other)]) == 2
    assert "of another fit than this run's: its elites differ" in capsys.readouterr().err
    # and select_run's bound is recorded
    assert json.loads((run / "results.json").read_text())["q_bound"] > 0


class Drift(gymnasium.Env):
    """Its state moves on by 2 and pays the action; it ends from 6 on."""

    observation_space = gymnasium.spaces.Box(-99, 99, (1,))
    action_space = gymnasium.spaces.Box(-99, 99, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.x = 1.0 + (seed or 0) - adversary_measures.FIRST_SEED
        return np.array([self.x]), {}

    def step(self, action: Any) -> Any:
        self.x += 2
        return np.array([self.x]), float(action[0]), self.x >= 6, False, {}


def test_real_rewards_are_those_that_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary_measures, "EPISODES", 2)
    dataset: Any = SimpleNamespace(
        environment="Drift-v0",
        observation_layout=None,
        normalize=lambda x: (x - 1.0) / 2.0,
        denormalize_action=lambda x: x,
        reward_shift=0.5,  # the data's: a folder may have been made with one
    )
    gymnasium.register("Drift-v0", Drift)
    try:
        starts, rewards = real_rewards(dataset, lambda x: x, 4)
    finally:
        del gymnasium.registry["Drift-v0"]
    # raw states 1, 3, 5 and 2, 4: normalised 0, 1, 2 and 0.5, 1.5; half a point more is paid
    assert starts.tolist() == [[0.0], [0.5]]
    assert rewards.T.tolist() == [[0.5, 1.5, 2.5, 0.0], [1.0, 2.0, 0.0, 0.0]]


def test_everything_is_measured_from_the_fitted_model_to_the_other(
    parts: tuple[Any, Any, Any],
) -> None:
    fitted, env, loss = parts
    with torch.no_grad():  # members alike, states that stay as they are, a little noise in rewards
        fitted.weights[0].copy_(0.3 * torch.ones_like(fitted.weights[0]))
        fitted.weights[0][..., [0, 1, 3, 4, 5]] = 0.0
        fitted.biases[0].zero_()
        fitted.biases[0][..., 3:] = torch.tensor([-50.0, -50.0, -6.0])
        fitted.min_log_var.fill_(-50.0)
    rows = data(60)  # which the fitted model describes without an error
    rows["next"] = TensorDict(
        observation=rows["observation"],
        reward=0.3 * rows["observation"].sum(-1, keepdim=True),
        terminated=torch.zeros(60, 1).bool(),
        batch_size=[60],
    )
    dataset = OfflineDataset(rows, action_spec=SPEC, normalize=False)
    env.world_model = lowered(fitted, by=0.5)
    phase: Any = SimpleNamespace(env=env, adversarial_loss=loss)
    effect = measure(phase, fitted, dataset, gamma=GAMMA, horizon=3)
    assert effect["model_error"]["fitted"] == pytest.approx(0, abs=1e-6)
    assert effect["model_error"]["adversarial"] == pytest.approx(0.5**2 / 3, rel=1e-4)
    for way in ("random_actions", "policy_actions"):
        assert effect[way]["reward"] == pytest.approx([-0.5] * 11, abs=1e-4)
    # half a point is lost in each step, with the same noise
    before, after = (effect["returns"][name] for name in ("fitted", "adversarial"))
    lost = [y - x for x, y in zip(before["mean"], after["mean"], strict=True)]
    wanted = [-0.5, -0.5 * (1 + GAMMA), -0.5 * (1 + GAMMA + GAMMA**2)]
    assert lost == pytest.approx(wanted, abs=1e-4)
    # the error is over start states: those of the same start are alike
    start = dataset.transitions[draw_rows(60, 20)]["observation"]
    paid = 0.3 * (start.sum(-1) + mode(loss.actor_network, start).squeeze(-1))
    assert before["standard_error"][0] == pytest.approx(float(paid.std()) / 20**0.5, rel=0.05)
