"""The benchmarks run, and what they compute from their measurements is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import compare
import data_loading
import pytest
from measuring import measure, measure_in_turns
from page import put_in
from rollout_throughput import products_of_a_transition
from scaling import slope
from workload import Workload, hopper_like

ROOT = Path(__file__).parents[2]


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def test_slope_of_a_power_is_its_exponent() -> None:
    sizes = [1.0, 3.0, 10.0, 40.0]
    assert slope(sizes, [2 * s**1.5 for s in sizes]) == pytest.approx(1.5)


def test_measured_seconds_are_those_of_a_call() -> None:
    assert measure(lambda: time.sleep(0.01), repeats=3, least=0.03) == pytest.approx(0.01, rel=0.5)
    short, long = measure_in_turns(
        [lambda: time.sleep(0.002), lambda: time.sleep(0.01)], rounds=3, least=0.02
    )
    assert len(short) == len(long) == 3
    assert all(a < b for a, b in zip(short, long, strict=True))


def test_products_are_those_of_one_member_and_the_policy() -> None:
    work = Workload(
        num_rows=10, hidden_sizes=(20, 30), agent_hidden_sizes=(40,), num_members=3, num_elites=2
    )
    model = 14 * 20 + 20 * 30 + 30 * 24
    policy = 11 * 40 + 40 * 6
    assert products_of_a_transition(work) == 2 * (model + policy)
    of_members = sum(w[0].numel() for w in work.world_model.weights)
    assert model == of_members


def test_made_up_rows_live_through_a_rollout() -> None:
    # rows that ended at once would leave less to do than there is in a real run
    work = Workload(num_rows=500, num_starts=300)
    assert work.rollouts() > 0.99 * 300 * work.horizon
    assert hopper_like(7)["next", "reward"].shape == (7, 1)


def test_page_is_filled_from_the_files_and_only_there(tmp_path: Path) -> None:
    text = (
        "before\n<!-- benchmark:scaling -->\nold\n<!-- end of benchmark:scaling -->\nafter\n"
        "<!-- benchmark:iteration -->\nkept\n<!-- end of benchmark:iteration -->\n"
    )
    content = {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"},
        "results": {"rows": {"sizes": [10, 1000], "seconds": [1, 100], "slope": 1.0}},
        "memory_mb": [float(x) for x in range(100, 120)],
    }
    (tmp_path / "scaling.json").write_text(json.dumps(content))
    filled = put_in(text, tmp_path, tmp_path)
    assert "| rows | 10 to 1,000 | 1.00 |" in filled
    assert "119 MB, +10 MB since the tenth" in filled
    assert "a CPU, 2 threads, PyTorch 9.9." in filled
    assert "](scaling.png)" in filled
    assert "old" not in filled and "kept" in filled and filled.startswith("before\n")
    assert put_in(filled, tmp_path, tmp_path) == filled
    content["machine"].update(float32_matmul_precision="medium", date="2026-01-02")
    (tmp_path / "scaling.json").write_text(json.dumps(content))
    assert "PyTorch 9.9, matrix products at `medium`, 2026-01-02." in put_in(
        text, tmp_path, tmp_path
    )
    content["machine"].update(float32_matmul_precision="highest", model_matmul_dtype="bfloat16")
    (tmp_path / "scaling.json").write_text(json.dumps(content))
    assert "9.9, the model's hidden products in bfloat16, 2026-01-02." in put_in(
        text, tmp_path, tmp_path
    )


@pytest.mark.parametrize("rounded", [True, False])
def test_the_comparison_has_a_column_a_side(rounded: bool, tmp_path: Path) -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "bfloat16": [1.0, 1.0, 1.0], "peer": [2.0, 8.0, 12.0]}
    if not rounded:
        del seconds["bfloat16"]
    results = {name: compare.summarise(seconds, 2) for name in compare.NAMES}
    # the median of the ratios within a round, not the ratio of the medians
    assert results["sac"]["ratio"] == 3 and results["sac"]["ours_seconds"] == [0.5, 1, 2]
    assert results["sac"].get("bfloat16_ratio") == (8 if rounded else None)
    assert compare.line("sac", results["sac"]).split() == (
        ["SAC", "update", "1000.0", "ms", "500.0", "ms", "4000.0", "ms", "3.0x,", "8.0x"]
        if rounded
        else ["SAC", "update", "1000.0", "ms", "4000.0", "ms", "3.0x"]
    )
    machine = {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"}
    content = {"machine": machine, "peer_commit": "abc", "rounds": 3, "results": results}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    text = "<!-- benchmark:compare -->\n<!-- end of benchmark:compare -->\n"
    filled = put_in(text, tmp_path, tmp_path)
    head = "| work | OfflineRL-Kit (abc) | rambo_trl | faster |"
    row = "| one iteration | 4.0 s | 1.0 s | 3.0 x |"
    assert head + (" with bfloat16 | faster |" if rounded else "") in filled
    assert row + (" 0.5 s | 8.0 x |" if rounded else "") in filled
    compare.draw(results, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("rollout_throughput.py", []),
        ("update_throughput.py", []),
        ("iteration.py", ["--eager"]),
        ("scaling.py", ["--eager"]),
    ],
)
def test_scripts_run_and_write_what_they_measured(
    script: str, options: list[str], tmp_path: Path
) -> None:
    options = [*options, "--float32-matmul-precision", "high", "--bfloat16"]
    result = run(script, "--quick", "--threads", "1", "--out", str(tmp_path), *options)
    assert result.returncode == 0, result.stderr
    name = script.removesuffix(".py")
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["float32_matmul_precision"] == "high"
    assert content["machine"]["model_matmul_dtype"] == "bfloat16"
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    text = f"<!-- benchmark:{name} -->\n<!-- end of benchmark:{name} -->"
    assert "| --- |" in put_in(text, tmp_path, tmp_path)


def test_rollouts_of_chosen_sizes_alone_are_measured(tmp_path: Path) -> None:
    options = ["--rows", "60", "90", "--horizons", "1", "--elites", "2", "--quick"]
    result = run("rollout_throughput.py", *options, "--threads", "1", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "rollout_throughput.json").read_text())["results"]
    sizes = [(r["rows"], r["horizon"], r["elites"]) for r in found if r["compiled"]]
    assert sizes == [(60, 1, 5), (90, 1, 5), (90, 1, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "5", "0"], "--rows must be at least 1, got 0"),
        (["--elites", "8"], "--elites must be at most 7, got 8"),
    ],
)
def test_impossible_rollouts_are_refused(options: list[str], message: str) -> None:
    result = run("rollout_throughput.py", *options)
    assert result.returncode == 1 and result.stderr.strip() == message


def test_data_loading_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    options = ["--rows", "1000", "--formats", "d4rl", "memmap", "--train-rows", "0"]
    result = run("data_loading.py", *options, "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["data_loading.json", "data_loading.png"]
    content = json.loads((out / "data_loading.json").read_text())
    assert list(content["load"]) == ["d4rl", "memmap"]
    assert content["load"]["d4rl"]["transitions"] == 1000
    assert (out / "data_loading.png").stat().st_size > 5000
    text = "<!-- benchmark:data_loading -->\n<!-- end of benchmark:data_loading -->"
    assert "| memory-mapped files | 1,000 |" in put_in(text, out, out)


def test_every_option_of_data_loading_is_explained() -> None:
    for action in data_loading.options_parser()._actions:
        assert action.help, action.option_strings
    assert data_loading.options_parser().parse_args([]).out == Path("runs/benchmarks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folder", "/nowhere"], "--folder /nowhere is no folder"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--train-rows", "-1"], "--train-rows must be at least 0, got -1"),
    ],
)
def test_data_loading_checks_its_options_before_it_measures(
    options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        data_loading.check(data_loading.options_parser().parse_args(options))


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("compare.py", ["--peer", "/nowhere"], "--peer /nowhere holds no folder offlinerlkit"),
        ("iteration.py", ["--threads", "0"], "--threads must be at least 1, got 0"),
        ("iteration.py", ["--device", "tpu9"], "--device tpu9 can't be used"),
        ("data_loading.py", ["--out", __file__], f"--out {__file__} can't be used as a folder"),
    ],
)
def test_bad_options_are_named(script: str, options: list[str], message: str) -> None:
    result = run(script, *options)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr
