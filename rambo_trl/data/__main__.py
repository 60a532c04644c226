"""``python -m rambo_trl.data NAME``: what is in a data set; or the import of logs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data.log_command import (
    add_import_options,
    asks_for_import,
    attach_expressions,
    run_import,
)
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.report import describe_dataset, plot_dataset
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy
from rambo_trl.runtime.terminal import set_up_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on a data set; bad input ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m rambo_trl.data",
        description="Report what is in a data set, and check it; or make a data set of logs.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="name",
        help="bundled name, Minari id or folder, D4RL-format HDF5 file, or neorl2/TASK; or logs",
    )
    parser.add_argument("--figure", type=expand_home, help="draw the data set into this image file")
    parser.add_argument(
        "--memmap",
        type=expand_home,
        help="write the data set to this folder, to train from the disk",
    )
    reading = parser.add_argument_group("how it is read; a folder of --memmap keeps all of it")
    reading.add_argument(
        "--env-id", help="environment, where the data set names none; or none, to use none"
    )
    for option, end in (("--action-low", "lowest"), ("--action-high", "highest")):
        reading.add_argument(
            option,
            type=_numbers,
            metavar="X,Y,...",
            help=f"{end} value of each action entry, as in {option}=-1,0",
        )
    reading.add_argument(
        "--observation-keys", nargs="+", help="entries of dictionary observations to join"
    )
    reading.add_argument("--max-episode-steps", type=int, help="time limit, for a D4RL file")
    reading.add_argument("--reward-shift", type=float, default=0.0, help="added to every reward")
    add_import_options(parser)
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(attach_expressions(words))
    importing = asks_for_import(options)
    if len(options.names) > 1 and not importing:
        parser.error(f"give one data set, got {' '.join(options.names)}")
    if not importing and (options.action_low is None) != (options.action_high is None):
        parser.error("give both --action-low and --action-high, or none of them")
    set_up_messages()
    level = torchrl_logger.level
    torchrl_logger.setLevel("ERROR")  # warnings stand in the report
    try:
        report = run_import(options) if importing else _report(options)
    except (ValueError, OSError) as error:
        sys.stderr.write("error: " + " ".join(str(error).split()) + "\n")
        return 2
    finally:
        torchrl_logger.setLevel(level)
    sys.stdout.write(report + "\n")
    return 0


def _report(options: argparse.Namespace) -> str:
    """Describe a data set; draw it, and write it to a folder, where that is asked for."""
    dataset = OfflineDataset.load(
        options.names[0],
        env_id=None if options.env_id == "none" else options.env_id,
        action_spec=_bounds(options.action_low, options.action_high),
        observation_keys=options.observation_keys,
        max_episode_steps=options.max_episode_steps,
        reward_shift=options.reward_shift,
    )
    if options.env_id == "none":
        dataset.has_simulator = False
    report = describe_dataset(dataset)
    if options.figure is not None:
        with busy("drawing the figure"):
            plot_dataset(dataset, options.figure)
        report += f"\n\nfigure       {options.figure}"
    if options.memmap is not None:
        with busy(f"writing {options.memmap}"):
            dataset.memmap(options.memmap)
        report += f"\n\nwritten to   {options.memmap}"
    return report


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _bounds(low: list[float] | None, high: list[float] | None) -> Bounded | None:
    if low is None or high is None:
        return None
    if len(low) != len(high):
        raise ValueError(f"--action-low has {len(low)} numbers and --action-high {len(high)}")
    bounds = (torch.tensor(bound, dtype=torch.float64) for bound in (low, high))
    return Bounded(*bounds, shape=(len(low),), dtype=torch.float64)


if __name__ == "__main__":
    sys.exit(main())
