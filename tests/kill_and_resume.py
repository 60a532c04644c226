"""Kill runs with SIGKILL at random moments, resume each, compare with the undisturbed run.

``python tests/kill_and_resume.py --kills 20`` prints a line for every kill: when it came, what
the run was doing and whether ``metrics.csv`` and the policy's weights are the undisturbed run's
byte for byte after the resume. It exits with 1 if any is not. Every third kill waits until a
checkpoint is being written. What follows the options is handed to ``recipes/rambo.py``.
"""

# ruff: noqa: T201 - a program that talks to its user
from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "rambo.py"
EPOCHS = 6
SETTINGS = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "seed=3", f"epochs={EPOCHS}",
    "checkpoint_every=2", "agent_updates=40", "model_updates=40", "model.max_passes=2",
    "cloning.passes=2",
)  # fmt: skip
COMPARED = ("metrics.csv", "policy.safetensors")


def start(work: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the recipe in a folder, its output in a file there."""
    with (work / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(RECIPE), *words], cwd=work, stdout=output, stderr=output
        )


def finish(run: subprocess.Popen[bytes], work: Path) -> None:
    """Wait for a run that is expected to end well."""
    if run.wait(timeout=600):
        tail = (work / "output.txt").read_text(errors="replace")[-2000:]
        raise SystemExit(f"a run ended with {run.returncode}:\n{tail}")


def begun(run: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait until the run has made its folder; the moment."""
    while run.poll() is None and not (folder / "config.yaml").is_file():
        time.sleep(0.002)
    return time.monotonic()


def kill(run: subprocess.Popen[bytes], folder: Path, delay: float, writing: bool) -> float:
    """Kill a run so many seconds after its folder was made; returns the seconds it had.

    Args:
        run: the process.
        folder: its run folder.
        delay: seconds.
        writing: wait from then on until a checkpoint is being written.
    """
    since = begun(run, folder)
    while run.poll() is None and time.monotonic() - since < delay:
        time.sleep(0.001)
    while writing and run.poll() is None:
        try:
            if any(name.startswith(".last.pt") for name in os.listdir(folder / "checkpoint")):
                break
        except FileNotFoundError:
            pass
    if run.poll() is None:
        os.kill(run.pid, signal.SIGKILL)
    run.wait()
    return time.monotonic() - since


def stage(run: subprocess.Popen[bytes], folder: Path) -> str:
    """What the run was doing, from what it left."""
    if run.returncode != -signal.SIGKILL:
        return "had ended"
    checkpoint = folder / "checkpoint"
    half = ", writing a checkpoint" if list(checkpoint.glob(".*.tmp")) else ""
    if not (checkpoint / "last.pt").is_file():
        return f"model fit{half}"
    progress = torch.load(checkpoint / "last.pt", weights_only=True)["progress"]
    if "cloned" not in progress:
        return f"cloning{half}"
    metrics = folder / "metrics.csv"
    lines = len(metrics.read_text().splitlines()) if metrics.is_file() else 1
    doing = f"epoch {lines}" if lines <= EPOCHS else "summary"
    return f"{doing}, checkpoint of epoch {progress['epoch']}{half}"


def kill_and_resume(kills: int, seed: int, work: Path, words: Sequence[str] = ()) -> int:
    """Run the experiment; returns the number of resumed runs that differ."""
    settings = (*SETTINGS, *words)
    whole = start(work, *settings, "run_dir=whole")
    since = begun(whole, work / "whole")
    finish(whole, work)
    length = time.monotonic() - since
    print(f"undisturbed: {length:.1f} s after its folder was made")
    print(f"{'kill':>4} {'after':>7}  {'metrics':<8} {'policy':<8} during")
    moments, different = random.Random(seed), 0
    for n in range(1, kills + 1):
        name = f"killed-{n:02d}"
        folder = work / name
        run = start(work, *settings, f"run_dir={name}")
        writing = n % 3 == 0
        # half the time, so that there is a checkpoint left to wait for
        moment = moments.uniform(0, length / 2 if writing else length)
        after = kill(run, folder, moment, writing)
        during = stage(run, folder)
        known = (folder / "config.yaml").is_file()
        again = (f"resume={name}",) if known else (*settings, f"run_dir={name}")
        finish(start(work, *again), work)
        same = [
            (folder / file).read_bytes() == (work / "whole" / file).read_bytes()
            for file in COMPARED
        ]
        different += not all(same)
        verdicts = ["same" if s else "DIFFERS" for s in same]
        print(f"{n:4d} {after:6.2f}s  {verdicts[0]:<8} {verdicts[1]:<8} {during}", flush=True)
    print(f"{kills - different} of {kills} resumed runs equal the undisturbed one")
    return different


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--keep", type=Path, help="leave the run folders here")
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        work = args.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if kill_and_resume(args.kills, args.seed, work, words):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
