"""The command line, composed and checked before any work starts."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from launcher.settings import check_config, leaf_keys
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_DIR = Path(__file__).parents[1] / "config"
#: sweepers that search, and which way; the methods that have no critics
SEARCHES = {"optuna": "minimize", "optuna_offline": "minimize", "optuna_online": "maximize"}
WITHOUT_Q = ("bc",)
#: plugins of Hydra: what loads each, its package, and the extra that installs it
PLUGINS = {
    **dict.fromkeys(
        SEARCHES, ("hydra_plugins.hydra_optuna_sweeper", "hydra-optuna-sweeper", "optuna")
    ),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher", "sweep"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher", "ray"),
    **dict.fromkeys(
        ("submitit_local", "submitit_slurm"),
        ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher", "slurm"),
    ),
}


def describe(error: BaseException | str) -> str:
    """An error as one line."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(message).split())


def refuse(error: BaseException | str, code: int = 2) -> NoReturn:
    """Print one line that names what to change, and exit."""
    print(f"error: {describe(error)}", file=sys.stderr)
    raise SystemExit(code)


def setting(key: str, value: object) -> str:
    """A setting as one word of a command line, quoted so that a shell and then Hydra read it back.

    Args:
        key: the setting's.
        value: a text, or what is one when it is printed.

    Examples:
        >>> print(setting("resume", "runs/hopper"), setting("dataset", "a (1).hdf5"))
        resume=runs/hopper 'dataset="a (1).hdf5"'
    """
    return shlex.quote(_for_hydra(key, str(value)))


def _for_hydra(key: str, text: str) -> str:
    """A setting as Hydra reads it back, without a shell."""
    text = text.replace("${", "\\${")  # which would stand for another setting
    word = f"{key}={text}"
    try:
        plain = OverridesParser.create().parse_override(word)
        if not plain.is_sweep_override() and plain.value() == text:
            return word
    except HydraException:
        pass
    # backslashes count only before a quote
    escaped = re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), text)
    return f'{key}="{escaped}"'


def _with_home(word: str) -> str:
    """A word of the command line with its ``~/`` for the home folder, which Hydra cannot read."""
    key, equals, value = word.partition("=")
    home = value[:2] in ("~", "~/") and re.fullmatch(r"[\w.]+", key)
    return _for_hydra(key, os.path.expanduser(value)) if equals and home else word


def check_command_line(
    config_name: str,
    check: Callable[[DictConfig], None] = check_config,
    argv: Sequence[str] | None = None,
) -> None:
    """Compose every job that the command line asks for and refuse what cannot run.

    To be called before Hydra's own main function, which reports such errors at length and
    after the jobs before.

    Args:
        config_name: file in ``config/``, without its extension.
        check: looks at one composed configuration, raises ValueError.
        argv: the command line's words; the process's own where None.

    Raises:
        SystemExit: with code 2 after one line on what to change.
    """
    if argv is None:
        sys.argv[1:] = map(_with_home, sys.argv[1:])
    args, unknown = get_args_parser().parse_known_args(argv)
    if unknown:
        refuse(f"cannot read {unknown[0]!r}: settings are given as key=value, without dashes")
    if args.help or args.hydra_help or args.info or args.shell_completion:
        return
    try:
        compose_jobs(config_name, args.overrides, multirun=args.multirun, check=check)
    except ValueError as error:
        refuse(error)


def compose_jobs(
    config_name: str,
    overrides: Iterable[str],
    *,
    multirun: bool = False,
    check: Callable[[DictConfig], None] = check_config,
) -> list[DictConfig]:
    """Compose and check the configuration of each job.

    Args:
        config_name: file in ``config/``, without its extension.
        overrides: as on the command line.
        multirun: whether values such as ``0,1,2`` make a job each.
        check: looks at one composed configuration, raises ValueError.

    Raises:
        ValueError: one line that names the setting.
    """
    parsed = [_parse(text) for text in overrides]
    check_plugins(parsed)
    check_search(config_name, parsed)
    if any(o.key_or_group == "hydra/sweeper" for o in parsed):
        # other sweepers draw from intervals, whose ends are checked here
        parsed = [_parse(_ends(o)) if o.is_interval_sweep() else o for o in parsed]
    jobs = [parsed]
    sweeps = [o for o in parsed if o.is_sweep_override()]
    if sweeps and not multirun:
        key, _, value = (sweeps[0].input_line or "").partition("=")
        raise ValueError(
            f"{key}={value} names several values: add -m to run each of them; where it is one, "
            f"write {setting(key, value)}"
        )
    if sweeps:
        try:
            (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        except HydraException as error:
            raise ValueError(_first_line(error)) from error
        jobs = [[_parse(text) for text in job] for job in batch]
    configs = []
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        for job in jobs:
            configs.append(_compose_one(config_name, job))
            check(configs[-1])
    folders = [cfg.get("run_dir") for cfg in configs if cfg.get("run_dir")]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(
                f"run_dir={folder} is the same for {folders.count(folder)} runs: name what "
                "differs, as in 'run_dir=runs/mine-${seed}'"
            )
    return configs


def check_plugins(overrides: Sequence[Override]) -> None:
    """Refuse a sweeper or launcher that is not installed.

    Args:
        overrides: the command line's words.

    Raises:
        ValueError: one line on what to install.
    """
    for override in overrides:
        name = str(override.value())
        if override.key_or_group not in ("hydra/sweeper", "hydra/launcher") or name not in PLUGINS:
            continue
        module, package, extra = PLUGINS[name]
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # no plugin of Hydra's at all
            found = None
        if found is None:
            raise ValueError(
                f"{override.key_or_group}={name} needs {package}: pip install 'rambo_trl[{extra}]'"
            )


def check_search(config_name: str, overrides: Sequence[Override]) -> None:
    """Refuse a search that could not run, or would look for the opposite.

    Args:
        config_name: file in ``config/``, without its extension.
        overrides: the command line's words.

    Raises:
        ValueError: one line on what to change.
    """
    given = {o.key_or_group: o.value() for o in overrides}
    sweeper = str(given.get("hydra/sweeper"))
    if sweeper not in SEARCHES:
        return
    direction = given.get("hydra.sweeper.direction", SEARCHES[sweeper])
    if direction != SEARCHES[sweeper]:
        raise ValueError(
            f"hydra/sweeper={sweeper} has hydra.sweeper.direction={SEARCHES[sweeper]}, got "
            f"{direction}: optuna_offline looks for the steadiest mean Q, optuna_online for the "
            "best score"
        )
    if sweeper != "optuna_online" and config_name in WITHOUT_Q:
        raise ValueError(f"{config_name} has no mean Q that hydra/sweeper={sweeper} could go by")


def name_of_data(cfg: DictConfig, task: str, words: Sequence[str], root: str | Path = ".") -> str:
    """What a run's folder is called after: the task, or a data set that was given without one.

    Such a data set may have nothing to do with the default task.

    Args:
        cfg: the run's.
        task: the task's name.
        words: the command line's settings.
        root: the folder that files are looked up from.
    """
    given = {word.partition("=")[0].lstrip("+") for word in words}
    if "dataset" not in given or "task" in given:
        return task
    file = Path(root, os.path.expanduser(cfg.dataset))
    name = file.absolute().stem if file.exists() else cfg.dataset
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def keys_set(overrides: Iterable[str]) -> list[str]:
    """The keys that a command line's words set; groups given as ``{...}`` are opened."""
    return [
        name
        for override in map(_parse, overrides)
        for name in _named(override.key_or_group, override.value())
    ]


def suggestion(word: str, known: Iterable[str]) -> str:
    """``": did you mean 'x'?"`` where something similar is known, else nothing."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.6)
    if not near:  # the right name without its group, or in another one
        tails = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
        near = [
            tails[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, 1, 0.75)
        ]
    return f": did you mean {near[0]!r}?" if near else ""


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        reason = f"cannot read {text!r} ({_first_line(error)})" if equals else ""
        if reason and value[:1] not in ("[", "{", "'", '"', ""):
            reason += f": where it is one text, write {setting(key, value)}"
        raise ValueError(reason or f"cannot read {text!r}: settings are given as key=value") from (
            error
        )


def _ends(override: Override) -> str:
    """An interval's override, as one with its two ends."""
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    return f"{override.key_or_group}={interval.start},{interval.end}"


def _compose_one(config_name: str, job: Sequence[Override]) -> DictConfig:
    groups = _groups()
    own = groups.keys() & _groups_of(config_name)
    chosen = []
    for override in job:
        key, value = override.key_or_group, override.value()
        if key in groups and key not in own:
            raise ValueError(f"{config_name} has no setting {key!r}")
        if key in groups:
            if value not in groups[key]:
                raise ValueError(
                    f"{key}={value}: there is no such {key}{suggestion(str(value), groups[key])} "
                    f"({key} is one of {', '.join(groups[key])})"
                )
            chosen.append(f"{key}={value}")
    base = compose(config_name, chosen)
    known = leaf_keys(base)
    inner = {key.rsplit(".", 1)[0] for key in known if "." in key}
    for override in job:
        key, text = override.key_or_group, override.input_line or ""
        if key in groups or key.split(".")[0].split("/")[0] == "hydra":
            continue
        for name in _named(key, None if override.is_delete() else override.value()):
            if name not in known and name not in inner:
                raise ValueError(f"no setting is called {name!r}{suggestion(name, [*known, *own])}")
        if override.is_delete():
            raise ValueError(f"{key} cannot be left out: set it with {key}=VALUE")
        if key in inner and not isinstance(override.value(), dict):
            members = ", ".join(k for k in known if k.startswith(f"{key}."))
            raise ValueError(f"{key} is a group of settings: set one of {members}")
        if override.is_add() and not override.is_force_add():
            raise ValueError(f"{key} is there already: write {text.lstrip('+')}, without the +")
    try:
        cfg = compose(config_name, [override.input_line or "" for override in job])
        OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_first_line(error)) from error
    found = set(leaf_keys(cfg))
    for key in found - set(known):
        raise ValueError(f"no setting is called {key!r}{suggestion(key, known)}")
    for key in set(known) - found:
        raise ValueError(f"{key} cannot be left out: set it with {key}=VALUE")
    return cfg


def _groups() -> dict[str, list[str]]:
    """The groups of ``config/``, each with its choices."""
    folders = (path for path in CONFIG_DIR.iterdir() if path.is_dir())
    groups = {path.name: [file.stem for file in sorted(path.glob("*.yaml"))] for path in folders}
    return {name: choices for name, choices in groups.items() if choices}


def _groups_of(config_name: str) -> set[str]:
    """The groups that a file in ``config/`` chooses from, Hydra's own among them."""
    loaded = OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml")
    return {str(name) for entry in loaded.defaults if OmegaConf.is_dict(entry) for name in entry}


def _named(key: str, value: object) -> list[str]:
    """The keys that an override sets: its own, or those of a group given as ``{...}``."""
    if not isinstance(value, dict):
        return [key]
    return [name for k, v in value.items() for name in _named(f"{key}.{k}", v)]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
