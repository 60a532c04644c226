"""Several agents and models updated side by side: each as it would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workload import ODD_SIZES, Workload

from rambo_trl.runtime import cuda_graphs as capturing
from rambo_trl.runtime.cuda_graphs import side_by_side
from rambo_trl.training import gradient_step as updates
from rambo_trl.training.gradient_step import MetricMeans
from rambo_trl.training.phases import AgentPhases, ModelPhases

SEEDS = (0, 1, 2)


def works(**settings: Any) -> list[Workload]:
    found = [Workload(seed=seed, **ODD_SIZES, **settings) for seed in SEEDS]
    torch.manual_seed(5)
    for work in found:
        work.rollouts()
    return found


def assert_same(some: list[Workload], others: list[Workload], **close: float) -> None:
    for a, b in zip(some, others, strict=True):
        got, wanted = a.state(), b.state()
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], msg=name, **close)


def test_agents_move_as_when_they_take_turns() -> None:
    turns, together = works(), works()
    before = [{k: v.clone() for k, v in work.state().items()} for work in together]
    torch.manual_seed(6)
    want = [MetricMeans() for _ in turns]
    for batches in zip(*(work.mixed.batches(4) for work in turns), strict=True):
        for mean, work, batch in zip(want, turns, batches, strict=True):
            mean.add(work.agent._update(batch))
    torch.manual_seed(6)
    phases = AgentPhases([work.agent for work in together])
    got = phases.run([work.mixed.batches(4) for work in together])
    assert got == [mean.read() for mean in want]
    assert got[0] != got[1]
    assert_same(together, turns, rtol=0, atol=0)
    for work, old in zip(together, before, strict=True):
        name = next(k for k in old if "qvalue" in k)
        assert not torch.equal(work.state()[name], old[name])


def test_models_move_as_when_they_take_turns() -> None:
    turns, together = works(), works()
    torch.manual_seed(6)
    want = [MetricMeans() for _ in turns]
    moves = [work.model._moves(5) for work in turns]
    sent: list[Any] = [None] * len(turns)
    with turns[0].model._playing(), turns[1].model._playing(), turns[2].model._playing():
        for _ in range(5):
            given = [m.send(x) for m, x in zip(moves, sent, strict=True)]
            for i, work in enumerate(turns):
                sent[i], metrics = work.model._update(*given[i])
                want[i].add(metrics)
    torch.manual_seed(6)
    told: list[int] = []
    for i, work in enumerate(together):
        work.model.after_update = lambda metrics, i=i: told.append(i)
    got = ModelPhases([work.model for work in together]).run(5)
    assert got == [mean.read() for mean in want]
    assert told == [0, 1, 2] * 5
    assert_same(together, turns, rtol=0, atol=0)


def test_one_among_others_moves_as_alone() -> None:
    # the first one's update draws its random numbers before the others'
    alone, together = works()[0], works()
    torch.manual_seed(6)
    agent = list(alone.mixed.batches(2))
    torch.manual_seed(6)
    others = [list(work.mixed.batches(2)) for work in together]
    torch.manual_seed(7)
    want = alone.agent._update(agent[0])
    torch.manual_seed(7)
    got = AgentPhases([work.agent for work in together]).run([batches[:1] for batches in others])
    assert got[0] == {name: float(value) for name, value in want.items()}


def test_agents_need_as_many_batches_as_each_other() -> None:
    some = works()
    agents = [work.agent for work in some]
    with pytest.raises(ValueError, match="3 agents need as many iterables of batches, got 2"):
        AgentPhases(agents).run([work.mixed.batches(2) for work in some[:2]])
    with pytest.raises(ValueError, match="longer"):
        AgentPhases([w.agent for w in some]).run([w.mixed.batches(2 + w.seed) for w in some])


def test_functions_that_cannot_share_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        side_by_side([])
    two = side_by_side([torch.neg, torch.neg])
    for number in (0, 1, 3):
        with pytest.raises(ValueError, match=f"2 functions .* got {number} in all"):
            two(*[torch.ones(())] * number)


def test_a_captured_function_has_a_branch_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: str = "") -> None:
            self.name = name or f"branch {sum(x.startswith('new') for x in log)}"
            if not name:
                log.append(f"new {self.name}")

        def record_event(self) -> str:
            return f"the beginning of {self.name}"

        def wait_event(self, event: str) -> None:
            log.append(f"{self.name} waits for {event}")

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            log.append(f"in {self.name}")

        def __exit__(self, *args: object) -> None:
            log.append("out")

    main = Stream("main")
    monkeypatch.setattr(capturing, "is_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    run = side_by_side([lambda x, y: x + y, lambda x, y: x - y])
    assert run(*map(torch.tensor, (5, 3, 5, 3))) == [8, 2]
    assert log == [
        "new branch 0",
        "new branch 1",
        "branch 0 waits for the beginning of main",
        "in branch 0",
        "out",
        "branch 1 waits for the beginning of main",
        "in branch 1",
        "out",
        "main waits for branch 0",
        "main waits for branch 1",
    ]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_branches_of_a_graph_move_as_when_they_take_turns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", capturing.log.name)
    monkeypatch.setattr(updates, "_PIECE", 64)  # so that parameters are cut
    found = []
    for capture in (False, True):
        some = works(device="cuda", compile=True)
        before = [{k: v.clone() for k, v in work.state().items()} for work in some]
        agents = AgentPhases([work.agent for work in some], compile=capture)
        models = ModelPhases([work.model for work in some], compile=capture)
        torch.manual_seed(6)
        metrics = [*agents.run([work.mixed.batches(60) for work in some]), *models.run(60)]
        found.append((some, metrics))
        for work, old in zip(some, before, strict=True):  # far beyond what may differ
            moved = {name for name, v in work.state().items() if (v - old[name]).abs().max() > 1e-3}
            for part in ("agent.actor", "agent.qvalue", "agent.target_qvalue", "agent.log_alpha"):
                assert any(name.startswith(part) for name in moved), part
            assert any(name.startswith("model.weights") for name in moved)
    (turns, want), (together, got) = found
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert_same(together, turns, rtol=1e-3, atol=1e-5)
    for name in ("the agents' updates", "the adversarial updates"):
        assert f"captured {name}" in caplog.messages
