"""Arithmetic over columns: values by hand, and nothing but arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rambo_trl.data.log_expression import LogExpression
from rambo_trl.data.log_files import Column

NAN = math.nan
COLUMNS = {
    "temp": Column(np.array([50.0, 58.0, NAN, 61.0])),
    "power [W]": Column(np.array([100.0, 200.0, 300.0, 400.0])),
    "tank.level": Column(np.array([1.0, 2.0, 3.0, 4.0])),
    "state": Column(np.array([1.0, 0.0, NAN, 2.0]), ("IDLE", "RUN", "TRIP")),
}


def value(text: str, follows: list[bool] | None = None) -> list[float]:
    expression = LogExpression(text, list(COLUMNS), "--reward")
    columns = {name: COLUMNS[name] for name in expression.columns} or COLUMNS
    return expression(columns, None if follows is None else np.array(follows)).tolist()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("temp", [50, 58, NAN, 61]),
        ("power [W]", [100, 200, 300, 400]),
        ("-1", [-1, -1, -1, -1]),
        ("-abs(temp - 60)-0.01*'power [W]'", [-11, -4, NAN, -5]),
        ("next.temp - temp", [8, NAN, NAN, NAN]),
        ('next("power [W]")', [200, 300, 400, NAN]),
        ("next(-abs(temp - 60))", [-2, NAN, -1, NAN]),
        ("next.tank.level + tank.level", [3, 5, 7, NAN]),
        ("2 ** tank.level % 5", [2, 4, 3, 1]),
        ("temp > 55", [0, 1, NAN, 1]),
        ("55 < temp <= 60", [0, 1, NAN, 0]),
        ("temp > 55 and not tank.level > 3", [0, 1, NAN, 0]),
        ("temp < 55 or tank.level == 4", [1, 0, NAN, 1]),
        ("state == 'TRIP'", [0, 0, NAN, 1]),
        ("'RUN' != state", [0, 1, NAN, 1]),
        ("next.state == 'IDLE'", [1, NAN, 0, NAN]),
        ("where(temp > 55, 1, -tank.level)", [-1, 1, NAN, 1]),
        ("max(tank.level, 2) + min(tank.level, 2)", [3, 4, 5, 6]),
        ("1 / (tank.level - 1)", [NAN, 1, 0.5, 1 / 3]),
        ("sqrt(tank.level) * exp(0) + log(1)", [1, 2**0.5, 3**0.5, 2]),
        ("9 ** 9 ** 9", [NAN] * 4),
    ],
)
def test_values(text: str, want: list[float]) -> None:
    np.testing.assert_allclose(value(text), want, rtol=1e-12)


def test_the_following_row_is_known_within_an_episode_only() -> None:
    got = value("next.tank.level", [True, False, True, False])
    np.testing.assert_array_equal(got, [2, NAN, 4, NAN])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tmep", "no column 'tmep'; did you mean temp"),
        ("-abs(tempp)", "no column 'tempp'; did you mean temp"),
        ("next.tmep", "no column 'tmep'; did you mean temp"),
        ("power_W", r"no column 'power_W'; did you mean power \[W\]"),
        ("state + 1", r"'state' is text \(IDLE, RUN, TRIP\): compare it"),
        ("state == 'TRIPP'", "'TRIPP' is neither a column nor a word of one, state holds IDLE"),
        ("temp == 'TRIP'", "'TRIP' is neither .* temp holds numbers"),
        ("abs(temp, 1)", r"abs\(\) takes 1 values"),
        ("temp -", "is no column, nor an expression"),
        ("", "is no column, nor an expression"),
        ("__import__('os').system('true')", "none of what an expression may hold"),
        ("(lambda: 1)()", "none of what"),
        ("[temp for temp in (1,)]", "none of what"),
        ("temp.__class__", "none of what"),
        ("temp if temp else temp", "none of what"),
        ("open('x')", "none of what"),
        ("temp[0]", "none of what"),
        ("f'{temp}'", "none of what"),
        ("next(temp, 1)", "none of what"),
        ("-" * 5000 + "1", "nested too deeply|no column, nor"),
    ],
)
def test_all_else_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^--reward: .*{words}" if text else words) as caught:
        value(text)
    assert "\n" not in str(caught.value)
