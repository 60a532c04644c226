"""A report sets RAMBO beside itself without an adversary, as the paper's Table 2 does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import report
from omegaconf import OmegaConf

from rambo_trl.reporting.ablation import ablation_table
from rambo_trl.reporting.paper import published, published_ablation
from rambo_trl.reporting.runs import configurations, find_runs

MakeRun = Callable[..., str]
TASKS = Path(report.__file__).parent / "config/task"
ABLATION = "RAMBO, lambda = 0"


def table_of(folder: Path) -> list[list[str]]:
    """The ablation's table as cells, without its head; [] where there is none."""
    lines = ablation_table(configurations(find_runs([folder])[0]))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[5:]]


def runs_on(
    make_run: MakeRun, folder: Path, dataset: str, *scores: float, weight: float = 3e-4, **settings
) -> None:
    """A run a score, with RAMBO's lambda or with 0."""
    for seed, score in enumerate(scores):
        count = len(list(folder.glob("*"))) if folder.is_dir() else 0
        make_run(
            folder / f"{count}", seed=seed, score=score, dataset=dataset,
            method="RAMBO" if weight else ABLATION, adversarial_weight=weight,
            settings={"adversarial_weight": weight, **settings},
        )  # fmt: skip


def published_runs(make_run: MakeRun, folder: Path, only: str = "") -> None:
    """RAMBO with the scores of Table 1, and 5 points fewer with lambda = 0 where it is not 0."""
    for task in sorted(TASKS.glob(f"d4rl-{only}*.yaml")):
        name = task.stem.removeprefix("d4rl-")
        maze = name.startswith("antmaze")
        dataset = f"d4rl/{name if maze else name.replace('-', '_')}-v{0 if maze else 2}.hdf5"
        weight = float(OmegaConf.load(task).adversarial_weight)
        score = published("RAMBO", dataset).score  # type: ignore[union-attr]
        runs_on(make_run, folder, dataset, score - 1, score + 1, weight=weight)
        if weight:
            runs_on(make_run, folder, dataset, score - 6, score - 4, weight=0.0)


def test_the_paper_s_totals_are_those_of_its_tables() -> None:
    mujoco, maze = (published_ablation(n) for n in ("hopper_medium-v2", "D4RL/antmaze/umaze-v1"))
    assert mujoco is not None and maze is not None
    assert (mujoco.ablation, mujoco.ablation_std) == (671.5, 43.5)
    assert (maze.ablation, maze.ablation_std) == (45.8, 21.8)
    assert published_ablation("my/own/data-v0") is None
    for paper, names in (
        (mujoco, [f"{e}_{k}-v2" for e in ("halfcheetah", "hopper", "walker2d")
                  for k in ("random", "medium", "medium_replay", "medium_expert")]),
        (maze, [f"antmaze-{kind}-v0" for kind in (
            "umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
            "large-diverse")]),
    ):  # fmt: skip
        numbers = [published("RAMBO", name) for name in names]
        assert len(names) == paper.data_sets
        assert sum(n.score for n in numbers if n) == pytest.approx(paper.rambo)


def test_all_of_table_2_stands_beside_the_paper_s(make_run: MakeRun, tmp_path: Path) -> None:
    published_runs(make_run, tmp_path)
    rows = table_of(tmp_path)
    assert len(rows) == 18 + 2
    single = {row[0].strip("`"): row for row in rows[:18]}
    assert single["d4rl/hopper_medium_replay-v2.hdf5"][1:] == [
        "RAMBO, `quick`", "**99.5 +- 1.0**", "**94.5 +- 1.0**", "+5.0", "99.5 +- 4.8", "-",
    ]  # fmt: skip
    # the paper's lambda is 0 there: both columns are one run's, here and in the paper
    assert single["d4rl/walker2d_medium-v2.hdf5"][2:] == [
        "**84.9 +- 1.0**", "**84.9 +- 1.0**", "its own ablation", "84.9 +- 2.6", "84.9 +- 2.6",
    ]  # fmt: skip
    totals = {row[0]: row for row in rows if not row[0].startswith("`")}
    mujoco, maze = totals["MuJoCo, 12 of 12"], totals["AntMaze, 6 of 6"]
    # eight MuJoCo sets and two of AntMaze with lambda above 0; twelve and six deviations of 1
    assert mujoco[2:] == [
        "**812.4 +- 3.5**", "**772.4 +- 3.5**", "+40.0", "812.4 +- 47.8", "671.5 +- 43.5",
    ]  # fmt: skip
    assert maze[2:] == [
        "**67.0 +- 2.4**", "**57.0 +- 2.4**", "+10.0", "67.0 +- 14.9", "45.8 +- 21.8",
    ]  # fmt: skip


def test_other_data_and_a_part_of_the_data_sets_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    published_runs(make_run, tmp_path / "a", only="hopper")
    total = table_of(tmp_path / "a")[-1]
    assert total[0] == "MuJoCo, 4 of 12" and total[-1] == "671.5 +- 43.5 (all 12)"
    runs_on(make_run, tmp_path / "b", "bundled/hopper/medium-replay-v0", 40.0)
    runs_on(make_run, tmp_path / "b", "bundled/hopper/medium-replay-v0", 25.0, weight=0.0)
    row, total = table_of(tmp_path / "b")
    assert row[2:] == ["**40.0**", "**25.0**", "+15.0", "99.5 +- 4.8 (other data)", "-"]
    assert total[0] == "MuJoCo, 1 of 12" and total[2:5] == ["**40.0**", "**25.0**", "+15.0"]
    assert total[5:] == [f"{x} (all 12, other data)" for x in ("812.4 +- 47.8", "671.5 +- 43.5")]
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "b"), "--out", str(out)]) == 0
    text = (out / "table.md").read_text()
    assert total[-1] in text and "Table 2" in text and "do not compare" in text


def test_a_benchmark_without_an_adversary_has_no_total(make_run: MakeRun, tmp_path: Path) -> None:
    runs_on(make_run, tmp_path, "bundled/hopper/medium-v0", 40.0)
    runs_on(make_run, tmp_path, "bundled/hopper/medium-v0", 25.0, weight=0.0)
    runs_on(make_run, tmp_path, "antmaze-medium-play-v0.hdf5", 20.0, weight=0.0)  # RAMBO's own
    totals = [row[0] for row in table_of(tmp_path) if not row[0].startswith("`")]
    assert totals == ["MuJoCo, 1 of 12"]


def test_data_that_the_paper_does_not_have_get_no_totals(make_run: MakeRun, tmp_path: Path) -> None:
    runs_on(make_run, tmp_path, "my/own/data-v0", 40.0)
    runs_on(make_run, tmp_path, "my/own/data-v0", 25.0, weight=0.0)
    assert [row[2:] for row in table_of(tmp_path)] == [["**40.0**", "**25.0**", "+15.0", "-", "-"]]


def test_only_what_differs_in_lambda_alone_is_set_side_by_side(
    make_run: MakeRun, tmp_path: Path
) -> None:
    hopper = "bundled/hopper/medium-replay-v0"
    runs_on(make_run, tmp_path, hopper, 40.0, rollout_length=5)
    runs_on(make_run, tmp_path, "bundled/halfcheetah/medium-v0", 41.0, weight=0.0)
    runs_on(make_run, tmp_path, "bundled/walker2d/medium-v0", 42.0, weight=0.0)  # RAMBO's own
    make_run(tmp_path / "x", method="MOPO", dataset=hopper)
    assert table_of(tmp_path) == []
    runs_on(make_run, tmp_path, hopper, 25.0, weight=0.0, rollout_length=2)
    runs_on(make_run, tmp_path, hopper, 20.0, weight=0.0, rollout_length=5)
    runs_on(make_run, tmp_path, hopper, 50.0, weight=1e-2, rollout_length=5)
    rows = [row for row in table_of(tmp_path) if row[0].startswith("`")]
    assert [row[2:4] for row in rows if "hopper" in row[0]] == [
        ["**40.0**", "**20.0**"], ["**50.0**", "**20.0**"],
    ]  # fmt: skip


def test_the_head_names_all_that_the_difference_holds(make_run: MakeRun, tmp_path: Path) -> None:
    hopper = "bundled/hopper/medium-replay-v0"
    runs_on(make_run, tmp_path, hopper, 40.0)
    runs_on(make_run, tmp_path, hopper, 25.0, weight=0.0)
    text = "\n".join(ablation_table(configurations(find_runs([tmp_path])[0])))
    assert "where the model stays as it was fitted" in text and "adversarial_weight=1e-12" in text
    assert "the fit that continues in adversarial training as well as the adversary" in text
    assert "What the adversary is worth" not in text


def test_a_fit_without_an_adversary_is_not_rambo(make_run: MakeRun, tmp_path: Path) -> None:
    hopper = "bundled/hopper/medium-replay-v0"
    runs_on(make_run, tmp_path, hopper, 30.0, weight=1e-12)
    runs_on(make_run, tmp_path, hopper, 25.0, weight=0.0)
    assert table_of(tmp_path) == []
    runs_on(make_run, tmp_path, hopper, 40.0, weight=1e-5)
    assert [row[2:4] for row in table_of(tmp_path)] == [["**40.0**", "**25.0**"]] * 2  # and a total
    # a budget moves lambda away from where it starts
    runs_on(make_run, tmp_path / "b", hopper, 41.0, weight=1e-12, likelihood_budget=0.1)
    runs_on(make_run, tmp_path / "b", hopper, 25.0, weight=0.0, likelihood_budget=0.1)
    assert table_of(tmp_path / "b")[0][2:4] == ["**41.0**", "**25.0**"]


def test_settings_that_a_label_does_not_name_are_compared_too(
    make_run: MakeRun, tmp_path: Path
) -> None:
    hopper = "bundled/hopper/medium-replay-v0"
    runs_on(make_run, tmp_path, hopper, 40.0, model_updates=50)  # the quick schedule's own
    runs_on(make_run, tmp_path, hopper, 50.0, model_updates=300)
    runs_on(make_run, tmp_path, hopper, 20.0, weight=0.0, model_updates=300)
    (row, *_) = table_of(tmp_path)
    assert row[1:4] == ["RAMBO (model_updates=300), `quick`", "**50.0**", "**20.0**"]


def test_returns_are_set_side_by_side_where_there_are_no_scores(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for weight, mean_return in ((3e-4, -200.0), (0.0, -150.0)):
        make_run(
            tmp_path / f"{weight}", score=None, dataset="my/own/data-v0", behaviour_score=None,
            method="RAMBO" if weight else ABLATION, adversarial_weight=weight,
            return_mean=mean_return,
        )  # fmt: skip
    (row,) = table_of(tmp_path)
    assert row[2:5] == ["**-200.0**", "**-150.0**", "-50.0"]


@pytest.mark.parametrize("scores", [(40.0, None), (None, 40.0)])
def test_without_scores_there_is_nothing_to_set_side_by_side(
    make_run: MakeRun, tmp_path: Path, scores: tuple[float | None, float | None]
) -> None:
    for weight, score in zip((3e-4, 0.0), scores, strict=True):
        make_run(
            tmp_path / f"{weight}", score=score, dataset="my/own/data-v0", behaviour_score=None,
            method="RAMBO" if weight else ABLATION, adversarial_weight=weight,
        )  # fmt: skip
    assert table_of(tmp_path) == []
