"""Put measured figures into the documentation: python benchmarks/page.py.

Reads the JSON files that the benchmarks wrote with ``--out docs/benchmarks`` and writes them as
tables between the ``<!-- benchmark:NAME -->`` markers of ``docs/benchmarks.md`` and ``README.md``.
No figure of these pages is written by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import NAMES as COMPARED
from compare import RATIOS, time_text
from update_throughput import NAMES as UPDATES

from rambo_trl.runtime.places import expand_home


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(machine: dict[str, Any]) -> str:
    """The line above a table."""
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    precision = machine.get("float32_matmul_precision", "highest")
    digits = "" if precision == "highest" else f", matrix products at `{precision}`"
    if machine.get("model_matmul_dtype"):
        digits += f", the model's hidden products in {machine['model_matmul_dtype']}"
    date = f", {machine['date']}" if "date" in machine else ""
    return f"{where}, {threads}, PyTorch {machine['torch']}{digits}{date}."


def compare(content: dict[str, Any]) -> str:
    """Ours beside the peer."""
    results = content["results"]
    peer = "OfflineRL-Kit"
    if content["peer_commit"]:
        peer += f" ({content['peer_commit']})"
    columns = {"peer": peer, "ours": "rambo_trl", "bfloat16": "with bfloat16"}
    head = ["work"]
    rows = [[title] for title in COMPARED.values()]
    for key, title in columns.items():
        if not all(f"{key}_seconds" in result for result in results.values()):
            continue
        head += [title, "faster"] if key in RATIOS else [title]
        for row, name in zip(rows, COMPARED, strict=True):
            row.append(time_text(name, statistics.median(results[name][f"{key}_seconds"])))
            if key in RATIOS:
                row.append(f"{results[name][RATIOS[key]]:.1f} x")
    return f"{measured_on(content['machine'])}\n\n" + table(head, rows)


def rollout_throughput(content: dict[str, Any]) -> str:
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
    return (
        f"{measured_on(content['machine'])} Large matrix products reach {rate:.0f} GFLOP/s.\n\n"
        + table(["rollouts", "", "transitions/s", "share of the products' rate"], rows)
    )


def update_throughput(content: dict[str, Any]) -> str:
    """Updates a second."""
    rate = {(r["update"], r["compiled"]): r["updates_per_second"] for r in content["results"]}
    rows = [
        [
            title,
            f"{rate[name, False]:.0f}",
            f"{rate[name, True]:.0f}",
            f"{rate[name, True] / rate[name, False]:.1f} x",
        ]
        for name, title in UPDATES.items()
    ]
    return f"{measured_on(content['machine'])}\n\n" + table(
        ["update", "eager, per s", "compiled, per s", "faster"], rows
    )


def iteration(content: dict[str, Any]) -> str:
    """Seconds by phase."""
    whole = content["iteration_seconds"]
    rows = [[name, f"{s:.1f} s", f"{s / whole:.0%}"] for name, s in content["seconds"].items()]
    rows.append(["**an iteration**", f"**{whole:.1f} s**", ""])
    return (
        f"{measured_on(content['machine'])}\n\n{table(['phase', 'time', 'share'], rows)}\n\n"
        f"The paper's whole run of 2,000 iterations, projected: {content['whole_run_hours']:.0f} "
        f"hours without evaluations. First calls, compiling included: "
        f"{content['first_calls_seconds']:.0f} s. Peak memory: "
        f"{content['peak_memory_mb'] / 1000:.1f} GB."
    )


def scaling(content: dict[str, Any]) -> str:
    """Slopes, and the growth of memory."""
    rows = [
        [name, f"{r['sizes'][0]:,} to {r['sizes'][-1]:,}", f"{r['slope']:.2f}"]
        for name, r in content["results"].items()
    ]
    memory = content["memory_mb"]
    tenth = memory[min(len(memory) - 1, 9)]
    return (
        f"{measured_on(content['machine'])}\n\n{table(['size', 'range', 'slope'], rows)}\n\n"
        f"Memory after {len(memory)} iterations: {memory[-1]:,.0f} MB, "
        f"{memory[-1] - tenth:+.0f} MB since the tenth."
    )


def data_loading(content: dict[str, Any]) -> str:
    """Seconds and memory by format, and training from the disk."""
    rows = [
        [
            LOADED[kind],
            f"{r['transitions']:,}",
            f"{r['seconds']:.1f} s",
            f"{r['kept_over_size']:.1f} x",
            f"{r['peak_over_size']:.1f} x",
        ]
        for kind, r in content["load"].items()
    ]
    text = (
        f"{content['cpus']} cores, PyTorch {content['torch']}, NumPy {content['numpy']}.\n\n"
        + table(["source", "transitions", "loaded in", "memory kept", "at most"], rows)
    )
    train = content.get("train")
    if train:
        text += (
            f"\n\n{train['transitions']:,} transitions ({train['float32_bytes'] / 1e9:.1f} GB) in "
            f"memory-mapped files: {train['updates_per_second']:.0f} likelihood steps a second of "
            "a model of the paper's size on random batches, "
            f"{train['anonymous_bytes'] / 1e6:.0f} MB of memory beside the system's cache."
        )
    return text


LOADED = {
    "d4rl": "D4RL's format",
    "d4rl-without-next": "D4RL's format, without `next_observations`",
    "minari-hdf5": "Minari, HDF5",
    "memmap": "memory-mapped files",
}
PARTS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "compare": (compare, "Times faster than OfflineRL-Kit"),
    "rollout_throughput": (rollout_throughput, "Imagined transitions per second"),
    "update_throughput": (update_throughput, "Milliseconds of each update"),
    "iteration": (iteration, "Where the time of an iteration goes"),
    "scaling": (scaling, "Cost against size, and memory over iterations"),
    "data_loading": (data_loading, ""),
}


def put_in(text: str, folder: Path, page_folder: Path) -> str:
    """Fill every pair of markers whose JSON file is there, with a table and the figure."""
    for name, (part, caption) in PARTS.items():
        start, end = f"<!-- benchmark:{name} -->", f"<!-- end of benchmark:{name} -->"
        path = folder / f"{name}.json"
        if start in text and end in text and path.is_file():
            head, rest = text.split(start, 1)
            tail = rest.split(end, 1)[1]
            table = part(json.loads(path.read_text(encoding="utf-8")))
            figure = os.path.relpath(path.with_suffix(".png"), page_folder)
            picture = f"\n\n![{caption}]({figure})" if caption else ""
            text = f"{head}{start}\n{table}{picture}\n{end}{tail}"
    return text


def main() -> None:
    """Rewrite the pages."""
    parser = argparse.ArgumentParser(description="Put measured figures into the documentation.")
    parser.add_argument("--folder", type=expand_home, default=Path("docs/benchmarks"))
    parser.add_argument(
        "pages",
        nargs="*",
        type=expand_home,
        default=[Path("docs/benchmarks.md"), Path("README.md")],
    )
    args = parser.parse_args()
    for page in args.pages:
        before = page.read_text(encoding="utf-8")
        after = put_in(before, args.folder, page.parent)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"written: {page}")


if __name__ == "__main__":
    main()
