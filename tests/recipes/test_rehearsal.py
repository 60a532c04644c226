"""Compiling beside the fit: when it is begun, what is run, and that nothing is left of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launcher import rehearsal
from launcher.command_line import compose_jobs
from launcher.settings import check_config, method_settings, settle_budgets
from omegaconf import DictConfig

MODEL_BASED = ("rambo", "mopo", "combo", "mobile", "morel")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run, on an idle machine of two cores."""
    commands: list[list[str]] = []
    monkeypatch.setattr(
        rehearsal.subprocess, "Popen", lambda command, **_: commands.append(command)
    )
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return commands


def composed(method: str, *words: str) -> DictConfig:
    (cfg,) = compose_jobs(method, words)
    settle_budgets(cfg, [word.partition("=")[0] for word in words])
    return method_settings(cfg)


@pytest.mark.parametrize("method", MODEL_BASED)
@pytest.mark.parametrize("words", [(), ("model.max_passes=60", "seed=3", "agent.gamma=0.9")])
def test_a_rehearsal_has_the_runs_sizes_and_few_updates(
    method: str, words: tuple[str, ...], begun: list[list[str]]
) -> None:
    cfg = composed(method, *words)
    rehearsal.rehearse(cfg, words, 100_000)
    (command,) = begun
    given = command[2:]
    few = composed(method, *given)
    check_config(few)
    assert few.epochs == few.model.max_updates == 1 and few.pretrained is None
    assert few.agent_updates <= 2 and few.cloning.updates <= 2 and few.run_dir is not None
    same = ("seed", "dataset", "rollout_starts", "rollout_length", "threads")
    assert {key: few[key] for key in same} == {key: cfg[key] for key in same}
    for key in ("hidden_sizes", "batch_size", "gamma"):
        assert few.agent[key] == cfg.agent[key]
    assert few.model.batch_size == cfg.model.batch_size


def test_what_a_run_leaves_out_is_not_rehearsed(begun: list[list[str]]) -> None:
    words = ("agent.regression_updates=0", "model_updates=0", "cloning.updates=0")
    rehearsal.rehearse(composed("rambo", *words), words, 100_000)
    few = composed("rambo", *begun[0][2:])
    assert (few.agent.regression_updates, few.model_updates, few.cloning.updates) == (0, 0, 0)


@pytest.mark.parametrize(
    "words",
    [
        ("compile=false",),
        ("schedule=smoke",),
        ("model.max_updates=100", "model.holdout_every=50"),
        ("fitted_model=runs/other",),
    ],
)
def test_none_where_there_is_nothing_to_gain(words: tuple[str, ...], begun: list) -> None:
    rehearsal.rehearse(composed("rambo", *words), words, 100_000)
    assert not begun


def test_none_on_a_gpu(begun: list) -> None:
    cfg = composed("rambo")
    cfg.device = "cuda"
    rehearsal.rehearse(cfg, (), 100_000)
    assert not begun


def test_none_of_methods_without_a_model_or_data_that_fill_the_memory(begun: list) -> None:
    rehearsal.rehearse(composed("iql"), (), 100_000)
    rehearsal.rehearse(composed("rambo"), (), 10_000_000)
    assert not begun


@pytest.mark.parametrize(("load", "threads"), [(1.5, 1), (0.0, 2)])
def test_none_where_no_core_is_free(
    load: float, threads: int, begun: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rehearsal.rehearse(composed("rambo"), (), 100_000)
    assert not begun


def test_a_rehearsal_ends_between_functions_once_its_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "rehearsal" / "run"
    run.mkdir(parents=True)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("RAMBO_TRL_REHEARSAL_OF", str(os.getppid()))
    handler = rehearsal.Rehearsing(run)
    try:
        logging.getLogger("rambo_trl.runtime.compiling").warning("compiling")
        assert not ended and run.is_dir()
        monkeypatch.setenv("RAMBO_TRL_REHEARSAL_OF", "1")
        logging.getLogger("rambo_trl.runtime.compiling").warning("compiling")
        assert ended == [0] and not run.parent.exists()
    finally:
        logging.getLogger("rambo_trl.runtime.compiling").removeHandler(handler)


def test_nothing_is_left_of_a_rehearsal(tiny_dataset: None, tmp_path: Path) -> None:
    folder = tmp_path / "rehearsal"
    recipe = Path(rehearsal.__file__).parents[1] / "rambo.py"
    words = [
        "schedule=smoke", "task=inverteddoublependulum-medium-replay", "dataset=test/idp/tiny-v0",
        "evaluation.episodes=1", "epochs=1", "agent_updates=2", "model_updates=2",
        "model.max_updates=1", "cloning.updates=2", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, recipe, *words],
        env={**os.environ, "RAMBO_TRL_REHEARSAL_OF": str(os.getpid())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
