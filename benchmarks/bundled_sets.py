"""What cloning makes of the bundled sets: python benchmarks/bundled_sets.py NAME ...

For each set the scores of its episodes, their mean and the best, and those of two clones: of all
rows, and of the best episodes that hold a tenth of them. What a method of offline learning adds
shows beyond these. The rows are written to ``bundled_sets.csv``; those of other sets in it stay.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import add_out, at_least, markdown_table
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows
from rambo_trl.experiment.evaluation import evaluate_policy
from rambo_trl.modules.actor_critic import make_actor
from rambo_trl.training.pretraining import clone_behaviour

COLUMNS = ("set", "episodes", "mean", "best", "all rows cloned", "best tenth cloned")


def cloned_score(
    data: OfflineDataset, rows: Tensor, *, seed: int, updates: int, episodes: int
) -> float:
    """Score of the clone of some rows, its mode played from the environment's resets."""
    torch.manual_seed(seed)
    actor = make_actor(data.observation_size, data.action_spec, hidden_sizes=(128, 128))
    clone_behaviour(actor, data.transitions[rows], data.action_spec, updates=updates, lr=1e-3)
    low, high = data.action_low, data.action_high
    result = evaluate_policy(
        actor,
        data.env_id or "",
        num_episodes=episodes,
        seed=1_000_000 + 1_000 * seed,
        observation_mean=data.observation_mean,
        observation_std=data.observation_std,
        action_low=low,
        action_high=high,
    )
    return data.normalized_score(result.return_mean) or 0.0


def measured(name: str, args: argparse.Namespace) -> dict[str, str]:
    """One set's row of the table."""
    data = OfflineDataset.load(name)
    scores: Iterator[list[float]] = (
        [
            cloned_score(data, rows, seed=seed, updates=args.updates, episodes=args.episodes)
            for seed in range(args.seeds)
        ]
        for rows in (best_episode_rows(data, share) for share in (1.0, 0.1))
    )
    mean, best = (
        data.normalized_score(value or 0.0)
        for value in (data.behaviour_return_mean, data.behaviour_return_best)
    )
    clones = [f"{sum(each) / len(each):.1f}" for each in scores]
    cells = (name, str(data.num_episodes), f"{mean:.1f}", f"{best:.1f}", *clones)
    return dict(zip(COLUMNS, cells, strict=True))


def main() -> None:
    """Clone, write the table, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a bundled set, or any other")
    parser.add_argument("--seeds", type=at_least(1), default=2, help="clones, averaged")
    parser.add_argument("--updates", type=at_least(1), default=4_000, help="of each clone")
    parser.add_argument("--episodes", type=at_least(1), default=20, help="that judge a clone")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(args.out) / "bundled_sets.csv"
    table: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as f:
            table = {row["set"]: row for row in csv.DictReader(f)}
    for name in args.names:
        table[name] = measured(name, args)
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(table.values())
    print(markdown_table(list(COLUMNS), [list(row.values()) for row in table.values()]))


if __name__ == "__main__":
    main()
