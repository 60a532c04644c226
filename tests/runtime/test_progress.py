"""Bars: whose time counts as speed, what a file gets to read, what is said meanwhile."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from tqdm import std, tqdm

from rambo_trl.runtime.progress import Bar, busy, open_bars


class Clock:
    """Stands in for the time; bars draw nothing by themselves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What the last line shows."""
        return self.getvalue().replace("\n", "\r").rstrip("\r ").split("\r")[-1].strip()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(std, "time", clock)
    monkeypatch.setattr(Bar, "_tick", lambda self: None)
    yield clock
    assert not open_bars()


def test_what_is_waited_for_is_named_and_no_part_of_the_speed(clock: Clock) -> None:
    out = Terminal()
    with Bar(total=100, desc="fit", file=out, ncols=100) as bar:
        bar.wait_for("compiling the fit's update")
        clock.now += 400
        bar.refresh()
        assert out.screen().endswith("| 0/100 [06:40<?, compiling the fit's update]")
        bar.wait_for(None)
        bar.update()
        assert out.screen().endswith("[06:40<?, ?it/s]")  # nothing is known yet
        for _ in range(49):
            clock.now += 1
            bar.update()
        assert out.screen().endswith("| 50/100 [07:29<00:49,  1.00it/s]")
        bar.wait_for("compiling it anew")
        clock.now += 400
        bar.wait_for(None)
        for _ in range(50):
            clock.now += 1
            bar.update()
        assert bar.waited == 800
    assert re.search(r"100/100 \[14:59<00:00,  1\.0\dit/s\]$", out.screen())


def test_the_remaining_time_is_that_of_recent_updates(clock: Clock) -> None:
    out = Terminal()
    with Bar(total=1000, file=out, ncols=100) as bar:
        for seconds in (10.0,) * 20 + (1.0,) * 80:
            clock.now += seconds
            bar.update()
        # on the average since the start 2.8 s an update, 42 minutes
        assert "100/1000 [04:40<15:" in out.screen()


def test_laps_whose_steps_differ_count_as_whole_ones(clock: Clock) -> None:
    out = Terminal()
    with Bar(total=200, initial=100, file=out, ncols=100, laps=True) as bar:
        for lap in range(1, 6):
            for seconds in (0.1,) * 5 + (1.9,) * 5:  # the agent's updates, then the adversary's
                clock.now += seconds
                bar.update()
            if lap == 1:
                assert out.screen().endswith("<?, ?it/s]")
            clock.now += 10  # the evaluation
            bar.lap()
            bar.refresh()
            seconds = (10 - lap) * 20
            assert f"<{seconds // 60:02d}:{seconds % 60:02d},  2.00s/it]" in out.screen()


def test_a_file_gets_a_line_every_half_minute_and_the_end(clock: Clock) -> None:
    file = io.StringIO()
    with Bar(total=1000, desc="fit", file=file) as bar:
        for i in range(1000):
            clock.now += 0.1
            bar.update()
            bar.set_postfix_str(f"error {i}")
            if i % 100 == 0:
                tqdm.write("above", file=file)
    text = file.getvalue()
    assert not set(text) & {"\r", "\x1b"} and text.endswith(", error 999]\n")
    lines = [line for line in text.splitlines() if line != "above"]
    done = [int(re.search(r"(\d+)/1000", line)[1]) for line in lines]  # type: ignore[index]
    assert done[0] == 0 and done[-1] == 1000 and len(done) == 5
    assert all(later - before >= 300 for before, later in pairwise(done[:-1]))


def test_what_takes_a_moment_only_is_not_worth_a_sign(clock: Clock) -> None:
    out, file = Terminal(), io.StringIO()
    for target in (out, file):
        with busy("reading", file=target):
            clock.now += 0.5
    assert not out.screen() and not file.getvalue()


def test_the_clock_moves_on_where_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rambo_trl.runtime.progress._TICK", 0.01)
    out = Terminal()
    with Bar(total=2, file=out) as bar:
        drawn = len(out.getvalue())
        for _ in range(200):
            if len(out.getvalue()) > drawn:
                break
            bar._closed.wait(0.01)
        assert len(out.getvalue()) > drawn
