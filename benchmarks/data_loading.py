"""Time and memory of loading a large data set, and of training from a memory-mapped one.

``python benchmarks/data_loading.py [--rows 1000000] [--train-rows 10000000]`` makes data of
Hopper's sizes in each format and loads it in a fresh process: seconds, and the process's peak
memory over that before the load, as a multiple of the transitions' own size. Then it makes a
memory-mapped set and trains a world model and draws batches from it.
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
from matplotlib.figure import Figure
from measuring import add_out, at_least, draw_bars, markdown_table, process_memory, save
from minari.data_collector import EpisodeBuffer

from rambo_trl.data import OfflineDataset, make_real_buffer
from rambo_trl.data.storage import minari_root
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.runtime.places import expand_home

CAPTION = ""  # the page has the table alone
OBSERVATION_SIZE, ACTION_SIZE, EPISODE = 11, 3, 1000
FORMATS = {
    "d4rl": "D4RL's format",
    "d4rl-without-next": "D4RL's format, without `next_observations`",
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


def write_d4rl(path: Path, num_episodes: int, *, with_next: bool) -> Path:
    """Write a D4RL file: float32 but for the rewards."""
    episodes = [make_episode(i) for i in range(num_episodes)]
    observations = [episode["observations"].astype(np.float32) for episode in episodes]
    columns = {"observations": [x[:-1] for x in observations]}
    if with_next:
        columns["next_observations"] = [x[1:] for x in observations]
    for key, source in (
        ("actions", "actions"),
        ("rewards", "rewards"),
        ("terminals", "terminations"),
        ("timeouts", "truncations"),
    ):
        columns[key] = [episode[source] for episode in episodes]
    with h5py.File(path, "w") as file:
        for key, parts in columns.items():
            file[key] = np.concatenate(parts)
    return path


def measure_load(path: str) -> dict[str, Any]:
    """Load a set in this process."""
    before, started, working = process_memory(), time.perf_counter(), time.process_time()
    data = OfflineDataset.load(path)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - working
    after = process_memory()
    size = data.transitions.bytes()
    held = before["anonymous"] + before["mapped"]
    return {
        "transitions": len(data),
        "float32_bytes": size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # less than seconds where the machine is busy
        "peak_over_size": round(1e6 * (after["peak"] - held) / size, 2),
        "kept_over_size": round(1e6 * (after["anonymous"] - before["anonymous"]) / size, 2),
    }


def measure_training(path: str, updates: int = 300) -> dict[str, Any]:
    """Fit a world model of the paper's size on random batches of a memory-mapped set."""
    before = process_memory()
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
    seconds, after = time.perf_counter() - started, process_memory()
    return {
        "transitions": len(data),
        "float32_bytes": data.transitions.bytes(),
        "updates_per_second": round(updates / seconds, 1),
        "seconds_per_draw": drawing / updates,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **{
            f"{kind}_bytes": round(1e6 * (after[kind] - before[kind]))
            for kind in ("anonymous", "mapped")
        },
    }


def in_fresh_process(what: str, path: Path) -> dict[str, Any]:
    """Run one of the measurements in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure everything, print, write the JSON file and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, least, default, what in (
        ("rows", 1, 1_000_000, "transitions to load"),
        ("train-rows", 0, 10_000_000, "transitions to train from, 0 to leave training out"),
    ):
        what += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=at_least(least), default=default, help=what)
    what = "sources to load (default: all)"
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help=what)
    add_out(parser)
    parser.add_argument(
        "--folder",
        type=expand_home,
        help="where the sets are made, and deleted (default: the system's)",
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in a fresh process
    args = parser.parse_args()
    if args.measure is not None:
        kind, path = args.measure
        print(json.dumps((measure_load if kind == "load" else measure_training)(path)))
        return
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"--folder {args.folder} is no folder")
    results: dict[str, Any] = {
        "cpus": os.cpu_count(), "torch": torch.__version__, "numpy": np.__version__, "load": {},
    }  # fmt: skip
    for kind in args.formats:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = write(kind, args.rows, Path(folder))
            results["load"][kind] = in_fresh_process("load", path)
        print(kind, json.dumps(results["load"][kind]), flush=True)
    if args.train_rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = write("memmap", args.train_rows, Path(folder))
            results["train"] = in_fresh_process("train", path)
        print("train", json.dumps(results["train"]), flush=True)
    save(args.out, "data_loading", results, report, draw)


def report(content: dict[str, Any]) -> str:
    """Seconds and memory by format, and training from the disk."""
    rows = [
        [
            FORMATS[kind],
            f"{r['transitions']:,}",
            f"{r['seconds']:.1f} s",
            f"{r['kept_over_size']:.1f} x",
            f"{r['peak_over_size']:.1f} x",
        ]
        for kind, r in content["load"].items()
    ]
    text = (
        f"{content['cpus']} cores, PyTorch {content['torch']}, NumPy {content['numpy']}.\n\n"
        + markdown_table(["source", "transitions", "loaded in", "memory kept", "at most"], rows)
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


def draw(content: dict[str, Any]) -> Figure:
    """Memory by source, in multiples of the transitions' size."""
    load = content["load"]
    series = {
        label: [result[key] for result in load.values()]
        for label, key in (("kept", "kept_over_size"), ("at most", "peak_over_size"))
    }
    rows = max(r["transitions"] for r in load.values())
    title, unit = f"Loading {rows:,} transitions", "memory, multiples of their size in float32"
    return draw_bars(title, unit, [FORMATS[kind].replace("`", "") for kind in load], series)


if __name__ == "__main__":
    main()
