"""Numbers beside the paper's Table 1, and RAMBO without an adversary beside its Table 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import report
import yaml

from rambo_trl.reporting.ablation import ablation_table
from rambo_trl.reporting.paper import published, published_ablation, published_weight
from rambo_trl.reporting.runs import Record, configurations, find_runs
from rambo_trl.reporting.tables import write_summary

MakeRun = Callable[..., str]
TASKS = Path(report.__file__).parent / "config/task"
ABLATION = "RAMBO, lambda = 0"
HOPPER = "bundled/hopper/medium-replay-v0"


def table_of(folder: Path) -> list[list[str]]:
    """The ablation's table as cells, without its head; [] where there is none."""
    lines = ablation_table(configurations(find_runs([folder])[0]))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[5:]]


@pytest.fixture
def runs_on(make_run: MakeRun, tmp_path: Path) -> Callable[..., None]:
    """Makes a run a score, with RAMBO's lambda or with 0."""

    def make(dataset: str, *scores: float, weight: float = 3e-4, folder: str = "", **settings):
        for seed, score in enumerate(scores):
            make_run(
                tmp_path / folder / str(len(list(tmp_path.rglob("results.json")))), seed=seed,
                score=score, dataset=dataset, method="RAMBO" if weight else ABLATION,
                adversarial_weight=weight, settings={"adversarial_weight": weight, **settings},
            )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def paper_runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAMBO with Table 1's lambdas and scores, and 5 points fewer with 0 where it is not 0."""
    folder = tmp_path_factory.mktemp("paper")
    for task in sorted(TASKS.glob("d4rl-*.yaml")):
        name = task.stem.removeprefix("d4rl-")
        maze = name.startswith("antmaze")  # as D4RL names its files
        dataset = f"d4rl/{name if maze else name.replace('-', '_')}-v{0 if maze else 2}.hdf5"
        published_lambda = float(yaml.safe_load(task.read_text())["adversarial_weight"])
        number = published("RAMBO", dataset)
        assert number is not None and number.same_data
        for weight, lost in ((published_lambda, 0), *(((0.0, 5),) if published_lambda else ())):
            for seed in (0, 1):
                # earlier versions called a run without an adversary RAMBO on other data too
                label = "RAMBO" if weight or seed else ABLATION
                make_run(
                    folder / f"{'without' if lost else 'with'}/{name}-{seed}", seed=seed,
                    score=number.score - lost + 2 * seed - 1, dataset=dataset, method=label,
                    adversarial_weight=weight, settings={"adversarial_weight": weight},
                )  # fmt: skip
    return folder


def test_table_1_as_published_has_the_paper_s_numbers_and_total(
    paper_runs: Path, tmp_path: Path
) -> None:
    found = configurations(find_runs([paper_runs / "with"])[0])
    assert {c.label for c in found} == {"RAMBO"} and len(found) == 18
    weights = [c.runs[0].results["adversarial_weight"] for c in found]
    assert weights.count(0.0) == 8 == [published_weight(c.dataset) for c in found].count(0.0)
    write_summary(found, tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()]
    score, paper = rows[0].index("score_mean"), rows[0].index("paper_score")
    scores = [[float(row[column]) for row in rows[1:]] for column in (score, paper)]
    assert scores[0] == pytest.approx(scores[1]) and text.count(",True\n") == 18
    table = report.markdown_tables(found)
    assert "Over the 18 data sets" in table and "ablation" not in table
    # 812.4 on MuJoCo, 67.0 on AntMaze; eighteen deviations of 1
    assert "| RAMBO, `quick` | 36 | **879.4 +- 4.2** |" in table and "| 879.4 |" in table


def test_lambda_0_is_the_ablation_where_the_paper_s_is_not(paper_runs: Path) -> None:
    runs, _ = find_runs([paper_runs])
    assert sum(run.method == ABLATION for run in runs) == 2 * 10
    found = configurations(runs)
    assert [published(c.method, c.dataset) for c in found].count(None) == 10
    table = report.markdown_tables(found)
    assert "Over the 18 data sets" in table and "On 8 of them the paper's lambda is 0" in table
    assert "| RAMBO, `quick` | 36 |" in table and f"| {ABLATION}, `quick` | 36 |" in table


def test_the_paper_s_totals_are_those_of_its_tables() -> None:
    # the totals are printed in the paper's text and Table 2, the cells come from its Table 1
    mujoco, maze = (published_ablation(n) for n in ("hopper_medium-v2", "D4RL/antmaze/umaze-v1"))
    assert mujoco is not None and maze is not None
    assert (mujoco.ablation, mujoco.ablation_std) == (671.5, 43.5)
    assert (maze.ablation, maze.ablation_std) == (45.8, 21.8)
    assert published_ablation("my/own/data-v0") is None
    kinds = ("random", "medium", "medium_replay", "medium_expert")
    names = [f"{e}_{k}-v2.hdf5" for e in ("halfcheetah", "hopper", "walker2d") for k in kinds]
    mazes = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
             "large-diverse")  # fmt: skip
    assert (len(names), len(mazes)) == (mujoco.data_sets, maze.data_sets)
    for method, total, sets in (
        ("RAMBO", 812.4, names), ("COMBO", 769.7, names), ("MOPO", 413.4, names),
        ("BC", 300.8, names), ("RAMBO", mujoco.rambo, names),
        ("RAMBO", maze.rambo, [f"antmaze-{kind}-v0" for kind in mazes]),
    ):  # fmt: skip
        numbers = [published(method, name) for name in sets]
        assert sum(n.score for n in numbers if n) == pytest.approx(total)
    assert published("IQL", names[0]) is None


def test_all_of_table_2_stands_beside_the_paper_s(paper_runs: Path) -> None:
    rows = table_of(paper_runs)
    assert len(rows) == 18 + 2
    by_name = {row[0].strip("`"): row for row in rows}
    assert by_name["d4rl/hopper_medium_replay-v2.hdf5"][1:] == [
        "RAMBO, `quick`", "**99.5 +- 1.0**", "**94.5 +- 1.0**", "+5.0", "99.5 +- 4.8", "-",
    ]  # fmt: skip
    # the paper's lambda is 0 there: both columns are one run's, here and in the paper
    assert by_name["d4rl/walker2d_medium-v2.hdf5"][2:] == [
        "**84.9 +- 1.0**", "**84.9 +- 1.0**", "its own ablation", "84.9 +- 2.6", "84.9 +- 2.6",
    ]  # fmt: skip
    # eight MuJoCo sets and two of AntMaze with lambda above 0; twelve and six deviations of 1
    assert by_name["MuJoCo, 12 of 12"][2:] == [
        "**812.4 +- 3.5**", "**772.4 +- 3.5**", "+40.0", "812.4 +- 47.8", "671.5 +- 43.5",
    ]  # fmt: skip
    assert by_name["AntMaze, 6 of 6"][2:] == [
        "**67.0 +- 2.4**", "**57.0 +- 2.4**", "+10.0", "67.0 +- 14.9", "45.8 +- 21.8",
    ]  # fmt: skip


def test_other_data_and_a_part_of_the_data_sets_are_told(
    runs_on: Callable[..., None], tmp_path: Path, paper_runs: Path
) -> None:
    hopper = [run for run in find_runs([paper_runs])[0] if "hopper" in run.results["dataset"]]
    line = ablation_table(configurations(hopper))[-1]
    assert line.startswith("| MuJoCo, 4 of 12 |") and line.endswith("| 671.5 +- 43.5 (all 12) |")
    runs_on(HOPPER, 40.0)
    runs_on(HOPPER, 25.0, weight=0.0)
    row, total = table_of(tmp_path)
    assert row[2:] == ["**40.0**", "**25.0**", "+15.0", "99.5 +- 4.8 (other data)", "-"]
    assert total[0] == "MuJoCo, 1 of 12" and total[2:5] == ["**40.0**", "**25.0**", "+15.0"]
    assert total[5:] == [f"{x} (all 12, other data)" for x in ("812.4 +- 47.8", "671.5 +- 43.5")]
    text = report.markdown_tables(configurations(find_runs([tmp_path])[0]))
    assert total[-1] in text and "Table 2" in text and "do not compare" in text
    # the difference is not the adversary's alone
    assert "where the model stays as it was fitted" in text and "adversarial_weight=1e-12" in text
    assert "the fit that continues in adversarial training as well as the adversary" in text


def test_a_benchmark_without_an_adversary_has_no_total(
    runs_on: Callable[..., None], tmp_path: Path
) -> None:
    runs_on("bundled/hopper/medium-v0", 40.0)
    runs_on("bundled/hopper/medium-v0", 25.0, weight=0.0)
    runs_on("antmaze-medium-play-v0.hdf5", 20.0, weight=0.0)  # RAMBO's own
    runs_on("my/own/data-v0", 42.0)  # the paper does not have them
    runs_on("my/own/data-v0", 22.0, weight=0.0)
    rows = table_of(tmp_path)
    assert [row[0] for row in rows if not row[0].startswith("`")] == ["MuJoCo, 1 of 12"]
    assert ["**42.0**", "**22.0**", "+20.0", "-", "-"] in [row[2:] for row in rows]


def test_only_what_differs_in_lambda_alone_is_set_side_by_side(
    runs_on: Callable[..., None], make_run: MakeRun, tmp_path: Path
) -> None:
    runs_on(HOPPER, 40.0, rollout_length=5)
    runs_on("bundled/halfcheetah/medium-v0", 41.0, weight=0.0)
    runs_on("bundled/walker2d/medium-v0", 42.0, weight=0.0)  # RAMBO's own
    make_run(tmp_path / "x", method="MOPO", dataset=HOPPER)
    assert table_of(tmp_path) == []
    runs_on(HOPPER, 25.0, weight=0.0, rollout_length=2)
    runs_on(HOPPER, 20.0, weight=0.0, rollout_length=5)
    runs_on(HOPPER, 50.0, weight=1e-2, rollout_length=5)
    rows = [row for row in table_of(tmp_path) if row[0].startswith("`")]
    assert [row[2:4] for row in rows if "hopper" in row[0]] == [
        ["**40.0**", "**20.0**"], ["**50.0**", "**20.0**"],
    ]  # fmt: skip


def test_a_fit_without_an_adversary_is_not_rambo(
    runs_on: Callable[..., None], tmp_path: Path
) -> None:
    runs_on(HOPPER, 30.0, weight=1e-12)
    runs_on(HOPPER, 25.0, weight=0.0)
    assert table_of(tmp_path) == []
    runs_on(HOPPER, 40.0, weight=1e-5)
    assert [row[2:4] for row in table_of(tmp_path)] == [["**40.0**", "**25.0**"]] * 2  # and a total
    # a budget moves lambda away from where it starts
    runs_on(HOPPER, 41.0, weight=1e-12, likelihood_budget=0.1, folder="b")
    runs_on(HOPPER, 25.0, weight=0.0, likelihood_budget=0.1, folder="b")
    assert table_of(tmp_path / "b")[0][2:4] == ["**41.0**", "**25.0**"]


def test_settings_that_a_label_does_not_name_are_compared_too() -> None:
    def record(score: float, **settings) -> Record:
        weight = settings["adversarial_weight"]
        results = {"dataset": HOPPER, "schedule": "quick", "seed": 0, "diverged": False,
                   "score": score, "adversarial_weight": weight}  # fmt: skip
        return Record(Path("r"), results, [], settings)

    runs = [
        record(40.0, adversarial_weight=3e-4, model_updates=50),  # the schedule's own
        record(50.0, adversarial_weight=3e-4, model_updates=300),
        record(20.0, adversarial_weight=0.0, model_updates=300),
    ]
    row = ablation_table(configurations(runs, {"quick": {"model_updates": 50}}))[5]
    assert row.split(" | ")[1:4] == [
        "RAMBO (model_updates=300), `quick`", "**50.0**", "**20.0**",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [((-200.0, -150.0), [["**-200.0**", "**-150.0**", "-50.0"]]), ((1.0, None), []),
     ((None, 1.0), [])],
)  # fmt: skip
def test_returns_are_set_side_by_side_where_there_are_no_scores(
    make_run: MakeRun, tmp_path: Path, values: tuple[float | None, ...], expected: list[list[str]]
) -> None:
    for weight, value in zip((3e-4, 0.0), values, strict=True):
        make_run(
            tmp_path / f"{weight}", score=None, dataset="my/own/data-v0", behaviour_score=None,
            method="RAMBO" if weight else ABLATION, adversarial_weight=weight, return_mean=value,
        )  # fmt: skip
    assert [row[2:5] for row in table_of(tmp_path)] == expected
