"""What the quick schedule's minutes buy: python benchmarks/score_by_minute.py.

The published runs' scores, the mean over the seeds of a data set and settings, against the
minutes that their updates take on one thread of an idle machine, as ``threads_by_phase.py`` has
measured them.
Training is seen on its way: the rates of a shorter run would have come to 0 by its end.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measuring import add_out, markdown_table, measured_on, save

from rambo_trl.reporting.paper import RAMBO
from rambo_trl.reporting.runs import Record, configurations, find_runs
from rambo_trl.runtime.drawing import COLORS
from rambo_trl.runtime.places import expand_home

CAPTION = "Score of the quick schedule on its way, by minute of one thread's updates"
RESULTS = Path(__file__).parents[1] / "docs" / "results"
#: folders of the schedule's runs
PUBLISHED = ("hopper_v1", "halfcheetah_v1", "walker2d_v1", "neorl2")
TIMES = RESULTS.parent / "benchmarks" / "threads_by_phase.json"
#: what comes before the first epoch; the other updates are an epoch's
BEFORE = ("likelihood", "cloning")
#: epochs of the table
EPOCHS = (5, 10, 20, 30, 40, 50, 60)


def minutes(times: dict[str, Any]) -> dict[str, float]:
    """Minutes of one thread before the first epoch, and in each."""
    spent = {
        name: times["times_in_a_run"][name] * statistics.median(seconds["1"]) / 60
        for name, seconds in times["results"].items()
    }
    before = sum(spent[name] for name in BEFORE)
    epochs = times["times_in_a_run"]["rollouts"]
    return {"before": before, "epoch": (sum(spent.values()) - before) / epochs}


def curve(runs: Sequence[Record]) -> dict[str, Any]:
    """The clone's score, and the mean score by epoch of those that all have evaluated."""
    scores = [
        {int(row["epoch"] or 0): row["score"] for row in run.metrics if row["score"] is not None}
        for run in runs
    ]
    epochs = sorted(set.intersection(*map(set, scores)))
    return {
        "seeds": sorted(run.results["seed"] for run in runs),
        "clone": statistics.fmean(run.results["cloned_score"] for run in runs),
        "best_episode": runs[0].results["behaviour_score_best"],
        "epochs": epochs,
        "score": [statistics.fmean(of_run[epoch] for of_run in scores) for epoch in epochs],
    }


def add_folders(parser: argparse.ArgumentParser, what: str) -> None:
    """Take folders of runs, by default those of the published ones."""
    published = [RESULTS / name for name in PUBLISHED]
    parser.add_argument("folders", nargs="*", type=expand_home, default=published, help=what)


def main() -> None:
    """Read the runs, write the JSON file and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    add_folders(parser, "one for each data set, with finished runs of RAMBO in it")
    parser.add_argument("--times", type=expand_home, default=TIMES, help="of threads_by_phase.py")
    add_out(parser)
    args = parser.parse_args()
    times = json.loads(args.times.read_text(encoding="utf-8"))
    results = {}
    for folder in args.folders:
        found = [c for c in configurations(find_runs([folder])[0]) if c.method == RAMBO]
        if not found:
            parser.error(f"{folder} holds no finished run of RAMBO")
        for one in found:
            settings = (f"{key}={value}" for key, value in one.differs.items())
            results[", ".join((one.dataset, *settings))] = curve(one.runs)
    machine = {**times["machine"], "threads": 1}
    content = {"machine": machine, "minutes": minutes(times), "results": results}
    save(args.out, "score_by_minute", content, report, draw)


def at(content: dict[str, Any], epochs: Sequence[int]) -> list[float]:
    """The minutes of epochs' ends."""
    spent = content["minutes"]
    return [spent["before"] + epoch * spent["epoch"] for epoch in epochs]


def report(content: dict[str, Any]) -> str:
    """Scores by minute."""
    rows = []
    for name, of_set in content["results"].items():
        scores = dict(zip(of_set["epochs"], of_set["score"], strict=True))
        values = [of_set["clone"], *map(scores.get, EPOCHS), of_set["best_episode"]]
        seeds = f"{len(of_set['seeds'])} seed{'s' * (len(of_set['seeds']) > 1)}"
        rows.append([f"{name}, {seeds}", *("" if x is None else f"{x:.1f}" for x in values)])
    ends = [f"{minute:.1f} min" for minute in at(content, (0, *EPOCHS))]
    return (
        f"{measured_on(content['machine'])} Without evaluations and compiling.\n\n"
        + markdown_table(["score after", *ends, "best episode"], rows)
    )


def draw(content: dict[str, Any]) -> Figure:
    """A line for each data set, from the clone on."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for color, (name, of_set) in zip(COLORS, content["results"].items(), strict=False):
        ends = at(content, (0, *of_set["epochs"]))
        axes.plot(ends, [of_set["clone"], *of_set["score"]], "o-", ms=3, color=color, label=name)
        axes.axhline(of_set["best_episode"], color=color, lw=1, ls=":")
    axes.set(
        title="Mean score of the seeds; dotted, the data's best episode",
        xlabel="minutes of updates",
        ylabel="score",
        xlim=(0, None),
        ylim=(0, None),
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
