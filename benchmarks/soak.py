"""A long run, watched from outside: does it keep its memory and its pace?

``python benchmarks/soak.py --threads 1`` starts ``recipes/rambo.py`` with the smoke schedule and
200 epochs, and notes at every line of its ``metrics.csv`` the time, the memory, the open files and
the threads of the process. Every other epoch is evaluated; the others are timed, because episodes
last as long as the policy stands. It exits with 1 where memory or time grows beyond the limits
below. What follows the options is handed to the recipe.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measuring import arguments, at_least, machine, process_memory, save, set_up

from rambo_trl.runtime.drawing import BLUE, ORANGE

CAPTION = ""  # the page has the figures as text
RECIPE = Path(__file__).parents[1] / "recipes" / "rambo.py"
SETTINGS = ("task=inverteddoublependulum-medium-replay", "schedule=smoke", "evaluation.every=2")
#: how much more memory and time than in the beginning is called flat
MOST_MEMORY, MOST_TIME = 1.02, 1.10

Sample = dict[str, Any]


def look_at(process: int) -> dict[str, float]:
    """Memory in megabytes, open files and threads of a process, as Linux tells them."""
    memory = process_memory(process)
    return {
        "memory_mb": memory["resident"],
        "peak_memory_mb": memory["peak"],
        "threads": memory["threads"],
        "open_files": len(os.listdir(f"/proc/{process}/fd")),
    }


def read_rows(metrics: Path) -> list[bool]:
    """Whether each finished epoch of a ``metrics.csv`` was evaluated."""
    if not metrics.is_file():
        return []
    text = metrics.read_text(encoding="utf-8")
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if not lines:
        return []
    column = header.split(",").index("return_mean")
    return [line.split(",")[column] != "" for line in lines]


def watch(words: Sequence[str], work: Path) -> list[Sample]:
    """Run the recipe and note what its process is like at the end of every epoch."""
    if not Path("/proc/self/status").is_file():
        raise SystemExit("the soak reads /proc, which this system does not have")
    samples: list[Sample] = []
    command = [sys.executable, str(RECIPE), *words, "run_dir=run"]
    metrics, size = work / "run" / "metrics.csv", 0
    with (work / "output.txt").open("wb") as output:
        run = subprocess.Popen(command, cwd=work, stdout=output, stderr=output)
        try:
            while run.poll() is None:
                grown = metrics.stat().st_size if metrics.is_file() else 0
                if grown == size:
                    time.sleep(0.002)
                    continue
                size, now = grown, time.perf_counter()
                rows = read_rows(metrics)
                if len(rows) > (samples[-1]["epoch"] if samples else 0):
                    try:
                        state = look_at(run.pid)
                    except (FileNotFoundError, KeyError):  # it has just ended
                        break
                    samples.append({"epoch": len(rows), "at": now, "evaluated": rows[-1], **state})
                    if len(rows) % 20 == 0:
                        print(f"epoch {len(rows):5d}  {state['memory_mb']:7.1f} MB", flush=True)
            code = run.wait()
        finally:
            run.kill()
    if code:
        tail = (work / "output.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"the run ended with {code}:\n{tail}")
    return samples


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare the last tenth of the epochs with the second tenth.

    In the first tenth the model buffer fills and everything is made that is made once.

    Args:
        samples: by epoch, as :func:`watch` returns them.
    """
    tenth = max(2, len(samples) // 10)
    seconds = {
        after["epoch"]: after["at"] - before["at"]
        for before, after in pairwise(samples)
        if not after["evaluated"] and after["epoch"] == before["epoch"] + 1
    }

    def part(chosen: Sequence[Sample]) -> dict[str, Any]:
        return {
            "epochs": [chosen[0]["epoch"], chosen[-1]["epoch"]],
            "memory_mb": statistics.mean(s["memory_mb"] for s in chosen),
            "open_files": max(s["open_files"] for s in chosen),
            "threads": max(s["threads"] for s in chosen),
            "seconds": statistics.median(
                seconds[s["epoch"]] for s in chosen if s["epoch"] in seconds
            ),
        }

    early, late = part(samples[tenth : 2 * tenth]), part(samples[-tenth:])
    return {
        "epochs": samples[-1]["epoch"],
        "early": early,
        "late": late,
        "memory_ratio": late["memory_mb"] / early["memory_mb"],
        "seconds_ratio": late["seconds"] / early["seconds"],
        "peak_memory_mb": max(s["peak_memory_mb"] for s in samples),
        "seconds": list(seconds.values()),
        "timed_epochs": list(seconds),
        "memory_mb": [s["memory_mb"] for s in samples],
    }


def complaints(results: dict[str, Any]) -> list[str]:
    """What has grown more than is called flat."""
    early, late = results["early"], results["late"]
    grown = []
    if results["memory_ratio"] > MOST_MEMORY:
        grown.append(f"memory grew from {early['memory_mb']:.1f} to {late['memory_mb']:.1f} MB")
    if results["seconds_ratio"] > MOST_TIME:
        grown.append(f"an epoch grew from {early['seconds']:.3f} to {late['seconds']:.3f} s")
    for name in ("open_files", "threads"):
        if late[name] > early[name]:
            grown.append(f"{name.replace('_', ' ')}: {early[name]}, then {late[name]}")
    return grown


def report(content: dict[str, Any]) -> str:
    """The figures as sentences."""
    on, results = content["machine"], content["results"]
    early, late = results["early"], results["late"]
    threads = f"{on['threads']} thread{'s' * (on['threads'] > 1)}"
    return (
        f"{results['epochs']} epochs of the smoke schedule ({on['cpu']}, {threads}, PyTorch "
        f"{on['torch']}), epochs {early['epochs'][0]} to {early['epochs'][1]} beside "
        f"{late['epochs'][0]} to {late['epochs'][1]}: memory {early['memory_mb']:.0f} MB, then "
        f"{late['memory_mb']:.0f} MB ({100 * (results['memory_ratio'] - 1):+.1f} %); an epoch "
        f"{early['seconds']:.3f} s, then {late['seconds']:.3f} s "
        f"({100 * (results['seconds_ratio'] - 1):+.0f} %); open files {early['open_files']}, then "
        f"{late['open_files']}; threads {early['threads']}, then {late['threads']}. Peak memory "
        f"{results['peak_memory_mb']:.0f} MB."
    )


def draw(content: dict[str, Any]) -> Figure:
    """Memory on the left, seconds of an epoch on the right."""
    results = content["results"]
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    memory = results["memory_mb"]
    left.plot(range(1, len(memory) + 1), memory, color=BLUE)
    left.set_ylim(0, 1.15 * max(memory))
    left.set(title="Memory", xlabel="epoch", ylabel="megabytes held")
    right.plot(results["timed_epochs"], results["seconds"], ".", color=ORANGE)
    right.set_ylim(0, 1.15 * max(results["seconds"]))
    right.set(title="Time of an epoch", xlabel="epoch", ylabel="seconds")
    return figure


def main() -> None:
    """Measure, say what was found, write it down."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=at_least(10), default=200, help="how many (default: 200)")
    args, words = parser.parse_known_args()
    set_up(args)
    settings = [
        *SETTINGS,
        f"device={args.device}",
        f"float32_matmul_precision={args.float32_matmul_precision}",
        f"epochs={20 if args.quick else args.epochs}",
        *(["model_matmul_dtype=bfloat16"] if args.bfloat16 else []),
        *words,
    ]
    threads = [] if args.threads is None else [f"threads={args.threads}"]
    with tempfile.TemporaryDirectory() as work:
        samples = watch([*settings, *threads], Path(work))
    content: dict[str, Any] = {
        # the schedule has one thread unless it is told otherwise
        "machine": {**machine(args), "threads": args.threads or 1},
        "settings": settings,
        "results": summarise(samples),
    }
    save(args.out, "soak", content, report, draw)
    grown = complaints(content["results"])
    for line in grown:
        print(f"not flat: {line}")
    if grown and not args.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
