"""The benchmarks run, and what they compute from their measurements is right."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import operator
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import compare
import pytest
import quick_scores
import run_all
import scaling
import score_by_minute
import threads_by_phase
import torch
import update_throughput
from measuring import Side, measure, measure_in_turns, measured_on
from page import PAGES, put_in
from workload import ODD_SIZES, VARIANTS, Workload, hopper_like, sizes_of

from rambo_trl.reporting.paper import RAMBO
from rambo_trl.reporting.runs import find_runs

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


def test_measured_seconds_are_those_of_a_call() -> None:
    assert measure(lambda: time.sleep(0.01), repeats=3, least=0.03) == pytest.approx(0.01, rel=0.5)
    short, long = measure_in_turns(
        [lambda: time.sleep(0.002), lambda: time.sleep(0.01)], rounds=3, least=0.02
    )
    assert len(short) == len(long) == 3
    assert all(a < b for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize("density", ["mixture", "member"])
def test_products_are_those_of_the_layers(density: str) -> None:
    rows, starts = 20, 30  # which three elites and a horizon of 3 divide without a rest
    work = Workload(
        **{**ODD_SIZES, "batch_size": rows, "num_starts": starts, "hidden_sizes": (20, 30)},
        adversary_density=density,
    )
    flop = work.products()
    first, rest = 14 * 20, 20 * 30 + 30 * 24
    actor, critic = 11 * 16 + 16 * 16 + 16 * 6, 14 * 16 + 16 * 16 + 16
    assert flop["rollouts"] == 2 * (first + rest + actor)
    # forwards, for the weights' gradient, and but for the first layer for the input's
    passes = 2 * (2 * first + 3 * rest)
    assert flop["likelihood"] == 4 * rows * passes
    # TorchRL's loss runs the actor a second time, without a gradient
    assert flop["cloning"] == 2 * rows * (2 * 11 * 16 + 3 * (16 * 16 + 16 * 6) + actor)
    # of the imagined rows, 20 for three elites, the member's density has 7 for each; the actor
    # acts and values, and two critics value both states
    imagined = 3 * rows if density == "mixture" else 3 * 7
    values = 2 * rows * (2 * actor + 4 * critic)
    assert flop["adversarial"] == (3 * rows + imagined) * passes + values


def test_made_up_rows_live_through_a_rollout() -> None:
    # rows that ended at once would leave less to do than there is in a real run
    work = Workload(num_rows=500, num_starts=300)
    assert work.rollouts() > 0.99 * 300 * work.horizon
    assert hopper_like(7)["next", "reward"].shape == (7, 1)


def test_page_is_filled_from_the_files_and_only_there(tmp_path: Path) -> None:
    text = (
        "before\n<!-- benchmark:scaling -->\nold\n<!-- end of benchmark:scaling -->\nafter\n"
        "<!-- benchmark:iteration -->\nkept\n<!-- end of benchmark:iteration -->\n"
        "<!-- benchmark:scaling_on_a9 -->\nold\n<!-- end of benchmark:scaling_on_a9 -->\n"
    )
    content: dict[str, Any] = {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"},
        "results": {"rows": {"sizes": [10, 1000], "seconds": [1, 100], "slope": 1.0}},
        "memory_mb": [float(x) for x in range(100, 120)],
    }
    (tmp_path / "scaling.json").write_text(json.dumps(content))
    other = {**content["machine"], "cpu": "another", "vector_units": "AVX9"}
    (tmp_path / "scaling_on_a9.json").write_text(json.dumps({**content, "machine": other}))
    filled = put_in(text, tmp_path, tmp_path)
    assert "| rows | 10 to 1,000 | 1.00 |" in filled
    assert "119 MB, +10 MB since the tenth" in filled
    assert "a CPU, 2 threads, PyTorch 9.9." in filled
    assert "](scaling.png)" in filled and "](scaling_on_a9.png)" in filled
    assert "another (AVX9), 2 threads, PyTorch 9.9." in filled
    assert "old" not in filled and "kept" in filled and filled.startswith("before\n")
    assert put_in(filled, tmp_path, tmp_path) == filled
    more = {"float32_matmul_precision": "medium", "model_matmul_dtype": "bfloat16", "date": "2026"}
    words = ", matrix products at `medium`, the model's hidden products in bfloat16, 2026."
    assert measured_on({**content["machine"], **more}).endswith(f"PyTorch 9.9{words}")


def test_the_pages_show_what_their_files_say() -> None:
    pages = [ROOT / page for page in PAGES]
    assert any("<!-- benchmark:soak -->" in page.read_text() for page in pages)
    for page in pages:
        text = page.read_text()
        assert put_in(text, ROOT / "docs/benchmarks", page.parent) == text


def test_each_side_works_in_a_process_of_its_own() -> None:
    one, other = (Side(dict, {"sum": partial(operator.add, offset)}) for offset in (1, 2))
    assert (one.do("sum", 5), other.do("sum", 5), one.do("sum", 6)) == (6, 7, 7)
    processes = [list(side._pool._processes) for side in (one, other)]
    assert [len(found) for found in processes] == [1, 1]
    assert len({os.getpid(), *processes[0], *processes[1]}) == 3


def test_the_quick_schedules_sizes_are_those_of_its_settings() -> None:
    sizes = sizes_of("quick")
    assert sizes["schedule"] == "quick"
    work = Workload(**{**sizes, "num_starts": 40, "num_rows": 300})
    layers = [tuple(w.shape) for w in work.world_model.weights]
    members, hidden = sizes["num_members"], sizes["hidden_sizes"]
    assert layers[0] == (members, 14, hidden[0]) and layers[-1] == (members, hidden[-1], 24)
    work.rollouts()
    # the agent's anchor, average and rates are the schedule's too
    assert "loss_anchor" in work.agent_updates(1)
    assert threads_by_phase.times_in_a_run()["sac"] > 1000


def test_threads_are_compared_phase_by_phase(tmp_path: Path) -> None:
    seconds = {"1": [0.010, 0.020, 0.040], "2": [0.005, 0.008, 0.020]}
    slower = {"1": [0.001] * 3, "2": [0.002] * 3}
    content = {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 1, "torch": "9.9"},
        "matmul_flop_per_second": {"1": 1e9, "2": 2e9},
        "flop": dict.fromkeys(threads_by_phase.NAMES, 4e6),
        "times_in_a_run": dict.fromkeys(threads_by_phase.NAMES, 6000),
        "results": {"likelihood": seconds, "sac": slower},
    }
    (tmp_path / "threads_by_phase.json").write_text(json.dumps(content))
    text = "<!-- benchmark:threads_by_phase -->\n<!-- end of benchmark:threads_by_phase -->"
    filled = put_in(text, tmp_path, tmp_path)
    row = "| update of the fit | 20.0 ms | 20% | 8.0 ms | 25% | 2.00 x | 6,000 | 2.0 min |"
    assert row in filled
    words = "2.1 minutes on one thread, 1.0 on 2, and 0.9 with each kind on the better"
    assert words in filled
    threads_by_phase.draw(content).savefig(tmp_path / "threads.png")


def test_minutes_of_published_runs_are_those_of_their_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"likelihood": 0.01, "cloning": 0.03, "rollouts": 6.0, "sac": 0.01, "adversarial": 0}
    counts = {"likelihood": 6000, "cloning": 2000, "rollouts": 60, "sac": 6000, "adversarial": 9}
    times = {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"},
        "times_in_a_run": counts,
        "results": {name: {"1": [s] * 3, "2": [9.0] * 3} for name, s in seconds.items()},
    }
    (tmp_path / "times.json").write_text(json.dumps(times))
    hopper = ROOT / "docs" / "results" / "hopper_v1"
    words = [str(hopper), "--times", str(tmp_path / "times.json"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["score_by_minute.py", *words])
    score_by_minute.main()
    text = "<!-- benchmark:score_by_minute -->\n<!-- end of benchmark:score_by_minute -->"
    filled = put_in(text, tmp_path, tmp_path)
    # a minute each of fit and cloning, then 60 epochs in 7 minutes
    assert "| score after | 2.0 min | 2.6 min | 3.2 min |" in filled and "| 9.0 min |" in filled
    runs = [run for run in find_runs([hopper])[0] if run.method == RAMBO]
    last = statistics.fmean(run.metrics[-1]["score"] or 0.0 for run in runs)
    assert f" | {last:.1f} | 64.3 |" in filled and "1 thread," in filled


def test_the_table_of_scores_has_every_method_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [("RAMBO", 1, 40, 0.1), ("RAMBO", 0, 50, 0.1), ("RAMBO", 0, 20, 0), ("IQL", 0, 7, None)]
    for number, (method, seed, score, weight) in enumerate(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = {
            "method": method, "seed": seed, "score": score, "diverged": False, "epochs": 60,
            "dataset": "bundled/hopper/medium-replay-v1", "schedule": "quick",
            "behaviour_score": 11.0, "behaviour_score_best": 64.3, "adversarial_weight": weight,
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.yaml").write_text(f"adversarial_weight: {json.dumps(weight)}\n")
    monkeypatch.setattr(sys, "argv", ["quick_scores.py", str(tmp_path), "--out", str(tmp_path)])
    quick_scores.main()
    text = "<!-- benchmark:quick_scores -->\n<!-- end of benchmark:quick_scores -->"
    filled = put_in(text, tmp_path, tmp_path)
    assert "| data | best episode | best tenth cloned | RAMBO | RAMBO, lambda = 0 | IQL |" in filled
    assert "| 64.3 | 31.3 | 45.0 +- 5.0 (2) | 20.0 (1) | 7.0 (1) |" in filled


def test_sizes_that_double_the_cost_lie_between_the_measured_ones() -> None:
    assert scaling.doubled_at([1, 5, 20], [1.0, 3.0, 12.0], 5) == pytest.approx(10)
    assert scaling.doubled_at([5, 20], [3.0, 5.9], 5) is None
    result = {
        "sizes": [1, 5, 20], "seconds": [1.0, 1.0, 1.1], "update_seconds": [1.0, 3.0, 12.0],
        "peak_mb": [700, 800, 1600], "buffer_mb": [100, 200, 400], "slope": 0.0,
        "update_slope": 0.8,
    }  # fmt: skip
    (line,) = scaling.where_it_ends("elites", result, 5)
    assert "rollouts: 1.1 times at 20, less than twice throughout" in line
    assert "an adversarial update: 4.0 times at 20, twice at about 10" in line
    assert "0.8 GB, then 1.6 GB" in line and "0.2 GB, then 0.4 GB" in line
    rows = [100, 10_000]
    data = [
        {
            "transitions": n, "updates_per_second": 1e4 / n, "seconds_per_draw": 0.001,
            "anonymous_bytes": 5e7,
        }
        for n in rows
    ]  # fmt: skip
    content = {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"},
        "results": {"elites": result},
        "memory_mb": [600.0, 601.0],
        "data": data,
    }
    text = scaling.report(content)
    assert "| elites | 1 to 20 | 0.00 | 0.80 | 0.7 to 1.6 GB |" in text and line in text
    assert "100, 10,000: 256 random ones are drawn in 1.00, 1.00 ms" in text
    assert "(slope of a step: 1.00)" in text
    scaling.draw(content)


@pytest.mark.parametrize("name", ["update_throughput", "iteration"])
def test_tables_show_the_share_of_the_products(name: str) -> None:
    benchmark = importlib.import_module(name)
    content = json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())
    works = {"iteration", "fit_step", "cloning_step", *content.get("seconds", ())}
    # a tenth of a second at the rate that is given
    flop = dict.fromkeys(works | set(update_throughput.NAMES), 1e9)
    text = benchmark.report({**content, "matmul_flop_per_second": 1e10, "flop": flop})
    assert "Large matrix products reach 10 GFLOP/s" in text
    if name == "iteration":
        seconds = content["seconds"]["agent"]
        assert f"| 0.1 s | {0.1 / seconds:.0%} |" in text
        assert f"| {1e3 * content['fit_step_seconds']:.1f} ms |  | 100.0 ms |" in text
    else:
        compiled = [r for r in content["results"] if r["compiled"] and r["update"] == "sac"]
        rate = compiled[0]["updates_per_second"]
        assert f"| {rate:.0f} |" in text and f"| 100.0 ms | {0.1 * rate:.0%} |" in text


@pytest.mark.parametrize("rounded", [True, False])
def test_the_comparison_has_a_column_a_side(rounded: bool, tmp_path: Path) -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "bfloat16": [1.0, 1.0, 1.0], "peer": [2.0, 8.0, 12.0]}
    if not rounded:
        del seconds["bfloat16"]
    results = {name: compare.summarise(seconds, 2) for name in compare.NAMES}
    # the median of the ratios within a round, not the ratio of the medians
    assert results["sac"]["ratio"] == 3 and results["sac"]["ours_seconds"] == [0.5, 1, 2]
    assert results["sac"].get("bfloat16_ratio") == (8 if rounded else None)
    machine = {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "9.9"}
    content = {"machine": machine, "peer_commit": "abc", "rounds": 3, "results": results}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    text = "<!-- benchmark:compare -->\n<!-- end of benchmark:compare -->\n"
    filled = put_in(text, tmp_path, tmp_path)
    head = "| work | OfflineRL-Kit (abc) | rambo_trl | faster |"
    row = "| one iteration | 4.0 s | 1.0 s | 3.0 x |"
    assert head + (" with bfloat16 | faster |" if rounded else "") in filled
    assert row + (" 0.5 s | 8.0 x |" if rounded else "") in filled
    assert "reached" not in filled  # older results have no products counted
    counted = {"matmul_flop_per_second": 1e9, "flop": dict.fromkeys(compare.NAMES, 25e7)}
    text = compare.report(content | counted)
    assert "| one iteration | 4.0 s | 1.0 s | 3.0 x | 0.2 s | 25% |" in text
    assert "Large matrix products reach 1 GFLOP/s" in text
    compare.draw(content).savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000


class Pretended:
    """A side whose peer's works, and those on one thread, last twice as long as the others."""

    def __init__(self, make: Any, args: Any) -> None:
        slow = make is compare.make_peer or args.threads == 1
        self.seconds, self.done = (0.02 if slow else 0.01), set[str]()

    def do(self, name: str, num: int = 1) -> float:
        self.done.add(name)
        time.sleep(self.seconds)
        return 1e9 if self.seconds == 0.02 else 2e9


def test_every_adversarial_update_is_measured_beside_the_peers_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[Pretended] = []
    monkeypatch.setattr(compare, "Side", lambda *args: sides.append(Pretended(*args)) or sides[-1])
    monkeypatch.setattr(compare, "matmul_rate", lambda: 1e9)
    flop = dict.fromkeys(("rollouts", "sac", "adversarial", *VARIANTS, "likelihood"), 1)
    monkeypatch.setattr(compare, "published_products", lambda **_: dict(flop))
    (tmp_path / "offlinerlkit").mkdir()
    options = ["--quick", "--out", str(tmp_path), "--peer", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    compare.main()
    ours, peer = sides
    assert ours.done == set(compare.NAMES)
    assert peer.done == {x for x in compare.NAMES if not x.endswith(("_member", "_fewer"))}
    content = json.loads((tmp_path / "compare.json").read_text())
    results = content["results"]
    for name, kind in itertools.product(("adversarial", "iteration"), ("member", "fewer")):
        variant = results[f"{name}_{kind}"]
        assert variant["peer_seconds"] == results[name]["peer_seconds"]
        assert variant["ours_seconds"] != results[name]["ours_seconds"]
        assert variant["ratio"] == pytest.approx(2, rel=0.5)
    assert content["flop"]["iteration"] == 1000 * compare.HORIZON + 2 * 2


def test_every_phase_is_measured_on_one_thread_and_on_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_by_phase, "Side", Pretended)
    options = ["--quick", "--threads", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["threads_by_phase.py", *options])
    before = torch.get_num_threads()
    try:
        threads_by_phase.main()
    finally:
        torch.set_num_threads(before)
    content = json.loads((tmp_path / "threads_by_phase.json").read_text())
    assert content["matmul_flop_per_second"] == {"1": 1e9, "2": 2e9}
    for of_threads in content["results"].values():
        assert of_threads["1"][0] / of_threads["2"][0] == pytest.approx(2, rel=0.5)
    assert "with each kind on the better" in threads_by_phase.report(content)


def test_scripts_that_need_the_recipes_find_them() -> None:
    for script in (ROOT / "benchmarks").glob("*.py"):
        modules = re.findall(r"^(?:import|from) (\w+)", script.read_text(), re.MULTILINE)
        if "launcher" in modules:
            assert modules.index("_recipes") < modules.index("launcher"), script


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """What a script sets of torch is put back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch itself, while it traces
@pytest.mark.usefixtures("graphs_only", "torch_settings")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rollout_throughput", ["--rows", "1000", "2000", "--horizons", "1", "--elites", "2"]),
        ("update_throughput", []),
        ("iteration", ["--eager"]),
        ("scaling", ["--eager"]),
    ],
)
def test_scripts_run_and_write_what_they_measured(
    name: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = scaling.in_fresh_process

    def one_in_a_process(args: Any, kind: str, value: int) -> dict[str, float]:
        measured = process if (kind, value) == ("rows", 1000) else scaling.measure_point
        return measured(args, kind, value)

    monkeypatch.setattr(scaling, "in_fresh_process", one_in_a_process)
    small = ["--quick", "--threads", "1", "--out", str(tmp_path)]
    numbers = ["--float32-matmul-precision", "high", "--bfloat16"]
    monkeypatch.setattr(sys, "argv", [name, *small, *numbers, *options])
    importlib.import_module(name).main()
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["float32_matmul_precision"] == "high"
    assert content["machine"]["model_matmul_dtype"] == "bfloat16"
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    text = f"<!-- benchmark:{name} -->\n<!-- end of benchmark:{name} -->"
    assert "| --- |" in put_in(text, tmp_path, tmp_path)
    if name == "rollout_throughput":
        rows = [r for r in content["results"] if r["compiled"]]
        sizes = [(r["rows"], r["horizon"], r["elites"]) for r in rows]
        assert sizes == [(1000, 1, 5), (2000, 1, 5), (2000, 1, 2)]
    if name in ("update_throughput", "iteration"):
        assert "| products alone | reached |" in put_in(text, tmp_path, tmp_path)
    if name == "scaling":
        assert content["results"]["observation size"]["update_slope"] > -1
        assert [d["transitions"] for d in content["data"]] == [1000, 2000]
        # a straight line through two points
        (small, large), (fast, slow) = (content["results"]["rows"][k] for k in ("sizes", "seconds"))
        slope = math.log(slow / fast) / math.log(large / small)
        assert content["results"]["rows"]["slope"] == pytest.approx(slope)


def test_data_loading_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    options = ["--rows", "1000", "--formats", "d4rl", "memmap", "--train-rows", "0"]
    result = run("data_loading.py", *options, "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["data_loading.json", "data_loading.png"]
    content = json.loads((out / "data_loading.json").read_text())
    assert list(content["load"]) == ["d4rl", "memmap"]
    assert content["load"]["d4rl"]["transitions"] == 1000
    text = "<!-- benchmark:data_loading -->\n<!-- end of benchmark:data_loading -->"
    assert "| memory-mapped files | 1,000 |" in put_in(text, out, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("compare --peer /nowhere", "--peer /nowhere holds no folder offlinerlkit"),
        ("threads_by_phase --threads 1", "one thread has nothing to be compared with"),
        ("iteration --threads 0", "--threads: must be at least 1, got 0"),
        ("iteration --device tpu9", "--device tpu9 can't be used"),
        ("rollout_throughput --rows 5 0", "--rows: must be at least 1, got 0"),
        ("rollout_throughput --elites 8", "--elites must be at most 7, got 8"),
        ("data_loading --folder /nowhere", "--folder /nowhere is no folder"),
        ("data_loading --train-rows -1", "--train-rows: must be at least 0, got -1"),
        (f"data_loading --out {__file__}", f"--out: {__file__} can't be used as a folder"),
    ],
)
def test_bad_options_are_named(
    options: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *words = options.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as refusal:
        importlib.import_module(name).main()
    assert message in f"{capsys.readouterr().err}{refusal.value}"


def test_one_command_runs_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, list[str]] = {}

    def note(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        script = Path(command[1])
        assert script.is_file()
        commands[script.stem] = command[2:]
        return subprocess.CompletedProcess(command, int(script.stem == "soak"))

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--threads", "1", "--out", "x", "--peer", "y"])
    with pytest.raises(SystemExit, match="failed: soak"):
        run_all.main()
    scripts = (ROOT / "benchmarks").glob("*.py")
    reporting = {path.stem for path in scripts if "def report" in path.read_text()}
    of_trainings = {"learning", "quick_scores", "score_by_minute"}
    assert commands.keys() == reporting - of_trainings
    assert commands["compare"] == ["--out", "x", "--threads", "1", "--peer", "y"]
    assert commands["data_loading"] == ["--out", "x"]
