"""Progress bars for work that waits for compilers, in terminals and in log files."""

from __future__ import annotations

import sys
import threading
from typing import Any, Protocol

from tqdm import tqdm
from tqdm.std import EMA

__all__ = ["Bar", "ProgressBar", "busy", "open_bars"]

#: seconds between a bar's lines in a file
LINES_EVERY = 30.0
#: seconds of work between two measurements of the speed, and the newest one's weight
LOOK_EVERY, LOOK_WEIGHT = 0.5, 0.1
#: seconds after which a terminal's bar is redrawn without progress
_TICK = 1.0
_WAITING = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<?, WHAT]"


class ProgressBar(Protocol):
    """Anything with tqdm's ``update``."""

    def update(self, n: int = 1) -> object:
        """Advance by ``n`` steps."""
        ...


def is_terminal(file: Any) -> bool:
    """Whether a file, or stderr where None, is a terminal."""
    return bool(getattr(file or sys.stderr, "isatty", lambda: False)())


class Bar(tqdm):
    """tqdm's bar, for work that includes waiting.

    Speed and remaining time are those of recent steps, without the time spent waiting
    (:meth:`wait_for`), and ``?`` until they are known. The clock keeps running between steps.
    Outside of terminals, a line is written at most every half minute, and the final state once.

    Args:
        *args: as tqdm's.

    Keyword Args:
        laps: measure the speed over whole laps, whose ends :meth:`lap` marks: for steps that differ
            among each other while one lap is like the next.
        **settings: as tqdm's.

    Attributes:
        waited: seconds spent waiting.
    """

    last_print_t: float

    def __init__(self, *args: Any, laps: bool = False, **settings: Any) -> None:
        self._live = is_terminal(settings.get("file"))
        self._laps = laps
        self._waiting: tuple[str, float] | None = None  # for what, since when
        self.waited = 0.0
        self._steps, self._seconds = EMA(LOOK_WEIGHT), EMA(LOOK_WEIGHT)
        self._speed = 0.0
        self._written: float | None = None
        self._closed = threading.Event()
        settings = {"dynamic_ncols": True, "mininterval": LOOK_EVERY, "miniters": 1, **settings}
        super().__init__(*args, smoothing=0, **settings)
        if self.disable:
            return
        self._looked = (self.start_t, self.n)
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        """Redraw the bar while nothing else does."""
        while not self._closed.wait(_TICK):
            now = self._time()
            if now >= max(self.start_t + self.delay, self.last_print_t + _TICK):
                self.last_print_t = now
                self.refresh()

    def _look(self, least: float) -> None:
        """Measure the speed if more than ``least`` seconds of work have passed since the last."""
        worked, (before, done) = self._time() - self.waited, self._looked
        if worked - before > least:
            self._looked = (worked, self.n)
            self._speed = self._steps(self.n - done) / self._seconds(worked - before)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by ``n`` steps."""
        shown = super().update(n)
        if not (self.disable or self._laps):
            self._look(LOOK_EVERY)
        return shown

    def lap(self) -> None:
        """End a lap and begin the next."""
        if not self.disable:
            self._look(0.0)

    def wait_for(self, what: str | None) -> None:
        """Show what the work waits for, such as ``"compiling the update"``; None ends it."""
        if self.disable:
            return
        if self._waiting is not None:
            self.waited += self._time() - self._waiting[1]
        self._waiting = None if what is None else (what, self._time())
        self.refresh()

    @property
    def format_dict(self) -> Any:
        """What is shown."""
        shown = super().format_dict
        shown["rate"] = self._speed
        if self._closed.is_set():  # the mean of all steps
            worked = shown["elapsed"] - self.waited
            shown["rate"] = (self.n - self.initial) / worked if worked > 0 else 0.0
        elif self._waiting is not None:
            what = self._waiting[0].replace("{", "{{").replace("}", "}}")
            shown["bar_format"] = _WAITING.replace("WHAT", what)
        return shown

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar, or write a line when one is due."""
        if self._live:
            return super().display(msg, pos)
        now, ends = self._time(), self._closed.is_set()
        early = self._written is not None and now - self._written < LINES_EVERY
        # a complete bar is written at the end, as the final state
        if msg is not None or (not ends and (early or self.n == self.total)):
            return False
        self._written = now
        self.fp.write(f"{self}" if ends else f"{self}\n")  # tqdm ends the last line
        return True

    def clear(self, nolock: bool = False) -> None:
        """Make room for other lines in a terminal."""
        if self._live:
            super().clear(nolock)

    def close(self) -> None:
        """Draw the final state."""
        self._closed.set()
        super().close()


def busy(what: str, **settings: Any) -> Bar:
    """Show that uncountable work is going on, once it takes more than a moment.

    Used with ``with``; a terminal shows nothing of it afterwards. A file gets a line about work of
    five seconds or more.

    Args:
        what: such as ``"reading the data"``.
        **settings: as tqdm's.
    """
    delay = 1 if is_terminal(settings.get("file")) else 5
    return Bar(desc=what, bar_format="{desc} [{elapsed}]", leave=False, delay=delay, **settings)


def open_bars() -> list[Bar]:
    """The bars that are shown now."""
    return [bar for bar in list(tqdm._instances) if isinstance(bar, Bar)]
