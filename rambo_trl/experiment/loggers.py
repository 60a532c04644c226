"""A run's metrics, figures and videos in an experiment tracker, through TorchRL's loggers."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torchrl._utils import logger as torchrl_logger
from torchrl.record.loggers import Logger, MLFlowLogger, TensorboardLogger, WandbLogger
from torchrl.record.loggers.trackio import TrackioLogger

from rambo_trl.experiment.folder import write_atomically

__all__ = ["TrackerName", "Tracker", "check_tracker"]

TrackerName = Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"]

#: the module that each tracker needs, and the extra that brings it
_NEEDS = {
    "csv": None,
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
_STATE = "tracking.json"


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not known or not installed, before any work.

    Args:
        name: see :class:`Tracker`.

    Raises:
        ValueError: for an unknown name.
        ImportError: saying what to install.
    """
    if name not in _NEEDS:
        raise ValueError(f"logger must be one of {', '.join(_NEEDS)}, got {name}")
    module = _NEEDS[name]
    if module is not None and importlib.util.find_spec(module) is None:
        raise ImportError(f"logger={name} needs {module}: pip install 'rambo_trl[{name}]'")


class Tracker:
    """Follows one run in an experiment tracker. The run folder stays the place of record.

    What goes wrong in the tracker never ends a run: a warning says so once, nothing more is sent,
    and ``metrics.csv`` has it all. A resumed run goes on in the tracker's same run; the epochs that
    it repeats are sent again, with the same values.

    Args:
        name: ``"csv"`` (the run folder's own ``metrics.csv`` and nothing else), ``"tensorboard"``,
            ``"wandb"`` (offline unless ``WANDB_MODE=online``), ``"mlflow"`` (a data base in the
            run folder unless ``MLFLOW_TRACKING_URI`` is set) or ``"trackio"``.
        folder: the run folder, which also names the run.
        settings: the run's settings, nested as they like.
        project: what runs are gathered under.

    Raises:
        ValueError: for an unknown name.
        ImportError: if the tracker's package is not installed.

    Examples:
        >>> import tempfile
        >>> tracker = Tracker("csv", tempfile.mkdtemp())
        >>> tracker.log_metrics({"epoch": 1, "score": None, "mean_q": 2.5})
        >>> tracker.close()
    """

    def __init__(
        self,
        name: TrackerName,
        folder: str | os.PathLike[str],
        *,
        settings: Mapping[Any, Any] | None = None,
        project: str = "rambo_trl",
    ) -> None:
        check_tracker(name)
        self.name = name
        self.folder = Path(folder)
        self.logger: Logger | None = None
        if name == "csv":
            return
        state = self._read_state()
        resumed = state.get("logger") == name

        def begin() -> None:
            make = getattr(self, f"_make_{name}")
            self.logger = make(project, state.get("id") if resumed else None)
            write_atomically(
                self.folder / _STATE, json.dumps({"logger": name, "id": self._run_id()}).encode()
            )
            # a resumed run keeps the settings that it began with, which trackers do not replace
            if settings and not resumed:
                assert self.logger is not None
                self.logger.log_hparams(_flat(settings))

        self._carefully(begin)

    def log_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """Send one epoch.

        Args:
            row: column to number, ``"epoch"`` among them; None is left out.
        """
        metrics = {k: v for k, v in row.items() if v is not None and k != "epoch"}
        step = row["epoch"]

        def send() -> None:
            assert self.logger is not None
            self.logger.log_metrics(metrics, step=None if step is None else int(step))

        self._carefully(send)

    def log_file(self, path: str | os.PathLike[str]) -> None:
        """Send a figure (``.png``) or a video (``.gif``, ``.mp4``), named as its file.

        TensorBoard shows no mp4; it is left out there.

        Args:
            path: the file.
        """
        path = Path(path)
        if self.logger is not None:
            send = getattr(self, f"_send_to_{self.name}")
            self._carefully(lambda: send(path))

    def close(self) -> None:
        """End the tracker's run; what was sent is then on disk or on its server."""

        def end() -> None:
            if isinstance(self.logger, TensorboardLogger):
                self.logger.experiment.close()
            elif isinstance(self.logger, MLFlowLogger):
                import mlflow

                mlflow.end_run()
            else:
                assert self.logger is not None
                self.logger.experiment.finish()

        self._carefully(end)
        self.logger = None

    def _carefully(self, act: Callable[[], None]) -> None:
        """Do something with the tracker; at the first error it is given up with a word."""
        if self.logger is None and act.__name__ != "begin":
            return
        try:
            act()
        except Exception as error:
            self.logger = None
            torchrl_logger.warning(
                f"logger={self.name} failed and is off from here on, metrics.csv goes on: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            )

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / _STATE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _run_id(self) -> str | None:
        """What the tracker knows the run by."""
        if isinstance(self.logger, WandbLogger):
            return self.logger.experiment.id
        if isinstance(self.logger, MLFlowLogger):
            return self.logger.experiment.info.run_id
        if isinstance(self.logger, TrackioLogger):
            return self.logger.experiment.name
        return None

    def _make_tensorboard(self, project: str, run_id: str | None) -> Logger:
        return TensorboardLogger(exp_name="tensorboard", log_dir=str(self.folder))

    def _make_wandb(self, project: str, run_id: str | None) -> Logger:
        return WandbLogger(
            exp_name=self.folder.name,
            project=project,
            save_dir=self.folder,
            id=run_id,
            offline=os.environ.get("WANDB_MODE", "offline") != "online",
        )

    def _make_mlflow(self, project: str, run_id: str | None) -> Logger:
        # MLflow's start_run, which TorchRL calls without a run, goes on with the one named here
        if run_id is not None:
            os.environ["MLFLOW_RUN_ID"] = run_id
        store = os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if store is None:
            place = (self.folder / "mlflow").absolute()
            place.mkdir(exist_ok=True)
            store, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "artifacts").as_uri()
        try:
            made = MLFlowLogger(project, store, artifact_location=artifacts)
        finally:
            os.environ.pop("MLFLOW_RUN_ID", None)
        import mlflow

        mlflow.set_tag("mlflow.runName", self.folder.name)
        return made

    def _make_trackio(self, project: str, run_id: str | None) -> Logger:
        # Trackio knows runs by their names alone, and folders elsewhere may be called the same
        name = run_id or f"{self.folder.name}-{uuid.uuid4().hex[:8]}"
        return TrackioLogger(exp_name=name, project=project)

    def _send_to_tensorboard(self, path: Path) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        if path.suffix == ".mp4":
            return
        # TensorBoard's image is an encoded file, and a GIF moves: nothing is decoded
        with Image.open(path) as image:
            width, height = image.size
        assert isinstance(self.logger, TensorboardLogger)
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        writer = self.logger.experiment._get_file_writer()
        writer.add_summary(Summary(value=[Summary.Value(tag=path.stem, image=content)]), 0)

    def _send_to_wandb(self, path: Path) -> None:
        import wandb

        if path.suffix in (".gif", ".mp4"):
            content = wandb.Video(str(path), format=path.suffix[1:])
        else:
            content = wandb.Image(str(path))
        assert isinstance(self.logger, WandbLogger)
        self.logger.experiment.log({path.stem: content})

    def _send_to_mlflow(self, path: Path) -> None:
        import mlflow

        mlflow.log_artifact(str(path))

    def _send_to_trackio(self, path: Path) -> None:
        import trackio

        kind = trackio.Video if path.suffix in (".gif", ".mp4") else trackio.Image
        assert isinstance(self.logger, TrackioLogger)
        self.logger.experiment.log({path.stem: kind(str(path))})


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; what is no number, text or flag becomes text."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            plain = isinstance(value, (str, int, float, bool))
            flat[f"{prefix}{key}"] = value if plain else str(value)
    return flat
