"""A run: what surrounds the epochs of a training, whatever the method.

A recipe names its parts once (:meth:`Run.track`), does its work in the phases of
:meth:`Run.epochs` and ends with :meth:`Run.finish`; the run times, logs, evaluates, checkpoints,
resumes and notices divergence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.checkpoint import Checkpoints, stateful
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.epoch import Epoch, Metrics, Stopwatch, epoch_line
from rambo_trl.experiment.evaluation import (
    SCORE_COLUMNS,
    Evaluation,
    Scores,
    evaluation_seed,
    write_policy,
)
from rambo_trl.experiment.folder import RunFolder, remove_unfinished
from rambo_trl.experiment.loggers import Tracker
from rambo_trl.experiment.options import RunOptions
from rambo_trl.experiment.path_figure import plot_policy_path
from rambo_trl.experiment.policy_path import EPISODES, follow_policy
from rambo_trl.experiment.pretrained import dataset_digest, file_digest
from rambo_trl.experiment.results import PATH_FIGURE, finish_tracking, summarise
from rambo_trl.experiment.sanity import check_sanity
from rambo_trl.experiment.signals import Interruption
from rambo_trl.runtime.progress import Bar, busy

__all__ = ["Epoch", "Inspection", "Run", "RunOptions", "Stopwatch", "epoch_line"]

#: columns of ``metrics.csv`` in the rewards' units: the data's there, the learner's in training
REWARD_COLUMNS = frozenset({
    "alpha", "data_qvalue", "inconsistency", "mean_q", "model_advantage_mean",
    "model_advantage_std", "model_qvalue", "model_reward", "model_value", "penalized_qvalue",
    "start_value",
})  # fmt: skip
#: columns of ``metrics.csv`` that folders of earlier versions do not have
_LATER_COLUMNS = frozenset({"start_value", "discounted_return_mean"})


class _Unwritten(NamedTuple):
    """A row of ``metrics.csv`` that may wait for its evaluation."""

    row: Metrics
    updates_per_second: float
    scores: Future[Scores] | None


class Run:
    """One training: its data, its folder, its progress, and what happens around each epoch.

    Args:
        dataset: the offline data.
        folder: the run folder.
        signals: SIGINT and SIGTERM wait for an epoch's end.
        options: how it is evaluated, saved and logged.
        say: takes lines for the user; TorchRL's logger by default.

    Attributes:
        progress: numbers, strings, lists and dicts of them; saved with every checkpoint.
        watch: seconds per phase.
        evaluation: of the policy.
        begun: whether :meth:`track` has begun or resumed the run.
    """

    progress: dict[str, Any]
    evaluation: Evaluation
    checkpoints: Checkpoints
    watch: Stopwatch

    def __init__(
        self,
        dataset: OfflineDataset,
        folder: RunFolder,
        signals: Interruption,
        options: RunOptions,
        *,
        say: Callable[[str], object] = torchrl_logger.info,
    ) -> None:
        self.dataset, self.folder, self.signals = dataset, folder, signals
        self.options, self.say = options, say
        self.begun = self.stopped = False
        self.left_out: frozenset[str] = frozenset()  # columns that the folder was begun without
        self.saved: dict[str, Any] | None = None  # the newest checkpoint's progress
        self.unwritten: deque[_Unwritten] = deque()

    def track(
        self,
        *,
        label: str,
        policy: TensorDictModuleBase,
        reward_unit: float = 1.0,
        **parts: Any,
    ) -> None:
        """Name the parts that decide the run's future; begin, or resume from its checkpoint.

        Keyword Args:
            label: the method's name in results and reports.
            policy: the actor: evaluated, and written as ``policy.safetensors``.
            reward_unit: what a reward of 1 in training is in the data's units.
            **parts: what checkpoints hold, by name: anything with ``state_dict`` and
                ``load_state_dict``, or with ``stateful_parts``, a dict of such. Those that are
                None are left out.

        Raises:
            ValueError: if the checkpoint cannot be read, or was made with other settings or data.
        """
        options = self.options
        for path in (self.folder.path, self.folder.checkpoint_dir):  # which are locked
            remove_unfinished(path)
        self.label, self.policy, self.reward_unit = label, policy, reward_unit
        self.evaluation = Evaluation(policy, self.dataset, options)
        self.checkpoints = Checkpoints(
            self.folder.checkpoint_dir,
            stateful(parts),
            every=options.checkpoint_every,
            minutes=options.checkpoint_minutes,
            keep=options.checkpoints_kept,
            device=options.device,
        )
        with busy("looking for a checkpoint of these data"):
            self.progress = self._begin_or_resume()
        self.folder.write_config(options.config_text)  # a resumed run's may differ
        if self.checkpoints.last.is_file():
            self.saved = dict(self.progress)
        stride = max(self.progress.get("evaluation_stride", 0), options.evaluation_episodes)
        self.evaluation.stride = self.progress["evaluation_stride"] = stride
        self.watch = Stopwatch(self.progress["seconds"])
        self.tracker = Tracker(options.logger, self.folder.path, settings=dict(options.settings))
        self.begun = True

    def _begin_or_resume(self) -> dict[str, Any]:
        digest, files = dataset_digest(self.dataset), self.options.given.items()
        given = {f"{key}_digest": file_digest(path) for key, path in files if path.is_file()}
        progress = self.checkpoints.load()
        if progress is None:
            return {
                "epoch": 0,
                "transitions": 0,
                "seconds": {},
                "divergence": None,
                "dataset_digest": digest,
                **given,
            }
        if progress.get("dataset_digest", digest) != digest:
            raise ValueError(
                f"data set {self.dataset.name} is not, or no longer, what this run began with: "
                "give dataset= the place where that lies, or start a new run"
            )
        for key, value in given.items():
            if progress.get(key, value) != value:
                raise ValueError(
                    f"{key.removesuffix('_digest')} is another file than this run began with: "
                    "give that one, or leave it out"
                )
        progress.setdefault("dataset_digest", digest)
        self.say(f"resuming after epoch {progress['epoch']}")
        return progress

    def epochs(self, *, monitor: DivergenceMonitor, updates: int) -> Iterator[Epoch]:
        """The epochs still to come; after each its evaluation, its row and its checkpoint.

        A signal waits for the end of the epoch in which it comes, and for its checkpoint. A run
        that has diverged leaves its last good checkpoint in its parts.

        Keyword Args:
            monitor: says when the run has diverged.
            updates: gradient steps of an epoch, in the mean.

        Raises:
            Interrupted: after that epoch; or within one, when time is up.
        """
        self.folder.truncate_metrics(self.progress["epoch"])
        self.monitor, self.updates = monitor, updates
        for earlier in self.folder.read_metrics():  # a resumed run's
            monitor.check(earlier)
            self.left_out = _LATER_COLUMNS.difference(earlier)
        if self.saved is None:  # what a run that diverges at once goes back to
            self.checkpoint()
        done, last = self.progress["epoch"], self.options.epochs
        with (
            Bar(desc="train", total=last * updates, initial=done * updates, laps=True) as bar,
            self.signals.deferred(),
        ):
            self.watch.bar = bar
            for number in range(done + 1, last + 1):
                before = self._updating_seconds()
                epoch = Epoch(number, self.watch, bar)
                yield epoch
                self._end_epoch(epoch.row, self._updating_seconds() - before)
                bar.lap()
                if self.stopped:
                    break
                if self.signals.received:
                    if self.saved is None or self.saved["epoch"] != number:
                        self._save()
                    self.evaluation.shutdown()
                    break
            bar.set_postfix_str("")
        if self.progress["divergence"]:
            self.checkpoints.load(self.checkpoints.last_good)

    def _end_epoch(self, row: Metrics, seconds: float) -> None:
        """An epoch's evaluation, its line in ``metrics.csv``, its checkpoint."""
        options, progress, epoch = self.options, self.progress, row["epoch"]
        for key in REWARD_COLUMNS.intersection(row):
            row[key] *= self.reward_unit
        reason = self.monitor.check(row)
        # what is monitored entry by entry is logged as its mean
        row.update({k: float(v.mean()) for k, v in row.items() if isinstance(v, Tensor)})
        self.stopped = reason is not None and options.on_divergence == "stop"
        ending = epoch > options.epochs - options.evaluation_last
        due = ending or epoch % options.evaluation_every == 0
        scores = None
        if due and not self.stopped:
            with self.watch("evaluation"):
                scores = self.evaluation.start(epoch)
        self.unwritten.append(_Unwritten(row, self.updates / max(seconds, 1e-9), scores))
        self._write_rows(wait=False)
        progress["epoch"] = epoch
        progress["transitions"] += row.get("model_transitions", 0)
        if reason and progress["divergence"] is None:
            progress["divergence"] = {"epoch": epoch, "reason": reason}
            self.say(f"DIVERGED in epoch {epoch}: {reason}")
            self.checkpoints.keep_last_good()
        last = self.stopped or epoch == options.epochs
        if last or self.checkpoints.due(epoch):
            self._save()
        if last:
            self.evaluation.shutdown()

    def _save(self) -> None:
        """Write a checkpoint, and first all rows, which a run resumed from it finds."""
        with self.signals.shielded():  # the epoch is done: a signal must not lose it any more
            with self.watch("evaluation"):
                self._write_rows(wait=True)
            if not self.stopped:
                self.checkpoint()

    def checkpoint(self) -> None:
        """Write a checkpoint of the progress; a signal waits until it is on the disk."""
        with self.signals.shielded(), self.watch("checkpoint"):
            self.checkpoints.save(self.progress)
            self.saved = dict(self.progress)

    def saved_text(self) -> str:
        """What a resumed run starts from, in words."""
        saved = self.saved or {}
        if saved.get("epoch"):
            return f"epoch {saved['epoch']} is saved"
        if "cloned" in saved:
            return "the pretraining is saved"
        return "the fitted model is saved" if "holdout_mse" in saved else "nothing is saved yet"

    def _write_rows(self, *, wait: bool) -> None:
        """Write the epochs' rows, in order, up to one whose evaluation is still to come."""
        while self.unwritten:
            row, speed, scores = self.unwritten[0]
            if not (wait or scores is None or scores.done()):
                return
            row.update(dict.fromkeys(SCORE_COLUMNS) if scores is None else scores.result())
            self.folder.append_metrics({k: v for k, v in row.items() if k not in self.left_out})
            self.tracker.log_metrics(row)
            self.say(f"{epoch_line(row)} | {speed:.0f} updates/s")
            self.unwritten.popleft()

    def _updating_seconds(self) -> float:
        return sum(self.watch.worked.get(phase, 0.0) for phase in ("agent", "model"))

    def abandon(self) -> None:
        """End what goes on beside the run; nothing does once it has finished."""
        if hasattr(self, "evaluation"):
            self.evaluation.abandon()

    def finish(
        self,
        *,
        results: Mapping[str, Any] | None = None,
        penalty: float = 0.0,
        adversary: Mapping[str, Any] | None = None,
        model_env: EnsembleModelEnv | None = None,
    ) -> dict[str, Any]:
        """Write the policy, ``results.json`` and the figures; returns the results.

        Keyword Args:
            results: what ``results.json`` says of this method only.
            penalty: what the method takes off a reward at most, in the data's units.
            adversary: what ``reporting.adversary_verdict.adversary_effect`` returns, for RAMBO.
            model_env: the model of a method that has one, to be compared with the environment on
                the policy's path.
        """
        progress, options = self.progress, self.options
        path = self.folder.path / "policy.safetensors"
        write_policy(path, self.policy, self.dataset, options.seed)
        followed = None if model_env is None else self._follow_policy(model_env)
        with busy("writing the results"):
            rows = self.folder.read_metrics()
            summary = summarise(
                self.folder,
                self.dataset,
                rows,
                options,
                method=self.label,
                cloned=progress.get("cloned", {}),
                divergence=progress["divergence"],
                sanity=check_sanity(
                    rows,
                    self.dataset,
                    options.gamma,
                    penalty=penalty,
                    adversary=adversary,
                    path=followed,
                ),
                extra={
                    **(results or {}),
                    **({} if followed is None else {"path": followed}),
                    "evaluation_stride": progress["evaluation_stride"],
                    "q_bound": self.monitor.q_bound,
                    "seconds": {k: round(v, 2) for k, v in progress["seconds"].items()},
                    "checkpoint_bytes": self.checkpoints.size,
                },
            )
            finish_tracking(self.tracker, options.video, self.dataset, self.say)
        return summary

    def _follow_policy(self, model_env: EnsembleModelEnv) -> dict[str, Any] | None:
        """Draw the policy's path in the environment and in the model; returns its numbers."""
        try:
            with busy("following the policy in the model"):
                found = follow_policy(
                    model_env,
                    self.policy,
                    self.dataset,
                    # the last of the run's own
                    seed=evaluation_seed(self.options.seed + 1) - EPISODES,
                    holdout_mse=self.progress.get("holdout_mse"),
                )
                if found is None:
                    return None
                title = f"{self.label} on {self.dataset.name}"
                plot_policy_path(found, self.folder.path / PATH_FIGURE, title=title)
                return found.numbers
        except Exception as error:  # a run that has ended well is not spoilt by any
            self.say(f"the policy's path is not compared: {' '.join(str(error).split())}")
            return None


class Inspection(Run):
    """In a :class:`Run`'s place where only the parts are wanted: nothing is trained or written.

    Attributes:
        policy: the actor.
        parts: the other parts that the recipe handed to :meth:`track`, by name.
        progress: of a run whose pretraining is over.
        random_state: torch's on the CPU when the recipe came to :meth:`track`, from which
            pretraining draws.
        model_env: the model as an environment, of a method that has one.
    """

    random_state: Tensor
    model_env: EnsembleModelEnv | None = None

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}
        self.progress: dict[str, Any] = {
            "epoch": 1, "cloned": {}, "holdout_mse": [math.nan], "model_passes": 0.0,
            "transitions": 0,
        }  # fmt: skip
        self.begun = True

    def track(
        self,
        *,
        label: str,
        policy: TensorDictModuleBase,
        reward_unit: float = 1.0,
        **parts: Any,
    ) -> None:
        """Keep the parts."""
        self.policy, self.parts = policy, parts
        self.random_state = torch.get_rng_state()

    def epochs(self, **_: Any) -> Iterator[Epoch]:
        """There are none."""
        return iter(())

    def finish(self, *, model_env: EnsembleModelEnv | None = None, **_: Any) -> dict[str, Any]:
        """There are no results; the environment is kept."""
        self.model_env = model_env
        return {}
