"""The Single Transition Example's recipe, small: its methods, what sets them apart, its table."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import single_transition
import torch
from launcher import parts
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import COMBOLoss
from rambo_trl.reporting.single_transition import GRID, METHODS, Run, Snapshot, _limits, draw

CONFIG = Path(__file__).parents[2] / "recipes" / "config" / "single_transition.yaml"


def tiny() -> DictConfig:
    return OmegaConf.merge(
        OmegaConf.load(CONFIG),
        {
            "num_transitions": 200,
            "epochs": 2,
            "agent_updates": 3,
            "model_updates": 3,
            "rollout_starts": 50,
            "agent": {"hidden_sizes": [8], "batch_size": 16},
            "model": {"hidden_sizes": [8], "batch_size": 32, "patience": 1},
            "figure": {"epochs": [1, 2]},
        },
    )


@pytest.mark.parametrize("recipe", ["single_transition", "build_dataset", "behaviour"])
def test_a_misspelt_setting_is_one_line_and_code_2(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = CONFIG.parents[1] / f"{recipe}.py"
    for word, message in (
        ("thread=3", "has no setting 'thread'"),
        ("schedule=smoke", f"{recipe} has no setting 'schedule'"),
        ("+task=hopper-medium-replay", f"{recipe} has no setting 'task'"),
        ("--threads=3", "settings are given as key=value, without dashes"),
    ):
        monkeypatch.setattr(sys, "argv", [str(path), word])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert message in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("recipe", ["single_transition", "build_dataset", "behaviour"])
def test_help_lists_only_what_there_is(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = CONFIG.parents[1] / f"{recipe}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    told = capsys.readouterr().out
    assert told.startswith(f"python recipes/{recipe}.py [SETTING=VALUE ...]\n")
    assert "== Config ==" in told and "Configuration groups" not in told and "task:" not in told


@pytest.mark.parametrize("seeds", ["abc", [], [1, 1], ["a"], [True], 3])
def test_seeds_are_different_whole_numbers(seeds: object) -> None:
    cfg = OmegaConf.merge(tiny(), {"seeds": [2, 3]})
    single_transition.check(cfg)
    cfg.seeds = seeds
    with pytest.raises(ValueError, match="seeds must be different whole numbers, got"):
        single_transition.check(cfg)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The losses and phases that trainings make, in that order."""
    found: list[Any] = []

    def noting(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            found.append(make(*args, **kwargs))
            return found[-1]

        return made

    for name in ("make_sac", "make_agent_phase", "make_adversary"):
        monkeypatch.setattr(parts, name, noting(getattr(parts, name)))
    return found


@pytest.mark.filterwarnings("ignore:The name target_")  # an annotation that TorchRL lacks
def test_every_method_runs_repeats_and_is_drawn(tmp_path: Path, noted: list[Any]) -> None:
    cfg = OmegaConf.merge(tiny(), {"agent": {"real_fraction": 0.25}})
    assert set(cfg.methods) == set(METHODS)
    assert [name for name, m in METHODS.items() if m.adversarial] == ["rambo"]
    runs = []
    for name in cfg.methods:
        noted.clear()
        runs.append(single_transition.train(name, 0, cfg))
        loss, agent, adversary = noted
        if name == "combo":  # only it is conservative, and is told the real rows of its batches
            assert isinstance(loss, COMBOLoss) and loss.num_real == 4
            assert loss.conservative_weight == cfg.combo.conservative_weight
            assert loss.penalized_actions == cfg.combo.penalized_actions
        else:
            assert type(loss) is SACLoss
        # both players' steps shrink to their last share
        share, lrs = cfg.final_lr_share, (cfg.agent.critic_lr, cfg.agent.actor_lr)
        rates = [group["lr"] for group in agent.optimizer.param_groups]
        assert rates == pytest.approx([share * lr for lr in (*lrs, cfg.agent.alpha_lr)])
        (group,) = adversary.optimizer.param_groups
        last = share if name == "rambo" else 1.0
        assert group["lr"] == pytest.approx(last * cfg.model.adversarial_lr)
    assert [[s.epoch for s in run.snapshots] for run in runs] == [[1, 2]] * 3
    again = single_transition.train("combo", 0, cfg)
    assert again.mode == runs[list(cfg.methods).index("combo")].mode
    assert len({run.mode for run in runs}) == 3, "the methods differ"
    draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    table = single_transition.format_table(single_transition.summarise(runs))
    assert all(words in table for words in ("RAMBO", "1.49 +- 0.04", "COMBO", "1.34 +- 0.14"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The name target_")
def test_the_adversary_makes_the_policy_stay_where_the_model_is_right() -> None:
    # half as long and with two members instead of seven; all else is the example's
    cfg = OmegaConf.merge(
        OmegaConf.load(CONFIG),
        {"epochs": 35, "model": {"num_members": 2, "num_elites": 2}, "figure": {"epochs": []}},
    )
    seed = 1
    robust, naive = (single_transition.train(name, seed, cfg) for name in ("rambo", "no_adversary"))
    # of the actions in the data the best is worth 1.5, the next one 1.25; off the data it is 0.5
    assert robust.true_reward > 1.4, f"RAMBO's action {robust.mode:.2f} is not the best one"
    assert naive.true_reward < 1.4, f"{naive.mode:.2f} is found without an adversary too"
    # it is the model that led it astray: more was promised than there is
    assert naive.predicted_reward > naive.true_reward + 0.5
    assert robust.predicted_reward < robust.true_reward + 0.1


def test_no_curve_leaves_the_figure() -> None:
    flat = torch.ones_like(GRID.squeeze(-1))
    for mean, std, qvalue in ((9.0, 1.0, 0.0), (-4.0, 2.0, 1.0), (1.0, 0.1, 7.0), (1.0, 0.1, -7.0)):
        snapshot = Snapshot(1, mean * flat, std * flat, qvalue * flat, 0.0)
        run = Run("combo", 0, 0.0, 0.5, 0.5, 1.0, [snapshot])
        low, high = _limits([run])
        assert low <= min(0.0, mean - std, qvalue)
        assert high > max(0.0, mean + std, qvalue)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_the_legend_fits_into_the_figure(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = torch.ones_like(GRID.squeeze(-1))
    snapshot = Snapshot(1, flat, 0.1 * flat, flat, 0.0)
    run = Run("combo", 0, 0.0, 0.5, 0.5, 1.0, [snapshot] * columns)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: drawn.append(figure))
    draw([run], tmp_path / "figure.png")
    (figure,) = drawn
    figure.canvas.draw()
    (legend,), whole = figure.legends, figure.bbox
    box = legend.get_window_extent()
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1
    assert whole.y0 <= box.y0 and box.y1 <= whole.y1


def test_the_table_s_deviation_is_the_sample_s() -> None:
    runs = [
        Run("combo", seed, 0.0, reward, 0.5, 1.0, []) for seed, reward in enumerate((1.0, 2.0, 4.5))
    ]
    row = single_transition.summarise(runs)["combo"]
    assert row["true_reward_mean"] == pytest.approx(2.5)
    assert row["true_reward_std"] == pytest.approx((6.5 / 2) ** 0.5)


def test_a_snapshot_by_hand() -> None:
    spec = Bounded(-1.0, 1.0, (1,))
    model = EnsembleWorldModel(1, 1, num_members=3, num_elites=2, hidden_sizes=())
    loss = SACLoss(make_actor(1, spec), make_qvalue(1, 1), action_spec=spec)
    shot = single_transition.take_snapshot(4, model, loss)
    with torch.no_grad():
        mean, log_var = model.predict(torch.zeros_like(GRID), GRID, model.elites)
        mean, variance = mean[..., 0], log_var[..., 0].exp()
        second = (variance + mean.square()).mean(dim=0)  # moment of the elites' mixture
    torch.testing.assert_close(shot.successor_mean, mean.mean(dim=0))
    torch.testing.assert_close(shot.successor_std.square(), second - mean.mean(dim=0).square())
    rows, values = TensorDict(observation=torch.zeros(401, 1), action=GRID, batch_size=[401]), []
    for number in range(2):
        with loss.qvalue_network_params[number].data.to_module(loss.qvalue_network):
            values.append(loss.qvalue_network(rows.copy())["state_action_value"].squeeze(-1))
    assert not torch.allclose(*values)
    torch.testing.assert_close(shot.qvalue, torch.minimum(*values).detach())
