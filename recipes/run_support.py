"""What the recipes share around a training: checks, folders, evaluation, the last screen."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from command_line import describe, refuse
from omegaconf import DictConfig
from run_reading import SCORE_COLUMNS
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl._utils import logger
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule
from tqdm import tqdm

from rambo_trl.data import OfflineDataset
from rambo_trl.training.evaluation import EvaluationProcess, EvaluationResult, evaluate_policy
from rambo_trl.training.figures import plot_learning_curve
from rambo_trl.training.interruption import Interrupted, Interruption
from rambo_trl.training.policy_file import load_policy, save_policy
from rambo_trl.training.run_folder import RunFolder, package_versions
from rambo_trl.training.tracking import Tracker
from rambo_trl.training.video import record_video

# tensordict reads a flag that torch has retired: nothing that a user of the recipes could change
warnings.filterwarnings("ignore", message=".*inline_inbuilt_nn_modules is deprecated")
logger.setLevel("WARNING")  # TorchRL reports every storage that it makes

#: evaluation's episodes are seeded from here, beyond every seed that builds data
EVALUATION_SEED = 1_000_000
#: seeds that each run has for its episodes
EVALUATION_SEEDS = 10_000_000


def evaluation_seed(seed: int) -> int:
    """The seed of the first episode that a run with this seed may evaluate."""
    return EVALUATION_SEED + EVALUATION_SEEDS * seed


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """Turn errors of the checks before a run into one line and exit code 2."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        refuse(error)


def score_text(row: Mapping[str, float | None]) -> str:
    """``", score 12.3"`` where there is one."""
    score = row.get("score")
    return "" if score is None else f", score {score:.1f}"


Scores = dict[str, float | None]


class _AboveTheBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def announce_compilation() -> None:
    """Say what is being compiled, because nothing else moves meanwhile; keep the code."""
    # torch's own place is emptied when the machine starts anew
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "rambo_trl" / "inductor")
    )
    compiler = logging.getLogger("rambo_trl.modules.compiling")
    compiler.setLevel(logging.INFO)
    compiler.handlers = [_AboveTheBars()]
    compiler.propagate = False  # Hydra's root logger would say it again


class Stopwatch:
    """Seconds per phase.

    Args:
        seconds: phase to seconds so far; added to.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the block's duration to a phase."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed


class EndingWell:
    """A block whose end by a signal or a full disk says in one line how to go on.

    Attributes:
        folder: the run folder, once there is one; given free at the block's end.
        signals: SIGINT's and SIGTERM's, see :class:`Interruption`.

    Raises:
        SystemExit: with 128 + the signal's number, or 1 where a file could not be written.
    """

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.signals = Interruption()

    def __enter__(self) -> EndingWell:
        self.signals.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.signals.__exit__(kind, error, trace)
        except Interrupted as cause:
            error = cause
        hint = "nothing has been learnt yet"
        if self.folder is not None:
            self.folder.unlock()
            hint = f"go on with: python {sys.argv[0]} resume={self.folder.path}"
        if isinstance(error, Interrupted):
            print(f"stopped by {error.name}; {hint}", file=sys.stderr)
            raise SystemExit(error.exit_code)
        cannot_write = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
        if isinstance(error, OSError) and error.errno in cannot_write:
            refuse(f"{describe(error)}; once that is settled, {hint}", code=1)


def progress_bar(description: str, total: int | None) -> tqdm:
    """A bar with an ETA; in a log file it writes a line every half minute only."""
    return tqdm(
        total=total,
        desc=description,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        smoothing=0.05,
    )


class Evaluation:
    """The policy's mode in the real environment, scored, with seeds that never repeat.

    Every epoch has :attr:`stride` seeds, evaluated or not. A run that is resumed with another
    number of episodes goes on with the largest that it ever had, so that no epoch reaches back
    to the seeds of one before it.

    Args:
        policy: the actor.
        dataset: names the environment and holds normalisation and reference scores.
        cfg: the configuration: episodes, seed, device, and whether evaluations run beside
            training.

    Attributes:
        stride: seeds from one epoch's first episode to the next one's; at least as many as there
            are episodes.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        dataset: OfflineDataset,
        cfg: DictConfig,
    ) -> None:
        self.policy, self.dataset, self.cfg = policy, dataset, cfg
        self.num_episodes: int = cfg.evaluation.episodes
        layout = dataset.observation_layout
        self.flatten = np.asarray if layout is None else layout.flatten
        self.first_seed, self.stride = evaluation_seed(cfg.seed), self.num_episodes
        self.gamma: float | None = cfg.agent.get("gamma")
        self.process: EvaluationProcess | None = None
        beside = cfg.evaluate_beside
        if beside is None:  # a CPU has better things to do
            beside = torch.device(cfg.device).type != "cpu"
        if beside and dataset.environment is not None:
            self.process = EvaluationProcess(
                dataset.environment,
                num_episodes=self.num_episodes,
                flatten=self.flatten,
                gamma=self.gamma or 0.0,
            )
            self.policies = TemporaryDirectory(prefix="rambo_trl")

    def _seed(self, epoch: int) -> int:
        return self.first_seed + epoch * self.stride

    def __call__(self, epoch: int) -> Scores:
        """Evaluate after an epoch: a value for each of :data:`SCORE_COLUMNS`."""
        environment = self.dataset.environment
        if environment is None:
            return dict.fromkeys(SCORE_COLUMNS)
        result = evaluate_policy(
            self.policy,
            environment,
            num_episodes=self.num_episodes,
            seed=self._seed(epoch),
            observation_mean=self.dataset.observation_mean,
            observation_std=self.dataset.observation_std,
            flatten=self.flatten,
            gamma=self.gamma or 0.0,
            device=self.cfg.device,
        )
        return self._scores(result)

    def start(self, epoch: int) -> Future[Scores]:
        """As a call, but the result may still be to come."""
        scores: Future[Scores] = Future()
        if self.process is None:
            scores.set_result(self(epoch))
            return scores
        path = Path(self.policies.name) / f"{epoch}.safetensors"
        write_policy(path, self.policy, self.dataset, self.cfg)

        def hand_on(found: Future[EvaluationResult]) -> None:
            try:
                scores.set_result(self._scores(found.result()))
            except Exception as error:  # one that got lost here would be waited for in vain
                scores.set_exception(error)

        self.process.submit(path, seed=self._seed(epoch)).add_done_callback(hand_on)
        return scores

    def abandon(self) -> None:
        """End the process at once, where there is one."""
        if self.process is not None:
            self.process.kill()

    def shutdown(self) -> None:
        """End the process, where there is one."""
        if self.process is not None:
            self.process.shutdown()
            self.policies.cleanup()

    def _scores(self, result: EvaluationResult) -> Scores:
        row: Scores = {
            "score": self.dataset.normalized_score(result.return_mean),
            "score_std": None,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "discounted_return_mean": None,
        }
        if self.gamma is not None:  # of rewards with the shift, as in training
            weights = (1 - self.gamma**result.lengths) / (1 - self.gamma)
            shifted = result.discounted_returns + self.dataset.reward_shift * weights
            row["discounted_return_mean"] = float(shifted.mean())
        if self.dataset.reference_scores is not None:
            low, high = self.dataset.reference_scores
            row["score_std"] = 100 * result.return_std / (high - low)
        return row


@torch.no_grad()
def mode_values(loss: LossModule, actor: TensorDictModuleBase, observation: Tensor) -> Tensor:
    """The lowest critic's value of the policy's mode.

    Args:
        loss: holds the critics, stacked, as ``qvalue_network``.
        actor: reads ``"observation"`` and writes ``"action"``.
        observation: [B, observation_size].

    Returns:
        [B, 1]
    """
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rows = actor(TensorDict(observation=observation, batch_size=[len(observation)]))
    values = []
    for params in loss.qvalue_network_params.data.unbind(0):
        with params.to_module(loss.qvalue_network, preserve_module_state=False):
            values.append(loss.qvalue_network(rows.copy())["state_action_value"])
    return torch.stack(values).min(dim=0).values


def write_policy(path: Path, actor: Any, dataset: OfflineDataset, cfg: DictConfig) -> None:
    """Write the actor with its normalisation."""
    save_policy(
        path,
        actor,
        observation_mean=dataset.observation_mean,
        observation_std=dataset.observation_std,
        action_spec=dataset.action_spec,
        hidden_sizes=list(cfg.agent.hidden_sizes),
        env_id=dataset.env_id or "",
        notes={"dataset": dataset.name, "seed": cfg.seed},
    )


def finish_tracking(
    tracker: Tracker, video: str, *, flatten: Callable[[Any], np.ndarray] = np.asarray
) -> None:
    """Record the trained policy if asked to, and send the run's figure and video on.

    Args:
        tracker: closed here.
        video: ``"none"``, ``"gif"`` or ``"mp4"``; ``policy.gif`` or ``policy.mp4`` in the folder.
        flatten: makes a vector of an observation.
    """
    files = [tracker.folder / "learning_curve.png"]
    if video != "none":
        try:
            path = tracker.folder / f"policy.{video}"
            record_video(load_policy(path.with_name("policy.safetensors")), path, flatten=flatten)
            files.append(path)
        except RuntimeError as error:  # a run that has ended well is not spoilt by it
            print(f"no video: {error}", file=sys.stderr)
    for path in files:
        tracker.log_file(path)
    tracker.close()


def summarise(
    folder: RunFolder,
    dataset: OfflineDataset,
    cfg: DictConfig,
    *,
    method: str,
    cloned: Mapping[str, float | None],
    divergence: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``results.json`` and ``learning_curve.png`` from ``metrics.csv``.

    The score is the mean of the last evaluations (paper sec. 6); a diverged run's is 0, as
    the paper scores it.
    """
    rows = folder.read_metrics()
    evaluated = [row for row in rows if row.get("return_mean") is not None]
    last = evaluated[-cfg.evaluation.last :]

    def mean(key: str) -> float | None:
        values = [float(v) for row in last if (v := row.get(key)) is not None]
        return sum(values) / len(values) if values else None

    behaviour = dataset.behaviour_returns
    results = {
        "method": method,
        "score": mean("score") if divergence is None else 0.0,
        "return_mean": mean("return_mean"),
        "return_std": mean("return_std"),
        "evaluations_averaged": len(last),
        "behaviour_return_mean": float(behaviour.mean()),
        "behaviour_return_best": float(behaviour.max()),
        "behaviour_score": dataset.behaviour_score,
        "behaviour_score_best": dataset.normalized_score(float(behaviour.max())),
        "cloned_score": cloned.get("score"),
        "cloned_return_mean": cloned.get("return_mean"),
        "diverged": divergence is not None,
        "divergence": divergence,
        "seed": cfg.seed,
        "evaluation_seed": evaluation_seed(cfg.seed),
        "dataset": dataset.name,
        "dataset_transitions": len(dataset),
        "env": dataset.env_id,
        "evaluated": dataset.environment is not None,
        "schedule": cfg.schedule_name,
        "epochs": int(rows[-1]["epoch"] or 0) if rows else 0,
        **extra,
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
    }
    folder.write_results(results)
    mean_score, best = dataset.behaviour_score, dataset.normalized_score(float(behaviour.max()))
    scored = mean_score is not None and best is not None
    plot_learning_curve(
        [r if scored else {**r, "score": r["return_mean"], "score_std": r["return_std"]}
         for r in rows],
        folder.path / "learning_curve.png",
        title=f"{method} on {dataset.name}",
        behaviour_mean=float(behaviour.mean()) if mean_score is None else mean_score,
        behaviour_best=float(behaviour.max()) if best is None else best,
        cloned=cloned.get("score" if scored else "return_mean"),
        y_label="normalised score" if scored else "return",
        policy_label=method,
        num_final=max(len(last), 1),
    )  # fmt: skip
    return results


def last_screen(results: Mapping[str, Any], folder: RunFolder) -> str:
    """What was learnt compared with the data, as text."""
    method = results["method"]

    def line(label: str, episode_return: float | None, score: float | None) -> str:
        numbers = [f"{x:10.1f}" if x is not None else f"{'-':>10}" for x in (episode_return, score)]
        return f"  {label:<34}{''.join(numbers)}"

    count = results["evaluations_averaged"]
    lines = [
        "",
        f"{method} on {results['dataset']} ({results['env']}), seed {results['seed']}, "
        f"{results['epochs']} epochs",
        f"  {'':<34}{'return':>10}{'score':>10}",
        line("data, mean episode", results["behaviour_return_mean"], results["behaviour_score"]),
        line(
            "data, best episode", results["behaviour_return_best"], results["behaviour_score_best"]
        ),
    ]
    if results["cloned_return_mean"] is not None:
        lines.append(
            line("behaviour cloning alone", results["cloned_return_mean"], results["cloned_score"])
        )
    label = f"{method}, mean of last {count}" if count > 1 else f"{method}, last evaluation"
    lines.append(line(label, results["return_mean"], results["score"]))
    if not results["evaluated"]:
        lines.append("  not evaluated: there is no environment")
    if results["diverged"]:
        found = results["divergence"]
        lines.append(f"  DIVERGED at epoch {found['epoch']}: {found['reason']}; scored 0")
    elif results["score"] is not None:
        gap = results["score"] - results["behaviour_score"]
        lines.append(f"  {gap:+.1f} points against the data's mean episode")
    lines += ["", f"learning curve: {folder.path / 'learning_curve.png'}"]
    lines.append(f"run folder: {folder.path}")
    return "\n".join(lines)
