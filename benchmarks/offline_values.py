"""Fitted Q evaluation against the truth: python benchmarks/offline_values.py.

Two policies are valued from many small data sets of a Markov decision process whose values are
known in closed form: the error, and how often intervals hold the truth. Writes ``chain.csv``. Runs
are valued beside what they get in their environments by ``offline_evaluation.py``.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markov_chain import GAMMA, chain_data, chain_policy, true_values
from measuring import add_out, at_least

from rambo_trl.reporting.offline_evaluation import OfflineEvaluation
from rambo_trl.reporting.offline_values import Estimate

#: the policies of the chain: a good one and one that always goes back
POLICIES = {"turns at the end": [1, 1, 1, -1], "back": [-1, -1, -1, -1]}
CONFIDENCES = (0.5, 0.8, 0.9, 0.95)
SMALL = {
    "hidden_sizes": (32, 32),
    "updates": 300,
    "regression_updates": 50,
    "batch_size": 64,
    "lr": 3e-3,
}


def chain_rows(repeats: int, sizes: Iterable[int] = (40, 160)) -> Iterator[dict[str, Any]]:
    """Estimates on small data sets of the chain."""
    for seed in range(repeats):
        for episodes in sizes:
            data = chain_data(episodes, seed=seed)
            evaluation = OfflineEvaluation(data, gamma=GAMMA, seed=seed, fit=SMALL)
            starts = data.transitions[torch.from_numpy(evaluation.blocks.held_out_rows[:, 0])]
            for name, signs in POLICIES.items():
                truth = true_values((np.array(signs) == 1).astype(float)).mean()
                fitted = evaluation.fit(chain_policy(signs))
                by_critic = fitted.values(starts).numpy()
                row = {"episodes": episodes, "seed": seed, "policy": name, "truth": truth}
                row |= {"estimate": by_critic.mean(), "unsettled": bool(fitted.unsettled)}
                for confidence in CONFIDENCES:
                    e = Estimate.of(by_critic.mean(0), by_critic.mean(1), confidence=confidence)
                    row[f"low_{confidence:g}"], row[f"high_{confidence:g}"] = e.low, e.high
                yield row


def chain_summary(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """By size of the data: the error, and the share of intervals that hold the truth."""
    rows = list(rows)
    for episodes in sorted({row["episodes"] for row in rows}):
        some = [row for row in rows if row["episodes"] == episodes]
        error = np.array([row["estimate"] - row["truth"] for row in some])
        shares = [
            np.mean([row[f"low_{c:g}"] < row["truth"] < row[f"high_{c:g}"] for row in some])
            for c in CONFIDENCES
        ]
        told = ", ".join(f"{c:.0%}: {s:.0%}" for c, s in zip(CONFIDENCES, shares, strict=True))
        yield (
            f"{episodes} episodes, {len(some)} fits: bias {error.mean():+.3f}, root mean square "
            f"error {np.sqrt((error**2).mean()):.3f}; intervals that hold the truth: {told}"
        )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the same keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--repeats", type=at_least(1), default=50, help="data sets of each size")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in chain_rows(args.repeats):
        rows.append(row)
        write(args.out / "chain.csv", rows)
    print("\n".join(chain_summary(rows)))


if __name__ == "__main__":
    main()
