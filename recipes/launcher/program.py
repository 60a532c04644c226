"""How a recipe behaves as a program: its errors, its signals, its bars and its seconds."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

from launcher.command_line import describe, refuse, setting
from torchrl._utils import logger
from tqdm import tqdm

from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interrupted, Interruption
from rambo_trl.runtime.places import cache_folder
from rambo_trl.runtime.progress import open_bars
from rambo_trl.runtime.terminal import set_up_messages

# tensordict reads a flag that torch has retired: nothing that a user of the recipes could change
warnings.filterwarnings("ignore", message=".*inline_inbuilt_nn_modules is deprecated")
logger.setLevel("WARNING")  # TorchRL reports every storage that it makes
set_up_messages()


def cannot_write(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether an error says that a disk takes no more, which is not the input's fault."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return isinstance(error, OSError) and error.errno in full


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """Turn errors of the checks before a run into one line and exit code 2."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        refuse(error)


class _AboveTheBars(logging.Handler):
    """Lines of the log above the bars, which say what is being compiled until that is done."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO:
            tqdm.write(self.format(record), file=sys.stderr)
        if hasattr(record, "compiling"):
            for bar in open_bars():
                bar.wait_for(record.compiling)


def announce_compilation() -> None:
    """Say what is being compiled, and leave that out of the bars' speed; keep the code."""
    # torch's own place is emptied when the machine starts anew
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    compiler = logging.getLogger("rambo_trl.runtime.compiling")
    compiler.setLevel(logging.DEBUG)
    compiler.handlers = [_AboveTheBars()]
    compiler.propagate = False  # Hydra's root logger would say it again


class EndingWell:
    """A block whose end by a signal or a full disk says in one line how to resume.

    Attributes:
        folder: the run folder, once there is one; given free at the block's end.
        saved: says what a resumed run would start from, once that is known.
        signals: SIGINT's and SIGTERM's, see :class:`Interruption`.

    Raises:
        SystemExit: with 128 + the signal's number, or 1 where a file could not be written.
    """

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.saved: Callable[[], str] | None = None
        self.signals = Interruption()

    def __enter__(self) -> EndingWell:
        self.signals.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.signals.__exit__(kind, error, trace)
        except Interrupted as cause:
            error = cause
        hint = "nothing is saved yet: start it again"
        if self.folder is not None:
            self.folder.unlock()
            words = ["python", sys.argv[0]]
            hint = f"resume with: {shlex.join(words)} {setting('resume', self.folder.path)}"
        if isinstance(error, Interrupted):
            if self.saved is not None:
                hint = f"{self.saved()}; {hint}"
            elif self.folder is not None and not (self.folder.checkpoint_dir / "last.pt").is_file():
                hint = f"nothing is saved yet; {hint}"
            print(f"interrupted by {error.name}; {hint}", file=sys.stderr)
            raise SystemExit(error.exit_code)
        if cannot_write(error):
            refuse(f"{describe(error)}; once that is settled, {hint}", code=1)
