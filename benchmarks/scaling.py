"""Cost against size, and memory over time: python benchmarks/scaling.py.

Rollouts against rows, horizon, ensemble size and observation size on logarithmic axes, with the
slope of a straight line through the points (1 is linear); then the memory that the process holds
over iterations of rollouts and updates.
"""

from __future__ import annotations

import statistics
from math import log
from typing import Any

from matplotlib.figure import Figure
from measuring import (
    arguments,
    machine,
    markdown_table,
    measure,
    measured_on,
    process_memory,
    save,
    set_up,
    workload_options,
)
from workload import Workload

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.runtime.drawing import COLORS, GREY

CAPTION = "Cost against size, and memory over iterations"


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    set_up(args)
    quick = args.quick
    timing: dict[str, Any] = {"repeats": 2 if quick else 5, "least": 0.05 if quick else 0.3}
    base = {"compile": not args.eager, **workload_options(args)}
    rows, horizon = (2000, 2) if quick else (10_000, 5)
    sizes: dict[str, list[int]] = {
        "rows": [1000, 2000] if quick else [2000, 5000, 10_000, 20_000, 50_000, 100_000],
        "horizon": [1, 2] if quick else [1, 2, 5, 10, 20],
        "elites": [1, 5] if quick else [1, 2, 5, 10, 20],
        "observation size": [5, 11] if quick else [5, 11, 17, 50, 111, 300],
    }
    # the quick part first, and a file after each: what was measured is kept
    memory = memory_over(Workload(num_starts=2000, **base), 5 if quick else 50)
    results: dict[str, Any] = {}
    content = {"machine": machine(args), "results": results, "memory_mb": memory}
    for name, values in sizes.items():
        seconds = []
        for value in values:
            settings: dict[str, dict[str, Any]] = {
                "elites": {"num_members": value, "num_elites": value},
                "observation size": {"observation_size": value},
            }
            work = Workload(**settings.get(name, {}), **base)
            collector = ModelRolloutCollector(
                work.env,
                work.actor,
                num_starts=value if name == "rows" else rows,
                horizon=value if name == "horizon" else horizon,
                compile=work.compile,
            )
            seconds.append(measure(collector.collect, device=work.device, **timing))
            print(f"{name:16} {value:7,}  {seconds[-1]:8.4f} s", flush=True)
        line = statistics.linear_regression([log(v) for v in values], [log(s) for s in seconds])
        results[name] = {"sizes": values, "seconds": seconds, "slope": line.slope}
        save(args.out, "scaling", content)
    save(args.out, "scaling", content, report, draw)


def memory_over(work: Workload, iterations: int) -> list[float]:
    """Megabytes held after each of some iterations, the buffer full from the fifth on."""
    held = []
    for _ in range(iterations):
        work.rollouts()
        work.agent_updates(20)
        work.model_updates(20)
        held.append(process_memory()["resident"])
    return held


def report(content: dict[str, Any]) -> str:
    """Slopes, and the growth of memory."""
    rows = [
        [name, f"{r['sizes'][0]:,} to {r['sizes'][-1]:,}", f"{r['slope']:.2f}"]
        for name, r in content["results"].items()
    ]
    memory = content["memory_mb"]
    tenth = memory[min(len(memory) - 1, 9)]
    return (
        f"{measured_on(content['machine'])}\n\n{markdown_table(['size', 'range', 'slope'], rows)}"
        f"\n\nMemory after {len(memory)} iterations: {memory[-1]:,.0f} MB, "
        f"{memory[-1] - tenth:+.0f} MB since the tenth."
    )


def draw(content: dict[str, Any]) -> Figure:
    """Cost on logarithmic axes on the left, memory on the right."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for color, (name, result) in zip(COLORS, content["results"].items(), strict=False):
        relative = [s / result["sizes"][0] for s in result["sizes"]]
        cost = [s / result["seconds"][0] for s in result["seconds"]]
        left.plot(relative, cost, "o-", color=color, ms=4, label=f"{name}: {result['slope']:.2f}")
    top = max(s[-1] / s[0] for s in (r["sizes"] for r in content["results"].values()))
    left.plot([1, top], [1, top], ":", color=GREY, label="linear: 1.00")
    left.set_xscale("log")
    left.set_yscale("log")
    left.legend(title="slope")
    left.set(title="Cost of rollouts", xlabel="size, relative to the smallest")
    left.set_ylabel("time, relative")
    memory = content["memory_mb"]
    right.plot(range(1, len(memory) + 1), memory, color=COLORS[0])
    right.set_ylim(0, 1.15 * max(memory))
    right.set(title="Memory over iterations", xlabel="iteration", ylabel="megabytes held")
    return figure


if __name__ == "__main__":
    main()
