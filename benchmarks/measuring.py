"""What the benchmarks share: options, clocks, the machine's own rate, files, tables and figures."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl._utils import logger as torchrl_logger

from rambo_trl.runtime.drawing import COLORS, GREY, styled
from rambo_trl.runtime.malloc import keep_freed_memory
from rambo_trl.runtime.places import expand_home


def at_least(least: int) -> Callable[[str], int]:
    """A type of whole numbers for ``argparse``."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return number


def writable_folder(text: str) -> Path:
    """A folder for results, made here: a benchmark takes minutes before it writes."""
    folder = expand_home(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text} can't be used as a folder: {error.strerror}"
        ) from None
    return folder


def arguments(module_doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Args:
        module_doc: the benchmark's docstring; its first words, up to a colon, describe it.
    """
    parser = argparse.ArgumentParser(description=(module_doc or "").partition(":")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=at_least(1), help="CPU threads (default: all cores)")
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
        type=writable_folder,
        default="runs/benchmarks",
        help="folder of the JSON file and the figure (default: runs/benchmarks)",
    )


def set_up(args: argparse.Namespace) -> None:
    """Check the device, seed, set threads and memory up as recipes do, silence remarks."""
    torchrl_logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", ".*inline_inbuilt_nn_modules", FutureWarning)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.float32_matmul_precision)
    keep_freed_memory()
    torch.manual_seed(0)
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
    work: Callable[[], Any], *, device: str = "cpu", repeats: int = 5, least: float = 0.2
) -> float:
    """Median seconds of a call, over ``repeats`` stretches of at least ``least`` seconds."""
    (seconds,) = measure_in_turns([work], rounds=repeats, least=least, warmups=2, device=device)
    return statistics.median(seconds)


def measure_in_turns(
    works: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    least: float = 1.0,
    warmups: int = 1,
    wake: Sequence[Callable[[], Any]] = (),
    device: str = "cpu",
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
        device: where they run.
    """

    def stretch(work: Callable[[], Any], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        return (time.perf_counter() - begin) / calls

    calls = []
    for work in works:
        for _ in range(warmups):
            work()
        synchronize(device)
        calls.append(max(1, round(least / max(stretch(work, 1), 1e-9))) if least else 1)
    seconds: list[list[float]] = [[] for _ in works]
    for i in range(rounds):
        order = list(range(len(works)))
        for j in order if i % 2 == 0 else reversed(order):
            if wake:
                wake[j]()
            seconds[j].append(stretch(works[j], calls[j]))
    return seconds


#: the works of this process, if it is a side's
_works: dict[str, Callable[[int], Any]] = {}


class Side:
    """One of those that are compared, in a process of its own, as its users run it.

    Args:
        make: called there; returns its works by name, functions of how often they are done.
        *args: its arguments.
    """

    def __init__(self, make: Callable[..., Mapping[str, Callable[[int], Any]]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (make, args))

    def do(self, name: str, num: int = 1) -> Any:
        """Have a work done, and return what it returns."""
        return self._pool.submit(_work, name, num).result()


def _begin(make: Callable[..., Mapping[str, Callable[[int], Any]]], args: Sequence[Any]) -> None:
    _works.update(make(*args))


def _work(name: str, num: int) -> Any:
    return _works[name](num)


def times(step: Callable[[], Any]) -> Callable[[int], None]:
    """Take a step so many times."""

    def steps(num: int) -> None:
        for _ in range(num):
            step()

    return steps


class _ProductCounter(TorchDispatchMode):
    """Adds up the FLOP of matrix products; torch's ``FlopCounterMode`` fails on a TensorDict."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out


def product_flop(work: Callable[[], Any]) -> int:
    """FLOP of the matrix products of a call, backward passes included; it must not be compiled."""
    with _ProductCounter() as counter:
        work()
    return counter.flop


def matmul_rate(device: str = "cpu", size: int = 1536) -> float:
    """The machine's own rate: FLOP/s of a large float32 matrix product."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2 * size**3 / measure(lambda: a @ b, device=device, least=0.3)


def workload_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of ``Workload``: where it lives, and what hidden products are rounded to."""
    return {"device": args.device, "matmul_dtype": torch.bfloat16 if args.bfloat16 else None}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on, and how."""
    device = args.device
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = re.search(r"^model name\s*:\s*(.+)", info.read_text(encoding="utf-8"), re.MULTILINE)
        cpu = name[1].strip() if name else cpu
    return {
        "cpu": cpu,
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **({"model_matmul_dtype": "bfloat16"} if args.bfloat16 else {}),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def process_memory(process: int | str = "self") -> dict[str, float]:
    """Megabytes of a process: ``resident``, of it ``anonymous`` (its own) and ``mapped`` files.

    ``peak`` is the most that was resident; ``threads`` is their number. From Linux's /proc.
    """
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {"resident": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    found = {name: int(status[field].split()[0]) * 1024 / 1e6 for name, field in fields.items()}
    return {**found, "threads": int(status["Threads"])}


def peak_memory() -> float:
    """Megabytes that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak / 1e3


def save(
    out: Path,
    name: str,
    content: dict[str, Any],
    report: Callable[[Any], str] | None = None,
    draw: Callable[[Any], Figure] | None = None,
) -> None:
    """Write ``name.json``, whole or not at all, and the figure ``name.png``; print the report."""
    path = out / f"{name}.json"
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    if report is not None:
        print(report(content))
    if draw is not None:
        with styled():
            draw(content).savefig(path.with_suffix(".png"))
    print(f"written: {path}")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(machine: dict[str, Any]) -> str:
    """The line above a table."""
    units = f" ({machine['vector_units']})" if "vector_units" in machine else ""
    where = f"{machine['cpu']}{units}" if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    precision = machine.get("float32_matmul_precision", "highest")
    digits = "" if precision == "highest" else f", matrix products at `{precision}`"
    if machine.get("model_matmul_dtype"):
        digits += f", the model's hidden products in {machine['model_matmul_dtype']}"
    date = f", {machine['date']}" if "date" in machine else ""
    return f"{where}, {threads}, PyTorch {machine['torch']}{digits}{date}."


#: the columns of :func:`against_limit`
LIMIT_HEAD = ["products alone", "reached"]


def limit_on(content: Mapping[str, Any]) -> str:
    """What the columns :data:`LIMIT_HEAD` of a table mean, where they were measured."""
    if "flop" not in content:
        return ""
    rate = content["matmul_flop_per_second"] / 1e9
    return (
        f" Large matrix products reach {rate:.0f} GFLOP/s. *Products alone* is what a row's matrix "
        "products would take at that rate; *reached* is their share of our time."
    )


def against_limit(
    content: Mapping[str, Any], name: str, seconds: float, text: Callable[[float], str]
) -> list[str]:
    """What the products of a work would take at the machine's rate, and their share of its time."""
    least = content["flop"][name] / content["matmul_flop_per_second"]
    return [text(least), f"{least / seconds:.0%}"]


def draw_bars(
    title: str,
    x_label: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    unit: str = "",
    log: bool = False,
) -> Figure:
    """A figure of a group of horizontal bars for each name, one of each series."""
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(names) * (len(series) + 0.5)))
    axes = figure.subplots()
    height = 0.76 / len(series)
    for i, (label, values) in enumerate(series.items()):
        at = [j + height * (i - (len(series) - 1) / 2) for j in range(len(names))]
        bars = axes.barh(at, values, height=0.95 * height, color=COLORS[i], label=label)
        axes.bar_label(bars, fmt=f" %.1f{unit}", fontsize=8)
    if log:
        axes.set_xscale("log")
        axes.axvline(1, color=GREY, lw=1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    if len(series) > 1:
        axes.legend()
    axes.set(title=title, xlabel=x_label)
    return figure
