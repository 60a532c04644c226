"""The quick schedule's phases by number of CPU threads: python benchmarks/threads_by_phase.py.

Its sizes on Hopper's 11 + 3 entries, on one thread and on ``--threads`` (all cores by default).
Each number of threads has a process of its own, as it has compiled graphs of its own; they work by
turns. What a run takes is projected from its numbers of updates, without evaluations and compiling.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import _recipes  # noqa: F401  # for the launcher
from launcher.command_line import compose_jobs
from matplotlib.figure import Figure
from measuring import (
    Side,
    arguments,
    draw_bars,
    machine,
    markdown_table,
    matmul_rate,
    measure_in_turns,
    measured_on,
    save,
    set_up,
    times,
    workload_options,
)
from workload import Workload, sizes_of

CAPTION = "Milliseconds of the quick schedule's updates, by number of threads"
NAMES = {
    "likelihood": "update of the fit",
    "cloning": "behaviour cloning step",
    "rollouts": "an epoch's rollouts",
    "sac": "agent's update",
    "adversarial": "adversarial update",
}


def make_works(args: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """Each phase's work, compiled for this process's number of threads."""
    set_up(args)
    work = Workload(compile=True, **sizes_of("quick"), **workload_options(args))
    return {
        "likelihood": times(work.likelihood_step()),
        "cloning": times(work.cloning_step()),
        "rollouts": times(work.rollouts),
        "sac": work.agent_updates,
        "adversarial": work.model_updates,
        "rate": lambda _: matmul_rate(args.device),
    }


def times_in_a_run() -> dict[str, int]:
    """How often the quick schedule does each work."""
    (cfg,) = compose_jobs("rambo", ["schedule=quick"], check=lambda cfg: None)
    return {
        "likelihood": cfg.model.max_updates,
        "cloning": cfg.cloning.updates,
        "rollouts": cfg.epochs,
        "sac": cfg.epochs * cfg.agent_updates,
        "adversarial": cfg.epochs * cfg.model_updates // cfg.model_updates_every,
    }


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    args = parser.parse_args()
    most = args.threads or os.cpu_count() or 1
    if most < 2:
        parser.error("one thread has nothing to be compared with: give --threads 2 or more")
    set_up(args)
    sides = {
        threads: Side(make_works, argparse.Namespace(**{**vars(args), "threads": threads}))
        for threads in (1, most)
    }
    results: dict[str, dict[str, list[float]]] = {}
    for name in NAMES:
        num = 1 if name == "rollouts" else 5 if args.quick else 50
        seconds = measure_in_turns(
            [partial(side.do, name, num) for side in sides.values()],
            rounds=1 if args.quick else 7,
            least=0.05 if args.quick else 0.5,
            wake=[partial(side.do, name, min(num, 5)) for side in sides.values()],
        )
        results[name] = {
            str(threads): [s / num for s in of_side]
            for threads, of_side in zip(sides, seconds, strict=True)
        }
        print(NAMES[name], results[name], flush=True)
    work = Workload(**sizes_of("quick"), **workload_options(args))
    flop = work.products()
    flop["rollouts"] *= work.num_starts * work.horizon
    content = {
        "machine": machine(args),
        "matmul_flop_per_second": {str(n): side.do("rate") for n, side in sides.items()},
        "flop": flop,
        "times_in_a_run": times_in_a_run(),
        "results": results,
    }
    save(args.out, "threads_by_phase", content, report, draw)


def report(content: dict[str, Any]) -> str:
    """Time and share of the products' rate by phase and threads, and what a run takes."""
    rates, counts = content["matmul_flop_per_second"], content["times_in_a_run"]
    one, most = rates
    rows, minutes = [], dict.fromkeys((one, most, "best"), 0.0)
    for name, seconds in content["results"].items():
        medians = {n: statistics.median(x) for n, x in seconds.items()}
        ratio = statistics.median(a / b for a, b in zip(seconds[one], seconds[most], strict=True))
        row = [NAMES[name]]
        for n, s in medians.items():
            row += [f"{1e3 * s:.1f} ms", f"{content['flop'][name] / rates[n] / s:.0%}"]
        in_a_run = {n: counts[name] * s / 60 for n, s in medians.items()}
        in_a_run["best"] = min(in_a_run.values())
        for n, x in in_a_run.items():
            minutes[n] += x
        rows.append([*row, f"{ratio:.2f} x", f"{counts[name]:,}", f"{in_a_run[one]:.1f} min"])
    head = ["work", "1 thread", "reached", f"{most} threads", "reached", "faster", "in a run", ""]
    head[-1] = "on 1 thread"
    gflops = [f"{rate / 1e9:.0f}" for rate in rates.values()]
    return (
        f"{measured_on({**content['machine'], 'threads': int(most)})} Large matrix products reach "
        f"{gflops[0]} GFLOP/s on one thread and {gflops[1]} on {most}; what is reached is the "
        f"products' share of the time at that rate.\n\n{markdown_table(head, rows)}\n\n"
        f"A run's updates take {minutes[one]:.1f} minutes on one thread, {minutes[most]:.1f} on "
        f"{most}, and {minutes['best']:.1f} with each kind on the better of the two."
    )


def draw(content: dict[str, Any]) -> Figure:
    """Milliseconds of each work, a bar for each number of threads."""
    results = {k: v for k, v in content["results"].items() if k != "rollouts"}
    series = {
        f"{n} thread{'s' * (n != '1')}": [1e3 * statistics.median(r[n]) for r in results.values()]
        for n in content["matmul_flop_per_second"]
    }
    title = "What an update of the quick schedule takes"
    return draw_bars(title, "milliseconds", [NAMES[name] for name in results], series)


if __name__ == "__main__":
    main()
