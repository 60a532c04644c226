"""The report reads run folders only, averages over seeds and says what diverged."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
from matplotlib.axes import Axes
from omegaconf import OmegaConf

from rambo_trl.experiment.folder import RunFolder
from rambo_trl.reporting import figures as report_figures
from rambo_trl.reporting import scores as report_scores
from rambo_trl.reporting.figures import achieved, mean_curve
from rambo_trl.reporting.paper import published, published_weight, rambo_label, table_dataset
from rambo_trl.reporting.runs import Record, configurations, find_runs
from rambo_trl.reporting.statistics import interquartile_mean, iqm_interval
from rambo_trl.reporting.tables import iqm_text

MakeRun = Callable[..., str]
RECIPES = Path(report.__file__).parent


def made_report(tmp_path: Path, runs: list[str]) -> tuple[str, list[dict[str, str]]]:
    """The report's table as text and as rows."""
    out = tmp_path / "out"
    assert report.main([*runs, "--out", str(out)]) == 0
    for path in out.glob("*.png"):
        assert path.stat().st_size > 10_000
    with (out / "table.csv").open() as file:
        return (out / "table.md").read_text(), list(csv.DictReader(file))


def test_table_averages_over_seeds(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", seed=s, score=x) for s, x in ((1, 40.0), (0, 20.0))]
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results:quick -->\nold\n<!-- end of results:quick -->\nb\n")
    out = tmp_path / "quick"
    assert report.main([*runs, "--out", str(out), "--readme", str(readme)]) == 0
    table = (out / "table.md").read_text()
    assert "**30.0 +- 10.0**" in table and "20.0, 40.0" in table and "| 1.5 +- 0.0 |" in table
    text = readme.read_text()
    assert text.startswith("a\n<!-- results:quick -->\n") and text.endswith("-->\nb\n")
    assert table in text and "old" not in text
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1"] and rows[0]["minutes"] == "1.5"


def test_runs_from_before_a_method_s_correction_are_marked(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [
        make_run(tmp_path / "a", method="MOPO"),
        make_run(tmp_path / "b", method="COMBO", deterministic_backup=True),
        make_run(tmp_path / "c", method="IQL"),
    ]
    table, _ = made_report(tmp_path, runs)
    assert "MOPO: from before a correction" in table and "COMBO and" not in table


def test_a_diverged_run_counts_as_zero_and_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    # its own results.json says 90: the report does not believe it
    runs = [
        make_run(tmp_path / "a", seed=0, score=40.0),
        make_run(tmp_path / "b", seed=1, score=90.0, diverged=True),
    ]
    table, (row,) = made_report(tmp_path, runs)
    assert "**20.0 +- 20.0**" in table and "1 of 2 runs diverged" in table
    assert row["diverged"] == "1" and float(row["score_mean"]) == 20.0


def test_a_diverged_run_is_a_zero_in_the_curves_too(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a", score=90.0, diverged=True, settings={"epochs": 30})
    (run,), _ = find_runs([tmp_path / "a"])
    assert achieved(run) == ([5e3, 10e3, 15e3, 20e3, 30e3], [90.0, 90.0, 90.0, 0.0, 0.0])


def panels_of(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[..., None], folder: Path
) -> list[Axes]:
    """The panels of a report's figure of the runs in a folder."""
    figures: list[Any] = []
    monkeypatch.setattr(
        report_figures.Figure, "savefig", lambda self, *_, **__: figures.append(self)
    )
    draw(configurations(find_runs([folder])[0]), folder / "figure.png")
    return figures[0].axes


def test_scores_are_ranked_with_every_seed(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", method="MOPO", score=10.0)
    make_run(tmp_path / "b", seed=0, score=60.0)
    make_run(tmp_path / "c", seed=1, score=60.0, diverged=True)
    unscored = {"behaviour_score": None, "behaviour_score_best": None, "cloned_score": None}
    make_run(tmp_path / "d", dataset="my/own-v0", score=None, return_mean=-7.0, **unscored)
    make_run(tmp_path / "e", dataset="my/own-v0", score=None, seed=1, diverged=True, **unscored)
    first, second = panels_of(monkeypatch, report_scores.draw_scores, tmp_path)
    labels = [label.get_text() for label in first.get_yticklabels()]
    assert labels == ["RAMBO, quick", "MOPO, quick"]
    assert [bar.get_width() for bar in first.patches] == [30.0, 10.0]
    dots = {
        (line.get_xdata()[0], line.get_marker())
        for line in first.lines
        if len(line.get_xdata()) == 1
    }
    assert dots == {(60.0, "o"), (0.0, "X"), (10.0, "o")}
    # a return of 0 means nothing: no bar begins there
    assert second.get_xlabel() == "return" and not second.patches
    assert second.get_xlim()[1] < 0
    marks = [line for line in second.lines if list(line.get_xdata()) == [-7.0, -7.0]]
    assert len(marks) == 1
    assert any("2 seeds, 1 diverged, 20 epochs" in text.get_text() for text in second.texts)


@pytest.mark.parametrize(("count", "bands"), [(4, 4), (5, 0)])
def test_many_configurations_are_drawn_as_smoothed_means(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, bands: int
) -> None:
    for k in range(count):
        for s in range(2):
            make_run(tmp_path / f"{k}{s}", seed=s, score=10.0 * (k + s), method=f"M{k}")
    (panel,) = panels_of(monkeypatch, report_figures.draw_learning_curves, tmp_path)
    assert len(panel.collections) == bands
    means = [line for line in panel.lines if line.get_label().startswith("M")]
    assert len(means) == count
    for k, line in enumerate(means):
        np.testing.assert_allclose(line.get_ydata(), 10.0 * k + 5)


def test_returns_stay_returns_where_a_run_diverged(make_run: MakeRun, tmp_path: Path) -> None:
    unscored = {"behaviour_score": None, "behaviour_score_best": None, "cloned_score": None}
    runs = [
        make_run(tmp_path / "a", seed=0, score=None, **unscored),
        make_run(tmp_path / "b", seed=1, score=None, diverged=True, **unscored),
    ]
    # as a run that diverged says of itself, whatever its data
    file = tmp_path / "b/results.json"
    file.write_text(file.read_text().replace('"score": null,\n', '"score": 0.0,\n', 1))
    table, (row,) = made_report(tmp_path, runs)
    assert "| **30.0**, 1 of 2 diverged |" in table and row["score_mean"] == ""
    assert row["return_mean"] == row["return_iqm"] == "30.0"
    assert "count as 0" not in table and "the returns leave them out" in table
    diverged = find_runs([tmp_path / "b"])[0][0]
    assert diverged.results["score"] == 0.0 and diverged.score is None
    assert achieved(diverged)[1] == [30.0, 30.0, 30.0]


def test_a_diverged_run_is_never_a_return_of_zero(make_run: MakeRun, tmp_path: Path) -> None:
    # where every return is negative, 0 would be the best
    unscored = {"behaviour_score": None, "behaviour_score_best": None, "cloned_score": None}
    runs = [
        make_run(tmp_path / f"{method}{s}", seed=s, method=method, score=None, diverged=diverged,
                 return_mean=-100.0 - 10 * s, **unscored)
        for method, all_diverged in (("MOPO", False), ("COMBO", True))
        for s, diverged in enumerate((all_diverged, all_diverged, True))
    ]  # fmt: skip
    table, _ = made_report(tmp_path, runs)
    assert "| **-105.0 +- 5.0**, 1 of 3 diverged |" in table and "| 3 of 3 diverged |" in table
    # of the runs that have one there are the interquartile mean, its interval and all values
    assert "| -105.0 (-110.0 to -100.0) | -100.0, -110.0, - |" in table
    assert "| return | IQM (95 % interval) | return by seed |" in table and "| score" not in table
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert [r["return_mean"] for r in rows] == ["", "", "", "-100.0", "-110.0", ""]


def test_the_table_says_which_deviation_it_has(make_run: MakeRun, tmp_path: Path) -> None:
    for s, score in enumerate((1.0, 3.0)):
        make_run(tmp_path / f"{s}", seed=s, score=score)
    runs, _ = find_runs([tmp_path])
    table = report.markdown_table(configurations(runs))
    assert "**2.0 +- 1.0**" in table and "population standard deviation" in table
    assert "+-:" not in report.markdown_table(configurations(runs[:1]))


@pytest.mark.parametrize("count", [4, 14])
def test_the_legend_fits_however_many_settings_differ(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    names = ("adversarial_weight", "agent.conservative_weight", "model.adversarial_lr", "epochs")
    for k in range(count):
        settings = {name: 10 * k + i for i, name in enumerate(names)}
        make_run(tmp_path / f"{k}", settings=settings)
    axes = panels_of(monkeypatch, report_figures.draw_learning_curves, tmp_path)[0]
    figure: Any = axes.figure
    figure.draw_without_rendering()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0
    panel = axes.get_window_extent()
    assert panel.height / figure.dpi > 2.5, "it takes no room from what it explains"
    assert panel.y0 >= legend.y1


def test_methods_and_settings_are_rows_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{k}{s}", seed=s, score=score, method=method, settings=settings)
        for k, (method, score, settings) in enumerate(
            (
                ("RAMBO", 50.0, {"adversarial_weight": 3e-4, "agent": "{tau: 0.1}"}),
                ("RAMBO", 60.0, {"adversarial_weight": 3e-3, "agent": "{tau: 0.1}"}),
                ("MOPO", 30.0, {"agent": "{tau: 0.2}"}),
            )
        )
        for s in range(2)
    ]
    table, rows = made_report(tmp_path, runs)
    assert [(r["method"], r["settings"], float(r["score_mean"])) for r in rows] == [
        ("RAMBO", "adversarial_weight=0.0003", 50.0),
        ("RAMBO", "adversarial_weight=0.003", 60.0),
        ("MOPO", "", 30.0),
    ]
    assert "| RAMBO (adversarial_weight=0.0003), `quick` | 2 |" in table


def test_runs_without_a_label_are_rambo_s(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a", method="RAMBO", adversarial_weight=0.0)
    make_run(tmp_path / "b", adversarial_weight=3e-4)
    results = tmp_path / "b/results.json"
    results.write_text(results.read_text().replace('"method": "RAMBO",', ""))
    runs, _ = find_runs([tmp_path])
    assert [run.method for run in runs] == ["RAMBO, lambda = 0", "RAMBO"]


def published_runs(make_run: MakeRun, folder: Path, label: str, *, adversary: bool) -> None:
    """Two runs on each set of Table 1, with its lambda or with 0; scores are the paper's."""
    for task in sorted((RECIPES / "config/task").glob("d4rl-*.yaml")):
        name = task.stem.removeprefix("d4rl-")
        # as D4RL names its files
        maze = name.startswith("antmaze")
        dataset = f"d4rl/{name if maze else name.replace('-', '_')}-v{0 if maze else 2}.hdf5"
        weight = OmegaConf.load(task).adversarial_weight if adversary else 0.0
        number = published("RAMBO", dataset)
        assert number is not None and number.same_data
        for s in (0, 1):
            make_run(
                folder / f"{name}-{s}", seed=s, score=number.score + 2 * s - 1, dataset=dataset,
                method="RAMBO" if weight else label, adversarial_weight=weight,
                settings={"adversarial_weight": weight},
            )  # fmt: skip


# what a run without an adversary says of itself: earlier versions did not ask for its data
@pytest.mark.parametrize("label", ["RAMBO", "RAMBO, lambda = 0"])
def test_table_1_as_published_has_the_paper_s_numbers_and_total(
    make_run: MakeRun, tmp_path: Path, label: str
) -> None:
    published_runs(make_run, tmp_path, label, adversary=True)
    found = configurations(find_runs([tmp_path])[0])
    assert {c.label for c in found} == {"RAMBO"} and len(found) == 18
    weights = [c.runs[0].results["adversarial_weight"] for c in found]
    assert weights.count(0.0) == 8 == [published_weight(c.dataset) for c in found].count(0.0)
    rows = report.table_rows(found)
    assert all(row["paper_same_data"] for row in rows)
    assert [row["score_mean"] for row in rows] == pytest.approx([r["paper_score"] for r in rows])
    table = report.markdown_table(found)
    assert "Over the 18 data sets" in table and "ablation" not in table
    # 812.4 on MuJoCo, 67.0 on AntMaze; eighteen deviations of 1
    assert "| RAMBO, `quick` | 36 | **879.4 +- 4.2** |" in table and "| 879.4 |" in table


def test_lambda_0_is_the_ablation_where_the_paper_s_is_not(
    make_run: MakeRun, tmp_path: Path
) -> None:
    published_runs(make_run, tmp_path / "with", "RAMBO", adversary=True)
    published_runs(make_run, tmp_path / "without", "RAMBO, lambda = 0", adversary=False)
    with_adversary, _ = find_runs([tmp_path / "with"])
    without, _ = find_runs([tmp_path / "without"])
    assert sum(run.method == "RAMBO, lambda = 0" for run in without) == 2 * 10
    ablation = [run for run in without if run.method != "RAMBO"]
    found = configurations([*with_adversary, *ablation])
    assert [row["paper_score"] for row in report.table_rows(found)].count(None) == 10
    table = report.markdown_table(found)
    assert "Over the 18 data sets" in table and "On 8 of them the paper's lambda is 0" in table
    assert "| RAMBO, `quick` | 36 |" in table and "| RAMBO, lambda = 0, `quick` | 36 |" in table


def test_a_run_s_label_is_decided_by_the_published_lambda() -> None:
    assert rambo_label(0.0, "bundled/walker2d/medium-replay-v0") == "RAMBO"
    assert rambo_label(3e-4, "bundled/walker2d/medium-replay-v0") == "RAMBO"
    assert rambo_label(0.0, "bundled/hopper/medium-replay-v0") == "RAMBO, lambda = 0"
    assert rambo_label(0.0, "my/own/data-v0") == "RAMBO, lambda = 0"
    assert rambo_label(3e-4, "my/own/data-v0") == "RAMBO"


def test_the_paper_s_numbers_stand_beside_ours(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", dataset="d4rl/hopper_medium_replay-v2.hdf5"),
        make_run(tmp_path / "b", dataset="bundled/hopper/medium-replay-v0"),
        make_run(tmp_path / "c", dataset="d4rl/hopper_medium_replay-v2.hdf5", method="MOReL (SAC)"),
        make_run(tmp_path / "d", dataset="my/own/data-v0"),
    ]
    table, rows = made_report(tmp_path, runs)
    assert [r["paper_same_data"] for r in rows] == ["False", "True", "True", ""]
    assert "99.5 +- 4.8 (other data)" in table and "| 99.5 +- 4.8 |" in table
    assert "| 93.6 |" in table and "do not compare" in table


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data/halfcheetah_medium_expert-v2.hdf5", ("halfcheetah-medium-expert-v2", True)),
        ("walker2d_medium-v2", ("walker2d-medium-v2", True)),
        ("hopper_medium-v0.hdf5", ("hopper-medium-v2", False)),
        ("mujoco/hopper/medium-v0", ("hopper-medium-v2", False)),
        ("data/hopper/hopper_medium-v2.hdf5", ("hopper-medium-v2", True)),
        ("hopper/medium/hopper_medium-v2.hdf5", ("hopper-medium-v2", True)),
        ("umaze/antmaze-umaze-v0.hdf5", ("antmaze-umaze-v0", True)),
        ("D4RL/antmaze/umaze-v0", ("antmaze-umaze-v0", False)),
        ("D4RL/antmaze/umaze-v1", ("antmaze-umaze-v0", False)),
        ("antmaze-large-diverse-v0.hdf5", ("antmaze-large-diverse-v0", True)),
        ("antmaze-umaze-v2.hdf5", ("antmaze-umaze-v0", False)),
        ("bundled/antmaze-umaze/random-v0", None),
        ("bundled/hopper/expert-v0", None),
        ("bundled/inverteddoublependulum/medium-v0", None),
    ],
)
def test_data_sets_of_the_paper(name: str, expected: tuple[str, bool] | None) -> None:
    assert table_dataset(name) == expected


def test_the_paper_s_totals() -> None:
    # the totals are printed in the paper's text, the cells come from its table
    names = [
        f"{env}_{kind}-v2.hdf5"
        for env in ("halfcheetah", "hopper", "walker2d")
        for kind in ("random", "medium", "medium_replay", "medium_expert")
    ]
    for method, total in (("RAMBO", 812.4), ("COMBO", 769.7), ("MOPO", 413.4), ("BC", 300.8)):
        numbers = [published(method, name) for name in names]
        assert sum(n.score for n in numbers if n) == pytest.approx(total)
    assert published("IQL", names[0]) is None


def test_totals_are_over_the_data_sets_that_all_have(make_run: MakeRun, tmp_path: Path) -> None:
    hopper, cheetah = "hopper_medium-v2.hdf5", "halfcheetah_medium-v2.hdf5"
    runs = [
        make_run(tmp_path / f"{method}{k}{s}", seed=s, score=score + 2 * s, dataset=dataset,
                 method=method)
        for method, tasks in (
            ("RAMBO", ((hopper, 10.0), (cheetah, 20.0), ("walker2d_medium-v2.hdf5", 99.0))),
            ("MOPO", ((hopper, 30.0), (cheetah, 40.0))),
        )
        for k, (dataset, score) in enumerate(tasks)
        for s in (0, 1)
    ]  # fmt: skip
    table, _ = made_report(tmp_path, runs)
    # each task deviates by 1, two of them by the root of 2
    assert "| RAMBO, `quick` | 4 | **32.0 +- 1.4** |" in table
    assert "| MOPO, `quick` | 4 | **72.0 +- 1.4** |" in table
    assert "| 164.9 |" in table and "| 117.5 |" in table  # 87.0 + 77.9, 48.0 + 69.5


class TestStatistics:
    def test_interquartile_mean(self) -> None:
        assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])) == 3.5
        assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0

    def test_interval_against_every_sample(self) -> None:
        # two runs, mean of both: a quarter of the samples at each end, half in the middle
        assert iqm_interval([[0.0, 10.0]]) == (0.0, 10.0)
        # with 40 % the ends lie in the middle half
        assert iqm_interval([[0.0, 10.0]], level=0.4) == (5.0, 5.0)

    def test_samples_stay_within_their_task(self) -> None:
        # tasks a hundred apart without a spread: unstratified samples would mix them
        assert iqm_interval([[0.0, 0.0], [100.0, 100.0]]) == (50.0, 50.0)
        low, high = iqm_interval([[0.0, 2.0, 4.0], [100.0, 102.0, 104.0, 106.0]]) or (0, 0)
        assert 35 < low < high < 75

    def test_coverage(self) -> None:
        rng = np.random.default_rng(0)
        held = 0
        for k in range(100):
            low, high = iqm_interval([rng.normal(size=12).tolist()], seed=k) or (0, 0)
            held += low < 0 < high
        assert 83 <= held <= 99

    def test_one_run_has_no_interval(self) -> None:
        assert iqm_interval([[1.0]]) is None and iqm_interval([[1.0, 2.0], [3.0]]) is None
        assert iqm_interval([]) is None

    def test_mean_of_curves_of_different_lengths_and_points(self) -> None:
        x, mean, std = mean_curve([([1, 3, 5], [0.0, 2.0, 4.0]), ([2, 3], [3.0, 4.0]), ([], [])])
        assert x.tolist() == [2, 3] and mean.tolist() == [2, 3] and std.tolist() == [1, 1]
        assert mean_curve([([1], [0.0]), ([2], [0.0])])[0].size == 0


def test_what_is_missing_is_left_out_and_said(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs/short", seed=0, mean_q=(1.0,) * 10)
    make_run(tmp_path / "runs/long", seed=1)
    make_run(tmp_path / "runs/unended", seed=2, ended=False)
    make_run(tmp_path / "runs/bc", seed=0, mean_q=None, method="BC")
    (tmp_path / "runs/bc/metrics.csv").unlink()
    make_run(
        tmp_path / "runs/unscored", score=None, dataset="my/own/data-v0", behaviour_score=None,
        behaviour_score_best=None, cloned_score=None, behaviour_return_mean=-7.0,
        behaviour_return_best=8.0,
    )  # fmt: skip
    table, rows = made_report(tmp_path, [str(tmp_path / "runs"), str(tmp_path / "runs/long")])
    assert "| -7.0 | 8.0 | - | **30.0** | 30.0 (one seed) | 30.0 |" in table
    assert "10 to 20" in table and "| score by seed |" in table and "| return by seed |" in table
    assert [r["seeds"] for r in rows] == ["2", "1", "1"]
    assert "left out, not ended" in (err := capsys.readouterr().err) and "unended" in err


def test_a_name_ends_no_cell_of_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset="my|log.hdf5", score=40.0)
    assert report.main([run, "--out", str(tmp_path / "out")]) == 0
    assert r"| `my\|log.hdf5` |" in (tmp_path / "out/table.md").read_text()


def test_runs_without_evaluations_show_what_their_critics_expect(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanity = {"mean_q": 5.0, "start_value": 7.0, "logged_discounted_return": {"mean": 3, "best": 4}}
    for name, method in (("a", "RAMBO"), ("b", "BC")):
        make_run(
            tmp_path / "runs" / name, score=None, method=method, behaviour_score=None,
            behaviour_score_best=None, cloned_score=None, sanity=sanity if name == "a" else {},
        )  # fmt: skip
        results = tmp_path / f"runs/{name}/results.json"
        results.write_text(
            results.read_text().replace('"return_mean": 30.0', '"return_mean": null')
        )
        (tmp_path / f"runs/{name}/metrics.csv").write_text("epoch,loss_bc\n1,1.0\n")
    runs = [str(tmp_path / "runs")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores.png").write_text("an earlier report's")
    table, _ = made_report(tmp_path, runs)
    assert not list((tmp_path / "out").glob("*.png")), "there is nothing to draw"
    assert "| RAMBO, `quick` | 5.0 | 7.0 | 3.0 | 4.0 |" in table
    (tmp_path / "runs/a/metrics.csv").write_text("epoch,mean_q,start_value\n1,1.0,2.0\n20,5,7\n")
    made_report(tmp_path, runs)
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["q_and_return.png"]
    panels = panels_of(monkeypatch, report_figures.draw_q_and_return, tmp_path / "runs")
    assert [axes.get_ylabel() for axes in panels] == ["value at the start", "mean Q in training"]
    assert {4, 3} <= {y for line in panels[0].lines for y in line.get_ydata()}
    # of cloning, which has no critics, there is no line and nothing in the legend
    drawn = [line.get_label() for axes in panels for line in axes.lines]
    assert not any("BC" in str(label) for label in drawn)
    assert "paper" not in table, "its numbers are scores"


def test_results_without_their_settings_are_enough(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"runs/seed{seed}", seed=seed, score=10.0 * seed, settings={"lr": 1})
    whole, _ = made_report(tmp_path, [str(tmp_path / "runs")])
    (tmp_path / "runs/seed0/config.yaml").unlink()
    assert made_report(tmp_path, [str(tmp_path / "runs")])[0] == whole
    (tmp_path / "runs/seed1/config.yaml").unlink()
    assert made_report(tmp_path, [str(tmp_path / "runs")])[0] == whole
    assert made_report(tmp_path, [str(tmp_path / f"runs/seed{s}") for s in range(2)])[0] == whole


def test_bad_input_writes_nothing(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert report.main([str(tmp_path / "none"), *out]) == 2
    run = make_run(tmp_path / "a", seed=0, score=1.0)
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    assert report.main([run, *out, "--readme", str(readme)]) == 2
    assert report.main([make_run(tmp_path / "b", ended=False), *out]) == 2
    (tmp_path / "a/results.json").write_text("{")
    assert report.main([run, *out]) == 2
    (tmp_path / "a/results.json").write_text("{}")
    assert report.main([run, *out]) == 2
    assert not (tmp_path / "out").exists() and readme.read_text() == "no markers\n"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error:") for line in lines)


def write_single_transition(folder: Path) -> Path:
    """A folder as ``single_transition.py`` leaves it."""
    written = RunFolder.create(folder)
    written.write_config("methods: [rambo]\n")
    written.write_results({"methods": {}, "combo": {}, "versions": {}})
    return folder


def test_runs_are_found_at_any_depth(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs/a", seed=0)
    # what a run has below it is its own
    make_run(tmp_path / "runs/a/checkpoint/old", seed=9)
    for seed in (1, 2):
        make_run(tmp_path / f"runs/sweeps/s1/00{seed}", seed=seed)
    make_run(tmp_path / "runs/sweeps/s2/000", seed=3, ended=False)
    (tmp_path / "runs/sweeps/s2/round").symlink_to(tmp_path / "runs")
    _, (row,) = made_report(tmp_path, [str(tmp_path / "runs")])
    assert row["seeds"] == "3"
    left = f"left out, not ended: {tmp_path / 'runs/sweeps/s2/000'}"
    assert capsys.readouterr().err.splitlines() == [left]
    runs, _ = find_runs([tmp_path / "runs/sweeps/s1"])
    assert [run.results["seed"] for run in runs] == [1, 2]


def test_what_another_program_wrote_is_left_out_and_said(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs/a", seed=0)
    other = write_single_transition(tmp_path / "runs/other")
    _, (row,) = made_report(tmp_path, [str(tmp_path / "runs")])
    assert row["seeds"] == "1"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out, {other / 'results.json'} is another program's: it lacks")
    # a list is no run's either
    (other / "results.json").write_text("[]")
    assert len(find_runs([tmp_path / "runs"])[0]) == 1
    with pytest.raises(ValueError, match="is another program's: it lacks score"):
        find_runs([tmp_path / "runs", other])
    (tmp_path / "runs/a/results.json").unlink()
    with pytest.raises(FileNotFoundError, match="no run that has ended"):
        find_runs([tmp_path / "runs"])


def test_a_path_without_runs_is_told_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty/below").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="empty holds no run, nor does any folder below it"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        find_runs([tmp_path / "file"])
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        find_runs([tmp_path / "none"])


def test_a_seed_that_occurs_twice_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=0) for name in "ab"]
    assert "A seed occurs more than once: RAMBO on" in made_report(tmp_path, runs)[0]


def test_older_runs_without_a_newer_setting_belong_together() -> None:
    def record(**settings: Any) -> Record:
        results = {"dataset": "d", "schedule": "s", "seed": 0, "method": "RAMBO", "diverged": False}
        return Record(Path("r"), results, [], settings)

    assert len(configurations([record(tau=1), record(tau=1, num_critics=2)])) == 1
    assert len(configurations([record(tau=1), record(tau=2)])) == 2
    assert len(configurations([record(seed=1, threads=2), record(seed=2, threads=1)])) == 1
    quicker = record(seed=2, float32_matmul_precision="medium")
    assert len(configurations([record(seed=1), quicker])) == 1


def test_runs_older_than_a_setting_had_what_all_had_then(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "older", seed=0, settings={"epochs": 100})
    make_run(tmp_path / "newer", seed=1, settings={"model_matmul_dtype": "float32"})
    make_run(tmp_path / "rounded", seed=0, settings={"model_matmul_dtype": "bfloat16"})
    found = configurations(find_runs([tmp_path])[0])
    assert [[run.path.name for run in c.runs] for c in found] == [["rounded"], ["older", "newer"]]
    assert [c.differs for c in found] == [
        {"model_matmul_dtype": "bfloat16"},
        {"model_matmul_dtype": "float32"},
    ]


def test_budgets_in_passes_are_named_where_older_runs_differ_in_them() -> None:
    def label_of(updates: int | None, passes: int | None, *others: int | None) -> list[str]:
        found = []
        for number, own in enumerate([passes, *others]):
            settings = {"model.max_updates": updates if not number else None}
            settings["model.max_passes"] = own
            results = {"dataset": "d", "schedule": "quick", "seed": 0, "diverged": False}
            found.append(Record(Path("r"), results, [], settings))
        return sorted(c.label for c in configurations(found))

    # quick had 8 passes
    assert label_of(None, 8, 60) == ["RAMBO", "RAMBO (model.max_passes=60)"]
    older = "RAMBO (model.max_updates=None, model.max_passes=8)"
    assert label_of(1568, None, 8) == ["RAMBO", older]


def test_seeds_may_start_from_parts_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        parts = {"fitted_model": f"runs/{seed}.safetensors", "cloned_policy": f"{seed}.safetensors"}
        make_run(tmp_path / f"{seed}", seed=seed, settings=parts)
    (one,) = configurations(find_runs([tmp_path])[0])
    assert len(one.runs) == 2
    make_run(tmp_path / "plain", settings={"fitted_model": "null", "cloned_policy": "null"})
    differ = [c.differs for c in configurations(find_runs([tmp_path])[0])]
    assert differ == [{"cloned_policy": None}, {"cloned_policy": "given"}]


def test_what_the_schedule_sets_is_not_named(make_run: MakeRun, tmp_path: Path) -> None:
    for epochs, updates in ((100, 50), (100, 300), (20, 50)):  # of quick: 100 and 50
        settings = {"epochs": epochs, "model_updates": updates}
        make_run(tmp_path / f"{epochs}-{updates}", settings=settings)
    assert [c.label for c in configurations(find_runs([tmp_path])[0])] == [
        "RAMBO",
        "RAMBO (epochs=20)",
        "RAMBO (model_updates=300)",
    ]


def test_a_row_of_scores_is_as_high_as_its_label(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {f"setting_with_a_long_name_{i}": 1 for i in range(6)}
    make_run(tmp_path / "a", method="MOPO", score=50.0)
    make_run(tmp_path / "b", score=60.0, settings=settings)
    make_run(tmp_path / "c", score=40.0, settings=dict.fromkeys(settings, 2))
    (axes,) = panels_of(monkeypatch, report_scores.draw_scores, tmp_path)
    figure: Any = axes.figure
    figure.draw_without_rendering()
    first, second, third = (label.get_window_extent() for label in axes.get_yticklabels())
    assert min(first.height, third.height) > 3 * second.height
    assert first.y0 > second.y1 and second.y0 > third.y1
    room = axes.get_window_extent()
    assert first.y1 <= room.y1 and third.y0 >= room.y0


def test_no_program_hides_a_module_of_python() -> None:
    # next to a program called select.py no other one could start: subprocess imports select
    names = {path.stem for path in RECIPES.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


def test_a_quarter_is_left_out_at_each_end() -> None:
    assert interquartile_mean(np.array([0.0, 10, 2, 3, 4, 5, 100, 1000])) == (3 + 4 + 5 + 10) / 4


def test_the_iqm_of_several_tasks_is_that_of_all_their_runs() -> None:
    # the lowest and the highest quarter of all runs are one task's and the other's
    text = iqm_text([[0.0, 10.0, 20.0, 30.0], [100.0, 110.0, 120.0, 130.0]])
    assert text.startswith("65.0 (")
    assert iqm_text([[0.0, 10.0], [20.0, 30.0, 40.0, 190.0]]).startswith("25.0 (")


def test_a_bar_is_the_mean(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, score in enumerate((10.0, 20.0, 90.0)):
        make_run(tmp_path / f"{seed}", seed=seed, score=score)
    (panel,) = panels_of(monkeypatch, report_scores.draw_scores, tmp_path)
    assert [bar.get_width() for bar in panel.patches] == [40.0]


def test_names_with_dollars_are_drawn_as_they_stand(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"r{i}", dataset="logs_$^_$.hdf5", settings={"env_id": f"${i}_^$"})
        for i in range(2)
    ]
    made_report(tmp_path, runs)
