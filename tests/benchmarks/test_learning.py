"""The benchmark of learning: both sides do what is said of them, and no finished epoch is lost."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import learning
import numpy as np
import pytest
import torch
from learning_ours import CpuStopwatch, clock_columns
from learning_peer import as_d4rl, check_data
from page import put_in
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.folder import RunFolder

ROOT = Path(__file__).parents[2]
#: a checkout of OfflineRL-Kit: OFFLINERL_KIT, or beside the repository
CHECKOUT = Path(os.environ.get("OFFLINERL_KIT", ROOT.parent / "OfflineRL-Kit"))
with_checkout = pytest.mark.skipif(
    not (CHECKOUT / "offlinerlkit").is_dir(), reason="needs a checkout of OfflineRL-Kit"
)
#: what makes runs small: both sides take them
SMALL = (
    "schedule=paper", "task=halfcheetah-medium-replay", "compile=false", "threads=1",
    "evaluation.episodes=1", "evaluation.every=1", "evaluation.last=1", "checkpoint_every=1",
    "agent_updates=10", "model_updates=10", "rollout_starts=40", "retained_epochs=2",
    "model.max_passes=2", "cloning.passes=2", "agent.hidden_sizes=[16,16]",
    "model.hidden_sizes=[16,16,16,16]", "on_divergence=continue", "odd_data=accept",
)  # fmt: skip


def made_up(num_episodes: int = 3, bound: float = 1.0) -> OfflineDataset:
    """Episodes of HalfCheetah's sizes, raw as the peer takes them."""
    draw = np.random.default_rng(0)
    episodes = [
        {
            "observations": draw.normal(3.0, 2.0, (301, 17)),
            "actions": draw.uniform(-bound, bound, (300, 6)),
            "rewards": draw.normal(size=300),
            "terminations": np.zeros(300, bool),
            "truncations": np.arange(300) == 299,
        }
        for _ in range(num_episodes)
    ]
    spec = Bounded(-bound, bound, shape=(6,))
    return OfflineDataset.from_episodes(
        episodes, action_spec=spec, env_id="HalfCheetah-v5", normalize=False
    )


def on_disk(folder: Path) -> Path:
    """The same as a file in D4RL's format, where both sides' programs find it."""
    path = folder / "halfcheetah_random-v2.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in as_d4rl(made_up()).items():
            file[key] = values.squeeze(-1) if values.shape[-1] == 1 else values
        file["timeouts"] = np.arange(900) % 300 == 299
    return path


def start(side: str, run_dir: Path, data: Path, *, epochs: int) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / f"learning_{side}.py")]
    given = [str(CHECKOUT)] if side == "peer" else []
    if side == "ours" and (run_dir / "config.yaml").is_file():
        words = [f"resume={run_dir}"]
    else:
        words = [*given, *SMALL, f"dataset={data}", f"run_dir={run_dir}"]
    result = subprocess.run(
        [*script, *words, f"epochs={epochs}"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]


# the clock


def test_the_clock_counts_work_and_not_waiting() -> None:
    progress: dict[str, Any] = {"cloned": {"score": 3.0}}
    watch = CpuStopwatch(progress)
    with watch("model_fit"):
        time.sleep(0.2)
    with watch("agent"):
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    with watch("model"):  # what a child did, such as a compiler, counts once it has ended
        subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    assert progress["cpu_seconds"]["model"] > 0.05
    with watch("evaluation"):
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    columns = clock_columns(progress)
    assert columns["cloned_score"] == 3.0
    pretraining = columns["wall_pretraining"], columns["cpu_pretraining"]
    assert pretraining == (progress["seconds"]["model_fit"], progress["cpu_seconds"]["model_fit"])
    assert pretraining[0] >= 0.2 and pretraining[1] < 0.1
    cpu = progress["cpu_seconds"]
    assert columns["cpu_seconds"] == pytest.approx(cpu["model_fit"] + cpu["agent"] + cpu["model"])
    assert cpu["agent"] >= 0.25 and cpu["evaluation"] > 0.05
    # a resumed run's goes on
    with CpuStopwatch(progress)("agent"):
        pass
    assert progress["cpu_seconds"]["agent"] >= cpu["agent"]


# the data


def test_the_peer_is_given_the_very_transitions() -> None:
    data = made_up()
    arrays, rows = as_d4rl(data), data.transitions
    assert arrays["observations"].shape == (900, 17) and arrays["rewards"].shape == (900, 1)
    assert arrays["observations"].mean() == pytest.approx(3.0, abs=0.1)  # raw
    # each row's successor is the next row's state, but for the last of an episode
    inner = np.arange(900) % 300 != 299
    after = np.roll(arrays["observations"], -1, axis=0)
    assert (arrays["next_observations"][inner] == after[inner]).all()
    assert (arrays["next_observations"][~inner] != after[~inner]).all()
    assert torch.equal(torch.from_numpy(arrays["actions"]), rows["action"])
    assert not arrays["terminals"].any()


def test_data_that_the_peer_cannot_take_are_refused() -> None:
    check_data(made_up())
    with pytest.raises(ValueError, match=r"has actions beyond or within \[-1, 1\]"):
        check_data(made_up(bound=2.0))
    nowhere = made_up()
    nowhere.has_simulator = False
    with pytest.raises(ValueError, match="names no environment to play in"):
        check_data(nowhere)


# the runs, one after the other


def options(out: Path, **given: Any) -> argparse.Namespace:
    defaults = {"peer": Path("/peer"), "epochs": 3, "updates": 250, "dataset": "d", "threads": 1}
    passes = {"fit_passes": 10, "cloning_passes": 4, "episodes": 5}
    return argparse.Namespace(**{**defaults, **passes, "out": out, **given})


def write_rows(folder: Path, epochs: int, cpu: float = 10.0) -> None:
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, epochs + 1):
        run.append_metrics(
            {
                "epoch": epoch, "score": 10.0 + epoch, "mean_q": 100.0 * epoch,
                "cloned_score": 5.0, "cpu_pretraining": 20.0, "cpu_seconds": 20.0 + cpu * epoch,
                "wall_pretraining": 30.0, "wall_seconds": 30.0 + 2 * cpu * epoch,
            }
        )  # fmt: skip


def test_a_run_that_is_complete_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def command(side: str, folder: Path, words: object, args: argparse.Namespace) -> list[str]:
        started.append(folder.name)
        return [sys.executable, "-c", "print('trained')"]

    monkeypatch.setattr(learning, "command", command)
    args = options(tmp_path)
    write_rows(tmp_path / "ours-seed0", 3)
    write_rows(tmp_path / "peer-seed0", 2)
    for side in learning.SIDES:
        learning.train(side, tmp_path / f"{side}-seed0", [], args)
    assert started == ["peer-seed0"]
    assert (tmp_path / "peer-seed0.log").read_text() == "trained\n"
    learning.train("ours", tmp_path / "ours-seed0", [], options(tmp_path, epochs=4))
    assert started == ["peer-seed0", "ours-seed0"]


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    monkeypatch.setattr(learning, "command", lambda *_: broken)
    with pytest.raises(SystemExit, match=r"ours-seed0 ended with 1:\s+no such thing"):
        learning.train("ours", tmp_path / "ours-seed0", [], options(tmp_path))


def test_a_started_run_of_ours_is_resumed(tmp_path: Path) -> None:
    args, folder = options(tmp_path), tmp_path / "ours-seed0"
    new = learning.command("ours", folder, ["seed=0"], args)
    assert new[1:] == [
        str(ROOT / "benchmarks/learning_ours.py"), "seed=0", "epochs=3", f"run_dir={folder}"
    ]  # fmt: skip
    peer = learning.command("peer", tmp_path / "peer-seed0", ["seed=0"], args)
    assert peer[2:] == ["/peer", "seed=0", "epochs=3", f"run_dir={tmp_path / 'peer-seed0'}"]
    folder.mkdir()
    (folder / "config.yaml").touch()
    resumed = learning.command("ours", folder, ["seed=0"], args)
    assert resumed[2:] == [f"resume={folder}", "epochs=3"]


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "learning"
    words = learning.settings_of(options(tmp_path), [])
    assert {"agent_updates=250", "model_updates=250", "rollout_starts=12500"} <= set(words)
    learning.check_same(folder, words)
    learning.check_same(folder, words)
    other = learning.settings_of(options(tmp_path, updates=500), [])
    with pytest.raises(SystemExit, match="agent_updates=250 agent_updates=500"):
        learning.check_same(folder, other)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_run_ends_with_the_benchmark(tmp_path: Path) -> None:
    # the run says that it has started and, told to end, that it has ended
    run = (
        "import pathlib, signal, sys, time\n"
        f"log = pathlib.Path({str(tmp_path)!r})\n"
        "def end(*_):\n    (log / 'ended').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "(log / 'started').touch()\ntime.sleep(60)\n"
    )
    benchmark = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]\n"
        "import argparse, signal, learning, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))\n"
        f"learning.command = lambda *_: [sys.executable, '-c', {run!r}]\n"
        f"folder = pathlib.Path({str(tmp_path / 'ours-seed0')!r})\n"
        "learning.train('ours', folder, [], argparse.Namespace(epochs=1, threads=1))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", benchmark], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert (tmp_path / "ended").exists()


# what comes of it


def content(folder: Path, *, peer: bool = True) -> dict[str, Any]:
    for side, cpu in {"ours": 10.0, **({"peer": 25.0} if peer else {})}.items():
        for seed in (0, 1):
            write_rows(folder / f"{side}-seed{seed}", 20, cpu)
    return {
        "machine": {"cpu": "a CPU", "device": "cpu", "threads": 1, "torch": "9.9"},
        "peer_commit": "abc", "updates": 250, "settings": [],
        "results": learning.collect(folder, [0, 1, 2]),
    }  # fmt: skip


def test_curves_begin_with_the_clone(tmp_path: Path) -> None:
    runs = content(tmp_path)["results"]
    assert [(run["side"], run["seed"]) for run in runs] == [
        ("ours", 0), ("peer", 0), ("ours", 1), ("peer", 1)
    ]  # fmt: skip
    run = runs[1]
    assert run["epoch"] == list(range(21))
    assert run["score"][:2] == [5.0, 11.0] and run["mean_q"][:2] == [None, 100.0]
    assert run["cpu_seconds"][:3] == [20.0, 45.0, 70.0] and run["wall_seconds"][0] == 30.0


def test_the_report_compares_what_was_spent(tmp_path: Path) -> None:
    text = learning.report(content(tmp_path))
    assert "20 epochs of 250 updates of each player, seeds 0, 1" in text
    assert "|  | OfflineRL-Kit (abc) | rambo_trl |" in text
    assert "| score of the clone | 5.0, 5.0 | 5.0, 5.0 |" in text
    assert "| score, last 10 epochs | 25.5, 25.5 | 25.5, 25.5 |" in text  # of 21 to 30
    assert "| mean Q, last 10 epochs | 1550, 1550 | 1550, 1550 |" in text
    assert "| an epoch, CPU seconds | 25.0, 25.0 | 10.0, 10.0 |" in text
    assert "An epoch takes 2.5 times less" in text and "included, 2.4 times less" in text
    alone = learning.report(content(tmp_path / "alone", peer=False))
    assert "|  | rambo_trl |" in alone and "times less" not in alone


def test_the_figure_has_a_line_for_each_run(tmp_path: Path) -> None:
    figure = learning.draw(content(tmp_path))
    by_epoch, by_time = figure.axes[:2]
    assert len(figure.axes) == 4
    assert all(len(axes.lines) == 4 for axes in figure.axes)
    peer = by_time.lines[0]
    assert peer.get_label() == "OfflineRL-Kit"
    assert peer.get_xdata()[-1] == pytest.approx(520 / 3600)
    assert list(by_epoch.lines[0].get_ydata())[:2] == [5.0, 11.0]
    figure.savefig(tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--peer /nowhere", "--peer /nowhere holds no folder offlinerlkit"),
        ("--updates 12", "must be a multiple of rollout_length=5"),
        ("adversarial_weight=0", "adversarial_weight=0 is not the same on both sides"),
        ("agent.actor_rate=1", "did you mean 'agent.actor_lr'"),
        ("--dataset nowhere", "nowhere"),
    ],
)
def test_bad_options_are_named(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "offlinerlkit").mkdir()
    given = ["learning", "--peer", str(tmp_path), "--out", str(tmp_path), *words.split()]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match="2"):
        learning.main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "learning").exists()


# both sides, small


@pytest.mark.slow
def test_ours_notes_the_clock_and_goes_on(tmp_path: Path) -> None:
    data = on_disk(tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    start("ours", whole, data, epochs=3)
    start("ours", stopped, data, epochs=1)
    start("ours", stopped, data, epochs=3)
    rows = [RunFolder(folder).read_metrics() for folder in (whole, stopped)]
    assert [row["mean_q"] for row in rows[0]] == [row["mean_q"] for row in rows[1]]
    for run in rows:
        spent: Any = [row["cpu_seconds"] for row in run]
        assert 0 < run[0]["cpu_pretraining"] < spent[0] < spent[1] < spent[2]  # type: ignore[operator]
        assert run[0]["score"] is not None and run[0]["cloned_score"] is not None


@with_checkout
@pytest.mark.slow
def test_the_peer_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    data = on_disk(tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    start("peer", whole, data, epochs=4)
    start("peer", stopped, data, epochs=2)
    start("peer", stopped, data, epochs=4)
    rows = [RunFolder(folder).read_metrics() for folder in (whole, stopped)]
    for key in ("mean_q", "score", "cloned_score"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]], key
    spent: Any = [row["cpu_seconds"] for row in rows[1]]
    assert 0 < rows[1][0]["cpu_pretraining"] < spent[0] < spent[1] < spent[2] < spent[3]  # type: ignore[operator]


@pytest.fixture
def importable() -> Any:
    """The peer's modules, gone again afterwards with their stand-ins."""
    path, modules = list(sys.path), dict(sys.modules)
    importlib.import_module("compare").make_importable(CHECKOUT)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        if name.partition(".")[0] in ("offlinerlkit", "gym", "d4rl", "pandas"):
            del sys.modules[name]


@with_checkout
@pytest.mark.usefixtures("importable")
@pytest.mark.filterwarnings("ignore")
def test_mean_q_is_that_of_the_batches(tmp_path: Path) -> None:
    from launcher.command_line import compose_jobs
    from launcher.settings import method_settings
    from learning_peer import Peer

    cfg = method_settings(compose_jobs("rambo", SMALL)[0])
    peer = Peer(cfg, made_up(), tmp_path)
    peer.clone()
    peer.fit()
    assert len(peer.dynamics.model.elites) == cfg.model.num_elites
    # every critic is asked twice with gradients in an update: of the rows' actions, of the policy's
    asked: list[list[torch.Tensor]] = [[], []]

    def noting(values: list[torch.Tensor]) -> Callable[..., None]:
        return lambda module, given, value: values.append(value) if value.requires_grad else None

    for critic, values in zip((peer.policy.critic1, peer.policy.critic2), asked, strict=True):
        critic.register_forward_hook(noting(values))
    mean_q = peer.train_epoch()
    first, second = (torch.stack(values[1::2]) for values in asked)
    assert first.shape == (cfg.agent_updates, cfg.agent.batch_size, 1)
    assert mean_q == pytest.approx(float(torch.minimum(first, second).mean()), rel=1e-4, abs=1e-5)
    assert peer.imagined._size == cfg.rollout_starts * cfg.rollout_length
    # evaluations have the seeds of ours, whatever was played before
    assert peer.evaluate(3) == peer.evaluate(3) != peer.evaluate(4)


def test_the_json_file_can_be_read_back(tmp_path: Path) -> None:
    written = content(tmp_path)
    again = json.loads(json.dumps(written))
    assert learning.report(again) == learning.report(written)


@with_checkout
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_command_trains_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = on_disk(tmp_path), tmp_path / "out"
    small = ["--quick", "--seeds", "0", "--dataset", str(data), "compile=false", "odd_data=accept"]
    words = ["--peer", str(CHECKOUT), "--out", str(out), *small]
    monkeypatch.setattr(sys, "argv", ["learning.py", *words])
    for _ in range(2):  # the second time there is nothing left to do
        learning.main()
        found = json.loads((out / "learning.json").read_text())
        assert [run["side"] for run in found["results"]] == ["ours", "peer"]
        for run in found["results"]:
            assert run["epoch"] == [0, 1, 2]
            assert None not in run["score"] and run["mean_q"][0] is None
            assert sorted(run["cpu_seconds"]) == run["cpu_seconds"]
    assert (out / "learning.png").stat().st_size > 5000
    assert not list((out / "learning").glob("*-compiled"))
    text = "<!-- benchmark:learning -->\n<!-- end of benchmark:learning -->"
    assert "| score of the clone |" in put_in(text, out, out)
