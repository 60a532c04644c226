"""The report reads run folders only, averages over seeds and says what diverged."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
from launcher.schedules import read_schedules
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rambo_trl.experiment.folder import RunFolder
from rambo_trl.reporting.figures import (
    achieved,
    draw_learning_curves,
    draw_q_and_return,
    draw_scores,
    mean_curve,
)
from rambo_trl.reporting.neorl2 import neorl2_task
from rambo_trl.reporting.paper import rambo_label, table_dataset
from rambo_trl.reporting.runs import Configuration, Record, configurations, find_runs
from rambo_trl.reporting.tables import (
    interquartile_mean,
    iqm_interval,
    iqm_text,
    write_results,
    write_summary,
)

MakeRun = Callable[..., str]
Rows = list[dict[str, str]]
Panels = Callable[..., list[Axes]]
UNSCORED: dict[str, Any] = {
    "score": None, "behaviour_score": None, "behaviour_score_best": None, "cloned_score": None,
}  # fmt: skip


def found_in(*paths: Path | str) -> list[Configuration]:
    return configurations(find_runs(paths)[0], read_schedules())


def read_csv(path: Path) -> Rows:
    return list(csv.DictReader(path.read_text().splitlines()))


def tables_of(folder: Path) -> tuple[str, Rows, Rows]:
    """The tables of the runs in a folder: as text, by configuration and by run."""
    found = found_in(folder)
    write_summary(found, folder / "table.csv")
    write_results(found, folder / "results.csv")
    by_run = read_csv(folder / "results.csv")
    return report.markdown_tables(found), read_csv(folder / "table.csv"), by_run


@pytest.fixture
def panels_of(monkeypatch: pytest.MonkeyPatch) -> Panels:
    """Draws the runs in a folder; returns the panels."""

    def draw(function: Callable[..., bool], folder: Path) -> list[Axes]:
        figures: list[Figure] = []
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
            function(found_in(folder), folder / "figure.png")
        return figures[0].axes

    return draw


def record(results: dict[str, Any] | None = None, **settings: Any) -> Record:
    """A run without a folder."""
    usual = {"dataset": "d", "schedule": "quick", "seed": 0, "method": "RAMBO", "diverged": False}
    return Record(Path("r"), {**usual, **(results or {})}, [], settings)


class TestProgram:
    def test_writes_tables_and_figures(self, make_run: MakeRun, tmp_path: Path) -> None:
        # formulas and separators of cells are names like any other
        odd = {"dataset": r"logs_$^|_$.hdf5", "settings": {"env_id": "$_^$"}}
        runs = [make_run(tmp_path / f"r{s}", seed=s, score=40.0 - 20 * s, **odd) for s in (1, 0)]
        readme, out = tmp_path / "README.md", tmp_path / "quick"
        readme.write_text("a\n<!-- results:quick -->\nold\n<!-- end of results:quick -->\nb\n")
        assert report.main([*runs, "--out", str(out), "--readme", str(readme)]) == 0
        table = (out / "table.md").read_text()
        assert "**30.0 +- 10.0**" in table and "40.0, 20.0" in table and "| 1.5 +- 0.0 |" in table
        assert "population standard deviation" in table and r"| `logs_$^\|_$.hdf5` |" in table
        text = readme.read_text()
        assert text.startswith("a\n<!-- results:quick -->\n") and text.endswith("-->\nb\n")
        assert table in text and "old" not in text
        rows = read_csv(out / "results.csv")
        assert [row["seed"] for row in rows] == ["0", "1"] and rows[0]["minutes"] == "1.5"
        assert len(read_csv(out / "table.csv")) == 1
        figures = {path.name: path.stat().st_size for path in out.glob("*.png")}
        assert set(figures) == {"scores.png", "learning_curves.png", "q_and_return.png"}
        assert min(figures.values()) > 10_000

    def test_bad_input_writes_nothing(
        self, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = ["--out", str(tmp_path / "out")]
        assert report.main([str(tmp_path / "none"), *out]) == 2
        run = make_run(tmp_path / "a")
        readme = tmp_path / "README.md"
        readme.write_text("no markers\n")
        assert report.main([run, *out, "--readme", str(readme)]) == 2
        assert report.main([make_run(tmp_path / "b", ended=False), *out]) == 2
        config, results = tmp_path / "a/config.yaml", tmp_path / "a/results.json"
        settings = config.read_text()
        for file, text in ((config, "{"), (results, "{"), (results, "{}")):
            file.write_text(text)
            assert report.main([run, *out]) == 2
            config.write_text(settings)
        assert not (tmp_path / "out").exists() and readme.read_text() == "no markers\n"
        lines = capsys.readouterr().err.split("error:")
        assert len(lines) == 7 and "a cannot be read" in lines[4]

    def test_runs_without_evaluations_show_what_their_critics_expect(
        self, make_run: MakeRun, tmp_path: Path, panels_of: Panels
    ) -> None:
        logged = {"mean": 3, "best": 4}
        sanity = {"mean_q": 5.0, "start_value": 7.0, "logged_discounted_return": logged}
        for method, known in (("RAMBO", sanity), ("BC", {})):
            folder = tmp_path / "runs" / method
            make_run(folder, method=method, sanity=known, return_mean=None, **UNSCORED)
            (folder / "metrics.csv").write_text("epoch,loss_bc\n1,1.0\n")
        words = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        (tmp_path / "out").mkdir()
        (tmp_path / "out/scores.png").write_text("an earlier report's")
        assert report.main(words) == 0
        assert not list((tmp_path / "out").glob("*.png")), "there is nothing to draw"
        table = (tmp_path / "out/table.md").read_text()
        assert "| RAMBO, `quick` | 5.0 | 7.0 | 3.0 | 4.0 |" in table
        assert "paper" not in table, "its numbers are scores"
        metrics = "epoch,mean_q,start_value\n1,1.0,2.0\n20,5,7\n"
        (tmp_path / "runs/RAMBO/metrics.csv").write_text(metrics)
        assert report.main(words) == 0
        assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["q_and_return.png"]
        panels = panels_of(draw_q_and_return, tmp_path / "runs")
        assert [axes.get_ylabel() for axes in panels] == [
            "value at the start",
            "mean Q in training",
        ]
        assert {4, 3} <= {y for line in panels[0].lines for y in line.get_ydata()}
        # of cloning, which has no critics, there is no line and nothing in the legend
        drawn = [line.get_label() for axes in panels for line in axes.lines]
        assert not any("BC" in str(label) for label in drawn)

    def test_no_program_hides_a_module_of_python(self) -> None:
        # next to a program called select.py no other one could start: subprocess imports select
        names = {path.stem for path in Path(report.__file__).parent.glob("*.py")}
        assert not names & set(sys.stdlib_module_names)


class TestTables:
    def test_one_run_has_no_deviation(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run(tmp_path / "a")
        assert "+-:" not in tables_of(tmp_path)[0]

    def test_what_is_wrong_with_runs_is_noted(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run(tmp_path / "a", method="MOPO")
        make_run(tmp_path / "b", method="COMBO", deterministic_backup=True)
        for name in "cd":
            make_run(tmp_path / name, method="IQL")
        table, *_ = tables_of(tmp_path)
        assert "MOPO: from before a correction" in table and "COMBO and" not in table
        assert "A seed occurs more than once: IQL on" in table

    def test_a_diverged_run_scores_zero_and_is_counted(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        # its own results.json says 90: the report does not believe it
        make_run(tmp_path / "a", seed=0, score=40.0)
        make_run(tmp_path / "b", seed=1, score=90.0, diverged=True, settings={"epochs": 30})
        table, (row,), _ = tables_of(tmp_path)
        assert "**20.0 +- 20.0**" in table and "1 of 2 runs diverged" in table
        assert row["diverged"] == "1" and float(row["score_mean"]) == 20.0
        (run,), _ = find_runs([tmp_path / "b"])
        assert achieved(run) == ([5e3, 10e3, 15e3, 20e3, 30e3], [90.0, 90.0, 90.0, 0.0, 0.0])

    def test_a_diverged_run_has_no_return(self, make_run: MakeRun, tmp_path: Path) -> None:
        # where every return is negative, 0 would be the best
        for method, all_diverged in (("MOPO", False), ("COMBO", True)):
            for s, diverged in enumerate((all_diverged, all_diverged, True)):
                # as a run that diverged says of itself, whatever its data
                unscored = {**UNSCORED, "score": 0.0 if diverged else None}
                path = make_run(
                    tmp_path / f"{method}{s}", seed=s, method=method, diverged=diverged,
                    return_mean=-100.0 - 10 * s, **UNSCORED,
                )  # fmt: skip
                results = RunFolder(Path(path)).read_results()
                RunFolder(Path(path)).write_results({**results, **unscored})
        table, rows, runs = tables_of(tmp_path)
        assert "| **-105.0 +- 5.0**, 1 of 3 diverged |" in table and "| 3 of 3 diverged |" in table
        # of the runs that have one there are the interquartile mean, its interval and all values
        assert "| -105.0 (-110.0 to -100.0) | -100.0, -110.0, - |" in table
        assert "| return | IQM (95 % interval) | return by seed |" in table
        assert "| score" not in table
        assert "count as 0" not in table and "the returns leave them out" in table
        assert [r["return_mean"] for r in runs] == ["", "", "", "-100.0", "-110.0", ""]
        assert rows[1]["score_mean"] == "" and rows[1]["return_iqm"] == "-105.0"
        (diverged,), _ = find_runs([tmp_path / "MOPO2"])
        assert diverged.results["score"] == 0.0 and diverged.score is None
        assert achieved(diverged)[1] == [30.0, 30.0, 30.0]

    def test_methods_and_settings_are_rows_of_their_own(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        for method, score, settings in (
            ("RAMBO", 50.0, {"adversarial_weight": 3e-4, "agent": "{tau: 0.1}"}),
            ("RAMBO", 60.0, {"adversarial_weight": 3e-3, "agent": "{tau: 0.1}"}),
            ("MOPO", 30.0, {"agent": "{tau: 0.2}"}),
        ):
            for s in range(2):
                folder = tmp_path / f"{score}-{s}"
                make_run(folder, seed=s, score=score, method=method, settings=settings)
        table, rows, _ = tables_of(tmp_path)
        assert [(r["method"], r["settings"], float(r["score_mean"])) for r in rows] == [
            ("RAMBO", "adversarial_weight=0.0003", 50.0),
            ("RAMBO", "adversarial_weight=0.003", 60.0),
            ("MOPO", "", 30.0),
        ]
        assert "| RAMBO (adversarial_weight=0.0003), `quick` | 2 |" in table

    def test_the_paper_s_numbers_stand_beside_ours(self, make_run: MakeRun, tmp_path: Path) -> None:
        theirs = "d4rl/hopper_medium_replay-v2.hdf5"
        make_run(tmp_path / "a", dataset=theirs)
        make_run(tmp_path / "b", dataset="bundled/hopper/medium-replay-v0")
        make_run(tmp_path / "c", dataset=theirs, method="MOReL (SAC)")
        make_run(tmp_path / "d", dataset="my/own/data-v0")
        table, rows, _ = tables_of(tmp_path)
        assert [r["paper_same_data"] for r in rows] == ["False", "True", "True", ""]
        assert "99.5 +- 4.8 (other data)" in table and "| 99.5 +- 4.8 |" in table
        assert "| 93.6 |" in table and "do not compare" in table

    def test_totals_are_over_the_data_sets_that_all_have(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        hopper, cheetah = "hopper_medium-v2.hdf5", "halfcheetah_medium-v2.hdf5"
        for method, tasks in (
            ("RAMBO", ((hopper, 10.0), (cheetah, 20.0), ("walker2d_medium-v2.hdf5", 99.0))),
            ("MOPO", ((hopper, 30.0), (cheetah, 40.0))),
        ):
            for dataset, score in tasks:
                for s in (0, 1):
                    folder = tmp_path / f"{method}{score}{s}"
                    make_run(folder, seed=s, score=score + 2 * s, dataset=dataset, method=method)
        table, *_ = tables_of(tmp_path)
        # each task deviates by 1, two of them by the root of 2
        assert "| RAMBO, `quick` | 4 | **32.0 +- 1.4** |" in table
        assert "| MOPO, `quick` | 4 | **72.0 +- 1.4** |" in table
        assert "| 164.9 |" in table and "| 117.5 |" in table  # 87.0 + 77.9, 48.0 + 69.5

    def test_what_is_missing_is_left_out(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run(tmp_path / "short", seed=0, mean_q=(1.0,) * 10)
        make_run(tmp_path / "long", seed=1)
        make_run(tmp_path / "bc", seed=0, mean_q=None, method="BC")
        (tmp_path / "bc/metrics.csv").unlink()
        make_run(
            tmp_path / "unscored", dataset="my/own/data-v0", behaviour_return_mean=-7.0,
            behaviour_return_best=8.0, **UNSCORED,
        )  # fmt: skip
        table, rows, _ = tables_of(tmp_path)
        assert "| -7.0 | 8.0 | - | **30.0** | 30.0 (one seed) | 30.0 |" in table
        assert (
            "10 to 20" in table and "| score by seed |" in table and "| return by seed |" in table
        )
        assert [r["seeds"] for r in rows] == ["2", "1", "1"]


class TestNeoRL2:
    def test_published_scores_stand_beside_those_of_runs(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        runs = {"RAMBO": (70.0, 80.0), "RAMBO, lambda = 0": (60.0,), "IQL": (50.0,)}
        for method, scores in runs.items():
            for seed, score in enumerate(scores):
                make_run(
                    tmp_path / f"{method}{seed}", method=method, seed=seed, score=score,
                    dataset="neorl2/DMSD",
                )  # fmt: skip
        lines = report.markdown_tables(found_in(tmp_path)).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("NeoRL-2's published"))
        rows = [
            [cell.strip(" `*") for cell in line.strip("|").split("|")]
            for line in takewhile(bool, lines[start + 4 :])
        ]
        assert {row[0] for row in rows} == {"neorl2/DMSD"}
        by_method = {row[1].split("`")[0].strip(" ,"): row[2:] for row in rows}
        assert by_method["RAMBO"] == ["75.0 +- 5.0", "76.22 +- 1.92"]
        assert by_method["RAMBO, lambda = 0"] == ["60.0", "-"]
        assert by_method["IQL"] == ["50.0", "-"]
        assert by_method["EDAC"] == ["-", "78.65 +- 2.3"]
        assert by_method["the data's mean"] == ["-", "56.64"]
        assert len(by_method) == 1 + 3 + 8 == len(rows)

    def test_other_data_have_no_such_table(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run(tmp_path / "r")
        assert "NeoRL-2" not in report.markdown_tables(found_in(tmp_path))

    @pytest.mark.parametrize(
        ("name", "task"),
        [
            ("neorl2/Simglucose", "Simglucose"),
            ("/data/DMSD-train.npz", "DMSD"),
            ("DMSD-high-100000-train.npz", "DMSD"),
            ("neorl2/Salespromotion", None),  # of which no scores are published
            ("bundled/hopper/medium-v0", None),
        ],
    )
    def test_tasks_are_known_by_name_and_file(self, name: str, task: str | None) -> None:
        assert neorl2_task(name) == task


class TestFigures:
    def test_scores_are_ranked_with_every_seed(
        self, make_run: MakeRun, tmp_path: Path, panels_of: Panels
    ) -> None:
        make_run(tmp_path / "a", method="MOPO", score=10.0)
        for seed, score in enumerate((60.0, 90.0, 120.0)):
            make_run(tmp_path / f"b{seed}", seed=seed, score=score, diverged=seed == 2)
        unscored = {**UNSCORED, "dataset": "my/own-v0"}
        make_run(tmp_path / "d", return_mean=-7.0, **unscored)
        make_run(tmp_path / "e", seed=1, diverged=True, **unscored)
        first, second = panels_of(draw_scores, tmp_path)
        labels = [label.get_text() for label in first.get_yticklabels()]
        assert labels == ["RAMBO, quick", "MOPO, quick"]
        assert [bar.get_width() for bar in first.patches] == [50.0, 10.0]  # means, not medians
        dots = {
            (line.get_xdata()[0], line.get_marker())
            for line in first.lines
            if len(line.get_xdata()) == 1
        }
        assert dots == {(60.0, "o"), (90.0, "o"), (0.0, "X"), (10.0, "o")}
        # a return of 0 means nothing: no bar begins there
        assert second.get_xlabel() == "return" and not second.patches
        assert second.get_xlim()[1] < 0
        marks = [line for line in second.lines if list(line.get_xdata()) == [-7.0, -7.0]]
        assert len(marks) == 1
        assert any("2 seeds, 1 diverged, 20 epochs" in text.get_text() for text in second.texts)
        # nor has a diverged run's cross a height there: it stands at the panel's lower edge
        for panel, edge in zip(
            panels_of(draw_learning_curves, tmp_path), (False, True), strict=True
        ):
            (cross,) = (line for line in panel.lines if line.get_marker() == "X")
            height = cross.get_transform().transform((0, 0))[1]
            assert bool(height == pytest.approx(panel.bbox.y0)) is edge

    def test_a_row_of_scores_is_as_high_as_its_label(
        self, make_run: MakeRun, tmp_path: Path, panels_of: Panels
    ) -> None:
        settings = {f"setting_with_a_long_name_{i}": 1 for i in range(6)}
        make_run(tmp_path / "a", method="MOPO", score=50.0)
        make_run(tmp_path / "b", score=60.0, settings=settings)
        make_run(tmp_path / "c", score=40.0, settings=dict.fromkeys(settings, 2))
        (axes,) = panels_of(draw_scores, tmp_path)
        axes.figure.draw_without_rendering()
        first, second, third = (label.get_window_extent() for label in axes.get_yticklabels())
        assert min(first.height, third.height) > 3 * second.height
        assert first.y0 > second.y1 and second.y0 > third.y1
        room = axes.get_window_extent()
        assert first.y1 <= room.y1 and third.y0 >= room.y0

    @pytest.mark.parametrize(("count", "bands"), [(4, 4), (5, 0)])
    def test_many_configurations_are_drawn_as_smoothed_means(
        self, make_run: MakeRun, tmp_path: Path, panels_of: Panels, count: int, bands: int
    ) -> None:
        for k in range(count):
            for s in range(2):
                make_run(tmp_path / f"{k}{s}", seed=s, score=10.0 * (k + s), method=f"M{k}")
        (panel,) = panels_of(draw_learning_curves, tmp_path)
        assert len(panel.collections) == bands
        means = [line for line in panel.lines if line.get_label().startswith("M")]
        assert len(means) == count
        for k, line in enumerate(means):
            np.testing.assert_allclose(line.get_ydata(), 10.0 * k + 5)

    @pytest.mark.parametrize("count", [4, 14])
    def test_the_legend_fits_however_many_settings_differ(
        self, make_run: MakeRun, tmp_path: Path, panels_of: Panels, count: int
    ) -> None:
        names = ("adversarial_weight", "agent.conservative_weight", "model.adversarial_lr", "epoch")
        for k in range(count):
            settings = {name: 10 * k + i for i, name in enumerate(names)}
            make_run(tmp_path / f"{k}", settings=settings)
        axes = panels_of(draw_learning_curves, tmp_path)[0]
        figure: Any = axes.figure
        figure.draw_without_rendering()
        whole, legend = figure.bbox, figure.legends[0].get_window_extent()
        assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1
        assert whole.y0 <= legend.y0
        panel = axes.get_window_extent()
        assert panel.height / figure.dpi > 2.5, "it takes no room from what it explains"
        assert panel.y0 >= legend.y1

    def test_mean_of_curves_of_different_lengths_and_points(self) -> None:
        x, mean, std = mean_curve([([1, 3, 5], [0.0, 2.0, 4.0]), ([2, 3], [3.0, 4.0]), ([], [])])
        assert x.tolist() == [2, 3] and mean.tolist() == [2, 3] and std.tolist() == [1, 1]
        assert mean_curve([([1], [0.0]), ([2], [0.0])])[0].size == 0


class TestStatistics:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 1, 2, 3, 4, 5, 6, 1000], 3.5),
            ([0.0, 10, 2, 3, 4, 5, 100, 1000], (3 + 4 + 5 + 10) / 4),
            ([1.0, 2.0, 6.0], 3.0),
        ],
    )
    def test_interquartile_mean(self, values: list[float], expected: float) -> None:
        assert interquartile_mean(np.array(values)) == expected

    def test_of_several_tasks_it_is_that_of_all_their_runs(self) -> None:
        # the lowest and the highest quarter of all runs are one task's and the other's
        text = iqm_text([[0.0, 10.0, 20.0, 30.0], [100.0, 110.0, 120.0, 130.0]])
        assert text.startswith("65.0 (")
        assert iqm_text([[0.0, 10.0], [20.0, 30.0, 40.0, 190.0]]).startswith("25.0 (")

    def test_interval_against_every_sample(self) -> None:
        # two runs, mean of both: a quarter of the samples at each end, half in the middle
        assert iqm_interval([[0.0, 10.0]]) == (0.0, 10.0)
        # with 40 % the ends lie in the middle half
        assert iqm_interval([[0.0, 10.0]], level=0.4) == (5.0, 5.0)
        # tasks a hundred apart without a spread: unstratified samples would mix them
        assert iqm_interval([[0.0, 0.0], [100.0, 100.0]]) == (50.0, 50.0)
        low, high = iqm_interval([[0.0, 2.0, 4.0], [100.0, 102.0, 104.0, 106.0]]) or (0, 0)
        assert 35 < low < high < 75
        assert iqm_interval([[1.0]]) is None and iqm_interval([[1.0, 2.0], [3.0]]) is None
        assert iqm_interval([]) is None


class TestFindRuns:
    def test_at_any_depth(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run(tmp_path / "runs/a", seed=0)
        # what a run has below it is its own
        make_run(tmp_path / "runs/a/checkpoint/old", seed=9)
        for seed in (1, 2):
            make_run(tmp_path / f"runs/sweeps/s1/00{seed}", seed=seed)
        make_run(tmp_path / "runs/sweeps/s2/000", seed=3, ended=False)
        (tmp_path / "runs/sweeps/s2/round").symlink_to(tmp_path / "runs")
        make_run(tmp_path / "elsewhere/b", seed=4)
        (tmp_path / "runs/z").symlink_to(tmp_path / "elsewhere")
        runs, left_out = find_runs([tmp_path / "runs", tmp_path / "runs/a"])
        assert [run.results["seed"] for run in runs] == [0, 1, 2, 4]
        assert left_out == [f"not ended: {tmp_path / 'runs/sweeps/s2/000'}"]
        runs, _ = find_runs([tmp_path / "runs/sweeps/s1"])
        assert [run.results["seed"] for run in runs] == [1, 2]

    def test_what_another_program_wrote_is_left_out_and_said(
        self, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_run(tmp_path / "runs/a", seed=0)
        other = RunFolder.create(tmp_path / "runs/other")  # as single_transition.py leaves it
        other.write_results({"methods": {}, "combo": {}, "versions": {}})
        results = other.path / "results.json"
        assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"left out, {results} is another program's: it lacks")
        # a list is no run's either
        results.write_text("[]")
        assert len(find_runs([tmp_path / "runs"])[0]) == 1
        with pytest.raises(ValueError, match="is another program's: it lacks score"):
            find_runs([tmp_path / "runs", other.path])
        (tmp_path / "runs/a/results.json").unlink()
        with pytest.raises(FileNotFoundError, match="no run that has ended"):
            find_runs([tmp_path / "runs"])

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("empty", FileNotFoundError, "empty holds no run, nor does any folder below it"),
            ("file", NotADirectoryError, "file is not a folder"),
            ("none", FileNotFoundError, "none does not exist"),
        ],
    )
    def test_a_path_without_runs_is_told_for_what_it_is(
        self, tmp_path: Path, name: str, error: type[OSError], message: str
    ) -> None:
        (tmp_path / "empty/below").mkdir(parents=True)
        (tmp_path / "file").touch()
        with pytest.raises(error, match=message):
            find_runs([tmp_path / name])

    def test_results_without_their_settings_are_enough(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        for seed in range(2):
            make_run(tmp_path / f"{seed}", seed=seed, score=10.0 * seed, settings={"lr": 1})
        whole, *_ = tables_of(tmp_path)
        for seed in range(2):
            (tmp_path / f"{seed}/config.yaml").unlink()
            assert tables_of(tmp_path)[0] == whole


class TestConfigurations:
    def test_runs_differ_in_what_all_of_them_record(self) -> None:
        for one, other, count in (
            ({"tau": 1}, {"tau": 1, "num_critics": 2}, 1),
            ({"tau": 1}, {"tau": 2}, 2),
            ({"seed": 1, "threads": 2}, {"seed": 2, "threads": 1}, 1),
            ({"seed": 1}, {"seed": 2, "float32_matmul_precision": "medium"}, 1),
        ):
            assert len(configurations([record(**one), record(**other)])) == count

    def test_runs_older_than_a_setting_had_what_all_had_then(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        make_run(tmp_path / "older", seed=0, settings={"epochs": 100})
        make_run(tmp_path / "newer", seed=1, settings={"model_matmul_dtype": "float32"})
        make_run(tmp_path / "rounded", seed=0, settings={"model_matmul_dtype": "bfloat16"})
        found = found_in(tmp_path)
        names = [[run.path.name for run in c.runs] for c in found]
        assert names == [["rounded"], ["older", "newer"]]
        types = [c.differs["model_matmul_dtype"] for c in found]
        assert types == ["bfloat16", "float32"]

    @pytest.mark.parametrize(
        ("updates", "passes", "expected"),
        [
            # quick had 8 passes
            (None, (8, 60), ["RAMBO", "RAMBO (model.max_passes=60)"]),
            (24_000, (None, 8), ["RAMBO", "RAMBO (model.max_updates=None, model.max_passes=8)"]),
        ],
    )
    def test_budgets_in_passes_are_named_where_older_runs_differ_in_them(
        self, updates: int | None, passes: tuple[int | None, int], expected: list[str]
    ) -> None:
        runs = [
            record(**{"model.max_updates": updates, "model.max_passes": passes[0]}),
            record(**{"model.max_updates": None, "model.max_passes": passes[1]}),
        ]
        assert sorted(c.label for c in configurations(runs, read_schedules())) == expected

    def test_seeds_may_start_from_parts_of_their_own(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        for seed in range(2):
            parts = {"fitted_model": f"runs/{seed}.pt", "cloned_policy": f"{seed}.safetensors"}
            make_run(tmp_path / f"{seed}", seed=seed, settings=parts)
        (one,) = found_in(tmp_path)
        assert len(one.runs) == 2
        make_run(tmp_path / "plain", settings={"fitted_model": "null", "cloned_policy": "null"})
        differ = [c.differs for c in found_in(tmp_path)]
        assert differ == [{"cloned_policy": None}, {"cloned_policy": "given"}]

    def test_what_the_schedule_sets_is_not_named(self) -> None:
        runs = [
            record(epochs=epochs, model_updates=updates)
            for epochs, updates in ((60, 100), (60, 300), (20, 100))  # of quick: 60 and 100
        ]
        labels = [c.label for c in configurations(runs, read_schedules())]
        assert labels == ["RAMBO", "RAMBO (epochs=20)", "RAMBO (model_updates=300)"]
        assert len({c.label for c in configurations(runs)}) == 3

    def test_a_run_s_label_is_decided_by_the_published_lambda(self) -> None:
        for weight, dataset, label in (
            (0.0, "bundled/walker2d/medium-replay-v0", "RAMBO"),
            (3e-4, "bundled/walker2d/medium-replay-v0", "RAMBO"),
            (0.0, "bundled/hopper/medium-replay-v0", "RAMBO, lambda = 0"),
            (0.0, "my/own/data-v0", "RAMBO, lambda = 0"),
            (3e-4, "my/own/data-v0", "RAMBO"),
        ):
            assert rambo_label(weight, dataset) == label
            assert record({"adversarial_weight": weight, "dataset": dataset}).method == label
        # older ones record no label
        assert (
            Record(Path("r"), {"adversarial_weight": 0.1, "dataset": "d"}, [], {}).method == "RAMBO"
        )


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
