"""What happens around an epoch, with a training that does nothing."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from launcher.program import announce_compilation
from torch import nn

from rambo_trl.experiment import checkpoint, evaluation
from rambo_trl.experiment.checkpoint import stateful
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.evaluation import EVALUATION_SEED, EvaluationResult, write_policy
from rambo_trl.experiment.results import last_screen
from rambo_trl.experiment.run import Epoch, Inspection, Stopwatch, epoch_line
from rambo_trl.experiment.signals import Interrupted, Interruption
from rambo_trl.runtime.progress import Bar

#: returns of Hopper with the scores 0 and 100
HOPPER = (-20.272305, 3234.3)


# --- a run names its parts, and logs what its epochs bring


def test_parts_are_saved_by_their_names_and_those_of_several_one_by_one(
    tmp_path: Path, toy: Any
) -> None:
    net, optimizer = nn.Linear(1, 1), nn.Linear(1, 2)
    phase = SimpleNamespace(stateful_parts={"loss": net, "optimizer": optimizer})
    parts = {"agent": phase, "world_model": net, "trust": None, "collector": optimizer}
    wanted = {
        "agent_loss": net, "agent_optimizer": optimizer, "world_model": net, "collector": optimizer,
    }  # fmt: skip
    assert stateful(parts) == wanted
    run = toy(tmp_path / "run")
    assert not run.begun
    run.track(label="toy", policy=run.actor, **parts)
    assert run.begun and run.progress["epoch"] == 0
    run.checkpoint()
    saved = torch.load(run.checkpoints.last, weights_only=True)["parts"]
    assert saved.keys() == wanted.keys()
    # a run that has a part more cannot be resumed from it, and has not begun
    again = toy(tmp_path / "run")
    with pytest.raises(ValueError, match=r"\['agent_loss', .*'world_model'\], this run has .*more"):
        again.track(label="toy", policy=again.actor, **parts, more=nn.Linear(1, 1))
    assert not again.begun


def test_what_is_logged_has_its_prefix_but_for_losses() -> None:
    with Bar(desc="train", total=1) as bar:
        epoch = Epoch(3, Stopwatch({}), bar)
        epoch.log({"mean_q": 1.0, "loss_actor": 2.0})
        epoch.log({"advantage_mean": 3.0, "loss_model": 4.0, "error": 5.0}, prefix="model_")
    assert epoch.row == {
        "epoch": 3, "mean_q": 1.0, "loss_actor": 2.0, "model_advantage_mean": 3.0,
        "loss_model": 4.0, "model_error": 5.0,
    }  # fmt: skip


def test_an_inspection_gives_the_parts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, net, policy = Inspection(), nn.Linear(1, 1), nn.Linear(1, 1)
    run.track(label="toy", policy=policy, world_model=net, trust=None)
    assert run.policy is policy and run.parts == {"world_model": net, "trust": None}
    assert list(run.epochs(monitor=DivergenceMonitor(1.0, 0.9), updates=1)) == []
    assert run.finish(results={"a": 1}) == {} and list(tmp_path.iterdir()) == []


def test_rewards_are_shown_in_the_data_s_unit_and_vectors_as_their_mean(
    tmp_path: Path, toy: Any
) -> None:
    run = toy(tmp_path / "run", epochs=1)
    run.track(label="toy", policy=run.actor, reward_unit=4.0, actor=run.actor)
    for epoch in run.epochs(monitor=DivergenceMonitor(1.0, 0.9), updates=1):
        epoch.log({"mean_q": 2.0, "alpha": 0.5, "loss_qvalue": 3.0})
        epoch.log({"reward": 1.0, "error": torch.tensor([1.0, 2.0])}, prefix="model_")
    (row,) = run.folder.read_metrics()
    found = [row[k] for k in ("mean_q", "alpha", "loss_qvalue", "model_reward", "model_error")]
    assert found == [8.0, 2.0, 3.0, 4.0, 1.5]


# --- signals, kills and resumption


@pytest.mark.parametrize(
    "moment", ["it is going on", "its checkpoint was decided on", "it has ended"]
)
def test_a_signal_ends_the_run_with_its_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    signals = Interruption(grace=0.2)
    run = toy(tmp_path / "run", epochs=6, checkpoint_every=100, signals=signals)

    def decide(self: Any, epoch: int) -> bool:
        if epoch == 2 and moment == "its checkpoint was decided on":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(checkpoint.Checkpoints, "due", decide)
    lap = Bar.lap

    def end(bar: Bar) -> None:
        lap(bar)
        if len(epochs) == 2 and moment == "it has ended":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Bar, "lap", end)
    epochs = []
    with pytest.raises(Interrupted), run.signals:
        for epoch in run.play():
            epochs.append(epoch.number)
            if epoch.number == 2 and moment == "it is going on":
                os.kill(os.getpid(), signal.SIGTERM)
            if epoch.number == 3:
                time.sleep(1)  # longer than is waited for a signalled run
    assert epochs == [1, 2]
    progress = run.checkpoints.load()
    assert progress is not None and progress["epoch"] == 2
    assert [row["epoch"] for row in run.folder.read_metrics()] == [1, 2]


@pytest.mark.parametrize("moment", ["before the write", "after it", "while a due one is written"])
def test_a_signal_within_the_save_loses_no_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    every = 2 if moment.startswith("while") else 100
    signals = Interruption(grace=0.2, on_signal=str)
    run = toy(tmp_path / "run", epochs=6, checkpoint_every=every, signals=signals)
    write = checkpoint.write_atomically

    def write_slowly(*args: Any) -> None:
        if run.progress["epoch"] == 2 and not run.signals._signum:
            os.kill(os.getpid(), signal.SIGTERM)
        if moment == "after it":
            write(*args)
        time.sleep(0.4)  # longer than is waited for a signalled epoch
        if moment != "after it":
            write(*args)

    with pytest.raises(Interrupted), run.signals:
        for epoch in run.play():
            if epoch.number == 1:
                assert run.saved_text() == "nothing is saved yet"
            monkeypatch.setattr(checkpoint, "write_atomically", write_slowly)
            if every == 100 and epoch.number == 2:  # comes in its last moment
                os.kill(os.getpid(), signal.SIGTERM)
    assert run.saved_text() == "epoch 2 is saved"
    again = toy(tmp_path / "run", epochs=6)
    assert next(again.play()).number == 3
    assert again.saved_text() == "epoch 2 is saved"


def test_a_resumed_run_counts_on_and_clears_up_what_a_kill_left(tmp_path: Path, toy: Any) -> None:
    for epochs in (1, 2):
        run = toy(tmp_path / "run", epochs=epochs)
        for epoch in run.play():
            with epoch.phase("agent") as bar:
                # the speed is that of its own steps
                state = [bar.format_dict[key] for key in ("initial", "n", "total")]
                assert state == [epochs - 1, epoch.number - 1, epochs]
        assert list(run.folder.path.rglob(".*.tmp")) == []
        for file in (".policy.safetensors.77.tmp", "checkpoint/.last.pt.77.tmp"):
            (run.folder.path / file).write_bytes(b"half")


def test_a_run_begun_without_a_column_resumes_without_it(tmp_path: Path, toy: Any) -> None:
    path = tmp_path / "run"
    for epochs in (2, 4):
        run = toy(path, epochs=epochs)
        run.train(lambda _: {"start_value": 1.0})
        if epochs == 2:  # as a folder of before it was recorded has it
            lines = (path / "metrics.csv").read_text().splitlines()
            columns = lines[0].split(",")
            keep = [i for i, name in enumerate(columns) if name != "start_value"]
            kept = [",".join(line.split(",")[i] for i in keep) + "\n" for line in lines]
            (path / "metrics.csv").write_text("".join(kept))
    rows = run.folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all("start_value" not in row and "score" in row for row in rows)


def test_compiling_is_named_and_no_part_of_the_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: Any
) -> None:
    announce_compilation()
    log = logging.getLogger("rambo_trl.runtime.compiling")
    run = toy(tmp_path / "run", epochs=2)
    for epoch in run.play():
        with epoch.phase("agent") as bar:
            log.info("compiling it: seconds", extra={"compiling": "compiling it"})
            assert "<?, compiling it]" in str(bar)
            time.sleep(0.3)
            log.debug("compiled it", extra={"compiling": None})
            time.sleep(0.01)
            bar.update()
            assert "agent]" in str(bar)
    assert run.progress["seconds"]["agent"] > 2 * 0.3
    assert 0.01 < run.watch.worked["agent"] < 0.3
    printed = capsys.readouterr()
    assert "compiling it: seconds" in printed.err and "compiled it" not in printed.err
    assert min(int(n) for n in re.findall(r"(\d+) updates/s", printed.out)) > 1 / 0.3


def test_an_epoch_s_line_tells_of_the_adversary_whatever_the_model_is_held_to() -> None:
    row = {"epoch": 3, "return_mean": None, "mean_q": 2.0}
    adversary = {"model_advantage_mean": -0.5, "model_advantage_std": 1.25}
    assert epoch_line(row) == "epoch    3 | mean Q     2.00"
    line = epoch_line({**row, **adversary, "loss_model": 0.5})
    assert line.endswith("| model loss   0.500 | advantage  -0.50 +- 1.25")
    line = epoch_line({**row, **adversary, "loss_trust": 1.2e-5, "model_trust_distance": 1.234e-5})
    assert line.endswith("| trust distance 1.23e-05 | advantage  -0.50 +- 1.25")


# --- evaluations


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The seeds of each evaluation, which is noted in place of being made."""
    found: list[range] = []

    def evaluate(*args: object, num_episodes: int, seed: int, **kwargs: object) -> EvaluationResult:
        found.append(range(seed, seed + num_episodes))
        return EvaluationResult(*(np.ones(num_episodes) for _ in range(3)))

    def submit(self: Any, path: Path, *, seed: int) -> Future[EvaluationResult]:
        future: Future[EvaluationResult] = Future()
        future.set_result(evaluate(num_episodes=self.settings["num_episodes"], seed=seed))
        return future

    monkeypatch.setattr(evaluation, "evaluate_policy", evaluate)
    monkeypatch.setattr(evaluation.EvaluationProcess, "submit", submit)
    return found


@pytest.mark.parametrize(("seed", "beside"), [(0, True), (3, False)])
def test_a_run_evaluates_from_the_seed_that_its_results_name(
    seed: int, beside: bool, tmp_path: Path, played: list[range], toy: Any
) -> None:
    options = {"seed": seed, "evaluate_beside": beside, "evaluation_episodes": 3}
    results = toy(tmp_path / "run", env_id="InvertedPendulum-v5", **options).train()
    first = results["evaluation_seed"]
    assert first == EVALUATION_SEED + 10_000_000 * seed and results["evaluation_stride"] == 3
    # three episodes an epoch, from where the cloned policy's (epoch 0) end
    assert played == [range(first + 3 * epoch, first + 3 * epoch + 3) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize("numbers", [(10, 2), (2, 10), (4, 10, 1, 3)])
def test_a_run_resumed_with_another_number_of_episodes_repeats_no_seed(
    numbers: tuple[int, ...], tmp_path: Path, played: list[range], toy: Any
) -> None:
    for n, episodes in enumerate(numbers, 1):
        options = {"env_id": "InvertedPendulum-v5", "evaluation_episodes": episodes}
        results = toy(tmp_path / "run", epochs=3 * n, **options).train()
        # an epoch's seeds can be told from what is recorded
        first = results["evaluation_seed"] + 3 * n * results["evaluation_stride"]
        assert played[-1] == range(first, first + episodes)
    assert [len(seeds) for seeds in played] == [n for n in numbers for _ in range(3)]
    every = [EVALUATION_SEED + i for i in range(numbers[0])]  # the cloned policy's
    every += [seed for seeds in played for seed in seeds]
    assert len(set(every)) == len(every)


def test_the_score_is_the_mean_of_the_last_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    means = iter((1000.0, 10.0, 50.0, 120.0))

    def evaluate(*args: object, **kwargs: object) -> EvaluationResult:
        returns = next(means) + np.array([-3.0, 3.0])
        return EvaluationResult(returns, np.array([1, 1]), returns)

    monkeypatch.setattr(evaluation, "evaluate_policy", evaluate)
    options = {"evaluation_every": 5, "evaluation_last": 3, "evaluate_beside": False}
    run = toy(tmp_path / "run", epochs=12, env_id="Hopper-v5", **options)
    results, rows = run.train(), run.folder.read_metrics()
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

    save, found = checkpoint.Checkpoints.save, []

    def noting(self: Any, progress: dict[str, Any]) -> None:
        found.append((progress["epoch"], [row["epoch"] for row in run.folder.read_metrics()]))
        save(self, progress)

    monkeypatch.setattr(evaluation.EvaluationProcess, "submit", submit)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", noting)
    options = {"checkpoint_every": 2, "evaluate_beside": True}
    run = toy(tmp_path / "run", env_id="InvertedPendulum-v5", **options)
    run.train()
    assert found == [(0, []), (2, [1, 2]), (4, [1, 2, 3, 4])]


# --- divergence: what the critics report in some epochs; it is 1 in the others


def reporting(mean_q: dict[int, float]) -> Callable[[int], dict[str, float]]:
    return lambda epoch: {"mean_q": mean_q.get(epoch, 1.0)}


def policy_epoch(run: Any) -> int:
    """The epoch of whose end the run's policy is."""
    policies = []
    for epoch in range(5):
        run.learn(epoch)
        path = run.folder.path.parent / "policy.safetensors"
        write_policy(path, run.actor, run.dataset, run.options.seed)
        policies.append(path.read_bytes())
    assert len(set(policies)) == 5
    return policies.index((run.folder.path / "policy.safetensors").read_bytes())


@pytest.mark.parametrize("value", [1e9, math.nan])
@pytest.mark.parametrize(
    ("setting", "every", "epochs", "good"),
    [("stop", 1, 2, 1), ("stop", 3, 2, 0), ("continue", 1, 4, 1), ("continue", 3, 4, 0)],
)
def test_a_run_that_diverges_in_its_second_epoch(
    setting: str, every: int, epochs: int, good: int, value: float, tmp_path: Path, toy: Any
) -> None:
    run = toy(tmp_path / "run", on_divergence=setting, checkpoint_every=every)
    # the fourth epoch's is the second divergence, which changes nothing any more
    run.train(reporting({2: value, 4: value}))
    assert [row["epoch"] for row in run.folder.read_metrics()] == list(range(1, epochs + 1))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["diverged"] is True and results["score"] == 0
    assert results["divergence"]["epoch"] == 2 and "mean" in results["divergence"]["reason"]
    assert results["epochs"] == epochs
    assert policy_epoch(run) == good, "that of the last checkpoint before it diverged"


def test_a_run_that_continued_remembers_its_divergence_when_it_is_resumed(
    tmp_path: Path, toy: Any
) -> None:
    for epochs in (3, 5):
        run = toy(tmp_path / "run", on_divergence="continue", epochs=epochs)
        results = run.train(reporting({2: 1e9}))
    assert [row["epoch"] for row in run.folder.read_metrics()] == [1, 2, 3, 4, 5]
    assert results["epochs"] == 5 and results["divergence"]["epoch"] == 2
    assert policy_epoch(run) == 1


def test_without_a_divergence_the_last_policy_is_kept(tmp_path: Path, toy: Any) -> None:
    run = toy(tmp_path / "run")
    assert run.options.on_divergence == "stop"
    results = run.train(reporting({}))
    assert results["diverged"] is False and results["divergence"] is None
    assert policy_epoch(run) == 4


def test_a_resumed_run_remembers_the_entropy_that_its_bound_holds(tmp_path: Path, toy: Any) -> None:
    early, late = {"entropy": 5.0, "mean_q": 1.0}, {"entropy": 0.0, "mean_q": 100.0}
    for epochs in (1, 3):
        run = toy(tmp_path / "run", epochs=epochs)
        results = run.train(lambda n: {"alpha": 1.0, **(early if n == 1 else late)})
    # 2 * (1 + 5) / (1 - 0.9); without the entropy it were 20
    assert results["q_bound"] == pytest.approx(120) and results["diverged"] is False


def test_other_data_are_refused_and_the_runs_settings_stay(tmp_path: Path, toy: Any) -> None:
    toy(tmp_path / "run", config_text="dataset: a\n").train()
    run = toy(tmp_path / "run", config_text="dataset: b\n")
    run.dataset.transitions["next", "reward"] += 1
    with pytest.raises(ValueError, match="not, or no longer, what this run began with"):
        run.train()
    assert (tmp_path / "run/config.yaml").read_text() == "dataset: a\n"
    toy(tmp_path / "run", config_text="dataset: b\n").train()
    assert (tmp_path / "run/config.yaml").read_text() == "dataset: b\n"


def test_a_given_part_that_moved_is_the_same_one(tmp_path: Path, toy: Any) -> None:
    for name, content in (("p", "policy"), ("q", "policy"), ("r", "another")):
        (tmp_path / name).write_text(content)

    def begin(name: str) -> None:
        toy(tmp_path / "run", given={"cloned_policy": tmp_path / name}).train()

    begin("p")
    begin("q")
    with pytest.raises(ValueError, match="cloned_policy is another file"):
        begin("r")
    begin("gone")  # it is not needed any more
