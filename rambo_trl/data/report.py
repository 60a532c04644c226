"""What is in a data set, as text and as a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rambo_trl.data.columns import entry_names, told_apart
from rambo_trl.data.coverage import measure_coverage
from rambo_trl.data.environment_check import bounds_that_differ, check_environment
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.specification import shown_particulars
from rambo_trl.runtime.drawing import literal

__all__ = ["describe_dataset", "plot_dataset"]

_WIDTH = 88
_MAX_ROWS = 40  # of the table of entries
_LABEL, _TICK = 24, 16  # characters of a name in the table and in the figure


def describe_dataset(dataset: OfflineDataset) -> str:
    """Describe a data set in lines of at most 88 characters.

    Args:
        dataset: any data set; ranges are told in the environment's own units.

    Returns:
        Its size, returns, episode ends, coverage, spaces and ranges, and the checks with their
        outcome.
    """
    lines = [f"data set     {dataset.name}"]
    own = shown_particulars(dataset.env_spec)
    lines += [f"environment  {dataset.env_id or 'none named'}{f' with {own}' if own else ''}"]
    pieces = f", {dataset.num_cut_episodes:,} of them cut pieces" * bool(dataset.num_cut_episodes)
    lengths, ends = episode_lengths(dataset), dataset.transitions["next"]
    terminated = int(ends["terminated"].sum())
    truncated = int(ends["truncated"].sum())
    lines += [
        f"size         {len(dataset):,} transitions in {dataset.num_episodes:,} episodes{pieces}",
        f"spaces       {dataset.observation_size} observation entries, {dataset.action_size} "
        "action entries",
    ]
    layout = dataset.observation_layout
    if layout is not None and layout.keys is not None:
        lines.append(f"             observation joined from {', '.join(layout.keys)}")
    lines += [
        f"ends         {terminated:,} terminated, {truncated:,} truncated",
        *_coverage(dataset),
        "",
        f"{'':12} {'mean':>12} {'std':>12} {'min':>12} {'median':>12} {'max':>12}",
    ]
    if len(dataset.behaviour_returns) == 0:
        lines.append("return       unknown: no episode is whole")
    else:
        lines.append(_row("return", dataset.behaviour_returns))
    if dataset.reference_scores is not None and len(dataset.behaviour_returns):
        low, high = dataset.reference_scores
        lines.append(_row("score", 100 * (dataset.behaviour_returns - low) / (high - low)))
    lines += [
        _row("steps", lengths),
        _row("reward", ends["reward"].numpy()),
    ]
    if dataset.step_intervals:
        lines.append(_line("interval", dataset.step_intervals.values()))
    lines += [
        "",
        *_entries(dataset),
        "",
        "checks",
    ]
    for outcome, text in _checks(dataset):
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {outcome:<8} ", subsequent_indent=" " * 11
        )
    return "\n".join(lines)


def _coverage(dataset: OfflineDataset) -> list[str]:
    """Tell how widely the data are spread."""
    found = measure_coverage(dataset)
    actions, least = found.actions, int(found.actions.argmin())
    share = f"{100 * actions.mean():.0f} % of their bounds"
    if len(actions) > 1:
        share += f", {dataset.action_names[least]} over {100 * actions[least]:.0f} %"
    directions = f"{found.directions:.1f} of their {dataset.observation_size} directions"
    return [
        f"coverage     actions as if spread evenly over {share}",
        f"             states as if spread evenly over {directions}",
    ]


def episode_lengths(dataset: OfflineDataset) -> np.ndarray:
    """Return the number of transitions of each episode."""
    ends = dataset.transitions["next", "done"].squeeze(-1).numpy().nonzero()[0] + 1
    if len(ends) == 0 or ends[-1] != len(dataset):
        ends = np.append(ends, len(dataset))
    return np.diff(ends, prepend=0)


def _row(label: str, values: np.ndarray) -> str:
    values = values.astype(np.float64)
    numbers = (values.mean(), values.std(), values.min(), np.median(values), values.max())
    return _line(label, numbers)


def _line(label: str, numbers: Iterable[float]) -> str:
    return f"{label:<12} " + " ".join(f"{_number(x):>12}" for x in numbers)


def _number(x: float) -> str:
    return f"{x:,.2f}" if abs(x) < 1e6 else f"{x:.4g}"


def _entries(dataset: OfflineDataset) -> list[str]:
    """Table the range of each observation and action entry."""
    names = (*dataset.observation_names, *dataset.action_names)
    width = min(max(16, *map(len, names)), _LABEL)
    lines = [
        f"{'entry':<{width}} {'mean':>11} {'std':>11} {'min':>11} {'max':>11}  action's bounds"
    ]
    observation = dataset.denormalize(dataset.transitions["observation"])
    action = dataset.denormalize_action(dataset.transitions["action"])
    columns = [
        (name, column, "")
        for name, column in zip(dataset.observation_names, observation.unbind(-1), strict=True)
    ]
    bounds = zip(dataset.action_low.tolist(), dataset.action_high.tolist(), strict=True)
    columns += [
        (name, column, " to ".join(told_apart(low, high)))
        for name, column, (low, high) in zip(
            dataset.action_names, action.unbind(-1), bounds, strict=True
        )
    ]
    for label, column, bound in columns[:_MAX_ROWS]:
        values = column.double()
        least, most = float(values.min()), float(values.max())
        constant = "constant" if least == most else bound
        middle = (f"{float(x):.4g}" for x in (values.mean(), values.std(correction=0)))
        text = " ".join(f"{x:>11}" for x in (*middle, *told_apart(least, most, digits=4)))
        lines.append(f"{_short(label, width):<{width}} {text}  {constant}".rstrip())
    if len(columns) > _MAX_ROWS:
        lines.append(f"... and {len(columns) - _MAX_ROWS} more")
    return lines


def _short(name: str, width: int) -> str:
    """Cut a name's middle out where it is too long: units stand at the end."""
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return name[: width - 3 - half] + "..." + name[-half:]


def _checks(dataset: OfflineDataset) -> list[tuple[str, str]]:
    """List what was checked, with its outcome."""
    # These raise while the data set is made: one that is here has passed them.
    checks = [
        ("passed", "arrays complete, of one length, real numbers, no images"),
        ("passed", "no text and no value missing, every one finite in float32"),
        ("passed", "actions within their bounds"),
    ]
    if not dataset.remarks:
        told = "rewards differ, no episode repeats another, no row left out, every entry changes"
        checks.append(("passed", told + ", every episode whole"))
        if dataset.step_intervals:
            checks.append(("passed", "steps take equally long"))
    odd = dataset.oddities
    checks += [("odd", f"{oddity} (recipes ask for odd_data=accept)") for oddity in odd]
    checks += [("note", remark) for remark in dataset.remarks if remark not in odd]
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
            [["return", "steps", "reward"], ["states", "observation", "observation"]]
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
        _plot_states(dataset, axes["states"])
        _plot_spread(dataset, axes["observation"])
        figure.suptitle(
            f"{literal(dataset.name)}: {len(dataset):,} transitions, "
            f"{dataset.num_episodes:,} episodes"
        )
        figure.savefig(path, dpi=150)


def _plot_states(dataset: OfflineDataset, axes: matplotlib.axes.Axes) -> None:
    """Draw how many states lie where, in the plane in which they vary most."""
    found = measure_coverage(dataset)
    first, second = found.plane[:, 0], found.plane[:, -1]
    image = axes.hexbin(first, second, gridsize=30, bins="log", mincnt=1, cmap="viridis")
    axes.set(
        xlabel=f"states, in the two directions of {100 * found.variance:.0f} % of the variance",
        ylabel="standard deviations",
    )
    axes.figure.colorbar(image, ax=axes, label="states")


def _plot_spread(dataset: OfflineDataset, axes: matplotlib.axes.Axes) -> None:
    """Draw a box of quantiles for each entry, all on one scale."""
    observation = dataset.transitions["observation"].numpy()
    action = dataset.transitions["action"].numpy()
    scaled = (observation - observation.mean(0)) / np.maximum(observation.std(0), 1e-6)
    boxes = [
        dict(zip(("whislo", "q1", "med", "q3", "whishi"), q, strict=True), label=label, fliers=[])
        for label, q in [
            (literal(_short(name, _TICK)), np.quantile(column, (0.01, 0.25, 0.5, 0.75, 0.99)))
            for names, values in (
                (_ticks(dataset.observation_names, "observation"), scaled),
                (_ticks(dataset.action_names, "action"), action),
            )
            for name, column in zip(names, values.T, strict=True)
        ]
    ]
    axes.bxp(boxes, showfliers=False)
    axes.set(
        xlabel="observation entries, standardised; then action entries, their bounds at -1 and 1",
        ylabel="quantiles 1, 25, 50, 75, 99 %",
    )
    if sum(len(str(box["label"])) for box in boxes) > 80:
        axes.tick_params(axis="x", rotation=90, labelsize=7 if len(boxes) <= 20 else 6)


def _ticks(names: tuple[str, ...], kind: str) -> list[str]:
    """What the figure calls the entries: their names; o0 and so on where they have none."""
    plain = names == entry_names(None, len(names), kind, "")
    return [f"{kind[0]}{i}" for i in range(len(names))] if plain else list(names)
