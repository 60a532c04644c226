"""Compiled epochs: eager's numbers on odd sizes, no second compilation, flat memory."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from workload import ODD_SIZES, Workload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]


@dataclass
class Run:
    """A workload, and its metrics and states: an update, more of them, another epoch."""

    work: Workload
    metrics: list[dict[str, float]]
    states: list[dict[str, Tensor]]
    compiled: int  # frames in the first update of each phase
    recompiled: int  # frames in those after it


def epoch(work: Workload, num: int = 4) -> dict[str, float]:
    work.rollouts()
    agent = work.agent_updates(num)
    return {**agent, **work.model_updates(num)}


def state(work: Workload) -> dict[str, Tensor]:
    rows = work.model_buffer[:]
    imagined = torch.cat([rows["observation"], rows["next", "reward"]], dim=-1)
    return {k: v.clone() for k, v in {**work.state(), "imagined": imagined}.items()}


def train(compile: bool) -> Run:
    work = Workload(compile=compile, **ODD_SIZES)
    work.collector.chunk_size = 20
    torch.manual_seed(3)
    frames, metrics, states = [], [], []
    work.rollouts()
    for num in (1, 2 * work.model.horizon):
        before = counters["frames"]["ok"]
        metrics.append({**work.agent_updates(num), **work.model_updates(num)})
        frames.append(counters["frames"]["ok"] - before)
    states.append(state(work))
    metrics.append(epoch(work))
    states.append(state(work))
    return Run(work, metrics, states, *frames)


@pytest.fixture(scope="module")
def compiled() -> Run:
    return train(compile=True)


def test_compiled_epochs_equal_eager_ones(compiled: Run) -> None:
    eager = train(compile=False)
    assert compiled.metrics[0] == pytest.approx(eager.metrics[0], rel=1e-3, abs=1e-4)
    assert compiled.metrics[1] == pytest.approx(eager.metrics[1], rel=5e-3, abs=5e-4)
    assert compiled.metrics[0] != compiled.metrics[1]
    for one, other in zip(compiled.states[:1], eager.states[:1], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3, msg=name)


def test_a_compiled_agent_keeps_its_target_entropy(compiled: Run) -> None:
    loss = compiled.work.agent.loss
    assert "_target_entropy" in loss._buffers and "_target_entropy" in loss.state_dict()


def test_an_update_is_compiled_once(compiled: Run) -> None:
    assert compiled.compiled > 0 and compiled.recompiled == 0


def test_nothing_is_compiled_after_the_first_epoch(compiled: Run) -> None:
    # as where a program imports or uses other parts between epochs
    from torchrl.envs import CatTensors  # noqa: F401

    before = {name: dict(counters[name]) for name in ("stats", "frames")}
    for _ in range(3):
        epoch(compiled.work)
    assert {name: dict(counters[name]) for name in ("stats", "frames")} == before


def test_no_tensors_are_left_behind_by_an_epoch(compiled: Run) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(x, Tensor) for x in gc.get_objects())

    for _ in range(2):
        epoch(compiled.work)
    before = tensors()
    for _ in range(5):
        epoch(compiled.work)
    assert tensors() <= before + 5


def test_the_same_seed_gives_the_same_numbers(compiled: Run) -> None:
    again = train(compile=True)  # which compiles for itself
    assert again.compiled > 0
    assert again.metrics == compiled.metrics  # to the last bit
    for one, other in zip(again.states, compiled.states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_members_density_makes_another_update_of_the_model_alone() -> None:
    found = []
    for compile in (False, True):
        work = Workload(compile=compile, adversary_density="member", **ODD_SIZES)
        torch.manual_seed(3)
        metrics = [work.model_updates(1)]
        before = counters["frames"]["ok"]
        metrics.append(work.model_updates(2 * work.model.horizon))
        assert counters["frames"]["ok"] == before
        found.append((metrics, dict(work.world_model.state_dict())))
    (eager, wanted), (compiled, model) = found
    assert compiled[0] == pytest.approx(eager[0], rel=1e-3, abs=1e-4)
    assert compiled[1] == pytest.approx(eager[1], rel=5e-3, abs=5e-4)
    torch.testing.assert_close(model, wanted, rtol=1e-3, atol=1e-3)
