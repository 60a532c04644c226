"""Logs with every kind of trouble, and the set that must come of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from rambo_trl.data import OfflineDataset
from rambo_trl.data.__main__ import main
from rambo_trl.data.log_import import ImportedLog, import_logs
from rambo_trl.data.log_settings import LogImport

ROOT = Path(__file__).parents[2]
HEADER = "batch,timestamp,temp_C,inlet_C,power_W,flow_l_s,trip"
USUAL: dict[str, Any] = {
    "observation": ["temp_C", "inlet_C"],
    "action": ["power_W", "flow_l_s"],
    "reward": "-abs(next.temp_C - 60) - 0.001 * power_W",
    "episode": "batch",
    "time": "timestamp",
    "terminal": "trip",
}

pytestmark = pytest.mark.usefixtures("minari_root")


def tank(batches: int = 3, rows: int = 6) -> list[list[Any]]:
    """Rows of a tank; the second batch ends by a trip in its last row."""
    rng = np.random.default_rng(0)
    return [
        [
            f"B{batch}",
            1000 * batch + 10 * row,
            round(20 + 30 * rng.random(), 2),
            round(10 + rng.random(), 2),
            round(5000 * rng.random(), 1),
            round(rng.random(), 3),
            int(batch == 1 and row == rows - 1),
        ]
        for batch in range(batches)
        for row in range(rows)
    ]


def write(path: Path, rows: Iterable[Sequence[Any]], header: str = HEADER) -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path | list[Path], **changes: Any) -> ImportedLog:
    paths = path if isinstance(path, list) else [path]
    return import_logs(paths, LogImport(**(USUAL | changes)))


def by_hand(pairs: Iterable[tuple[list[Any], list[Any]]]) -> list[tuple]:
    """Transitions of pairs of rows: observation, action, reward, next observation, terminal."""
    return [
        (*a[2:6], round(-abs(b[2] - 60) - 0.001 * a[4], 9), *b[2:4], b[6] == 1) for a, b in pairs
    ]


def neighbours(rows: list[list[Any]]) -> list[tuple[list[Any], list[Any]]]:
    return [(a, b) for a, b in itertools.pairwise(rows) if a[0] == b[0]]


def transitions(imported: ImportedLog) -> list[tuple]:
    return [
        (
            *episode["observations"][i],
            *episode["actions"][i],
            round(float(episode["rewards"][i]), 9),
            *episode["observations"][i + 1],
            episode["terminations"][i],
        )
        for episode in imported.episodes
        for i in range(len(episode["rewards"]))
    ]


def ends(imported: ImportedLog) -> list[tuple[int, bool, bool, bool]]:
    """Of each episode: steps, terminated, truncated, piece."""
    return [
        (
            len(e["rewards"]),
            bool(e["terminations"][-1]),
            bool(e["truncations"][-1]),
            bool(e["is_piece"]),
        )
        for e in imported.episodes
    ]


def test_a_tidy_log_becomes_a_set(
    tmp_path: Path, minari_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tank()
    write(tmp_path / "log.csv", rows)
    arguments = [str(tmp_path / "log.csv"), "--episode", "batch", "--time", "timestamp"]
    arguments += ["--observation", "temp_C", "inlet_C", "--action", "power_W", "flow_l_s"]
    arguments += ["--reward", "-abs(next.temp_C-60)-0.001*power_W", "--terminal", "trip"]
    assert main([*arguments, "--max-gap", "15", "--out", "my/tank-v0"]) == 0
    told = capsys.readouterr().out
    assert "15 of 15, from each row" in told and "3 whole, 0 cut pieces; 1 end by" in told
    assert "dataset=my/tank-v0" in told and "my/tank-v0" in minari.list_local_datasets()
    data = OfflineDataset.load("my/tank-v0", normalize=False)
    assert data.observation_names == ("temp_C", "inlet_C")
    assert data.action_names == ("power_W", "flow_l_s")
    want = np.array(by_hand(neighbours(rows)))
    raw = data.transitions
    np.testing.assert_allclose(raw["observation"], want[:, :2], rtol=1e-6)
    np.testing.assert_allclose(raw["next", "observation"], want[:, 5:7], rtol=1e-6)
    np.testing.assert_allclose(raw["next", "reward"][:, 0], want[:, 4], rtol=1e-6)
    np.testing.assert_array_equal(raw["next", "terminated"][:, 0], want[:, 7])
    actions = data.denormalize_action(raw["action"])
    np.testing.assert_allclose(actions, want[:, 2:4], rtol=1e-5)
    np.testing.assert_allclose(data.action_low, want[:, 2:4].min(0), rtol=1e-6)
    np.testing.assert_allclose(data.action_high, want[:, 2:4].max(0), rtol=1e-6)
    assert raw["next", "done"][:, 0].nonzero().flatten().tolist() == [4, 9, 14]
    np.testing.assert_allclose(data.behaviour_returns, want[:, 4].reshape(3, 5).sum(1))
    assert data.num_cut_episodes == 0 and data.step_intervals["median"] == 10
    # the report, and a second import under the name
    assert main(["my/tank-v0"]) == 0 and "\npower_W " in capsys.readouterr().out
    files = {path: path.read_bytes() for path in minari_root.rglob("*") if path.is_file()}
    assert main([*arguments, "--out", "my/tank-v0"]) == 2
    assert "my/tank-v0 exists already" in (err := capsys.readouterr().err) and "my/tank-v1" in err
    assert files == {path: path.read_bytes() for path in minari_root.rglob("*") if path.is_file()}


def test_missing_readings_and_gaps_cut_episodes(tmp_path: Path) -> None:
    rows = tank(4, 8)
    rows[3][2] = ""  # within the first batch
    rows[8][3] = "n/a"  # the first row of the second, which ends by a trip
    rows[18][4] = "Bad"  # an action
    for row in rows[28:32]:
        row[1] += 100
    imported = read(write(tmp_path / "log.csv", rows))
    lost = [(2, 3), (3, 4), (8, 9), (18, 19), (27, 28)]
    pairs = [
        (rows[i], rows[i + 1])
        for i in range(31)
        if rows[i][0] == rows[i + 1][0] and (i, i + 1) not in lost
    ]
    assert transitions(imported) == by_hand(pairs)
    assert ends(imported) == [
        (2, False, False, True),
        (3, False, False, True),
        (6, True, False, True),  # its beginning is lost
        (2, False, False, True),
        (4, False, False, True),
        (3, False, False, True),
        (3, False, False, True),
    ]
    told = imported.report
    assert "missing: 1 of temp_C, 1 of inlet_C, 1 of power_W" in " ".join(told.split())
    assert "no numbers in power_W, taken as missing: 'Bad' (1)" in told
    assert "3 without a whole observation" in told and "1 without an action" in told
    assert "cut at 1 gaps of more than 15 s" in told and "--max-gap sets another" in told
    assert read(tmp_path / "log.csv", max_gap=1000).dataset.num_episodes == 6


def test_pieces_are_known_as_such_when_the_set_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tank(4, 8)
    rows[8][3] = ""  # the first row of the second batch, after a whole one
    rows[23][2] = ""  # the last row of the third, before a whole one
    write(tmp_path / "log.csv", rows)
    words = [str(tmp_path / "log.csv"), "--out", "my/tank-v0"]
    for key, value in USUAL.items():
        words += [f"--{key}", *([value] if isinstance(value, str) else value)]
    assert main(words) == 0
    data = OfflineDataset.load("my/tank-v0")
    assert data.num_episodes == 4 and data.num_cut_episodes == 2
    assert data.whole_episodes.tolist() == [[0, 7], [19, 26]]
    want = [sum(t[4] for t in by_hand(neighbours(rows[8 * b : 8 * b + 8]))) for b in (0, 3)]
    np.testing.assert_allclose(data.behaviour_returns, want)
    assert "2 whole, 2 cut pieces" in capsys.readouterr().out


def test_missing_readings_may_be_filled(tmp_path: Path) -> None:
    rows = tank()
    filled = [list(row) for row in rows]
    for i in (2, 3, 9):
        rows[i][3] = ""
    rows[6][2] = ""  # no reading before it in its batch
    filled[2][3], filled[9][3] = rows[1][3], rows[8][3]
    imported = read(write(tmp_path / "log.csv", rows), fill=1)
    # row 3 is the second in turn
    pairs = [p for i, p in enumerate(neighbours(filled)) if i not in (2, 3, 5)]
    assert transitions(imported) == by_hand(pairs)
    assert "filled by the reading before: 2 of inlet_C" in imported.report


def test_impossible_readings_are_told_and_left_out(tmp_path: Path) -> None:
    rows = tank(20, 10)
    rows[45][2] = -9999.0
    rows[77][2] = 812.5
    path = write(tmp_path / "log.csv", rows)
    assert "2 far from the rest: -9999, 812.5" in read(path).report
    for changes in ({"ranges": {"temp_C": (0.0, 100.0)}}, {"missing": ["-9999", "812.5"]}):
        imported = read(path, **changes)
        pairs = [
            (a, b)
            for a, b in neighbours(rows)
            if not {id(a), id(b)} & set(map(id, (rows[45], rows[77])))
        ]
        assert transitions(imported) == by_hand(pairs)
        assert "far from the rest" not in imported.report
    assert (
        "outside their --range: 2 of temp_C" in read(path, ranges={"temp_C": (0.0, 100.0)}).report
    )


def test_text_and_constant_columns(tmp_path: Path) -> None:
    rows = [
        [*row, ("open", "closed")[i % 2], ("A", "B", "C")[i % 3], 0.8, "x"]
        for i, row in enumerate(tank())
    ]
    path = write(tmp_path / "log.csv", rows, f"{HEADER},valve,mode,area_m2,site")
    names = ["temp_C", "valve", "mode", "area_m2", "site"]
    imported = read(path, observation=names)
    assert imported.observation_names == ("temp_C", "valve=open", "mode=A", "mode=B", "mode=C")
    got = np.concatenate([e["observations"] for e in imported.episodes])
    assert got[:, 1].tolist() == [float(i % 2 == 0) for i in range(18)]
    assert got[:, 2:].tolist() == [[float(i % 3 == k) for k in range(3)] for i in range(18)]
    assert "area_m2 is 0.8, site=x is 1 in all rows" in imported.report
    kept = read(path, observation=names, keep_constant=True)
    assert kept.observation_names[-1] == "site=x"
    with pytest.raises(ValueError, match="'valve' is text .closed, open.: actions must be numbers"):
        read(path, action=["valve"])
    with pytest.raises(ValueError, match="area_m2 is 0.8 in all rows: at least one"):
        read(path, observation=["area_m2"])


def test_a_spreadsheet_of_another_country(tmp_path: Path) -> None:
    rows = tank()
    day = np.datetime64("2024-10-27T01:59:00")
    lines = ["Batch;Zeit;Temperatur [°C];Zulauf;Leistung;Durchfluss;Störung"]
    for row in rows:
        when = (day + np.timedelta64(row[1], "s")).item().strftime("%d.%m.%Y %H:%M:%S")
        lines.append(";".join([row[0], when, *(str(x).replace(".", ",") for x in row[2:])]))
    (tmp_path / "log.csv").write_text("\r\n".join(lines), encoding="cp1252")
    settings = LogImport(
        observation=["Temperatur [°C]", "Zulauf"],
        action=["Leistung", "Durchfluss"],
        reward='-abs(next("Temperatur [°C]") - 60) - 0.001 * Leistung',
        episode="Batch",
        time="Zeit",
        time_format="%d.%m.%Y %H:%M:%S",
        terminal="Störung",
    )
    imported = import_logs([tmp_path / "log.csv"], settings)
    assert transitions(imported) == by_hand(neighbours(rows))
    assert "separated by ';', encoded in cp1252; with decimal commas" in imported.report
    assert imported.intervals["max"] == 10


@pytest.mark.parametrize(
    "text",
    [
        lambda s: f"2024-10-27T{(1800 + s) // 3600:02d}:{(1800 + s) // 60 % 60:02d}:{s % 60:02d}Z",
        # the same in Berlin, where clocks are put back at 01:00 UTC
        lambda s: (
            f"2024-10-27 {2 + (1800 + s) // 3600 - (s >= 1800):02d}:{(1800 + s) // 60 % 60:02d}:"
            f"{s % 60:02d}.000 {'+01:00' if s >= 1800 else '+0200'}"
        ),
        lambda s: f"{1_729_988_000 + s}",
        lambda s: f"{s / 1}",
    ],
)
def test_times(text: Any, tmp_path: Path) -> None:
    rows = tank()
    for i, row in enumerate(rows):
        row[0], row[1] = "B0", text(1500 + 60 * i)
    imported = read(write(tmp_path / "log.csv", rows))
    # a trip amid the rows ends the episode
    want = [pair for i, pair in enumerate(by_hand(neighbours(rows))) if i != 11]
    assert transitions(imported) == want
    assert set(imported.intervals.values()) == {0.0, 60.0}
    assert "interval     60 s, from 60 to 60\n" in imported.report


def test_unsorted_and_repeated_rows(tmp_path: Path) -> None:
    rows = tank()
    mixed = [*rows[6:12], *rows[12:], *rows[:6]]
    mixed.insert(4, rows[2])  # once more, far from its place
    first, second = list(rows[8]), list(rows[8])
    first[2], second[5] = "", ""  # one line a sensor
    mixed[mixed.index(rows[8])] = first
    mixed.append(second)
    imported = read(write(tmp_path / "log.csv", mixed))
    assert transitions(imported) == by_hand(neighbours(rows))
    told = " ".join(imported.report.split())
    assert "2 rows that only repeat or complete another one of the same time" in told
    assert "rows were not in the order of timestamp and are sorted by it: 2 times" in told
    # which of two readings is right is unknown: the row is as good as missing
    twice = list(rows[8])
    twice[3] += 1
    imported = read(write(tmp_path / "log.csv", [*rows, twice]))
    assert "2 rows that contradict another one of the same time" in imported.report
    pairs = [p for i, p in enumerate(neighbours(rows)) if i not in (6, 7)]
    assert transitions(imported) == by_hand(pairs)
    # rows without a time or a batch have no place
    rows[3][1], rows[10][0] = "", " "
    told = read(write(tmp_path / "log.csv", rows)).report
    assert "1 rows without timestamp" in told and "1 rows without batch" in told
    assert "11 of 11" in told


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    rows = tank()
    path = write(tmp_path / "log.csv", [*rows[:8], rows[8][:4], *rows[9:]])
    imported = read(path)
    assert "1 lines with another number of cells than the header" in imported.report
    pairs = [p for i, p in enumerate(neighbours(rows)) if i not in (6, 7)]
    assert transitions(imported) == by_hand(pairs)
    with pytest.raises(ValueError, match="1 lines have another number of cells .* give --time"):
        read(path, time=None)
    path.write_text("recorder 7\nlast service: never\n" + write(path, rows).read_text())
    assert transitions(read(path, skip=2)) == by_hand(neighbours(rows))


def test_several_files_and_parquet(tmp_path: Path) -> None:
    rows = tank()
    # a file a day, with a batch over midnight
    write(tmp_path / "day2.csv", rows[9:])
    write(tmp_path / "day1.csv", rows[:9])
    whole = read([tmp_path / "day*.csv"])
    assert transitions(whole) == by_hand(neighbours(rows))
    assert "2 files, 18 rows" in whole.report and whole.dataset.num_cut_episodes == 0
    for name in ("day1", "day2"):
        table = pyarrow.csv.read_csv(tmp_path / f"{name}.csv")
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert transitions(read([tmp_path / "*.parquet"])) == transitions(whole)
    # dates, booleans, dictionaries and decimals of Parquet
    columns = {name: table[name] for name in table.column_names}
    seconds = table["timestamp"].cast(pyarrow.timestamp("s", "UTC"))
    columns |= {"timestamp": seconds, "trip": table["trip"].cast("bool")}
    columns["batch"] = table["batch"].dictionary_encode()
    columns["power_W"] = table["power_W"].cast(pyarrow.decimal128(10, 1))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "typed.parquet")
    typed = transitions(read(tmp_path / "typed.parquet"))
    np.testing.assert_allclose(typed, by_hand(neighbours(rows[9:])), rtol=1e-12)
    # a file an episode, no times
    for i in range(3):
        write(tmp_path / f"run{i}.csv", rows[6 * i : 6 * i + 6])
    for changes in ({"time": None}, {"per_file": True}):
        runs = read([tmp_path / "run?.csv"], episode=None, **changes)
        assert transitions(runs) == by_hand(neighbours(rows))
        assert runs.dataset.num_cut_episodes == 0


def test_without_an_episode_column(tmp_path: Path) -> None:
    rows = tank()
    imported = read(write(tmp_path / "log.csv", rows), episode=None)
    assert transitions(imported) == by_hand(neighbours(rows))
    assert all(piece for *_, piece in ends(imported))
    assert imported.dataset.behaviour_return_mean is None
    assert "without --episode the beginnings and ends" in imported.report
    # after a trip the plant stands still, and starts again
    for i, row in enumerate(rows):
        row[1], row[6] = 10 * i, int(i in (5, 6, 11))
    imported = read(write(tmp_path / "log.csv", rows), episode=None)
    assert ends(imported) == [
        (5, True, False, True),
        (4, True, False, False),
        (5, False, False, True),
    ]
    pairs = [(rows[i], rows[i + 1]) for i in range(17) if i not in (5, 6, 11)]
    assert transitions(imported) == by_hand(pairs)


def test_actions_that_led_to_their_row(tmp_path: Path) -> None:
    rows = tank()
    later = [[*row[:4], *("", ""), row[6]] for row in rows]
    for a, b in zip(rows, later[1:], strict=False):
        b[4:6] = a[4:6]
    path = write(tmp_path / "log.csv", later)
    reward = "-abs(next.temp_C - 60) - 0.001 * next.power_W"
    assert transitions(read(path, action_in="to", reward=reward)) == by_hand(neighbours(rows))


def test_the_last_row_of_an_episode_knows_no_action_of_the_next(tmp_path: Path) -> None:
    rows = learner(tank())
    rows = [row for row in rows if row[4] != ""]  # the trip is the last row of its batch
    path = write(tmp_path / "log.csv", rows)
    settings = {"end_in": "from", "action_in": "to", "reward": "-temp_C"}
    assert [n for n, *_ in ends(read(path, **settings))] == [4, 4, 4]


def test_batches_at_the_same_time(tmp_path: Path) -> None:
    rows = tank()
    for row in rows:
        row[1] %= 1000
    mixed = sorted(rows, key=lambda row: row[1])  # a row of each in turn
    imported = read(write(tmp_path / "log.csv", mixed))
    assert transitions(imported) == by_hand(neighbours(rows))
    with pytest.raises(ValueError, match="rows of an episode lie apart .* or give --time"):
        read(tmp_path / "log.csv", time=None)


def learner(rows: list[list[Any]]) -> list[list[Any]]:
    """The same as a learner logs it: the end's flag beside the last action, a bare last row."""
    logged = [list(row) for row in rows]
    for a, b in neighbours(logged):
        a[6] = b[6]
    for a, b in zip(logged, [*logged[1:], [None]], strict=True):
        if a[0] != b[0]:
            a[4:] = ["", "", ""]
    return logged


def test_ends_that_stand_beside_the_last_action(tmp_path: Path) -> None:
    rows = tank()
    path = write(tmp_path / "log.csv", learner(rows))
    with pytest.raises(ValueError, match="--end-in from if the flag stands in the row that"):
        read(path)
    imported = read(path, end_in="from")
    assert transitions(imported) == by_hand(neighbours(rows))
    assert ends(imported) == [
        (5, False, True, False),
        (5, True, False, False),
        (5, False, True, False),
    ]
    # without the bare last rows, ends stay and the other last steps go
    bare = [row for row in learner(rows) if row[4] != ""]
    imported = read(write(tmp_path / "log.csv", bare), end_in="from", reward="-temp_C")
    assert [n for n, *_ in ends(imported)] == [4, 5, 4]
    assert np.isnan(imported.episodes[1]["observations"][-1]).all()
    assert "1 ends are known without what was observed then" in imported.report
    assert int(imported.dataset.transitions["next", "terminated"].sum()) == 1


def test_truncations_of_their_own(tmp_path: Path) -> None:
    rows = [[*row, int(i % 6 == 5 and i > 6)] for i, row in enumerate(tank())]
    imported = read(write(tmp_path / "log.csv", rows, f"{HEADER},timeout"), truncated="timeout")
    assert ends(imported) == [
        (5, False, False, True),
        (5, True, False, False),
        (5, False, True, False),
    ]


def test_an_end_without_a_reading(tmp_path: Path) -> None:
    rows = tank()
    rows[11][2] = ""
    imported = read(write(tmp_path / "log.csv", rows), reward="power_W", terminal="trip == 1")
    assert ends(imported)[1] == (5, True, False, False)
    assert "1 ends are known without" in imported.report
    rows[11][2], rows[10][2] = 30.0, ""
    imported = read(write(tmp_path / "log.csv", rows))
    assert "1 ends are lost, because no step leads to them" in imported.report


def test_bounds_of_actions(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", tank())
    imported = read(path, action_low=[0, 0], action_high=[6000, 1])
    assert imported.action_low.tolist() == [0, 0] and imported.action_high.tolist() == [6000, 1]
    with pytest.raises(ValueError, match=r"of power_W leave the bounds 0 to 9, they reach .*=0:9'"):
        read(path, action_low=[0, 0], action_high=[9, 1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation": ["temp", "inlet_C"]}, "--observation: .* 'temp'; did you mean temp_C"),
        ({"action": ["Power_w"]}, "--action: .* no column 'Power_w'; did you mean power_W"),
        ({"reward": "-temp_c"}, "--reward: .* no column 'temp_c'; did you mean temp_C"),
        ({"terminal": "tripp"}, "--terminal: .* did you mean trip"),
        ({"terminal": "power_W"}, "--terminal: 'power_W' must be 0 or 1, .* such as power_W > 0"),
        ({"episode": "Batch"}, "--episode: .* did you mean batch"),
        ({"time": "time"}, "--time: .* did you mean timestamp"),
        ({"time": "batch"}, "--time: column 'batch' holds neither seconds nor dates"),
        ({"observation": ["batch", "temp_C", "temp_C"]}, "give each column once, got temp_C"),
        ({"observation": ["temp_C", "power_W"]}, "power_W is an observation and an action"),
        ({"max_gap": 5}, "no row has a next one .* --max-gap is 5"),
        ({"max_gap": -1}, "--max-gap must be positive"),
        ({"max_gap": 5, "time": None}, "--max-gap needs --time"),
        ({"ranges": {"temp_C": (90, 99)}}, "no step is left of 15: .* temp_C has no reading"),
        ({"ranges": {"trip": (0, 1)}}, "--range: trip is no observation and no action"),
        ({"action_low": [0]}, "--action-low has 1 numbers, and there are 2 actions"),
        ({"end_in": "to", "terminal": None}, "--end-in says where"),
        ({"encoding": "klingon"}, "give --encoding"),
    ],
)
def test_errors_name_what_to_change(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read(write(tmp_path / "log.csv", tank()), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --out, --observation, --action, --reward. Its columns: batch, timestamp"),
        (["--out", "set"], "--out must be the name of a Minari set, such as my/set-v0"),
        (["--figure", "x.png"], "--figure: import the log first"),
        (["--range", "temp_C"], "--range: give COLUMN=LOW:HIGH"),
        (["--observation", "temp_K"], "did you mean temp_C"),
    ],
)
def test_errors_of_the_command_leave_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    minari_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "log.csv", tank())
    needed = ["--observation", "temp_C", "--action", "power_W", "--reward", "-1"]
    words_given = [str(path), *arguments]
    if arguments:
        words_given = [str(path), *needed, "--out", "my/set-v0", *arguments]
    assert main(words_given) == 2
    err = capsys.readouterr().err
    assert words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not [path for path in minari_root.rglob("*") if path.is_file()]
    assert main([str(tmp_path / "lgo.csv")]) == 2
    assert "no file" in (err := capsys.readouterr().err) and "log.csv" in err


def test_columns_of_one_name_and_dates_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", tank(), HEADER.replace("inlet_C", "temp_C"))
    with pytest.raises(ValueError, match="has 2 columns called 'temp_C'"):
        read(path, observation=["temp_C"])
    days = [[*row, f"2024-01-{i + 1:02d}", i] for i, row in enumerate(tank(5))]
    path = write(tmp_path / "log.csv", days, f"{HEADER},day,id")
    with pytest.raises(ValueError, match="'day' is text with 30 different values"):
        read(path, observation=["day"])
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(ValueError, match="has no line with the names"):
        read(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="there is no row"):
        read(write(tmp_path / "log.csv", []))


@pytest.mark.slow
def test_an_imported_set_trains(tmp_path: Path, minari_root: Path) -> None:
    path = write(tmp_path / "log.csv", tank(12, 60))
    needed = ["--observation", "temp_C", "inlet_C", "--action", "power_W", "flow_l_s"]
    needed += ["--reward", USUAL["reward"], "--episode", "batch", "--time", "timestamp"]
    assert main([str(path), *needed, "--terminal", "trip", "--out", "my/tank-v0"]) == 0
    words = ["dataset=my/tank-v0", "schedule=smoke", "run_dir=run", "termination=none"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "rambo.py"), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset_transitions"] == 12 * 59 and results["cut_pieces"] == 0
