"""Time and memory of loading a large data set, and of training from a memory-mapped one.

``python benchmarks/data_loading.py [--rows 1000000] [--train-rows 10000000]`` makes data of
Hopper's sizes in each format and loads it in a fresh process: seconds, and the process's peak
memory over that before the load, as a multiple of the transitions' own size. Then it makes a
memory-mapped set and trains a world model and draws batches from it. It prints as it goes and
leaves a JSON file and a figure in the folder ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import torch
from gymnasium.spaces import Box
from measuring import COLORS, add_out, finish_figure, make_figure, save_figure, write_json
from minari.data_collector import EpisodeBuffer

from rambo_trl.data import OfflineDataset, make_real_buffer
from rambo_trl.data.storage import minari_root
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.runtime.places import expand_home

OBSERVATION_SIZE, ACTION_SIZE, EPISODE = 11, 3, 1000
FORMATS = {
    "d4rl": "D4RL's format",
    "d4rl-without-next": "D4RL's format,\nno next_observations",
    "minari-hdf5": "Minari, HDF5",
    "memmap": "memory-mapped files",
}
BATCH_SIZE = 256


def make_episode(seed: int, steps: int = EPISODE) -> dict[str, np.ndarray]:
    """A random walk in Minari's layout, observations in float64 as simulators give them."""
    rng = np.random.default_rng(seed)
    truncations = np.zeros(steps, dtype=bool)
    truncations[-1] = True
    return {
        "observations": rng.normal(size=(steps + 1, OBSERVATION_SIZE)),
        "actions": rng.uniform(-1, 1, size=(steps, ACTION_SIZE)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": np.zeros(steps, dtype=bool),
        "truncations": truncations,
    }


def write(kind: str, rows: int, folder: Path) -> Path:
    """Write a set of ``rows`` transitions in one of FORMATS."""
    episodes = -(-rows // EPISODE)
    if kind.startswith("d4rl"):
        return write_d4rl(folder / f"{kind}.hdf5", episodes, with_next=kind == "d4rl")
    if kind == "minari-hdf5":
        with minari_root(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an author is missing
            minari.create_dataset_from_buffers(
                "benchmark/set-v0",
                buffer=[EpisodeBuffer(**make_episode(i)) for i in range(episodes)],
                observation_space=Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float64),
                action_space=Box(-1, 1, (ACTION_SIZE,), np.float32),
            )
        return folder / "benchmark" / "set-v0"
    OfflineDataset.load(write("d4rl", rows, folder)).memmap(folder / "memmap")
    return folder / "memmap"


def write_d4rl(path: Path, episodes: int, *, with_next: bool) -> Path:
    """Write a D4RL file episode by episode: float32 but for the rewards."""
    rows = episodes * EPISODE
    with h5py.File(path, "w") as file:
        for key, width in (
            ("observations", OBSERVATION_SIZE),
            ("next_observations", OBSERVATION_SIZE),
            ("actions", ACTION_SIZE),
        ):
            if with_next or key != "next_observations":
                file.create_dataset(key, (rows, width), np.float32)
        file.create_dataset("rewards", (rows,), np.float64)
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, (rows,), bool)
        for i in range(episodes):
            episode, part = make_episode(i), slice(i * EPISODE, (i + 1) * EPISODE)
            file["observations"][part] = episode["observations"][:-1]
            if with_next:
                file["next_observations"][part] = episode["observations"][1:]
            file["actions"][part] = episode["actions"]
            file["rewards"][part] = episode["rewards"]
            file["timeouts"][part] = episode["truncations"]
    return path


def memory() -> dict[str, int]:
    """Bytes of this process now: ``anonymous`` is its own, ``mapped`` is files' pages."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    return {
        "anonymous": 1024 * int(fields["RssAnon"].split()[0]),
        "mapped": 1024 * int(fields["RssFile"].split()[0]),
        "peak": 1024 * int(fields["VmHWM"].split()[0]),  # ru_maxrss has the parent's in it
    }


def measure_load(path: str) -> dict[str, Any]:
    """Load a set in this process."""
    before, started, working = memory(), time.perf_counter(), time.process_time()
    data = OfflineDataset.load(path)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - working
    after = memory()
    size = data.transitions.bytes()
    return {
        "transitions": len(data),
        "float32_bytes": size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # less than seconds where the machine is busy
        "peak_over_size": round((after["peak"] - before["anonymous"] - before["mapped"]) / size, 2),
        "kept_over_size": round((after["anonymous"] - before["anonymous"]) / size, 2),
    }


def measure_training(path: str, updates: int = 300) -> dict[str, Any]:
    """Fit a world model of the paper's size on random batches of a memory-mapped set."""
    before = memory()
    data = OfflineDataset.load(path)
    buffer = make_real_buffer(data)
    torch.manual_seed(0)
    model = EnsembleWorldModel(data.observation_size, data.action_size)
    loss = EnsembleModelLoss(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=True)
    losses, drawing, started = [], 0.0, time.perf_counter()
    for _ in range(updates):
        drawn = time.perf_counter()
        batch = buffer.sample(BATCH_SIZE)
        drawing += time.perf_counter() - drawn
        value = sum(v for k, v in loss(batch).items() if k.startswith("loss"))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    seconds, after = time.perf_counter() - started, memory()
    return {
        "transitions": len(data),
        "float32_bytes": data.transitions.bytes(),
        "updates_per_second": round(updates / seconds, 1),
        "seconds_per_draw": drawing / updates,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "anonymous_bytes": after["anonymous"] - before["anonymous"],
        "mapped_bytes": after["mapped"] - before["mapped"],
    }


def in_fresh_process(what: str, path: Path) -> dict[str, Any]:
    """Run one of the measurements in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def options_parser() -> argparse.ArgumentParser:
    """What the benchmark is asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="transitions to load (default: 1000000)"
    )
    parser.add_argument(
        "--train-rows",
        type=int,
        default=10_000_000,
        help="transitions to train from, 0 to leave training out (default: 10000000)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        help="sources to load (default: all)",
    )
    add_out(parser)
    parser.add_argument(
        "--folder",
        type=expand_home,
        help="where the sets are made, and deleted (default: the system's)",
    )
    parser.add_argument("--measure", choices=("load", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what would end in an error after it."""
    for name, value, least in (("rows", options.rows, 1), ("train-rows", options.train_rows, 0)):
        if value < least:
            raise SystemExit(f"--{name} must be at least {least}, got {value}")
    if options.folder is not None and not options.folder.is_dir():
        raise SystemExit(f"--folder {options.folder} is no folder")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        raise SystemExit(
            f"--out {options.out} can't be used as a folder: {error.strerror}"
        ) from None


def main() -> None:
    """Measure everything, print, write the JSON file and the figure."""
    options = options_parser().parse_args()
    if options.measure is not None:
        measure = measure_load if options.measure == "load" else measure_training
        print(json.dumps(measure(options.path)))
        return
    check(options)
    results: dict[str, Any] = {
        "cpus": os.cpu_count(), "torch": torch.__version__, "numpy": np.__version__, "load": {},
    }  # fmt: skip
    for kind in options.formats:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = write(kind, options.rows, Path(folder))
            results["load"][kind] = in_fresh_process("load", path)
        print(kind, json.dumps(results["load"][kind]), flush=True)
    if options.train_rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = write("memmap", options.train_rows, Path(folder))
            results["train"] = in_fresh_process("train", path)
        print("train", json.dumps(results["train"]), flush=True)
    write_json(options.out / "data_loading.json", results)
    draw(results["load"], options.out / "data_loading.png")


def draw(load: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars by source: seconds, and memory in multiples of the transitions' size."""
    figure, (left, right) = make_figure(2, width=10, height=1.4 + 0.6 * len(load))
    places = np.arange(len(load))
    seconds = [r["seconds"] for r in load.values()]
    left.bar_label(left.barh(places, seconds, 0.5, color=COLORS[0]), fmt="%.2f", padding=3)
    for shift, color, key, label in (
        (-0.2, COLORS[2], "kept_over_size", "kept"),
        (0.2, COLORS[1], "peak_over_size", "at most"),
    ):
        sizes = [r[key] for r in load.values()]
        bars = right.barh(places + shift, sizes, 0.38, color=color, label=label)
        right.bar_label(bars, fmt="%.1f", padding=3)
    left.set_yticks(places, [FORMATS[kind] for kind in load])
    right.set_yticks(places, [""] * len(load))
    for ax in (left, right):
        ax.set_ylim(len(load) - 0.5, -0.5)  # the first source on top
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, max(1.15 * ax.get_xlim()[1], 0.1))
        ax.locator_params(axis="x", nbins=5)
    right.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.97))
    rows = max(r["transitions"] for r in load.values())
    finish_figure(left, f"Loading {rows:,} transitions", "seconds", "")
    finish_figure(right, "Memory", "multiples of the transitions' size in float32", "")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
