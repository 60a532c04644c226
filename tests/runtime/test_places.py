"""The home folder, also where there is none; output without colours where there is no terminal."""

from __future__ import annotations

import io
import logging
import os
import pwd
import sys
import tempfile
import warnings
from pathlib import Path

import gymnasium
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchrl._utils import logger as torchrl_logger

from rambo_trl.runtime import terminal
from rambo_trl.runtime.drawing import literal
from rambo_trl.runtime.places import cache_folder, ensure_home, expand_home


def test_a_process_of_an_unknown_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"uid not found: {uid}")

    for key in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(key, "x")  # so that all are as before after the test
        monkeypatch.delenv(key)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert str(expand_home("~/a")) == "~/a"  # no traceback
    ensure_home()
    assert Path.home().parent == tmp_path and os.environ["LOGNAME"]
    assert cache_folder().is_relative_to(tmp_path)


def test_a_home_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_home()
    assert expand_home("~/a b") == tmp_path / "a b"
    assert cache_folder() == tmp_path / ".cache/rambo_trl"
    monkeypatch.setenv("HOME", "/nonexistent")  # as in many containers
    assert cache_folder().parent == Path(tempfile.gettempdir())


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "coloured"), [(io.StringIO, False), (Screen, True)])
def test_colours_go_to_terminals_only(
    kind: type[io.StringIO], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = kind(), kind()
    streams = (own for own in torchrl_logger.handlers if type(own) is logging.StreamHandler)
    formatter = next(streams).formatter
    if isinstance(formatter, terminal._Plain):  # another test has been here
        formatter = formatter._formatter
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    monkeypatch.setattr(torchrl_logger, "handlers", [handler])
    monkeypatch.setattr(warnings, "formatwarning", lambda message, *args: f"{message}\n")
    monkeypatch.setattr(sys, "stderr", err)
    terminal.set_up_messages()
    terminal.set_up_messages()

    def say() -> str:
        out.truncate(0)
        torchrl_logger.warning("a line")
        return out.getvalue() + warnings.formatwarning(caught[0].message, UserWarning, "a", 1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium.logger.warn("another")
    text = say()
    assert "a line" in text and "another" in text and ("\x1b[" in text) == coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in say()


@pytest.mark.parametrize("name", ["x_$^_$", "$", "$x$", r"a\$b$", "caf\udce9 $y_$", "plain"])
def test_a_name_is_drawn_as_it_stands(name: str) -> None:
    figure = Figure()
    text = figure.text(0, 0, literal(name))
    text.get_window_extent(FigureCanvasAgg(figure).get_renderer())  # a formula would fail here
    shown, formula = text._preprocess_math(text.get_text())
    assert not formula and shown == name.replace("\udce9", "?")


def test_the_log_goes_to_stderr_and_stdout_is_the_program_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(torchrl_logger, "handlers", [logging.StreamHandler(out)])
    terminal.set_up_messages()
    torchrl_logger.warning("a remark")
    assert not out.getvalue() and err.getvalue() == "a remark\n"
