"""logger= and video= of a recipe's command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes/rambo.py"


WORDS = (
    "schedule=smoke", "dataset=test/idp/tiny-v0", "run_dir=mine",
    "task=inverteddoublependulum-medium-replay",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_is_tracked_and_filmed(tiny_dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [sys.executable, str(RECIPE), *WORDS, "logger=tensorboard", "video=gif"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "mine/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mean_q")] == [1, 2]
    filmed = (tmp_path / "mine/policy.gif").is_file()
    # a machine that cannot draw says so, and the run has ended well all the same
    assert filmed or "no video: nothing can be drawn here" in done.stderr
    figures = {"learning_curve", "policy_path"}
    assert set(events.Tags()["images"]) == figures | ({"policy"} if filmed else set())


@pytest.mark.parametrize(
    ("setting", "module", "extra"),
    [("logger=mlflow", "mlflow", "mlflow"), ("video=mp4", "imageio_ffmpeg", "video")],
)
def test_a_missing_package_is_named_before_any_work(
    setting, module, extra, tiny_dataset, tmp_path, run_recipe, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(SystemExit) as end:
        run_recipe(tmp_path, "rambo", *WORDS, setting)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {setting} needs {module}: pip install 'rambo_trl[{extra}]'"
    )
    assert not (tmp_path / "mine").exists()
