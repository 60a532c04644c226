"""CSV and Parquet logs as columns of numbers and of times."""

from __future__ import annotations

import codecs
import csv
import glob
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rambo_trl.data.columns import listed
from rambo_trl.data.names import nearest, nearest_files
from rambo_trl.runtime.places import expand_home

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Column",
    "LogTable",
    "arrow",
    "check_names",
    "find_logs",
    "is_log",
    "is_text",
    "log_columns",
    "read_logs",
    "some_cells",
    "without_empty",
]

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".csv.zst", ".csv.bz2")
_SEPARATORS = ",;\t|"
_SAMPLE = 1 << 18  # bytes of a file in which its header, separator and encoding are looked for
#: what stands for no reading, in lower case
_EMPTY = ("", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "inf", "-inf")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_MAX_WORDS = 20  # kinds of a column of text


@dataclass
class Column:
    """A column of a log.

    Attributes:
        values: float64 [N], NaN where there is no reading; of a column of text the place of its
            word in ``words``.
        words: the words of a column of text, sorted; None of a column of numbers.
        unreadable: cells that are no number, with how often they occur.
    """

    values: np.ndarray
    words: tuple[str, ...] | None = None
    unreadable: dict[str, int] = field(default_factory=dict)


@dataclass
class LogTable:
    """The columns of logs that are used, the rows of all files one after another.

    Attributes:
        columns: by name, numbers or words.
        raw: by name, Arrow columns as they were read: times and episodes.
        file: int64 [N], the number of each row's file.
        files: their paths.
        malformed: lines that do not have as many cells as the header, which are left out.
        notes: how the files were read, where it was not plain.
    """

    columns: dict[str, Column]
    raw: dict[str, Any]
    file: np.ndarray
    files: tuple[Path, ...]
    malformed: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.file)


@dataclass(frozen=True)
class _Format:
    """How a text file is laid out."""

    names: tuple[str, ...]
    separator: str
    encoding: str


def arrow() -> Any:
    """Pyarrow with the modules that logs need, which it does not import by itself.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        for module in ("compute", "csv", "parquet"):
            importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise ValueError('reading logs needs pyarrow: pip install "rambo_trl[logs]"') from None
    return importlib.import_module("pyarrow")


def is_log(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a CSV or Parquet file, or a pattern of some."""
    return os.fspath(name).lower().endswith((*_PARQUET, *_TEXT))


def find_logs(patterns: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """The files that names and patterns (``logs/*.csv``) mean, each once, sorted in a pattern.

    Raises:
        ValueError: if a name or a pattern means no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = expand_home(pattern)
        found = (
            [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
        found = [each for each in found if each.is_file()]
        if not found:
            near = nearest_files(path)
            told = f"; there is {listed(near)}" if near else ""
            raise ValueError(f"no file {os.fspath(pattern)!r}{told}")
        files |= dict.fromkeys(found)
    return tuple(files)


@contextmanager
def _reading(path: Path, kind: str = "", hint: str = "") -> Iterator[None]:
    """Say in one line why a file cannot be read."""
    try:
        yield
    except (arrow().ArrowException, OSError, UnicodeDecodeError, LookupError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read{kind}: {told}{hint}") from None


def log_columns(
    path: Path, *, separator: str | None = None, encoding: str | None = None, skip: int = 0
) -> tuple[str, ...]:
    """The names of a file's columns."""
    if path.suffix.lower() not in _PARQUET:
        return _format(path, separator, encoding, skip).names
    with _reading(path, " as Parquet"):
        return tuple(arrow().parquet.read_schema(path).names)


def _format(path: Path, separator: str | None, encoding: str | None, skip: int) -> _Format:
    """Look at the head of a text file."""
    with _reading(path), arrow().input_stream(str(path), compression="detect") as file:
        head = file.read(_SAMPLE)
    if encoding is None:
        encoding = "utf-8"
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        else:
            try:
                codecs.getincrementaldecoder("utf-8")().decode(head)
            except UnicodeDecodeError:
                encoding = "cp1252"  # of Windows
    with _reading(path, hint=": give --encoding"):
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    lines = text.removeprefix("\ufeff").splitlines()
    if len(lines) <= skip:
        raise ValueError(f"{path} has no line with the names of its columns")
    header = lines[skip]
    if separator is None:
        separator = max(_SEPARATORS, key=lambda s: len(next(csv.reader([header], delimiter=s))))
    cells = next(csv.reader([header], delimiter=separator))
    names = tuple(cell.strip() or f"column {i + 1}" for i, cell in enumerate(cells))
    return _Format(names, separator, encoding)


def check_names(wanted: Sequence[str], known: Sequence[str], where: str, option: str) -> None:
    """Refuse names that are not those of columns, with the nearest ones.

    Raises:
        ValueError: naming the option.
    """
    for name in wanted:
        count = list(known).count(name)
        if count == 1:
            continue
        if count:
            raise ValueError(f"{where} has {count} columns called {name!r}: give each its own name")
        lower = {other.lower(): other for other in known}
        key = name.lower()
        close = [key] if key in lower else nearest(key, lower, cutoff=0.5)
        near = [lower[n] for n in close or [n for n in lower if key in n]]
        told = f"did you mean {' or '.join(near)}?" if near else f"its columns: {', '.join(known)}"
        raise ValueError(f"{option}: {where} has no column {name!r}; {told}")


def read_logs(
    files: Sequence[Path],
    numbers: Sequence[str],
    raw: Sequence[str] = (),
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    skip: int = 0,
    missing: Sequence[str] = (),
) -> LogTable:
    """Read the columns of all files that are used.

    Args:
        files: CSV files, compressed or not, and Parquet files.
        numbers: columns of numbers or words.
        raw: columns that are kept as they are.
        separator: between the cells of CSV files; of each file the one that makes most columns
            where None.
        decimal: ``"."`` or ``","``; where None the comma if cells of numbers have it, and no point.
        encoding: of CSV files; UTF-8 where None, else UTF-16 with its mark, else Windows' own.
        skip: lines before the one with the names.
        missing: cells that stand for no reading, numbers or words, besides the usual ones.

    Raises:
        ValueError: if a file cannot be read, or a column is neither numbers nor some words.
    """
    wanted = list(dict.fromkeys([*numbers, *raw]))
    tables, notes, malformed = [], [], 0
    for path in files:
        if path.suffix.lower() in _PARQUET:
            check_names(wanted, log_columns(path), str(path), "columns")
            with _reading(path, " as Parquet"):
                tables.append(arrow().parquet.read_table(path, columns=wanted))
            continue
        layout = _format(path, separator, encoding, skip)
        check_names(wanted, layout.names, str(path), "columns")
        table, bad = _read_text(path, layout, wanted, skip)
        tables.append(table)
        malformed += bad
        told = [f"separated by {layout.separator!r}"] * (layout.separator != ",")
        told += [f"encoded in {layout.encoding}"] * (layout.encoding != "utf-8")
        notes += [", ".join(told)] * bool(told)
    parts = {name: [table[name] for table in tables] for name in wanted}
    return LogTable(
        {n: _column(parts[n], n, decimal, missing, notes) for n in dict.fromkeys(numbers)},
        {name: parts[name] for name in raw},
        np.repeat(np.arange(len(files)), [len(table) for table in tables]),
        tuple(files),
        malformed,
        tuple(dict.fromkeys(notes)),
    )


def _read_text(path: Path, layout: _Format, wanted: list[str], skip: int) -> tuple[Any, int]:
    """Read cells as text, so that no cell far below can be of another kind than those above."""
    pa = arrow()
    bad = 0

    def leave_out(row: Any) -> str:
        nonlocal bad
        bad += 1
        return "skip"

    # a column of a twice given name is not wanted, but must not be called like another
    names = [n if layout.names.index(n) == i else f"{n} #{i}" for i, n in enumerate(layout.names)]
    with _reading(path):
        try:
            table = pa.csv.read_csv(
                path,
                read_options=pa.csv.ReadOptions(
                    column_names=names, skip_rows=skip + 1, encoding=layout.encoding
                ),
                parse_options=pa.csv.ParseOptions(
                    delimiter=layout.separator, invalid_row_handler=leave_out
                ),
                convert_options=pa.csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return pa.table({name: pa.array([], pa.string()) for name in wanted}), bad
            if layout.encoding == "utf-8" and "UTF8" in str(error):  # further down than the sample
                windows = replace(layout, encoding="cp1252")
                return _read_text(path, windows, wanted, skip)
            raise
    return table, bad


def _column(
    parts: list[Any], name: str, decimal: str | None, missing: Sequence[str], notes: list[str]
) -> Column:
    """Make numbers of a column, else the places of words."""
    pa = arrow()
    if not any(is_text(part.type) for part in parts):
        try:
            numbers = [part.cast(pa.float64()).to_numpy() for part in parts]
        except pa.ArrowException:
            kinds = " or ".join(dict.fromkeys(str(part.type) for part in parts))
            raise ValueError(
                f"column {name!r} of type {kinds} holds no numbers: give --time for a column of "
                "dates, and leave out others"
            ) from None
        column = Column(np.concatenate(numbers).astype(np.float64))
    else:
        cells = pa.chunked_array(
            [chunk for part in parts for chunk in part.cast(pa.string()).chunks], pa.string()
        )
        column = _of_text(cells, name, decimal, missing, notes)
    column.values[~np.isfinite(column.values)] = np.nan
    if column.words is None:
        for text in missing:
            with suppress(ValueError):
                column.values[column.values == float(text)] = np.nan
    return column


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, in whatever form."""
    types = arrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind))


def without_empty(cells: Any, missing: Sequence[str] = ()) -> Any:
    """Arrow text without space around it, null where a cell stands for no reading."""
    pc = arrow().compute
    cells = pc.utf8_trim_whitespace(cells)
    empty = arrow().array([*_EMPTY, *(text.lower() for text in missing)])
    return pc.if_else(pc.is_in(pc.utf8_lower(cells), empty), None, cells)


def _of_text(
    cells: pa.ChunkedArray,
    name: str,
    decimal: str | None,
    missing: Sequence[str],
    notes: list[str],
) -> Column:
    pa = arrow()
    pc = pa.compute
    cells = without_empty(cells, missing)
    if cells.null_count == len(cells):
        return Column(np.full(len(cells), np.nan))
    plain = cells
    if decimal != "." and pc.any(pc.match_substring(cells, ",")).as_py():
        commas = pc.replace_substring(cells, ",", ".")
        with_point = pc.any(pc.match_substring_regex(cells, r"^[+-]?\d+\.\d+$")).as_py()
        with_comma = pc.any(pc.match_substring_regex(commas, _NUMBER)).as_py()
        if decimal == "," or (with_comma and not with_point):
            plain = commas
            notes.append("with decimal commas")
    try:
        return Column(plain.cast(pa.float64()).to_numpy().astype(np.float64))
    except pa.ArrowInvalid:
        pass
    lower = pc.utf8_lower(cells)
    if pc.all(pc.is_in(pc.drop_null(lower), pa.array(["true", "false"]))).as_py():
        return Column(pc.equal(lower, "true").cast(pa.float64()).to_numpy())
    is_number = pc.match_substring_regex(plain, _NUMBER)
    share = float(np.mean(pc.drop_null(is_number).to_numpy(zero_copy_only=False)))
    if share == 0:
        return _words(cells, name)
    odd = pc.value_counts(cells.filter(pc.invert(is_number)))
    unreadable = {str(each["values"]): int(each["counts"]) for each in odd.to_pylist()}
    if share < 0.5:
        raise ValueError(
            f"column {name!r}: {100 * (1 - share):.0f} % of the cells are no numbers, such as "
            f"{some_cells(unreadable)}: correct the log, or leave the column out"
        )
    numbers = pc.if_else(is_number, plain, None).cast(pa.float64())
    return Column(numbers.to_numpy().astype(np.float64), None, unreadable)


def _words(cells: Any, name: str) -> Column:
    """The places of a column's words among all of them, sorted."""
    pa = arrow()
    pc = pa.compute
    words = sorted(pc.drop_null(pc.unique(cells)).to_pylist())
    if len(words) > _MAX_WORDS:
        raise ValueError(
            f"column {name!r} is text with {len(words)} different values, such as "
            f"{some_cells(words)}: leave it out, or write numbers (dates belong to --time)"
        )
    places = pc.index_in(cells, pa.array(words)).cast(pa.float64())
    return Column(places.to_numpy().astype(np.float64), tuple(words))


def some_cells(cells: Iterable[str]) -> str:
    """Some cells in quotes, and how many more there are."""
    return listed([repr(cell) for cell in cells])
