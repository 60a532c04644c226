"""Configurations held to the models of :mod:`launcher.schema`, and what keys they have."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from launcher.schema import SETTINGS, Operation, PretrainedParts
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from rambo_trl.experiment.folder import GIVEN_PARTS, LATER_SETTINGS

#: how long pretraining takes, in updates or in passes over the data
BUDGETS = (("model.max_updates", "model.max_passes"), ("cloning.updates", "cloning.passes"))


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a model, dotted, without those that only group others."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += keys_of(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


#: settings that say where something lies; a digest of its content is what a run is held to
PLACES = ("dataset", *GIVEN_PARTS)
#: settings that may differ when a run is resumed
RESUME_MAY_CHANGE = frozenset({*PLACES, *keys_of(Operation), *keys_of(PretrainedParts)})


def check_config(cfg: DictConfig, model: type[BaseModel] | None = None) -> None:
    """Refuse what the model, by default its method's, does not allow, before any work starts.

    Raises:
        ValueError: naming the key, what was expected and what came.
    """
    model = model or SETTINGS[cfg.method]
    try:
        model.model_validate(OmegaConf.to_container(cfg, resolve=True))
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first of pydantic's errors as one line: the key, what is expected and what came."""

    def key_of(problem: Any) -> str:
        # what is no name tells which part of a union was tried
        parts = (part for part in problem["loc"] if isinstance(part, int) or part.isidentifier())
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)[1:]

    problems = error.errors()
    first, key = problems[0], key_of(problems[0])
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    expected = " or ".join(
        re.sub(r"^\w+ should | after validation.*", "", problem["msg"])
        for problem in problems
        if key_of(problem) == key
    )
    expected = expected.replace("a valid boolean", "true or false")
    return f"{key} must {expected}, got {shown(first['input'])}"


def method_settings(cfg: DictConfig) -> DictConfig:
    """A copy with the settings of its method alone: tasks and schedules set those of others too."""
    kept, keys = OmegaConf.create(), {"method", *keys_of(SETTINGS[cfg.method])}
    for key in leaf_keys(cfg):
        if key in keys:
            OmegaConf.update(kept, key, OmegaConf.select(cfg, key), force_add=True)
    OmegaConf.set_struct(kept, True)
    return kept


def with_later_settings(saved: DictConfig, keys: Collection[str]) -> DictConfig:
    """An older run's configuration, with what it had of these settings where it names none."""
    filled = saved.copy()
    for key in LATER_SETTINGS.keys() & set(keys).difference(leaf_keys(saved)):
        group = key.rpartition(".")[0]
        if not group or group in saved:  # else the method has none of them
            OmegaConf.update(filled, key, LATER_SETTINGS[key], force_add=True)
    return filled


def settle_budgets(cfg: DictConfig, given: Collection[str]) -> None:
    """Leave of settings that exclude each other the one that the command line asked for.

    These are each budget in updates and in passes, and a schedule's budget for the values, to which
    lambda is adapted, where a lambda is asked for.

    Raises:
        ValueError: if both were.
    """
    for pair in BUDGETS:
        asked = [k for k in pair if k in given and OmegaConf.select(cfg, k) is not None]
        if len(asked) == 2:
            raise ValueError(
                f"{pair[0]} and {pair[1]} both say how long it takes: leave one of them out"
            )
        for key in set(pair).difference(asked).intersection(leaf_keys(cfg)) if asked else ():
            OmegaConf.update(cfg, key, None)
    # without an adversary it has no effect: the ablation's settings stay those of the run itself
    constant = "adversarial_weight" in given and "value_budget" not in given
    if constant and cfg.get("adversarial_weight") and cfg.get("value_budget") is not None:
        cfg.value_budget = None


def shown(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "an empty text" if value == "" else str(value)


def leaf_keys(cfg: DictConfig) -> list[str]:
    """All keys of a configuration, dotted, without those that only group others."""

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for k, v in node.items() for key in walk(v, f"{prefix}.{k}" if prefix else k)]

    return walk(OmegaConf.to_container(cfg, resolve=False), "")
