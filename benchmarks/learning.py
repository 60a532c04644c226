"""Learning beside OfflineRL-Kit: python benchmarks/learning.py --peer PATH.

PATH is a checkout of https://github.com/yihaosun1124/OfflineRL-Kit, of which nothing is installed
or changed. Its RAMBO and ours train on the same data with the published settings, one run after
the other, each in a process of its own: ``learning_peer.py`` and ``learning_ours.py``. Score and
mean Q are drawn against epochs and against the processor's hours of training. An epoch is
``--updates`` updates of each player and 50 imagined starts for each of them, as published; the
publication has 1000. Words that follow are settings of ``recipes/rambo.py``, for both.

What has been done stays in the folder ``learning`` of ``--out``: the same command goes on after an
interruption, and adds what another number of epochs or other seeds ask for.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _recipes  # noqa: F401  # for the launcher
import torch
from compare import check_checkout, commit
from launcher.command_line import compose_jobs, setting
from learning_peer import check_data
from matplotlib.figure import Figure
from measuring import add_out, at_least, machine, markdown_table, measured_on, save

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.folder import RunFolder, write_atomically
from rambo_trl.runtime.drawing import BLUE, ORANGE, add_legend
from rambo_trl.runtime.places import expand_home

CAPTION = "Score and mean Q of OfflineRL-Kit's RAMBO and of ours, by epoch and by hour"
#: sides, in turn for every seed
SIDES = {"ours": "rambo_trl", "peer": "OfflineRL-Kit"}
#: imagined starts for an update of each player, as published
STARTS = 50
#: the last epochs, over which results are averaged
LAST = 10
#: seconds that a run has to write its checkpoint once it is told to end
GRACE = 60
QUICK = ("model.hidden_sizes=[16,16,16,16]", "agent.hidden_sizes=[16,16]")


def settings_of(args: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """The settings of ``recipes/rambo.py`` that all runs have, and the peer is built from."""
    return [
        "schedule=paper",
        "task=halfcheetah-medium-replay",
        *shlex.split(setting("dataset", args.dataset)),
        f"agent_updates={args.updates}",
        f"model_updates={args.updates}",
        f"rollout_starts={STARTS * args.updates}",
        f"model.max_passes={args.fit_passes}",
        f"cloning.passes={args.cloning_passes}",
        f"evaluation.episodes={args.episodes}",
        "evaluation.every=1",
        "evaluation.last=1",
        "checkpoint_every=1",
        "on_divergence=continue",  # the peer goes on as well
        f"threads={args.threads}",
        *more,
    ]


def command(side: str, folder: Path, words: Sequence[str], args: argparse.Namespace) -> list[str]:
    """What starts a side's run, or goes on with it."""
    script = [sys.executable, str(Path(__file__).with_name(f"learning_{side}.py"))]
    epochs = f"epochs={args.epochs}"
    if side == "peer":
        script.append(str(args.peer))
    elif (folder / "config.yaml").is_file():
        return [*script, *shlex.split(setting("resume", folder)), epochs]
    return [*script, *words, epochs, *shlex.split(setting("run_dir", folder))]


def train(side: str, folder: Path, words: Sequence[str], args: argparse.Namespace) -> None:
    """Train one run to its end, unless it has got there; what it prints goes into a file beside."""
    if len(RunFolder(folder).read_metrics()) >= args.epochs:
        return
    threads, compiled = str(args.threads), folder.with_name(f"{folder.name}-compiled")
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        # what a run compiles is compiled, and counted, in its own process
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        **({"TQDM_DISABLE": "1"} if side == "peer" else {}),  # it draws its bar at every update
    }
    log = folder.with_suffix(".log")
    print(f"{folder.name}: see {log}", flush=True)
    with log.open("ab") as output:
        run = subprocess.Popen(
            command(side, folder, words, args), env=environment, stdout=output, stderr=output
        )
        try:
            code = run.wait()
        finally:  # also where this process is told to end
            if run.poll() is None:
                run.terminate()
                try:
                    run.wait(GRACE)
                except subprocess.TimeoutExpired:
                    run.kill()
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{folder.name} ended with {code}:\n{tail}")
    shutil.rmtree(compiled, ignore_errors=True)


def check_same(folder: Path, words: Sequence[str]) -> None:
    """Refuse a folder whose runs have other settings, else note these in it."""
    path, kept = folder / "settings.json", list(words)
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != kept:
        differing = " ".join(sorted(set(found).symmetric_difference(kept)))
        raise SystemExit(
            f"{folder} holds runs with other settings ({differing}): give another --out, or "
            "remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(kept).encode())


def curves(folder: Path) -> dict[str, list[float | None]]:
    """A run's curves by epoch from 0, the clone: score, mean Q, hours of both clocks."""
    rows = RunFolder(folder).read_metrics()
    if not rows:
        return {}
    first: Mapping[str, Any] = {
        "epoch": 0,
        "score": rows[0]["cloned_score"],
        "mean_q": None,
        **{f"{clock}_seconds": rows[0][f"{clock}_pretraining"] for clock in ("cpu", "wall")},
    }
    return {key: [row[key] for row in (first, *rows)] for key in first}


def collect(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All runs that have an epoch at least, with their curves."""
    names = [(side, seed) for seed in seeds for side in SIDES]
    found = [(side, seed, curves(folder / f"{side}-seed{seed}")) for side, seed in names]
    return [{"side": side, "seed": seed, **lines} for side, seed, lines in found if lines]


def main() -> None:
    """Train what is missing, write the JSON file and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = at_least(1)
    parser.add_argument("--peer", type=expand_home, required=True, help="the checkout's folder")
    parser.add_argument("--epochs", type=count, default=40, help="default: 40")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--dataset", default="bundled/halfcheetah/medium-replay-v1")
    parser.add_argument("--updates", type=count, default=250, help="per epoch (default: 250)")
    parser.add_argument("--fit-passes", type=count, default=10, help="at most (default: 10)")
    parser.add_argument("--cloning-passes", type=count, default=10, help="default: 10")
    parser.add_argument("--episodes", type=count, default=5, help="per evaluation (default: 5)")
    parser.add_argument("--threads", type=count, default=1, help="of each run (default: 1)")
    add_out(parser)
    parser.add_argument("--quick", action="store_true", help="small and short, to see it work")
    args, more = parser.parse_known_args()
    check_checkout(parser, args.peer)
    args.peer = args.peer.absolute()
    if args.quick:
        args.epochs, args.updates, args.fit_passes, args.cloning_passes = 2, 10, 1, 1
        args.episodes, more = 1, [*QUICK, *more]
    words = settings_of(args, more)
    try:
        (cfg,) = compose_jobs("rambo", words)
        if args.updates % cfg.rollout_length:
            raise ValueError(
                f"--updates must be a multiple of rollout_length={cfg.rollout_length}, whole "
                f"trajectories of which the peer takes, got {args.updates}"
            )
        if not cfg.adversarial_weight:
            raise ValueError("adversarial_weight=0 is not the same on both sides: give one above 0")
        check_data(OfflineDataset.load(cfg.dataset, normalize=False))
    except ValueError as error:
        parser.error(str(error))
    folder = (args.out / "learning").absolute()
    check_same(folder, words)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    torch.set_num_threads(args.threads)
    try:
        for seed in args.seeds:
            for side in SIDES:
                train(side, folder / f"{side}-seed{seed}", [*words, f"seed={seed}"], args)
    finally:  # what there is, wherever it was interrupted
        if runs := collect(folder, args.seeds):
            device = argparse.Namespace(device="cpu", bfloat16=False)
            content = {
                "machine": machine(device),
                "peer_commit": commit(args.peer),
                "settings": words,
                "updates": args.updates,
                "results": runs,
            }
            save(args.out, "learning", content, report, draw)


def last_mean(values: Sequence[float | None]) -> float:
    """The mean of the last epochs'."""
    return statistics.fmean(value for value in values[-LAST:] if value is not None)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What the table tells of a side's runs, seed by seed."""
    return {
        "clone": [run["score"][0] for run in runs],
        "score": [last_mean(run["score"]) for run in runs],
        "mean_q": [last_mean(run["mean_q"]) for run in runs],
        "pretraining": [run["cpu_seconds"][0] for run in runs],
        "epoch": [
            statistics.median(
                b - a for a, b in zip(run["cpu_seconds"][:-1], run["cpu_seconds"][1:], strict=True)
            )
            for run in runs
        ],
        "hours": [run["cpu_seconds"][-1] / 3600 for run in runs],
    }


def report(content: dict[str, Any]) -> str:
    """Both sides in a table: what they learnt, what it took."""
    runs, updates = content["results"], content["updates"]
    sides = {side: [run for run in runs if run["side"] == side] for side in SIDES}
    found = {side: summarise(own) for side, own in sides.items() if own}
    names = {**SIDES}
    if content["peer_commit"]:
        names["peer"] += f" ({content['peer_commit']})"
    epochs = max(run["epoch"][-1] for run in runs)
    titles = {
        "clone": ("score of the clone", "{:.1f}"),
        "score": (f"score, last {LAST} epochs", "{:.1f}"),
        "mean_q": (f"mean Q, last {LAST} epochs", "{:.0f}"),
        "pretraining": ("fit and cloning, CPU seconds", "{:.0f}"),
        "epoch": ("an epoch, CPU seconds", "{:.1f}"),
        "hours": ("in all, CPU hours", "{:.2f}"),
    }
    rows = [
        [title, *(", ".join(map(form.format, found[side][key])) for side in reversed(found))]
        for key, (title, form) in titles.items()
    ]
    text = f"{measured_on(content['machine'])} {epochs} epochs of {updates} updates of each player"
    seeds = sorted({run["seed"] for run in runs})
    text += f", seeds {', '.join(map(str, seeds))} in this order.\n\n"
    text += markdown_table(["", *(names[side] for side in reversed(found))], rows)
    if len(found) == 2:
        faster = {
            key: statistics.fmean(found["peer"][key]) / statistics.fmean(found["ours"][key])
            for key in ("epoch", "hours")
        }
        text += (
            f"\n\nAn epoch takes {faster['epoch']:.1f} times less of the processor here, the "
            f"whole, compilation included, {faster['hours']:.1f} times less."
        )
    return text


def draw(content: dict[str, Any]) -> Figure:
    """Score above, mean Q below; by epoch on the left, by the processor's hours on the right."""
    figure = Figure(figsize=(10, 6.5))
    panels = figure.subplots(2, 2, sharey="row")
    colors = {"peer": ORANGE, "ours": BLUE}
    for run in sorted(content["results"], key=lambda run: list(colors).index(run["side"])):
        hours = [seconds / 3600 for seconds in run["cpu_seconds"]]
        for axes, key in zip(panels, ("score", "mean_q"), strict=True):
            values = [float("nan") if value is None else value for value in run[key]]
            for panel, at in zip(axes, (run["epoch"], hours), strict=True):
                panel.plot(at, values, color=colors[run["side"]], lw=1.3, label=SIDES[run["side"]])
    for axes, name in zip(panels, ("Score", "Mean Q"), strict=True):
        axes[0].set(title=f"{name} by epoch", ylabel=name)
        axes[1].set_title(f"{name} by time")
    for panel, label in zip(panels[1], ("epoch", "CPU hours of training"), strict=True):
        panel.set_xlabel(label)
    add_legend(figure, "a line for each seed")
    return figure


if __name__ == "__main__":
    main()
