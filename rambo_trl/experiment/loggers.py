"""A run's metrics, figures and videos in an experiment tracker, through TorchRL's loggers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torchrl._utils import logger as torchrl_logger
from torchrl.record.loggers import Logger, MLFlowLogger, TensorboardLogger, get_logger

from rambo_trl.experiment.folder import write_atomically

__all__ = ["TrackerName", "Tracker", "check_tracker"]

#: all but ``csv`` are also the module that is needed and the extra that brings it
TrackerName = Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"]
_STATE = "tracking.json"
#: what runs are gathered under
_PROJECT = "rambo_trl"


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not known or not installed, before any work.

    Raises:
        ImportError: saying what to install.
    """
    if name != "csv" and importlib.util.find_spec(name) is None:
        raise ImportError(f"logger={name} needs {name}: pip install 'rambo_trl[{name}]'")


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

    Raises:
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
    ) -> None:
        check_tracker(name)
        self.name, self.folder = name, Path(folder)
        self.logger: Logger | None = None
        if name == "csv":
            return
        with self._off_on_error():
            file = self.folder / _STATE
            state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            resumed = state.get("logger") == name
            self.logger, run_id = self._open(state.get("id") if resumed else None)
            write_atomically(file, json.dumps({"logger": name, "id": run_id}).encode())
            # a resumed run keeps the settings that it began with, which trackers do not replace
            if settings and not resumed:
                self.logger.log_hparams(_flat(settings))

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Send one epoch.

        Args:
            row: column to number, ``"epoch"`` among them; None is left out.
        """
        metrics = {k: v for k, v in row.items() if v is not None and k != "epoch"}
        if self.logger is not None:
            with self._off_on_error():
                self.logger.log_metrics(metrics, step=row["epoch"])

    def log_file(self, path: str | os.PathLike[str]) -> None:
        """Send a figure (``.png``) or a video (``.gif``, ``.mp4``), named as its file.

        TensorBoard shows no mp4; it is left out there. TorchRL's ``log_video`` takes frames, which
        would be decoded and encoded again, with packages that nothing else here needs.

        Args:
            path: the file.
        """
        path = Path(path)
        if self.logger is None:
            return
        with self._off_on_error():
            if isinstance(self.logger, TensorboardLogger):
                _add_image(self.logger, path)
                return
            module = importlib.import_module(self.name)
            if self.name == "mlflow":
                module.log_artifact(str(path))
            elif path.suffix in (".gif", ".mp4"):
                video = module.Video(str(path), format=path.suffix[1:])
                self.logger.experiment.log({path.stem: video})
            else:
                self.logger.experiment.log({path.stem: module.Image(str(path))})

    def close(self) -> None:
        """End the tracker's run; what was sent is then on disk or on its server."""
        if self.logger is not None:
            with self._off_on_error():
                self.logger.close()
                if self.name == "mlflow":  # which TorchRL's logger leaves open
                    importlib.import_module("mlflow").end_run()
        self.logger = None

    @contextmanager
    def _off_on_error(self) -> Iterator[None]:
        """A block in whose first error the tracker is given up with one warning."""
        try:
            yield
        except Exception as error:
            self.logger = None
            torchrl_logger.warning(
                f"logger={self.name} failed and is off from here on, metrics.csv goes on: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            )

    def _open(self, run_id: str | None) -> tuple[Logger, str]:
        """Begin a run in the tracker, or continue one; with what the tracker knows it by."""
        if self.name == "mlflow":
            return self._open_mlflow(run_id)
        run_id = run_id or uuid.uuid4().hex[:8]
        # Trackio knows runs by their names alone, and folders elsewhere may be called the same
        if self.name == "trackio" and not run_id.startswith(self.folder.name):
            run_id = f"{self.folder.name}-{run_id}"
        names = {"tensorboard": "tensorboard", "wandb": self.folder.name, "trackio": run_id}
        offline = os.environ.get("WANDB_MODE", "offline") != "online"
        logger = get_logger(
            self.name,
            str(self.folder),
            names[self.name],
            wandb_kwargs={"project": _PROJECT, "id": run_id, "offline": offline},
            trackio_kwargs={"project": _PROJECT},
        )
        assert logger is not None
        return logger, run_id

    def _open_mlflow(self, run_id: str | None) -> tuple[Logger, str]:
        # get_logger's store is a folder of files, which MLflow no longer takes
        import mlflow

        store, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if store is None:
            place = (self.folder / "mlflow").absolute()
            place.mkdir(exist_ok=True)
            store, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "artifacts").as_uri()
        # start_run, which TorchRL calls without a run, continues the one named here
        if run_id is not None:
            os.environ["MLFLOW_RUN_ID"] = run_id
        try:
            logger = MLFlowLogger(_PROJECT, store, artifact_location=artifacts)
        finally:
            os.environ.pop("MLFLOW_RUN_ID", None)
        mlflow.set_tag("mlflow.runName", self.folder.name)
        return logger, logger.experiment.info.run_id


def _add_image(logger: TensorboardLogger, path: Path) -> None:
    """TensorBoard's image is an encoded file, and a GIF moves: nothing is decoded."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    if path.suffix == ".mp4":
        return
    with Image.open(path) as image:
        width, height = image.size
    content = Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
    )
    summary = Summary(value=[Summary.Value(tag=path.stem, image=content)])
    logger.experiment._get_file_writer().add_summary(summary, 0)


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
