from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torchrl._utils import logger as torchrl_logger


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
