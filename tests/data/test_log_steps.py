"""The steps of a log against a plain loop over its rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rambo_trl.data.log_steps import Side, cut_steps

#: a gap before it, a new episode, read, acted, rewarded, terminal, truncated
Row = tuple[bool, bool, bool, bool, bool, float, float]


def draw(rng: np.random.Generator) -> list[Row]:
    """Up to 25 rows, in which anything may be missing."""

    def rarely(share: float) -> bool:
        return bool(rng.random() < share)

    def flag() -> float:
        return float(rng.choice([0, 1, math.nan], p=[0.75, 0.15, 0.1]))

    size = int(rng.integers(1, 26))
    return [
        (rarely(0.1), rarely(0.1), *(not rarely(0.1) for _ in range(3)), flag(), flag())
        for _ in range(size)
    ]


def loop(rows: list[Row], end_in: Side, bounded: bool, clock: bool) -> list[list]:
    """Pieces as lists of (row, terminated, truncated, whether the next row is known), and whole."""
    count = len(rows)
    group = np.cumsum([row[1] for row in rows]).tolist()
    neighbour = [
        i + 1 < count and group[i + 1] == group[i] and not rows[i + 1][0] for i in range(count)
    ]

    def ends(i: int) -> bool:
        return rows[i][5] == 1 or (clock and rows[i][6] == 1)

    pieces: list[list] = []
    piece: list = []
    started = False

    def close(whole: bool) -> None:
        nonlocal piece
        if piece:
            pieces.append([piece, whole and started])
        piece = []

    for i in range(count):
        first = i == 0 or group[i] != group[i - 1]
        comes = i > 0 and neighbour[i - 1]  # from the row before

        if end_in == "to":
            over = ends(i)
            fresh = comes and ends(i - 1) and not over
        else:
            over = comes and ends(i - 1)
            fresh = i > 1 and comes and neighbour[i - 2] and ends(i - 2) and not over
        if not piece:
            started = (first and bounded) or fresh
        flag_row = i + 1 if end_in == "to" else i
        known = neighbour[i] or end_in == "from"
        terminal = known and rows[flag_row][5] == 1
        if over or not (neighbour[i] or terminal):
            close(False)
            continue
        flags = [rows[flag_row][5], *([rows[flag_row][6]] if clock else [])]
        cut = clock and rows[flag_row][6] == 1
        if not clock and bounded:
            cut = neighbour[i] and (i + 2 == count or group[i + 2] != group[i])
            cut = cut and not (end_in == "from" and rows[i + 1][5] == 1)
        next_read = neighbour[i] and rows[i + 1][2]
        good = rows[i][2] and rows[i][3] and rows[i][4] and not any(map(math.isnan, flags))
        if not good or not (next_read or terminal):
            close(False)
            continue
        cut = cut and not terminal
        piece.append((i, terminal, cut, next_read))
        if terminal or cut:
            close(True)
        elif not neighbour[i]:
            close(False)
    if piece:
        pieces.append([piece, False])
    return pieces


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("end_in", ["from", "to"])
def test_steps_are_those_of_a_plain_loop(end_in: Side, clock: bool, bounded: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        check(draw(rng), end_in, clock, bounded)


def check(rows: list[Row], end_in: Side, clock: bool, bounded: bool) -> None:
    group = np.cumsum([row[1] for row in rows])
    starts = np.array([row[0] for row in rows]) | (np.diff(group, prepend=-1) != 0)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    steps = cut_steps(
        starts,
        group,
        read=columns[2],
        acted=columns[3],
        rewarded=columns[4],
        terminal=columns[5],
        truncated=columns[6] if clock else None,
        end_in=end_in,
        bounded=bounded,
    )
    want = loop(rows, end_in, bounded, clock)
    got = []
    ends = np.append(steps.first, len(steps.rows))[1:]
    for begin, end, whole in zip(steps.first, ends, steps.whole, strict=True):
        got.append(
            [
                [
                    (
                        int(steps.rows[i]),
                        bool(steps.terminated[i]),
                        bool(steps.truncated[i]),
                        not steps.unknown_end[i],
                    )
                    for i in range(begin, end)
                ],
                bool(whole),
            ]
        )
    for piece, whole in want:
        if not whole:  # no clock ends a piece
            piece[-1] = (*piece[-1][:2], False, piece[-1][3])
    assert got == want
    assert sum(steps.lost.values()) + len(steps.rows) == steps.possible
