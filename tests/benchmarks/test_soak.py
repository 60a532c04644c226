"""What the soak concludes from its samples, and what it puts into the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from soak import complaints, look_at, read_rows, report, summarise


def samples(
    *, growth: float = 0.0, slower: float = 0.0, files: float = 0.0
) -> list[dict[str, float | bool]]:
    """100 epochs; what grows does so with every one of them."""
    found, now = [], 0.0
    for epoch in range(1, 101):
        evaluated = epoch % 2 == 0
        now += 0.5 + slower * epoch + (3.0 if evaluated else 0.0)
        memory = 500.0 + growth * epoch
        found.append(
            {
                "epoch": epoch, "at": now, "evaluated": evaluated, "memory_mb": memory,
                "peak_memory_mb": memory + 10, "threads": 3, "open_files": 20 + int(files * epoch),
            }
        )  # fmt: skip
    return found


def test_a_flat_run_has_no_complaints() -> None:
    results = summarise(samples())
    assert results["early"]["epochs"] == [11, 20] and results["late"]["epochs"] == [91, 100]
    assert results["seconds"] == pytest.approx([0.5] * 49)  # evaluations are left out
    assert results["peak_memory_mb"] == 510.0
    assert complaints(results) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"growth": 0.2}, "memory grew from 503.1 to 519.1 MB"),
        ({"slower": 0.001}, "an epoch grew from 0.515 to 0.595 s"),
        ({"files": 0.1}, "open files: 22, then 30"),
    ],
)
def test_what_grows_is_named(what: dict[str, float], words: str) -> None:
    assert complaints(summarise(samples(**what))) == [words]


def test_an_epoch_that_was_missed_is_not_timed() -> None:
    seen = [s for s in samples() if s["epoch"] != 51]
    timed = summarise(seen)["timed_epochs"]
    assert 51 not in timed and 53 in timed and len(timed) == 48


def test_only_whole_lines_are_epochs(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    assert read_rows(metrics) == []
    metrics.write_text("epoch,mean_q,return_mean\n1,0.5,\n2,0.5,33.5\n3,0.")
    assert read_rows(metrics) == [False, True]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_a_process_is_looked_at_from_outside() -> None:
    before = look_at(os.getpid())
    with Path(__file__).open(), Path(__file__).open():
        during = look_at(os.getpid())
    assert during["open_files"] == before["open_files"] + 2
    assert 0 < during["memory_mb"] <= during["peak_memory_mb"] and during["threads"] >= 1


def test_the_report_has_the_figures() -> None:
    machine = {"cpu": "a CPU", "threads": 1, "torch": "9.9"}
    text = report({"machine": machine, "results": summarise(samples())})
    assert text.startswith("100 epochs of the smoke schedule (a CPU, 1 thread, PyTorch 9.9)")
    assert "memory 500 MB, then 500 MB (+0.0 %); an epoch 0.500 s" in text
