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
    paper_text,
    scores_of,
    spread,
    table_row,
    total_text,
)

#: up to this lambda the game goes on fitting the model and has no adversary to speak of
FIT_ALONE = 1e-9

#: RAMBO's runs and the runs with lambda = 0; the same where the paper's lambda is 0
Pair = tuple[Configuration, Configuration]


def ablation_table(found: Sequence[Configuration]) -> list[str]:
    """A row for each data set that has both, then totals beside the paper's.

    Args:
        found: the configurations of the report.

    Returns:
        Lines; none where there is no data set with both.
    """
    groups: dict[str, list[Pair]] = {}
    for configuration in found:
        rambo = configuration.method == RAMBO and not _fit_alone(configuration)
        if rambo and configuration.values:
            partner = _without_adversary(configuration, found)
            if partner is not None:
                name = f"{configuration.label}, `{configuration.schedule}`"
                groups.setdefault(name, []).append((configuration, partner))
    # where the paper's lambda is 0 RAMBO is its own ablation: alone that compares nothing
    groups = {name: pairs for name, pairs in groups.items() if any(a is not b for a, b in pairs)}
    if not groups:
        return []
    scored = {pair[0].scored for pairs in groups.values() for pair in pairs}
    what = "score or return" if len(scored) > 1 else "score" if True in scored else "return"
    lines = [
        "",
        "RAMBO beside itself with lambda = 0, where the model stays as it was fitted: the "
        "difference holds the fit that goes on in the game as well as the adversary. "
        "(`adversarial_weight=1e-12` keeps the fit going without an adversary; runs with it are "
        f"not in this table.) The paper's totals ({ABLATION_SOURCE}) are over all data sets of a "
        "benchmark; where its own lambda is not 0 it has no scores with lambda = 0 of single ones.",
        "",
        f"| data set | method | {what} | with lambda = 0 | difference | paper | "
        "paper, lambda = 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in groups.items():
        lines += [_row(name, *pair, mixed=len(scored) > 1) for pair in pairs]
        benchmarks: dict[PublishedAblation, list[Pair]] = {}
        for pair in pairs:
            paper = published_ablation(pair[0].dataset)
            if paper is not None and pair[0].scored:
                benchmarks.setdefault(paper, []).append(pair)
        lines += [
            _total(name, paper, members)
            for paper, members in benchmarks.items()
            if any(a is not b for a, b in members)
        ]
    return lines


def _fit_alone(configuration: Configuration) -> bool:
    """Whether the model was fitted on without an adversary."""
    run = configuration.runs[0]
    weight = run.results.get("adversarial_weight")
    # with a budget lambda is only where it starts
    budget = run.settings.get("likelihood_budget")
    return weight is not None and 0 < weight <= FIT_ALONE and budget is None


def _without_adversary(
    configuration: Configuration, found: Sequence[Configuration]
) -> Configuration | None:
    """The runs with lambda = 0 on the same data that differ in nothing else that is told apart."""
    for other in found:
        keys = {*configuration.differs, *other.differs} - {"adversarial_weight"}
        mine, theirs = configuration.runs[0].settings, other.runs[0].settings
        if (
            (other.method, other.dataset, other.schedule)
            == (ABLATION, configuration.dataset, configuration.schedule)
            and all(mine.get(key) == theirs.get(key) for key in keys)
            and other.values
            and other.scored == configuration.scored
        ):
            return other
    # without an adversary it is called RAMBO only where the paper has none
    own = configuration.runs[0].results.get("adversarial_weight") == 0
    return configuration if own else None


def _row(name: str, rambo: Configuration, without: Configuration, *, mixed: bool) -> str:
    gap, form = np.mean(rambo.values) - np.mean(without.values), formatter(rambo)
    what = "return " if mixed and not rambo.scored else ""
    cells = [
        f"`{rambo.dataset}`",
        name,
        f"{what}**{spread(rambo.values, form)}**",
        f"{what}**{spread(without.values, form)}**",
        "its own ablation" if rambo is without else f"{'+' if gap >= 0 else ''}{form(gap)}",
        paper_text(rambo),
        paper_text(rambo) if published_weight(rambo.dataset) == 0 else "-",
    ]
    return table_row(cells)


def _total(name: str, paper: PublishedAblation, pairs: Sequence[Pair]) -> str:
    """Sums over the data sets of a benchmark that have both, beside the paper's over all."""
    keys = {(table_dataset(rambo.dataset) or ("",))[0] for rambo, _ in pairs}
    remarks = [] if len(pairs) == len(keys) == paper.data_sets else [f"all {paper.data_sets}"]
    numbers = [published(RAMBO, rambo.dataset) for rambo, _ in pairs]
    if any(number is not None and not number.same_data for number in numbers):
        remarks.append("other data")
    remark = f" ({', '.join(remarks)})" if remarks else ""
    sums = [[scores_of(pair[side]) for pair in pairs] for side in (0, 1)]
    gap = sum(np.mean(mine) - np.mean(theirs) for mine, theirs in zip(*sums, strict=True))
    cells = [
        f"{paper.benchmark}, {len(pairs)} of {paper.data_sets}",
        name,
        *(f"**{total_text(side)}**" for side in sums),
        f"{gap:+.1f}",
        f"{paper.rambo:.1f} +- {paper.rambo_std:.1f}{remark}",
        f"{paper.ablation:.1f} +- {paper.ablation_std:.1f}{remark}",
    ]
    return table_row(cells)
