"""What happens around an epoch, with a method that does nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_evaluation
import torch
from launcher.program import announce_compilation
from run_results import last_screen
from training_run import choose_gpu, epoch_line

from rambo_trl.experiment import checkpoint
from rambo_trl.experiment.evaluation import EvaluationResult
from rambo_trl.experiment.signals import Interrupted, Interruption

#: returns of Hopper with the scores 0 and 100
HOPPER = (-20.272305, 3234.3)


@pytest.mark.parametrize(
    "moment", ["it is going on", "its checkpoint was decided on", "it has ended"]
)
def test_a_signal_ends_the_run_with_its_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    words, signals = ("epochs=6", "checkpoint_every=100"), Interruption(grace=0.2)
    run = toy.run(tmp_path / "run", *words, signals=signals)

    def decide(epoch: int) -> bool:
        if epoch == 2 and moment == "its checkpoint was decided on":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    epochs = []
    with pytest.raises(Interrupted), run.signals:
        run.begin(toy.Method())
        monkeypatch.setattr(run.checkpoints, "due", decide)
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                epochs.append(row["epoch"])
                if row["epoch"] == 2 and moment == "it is going on":
                    os.kill(os.getpid(), signal.SIGTERM)
                if row["epoch"] == 3:
                    time.sleep(1)  # longer than is waited for a signalled run
            if row["epoch"] == 2 and moment == "it has ended":
                os.kill(os.getpid(), signal.SIGTERM)
    assert epochs == [1, 2]
    progress = run.checkpoints.load()
    assert progress is not None and progress["epoch"] == 2
    assert [row["epoch"] for row in run.folder.read_metrics()] == [1, 2]


@pytest.mark.parametrize("moment", ["before the write", "after it", "while a due one is written"])
def test_a_signal_within_the_save_loses_no_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    every = 2 if moment.startswith("while") else 100
    words = ("epochs=6", f"checkpoint_every={every}")
    run = toy.run(tmp_path / "run", *words, signals=Interruption(grace=0.2, on_signal=str))
    write = checkpoint.write_atomically

    def write_slowly(*args: Any) -> None:
        if run.progress["epoch"] == 2 and not run.signals._signum:
            os.kill(os.getpid(), signal.SIGTERM)
        if moment == "after it":
            write(*args)
        time.sleep(0.5)  # longer than is waited for a signalled epoch
        if moment != "after it":
            write(*args)

    with pytest.raises(Interrupted), run.signals:
        run.begin(toy.Method())
        assert run.saved_text() == "nothing is saved yet"
        for row in run.epochs():
            monkeypatch.setattr(checkpoint, "write_atomically", write_slowly)
            with run.epoch(row), run.watch("agent"):
                pass
            if every == 100 and row["epoch"] == 2:  # comes in its last moment
                os.kill(os.getpid(), signal.SIGTERM)
    assert run.saved_text() == "epoch 2 is saved"
    again = toy.run(tmp_path / "run", *words)
    again.begin(toy.Method())
    assert next(iter(again.epochs())) == {"epoch": 3}
    assert again.saved_text() == "epoch 2 is saved"


def test_compiling_is_named_and_no_part_of_the_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: Any
) -> None:
    announce_compilation()
    log = logging.getLogger("rambo_trl.runtime.compiling")
    run = toy.run(tmp_path / "run", "epochs=2")
    run.begin(toy.Method())
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            log.info("compiling it: seconds", extra={"compiling": "compiling it"})
            assert "<?, compiling it]" in str(run.bar)
            time.sleep(0.3)
            log.debug("compiled it", extra={"compiling": None})
            time.sleep(0.01)
            run.bar.update()
            assert "agent]" in str(run.bar)
    assert run.progress["seconds"]["agent"] > 2 * 0.3
    assert 0.01 < run.watch.worked["agent"] < 0.3
    printed = capsys.readouterr()
    assert "compiling it: seconds" in printed.err and "compiled it" not in printed.err
    assert min(int(n) for n in re.findall(r"(\d+) updates/s", printed.out)) > 1 / 0.3


def test_what_a_kill_left_half_written_is_gone_once_the_run_is_resumed(
    tmp_path: Path, toy: Any
) -> None:
    for _ in range(2):
        run = toy.run(tmp_path / "run", "epochs=1")
        run.begin(toy.Method())
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                pass
        assert list(run.folder.path.rglob(".*.tmp")) == []
        for file in (".policy.safetensors.77.tmp", "checkpoint/.last.pt.77.tmp"):
            (run.folder.path / file).write_bytes(b"half")


def test_the_speed_of_a_resumed_run_is_that_of_its_own_steps(tmp_path: Path, toy: Any) -> None:
    for epochs in (1, 2):
        run = toy.run(tmp_path / "run", f"epochs={epochs}")
        run.begin(toy.Method())
        for row in run.epochs():
            state = run.bar.format_dict
            assert (state["initial"], state["n"], state["total"]) == (
                (row["epoch"] - 1) * run.method.updates,
                (row["epoch"] - 1) * run.method.updates,
                epochs * run.method.updates,
            )
            with run.epoch(row), run.watch("agent"):
                pass
    assert run.method.updates > 0


def test_a_run_begun_without_a_column_goes_on_without_it(tmp_path: Path, toy: Any) -> None:
    path = tmp_path / "run"
    for epochs in (2, 4):
        run = toy.run(path, f"epochs={epochs}")
        run.begin(toy.Method())
        for row in run.epochs():
            with run.epoch(row), run.watch("agent"):
                row["start_value"] = 1.0
        if epochs == 2:  # as a folder of before it was recorded has it
            lines = (path / "metrics.csv").read_text().splitlines()
            columns = lines[0].split(",")
            keep = [i for i, name in enumerate(columns) if name != "start_value"]
            kept = [",".join(line.split(",")[i] for i in keep) + "\n" for line in lines]
            (path / "metrics.csv").write_text("".join(kept))
    rows = run.folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all("start_value" not in row and "score" in row for row in rows)


def test_an_epoch_tells_of_the_game_whatever_the_model_is_held_to() -> None:
    row = {"epoch": 3, "return_mean": None, "mean_q": 2.0}
    game = {"model_advantage_mean": -0.5, "model_advantage_std": 1.25}
    assert epoch_line(row) == "epoch    3 | mean Q     2.00"
    told = epoch_line({**row, **game, "loss_model": 0.5})
    assert told.endswith("| model loss   0.500 | advantage  -0.50 +- 1.25")
    told = epoch_line({**row, **game, "loss_trust": 1.234e-5, "model_trust_distance": 1.234e-5})
    assert told.endswith("| trust distance 1.23e-05 | advantage  -0.50 +- 1.25")


def test_a_gpu_is_chosen_by_its_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_gpu("cpu")
    choose_gpu("cuda")  # which torch.cuda.set_device refuses
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:1"):
        choose_gpu(device)
    assert chosen == [torch.device("cuda:1")]


def test_the_score_is_the_mean_of_the_last_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    means = iter((1000.0, 10.0, 50.0, 120.0))

    def evaluate(*args: object, **kwargs: object) -> EvaluationResult:
        returns = next(means) + np.array([-3.0, 3.0])
        return EvaluationResult(returns, np.array([1, 1]), returns)

    monkeypatch.setattr(run_evaluation, "evaluate_policy", evaluate)
    words = ("epochs=12", "evaluation.every=5", "evaluation.last=3", "evaluate_beside=false")
    run = toy.run(tmp_path / "run", *words, env_id="Hopper-v5")
    run.begin(toy.Method())
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            pass
    results, rows = run.finish(), run.folder.read_metrics()
    # one every five epochs, and one after each of the last three
    assert [row["epoch"] for row in rows if row["return_mean"] is not None] == [5, 10, 11, 12]
    assert results["return_mean"] == 60 and results["evaluations_averaged"] == 3
    per_point = (HOPPER[1] - HOPPER[0]) / 100
    assert results["score"] == pytest.approx((60 - HOPPER[0]) / per_point)
    assert rows[-1]["score_std"] == pytest.approx(3 / per_point)
    # the toy's data: returns from -1 to 1
    assert results["behaviour_score"] == pytest.approx(-HOPPER[0] / per_point)
    assert results["behaviour_score_best"] == pytest.approx((1 - HOPPER[0]) / per_point)
    assert f"{60 / per_point:+.1f} points against the data's" in last_screen(results, run.folder)


def test_a_checkpoint_comes_after_the_rows_that_it_is_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    def submit(*args: object, **kwargs: object) -> Future[EvaluationResult]:
        future: Future[EvaluationResult] = Future()
        result = EvaluationResult(*(np.ones(2) for _ in range(3)))
        threading.Timer(0.2, future.set_result, [result]).start()  # after the epoch's end
        return future

    monkeypatch.setattr(run_evaluation.EvaluationProcess, "submit", submit)
    words = ("epochs=4", "checkpoint_every=2", "evaluate_beside=true")
    run = toy.run(tmp_path / "run", *words, env_id="InvertedPendulum-v5")
    run.begin(toy.Method())
    save, found = run.checkpoints.save, []

    def noting(progress: dict[str, Any]) -> None:
        found.append((progress["epoch"], [row["epoch"] for row in run.folder.read_metrics()]))
        save(progress)

    monkeypatch.setattr(run.checkpoints, "save", noting)
    for row in run.epochs():
        with run.epoch(row), run.watch("agent"):
            pass
    assert found == [(0, []), (2, [1, 2]), (4, [1, 2, 3, 4])]
