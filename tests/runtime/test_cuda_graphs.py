"""Capture into CUDA graphs: the bookkeeping with a make-believe device, the rest on a GPU."""

from __future__ import annotations

import gc
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from workload import ODD_SIZES, Workload

from rambo_trl.runtime import cuda_graphs as capturing
from rambo_trl.runtime.cuda_graphs import capture_on_gpu
from rambo_trl.training.gradient_step import MetricMeans


class Device:
    """Stands in for torch.cuda: a replay does again, in place, what was done under capture."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.recorded: Any = None
        self.error: Exception | None = None

    def CUDAGraph(self) -> Device:
        return self

    @contextmanager
    def graph(self, graph: Device, **settings: Any) -> Any:
        self.captures += 1
        if self.error is not None:
            raise self.error
        yield

    def replay(self) -> None:
        self.replays += 1
        torch._foreach_copy_(*self.recorded())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(capturing, "_on_gpu", lambda leaves: True)
    for name, value in {
        "Stream": lambda: type("Stream", (), {"wait_stream": lambda *_: None})(),
        "current_stream": lambda: type("Stream", (), {"wait_stream": lambda *_: None})(),
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": device.CUDAGraph,
        "graph": device.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return device


def doubled(device: Device) -> Any:
    """A function of a tensor and a TensorDict, as a device records it."""

    def function(x: Tensor, td: TensorDict) -> Tensor:
        def doubled() -> Tensor:
            return torch.where(td["on"], 2 * x + td["a", "b"], 0)

        out = doubled()
        device.recorded = lambda: ([out], [doubled()])
        return out

    return function


def inputs(value: float, rows: int = 3) -> tuple[Tensor, TensorDict]:
    on = torch.full((rows,), value != 4)  # another dtype, and not always the same
    td = TensorDict({"on": on, "a": {"b": torch.full((rows,), value)}}, [rows])
    return torch.full((rows,), value), td


def test_replays_see_the_new_arguments(device: Device) -> None:
    run = capture_on_gpu(doubled(device), warmups=2)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert run(*inputs(value)).tolist() == [0 if value == 4 else 3 * value] * 3
    assert (device.captures, device.replays) == (1, 3)


def test_other_shapes_run_uncaptured(device: Device) -> None:
    run = capture_on_gpu(doubled(device), warmups=1)
    run(*inputs(1.0))
    run(*inputs(1.0))
    assert device.replays == 1
    recorded = device.recorded
    assert run(*inputs(7.0, rows=5)).tolist() == [21.0] * 5
    assert device.replays == 1
    device.recorded = recorded
    assert run(*inputs(2.0)).tolist() == [6.0] * 3
    assert (device.captures, device.replays) == (1, 2)


def test_what_cant_be_captured_says_what_to_do(device: Device) -> None:
    device.error = RuntimeError("operation not permitted when stream is capturing\nand more")
    run = capture_on_gpu(doubled(device), warmups=1, name="this")
    assert run(*inputs(1.0)).tolist() == [3.0] * 3
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"this can't be .* capturing\): .*compile=False"):
            run(*inputs(2.0))
    assert gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_no_garbage_is_collected_within_a_capture(device: Device, collecting: bool) -> None:
    function, seen = doubled(device), []

    def watched(x: Tensor, td: TensorDict) -> Tensor:
        seen.append(gc.isenabled())
        return function(x, td)

    run = capture_on_gpu(watched, warmups=1)
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        run(*inputs(1.0))
        run(*inputs(1.0))
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
    assert seen[:2] == [collecting, False]


def test_on_a_cpu_nothing_is_captured() -> None:
    run = capture_on_gpu(lambda x: x + 1, warmups=1)
    for value in range(3):
        assert run(torch.tensor(value)) == value + 1
    function = doubled(Device())
    assert capture_on_gpu(function, enabled=False) is function


def test_arguments_of_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="expected tensors and TensorDicts, got int"):
        capture_on_gpu(lambda x: x)(1)


# On a GPU: the same numbers, captured or not

SIZES: dict[str, Any] = {**ODD_SIZES, "num_rows": 500, "num_starts": 50, "device": "cuda"}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_captured_epochs_equal_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", capturing.log.name)
    states = []
    for compile in (False, True):
        work = Workload(compile=compile, **SIZES)
        torch.manual_seed(3)
        metrics = {}
        for _ in range(5):  # more than are run before the capture
            work.rollouts()
            metrics = {**work.agent_updates(12), **work.model_updates(12)}
        states.append((metrics, work.state()))
    (eager_metrics, eager), (metrics, captured) = states
    assert metrics == pytest.approx(eager_metrics, rel=1e-2, abs=1e-3)
    for name in eager:
        torch.testing.assert_close(captured[name], eager[name], rtol=1e-2, atol=1e-3, msg=name)
    for name in ("the imagined rollouts", "the agent's update", "the adversarial update"):
        assert f"captured {name}" in caplog.messages


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_updates_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload(compile=True, **SIZES)
    work.rollouts()
    for _ in range(2):
        work.agent_updates(6)
        work.model_updates(6)
    monkeypatch.setattr(MetricMeans, "read", lambda means: {})  # the one that waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.agent_updates(6)
        work.model_updates(6)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_a_captured_adversary_follows_its_weight() -> None:
    work = Workload(compile=True, **SIZES)
    work.model_updates(6)  # captured by now
    losses = []
    for weight in (0.0, 0.1):
        work.model.adversarial_loss.adversarial_weight.fill_(weight)
        losses.append(abs(work.model_updates(1)["loss_adversarial"]))
    assert losses[0] == 0.0 < losses[1]
