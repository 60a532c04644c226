from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchrl._utils import logger as torchrl_logger

from rambo_trl.experiment import loggers as tracking
from rambo_trl.experiment.loggers import Tracker, check_tracker

# trackers' own deprecations are not this project's
pytestmark = pytest.mark.filterwarnings("default")

SETTINGS = {"seed": 3, "agent": {"gamma": 0.99, "hidden_sizes": [8, 8]}, "resume": None}
ROWS = [
    {"epoch": 1, "score": None, "mean_q": 2.5},
    {"epoch": 2, "score": 12.5, "mean_q": -1.0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "hopper-seed3"
    path.mkdir()
    figure = Figure()
    FigureCanvasAgg(figure)
    figure.savefig(path / "learning_curve.png", dpi=20)
    return path


@pytest.fixture
def gif(folder: Path) -> Path:
    imageio = pytest.importorskip("imageio.v3")
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    imageio.imwrite(folder / "policy.gif", frames, plugin="pillow", duration=40)
    return folder / "policy.gif"


def track(name: str, folder: Path, rows=ROWS, files=()) -> None:
    tracker = Tracker(name, folder, settings=SETTINGS)
    assert tracker.logger is not None or name == "csv"
    for row in rows:
        tracker.log_metrics(row)
    for path in files:
        tracker.log_file(path)
    assert tracker.logger is not None or name == "csv", "the tracker was given up"
    tracker.close()


def test_csv_is_the_run_folder_s_own_file(folder):
    before = sorted(folder.iterdir())
    track("csv", folder, files=[folder / "learning_curve.png"])
    assert sorted(folder.iterdir()) == before


def test_tensorboard(folder, gif):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", folder, files=[folder / "learning_curve.png", gif])
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("score", "mean_q")}
    assert points == {"score": [(2, 12.5)], "mean_q": [(1, 2.5), (2, -1.0)]}
    for name in ("learning_curve", "policy"):
        (image,) = events.Images(name)
        (path,) = folder.glob(f"{name}.*")
        assert image.encoded_image_string == path.read_bytes()


@pytest.mark.slow
def test_wandb_offline_and_resumed(folder, gif, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    track("wandb", folder, files=[folder / "learning_curve.png", gif])
    wandb.teardown()  # its own process writes the file, and is waited for here
    (run,) = (folder / "wandb").glob("offline-run-*")
    log = next(run.glob("run-*.wandb")).read_bytes()
    for word in (b"mean_q", b"agent.gamma", b"learning_curve", folder.name.encode()):
        assert word in log, word
    assert [p.suffix for p in (run / "files/media").rglob("*.*") if p.is_file()].count(".png") == 1
    run_id = json.loads((folder / "tracking.json").read_text())["id"]
    assert run.name.endswith(run_id)

    track("wandb", folder, rows=[{"epoch": 3, "mean_q": 7.0}])
    ids = {p.name.rsplit("-", 1)[-1] for p in (folder / "wandb").glob("offline-run-*")}
    assert ids == {run_id}


@pytest.mark.slow
def test_mlflow_and_resumed(folder, gif, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", folder, files=[folder / "learning_curve.png", gif])
    track("mlflow", folder, rows=[{"epoch": 3, "mean_q": 7.0}])
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rambo_trl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params["agent.gamma"] == "0.99"
    history = client.get_metric_history(run.info.run_id, "mean_q")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, -1.0), (3, 7.0)]
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert kept == {"learning_curve.png", "policy.gif"}


@pytest.mark.slow
def test_trackio_and_resumed_beside_a_folder_of_the_same_name(folder, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    other = folder / "elsewhere" / folder.name
    other.mkdir(parents=True)
    track("trackio", folder, files=[folder / "learning_curve.png"])
    track("trackio", other, rows=[{"epoch": 1, "mean_q": 5.0}])
    track("trackio", folder, rows=[{"epoch": 3, "mean_q": 7.0}])
    found = {
        run.name: [row["mean_q"] for row in SQLiteStorage.get_logs("rambo_trl", run.name)
                   if "mean_q" in row]
        for run in trackio.Api().runs("rambo_trl")
    }  # fmt: skip
    names = [json.loads((f / "tracking.json").read_text())["id"] for f in (folder, other)]
    assert found == {names[0]: [2.5, -1.0, 7.0], names[1]: [5.0]}
    assert all(name.startswith(folder.name) for name in names)


class TestWhatGoesWrong:
    def test_not_installed(self, monkeypatch, folder):
        monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'rambo_trl\[mlflow\]'"):
            Tracker("mlflow", folder)
        check_tracker("csv")

    def test_a_tracker_that_fails_is_given_up_with_one_word(self, folder, caplog):
        pytest.importorskip("tensorboard")
        tracker = Tracker("tensorboard", folder)
        logger = tracker.logger

        def fail(*args, **kwargs):
            raise ConnectionError("no server\nat all")

        logger.log_metrics = fail
        monkey = logging.Handler()
        said: list[str] = []
        monkey.emit = lambda record: said.append(record.getMessage())
        torchrl_logger.addHandler(monkey)
        try:
            for row in ROWS:
                tracker.log_metrics(row)
            tracker.log_file(folder / "learning_curve.png")
            tracker.close()
        finally:
            torchrl_logger.removeHandler(monkey)
        (message,) = said
        assert "logger=tensorboard failed" in message and "no server at all" in message
