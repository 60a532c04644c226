"""The import's part of ``python -m rambo_trl.data``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from rambo_trl.data.log_files import find_logs, is_log, log_columns
from rambo_trl.data.log_import import import_logs
from rambo_trl.data.log_settings import LogImport
from rambo_trl.data.log_store import check_free, store_log
from rambo_trl.runtime.progress import busy

__all__ = ["add_import_options", "asks_for_import", "attach_expressions", "run_import"]

_EXPRESSIONS = ("--reward", "--terminal", "--truncated", "--missing")
#: the options are the settings, whose bounds of actions other data have too
_SETTINGS = {each.name for each in fields(LogImport)}
_OWN = (_SETTINGS | {"out"}) - {"action_low", "action_high"}


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a Minari set of logs."""
    group = parser.add_argument_group(
        "import of logs",
        "With --out, CSV and Parquet files (or patterns of their names) become a Minari set. A "
        "step leads from a row to the next one of its episode; an expression is, for instance, "
        "'-abs(next.temp_C - 60) - 0.001 * power_W'.",
    )
    add = group.add_argument
    add("--out", metavar="NAME", help="name of the new set, such as my/set-v0")
    add("--observation", nargs="+", metavar="COLUMN", help="columns of the observation")
    add("--action", nargs="+", metavar="COLUMN", help="columns of the action")
    add(
        "--reward",
        metavar="EXPRESSION",
        help="column, or expression: names are columns of the row that a step starts from, "
        "next.NAME of the row that it leads to",
    )
    add("--episode", metavar="COLUMN", help="column with the episodes' numbers or names")
    add("--time", metavar="COLUMN", help="column with seconds or dates")
    add(
        "--max-gap",
        type=float,
        metavar="SECONDS",
        help="rows further apart are no neighbours (default: 1.5 times the median)",
    )
    add("--terminal", metavar="EXPRESSION", help="1 where an episode ended by itself")
    add(
        "--truncated",
        metavar="EXPRESSION",
        help="1 where an episode was cut off (default: at the last row of each --episode)",
    )
    add(
        "--action-in",
        choices=("from", "to"),
        default="from",
        help="the row of a step that holds its action: the one it starts from (default), or the "
        "one it leads to",
    )
    add(
        "--end-in",
        choices=("from", "to"),
        help="likewise of --terminal and --truncated (default: to)",
    )
    add("--per-file", action="store_true", help="no episode goes on in the next file")
    add(
        "--fill",
        type=int,
        default=0,
        metavar="N",
        help="a missing reading is the one before, over at most N rows (default: 0)",
    )
    add("--missing", nargs="+", default=(), metavar="VALUE", help="also stand for no reading")
    add(
        "--range",
        dest="ranges",
        nargs="+",
        default=(),
        metavar="COLUMN=LOW:HIGH",
        help="readings outside are missing",
    )
    add("--keep-constant", action="store_true", help="keep observations that never change")
    add("--separator", help="between cells (default: found in the header)")
    add(
        "--decimal", choices=(".", ","), help="decimal point or comma (default: found in the cells)"
    )
    add("--encoding", help="of text files (default: UTF-8, else Windows' own)")
    add("--skip", type=int, default=0, metavar="N", help="lines before the one with the names")
    add("--time-format", help="of dates, such as '%%d.%%m.%%Y %%H:%%M:%%S'")


def attach_expressions(arguments: Sequence[str]) -> list[str]:
    """Let a value begin with a minus sign, as rewards do, which argparse takes for an option."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] in _EXPRESSIONS and word.startswith("-") and word[:2] != "--":
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def asks_for_import(options: argparse.Namespace) -> bool:
    """Whether an option of the import is given, or a name is that of a log."""
    return any(getattr(options, key) not in (None, 0, (), False, "from") for key in _OWN) or any(
        is_log(name) for name in options.names
    )


def run_import(options: argparse.Namespace) -> str:
    """Make a Minari set of logs; return what to print.

    Raises:
        ValueError: if the logs or the options do not do.
        OSError: if the set cannot be written.
    """
    wrong = [
        f"--{key.replace('_', '-')}"
        for key in ("figure", "memmap", "observation_keys", "max_episode_steps", "reward_shift")
        if getattr(options, key)
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: import the log first, then give it with the set")
    needed = [
        f"--{key}"
        for key in ("out", "observation", "action", "reward")
        if not getattr(options, key)
    ]
    if needed:
        files = find_logs(options.names)
        known = log_columns(
            files[0], separator=options.separator, encoding=options.encoding, skip=options.skip
        )
        raise ValueError(
            f"to import {files[0]} give {', '.join(needed)}. Its columns: {', '.join(known)}"
        )
    check_free(options.out)
    given = {key: getattr(options, key) for key in _SETTINGS}
    settings = LogImport(**given | {"ranges": dict(_range(text) for text in options.ranges)})
    env_id = None if options.env_id == "none" else options.env_id
    with busy("reading the log"):
        imported = import_logs(options.names, settings, name=options.out, env_id=env_id)
    with busy(f"writing {options.out}"):
        folder = store_log(imported, options.out)
    return (
        f"{imported.report}\n\nwritten to   {folder}\n"
        f"look at it   python -m rambo_trl.data {options.out}\n"
        f"train        python recipes/rambo.py dataset={options.out}"
    )


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.rpartition("=")
    low, colon, high = bounds.partition(":")
    try:
        if not (name and colon):
            raise ValueError
        return name, (float(low or "-inf"), float(high or "inf"))
    except ValueError:
        raise ValueError(
            f"--range: give COLUMN=LOW:HIGH, such as temp_C=0:120, got {text!r}"
        ) from None
