"""One iteration of the paper's schedule, by phase: python benchmarks/iteration.py.

Rollouts of 50,000 x 5 transitions, 1,000 SAC updates, 1,000 adversarial updates. The projected
time of the whole run adds 50,000 steps of the fit and 40,000 of cloning, without evaluation.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from matplotlib.figure import Figure
from measuring import (
    LIMIT_HEAD,
    against_limit,
    arguments,
    at_least,
    draw_bars,
    limit_on,
    machine,
    markdown_table,
    matmul_rate,
    measure,
    measured_on,
    peak_memory,
    save,
    set_up,
    synchronize,
    workload_options,
)
from workload import WARM_UP, Workload

CAPTION = "Where the time of an iteration goes"
UPDATES = 1000
ITERATIONS = 2000
FIT_STEPS, CLONING_STEPS = 50_000, 40_000


def main() -> None:
    """Measure an iteration, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="iterations (default: 3)")
    args = parser.parse_args()
    set_up(args)
    updates = 20 if args.quick else UPDATES
    work = Workload(
        compile=not args.eager,
        num_starts=4000 if args.quick else 50_000,
        **workload_options(args),
    )
    phases = {
        "rollouts": work.rollouts,
        "agent": lambda: work.agent_updates(updates),
        "model": lambda: work.model_updates(updates),
    }
    begin = time.perf_counter()
    for _ in range(WARM_UP if args.device.startswith("cuda") else 1):
        work.rollouts()
    work.agent_updates(2)
    work.model_updates(2)
    likelihood, cloning = work.likelihood_step(), work.cloning_step()
    likelihood(), cloning()
    synchronize(args.device)
    compiling = time.perf_counter() - begin
    print(f"first calls, compiling included: {compiling:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    for _ in range(1 if args.quick else args.repeats):
        for name, phase in phases.items():
            begin = time.perf_counter()
            phase()
            synchronize(args.device)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: sorted(x)[len(x) // 2] for name, x in seconds.items()}
    least = 0.1 if args.quick else 1.0
    fit = measure(likelihood, device=args.device, repeats=3, least=least)
    clone = measure(cloning, device=args.device, repeats=3, least=least)
    iteration = sum(medians.values())
    whole = ITERATIONS * iteration + FIT_STEPS * fit + CLONING_STEPS * clone
    content: dict[str, Any] = {
        "machine": machine(args),
        "compiled": not args.eager,
        "updates": updates,
        "rollout_transitions": work.num_starts * work.horizon,
        "seconds": medians,
        "iteration_seconds": iteration,
        "first_calls_seconds": compiling,
        "fit_step_seconds": fit,
        "cloning_step_seconds": clone,
        "whole_run_hours": whole / 3600,
        "peak_memory_mb": peak_memory(),
        "matmul_flop_per_second": matmul_rate(args.device),
    }
    flop = Workload(num_starts=1000, **workload_options(args)).products()
    phase_flop = {
        "rollouts": content["rollout_transitions"] * flop["rollouts"],
        "agent": updates * flop["sac"],
        "model": updates * flop["adversarial"],
    }
    content["flop"] = {
        **phase_flop,
        "iteration": sum(phase_flop.values()),
        "fit_step": flop["likelihood"],
        "cloning_step": flop["cloning"],
    }
    if args.device.startswith("cuda"):
        content["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    save(args.out, "iteration", content, report, draw)


def report(content: dict[str, Any]) -> str:
    """Seconds by phase."""
    whole = content["iteration_seconds"]
    rows = [[name, f"{s:.1f} s", f"{s / whole:.0%}"] for name, s in content["seconds"].items()]
    rows.append(["**an iteration**", f"**{whole:.1f} s**", ""])
    head = ["phase", "time", "share"]
    if "flop" in content:
        head += LIMIT_HEAD
        seconds = [*content["seconds"].items(), ("iteration", whole)]
        for row, (name, s) in zip(rows, seconds, strict=True):
            row += against_limit(content, name, s, lambda s: f"{s:.1f} s")
        for name in ("fit_step", "cloning_step"):
            s = content[f"{name}_seconds"]
            limit = against_limit(content, name, s, lambda s: f"{1e3 * s:.1f} ms")
            rows.append([f"a step of the {name[:-5]}", f"{1e3 * s:.1f} ms", "", *limit])
    return (
        f"{measured_on(content['machine'])}{limit_on(content)}\n\n{markdown_table(head, rows)}"
        f"\n\nThe paper's whole run of 2,000 iterations, projected: "
        f"{content['whole_run_hours']:.0f} hours without evaluations. First calls, compiling "
        f"included: {content['first_calls_seconds']:.0f} s. Peak memory: "
        f"{content['peak_memory_mb'] / 1000:.1f} GB."
    )


def draw(content: dict[str, Any]) -> Figure:
    """A bar for each phase."""
    title = f"An iteration of the paper's schedule: {content['iteration_seconds']:.1f} s"
    seconds = content["seconds"]
    return draw_bars(title, "seconds", list(seconds), {"": list(seconds.values())}, unit=" s")


if __name__ == "__main__":
    main()
