"""Time and memory against size, and memory over time: python benchmarks/scaling.py.

Rollouts against rows, horizon, ensemble size and observation size, and adversarial updates against
the last two, each in a process of its own, with the slope of a straight line through the points on
logarithmic axes (1 is linear); the memory that a process holds over iterations of rollouts and
updates; and batches drawn from up to ten million rows on the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from math import exp, log
from pathlib import Path
from typing import Any

import data_loading
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

from rambo_trl.runtime.drawing import COLORS, GREY

CAPTION = "Cost against size, and memory over iterations"
ROWS, HORIZON = 10_000, 5
#: transitions in the published buffer by the horizon k: 5 epochs of 50,000 rollouts
BUFFER = 250_000
#: words for the works
WORKS = {"seconds": "rollouts", "update_seconds": "an adversarial update"}


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    set_up(args)
    quick = args.quick
    sizes: dict[str, list[int]] = {
        "rows": [1000, 2000] if quick else [2000, 10_000, 50_000, 200_000],
        "horizon": [1, 2] if quick else [1, 5, 20],
        "elites": [1, 5] if quick else [1, 5, 20],
        "observation size": [11, 20] if quick else [11, 50, 111, 376],
    }
    # a file after each part: what was measured is kept
    work = Workload(compile=not args.eager, num_starts=2000, **workload_options(args))
    results: dict[str, Any] = {}
    content = {
        "machine": machine(args),
        "results": results,
        "memory_mb": memory_over(work, 5 if quick else 50),
    }
    del work
    for name, values in sizes.items():
        points = [in_fresh_process(args, name, value) for value in values]
        results[name] = {"sizes": values, **{k: [p[k] for p in points] for k in points[0]}}
        for key, slope in (("seconds", "slope"), ("update_seconds", "update_slope")):
            if key in points[0]:
                results[name][slope] = slope_of(values, results[name][key])
        print(name, results[name], flush=True)
        save(args.out, "scaling", content)
    content["data"] = [
        training_from_disk(rows)
        for rows in ([1000, 2000] if quick else [100_000, 1_000_000, 10_000_000])
    ]
    save(args.out, "scaling", content, report, draw)


def slope_of(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms."""
    line = statistics.linear_regression([log(x) for x in sizes], [log(y) for y in values])
    return line.slope


def in_fresh_process(args: argparse.Namespace, name: str, value: int) -> dict[str, float]:
    """:func:`measure_point` in a process of its own, whose memory it then is."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_point, args, name, value).result()


def measure_point(args: argparse.Namespace, name: str, value: int) -> dict[str, float]:
    """Time and memory with one size changed: by ``value``, of the kind ``name``."""
    set_up(args)
    timing: dict[str, Any] = {
        "repeats": 2 if args.quick else 5,
        "least": 0.05 if args.quick else 0.3,
        "device": args.device,
    }
    base = {"num_starts": 2000 if args.quick else ROWS, "horizon": 2 if args.quick else HORIZON}
    changed: dict[str, dict[str, int]] = {
        "rows": {"num_starts": value},
        "horizon": {"horizon": value},
        "elites": {"num_members": value, "num_elites": value},
        "observation size": {"observation_size": value},
    }
    options = {**base, **changed[name], **workload_options(args)}
    work = Workload(compile=not args.eager, **options)
    point = {"seconds": measure(work.rollouts, **timing)}
    if name in ("elites", "observation size"):
        num = 2 if args.quick else 10
        point["update_seconds"] = measure(lambda: work.model_updates(num), **timing) / num
    row = work.model_buffer[:1].bytes()
    horizon = value if name == "horizon" else HORIZON
    peak = process_memory()["peak"]  # getrusage's is the parent's where that is larger
    return {**point, "peak_mb": peak, "buffer_mb": BUFFER * horizon * row / 1e6}


def training_from_disk(rows: int) -> dict[str, Any]:
    """Likelihood steps on batches of 256 rows of a memory-mapped set."""
    with tempfile.TemporaryDirectory() as folder:
        path = data_loading.write("memmap", rows, Path(folder))
        result = data_loading.in_fresh_process("train", path)
    print("rows on the disk", result, flush=True)
    return result


def memory_over(work: Workload, iterations: int) -> list[float]:
    """Megabytes held after each of some iterations, the buffer full from the fifth on."""
    held = []
    for _ in range(iterations):
        work.rollouts()
        work.agent_updates(20)
        work.model_updates(20)
        held.append(process_memory()["resident"])
    return held


def doubled_at(sizes: Sequence[float], values: Sequence[float], usual: float) -> float | None:
    """The size at which a value is twice that at the ``usual`` size, between points by logarithms.

    None where it is not within the range.
    """
    limit = 2 * values[sizes.index(usual)]
    for i in range(sizes.index(usual), len(sizes) - 1):
        low, high = values[i], values[i + 1]
        if low < limit <= high:
            share = log(limit / low) / log(high / low)
            return exp(log(sizes[i]) + share * log(sizes[i + 1] / sizes[i]))
    return None


def where_it_ends(name: str, result: dict[str, Any], usual: int) -> list[str]:
    """Sentences on how far a size can sensibly go, beside Hopper's published one."""
    sizes, last = result["sizes"], result["sizes"][-1]
    sentences = []
    for key, work in WORKS.items():
        if key not in result:
            continue
        times = result[key][-1] / result[key][sizes.index(usual)]
        twice = doubled_at(sizes, result[key], usual)
        reached = f"twice at about {twice:,.0f}" if twice else "less than twice throughout"
        sentences.append(f"{work}: {times:.1f} times at {last:,}, {reached}")
    if "peak_mb" in result:
        peak, buffer = (
            [result[key][i] / 1000 for i in (sizes.index(usual), -1)]
            for key in ("peak_mb", "buffer_mb")
        )
        sentences.append(
            f"the process held {peak[0]:.1f} GB, then {peak[1]:.1f} GB, and the published buffer "
            f"takes {buffer[0]:.1f} GB, then {buffer[1]:.1f} GB"
        )
    return [f"- **{name}**, from {usual:,}: {'; '.join(sentences)}."] if sentences else []


def report(content: dict[str, Any]) -> str:
    """Slopes, where sizes end, the growth of memory, and rows on the disk."""
    results = content["results"]
    head = ["size", "range", "slope"]
    rows = [
        [name, f"{r['sizes'][0]:,} to {r['sizes'][-1]:,}", f"{r['slope']:.2f}"]
        for name, r in results.items()
    ]
    lines: list[str] = []
    if any("peak_mb" in r for r in results.values()):
        head = ["size", "range", "slope of rollouts", "of an update", "memory held"]
        for row, r in zip(rows, results.values(), strict=True):
            row.append(f"{r['update_slope']:.2f}" if "update_slope" in r else "")
            row.append(f"{r['peak_mb'][0] / 1000:.1f} to {r['peak_mb'][-1] / 1000:.1f} GB")
        usual = {"horizon": HORIZON, "elites": 5, "observation size": 11}
        for name, size in usual.items():
            if size in results.get(name, {"sizes": []})["sizes"]:
                lines += where_it_ends(name, results[name], size)
    memory = content["memory_mb"]
    tenth = memory[min(len(memory) - 1, 9)]
    text = f"{measured_on(content['machine'])}\n\n{markdown_table(head, rows)}\n\n"
    if lines:
        text += "Times and memory as a size grows beyond the published one:\n\n"
        text += "\n".join(lines) + "\n\n"
    text += (
        f"Memory after {len(memory)} iterations: {memory[-1]:,.0f} MB, "
        f"{memory[-1] - tenth:+.0f} MB since the tenth."
    )
    if data := content.get("data"):
        drawn = ", ".join(f"{1e3 * d['seconds_per_draw']:.2f}" for d in data)
        held = ", ".join(f"{d['anonymous_bytes'] / 1e6:.0f}" for d in data)
        steps = ", ".join(f"{d['updates_per_second']:.0f}" for d in data)
        sizes = ", ".join(f"{d['transitions']:,}" for d in data)
        slope = slope_of(
            [d["transitions"] for d in data], [1 / d["updates_per_second"] for d in data]
        )
        text += (
            f"\n\nRows of the data in memory-mapped files, {sizes}: 256 random ones are drawn in "
            f"{drawn} ms, {steps} uncompiled steps of the fit are taken a second (slope of a step: "
            f"{slope:.2f}), and the process holds {held} MB beside the system's cache."
        )
    return text


def draw(content: dict[str, Any]) -> Figure:
    """Cost on logarithmic axes on the left, updates' broken; memory on the right."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for color, (name, result) in zip(COLORS, content["results"].items(), strict=False):
        relative = [s / result["sizes"][0] for s in result["sizes"]]
        cost = [s / result["seconds"][0] for s in result["seconds"]]
        left.plot(relative, cost, "o-", color=color, ms=4, label=f"{name}: {result['slope']:.2f}")
        if "update_seconds" in result:
            cost = [s / result["update_seconds"][0] for s in result["update_seconds"]]
            label = f"{name}, updates: {result['update_slope']:.2f}"
            left.plot(relative, cost, "o--", color=color, ms=4, label=label)
    top = max(s[-1] / s[0] for s in (r["sizes"] for r in content["results"].values()))
    left.plot([1, top], [1, top], ":", color=GREY, label="linear: 1.00")
    left.set_xscale("log")
    left.set_yscale("log")
    left.legend(title="slope")
    left.set(title="Cost of rollouts and updates", xlabel="size, relative to the smallest")
    left.set_ylabel("time, relative")
    memory = content["memory_mb"]
    right.plot(range(1, len(memory) + 1), memory, color=COLORS[0])
    right.set_ylim(0, 1.15 * max(memory))
    right.set(title="Memory over iterations", xlabel="iteration", ylabel="megabytes held")
    return figure


if __name__ == "__main__":
    main()
