"""Kill runs with SIGKILL at random moments, resume each, compare with the undisturbed run.

``python tests/kill_and_resume.py --kills 20`` prints a line for every kill: when it came, what
the run was doing and whether ``metrics.csv`` and the policy's weights are the undisturbed run's
byte for byte after the resume. It exits with 1 if any is not, or if a half-written file is left.
Every fourth kill comes at any moment of the run; the others come at a random moment of the phase
that was hit least so far, one of them the writing of a checkpoint's file, one what comes after the
last epoch. At the end it says how often each phase was hit. What follows the options is handed to
``recipes/rambo.py``, such as ``evaluate_beside=true``.
"""

# ruff: noqa: T201 - a program that talks to its user
from __future__ import annotations

import argparse
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "rambo.py"
SETTINGS = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "seed=3", "epochs=6",
    "checkpoint_every=2", "agent_updates=40", "model_updates=40", "model.max_passes=2",
    "cloning.passes=2",
)  # fmt: skip
COMPARED = ("metrics.csv", "policy.safetensors")
#: what a kill may interrupt; "write" is the writing of a checkpoint's file, "finish" what comes
#: after the last epoch
PHASES = ("write", "model", "evaluation", "agent", "model_fit", "cloning", "rollouts", "finish")
#: an evaluation in a process beside training, whatever training does meanwhile
BESIDE = "beside"


def run_traced(trace: str, words: Sequence[str]) -> None:
    """Be the recipe, and note in a file when each phase begins and ends.

    The disk is made a slow one, so that a small checkpoint takes as long as a large one.

    Args:
        trace: the file.
        words: the recipe's command line.
    """
    sys.path.insert(0, str(RECIPE.parent))
    sys.argv = [str(RECIPE), *words]
    from rambo_trl.experiment import checkpoint, evaluation
    from rambo_trl.experiment.run import Run, Stopwatch

    notes = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str, phase: str) -> None:
        os.write(notes, f"{time.monotonic()} {what} {phase}\n".encode())

    @contextmanager
    def noted(phase: str) -> Iterator[None]:
        note("begin", phase)
        yield
        note("end", phase)

    measured, written = Stopwatch.__call__, checkpoint.write_atomically
    submitted, finished = evaluation.EvaluationProcess.submit, Run.finish
    flush = os.fsync

    @contextmanager
    def watch(self: Any, phase: str) -> Iterator[None]:
        with measured(self, phase), noted(phase):
            yield

    def write(*args: Any) -> None:
        with noted("write"):
            written(*args)

    def flush_slowly(file: int) -> None:
        time.sleep(0.1)
        flush(file)

    def submit(self: Any, path: Any, *, seed: int) -> Any:
        note("begin", BESIDE)
        future = submitted(self, path, seed=seed)
        future.add_done_callback(lambda _: note("end", BESIDE))
        return future

    def finish_run(self: Any, **results: Any) -> Any:
        with noted("finish"):
            return finished(self, **results)

    Stopwatch.__call__ = watch  # type: ignore[method-assign]
    checkpoint.write_atomically = write
    os.fsync = flush_slowly
    evaluation.EvaluationProcess.submit = submit  # type: ignore[method-assign]
    Run.finish = finish_run  # type: ignore[method-assign]
    runpy.run_path(str(RECIPE), run_name="__main__")


@dataclass(frozen=True)
class Span:
    """A phase's one turn; ``end`` is None while it lasts."""

    phase: str
    begin: float
    end: float | None


def read_trace(trace: Path) -> list[Span]:
    """What a traced run has noted so far, in the order in which it began."""
    spans: list[Span] = []
    text = trace.read_text() if trace.is_file() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        moment, what, phase = line.split()
        if what == "begin":
            spans.append(Span(phase, float(moment), None))
        else:
            i = max(i for i, s in enumerate(spans) if s.phase == phase and s.end is None)
            spans[i] = Span(phase, spans[i].begin, float(moment))
    return spans


def start(work: Path, *words: str, trace: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the recipe in a folder, its output in a file there."""
    program = [str(RECIPE)] if trace is None else [__file__, "--trace", str(trace)]
    with (work / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *program, *words], cwd=work, stdout=output, stderr=output
        )


def finish(run: subprocess.Popen[bytes], work: Path) -> None:
    """Wait for a run that is expected to end well."""
    if run.wait(timeout=1200):
        tail = (work / "output.txt").read_text(errors="replace")[-2000:]
        raise SystemExit(f"a run ended with {run.returncode}:\n{tail}")


def begun(run: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait until the run has made its folder; the moment."""
    while run.poll() is None and not (folder / "config.yaml").is_file():
        time.sleep(0.002)
    return time.monotonic()


def kill(run: subprocess.Popen[bytes], moment: float) -> None:
    """Kill a run at a moment, unless it ends before."""
    while run.poll() is None and time.monotonic() < moment:
        pass
    if run.poll() is None:
        os.kill(run.pid, signal.SIGKILL)
    run.wait()


def nth_begin(run: subprocess.Popen[bytes], trace: Path, phase: str, n: int) -> float:
    """Wait until a phase begins for the n-th time, counted from 0; the moment."""
    while run.poll() is None:
        begins = [s.begin for s in read_trace(trace) if s.phase == phase]
        if len(begins) > n:
            return begins[n]
        time.sleep(0.001)
    return time.monotonic()


def interrupted_phase(run: subprocess.Popen[bytes], trace: Path) -> tuple[str, bool]:
    """The innermost phase that a killed run was in, and whether an evaluation went on beside."""
    if run.returncode != -signal.SIGKILL:
        return "had ended", False
    running = [s.phase for s in read_trace(trace) if s.end is None]
    phases = [phase for phase in running if phase != BESIDE]
    return phases[-1] if phases else "between phases", BESIDE in running


def left_behind(folder: Path) -> str:
    """Which checkpoint a killed run has left."""
    checkpoint = folder / "checkpoint"
    half = " and a half-written file" if list(checkpoint.glob(".*.tmp")) else ""
    if not (checkpoint / "last.pt").is_file():
        return f"no checkpoint{half}"
    progress = torch.load(checkpoint / "last.pt", weights_only=True)["progress"]
    after = f"epoch {progress['epoch']}" if progress["epoch"] else "cloning"
    return f"checkpoint after {after if 'cloned' in progress else 'the model fit'}{half}"


def kill_and_resume(kills: int, seed: int, work: Path, words: Sequence[str] = ()) -> int:
    """Run the experiment; returns the number of resumed runs that differ."""
    settings = (*SETTINGS, *words)
    whole = start(work, *settings, "run_dir=whole", trace=work / "whole.trace")
    since = begun(whole, work / "whole")
    finish(whole, work)
    length = time.monotonic() - since
    lasted: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for span in read_trace(work / "whole.trace"):
        if span.phase in lasted and span.end is not None:
            lasted[span.phase].append(span.end - span.begin)
    print(f"undisturbed: {length:.1f} s after its folder was made")
    print(f"{'kill':>4} {'after':>7}  {'metrics':<8} {'policy':<8} during")
    moments, hits, different = random.Random(seed), Counter[str](), 0
    for n in range(1, kills + 1):
        name = f"killed-{n:02d}"
        folder, trace = work / name, work / f"{name}.trace"
        run = start(work, *settings, f"run_dir={name}", trace=trace)
        since = begun(run, folder)
        if n % 4:
            aim = min(PHASES, key=lambda phase: hits[phase])
            # every moment of the phase is as likely as another
            (turn,) = moments.choices(range(len(lasted[aim])), weights=lasted[aim])
            delay = moments.uniform(0, lasted[aim][turn])
            kill(run, nth_begin(run, trace, aim, turn) + delay)
        else:
            kill(run, since + moments.uniform(0, length))
        after = time.monotonic() - since
        (during, beside), left = interrupted_phase(run, trace), left_behind(folder)
        hits[during] += 1
        epoch = sum(span.phase == "rollouts" for span in read_trace(trace))
        known = (folder / "config.yaml").is_file()
        again = (f"resume={name}",) if known else (*settings, f"run_dir={name}")
        finish(start(work, *again), work)
        same = [
            (folder / file).read_bytes() == (work / "whole" / file).read_bytes()
            for file in COMPARED
        ]
        same.append(not list(folder.rglob(".*.tmp")))
        different += not all(same)
        verdicts = ["same" if s else "DIFFERS" for s in same]
        in_epoch = epoch and during not in ("had ended", "finish")
        where = f"{during} of epoch {epoch}" if in_epoch else during
        where += ", an evaluation beside" if beside else ""
        left += "" if same[2] else "; A HALF-WRITTEN FILE IS LEFT AFTER THE RESUME"
        print(
            f"{n:4d} {after:6.2f}s  {verdicts[0]:<8} {verdicts[1]:<8} {where}; {left}", flush=True
        )
    others = sorted(set(hits) - set(PHASES))
    print("kills by phase: " + ", ".join(f"{hits[p]} {p}" for p in (*PHASES, *others)))
    print(f"{kills - different} of {kills} resumed runs equal the undisturbed one")
    return different


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["--trace"]:  # a run of this program's own
        run_traced(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--keep", type=Path, help="leave the run folders here")
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (args.keep or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        if kill_and_resume(args.kills, args.seed, work, words):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
