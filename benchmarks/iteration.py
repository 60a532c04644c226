"""One iteration of the paper's schedule, by phase: python benchmarks/iteration.py.

Rollouts of 50,000 x 5 transitions, 1,000 SAC updates, 1,000 adversarial updates. The projected
time of the whole run adds 50,000 steps of the fit and 40,000 of cloning, without evaluation.
"""

from __future__ import annotations

import time
from typing import Any

from measuring import (
    COLORS,
    arguments,
    finish_figure,
    machine,
    make_figure,
    measure,
    model_dtype,
    peak_memory,
    save_figure,
    set_up,
    synchronize,
    write_json,
)
from workload import WARM_UP, Workload

UPDATES = 1000
ITERATIONS = 2000
FIT_STEPS, CLONING_STEPS = 50_000, 40_000


def main() -> None:
    """Measure an iteration, print, write the JSON file and the figure."""
    parser = arguments((__doc__ or "").partition(":")[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--repeats", type=int, default=3, help="iterations (default: 3)")
    args = parser.parse_args()
    set_up(args)
    updates = 20 if args.quick else UPDATES
    work = Workload(
        device=args.device,
        compile=not args.eager,
        num_starts=4000 if args.quick else 50_000,
        matmul_dtype=model_dtype(args),
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
    print(f"first calls, compiling included: {compiling:.1f} s")
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
    for name, value in medians.items():
        print(f"{name:10} {value:7.2f} s  {value / iteration:4.0%}")
    print(f"{'iteration':10} {iteration:7.2f} s")
    print(f"the paper's whole run, projected: {whole / 3600:.1f} h")
    print(f"peak memory: {peak_memory():,.0f} MB")
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
    }
    if args.device.startswith("cuda"):
        import torch

        content["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    write_json(args.out / "iteration.json", content)
    draw(content, args.out / "iteration.png")


def draw(content: dict[str, Any], path: Any) -> None:
    """One bar: where the time of an iteration goes."""
    figure, (ax,) = make_figure(height=1.9)
    left = 0.0
    for color, (name, value) in zip(COLORS, content["seconds"].items(), strict=False):
        ax.barh([0], [value], left=left, color=color, label=f"{name} {value:.1f} s")
        left += value
    ax.set_yticks([])
    ax.set_xlim(0, left)
    ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    finish_figure(ax, f"An iteration of the paper's schedule: {left:.1f} s", "seconds", "")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
