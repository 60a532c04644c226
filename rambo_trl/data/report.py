"""What is in a data set, as text and as a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rambo_trl.data.columns import entry_names, told_apart
from rambo_trl.data.environment import shown_particulars
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.playing import bounds_that_differ, check_environment
from rambo_trl.data.transitions import draw_rows
from rambo_trl.runtime.drawing import literal

__all__ = ["Coverage", "describe_dataset", "measure_coverage", "plot_dataset"]

_WIDTH = 88
_MAX_ENTRIES = 40  # in the table
_LABEL, _TICK = 24, 16  # characters of a name in the table and in the figure
_BINS, _MAX_ROWS = 20, 100_000  # of the measured coverage


@dataclass(frozen=True)
class Coverage:
    """How widely data are spread, each number compared with an even spread.

    Attributes:
        actions: for each action entry the share of its bounds that an even spread of the same
            entropy would fill, from 1 / 20 (one value) to 1 (uniform): the exponential of the
            entropy of 20 bins, over 20.
        directions: over how many directions of the observation an even spread would have the same
            variances: the participation ratio of the correlation matrix's eigenvalues,
            (sum)^2 / sum of squares. Entries that always move together count once, constant ones
            not at all.
        plane: rows [N, 2] in the two directions in which standardised observations vary most.
        variance: the share of the variance in that plane.
    """

    actions: np.ndarray
    directions: float
    plane: np.ndarray
    variance: float


def measure_coverage(dataset: OfflineDataset) -> Coverage:
    """Measure how much of the space a data set covers, on at most 100,000 of its rows."""
    rows = dataset.transitions[draw_rows(len(dataset), _MAX_ROWS)]
    shares = []
    for column in rows["action"].numpy().clip(-1, 1).T:
        counts, _ = np.histogram(column, bins=_BINS, range=(-1, 1))
        share = counts[counts > 0] / counts.sum()
        shares.append(np.exp(-(share * np.log(share)).sum()) / _BINS)
    observation = rows["observation"].numpy().astype(np.float64)
    observation -= observation.mean(axis=0)
    std = observation.std(axis=0)
    # others are constant but for rounding
    observation = np.where(std > 1e-5, observation / np.where(std > 1e-5, std, 1), 0.0)
    values, directions = np.linalg.eigh(observation.T @ observation / len(observation))
    total = values.sum()
    return Coverage(
        actions=np.array(shares),
        directions=float(total**2 / np.square(values).sum()) if total > 0 else 0.0,
        plane=observation @ directions[:, : -min(2, len(values)) - 1 : -1],
        variance=float(values[-2:].sum() / total) if total > 0 else 0.0,
    )


def describe_dataset(dataset: OfflineDataset) -> str:
    """Describe a data set in lines of at most 88 characters.

    Args:
        dataset: any data set; ranges are told in the environment's own units.

    Returns:
        Its size, returns, episode ends, coverage, spaces and ranges, and the checks with their
        outcome.
    """
    special = shown_particulars(dataset.env_spec)
    pieces = f", {dataset.num_cut_episodes:,} of them cut pieces" * bool(dataset.num_cut_episodes)
    ends, layout = dataset.transitions["next"], dataset.observation_layout
    cover = measure_coverage(dataset)
    narrowest = int(cover.actions.argmin())
    share = f"{100 * cover.actions.mean():.0f} % of their bounds"
    if dataset.action_size > 1:
        share += f", {dataset.action_names[narrowest]} over {100 * cover.actions[narrowest]:.0f} %"
    lines = [
        f"data set     {dataset.name}",
        f"environment  {dataset.env_id or 'none named'}{f' with {special}' if special else ''}",
        f"size         {len(dataset):,} transitions in {dataset.num_episodes:,} episodes{pieces}",
        f"spaces       {dataset.observation_size} observation entries, {dataset.action_size} "
        "action entries",
    ]
    if layout is not None and layout.keys is not None:
        lines.append(f"             observation joined from {', '.join(layout.keys)}")
    lines += [
        f"ends         {int(ends['terminated'].sum()):,} terminated, "
        f"{int(ends['truncated'].sum()):,} truncated",
        f"coverage     actions as if spread evenly over {share}",
        f"             states as if spread evenly over {cover.directions:.1f} of their "
        f"{dataset.observation_size} directions",
        "",
        f"{'':12} {'mean':>12} {'std':>12} {'min':>12} {'median':>12} {'max':>12}",
    ]
    returns = dataset.behaviour_returns
    if len(returns) == 0:
        lines.append("return       unknown: no episode is whole")
    else:
        lines.append(_row("return", returns))
        if dataset.reference_scores is not None:
            low, high = dataset.reference_scores
            lines.append(_row("score", 100 * (returns - low) / (high - low)))
    lines += [_row("steps", episode_lengths(dataset)), _row("reward", ends["reward"].numpy())]
    if dataset.step_intervals:
        lines.append(_line("interval", dataset.step_intervals.values()))
    lines += ["", *_entries(dataset), "", "checks"]
    for outcome, text in _checks(dataset):
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {outcome:<8} ", subsequent_indent=" " * 11
        )
    return "\n".join(lines)


def episode_lengths(dataset: OfflineDataset) -> np.ndarray:
    """Return the number of transitions of each episode."""
    ends = dataset.transitions["next", "done"].squeeze(-1).numpy().nonzero()[0] + 1
    if len(ends) == 0 or ends[-1] != len(dataset):
        ends = np.append(ends, len(dataset))
    return np.diff(ends, prepend=0)


def _row(label: str, values: np.ndarray) -> str:
    values = values.astype(np.float64)
    return _line(
        label, (values.mean(), values.std(), values.min(), np.median(values), values.max())
    )


def _line(label: str, numbers: Iterable[float]) -> str:
    shown = (f"{x:,.2f}" if abs(x) < 1e6 else f"{x:.4g}" for x in numbers)
    return f"{label:<12} " + " ".join(f"{number:>12}" for number in shown)


def _entries(dataset: OfflineDataset) -> list[str]:
    """Tabulate the range of each observation and action entry."""
    rows = dataset.transitions
    names = (*dataset.observation_names, *dataset.action_names)
    width = min(max(16, *map(len, names)), _LABEL)
    lines = [
        f"{'entry':<{width}} {'mean':>11} {'std':>11} {'min':>11} {'max':>11}  action's bounds"
    ]
    columns = [
        *dataset.denormalize(rows["observation"]).unbind(-1),
        *dataset.denormalize_action(rows["action"]).unbind(-1),
    ]
    bounds = zip(dataset.action_low.tolist(), dataset.action_high.tolist(), strict=True)
    notes = [""] * dataset.observation_size + [" to ".join(told_apart(*pair)) for pair in bounds]
    for name, column, note in list(zip(names, columns, notes, strict=True))[:_MAX_ENTRIES]:
        values = column.double()
        least, most = float(values.min()), float(values.max())
        middle = (f"{float(x):.4g}" for x in (values.mean(), values.std(correction=0)))
        text = " ".join(f"{x:>11}" for x in (*middle, *told_apart(least, most, digits=4)))
        note = "constant" if least == most else note
        lines.append(f"{_short(name, width):<{width}} {text}  {note}".rstrip())
    if len(columns) > _MAX_ENTRIES:
        lines.append(f"... and {len(columns) - _MAX_ENTRIES} more")
    return lines


def _short(name: str, width: int) -> str:
    """Cut a name's middle out where it is too long: units stand at the end."""
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return name[: width - 3 - half] + "..." + name[-half:]


def _checks(dataset: OfflineDataset) -> list[tuple[str, str]]:
    """List what was checked, with its outcome."""
    # These raise while the data set is made: one that exists has passed them.
    checks = [
        ("passed", "arrays complete, of one length, real numbers, no images"),
        ("passed", "no text and no value missing, every one finite in float32"),
        ("passed", "actions within their bounds"),
    ]
    if not dataset.remarks:
        usual = "rewards differ, no episode repeats another, no row left out, every entry changes"
        checks.append(("passed", usual + ", every episode whole"))
        if dataset.step_intervals:
            checks.append(("passed", "steps take equally long"))
    for warning in dataset.data_warnings:
        checks.append(("warning", f"{warning} (recipes ask for odd_data=accept)"))
    checks += [("note", text) for text in dataset.remarks if text not in dataset.data_warnings]
    if dataset.env_id is None:
        checks.append(("note", "no environment is named, so a policy cannot be evaluated"))
        return checks
    try:
        check_environment(dataset)
        checks.append(("passed", f"{dataset.env_id} is installed and fits the data"))
        checks += [("note", remark) for remark in bounds_that_differ(dataset)]
    except ValueError as error:
        checks.append(("FAILED", str(error)))
    return checks


def plot_dataset(dataset: OfflineDataset, path: Path) -> None:
    """Draw returns, episode lengths, rewards, where states lie, and the spread of all entries.

    Args:
        dataset: any data set.
        path: the image file, of a type that matplotlib knows by its ending.

    Raises:
        ValueError: if matplotlib does not know the file's type.
        OSError: if the file cannot be written.
    """
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.subplot_mosaic(
            [["return", "steps", "reward"], ["states", "entries", "entries"]]
        )
        reward = dataset.transitions["next", "reward"].squeeze(-1).numpy()
        for key, values, label in (
            ("return", dataset.behaviour_returns, "episodes"),
            ("steps", episode_lengths(dataset), "episodes"),
            ("reward", reward, "transitions"),
        ):
            axes[key].hist(values, bins=30, color="#4477aa")
            axes[key].set(xlabel=key, ylabel=label)
        mean = dataset.behaviour_return_mean
        if mean is None:
            axes["return"].set(xticks=[], yticks=[], title="no episode is whole")
        else:
            axes["return"].axvline(mean, color="#bb5566", label=f"mean {mean:.1f}")
            axes["return"].legend()
        cover = measure_coverage(dataset)
        plane = cover.plane[:, 0], cover.plane[:, -1]
        image = axes["states"].hexbin(*plane, gridsize=30, bins="log", mincnt=1, cmap="viridis")
        axes["states"].set(
            xlabel=f"states, in the two directions of {100 * cover.variance:.0f} % of the variance",
            ylabel="standard deviations",
        )
        figure.colorbar(image, ax=axes["states"], label="states")
        _plot_entries(dataset, axes["entries"])
        figure.suptitle(
            f"{literal(dataset.name)}: {len(dataset):,} transitions, "
            f"{dataset.num_episodes:,} episodes"
        )
        figure.savefig(path, dpi=150)


def _plot_entries(dataset: OfflineDataset, axes: matplotlib.axes.Axes) -> None:
    """Draw a box of quantiles for each entry, all on one scale."""
    observation = dataset.transitions["observation"].numpy()
    scaled = (observation - observation.mean(0)) / np.maximum(observation.std(0), 1e-6)
    labels: list[str] = []
    for kind in ("observation", "action"):
        names = getattr(dataset, f"{kind}_names")
        plain = names == entry_names(None, len(names), kind, "")
        labels += [f"{kind[0]}{i}" if plain else _short(n, _TICK) for i, n in enumerate(names)]
    columns = [*scaled.T, *dataset.transitions["action"].numpy().T]
    axes.boxplot(columns, whis=(1, 99), showfliers=False)
    axes.set_xticks(range(1, len(labels) + 1), [literal(label) for label in labels])
    axes.set(
        xlabel="observation entries, standardised; then action entries, their bounds at -1 and 1",
        ylabel="quantiles 1, 25, 50, 75, 99 %",
    )
    if sum(map(len, labels)) > 80:
        axes.tick_params(axis="x", rotation=90, labelsize=7 if len(labels) <= 20 else 6)
