"""The command line, composed and checked before any work starts."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from launcher.schema import SETTINGS
from launcher.settings import check_config, keys_of, leaf_keys, shown
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_DIR = Path(__file__).parents[1] / "config"
#: sweepers that go by the mean Q, which methods without critics do not have
OFFLINE_SEARCHES = ("optuna", "optuna_offline")
#: plugins of Hydra, and the extra that installs each
EXTRAS = {
    "optuna": "optuna", "joblib": "sweep", "ray": "ray", "submitit_local": "slurm",
    "submitit_slurm": "slurm",
}  # fmt: skip


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
    check: Callable[[DictConfig], None] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Compose every job that the command line asks for and refuse what cannot run.

    To be called before Hydra's own main function, which reports such errors at length and
    after the jobs before.

    Args:
        config_name: file in ``config/``, without its extension.
        check: as for :func:`compose_jobs`.
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
    check: Callable[[DictConfig], None] | None = None,
) -> list[DictConfig]:
    """Compose and check the configuration of each job.

    Args:
        config_name: file in ``config/``, without its extension.
        overrides: as on the command line.
        multirun: whether values such as ``0,1,2`` make a job each.
        check: looks at one composed configuration, raises ValueError; by default
            :func:`~launcher.settings.check_config` with the method's settings.

    Raises:
        ValueError: one line that names the setting.
    """
    check = check or partial(check_config, model=SETTINGS[config_name])
    parsed = [_parse(text) for text in overrides]
    sweeper = {o.key_or_group: o.value() for o in parsed}.get("hydra/sweeper")
    if config_name == "bc" and sweeper in OFFLINE_SEARCHES:
        raise ValueError(f"bc has no mean Q that hydra/sweeper={sweeper} could go by")
    if sweeper:
        for n, override in enumerate(parsed):
            interval = override.value()
            if isinstance(interval, IntervalSweep):  # drawn from; its ends are checked here
                ends = f"{interval.start},{interval.end}"
                parsed[n] = _parse(f"{override.key_or_group}={ends}")
    jobs = [[o.input_line or "" for o in parsed]]
    sweeps = [o for o in parsed if o.is_sweep_override()]
    if sweeps and not multirun:
        key, _, value = (sweeps[0].input_line or "").partition("=")
        raise ValueError(
            f"{key}={value} names several values: add -m to run each of them; where it is one, "
            f"write {setting(key, value)}"
        )
    configs = []
    try:
        if sweeps:
            (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            for job in jobs:
                _check_keys(config_name, job)
                configs.append(compose(config_name, list(job)))
                OmegaConf.to_container(configs[-1], resolve=True)
                check(configs[-1])
    except MissingConfigException as error:
        raise ValueError(_no_such_choice(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_first_line(error)) from error
    folders = [cfg.get("run_dir") for cfg in configs if cfg.get("run_dir")]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(
                f"run_dir={folder} is the same for {folders.count(folder)} runs: name what "
                "differs, as in 'run_dir=runs/mine-${seed}'"
            )
    return configs


def name_of_data(
    cfg: DictConfig, task: str | None, words: Sequence[str], root: str | Path = "."
) -> str:
    """What a run's folder is called after: the task, or a data set that was given without one.

    Such a data set may have nothing to do with the default task. Files are looked up from ``root``.
    """
    given = {word.partition("=")[0].lstrip("+") for word in words}
    if task is not None and ("dataset" not in given or "task" in given):
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


def _check_keys(config_name: str, job: Iterable[str]) -> None:
    """Refuse a job's words that set nothing; to be called where Hydra is initialised."""
    loaded = OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml")
    groups = {name for entry in loaded.defaults if OmegaConf.is_dict(entry) for name in entry}
    model = SETTINGS.get(config_name)
    known = keys_of(model) if model else leaf_keys(compose(config_name))
    for override in map(_parse, job):
        key, value = override.key_or_group, override.value()
        if key in groups and not isinstance(value, str):
            raise ValueError(f"{key} must be one name, got {shown(value)}")
        if key in groups or re.match(r"hydra\b", key):
            continue
        for name in _named(key, value):
            members = [other for other in known if other.startswith(f"{name}.")]
            if members:
                raise ValueError(f"{name} is a group of settings: set one of {', '.join(members)}")
            if name not in known:
                near = suggestion(name, [*known, *groups])
                raise ValueError(f"{config_name} has no setting {name!r}{near}")
        if override.is_delete():
            raise ValueError(f"{key} cannot be left out: set it with {key}=VALUE")


def _no_such_choice(error: MissingConfigException) -> str:
    """What to choose in the place of a file that ``config/`` and Hydra's plugins do not have."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group in ("hydra/sweeper", "hydra/launcher") and name in EXTRAS:
        return f"{group}={name} is not installed: pip install 'rambo_trl[{EXTRAS[name]}]'"
    choices = error.options or []
    return (
        f"{group}={name}: there is no such {group}{suggestion(name, choices)} "
        f"({group} is one of {', '.join(choices)})"
    )


def _named(key: str, value: object) -> list[str]:
    """The keys that an override sets: its own, or those of a group given as ``{...}``."""
    if not isinstance(value, dict):
        return [key]
    return [name for k, v in value.items() for name in _named(f"{key}.{k}", v)]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
