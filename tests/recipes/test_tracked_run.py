"""logger= and video= of a recipe's command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes/rambo.py"


#: runs a recipe as if a module were not installed
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(cwd: Path, *words: str, missing: str | None = None) -> subprocess.CompletedProcess[str]:
    common = ("schedule=smoke", "dataset=test/idp/tiny-v0", "run_dir=mine")
    task = "task=inverteddoublependulum-medium-replay"
    program = [str(RECIPE)] if missing is None else ["-c", WITHOUT, missing, str(RECIPE)]
    command = [sys.executable, *program, *common, task, *words]
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
    figures = {"learning_curve", "policy_path"}
    assert set(events.Tags()["images"]) == figures | ({"policy"} if filmed else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "module", "extra"),
    [("logger=mlflow", "mlflow", "mlflow"), ("video=mp4", "imageio_ffmpeg", "video")],
)
def test_a_missing_package_is_named_before_any_work(setting, module, extra, tiny_dataset, tmp_path):
    done = run(tmp_path, setting, missing=module)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {setting} needs {module}: pip install 'rambo_trl[{extra}]'"
    )
    assert not (tmp_path / "mine").exists()
