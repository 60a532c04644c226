from __future__ import annotations

import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl._utils import logger as torchrl_logger

#: the files that take longest, those with slow tests among them
LONGEST = (
    "test_benchmarks.py", "test_compiled_epochs.py", "test_rambo_resume.py", "test_sweep.py",
    "test_methods.py", "test_single_transition.py", "test_rambo.py",
    "test_heating_tank_tutorial.py",
    "test_own_data_tutorial.py", "test_offline_values.py", "test_units.py", "test_model_rollout.py",
    "test_behaviour.py", "test_learning.py", "test_evaluation.py", "test_phases.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: of processes that take whole files none is left with one."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_configure() -> None:
    # One thread: sums come out in the same order every time, and tests share the machine.
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level_stays() -> Iterator[None]:
    """A program that silences TorchRL's log does so for its own test only."""
    level = torchrl_logger.level
    yield
    torchrl_logger.setLevel(level)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What TorchRL's logger says, which does not propagate."""
    torchrl_logger.addHandler(caplog.handler)
    yield caplog
    torchrl_logger.removeHandler(caplog.handler)


@pytest.fixture(autouse=True)
def _minari_root_stays(_own_minari_root: None) -> Iterator[None]:
    """No test leaves a root of its own to those that run after it in the same process."""
    before = os.environ["MINARI_DATASETS_PATH"]
    yield
    assert os.environ["MINARI_DATASETS_PATH"] == before


@pytest.fixture(autouse=True, scope="session")
def _own_minari_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data sets made by tests live and die with the session; the user's stay untouched."""
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path_factory.mktemp("minari"))


@pytest.fixture(scope="session")
def run_command() -> Callable[[Path, Sequence[str]], None]:
    """Runs ``python FILE ...`` or ``python -m MODULE ...`` in a folder.

    It does so in this process, which has imported already what takes a new one seconds. As there,
    SystemExit tells of any exit code but 0.
    """

    def run(cwd: Path, words: Sequence[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", list(words[2 if words[1] == "-m" else 1 :]))
            try:
                if words[1] == "-m":
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
                        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(words[1], run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise

    return run


@pytest.fixture
def graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is traced, with its guards and gradients, but no code is made of the graphs.

    That it is right is torch's matter; to make it takes most of the time.
    """
    original = torch.compile

    def trace(function: Any, *, options: dict[str, Any], **kwargs: Any) -> Any:
        guards = {"guard_filter_fn": options["guard_filter_fn"]}
        return original(function, backend="aot_eager", options=guards, **kwargs)

    monkeypatch.setattr(torch, "compile", trace)
