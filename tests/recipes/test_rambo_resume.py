"""Runs that were ended on the way, by a signal or a kill, and runs that share their pretraining."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from launcher import start as run_start
from launcher.command_line import compose_jobs
from launcher.program import EndingWell
from omegaconf import OmegaConf

from rambo_trl.experiment.folder import RunFolder

TESTS = Path(__file__).parents[1]
RECIPE = TESTS.parent / "recipes" / "rambo.py"
SETTINGS = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "dataset=test/idp/tiny-v0",
    "seed=3", "epochs=5", "checkpoint_every=4",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("tiny_dataset", "undrawn")


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(RECIPE), *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = run.communicate(timeout=300)
    assert run.returncode == code, err
    return out, err


def wait_for(run: subprocess.Popen[str], path: Path, lines: int = 0) -> None:
    deadline = time.monotonic() + 200
    while not path.is_file() or (lines and len(path.read_text().splitlines()) < lines):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def outcome(folder: Path) -> tuple[str, bytes, dict[str, Any]]:
    path = json.loads((folder / "results.json").read_text())["path"]
    return (folder / "metrics.csv").read_text(), (folder / "policy.safetensors").read_bytes(), path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_dataset: None, run_recipe: Callable[..., None]
) -> Path:
    """An undisturbed run, whose pretraining others may share."""
    cwd = tmp_path_factory.mktemp("whole")
    run_recipe(cwd, "rambo", *SETTINGS, "run_dir=run", "pretrained=auto", "cache_dir=cache")
    return cwd / "run"


@pytest.fixture
def resume(
    tmp_path: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Resumes the run: what is said."""

    def resume() -> str:
        capsys.readouterr()
        run_recipe(tmp_path, "rambo", "resume=run")
        return "".join(capsys.readouterr())

    return resume


def test_a_killed_run_resumes_to_the_same_numbers(
    tmp_path: Path, whole: Path, resume: Callable[[], str]
) -> None:
    run = start(tmp_path, *SETTINGS, "run_dir=run", "checkpoint_every=2")
    wait_for(run, tmp_path / "run/metrics.csv", lines=4)
    run.kill()
    finish(run, code=-signal.SIGKILL)
    assert not (tmp_path / "run/results.json").exists()
    resume()
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_signal_in_an_epoch_leaves_a_checkpoint_of_it(
    tmp_path: Path, whole: Path, resume: Callable[[], str]
) -> None:
    run = start(tmp_path, *SETTINGS, "run_dir=run")
    wait_for(run, tmp_path / "run/metrics.csv", lines=3)
    signalled = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, err = finish(run, code=128 + signal.SIGTERM)
    assert time.monotonic() - signalled < 30
    assert "Traceback" not in err
    hint = f"resume with: python {RECIPE} resume=run"
    told = re.search(rf"interrupted by SIGTERM; epoch (\d) is saved; {hint}", err)
    # the epoch that the signal came in; the second if its checkpoint was still to be written
    assert told is not None and told[1] in "23"
    assert f"resuming after epoch {told[1]}\n" in resume()
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_signal_in_pretraining_ends_the_run_at_once(
    tmp_path: Path, whole: Path, resume: Callable[[], str]
) -> None:
    run = start(tmp_path, *SETTINGS, "run_dir=run")
    wait_for(run, tmp_path / "run/config.yaml")
    run.send_signal(signal.SIGINT)
    _, err = finish(run, code=128 + signal.SIGINT)
    told = "interrupted by SIGINT; (nothing|the fitted model|the pretraining) is saved.*resume=run"
    assert "Traceback" not in err and re.search(told, err)
    assert not (tmp_path / "run/metrics.csv").exists()
    resume()
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_kill_while_the_behaviour_is_cloned(tmp_path: Path, whole: Path) -> None:
    run = start(tmp_path, *SETTINGS, "run_dir=run")
    wait_for(run, tmp_path / "run/checkpoint/last.pt")
    run.kill()
    finish(run, code=-signal.SIGKILL)
    assert not (tmp_path / "run/metrics.csv").exists()
    # what a kill in the middle of a write would have left
    (tmp_path / "run/checkpoint/.last.pt.1.tmp").write_bytes(b"half")
    # on a CPU the numbers repeat anyway: to ask for it changes none
    _, err = finish(start(tmp_path, "resume=run", "checkpoints_kept=2", "deterministic=true"))
    assert "fit the model" not in err
    assert outcome(tmp_path / "run") == outcome(whole)
    names = sorted(p.name for p in (tmp_path / "run/checkpoint").iterdir())
    assert names == ["epoch-000004.pt", "last.pt"]


def test_shared_pretraining_changes_no_number(
    tmp_path: Path,
    whole: Path,
    run_recipe: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("pretrained=auto", f"cache_dir={whole.parent / 'cache'}", "run_dir=run")
    capsys.readouterr()  # the first run's, where it was for this test
    run_recipe(tmp_path, "rambo", *SETTINGS, *words)
    out, err = capsys.readouterr()
    assert f"pretrained: {whole.parent / 'cache'}/" in out + err and "fit the model" not in err
    assert outcome(tmp_path / "run") == outcome(whole)
    results = [json.loads((p / "results.json").read_text()) for p in (whole, tmp_path / "run")]
    for key in ("cloned_score", "holdout_mse", "model_passes", "score"):
        assert results[0][key] == results[1][key]
    assert results[0]["checkpoint_bytes"] > 0 and results[0]["seconds"]["checkpoint"] > 0


class Prepared(Exception):
    """What comes after the checks."""


@pytest.mark.parametrize("resumed", [False, True])
def test_deterministic_algorithms_are_asked_for_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    def stop(cfg: object) -> None:
        raise Prepared

    asked: list[bool] = []
    monkeypatch.setattr(run_start, "make_deterministic", lambda: asked.append(True))
    monkeypatch.setattr(run_start, "load_data", stop)
    for flag in ("false", "true"):
        words = ["schedule=smoke", f"deterministic={flag}", f"run_dir={tmp_path / flag}"]
        (cfg,) = compose_jobs("rambo", words)
        if resumed:
            folder = RunFolder.create(tmp_path / flag)
            folder.write_config(OmegaConf.to_yaml(cfg))
            words = [f"resume={folder.path}"]
            (cfg,) = compose_jobs("rambo", words)
        hydra = SimpleNamespace(
            overrides=SimpleNamespace(task=words),
            runtime=SimpleNamespace(choices={"task": "hopper-medium-replay"}),
        )
        monkeypatch.setattr(run_start.HydraConfig, "get", lambda hydra=hydra: hydra)
        with pytest.raises(Prepared):
            run_start.prepare(cfg)
        assert asked == [True] * (flag == "true")


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "checkpoint last.pt could not be written (No space left on device): the one before"
    with pytest.raises(SystemExit) as end, EndingWell() as run:
        run.folder = RunFolder.create(tmp_path / "run")
        run.folder.lock()
        raise OSError(errno.ENOSPC, reason)
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {reason}; once that is settled, resume with: python ")
    assert err.endswith(f" resume={tmp_path / 'run'}\n") and err.count("\n") == 1
    RunFolder(tmp_path / "run").lock()  # it was given free


def test_other_errors_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), EndingWell():
        raise OSError(errno.ENOENT, "mine")
    with pytest.raises(ZeroDivisionError), EndingWell():
        raise ZeroDivisionError


def kill_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_and_resume", TESTS / "kill_and_resume.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("KILL_SEED", "0"))
    words = ("dataset=test/idp/tiny-v0",)
    assert kill_script().kill_and_resume(3, seed, tmp_path, words) == 0
    assert "3 of 3 resumed runs equal the undisturbed one" in capsys.readouterr().out
