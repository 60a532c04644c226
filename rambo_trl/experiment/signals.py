"""SIGTERM and SIGINT end a run at a point that it can be resumed from."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Interruption"]


class Interrupted(BaseException):
    """A signal asks the run to end; like KeyboardInterrupt, no handler of errors catches it.

    Attributes:
        signum: the signal's number.
        name: its name, such as ``"SIGTERM"``.
        exit_code: the conventional code, 128 + number.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.name = signal.Signals(signum).name
        self.exit_code = 128 + signum
        super().__init__(f"{self.name} received")


class Interruption:
    """Turn the first signal into :class:`Interrupted` at a good moment, end at once on the second.

    Inside a :meth:`deferred` block the exception waits for the block's end, but no longer than
    ``grace`` seconds; outside it is raised immediately. A second signal ends the process. Both are
    safe as long as what is on disk is always whole. What must not be interrupted, such as writing
    a checkpoint, goes into a :meth:`shielded` block.

    Use it as a context manager, which restores the earlier handlers. Outside the main thread,
    where Python delivers no signals, nothing is installed.

    Args:
        grace: seconds that a deferred block has left after a signal.
        on_signal: called with a sentence when the first signal is deferred; by default it is
            written to stderr.

    Examples:
        >>> with Interruption() as signals:
        ...     for epoch in range(3):
        ...         with signals.deferred():
        ...             pass  # one epoch, and a checkpoint if signals.received
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(
        self, *, grace: float = 5.0, on_signal: Callable[[str], object] | None = None
    ) -> None:
        self.grace = grace
        self._on_signal = on_signal or _to_stderr
        self._signum: int | None = None
        self._deferring = self._shielding = False
        self._timer: threading.Timer | None = None
        self._out_of_time = False
        self._raised = False
        self._earlier: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal waits for the end of a deferred block.

        Reading that one does gives the block all the time it needs to end.
        """
        if self._signum is not None:
            self._stop_timer()
        return self._signum is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {s: signal.signal(s, self._handle) for s in self.signals}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop_timer()
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if self._raised and self._signum is not None and not isinstance(error, Interrupted | None):
            raise Interrupted(
                self._signum
            ) from error  # interrupted code failed while it cleaned up

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block at whose end it is good to stop.

        Raises:
            Interrupted: at the block's end, if a signal came; or inside, when time is up.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            self._stop_timer()
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that only a second signal interrupts, however long it takes.

        Raises:
            Interrupted: at the block's end, if a signal came. Inside a deferred block, that one's
                grace begins instead.
        """
        if self._shielding:  # within another, which decides
            yield
            return
        self._shielding = True
        self._stop_timer()
        try:
            yield
        finally:
            self._shielding = False
            if self._signum is not None and self._deferring:
                self._start_timer(self._signum)
        if self._signum is not None and not self._deferring:
            raise Interrupted(self._signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._out_of_time:  # the timer's own call, not a second signal
            self._out_of_time = False
            if self._timer is not None and self._deferring and not self._shielding:
                self._raised = True
                raise Interrupted(signum)
            return
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if not (self._deferring or self._shielding):
            self._raised = True
            raise Interrupted(signum)
        when = "once its checkpoint is written"
        if not self._shielding:
            when = f"with this epoch, at the latest in {self.grace:g} seconds"
            self._start_timer(signum)
        name = signal.Signals(signum).name
        self._on_signal(f"{name}: the run ends {when}; at once on a second signal")

    def _start_timer(self, signum: int) -> None:
        self._timer = threading.Timer(self.grace, self._time_is_up, (signum,))
        self._timer.daemon = True
        self._timer.start()

    def _time_is_up(self, signum: int) -> None:
        self._out_of_time = True
        _thread.interrupt_main(signal.Signals(signum))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _to_stderr(message: str) -> None:
    sys.stderr.write(f"\n{message}\n")
    sys.stderr.flush()
