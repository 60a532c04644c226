"""The end of a run: ``results.json``, the learning curve, the video and the last screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any

import torch

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.evaluation import evaluation_seed
from rambo_trl.experiment.folder import RunFolder, package_versions
from rambo_trl.experiment.learning_curve import format_value, plot_learning_curve
from rambo_trl.experiment.loggers import Tracker
from rambo_trl.experiment.options import RunOptions
from rambo_trl.experiment.policy import load_policy
from rambo_trl.experiment.video import record_video

#: in the run folder of a method with a model
PATH_FIGURE = "policy_path.png"


def finish_tracking(
    tracker: Tracker, video: str, dataset: OfflineDataset, say: Callable[[str], object]
) -> None:
    """Record the trained policy if asked to, send the figure and video on, close the tracker.

    Args:
        tracker: of the run.
        video: ``"none"``, ``"gif"`` or ``"mp4"``, which is then ``policy.gif`` or ``policy.mp4``.
        dataset: names the environment.
        say: takes a line on why there is no video.
    """
    figures = (tracker.folder / name for name in ("learning_curve.png", PATH_FIGURE))
    files = [path for path in figures if path.is_file()]
    environment, layout = dataset.environment, dataset.observation_layout
    if video != "none" and environment is None:
        say("no video: there is no environment")
    elif video != "none":
        try:
            path = tracker.folder / f"policy.{video}"
            policy = load_policy(path.with_name("policy.safetensors"))
            flatten = None if layout is None else layout.flatten
            record_video(policy, path, environment=environment, flatten=flatten)
            files.append(path)
        except Exception as error:  # a run that has ended well is not spoilt by any
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"no video: {reason}")
    for path in files:
        tracker.log_file(path)
    tracker.close()


def summarise(
    folder: RunFolder,
    dataset: OfflineDataset,
    rows: Sequence[Mapping[str, float | int | None]],
    options: RunOptions,
    *,
    method: str,
    cloned: Mapping[str, float | None],
    divergence: Mapping[str, Any] | None,
    sanity: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``results.json`` and ``learning_curve.png`` from the rows of ``metrics.csv``.

    The score is the mean of the last evaluations (paper sec. 6); a diverged run's is 0, as
    the paper scores it. Of a run that recorded nothing to draw there is no figure.
    """
    evaluated = [row for row in rows if row.get("return_mean") is not None]
    last = evaluated[-options.evaluation_last :]

    def mean(key: str) -> float | None:
        values = [float(v) for row in last if (v := row.get(key)) is not None]
        return sum(values) / len(values) if values else None

    best = dataset.behaviour_return_best
    best_score = None if best is None else dataset.normalized_score(best)
    results = {
        "method": method,
        "score": mean("score") if divergence is None else 0.0,
        "return_mean": mean("return_mean"),
        "return_std": mean("return_std"),
        "evaluations_averaged": len(last),
        "behaviour_return_mean": dataset.behaviour_return_mean,
        "behaviour_return_best": best,
        "behaviour_score": dataset.behaviour_score,
        "behaviour_score_best": best_score,
        "behaviour_episodes": len(dataset.behaviour_returns),
        "cut_pieces": dataset.num_cut_episodes,
        "cloned_score": cloned.get("score"),
        "cloned_return_mean": cloned.get("return_mean"),
        "diverged": divergence is not None,
        "divergence": divergence,
        "seed": options.seed,
        "evaluation_seed": evaluation_seed(options.seed),
        "dataset": dataset.name,
        "dataset_transitions": len(dataset),
        "env": dataset.env_id,
        "evaluated": dataset.environment is not None,
        "schedule": options.schedule_name,
        "epochs": int(rows[-1]["epoch"] or 0) if rows else 0,
        "sanity": sanity,
        **extra,
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
    }
    folder.write_results(results)
    scored = dataset.reference_scores is not None
    logged = sanity.get("logged_discounted_return") or {}
    plot_learning_curve(
        [r if scored else {**r, "score": r["return_mean"], "score_std": r["return_std"]}
         for r in rows],
        folder.path / "learning_curve.png",
        title=f"{method} on {dataset.name}",
        behaviour_mean=dataset.behaviour_score if scored else dataset.behaviour_return_mean,
        behaviour_best=best_score if scored else best,
        cloned=cloned.get("score" if scored else "return_mean"),
        logged_mean=logged.get("mean"),
        logged_best=logged.get("best"),
        y_label="normalised score" if scored else "return",
        policy_label=method,
        num_final=max(len(last), 1),
    )  # fmt: skip
    return results


def last_screen(results: Mapping[str, Any], folder: RunFolder) -> str:
    """What was learnt compared with the data, and whether it can be believed, as text."""
    method = results["method"]
    # a run that diverged has the score 0 whatever its data
    scored = results["behaviour_score"] is not None or (
        results["score"] is not None and not results["diverged"]
    )

    def line(label: str, episode_return: float | None, score: float | None) -> str:
        numbers = (episode_return, score) if scored else (episode_return,)
        cells = ["-" if x is None else format_value(x) for x in numbers]
        return f"  {label:<34}{''.join(f'{cell:>10}' for cell in cells)}"

    count = results["evaluations_averaged"]
    lines = [
        "",
        f"{method} on {results['dataset']} ({results['env'] or 'no environment'}), "
        f"seed {results['seed']}, {results['epochs']} epochs",
        f"  {'':<34}{'return':>10}{'score' if scored else '':>10}".rstrip(),
        line("data, mean episode", results["behaviour_return_mean"], results["behaviour_score"]),
        line(
            "data, best episode", results["behaviour_return_best"], results["behaviour_score_best"]
        ),
    ]
    if results["cut_pieces"]:
        lines.append(
            f"  data: {results['behaviour_episodes']} whole episodes; {results['cut_pieces']} cut "
            "pieces are left out"
        )
    if results["cloned_return_mean"] is not None:
        lines.append(
            line("behaviour cloning alone", results["cloned_return_mean"], results["cloned_score"])
        )
    if count:
        label = f"{method}, mean of last {count}" if count > 1 else f"{method}, last evaluation"
        lines.append(line(label, results["return_mean"], results["score"]))
    if not results["evaluated"]:
        lines.append("  not evaluated: there is no environment")
    if results["diverged"]:
        found = results["divergence"]
        end = "; scored 0" if scored else ""
        lines.append(f"  DIVERGED at epoch {found['epoch']}: {found['reason']}{end}")
    elif results["score"] is not None and results["behaviour_score"] is not None:
        gap = results["score"] - results["behaviour_score"]
        lines.append(f"  {gap:+.1f} points against the data's mean episode")
    elif results["return_mean"] is not None and results["behaviour_return_mean"] is not None:
        gap = results["return_mean"] - results["behaviour_return_mean"]
        sign = "+" if gap >= 0 else ""
        lines.append(f"  {sign}{format_value(gap)} against the data's mean episode")
    for sentence in results["sanity"]["lines"]:
        lines += wrap(sentence, 98, initial_indent="  ", subsequent_indent="    ")
    lines.append("")
    figures = {"learning curve": "learning_curve.png", "the policy's path": PATH_FIGURE}
    for what, name in figures.items():
        if (figure := folder.path / name).is_file():
            lines.append(f"{what}: {figure}")
    lines.append(f"run folder: {folder.path}")
    return "\n".join(lines)
