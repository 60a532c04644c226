"""Signals end a run at a good moment, within seconds, and a second one at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from rambo_trl.experiment import signals as interruption
from rambo_trl.experiment.signals import Interrupted, Interruption


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_outside_of_a_deferred_block_it_is_raised_on_the_spot(signum: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stop, Interruption():
        signal.raise_signal(signum)
        pytest.fail("the signal was passed over")
    assert stop.value.exit_code == 128 + signum
    assert stop.value.name == signal.Signals(signum).name
    assert not isinstance(stop.value, Exception)  # no handler of errors swallows it
    assert signal.getsignal(signum) is before


def test_a_deferred_block_comes_to_its_end_first() -> None:
    said: list[str] = []
    steps = []
    with (
        pytest.raises(Interrupted),
        Interruption(grace=30, on_signal=said.append) as signals,
    ):
        for epoch in range(5):
            with signals.deferred():
                if epoch == 2:
                    signal.raise_signal(signal.SIGTERM)
                steps.append((epoch, signals.received))
    assert steps == [(0, False), (1, False), (2, True)]
    assert len(said) == 1 and "SIGTERM" in said[0] and "30 seconds" in said[0]
    for thread in threading.enumerate():  # the timer of the 30 seconds is gone
        if isinstance(thread, threading.Timer):
            thread.join(5)
            assert not thread.is_alive()


def test_a_long_block_is_left_when_time_is_up() -> None:
    started = time.monotonic()
    with (
        pytest.raises(Interrupted) as stop,
        Interruption(grace=0.2, on_signal=lambda _: None) as signals,
        signals.deferred(),
    ):
        signal.raise_signal(signal.SIGINT)
        while time.monotonic() - started < 20:
            sum(range(1000))
    assert time.monotonic() - started < 10 and stop.value.exit_code == 130


def test_what_has_read_that_a_signal_came_has_the_time_to_end() -> None:
    saved = False
    with (
        pytest.raises(Interrupted),
        Interruption(grace=0.1, on_signal=lambda _: None) as signals,
        signals.deferred(),
    ):
        signal.raise_signal(signal.SIGTERM)
        assert signals.received
        time.sleep(0.3)
        saved = True
    assert saved


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_shielded_block_comes_to_its_end(deferred: bool, moment: str) -> None:
    steps, said = [], []
    with (
        pytest.raises(Interrupted) as stop,
        Interruption(grace=0.1, on_signal=said.append) as signals,
        signals.deferred() if deferred else nullcontext(),
    ):
        if moment == "before":
            with pytest.raises(Interrupted) if not deferred else nullcontext():
                signal.raise_signal(signal.SIGTERM)
        with signals.shielded(), signals.shielded():  # the inner one changes nothing
            if moment == "within":
                signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
            steps.append("saved")
        steps.append("went on")
        until = time.monotonic() + 20
        while time.monotonic() < until:  # the deferred block's grace counts from here
            time.sleep(0.01)
        steps.append("not reached")
    assert stop.value.exit_code == 128 + signal.SIGTERM
    assert steps == ["saved", "went on"][: 1 + deferred]
    assert [("checkpoint" in text) for text in said] == [moment == "within"] * len(said)
    assert time.monotonic() < until if deferred else True


@pytest.mark.parametrize("deferred", [True, False])
def test_an_error_of_code_left_in_the_middle_is_the_signals(deferred: bool) -> None:
    with (
        pytest.raises(Interrupted) as stop,
        Interruption(grace=0.1, on_signal=lambda _: None) as signals,
        signals.deferred() if deferred else nullcontext(),
    ):
        try:
            signal.raise_signal(signal.SIGTERM)
            while True:
                time.sleep(0.01)
        finally:
            raise RuntimeError("cannot clean up")
    assert stop.value.exit_code == 143
    assert isinstance(stop.value.__cause__, RuntimeError)


def test_an_error_while_a_signal_waits_is_its_own() -> None:
    with (
        pytest.raises(OSError, match="disk full"),
        Interruption(grace=30, on_signal=lambda _: None) as signals,
        signals.deferred(),
    ):
        signal.raise_signal(signal.SIGTERM)
        raise OSError("disk full")


@pytest.mark.parametrize("block", ["deferred", "shielded"])
@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")])
def test_a_second_signal_ends_the_process_at_once(first: str, second: str, block: str) -> None:
    program = (
        "import runpy, signal, time\n"
        f"module = runpy.run_path({interruption.__file__!r})\n"
        f"with module['Interruption'](grace=60) as signals, signals.{block}():\n"
        f"    signal.raise_signal(signal.{first})\n"
        f"    signal.raise_signal(signal.{second})\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=30, capture_output=True)
    assert done.returncode == 128 + getattr(signal, second)


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
