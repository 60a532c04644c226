"""Messages on stderr, without colour codes in files and pipes."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any, TextIO

from torchrl._utils import logger as torchrl_logger

__all__ = ["set_up_messages"]

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Plain(logging.Formatter):
    """A formatter's lines, without colours where the stream is no terminal."""

    def __init__(self, formatter: logging.Formatter, stream: TextIO) -> None:
        super().__init__()
        self._formatter, self._stream = formatter, stream

    def format(self, record: logging.LogRecord) -> str:
        return _plain(self._formatter.format(record), self._stream)


def set_up_messages() -> None:
    """Send TorchRL's log to stderr; keep it and warnings free of colour codes in files and pipes.

    By default the log goes to stdout, among a program's results, and both are coloured everywhere.
    ``NO_COLOR`` turns colours off in terminals too.
    """
    for handler in torchrl_logger.handlers:
        formatter = handler.formatter
        if type(handler) is logging.StreamHandler and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
        if (
            isinstance(handler, logging.StreamHandler)
            and formatter is not None
            and not isinstance(formatter, _Plain)
        ):
            handler.setFormatter(_Plain(formatter, handler.stream))
    formatted = warnings.formatwarning
    if getattr(formatted, "plain", False):
        return

    def format_warning(*args: Any, **kwargs: Any) -> str:
        return _plain(formatted(*args, **kwargs), sys.stderr)

    format_warning.plain = True  # type: ignore[attr-defined]
    warnings.formatwarning = format_warning


def _plain(text: str, stream: TextIO) -> str:
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return text
    return _COLOUR.sub("", text)
