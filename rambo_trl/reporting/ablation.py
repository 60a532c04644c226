"""RAMBO beside itself without an adversary, and the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rambo_trl.reporting.paper import (
    ABLATION,
    ABLATION_SOURCE,
    RAMBO,
    PublishedAblation,
    published,
    published_ablation,
    published_weight,
    table_dataset,
)
from rambo_trl.reporting.runs import Configuration
from rambo_trl.reporting.tables import (
    formatter,
    markdown,
    name_cells,
    paper_text,
    spread,
    total_text,
)

#: up to this lambda adversarial training only continues the fit, without an adversary to speak of
FIT_ALONE = 1e-9

#: RAMBO's runs and the runs with lambda = 0; the same where the paper's lambda is 0
Pair = tuple[Configuration, Configuration]


def ablation_table(configurations: Sequence[Configuration]) -> list[str]:
    """A row for each data set that has both, then totals beside the paper's.

    Args:
        configurations: those of the report.

    Returns:
        Lines; none where there is no data set with both.
    """
    groups: dict[str, list[Pair]] = {}
    for c in configurations:
        if c.method == RAMBO and c.values and not _fit_alone(c):
            partner = _without_adversary(c, configurations)
            if partner is not None:
                groups.setdefault(name_cells(c)[1], []).append((c, partner))
    # where the paper's lambda is 0 RAMBO is its own ablation: alone that compares nothing
    groups = {name: pairs for name, pairs in groups.items() if any(a is not b for a, b in pairs)}
    scored = {rambo.scored for pairs in groups.values() for rambo, _ in pairs}
    what = "score or return" if len(scored) > 1 else "score" if True in scored else "return"
    rows = []
    for name, pairs in groups.items():
        rows += [_row(*pair, mixed=len(scored) > 1) for pair in pairs]
        benchmarks: dict[PublishedAblation, list[Pair]] = {}
        for pair in pairs:
            paper = published_ablation(pair[0].dataset)
            if paper is not None and pair[0].scored:
                benchmarks.setdefault(paper, []).append(pair)
        rows += [
            _total(name, paper, members)
            for paper, members in benchmarks.items()
            if any(a is not b for a, b in members)
        ]
    intro = (
        "RAMBO beside itself with lambda = 0, where the model stays as it was fitted: the "
        "difference holds the fit that continues in adversarial training as well as the adversary. "
        "(`adversarial_weight=1e-12` continues the fit without an adversary; runs with it are "
        f"not in this table.) The paper's totals ({ABLATION_SOURCE}) are over all data sets of a "
        "benchmark; where its own lambda is not 0 it has no scores with lambda = 0 of single ones."
    )
    columns = ["data set", "method", what, "with lambda = 0", "difference", "paper",
               "paper, lambda = 0"]  # fmt: skip
    return markdown(columns, rows, intro)


def _fit_alone(configuration: Configuration) -> bool:
    """Whether the model was fitted further without an adversary."""
    run = configuration.runs[0]
    weight = run.results.get("adversarial_weight")
    # with a budget lambda only starts there
    adapted = any(run.settings.get(f"{what}_budget") for what in ("likelihood", "value"))
    return weight is not None and 0 < weight <= FIT_ALONE and not adapted


def _without_adversary(
    configuration: Configuration, others: Sequence[Configuration]
) -> Configuration | None:
    """The runs with lambda = 0 on the same data whose other settings are the same."""
    for other in others:
        keys = {*configuration.differs, *other.differs} - {"adversarial_weight", "value_budget"}
        mine, theirs = configuration.runs[0].settings, other.runs[0].settings
        if (
            (other.method, other.dataset, other.schedule)
            == (ABLATION, configuration.dataset, configuration.schedule)
            and all(mine.get(key) == theirs.get(key) for key in keys)
            and other.values
            and other.scored == configuration.scored
        ):
            return other
    # with lambda = 0 it is called RAMBO only where the paper's lambda is 0
    weight = configuration.runs[0].results.get("adversarial_weight")
    return configuration if weight == 0 else None


def _row(rambo: Configuration, without: Configuration, *, mixed: bool) -> list[str]:
    gap, form = np.mean(rambo.values) - np.mean(without.values), formatter(rambo)
    what = "return " if mixed and not rambo.scored else ""
    return [
        *name_cells(rambo),
        f"{what}**{spread(rambo.values, form)}**",
        f"{what}**{spread(without.values, form)}**",
        "its own ablation" if rambo is without else f"{'+' if gap >= 0 else ''}{form(gap)}",
        paper_text(rambo),
        paper_text(rambo) if published_weight(rambo.dataset) == 0 else "-",
    ]


def _total(name: str, paper: PublishedAblation, pairs: Sequence[Pair]) -> list[str]:
    """Sums over the data sets of a benchmark that have both, beside the paper's over all."""
    keys = {(table_dataset(rambo.dataset) or ("",))[0] for rambo, _ in pairs}
    remarks = [] if len(pairs) == len(keys) == paper.data_sets else [f"all {paper.data_sets}"]
    numbers = [published(RAMBO, rambo.dataset) for rambo, _ in pairs]
    if any(number is not None and not number.same_data for number in numbers):
        remarks.append("other data")
    remark = f" ({', '.join(remarks)})" if remarks else ""
    sums = [[pair[side].values for pair in pairs] for side in (0, 1)]
    gap = sum(np.mean(mine) - np.mean(theirs) for mine, theirs in zip(*sums, strict=True))
    return [
        f"{paper.benchmark}, {len(pairs)} of {paper.data_sets}",
        name,
        *(f"**{total_text(side)}**" for side in sums),
        f"{gap:+.1f}",
        f"{paper.rambo:.1f} +- {paper.rambo_std:.1f}{remark}",
        f"{paper.ablation:.1f} +- {paper.ablation_std:.1f}{remark}",
    ]
