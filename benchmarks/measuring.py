"""What the benchmarks share: clocks, the machine's own rate, files and the look of figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchrl._utils import logger as torchrl_logger

from rambo_trl.runtime.malloc import keep_freed_memory
from rambo_trl.runtime.places import expand_home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "add_out",
    "arguments",
    "finish_figure",
    "machine",
    "make_figure",
    "matmul_rate",
    "measure",
    "measure_in_turns",
    "model_dtype",
    "peak_memory",
    "resident_memory",
    "save_figure",
    "set_up",
    "synchronize",
    "write_json",
]

#: Okabe and Ito's palette, told apart with every common colour blindness
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--float32-matmul-precision",
        choices=("highest", "high", "medium"),
        default="highest",
        help="torch's setting of that name (default: highest)",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="the world model's hidden products in bfloat16, as with model_matmul_dtype=bfloat16",
    )
    add_out(parser)
    parser.add_argument(
        "--quick", action="store_true", help="few and small measurements, to see that it works"
    )
    return parser


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that says where results go."""
    parser.add_argument(
        "--out",
        type=expand_home,
        default=Path("runs/benchmarks"),
        help="folder of the JSON file and the figure (default: runs/benchmarks)",
    )


def set_up(args: argparse.Namespace) -> None:
    """Check the device, set up threads and memory as recipes do, keep remarks off the screen."""
    torchrl_logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", ".*inline_inbuilt_nn_modules", FutureWarning)
    if args.threads is not None:
        if args.threads < 1:
            raise SystemExit(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.float32_matmul_precision)
    keep_freed_memory()
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(
            f"--device {args.device} can't be used: {str(error).splitlines()[0]}"
        ) from None


def synchronize(device: str) -> None:
    """Wait for what was started on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(
    work: Callable[[], Any],
    *,
    device: str = "cpu",
    warmups: int = 2,
    repeats: int = 5,
    least: float = 0.2,
) -> float:
    """Median seconds of a call, over ``repeats`` stretches of at least ``least`` seconds."""
    for _ in range(warmups):
        work()
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    once = time.perf_counter() - begin
    calls = max(1, round(least / max(once, 1e-9)))
    return statistics.median(_stretch(work, calls, device) for _ in range(repeats))


def _stretch(work: Callable[[], Any], calls: int, device: str) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def measure_in_turns(
    works: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    least: float = 1.0,
    warmups: int = 1,
    wake: Sequence[Callable[[], Any]] = (),
) -> list[list[float]]:
    """Seconds per call of each of ``works``, [works][rounds], each round in turn.

    What else the machine does then meets all of them alike; compare them round by round.

    Args:
        works: what is compared.
        rounds: turns of each.
        least: seconds that a turn lasts at least; with 0 it is one call.
        warmups: calls of each before the first turn.
        wake: one for each, called before every turn and not measured: the memory and the caches
            of what has been idle are cold.
    """
    calls = []
    for work in works:
        for _ in range(warmups):
            work()
        calls.append(max(1, round(least / max(_stretch(work, 1, "cpu"), 1e-9))) if least else 1)
    seconds: list[list[float]] = [[] for _ in works]
    for i in range(rounds):
        order = list(range(len(works)))
        for j in order if i % 2 == 0 else reversed(order):
            if wake:
                wake[j]()
            seconds[j].append(_stretch(works[j], calls[j], "cpu"))
    return seconds


def matmul_rate(device: str = "cpu", size: int = 1536) -> float:
    """The machine's own rate: FLOP/s of a large float32 matrix product."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2 * size**3 / measure(lambda: a @ b, device=device, least=0.3)


def model_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """What the options have the world model's hidden products rounded to."""
    return torch.bfloat16 if args.bfloat16 else None


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on, and how."""
    device = args.device
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")
        ]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **({"model_matmul_dtype": "bfloat16"} if args.bfloat16 else {}),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def resident_memory() -> float:
    """Megabytes that this process holds now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return peak_memory()


def peak_memory() -> float:
    """Megabytes that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak / 1e3


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the results, whole or not at all, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    print(f"written: {path}")


def make_figure(columns: int = 1, width: float = 8, height: float = 4) -> tuple[Figure, list[Any]]:
    """A figure without a display, and its axes."""
    # not above: what measures memory imports no more than it uses
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def finish_figure(ax: Any, title: str, x_label: str, y_label: str) -> None:
    """Name what an axes shows."""
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"written: {path}")
