"""logger= and video= of a recipe's command line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes/rambo.py"


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    common = ("schedule=smoke", "dataset=test/idp/tiny-v0", "run_dir=mine")
    task = "task=inverteddoublependulum-medium-replay"
    command = [sys.executable, str(RECIPE), *common, task, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_is_tracked_and_filmed(tiny_dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(tmp_path, "logger=tensorboard", "video=gif")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "mine/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mean_q")] == [1, 2]
    filmed = (tmp_path / "mine/policy.gif").is_file()
    # a machine that cannot draw says so, and the run has ended well all the same
    assert filmed or "no video: nothing can be drawn here" in done.stderr
    assert set(events.Tags()["images"]) == {"learning_curve"} | ({"policy"} if filmed else set())


@pytest.mark.slow
def test_a_missing_package_is_named_before_any_work(tiny_dataset, tmp_path):
    missing = [n for n in ("trackio", "mlflow", "wandb") if importlib.util.find_spec(n) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    done = run(tmp_path, f"logger={missing[0]}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: logger={missing[0]} needs {missing[0]}: pip install 'rambo_trl[{missing[0]}]'"
    )
    assert not (tmp_path / "mine").exists()
