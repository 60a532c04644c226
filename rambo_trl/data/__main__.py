"""``python -m rambo_trl.data NAME``: what is in a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.report import describe_dataset, plot_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on a data set; bad input ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m rambo_trl.data",
        description="Report what is in a data set, and check it.",
    )
    parser.add_argument("name", help="bundled name, Minari id or folder, or D4RL-format HDF5 file")
    parser.add_argument("--env-id", help="environment, where the data set names none")
    parser.add_argument("--figure", type=Path, help="draw the data set into this image file")
    parser.add_argument(
        "--memmap", type=Path, help="write the data set to this folder, to train from the disk"
    )
    options = parser.parse_args(arguments)
    level = torchrl_logger.level
    torchrl_logger.setLevel("ERROR")  # warnings stand in the report
    try:
        dataset = OfflineDataset.load(options.name, env_id=options.env_id)
        report = describe_dataset(dataset)
        if options.figure is not None:
            plot_dataset(dataset, options.figure)
            report += f"\n\nfigure       {options.figure}"
        if options.memmap is not None:
            dataset.memmap(options.memmap)
            report += f"\n\nwritten to   {options.memmap}"
    except (ValueError, OSError) as error:
        sys.stderr.write("error: " + " ".join(str(error).split()) + "\n")
        return 2
    finally:
        torchrl_logger.setLevel(level)
    sys.stdout.write(report + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
