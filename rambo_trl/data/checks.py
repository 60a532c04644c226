"""What is odd about a data set and may be a mistake."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from tensordict import TensorDict, TensorDictBase

from rambo_trl.data.columns import constant_entries, listed

__all__ = ["Oddity", "constants", "duplicate_episodes", "ends_of_both_kinds", "oddities"]


class Oddity(str):
    """A remark on where data come from that tells of what may be a mistake."""


def oddities(transitions: TensorDict) -> list[str]:
    """Describe what a user would want to know before training, one sentence each.

    Args:
        transitions: canonical transitions [N], rows of an episode following each other.

    Returns:
        Sentences about rewards that are all equal, episodes of one row only, and episodes that
        repeat others; empty for usual data.
    """
    found = []
    reward = transitions["next", "reward"]
    low, high = float(reward.min()), float(reward.max())
    if low == high and len(reward) > 1:
        found.append(
            f"all {len(reward)} rewards are {low:g}: only the length of episodes can tell good "
            "actions from bad, so check the rewards if that is not meant"
        )
    done = transitions["next", "done"].squeeze(-1)
    terminated = transitions["next", "terminated"].squeeze(-1)
    if len(done) > 1 and bool(done.all()) and not bool(terminated.all()):
        found.append(
            f"all {len(done)} episodes have one row: if the rows were shuffled, returns and "
            "scores of the data mean nothing, so keep the rows of an episode together"
        )
    duplicates = duplicate_episodes(transitions)
    if duplicates:
        found.append(
            f"{len(duplicates)} episodes repeat an earlier one row for row, the first is episode "
            f"{duplicates[0]}: drop them unless they are meant to weigh more"
        )
    return found


def constants(
    transitions: TensorDict, observation_names: Sequence[str], action_names: Sequence[str]
) -> list[str]:
    """Tell of entries that never change; at most one sentence for each kind.

    Args:
        transitions: canonical transitions [N], in the data's own units.
        observation_names: of the observation entries.
        action_names: of the action entries.
    """
    found = []
    observations = constant_entries(transitions["observation"], observation_names)
    if observations:
        found.append(
            f"{_valued(observations)} in all rows: what a change of it does is not in the data, so "
            "leave an entry out that may change where the policy is used"
        )
    actions = constant_entries(transitions["action"], action_names)
    if actions:
        found.append(
            f"{_valued(actions)} in all rows: what this action does is not in the data, so give it "
            "a fixed value where the policy is used, and leave it out here"
        )
    return found


def _valued(constants: Mapping[str, float]) -> str:
    return listed([f"{name} is {value:g}" for name, value in constants.items()])


def ends_of_both_kinds(transitions: TensorDictBase) -> list[str]:
    """Tell of rows that are terminated and truncated at once; one sentence or none."""
    truncated = transitions.get(("next", "truncated"), None)
    if truncated is None:
        return []
    count = int((truncated.reshape(-1) * transitions["next", "terminated"].reshape(-1)).sum())
    if not count:
        return []
    return [
        f"{count} rows are terminal and timed out at once and count as terminal, so nothing is "
        "bootstrapped from them: clear their terminal flags if only the time limit ended them"
    ]


def duplicate_episodes(transitions: TensorDict) -> list[int]:
    """Return the indices of episodes whose observations, actions and rewards occurred before."""
    stops = transitions["next", "done"].squeeze(-1).numpy().nonzero()[0] + 1
    starts = np.concatenate([[0], stops])
    stops = np.append(stops, len(transitions))
    columns = [
        np.ascontiguousarray(transitions[key].numpy())
        for key in ("observation", "action", ("next", "reward"))
    ]
    seen: set[bytes] = set()
    found = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if start == stop:
            continue  # nothing after the last end
        digest = hashlib.blake2b(digest_size=16)
        for column in columns:
            digest.update(column[start:stop].data)
        if digest.digest() in seen:
            found.append(index)
        seen.add(digest.digest())
    return found
