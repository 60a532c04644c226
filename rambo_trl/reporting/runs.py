"""Run folders as records, grouped into configurations: what reports and selection work on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rambo_trl.experiment.folder import LATER_SETTINGS, RunFolder
from rambo_trl.reporting.paper import ABLATION, RAMBO, rambo_label
from rambo_trl.runtime.places import expand_home

Row = Mapping[str, float | int | None]

#: settings, or groups of them, in which runs of one configuration may differ
_NOT_CONFIGURATION = frozenset(
    (
        "seed", "run_dir", "resume", "device", "compile", "deterministic",
        "float32_matmul_precision", "threads", "on_divergence", "odd_data", "evaluate_beside",
        "evaluation", "pretrained", "cache_dir", "fitted_model", "checkpoint_every",
        "checkpoint_minutes", "checkpoints_kept", "logger", "video", "retries",
        "hydra", "dataset", "method", "schedule_name", "run", "source",
    )
)  # fmt: skip
#: what schedules set while pretraining was counted in passes
_FORMER_SETTINGS = {
    "quick": {"model.max_passes": 8, "cloning.passes": 5},
    "thorough": {"model.max_passes": 25, "cloning.passes": 20},
    "smoke": {"model.max_passes": 1, "cloning.passes": 1},
}
_NEEDED = ("score", "seed", "dataset", "schedule", "epochs", "diverged")
_NO_SETTINGS: Mapping[str, Mapping[str, Any]] = {}


@dataclass(frozen=True)
class Record:
    """One run that has ended.

    Attributes:
        path: its folder.
        results: its ``results.json``.
        metrics: the rows of its ``metrics.csv``; none where there is no such file.
        settings: its ``config.yaml``, dotted keys; none where there is no such file.
    """

    path: Path
    results: Mapping[str, Any]
    metrics: Sequence[Row]
    settings: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The method's label, RAMBO where none is recorded.

        Whether lambda = 0 is the ablation depends on the data set, whatever the run says.
        """
        label = self.results.get("method", RAMBO)
        weight = self.results.get("adversarial_weight")
        if label in (RAMBO, ABLATION) and weight is not None:
            return rambo_label(weight, self.results["dataset"])
        return label

    @property
    def diverged(self) -> bool:
        """Whether its training diverged."""
        return bool(self.results["diverged"])

    @property
    def scored(self) -> bool:
        """Whether its data have reference scores; without them only returns are known."""
        if self.results.get("behaviour_score") is not None or self.series("score")[0]:
            return True
        # a run that diverged has the score 0 whatever its data
        return not self.diverged and self.results["score"] is not None

    @property
    def score(self) -> float | None:
        """The score; 0 for a run that diverged, as in the paper (Table 2)."""
        if not self.scored:
            return None
        return 0.0 if self.diverged else self.results["score"]

    @property
    def mean_return(self) -> float | None:
        """The mean return; None for a run that diverged: 0 may be more than any policy gets."""
        return None if self.diverged else self.results.get("return_mean")

    @property
    def updates_per_epoch(self) -> float:
        """Gradient steps of the agent in an epoch; 1 where they are not recorded."""
        epochs = self.results["epochs"]
        return self.results.get("agent_updates", epochs) / epochs if epochs else 1.0

    @property
    def minutes(self) -> float:
        """Minutes of computation."""
        return round(sum(self.results.get("seconds", {}).values()) / 60, 1)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """A column by the agent's updates; rows without it are left out.

        Returns:
            Updates and values, of one length.
        """
        points = [
            (self.updates_per_epoch * float(row["epoch"] or 0), float(value))
            for row in self.metrics
            if (value := row.get(key)) is not None
        ]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed only.

    Attributes:
        dataset: name of the data set.
        method: label of the method.
        schedule: name of the schedule.
        differs: settings in which it differs from the others of the same three.
        named: those of them that its label names: all but what the schedule sets itself.
        runs: ordered by seed.
    """

    dataset: str
    method: str
    schedule: str
    differs: Mapping[str, Any]
    named: Mapping[str, Any]
    runs: Sequence[Record]

    @property
    def scored(self) -> bool:
        """Whether its data have reference scores."""
        return any(run.scored for run in self.runs)

    @property
    def by_run(self) -> list[float | None]:
        """Each run's score, or its return where the data have no reference scores."""
        return [run.score if self.scored else run.mean_return for run in self.runs]

    @property
    def values(self) -> list[float]:
        """The same without runs that have none."""
        return [value for value in self.by_run if value is not None]

    @property
    def label(self) -> str:
        """Method, and the settings that tell it from others of the same method."""
        changes = ", ".join(f"{key}={value}" for key, value in self.named.items())
        return f"{self.method} ({changes})" if changes else self.method

    @property
    def name(self) -> str:
        """Label and schedule."""
        return f"{self.label}, {self.schedule}"

    @property
    def epochs(self) -> str:
        """Its runs' number of epochs, or the range of it."""
        epochs = sorted({run.results["epochs"] for run in self.runs})
        return f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"


class _OtherProgramError(ValueError):
    """A ``results.json`` that no training wrote."""


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Record], list[str]]:
    """Read run folders.

    Args:
        paths: run folders, or folders of sweeps: these stand for the runs below them, at any
            depth. A folder named twice counts once. Of a run that has ended ``results.json`` is
            enough.

    Returns:
        The runs that have ended, and a line on each of the folders that are left out: runs that
        have not ended, and what other programs than trainings wrote, where it was found below one
        of the paths.

    Raises:
        FileNotFoundError: for a path without a run, or if none of the runs has ended.
        NotADirectoryError: for a path that is no folder.
        ValueError: for a run whose files cannot be read, or a path that holds another program's.
    """
    folders: dict[Path, Path] = {}
    given: set[Path] = set()
    for path in map(expand_home, paths):
        below = _run_folders(path)
        if below == [path]:
            given.add(path.resolve())
        for folder in below:
            folders.setdefault(folder.resolve(), folder)
    runs: list[Record] = []
    left_out: list[str] = []
    for place, folder in folders.items():
        if not (folder / "results.json").is_file():
            left_out.append(f"not ended: {folder}")
            continue
        try:
            runs.append(_read(RunFolder(folder)))
        except _OtherProgramError as error:
            if place in given:
                raise
            left_out.append(str(error))
    if not runs:
        raise FileNotFoundError(f"no run that has ended (resume it first): {'; '.join(left_out)}")
    return runs, left_out


def _run_folders(path: Path) -> list[Path]:
    """The path itself if it is a run folder, or else the run folders below it, in order."""
    if not path.exists():
        raise FileNotFoundError(f"run folder {path} does not exist")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    runs: list[Path] = []
    seen: set[Path] = set()  # links may lead round in a circle
    for root, below, files in os.walk(path, followlinks=True):
        folder = Path(root)
        below.sort()
        if folder.resolve() in seen:
            below.clear()
        elif "results.json" in files or "config.yaml" in files:
            runs.append(folder)
            below.clear()  # what a run folder has below it is its own
        seen.add(folder.resolve())
    if not runs:
        raise FileNotFoundError(f"{path} holds no run, nor does any folder below it")
    return runs


def _read(folder: RunFolder) -> Record:
    config = folder.path / "config.yaml"
    try:
        results = folder.read_results()
        missing = [key for key in _NEEDED if not isinstance(results, dict) or key not in results]
        if missing:
            file = folder.path / "results.json"
            raise _OtherProgramError(f"{file} is another program's: it lacks {', '.join(missing)}")
        metrics = folder.read_metrics()
        settings = read_settings(config) if config.is_file() else {}
    except _OtherProgramError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"run folder {folder.path} cannot be read: {error}") from error
    if settings:
        settings = {**LATER_SETTINGS, **settings}
    if settings.get("cloned_policy") is not None:
        # that there was one counts, not whose: every seed may have its own
        settings["cloned_policy"] = "given"
    return Record(folder.path, results, metrics, settings)


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, under dotted keys.

    Args:
        file: a run's ``config.yaml``, or a schedule's.
    """
    settings: dict[str, Any] = {}

    def add(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                add(value, f"{key}.{name}" if key else str(name))
        elif key:
            settings[key] = node

    add(yaml.safe_load(file.read_text(encoding="utf-8")), "")
    return settings


def configurations(
    runs: Iterable[Record], schedules: Mapping[str, Mapping[str, Any]] = _NO_SETTINGS
) -> list[Configuration]:
    """Group runs by data set, method, schedule and the settings in which they differ.

    A setting that some runs do not have, because they are older than it, tells runs apart only
    where others have several values of it.

    Args:
        runs: in any order.
        schedules: by name, what each schedule sets, under dotted keys. Labels do not name a
            setting that is the schedule's own.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for run in sorted(runs, key=lambda run: (run.results["dataset"], run.results["seed"])):
        key = (run.results["dataset"], run.method, run.results["schedule"])
        groups.setdefault(key, []).append(run)
    result: list[Configuration] = []
    for (dataset, method, schedule), members in groups.items():
        keys = [
            key
            for key in dict.fromkeys(key for run in members for key in run.settings)
            if key.split(".")[0] not in _NOT_CONFIGURATION
            and len({repr(run.settings[key]) for run in members if key in run.settings}) > 1
        ]
        parts: dict[str, list[Record]] = {}
        for run in members:
            parts.setdefault(repr([run.settings.get(key) for key in keys]), []).append(run)
        for part in parts.values():
            differs = {key: part[0].settings.get(key, "unset") for key in keys}
            usual, updates = schedules.get(schedule, {}), "model.max_updates"
            if updates not in differs and part[0].settings.get(updates) is None:
                usual = {**usual, **_FORMER_SETTINGS.get(schedule, {})}
            named = {k: v for k, v in differs.items() if k not in usual or v != usual[k]}
            result.append(Configuration(dataset, method, schedule, differs, named, part))
    # RAMBO before the others
    result.sort(key=lambda c: (c.dataset, not c.method.startswith("RAMBO"), c.label, c.schedule))
    return result
