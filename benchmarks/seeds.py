"""Several seeds on one machine, by four ways to run them: python benchmarks/seeds.py.

One seed alone; several in turn in one process; side by side in one process, on a GPU as branches
of one CUDA graph; and in a process each. The work is an iteration of the paper's schedule.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from iteration import ITERATIONS, UPDATES
from measuring import (
    COLORS,
    arguments,
    finish_figure,
    machine,
    make_figure,
    model_dtype,
    peak_memory,
    save_figure,
    set_up,
    synchronize,
    write_json,
)
from workload import WARM_UP, Workload

from rambo_trl.training.phases import AgentPhases, ModelPhases


def build(args: argparse.Namespace, seed: int) -> Workload:
    """A seed's parts."""
    settings: dict[str, Any] = {"device": args.device, "compile": not args.eager, "seed": seed}
    if args.quick:
        settings |= {"num_starts": 2000, "hidden_sizes": (32, 32)}
    return Workload(matmul_dtype=model_dtype(args), **settings)


def warm_up(work: Workload) -> None:
    """Compile and capture."""
    for _ in range(WARM_UP):
        work.rollouts()
        work.agent_updates(2)
        work.model_updates(2)


def iterate(work: Workload, updates: int) -> None:
    """An iteration of one seed."""
    work.rollouts()
    work.agent_updates(updates)
    work.model_updates(updates)


def side_by_side(works: list[Workload], compile: bool) -> Callable[[int], None]:
    """An iteration of several seeds in one process, with their updates together."""
    agents = AgentPhases([work.agent for work in works], compile=compile)
    models = ModelPhases([work.model for work in works], compile=compile)

    def run(updates: int) -> None:
        for work in works:
            work.rollouts()
        agents.run([work.mixed.batches(updates) for work in works])
        models.run(updates)

    for _ in range(2):  # capture
        run(WARM_UP)
    return run


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def process(
    args: argparse.Namespace, seed: int, threads: int, updates: int, barrier: Any, results: Any
) -> None:
    """One seed in a process of its own: all begin each iteration together."""
    args.threads = threads
    set_up(args)
    work = build(args, seed)
    warm_up(work)
    for _ in range(args.repeats):
        synchronize(args.device)
        barrier.wait()
        begin = time.perf_counter()
        iterate(work, updates)
        synchronize(args.device)
        barrier.wait()  # the slowest counts
        if seed == 0:
            results.put(time.perf_counter() - begin)


def in_processes(args: argparse.Namespace, updates: int) -> float:
    """Seconds of an iteration of all seeds, a process each."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(args.seeds), context.Queue()
    threads = max(1, torch.get_num_threads() // args.seeds)
    workers = [
        context.Process(target=process, args=(args, seed, threads, updates, barrier, results))
        for seed in range(args.seeds)
    ]
    for worker in workers:
        worker.start()
    found: list[float] = []
    while len(found) < args.repeats:
        try:
            found.append(results.get(timeout=1))
        except Empty:
            if any(worker.exitcode for worker in workers):
                for worker in workers:
                    worker.kill()
                raise SystemExit("a process failed, see above") from None
    for worker in workers:
        worker.join()
    return statistics.median(found)


def in_one_process(args: argparse.Namespace, updates: int) -> dict[str, float]:
    """Seconds of an iteration of one seed, of all in turn and of all side by side."""
    works = [build(args, seed) for seed in range(args.seeds)]
    for work in works:
        warm_up(work)

    def in_turn() -> None:
        for work in works:
            iterate(work, updates)

    ways: dict[str, float] = {}

    def measure(name: str, work: Callable[[], Any]) -> None:
        ways[name] = seconds(work, args.device, args.repeats)
        tell(ways)

    measure("one seed", lambda: iterate(works[0], updates))
    measure(f"{args.seeds} seeds in turn", in_turn)
    branches = args.device.startswith("cuda") and not args.eager
    how = "as branches of one graph" if branches else "side by side"
    together = side_by_side(works, compile=not args.eager)
    measure(f"{args.seeds} seeds {how}", lambda: together(updates))
    return ways


def tell(ways: dict[str, float]) -> None:
    """A line on the newest measurement."""
    name, value = list(ways.items())[-1]
    print(f"{name:36} {value:7.2f} s  {value / ways['one seed']:5.2f} x one seed's", flush=True)


def mps_is_on() -> bool:
    """Whether NVIDIA's MPS shares the card among processes."""
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return (Path(folder) / "control").exists()


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments((__doc__ or "").partition(":")[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="iterations (default: 3)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    for name in ("seeds", "repeats"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name} must be at least 1, got {getattr(args, name)}")
    set_up(args)
    updates = 20 if args.quick else UPDATES
    gpu = args.device.startswith("cuda")
    ways = in_one_process(args, updates)
    peak_gpu = torch.cuda.max_memory_reserved() / 1e6 if gpu else None
    mps = gpu and mps_is_on()
    name = f"{args.seeds} processes{', MPS' if mps else ''}"
    ways[name] = in_processes(args, updates)
    tell(ways)
    best = min(ways, key=lambda name: ways[name] if name != "one seed" else float("inf"))
    print(
        f"the paper's whole run of {args.seeds} seeds, iterations alone, {best}: "
        f"{ITERATIONS * ways[best] * UPDATES / updates / 3600:.1f} h"
    )
    write_json(
        args.out / "seeds.json",
        {
            "machine": machine(args),
            "compiled": not args.eager,
            "seeds": args.seeds,
            "updates": updates,
            "mps": mps,
            "seconds": ways,
            "peak_memory_mb": peak_memory(),
            **({} if peak_gpu is None else {"gpu_memory_reserved_mb": peak_gpu}),
        },
    )
    draw(ways, args.seeds, args.out / "seeds.png")


def draw(ways: dict[str, float], seeds: int, path: Any) -> None:
    """A bar for each way, and where one seed's time and as many times it would be."""
    figure, (ax,) = make_figure(height=2.6)
    bars = ax.barh(list(ways), list(ways.values()), color=COLORS[0])
    bars[0].set_color(COLORS[1])  # one seed
    ax.bar_label(
        bars, fmt="%.2f s", padding=4, fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1}
    )
    ax.axvline(seeds * ways["one seed"], color="0.5", ls="--", lw=1)
    ax.text(
        seeds * ways["one seed"],
        -0.6,
        f"{seeds} times one seed",
        ha="right",
        va="bottom",
        color="0.4",
        fontsize=8,
    )
    ax.invert_yaxis()
    ax.set_xlim(right=1.15 * max(*ways.values(), seeds * ways["one seed"]))
    ax.grid(visible=False, axis="y")
    finish_figure(ax, f"An iteration of {seeds} seeds", "seconds", "")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
