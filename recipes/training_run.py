"""What happens around a training, whatever the method: start, epochs, evaluation, results."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import hydra
import torch
from hydra._internal.utils import get_args_parser
from launcher.command_line import CONFIG_DIR, check_command_line, keys_set, refuse
from launcher.program import (
    EndingWell,
    Stopwatch,
    announce_compilation,
    refusing_bad_input,
)
from launcher.settings import check_config, rules_for, without
from launcher.start import begin_or_resume, prepare
from launcher.sweep import name_sweep, sweep_job
from omegaconf import DictConfig, OmegaConf
from run_evaluation import Evaluation, Scores, score_text, write_policy
from run_results import finish_tracking, last_screen, summarise
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from tqdm import tqdm

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import Checkpoints, Stateful, seed_everything
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.folder import RunFolder, remove_unfinished
from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.experiment.loggers import Tracker
from rambo_trl.experiment.sanity import check_sanity
from rambo_trl.experiment.signals import Interruption
from rambo_trl.reporting.runs import SCORE_COLUMNS
from rambo_trl.runtime.malloc import keep_freed_memory
from rambo_trl.runtime.progress import Bar, busy

Metrics = dict[str, Any]


class Method(Protocol):
    """What a run needs of the method that it trains.

    Attributes:
        label: the method's name in results and reports.
        actor: the policy.
    """

    label: str
    actor: TensorDictModuleBase

    @property
    def reward_unit(self) -> float:
        """What a reward of 1 in training is in the data's units."""
        ...

    @property
    def updates(self) -> int:
        """Gradient steps of an epoch."""
        ...

    def stateful_parts(self) -> dict[str, Stateful]:
        """Everything that decides the run's future, for checkpoints."""
        ...

    def monitor(self) -> DivergenceMonitor:
        """What says that the run has diverged; asked once pretraining is over."""
        ...

    def results(self) -> dict[str, Any]:
        """What ``results.json`` says of this method only."""
        ...

    def sanity(self) -> dict[str, Any]:
        """Keywords of :func:`~rambo_trl.experiment.sanity.check_sanity` that this method has."""
        ...


#: columns of ``metrics.csv`` in the rewards' units: the data's there, the learner's in training
REWARD_COLUMNS = frozenset({
    "alpha", "data_qvalue", "mean_q", "model_advantage_mean", "model_advantage_std",
    "model_qvalue", "model_reward", "model_value", "penalized_qvalue", "start_value",
})  # fmt: skip
#: columns of ``metrics.csv`` that folders of earlier versions do not have
_LATER_COLUMNS = frozenset({"start_value", "discounted_return_mean"})


class Run:
    """One training: its data, its folder, how far it is, and what happens around each epoch.

    Args:
        cfg: the configuration.
        dataset: the offline data.
        folder: the run folder.
        signals: SIGINT and SIGTERM wait for an epoch's end.

    Attributes:
        progress: numbers, strings, lists and dicts of them; saved with every checkpoint.
        watch: seconds per phase.
        bar: progress in gradient steps.
    """

    evaluation: Evaluation
    checkpoints: Checkpoints
    progress: dict[str, Any]
    watch: Stopwatch
    bar: Bar

    def __init__(
        self, cfg: DictConfig, dataset: OfflineDataset, folder: RunFolder, signals: Interruption
    ) -> None:
        self.cfg, self.dataset, self.folder, self.signals = cfg, dataset, folder, signals
        self.stopped = False  # diverged
        self.left_out: frozenset[str] = frozenset()  # columns that the folder was begun without
        self.saved: dict[str, Any] | None = None  # the newest checkpoint's progress
        self.unwritten: deque[tuple[Metrics, float, Future[Scores] | None]] = deque()

    def begin(self, method: Method) -> None:
        """Begin, or go on from the newest checkpoint."""
        cfg = self.cfg
        for path in (self.folder.path, self.folder.checkpoint_dir):  # which are locked
            remove_unfinished(path)
        self.method = method
        self.evaluation = Evaluation(method.actor, self.dataset, cfg)
        self.checkpoints = Checkpoints(
            self.folder.checkpoint_dir,
            method.stateful_parts(),
            every=cfg.checkpoint_every,
            minutes=cfg.checkpoint_minutes,
            keep=cfg.checkpoints_kept,
            device=cfg.device,
        )
        with busy("looking for a checkpoint of these data"):
            self.progress = begin_or_resume(self.checkpoints, self.dataset, cfg)
        self.folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))  # a resumed run's may differ
        if self.checkpoints.last.is_file():
            self.saved = dict(self.progress)
        stride = max(self.progress.get("evaluation_stride", 0), self.evaluation.num_episodes)
        self.evaluation.stride = self.progress["evaluation_stride"] = stride
        self.watch = Stopwatch(self.progress["seconds"])
        settings = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(settings, dict)
        self.tracker = Tracker(cfg.logger, self.folder.path, settings=settings)

    def epochs(self) -> Iterator[Metrics]:
        """The epochs still to come, each as the row that its metrics go into.

        A signal waits for the end of the epoch in which it comes, and for its checkpoint.

        Raises:
            Interrupted: after that epoch; or within one, when time is up.
        """
        self.folder.truncate_metrics(self.progress["epoch"])
        self.monitor = self.method.monitor()
        for earlier in self.folder.read_metrics():  # a resumed run's
            self.monitor.check(earlier)
            self.left_out = _LATER_COLUMNS.difference(earlier)
        if self.saved is None:  # what a run that diverges at once goes back to
            self.checkpoint()
        updates, done = self.method.updates, self.progress["epoch"]
        total = self.cfg.epochs * updates
        with (
            Bar(desc="train", total=total, initial=done * updates, laps=True) as self.bar,
            self.signals.deferred(),
        ):
            self.watch.bar = self.bar
            for epoch in range(done + 1, self.cfg.epochs + 1):
                yield {"epoch": epoch}
                self.bar.lap()
                if self.signals.received and not self.stopped:
                    self._leave(epoch)
                    break
                if self.stopped:
                    break
            self.bar.set_postfix_str("")

    @contextmanager
    def epoch(self, row: Metrics) -> Iterator[None]:
        """An epoch's work; then its evaluation, its line in ``metrics.csv``, its checkpoint."""
        cfg, progress, epoch = self.cfg, self.progress, row["epoch"]
        before = self._updating_seconds()
        yield
        speed = self.method.updates / max(self._updating_seconds() - before, 1e-9)
        for key in REWARD_COLUMNS.intersection(row):
            row[key] *= self.method.reward_unit
        found = self.monitor.check(row)
        # what was looked at entry by entry is told as its mean
        row.update({k: float(v.mean()) for k, v in row.items() if isinstance(v, Tensor)})
        self.stopped = found is not None and cfg.on_divergence == "stop"
        due = epoch % cfg.evaluation.every == 0 or epoch > cfg.epochs - cfg.evaluation.last
        scores = None
        if due and not self.stopped:
            with self.watch("evaluation"):
                scores = self.evaluation.start(epoch)
        self.unwritten.append((row, speed, scores))
        self._write_rows(wait=False)
        progress["epoch"] = epoch
        progress["transitions"] += row.get("model_transitions", 0)
        if found and progress["divergence"] is None:
            progress["divergence"] = {"epoch": epoch, "reason": found}
            tqdm.write(f"DIVERGED in epoch {epoch}: {found}")
            self.checkpoints.keep_last_good()
        last = self.stopped or epoch == cfg.epochs
        if last or self.checkpoints.due(epoch):
            self._save()
        if last:
            self.evaluation.shutdown()

    def _save(self) -> None:
        """Write a checkpoint, and first all rows, which a run that goes on from it finds."""
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

    def _leave(self, epoch: int) -> None:
        """End for a signal, with a checkpoint of the epoch."""
        if self.saved is None or self.saved["epoch"] != epoch:
            self._save()
        self.evaluation.shutdown()

    def saved_text(self) -> str:
        """What a resumed run goes on from, in words."""
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
            tqdm.write(f"{epoch_line(row)} | {speed:.0f} updates/s")
            self.unwritten.popleft()

    def _updating_seconds(self) -> float:
        return sum(self.watch.worked.get(phase, 0.0) for phase in ("agent", "model"))

    def abandon(self) -> None:
        """End what goes on beside the run; nothing does once it has finished."""
        if hasattr(self, "evaluation"):
            self.evaluation.abandon()

    def finish(self) -> dict[str, Any]:
        """Write the policy, ``results.json`` and the learning curve; returns the results."""
        progress = self.progress
        if progress["divergence"]:
            # the folder's policy is that of the last good checkpoint
            self.checkpoints.load(self.checkpoints.last_good)
        path = self.folder.path / "policy.safetensors"
        write_policy(path, self.method.actor, self.dataset, self.cfg)
        with busy("writing the results"):
            rows, gamma = self.folder.read_metrics(), self.cfg.agent.get("gamma")
            results = summarise(
                self.folder,
                self.dataset,
                self.cfg,
                rows,
                method=self.method.label,
                cloned=progress.get("cloned", {}),
                divergence=progress["divergence"],
                sanity=check_sanity(rows, self.dataset, gamma, **self.method.sanity()),
                extra={
                    "agent_updates": progress["epoch"] * self.cfg.agent_updates,
                    **self.method.results(),
                    "evaluation_stride": progress["evaluation_stride"],
                    "q_bound": self.monitor.q_bound,
                    "seconds": {k: round(v, 2) for k, v in progress["seconds"].items()},
                    "checkpoint_bytes": self.checkpoints.size,
                },
            )
            finish_tracking(
                self.tracker,
                self.cfg.video,
                environment=self.dataset.environment,
                flatten=self.evaluation.flatten,
            )
        return results


def epoch_line(row: Mapping[str, Any]) -> str:
    """What an epoch did, as a line."""
    parts = [f"epoch {row['epoch']:4d}"]
    if row["return_mean"] is not None:
        parts.append(f"return {format_value(row['return_mean']):>8}{score_text(row)}")
    if "mean_q" in row:
        parts.append(f"mean Q {format_value(row['mean_q'], 2):>8}")
    if "loss_model" in row:
        parts.append(f"model loss {row['loss_model']:7.3f}")
    if "model_trust_distance" in row:  # with model_term=kl or total_variation
        parts.append(f"trust distance {row['model_trust_distance']:.3g}")
    if "model_advantage_mean" in row:
        mean, std = row["model_advantage_mean"], row["model_advantage_std"]
        parts.append(f"advantage {mean:6.2f} +- {std:.2f}")
    return " | ".join(parts)


def refuse_unused(name: str, unused: Sequence[str], argv: Sequence[str] | None = None) -> None:
    """Refuse settings on the command line that a method would pass over in silence.

    Args:
        name: the method's.
        unused: keys, or groups of keys, that it does not have.
        argv: the command line's words; the process's own where None.

    Raises:
        SystemExit: with code 2 after one line that names the setting.
    """
    for key in keys_set(get_args_parser().parse_args(argv).overrides):
        if any(key == group or key.startswith(f"{group}.") for group in unused):
            refuse(f"{name} has no setting {key!r}: leave it out")


def choose_gpu(device: str) -> None:
    """Let what names no GPU use the chosen one; ``cuda`` without a number is torch's own choice."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)


def launch(
    name: str,
    train: Callable[[Run], dict[str, Any]],
    *,
    unused: Sequence[str] = (),
    published: Callable[[str], Mapping[str, Any]] | None = None,
    model_based: bool = True,
) -> None:
    """A recipe as a program: check the command line, compose, train, tell what came of it.

    Args:
        name: the method's, and of its file in ``config/``.
        train: trains a run and returns its results.

    Keyword Args:
        unused: settings of the tasks and schedules that the method does not have: keys, or the
            groups that hold them.
        published: a task's name to the published values of settings that may be null.
        model_based: whether the environment needs a termination rule.
    """
    optional = published("") if published else {}
    check_command_line(name, partial(check_config, rules=rules_for(name, optional)))
    refuse_unused(name, unused)

    def main(cfg: DictConfig) -> None:
        with EndingWell() as ending:
            with refusing_bad_input():
                cfg, dataset, ending.folder = prepare(
                    without(cfg, unused), model_based=model_based, published=published
                )
            if cfg.threads is not None:  # torch's own choice knows what this process may use
                torch.set_num_threads(cfg.threads)
            torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
            keep_freed_memory()
            choose_gpu(cfg.device)
            announce_compilation()
            seed_everything(cfg.seed)
            run = Run(cfg, dataset, ending.folder, ending.signals)
            ending.saved = run.saved_text
            try:
                results = train(run)
            finally:  # it would wait for the evaluations beside a run that has failed
                run.abandon()
            print(last_screen(results, ending.folder), flush=True)

    job: Callable[[DictConfig], Any] = main
    args = get_args_parser().parse_args()
    if args.multirun and not (args.help or args.cfg):
        name_sweep()
        job = sweep_job(sys.argv[0])
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(job)()
