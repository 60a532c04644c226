"""Arithmetic over a log's columns, for rewards and ends: no Python is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rambo_trl.data.log_files import Column, check_names

__all__ = ["LogExpression"]

_Values = np.ndarray

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "where": (3, lambda test, a, b: np.where(np.isnan(test), np.nan, np.where(test != 0, a, b))),
}
_HELP = (
    "numbers, names of columns (in quotes where they hold more than letters, digits and "
    "underscores), + - * / ** %, comparisons, and, or, not, next.COLUMN, and "
    + ", ".join(f"{name}()" for name in (*_FUNCTIONS, "next"))
)


class LogExpression:
    """An expression over the columns of a log, such as ``-abs(next.temp_C - 60) - 1e-3 * power_W``.

    A name is a column's value in the row itself, ``next.NAME`` or ``next("NAME")`` that in the
    following row. Names with other characters stand in quotes, ``"temp [C]"``; quoted text that no
    column is called is a word, to compare a column of text with: ``state == "TRIP"``. Comparisons
    give 0 and 1. What depends on a missing value is missing.

    The text is parsed into these few operations. Everything else is refused.

    Args:
        text: the expression, or the name of a column.
        known: the names of all columns.
        option: what messages call it.

    Attributes:
        columns: the names that are read.

    Raises:
        ValueError: if it is no such expression or names no column.

    Examples:
        >>> import numpy as np
        >>> from rambo_trl.data.log_files import Column
        >>> reward = LogExpression("-abs(next.temp_C - 60)", ["temp_C"], "--reward")
        >>> reward({"temp_C": Column(np.array([50.0, 58.0, 61.0]))})
        array([-2., -1., nan])
    """

    def __init__(self, text: str, known: Sequence[str], option: str) -> None:
        self.text, self.option, self._known = text, option, tuple(known)
        self.columns: list[str] = []
        self._follows: np.ndarray | None = None
        if text in self._known:
            self._tree: ast.expr = ast.Constant(text)
        else:
            try:
                self._tree = ast.parse(text.strip(), mode="eval").body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                check_names([text] * text.isidentifier(), self._known, "the log", option)
                raise ValueError(
                    f"{option}: {text!r} is no column, nor an expression of {_HELP}"
                ) from None
        try:
            self._check(self._tree)
        except RecursionError:
            raise ValueError(f"{option}: the expression is nested too deeply") from None

    def __call__(
        self, columns: Mapping[str, Column], follows: np.ndarray | None = None
    ) -> np.ndarray:
        """The value in each row, float64 [N]; NaN where a value is missing.

        Args:
            columns: by name, those in :attr:`columns` among them, [N] each.
            follows: bool [N], rows of which the next one is the following row; all where None.

        Raises:
            ValueError: if text is used as a number.
        """
        self._follows = follows
        with np.errstate(all="ignore"):
            value = self._value(self._tree, columns)
        size = len(next(iter(columns.values())).values)
        value = np.broadcast_to(np.asarray(value, np.float64), size).copy()
        value[~np.isfinite(value)] = np.nan
        return value

    def _column_of(self, node: ast.AST) -> str | None:
        """The column that a name, a quoted text or a dotted name means; None if it is none."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value if node.value in self._known else None
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            return dotted if dotted in self._known else None
        return None

    def _following(self, node: ast.AST) -> ast.expr | None:
        """What ``next.NAME`` or ``next(...)`` asks the following row for."""
        if isinstance(node, ast.Attribute) and self._column_of(node) is None:
            dotted = ast.unparse(node)
            if dotted.startswith("next."):
                return ast.Constant(dotted.removeprefix("next."))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "next"
            and len(node.args) == 1
            and not node.keywords
        ):
            return node.args[0]
        return None

    def _check(self, node: ast.AST, *, word: bool = False) -> None:
        """Refuse what is no such expression, and gather the columns."""
        following = self._following(node)
        if following is not None:
            self._check(following)
            return
        name = self._column_of(node)
        if name is None and isinstance(node, ast.Constant) and isinstance(node.value, str):
            if word:
                return
            name = node.value
        if name is not None:
            check_names([name], self._known, "the log", self.option)
            self.columns += [name] * (name not in self.columns)
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            parts: list[ast.expr] = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd | ast.Not):
            parts = [node.operand]
        elif isinstance(node, ast.BoolOp):
            parts = node.values
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            equal = len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq)
            for part in (node.left, *node.comparators):
                self._check(part, word=equal)
            return
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _FUNCTIONS
            and not node.keywords
        ):
            count, parts = _FUNCTIONS[node.func.id][0], node.args
            if len(parts) != count:
                raise ValueError(f"{self.option}: {node.func.id}() takes {count} values")
        else:
            raise ValueError(
                f"{self.option}: {ast.unparse(node)!r} is none of what an expression may hold: "
                f"{_HELP}"
            )
        for part in parts:
            self._check(part)

    def _value(self, node: ast.AST, columns: Mapping[str, Column]) -> Any:
        following = self._following(node)
        if following is not None:
            value = self._value(following, columns)
            return self._shift(value)
        name = self._column_of(node)
        if name is not None or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            name = name or ast.literal_eval(node)
            column = columns[name]
            if column.words is not None:
                raise ValueError(
                    f"{self.option}: column {name!r} is text ({', '.join(column.words)}): compare "
                    f'it with one of these, as in {name} == "{column.words[0]}"'
                )
            return column.values
        if isinstance(node, ast.Constant):
            return np.float64(float(node.value))  # type: ignore[arg-type]  # no whole numbers, whose powers may be endless
        if isinstance(node, ast.BinOp):
            left, right = (self._value(part, columns) for part in (node.left, node.right))
            return _BINARY[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, columns)
            if isinstance(node.op, ast.Not):
                return np.where(np.isnan(value), np.nan, value == 0)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BoolOp):
            parts = [self._value(part, columns) for part in node.values]
            flags = [np.where(np.isnan(part), np.nan, part != 0) for part in parts]
            combine = np.minimum if isinstance(node.op, ast.And) else np.maximum
            result = flags[0]
            for flag in flags[1:]:
                result = combine(result, flag)
            return result
        if isinstance(node, ast.Compare):
            return self._compared(node, columns)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        return _FUNCTIONS[node.func.id][1](*(self._value(part, columns) for part in node.args))

    def _shift(self, value: Any) -> Any:
        """The following row's values."""
        if not np.ndim(value):
            return value
        shifted = np.append(value[1:], np.nan)
        return shifted if self._follows is None else np.where(self._follows, shifted, np.nan)

    def _compared(self, node: ast.Compare, columns: Mapping[str, Column]) -> Any:
        result: Any = np.float64(1)
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            pair = self._word_pair(left, right, columns)
            if pair is None:
                pair = self._value(left, columns), self._value(right, columns)
            unknown = np.isnan(pair[0]) | np.isnan(pair[1])
            result = np.minimum(result, np.where(unknown, np.nan, _COMPARE[type(op)](*pair)))
        return result

    def _word_pair(
        self, left: ast.expr, right: ast.expr, columns: Mapping[str, Column]
    ) -> tuple[Any, Any] | None:
        """The two sides of a comparison of a column with a word, as numbers; None if it is none."""
        for side, other in ((left, right), (right, left)):
            if not (isinstance(other, ast.Constant) and isinstance(other.value, str)):
                continue
            if other.value in self._known:
                continue
            following = self._following(side)
            name = self._column_of(side if following is None else following)
            column = None if name is None else columns[name]
            if column is None or column.words is None or other.value not in column.words:
                words = "" if column is None else f", {name} holds {_told(column)}"
                raise ValueError(
                    f"{self.option}: {other.value!r} is neither a column nor a word of one{words}"
                )
            values = column.values
            if following is not None:
                values = self._shift(values)
            return values, np.float64(column.words.index(other.value))
        return None


def _told(column: Column) -> str:
    return "numbers" if column.words is None else ", ".join(column.words)
