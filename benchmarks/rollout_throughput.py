"""Imagined transitions per second: python benchmarks/rollout_throughput.py.

The world model and the policy have the published sizes on Hopper's 11 + 3 entries. Beside the
rates stands the share of the machine's own matrix-product rate that they reach.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from measuring import (
    arguments,
    at_least,
    machine,
    markdown_table,
    matmul_rate,
    measure,
    measured_on,
    save,
    set_up,
    workload_options,
)
from workload import Workload

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.runtime.drawing import COLORS

CAPTION = "Imagined transitions per second"


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    for name, what in (
        ("rows", "rollouts at once"),
        ("horizons", "steps of a rollout"),
        ("elites", "members of the model that rows are dealt to, at the largest rollouts"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(1), nargs="+", help=f"{what} (default: several)"
        )
    args = parser.parse_args()
    if max(args.elites or [1]) > Workload.num_members:
        parser.error(f"--elites must be at most {Workload.num_members}, got {max(args.elites)}")
    set_up(args)
    row_counts = args.rows or (
        [1000, 4000] if args.quick else [1000, 2000, 5000, 10_000, 20_000, 50_000]
    )
    horizons = args.horizons or ([2] if args.quick else [1, 2, 5])
    elite_counts = args.elites or ([5] if args.quick else [1, 2, 5, 7])
    settings: dict[str, Any] = {
        "repeats": 2 if args.quick else 5,
        "least": 0.1 if args.quick else 0.5,
    }
    rate = matmul_rate(args.device)
    flop = Workload(num_starts=1000, **workload_options(args)).products()["rollouts"]
    results: list[dict[str, Any]] = []
    jobs = [(rows, k, 5) for k in horizons for rows in row_counts]
    jobs += [(max(row_counts), max(horizons), elites) for elites in elite_counts if elites != 5]
    for compile in (True, False):
        for rows, k, elites in jobs:
            work = Workload(num_elites=elites, **workload_options(args))
            collector = ModelRolloutCollector(
                work.env, work.actor, num_starts=rows, horizon=k, compile=compile
            )
            per_second = rows * k / measure(collector.collect, device=work.device, **settings)
            share = per_second * flop / rate
            result = {"rows": rows, "horizon": k, "elites": elites, "compiled": compile}
            result |= {"transitions_per_second": per_second, "share_of_matmul_rate": share}
            results.append(result)
            print(result, flush=True)
    content = {"machine": machine(args), "matmul_flop_per_second": rate, "results": results}
    save(args.out, "rollout_throughput", content, report, draw)


def report(content: dict[str, Any]) -> str:
    """Rates by rows and horizon, compiled and eager."""
    rows = [
        [
            f"{r['rows']:,} x {r['horizon']}, {r['elites']} elites",
            "compiled" if r["compiled"] else "eager",
            f"{r['transitions_per_second']:,.0f}",
            f"{r['share_of_matmul_rate']:.0%}",
        ]
        for r in content["results"]
        if r["rows"] in (1000, 10_000, 50_000) and r["horizon"] in (1, 5)
    ]
    rate = content["matmul_flop_per_second"] / 1e9
    head = ["rollouts", "", "transitions/s", "share of the products' rate"]
    return (
        f"{measured_on(content['machine'])} Large matrix products reach {rate:.0f} GFLOP/s.\n\n"
        + markdown_table(head, rows)
    )


def draw(content: dict[str, Any]) -> Figure:
    """Rate against rows, a line for each horizon, compiled drawn whole and eager broken."""
    results = content["results"]
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    horizons = sorted({r["horizon"] for r in results})
    for color, k in zip(COLORS, horizons, strict=False):
        for compiled, style in ((True, "o-"), (False, "o--")):
            points = [
                (r["rows"], r["transitions_per_second"])
                for r in results
                if (r["horizon"], r["compiled"], r["elites"]) == (k, compiled, 5)
            ]
            label = f"k = {k}, {'compiled' if compiled else 'eager'}"
            axes.plot(*zip(*sorted(points), strict=True), style, color=color, label=label, ms=4)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y / 1000:.0f} k")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(ncols=max(1, len(horizons)), loc="lower right")
    best = max(r["transitions_per_second"] for r in results if r["elites"] == 5)  # as drawn
    title = f"Imagined rollouts: up to {best / 1000:.0f} thousand transitions a second"
    axes.set(title=title, xlabel="rollouts at once", ylabel="transitions / s")
    return figure


if __name__ == "__main__":
    main()
