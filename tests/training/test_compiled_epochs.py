"""Compiled epochs: eager's numbers on odd sizes, no second compilation, flat memory."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from workload import ODD_SIZES, Workload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]


def build(compile: bool) -> Workload:
    work = Workload(compile=compile, **ODD_SIZES)
    work.collector.chunk_size = 20
    return work


def epoch(work: Workload, num: int = 4) -> dict[str, float]:
    work.rollouts()
    agent = work.agent_updates(num)
    return {**agent, **work.model_updates(num)}


@pytest.fixture(scope="module")
def compiled() -> Workload:
    return build(compile=True)


def state(work: Workload) -> dict[str, Tensor]:
    rows = work.model_buffer[:]
    imagined = torch.cat([rows["observation"], rows["next", "reward"]], dim=-1)
    return {k: v.clone() for k, v in {**work.state(), "imagined": imagined}.items()}


def test_compiled_epochs_equal_eager_ones(compiled: Workload) -> None:
    eager = build(compile=False)
    metrics = []
    for work in (eager, compiled):
        torch.manual_seed(3)
        metrics.append(epoch(work))
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3, abs=1e-4)
    wanted, got = state(eager), state(compiled)
    assert wanted.keys() == got.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=2e-4, msg=name)


def test_nothing_is_compiled_after_the_first_epoch(compiled: Workload) -> None:
    epoch(compiled)
    # as where a program imports or uses other parts between epochs
    from torchrl.envs import CatTensors  # noqa: F401

    before = {name: dict(counters[name]) for name in ("stats", "frames")}
    assert before["frames"]["ok"] > 0
    for _ in range(3):
        epoch(compiled)
    assert {name: dict(counters[name]) for name in ("stats", "frames")} == before


def test_an_update_is_compiled_once() -> None:
    work = build(compile=True)
    work.rollouts()
    work.agent_updates(1)
    work.model_updates(1)
    before = dict(counters["frames"])
    work.agent_updates(2)
    work.model_updates(2 * work.model.horizon)
    assert dict(counters["frames"]) == before


def test_no_tensors_are_left_behind_by_an_epoch(compiled: Workload) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(x, Tensor) for x in gc.get_objects())

    for _ in range(2):
        epoch(compiled)
    before = tensors()
    for _ in range(5):
        epoch(compiled)
    assert tensors() <= before + 5


def test_the_same_seed_gives_the_same_numbers() -> None:
    found = []
    for _ in range(2):
        work = build(compile=True)  # which compiles for itself
        before = counters["frames"]["ok"]
        torch.manual_seed(3)
        metrics = [epoch(work) for _ in range(2)]
        assert counters["frames"]["ok"] > before
        found.append((metrics, state(work)))
    (first, parts), (again, same) = found
    assert first == again  # to the last bit
    assert first[0] != first[1]
    assert parts.keys() == same.keys()
    assert all(torch.equal(parts[name], same[name]) for name in parts)
