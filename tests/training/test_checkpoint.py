"""Checkpoints restore everything, refuse what they cannot read, and run no code."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rambo_trl.data import make_replay_buffer
from rambo_trl.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_optimizer,
    make_deterministic,
    random_state,
    save_checkpoint,
    seed_everything,
    set_random_state,
)


def parts(seed: int) -> dict:
    torch.manual_seed(seed)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    buffer = make_replay_buffer(8)
    for _ in range(3):
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        buffer.extend(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    return {"net": net, "optimizer": optimizer, "buffer": buffer}


def test_everything_comes_back(tmp_path: Path) -> None:
    saved, path = parts(0), tmp_path / "checkpoint/last.pt"
    save_checkpoint(path, saved, {"epoch": 7, "seconds": {"agent": 1.5}, "divergence": None})
    draws = torch.rand(3)
    restored = parts(1)
    progress = load_checkpoint(path, restored)
    assert progress == {"epoch": 7, "seconds": {"agent": 1.5}, "divergence": None}
    assert torch.equal(torch.rand(3), draws)
    for side in (saved, restored):
        side["net"](torch.ones(1, 3)).sum().backward()
        side["optimizer"].step()
    for a, b in zip(saved["net"].parameters(), restored["net"].parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [side["buffer"][:]["observation"] for side in (saved, restored)]
    assert torch.equal(*rows)
    # the write position too: the next rows replace the same ones
    for side in (saved, restored):
        side["buffer"].extend(TensorDict({"observation": torch.zeros(2, 3)}, [2]))
    assert torch.equal(*[side["buffer"][:]["observation"] for side in (saved, restored)])


def test_a_failed_write_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, parts(0), {"epoch": 1})

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left") as error:
        save_checkpoint(path, parts(0), {"epoch": 2})
    assert error.value.errno == 28
    assert str(path) in str(error.value) and "the one before it is kept" in str(error.value)
    with pytest.raises(OSError, match="there is none before it"):
        save_checkpoint(tmp_path / "first.pt", parts(0), {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path, parts(1)) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_unreadable_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(path, parts(0))
    save_checkpoint(path, parts(0), {"epoch": 1})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path, parts(0))
    save_checkpoint(path, {"net": nn.Linear(3, 2)}, {"epoch": 1})
    with pytest.raises(ValueError, match="holds the parts"):
        load_checkpoint(path, parts(0))


def test_a_crafted_file_runs_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"parts": Payload()}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            load_checkpoint(tmp_path / name, parts(0))
    assert not (tmp_path / "ran").exists()


def draws() -> tuple:
    gauss = (random.gauss(0, 1), np.random.normal())  # both keep every second draw for later
    return gauss, random.random(), float(np.random.rand()), torch.rand(3).tolist()


def test_pythons_and_numpys_random_states_come_back_too(tmp_path: Path) -> None:
    seed_everything(4)
    draws()
    save_checkpoint(tmp_path / "last.pt", parts(0), {})
    following = draws()
    seed_everything(5)
    load_checkpoint(tmp_path / "last.pt", parts(1), restore_random=False)
    assert draws() != following
    load_checkpoint(tmp_path / "last.pt", parts(1))
    assert draws() == following
    seed_everything(4)
    first = draws()
    seed_everything(4)
    assert draws() == first


def test_a_random_state_of_torch_alone_leaves_the_others() -> None:
    state = random_state()
    following = (random.random(), np.random.rand())
    set_random_state(state)
    set_random_state({"cpu": state["cpu"]})
    assert (random.random(), np.random.rand()) == following


def test_an_optimisers_way_is_that_of_the_device_it_is_loaded_on(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    saved = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    net(torch.ones(1, 3)).sum().backward()
    saved.step()
    saved.param_groups[0]["capturable"] = True  # as on a GPU
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"optimizer": saved}, {})
    restored = torch.optim.Adam(net.parameters(), lr=0.2, foreach=True)
    load_checkpoint(path, {"optimizer": restored})
    (group,) = restored.param_groups
    assert (group["fused"], group["foreach"], group["capturable"]) == (None, True, False)
    assert group["lr"] == 0.1  # what it learns by is the saved one's
    for a, b in zip(saved.state.values(), restored.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    restored.step()
    twice = torch.optim.Adam([{"params": [p]} for p in net.parameters()])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        load_optimizer(twice, saved.state_dict())


def test_deterministic_algorithms_are_asked_for_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch._inductor.config, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch._inductor.config.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_determinism_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="comes too late: the GPU is in use already"):
        make_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # told by the user from the start
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_parts_of_another_size_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"net": nn.Linear(3, 2)}, {})
    with pytest.raises(ValueError, match=r"last.pt was saved with other settings: its net"):
        load_checkpoint(tmp_path / "last.pt", {"net": nn.Linear(3, 4)})


class TestCheckpoints:
    def test_due_by_epochs_or_by_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("rambo_trl.training.checkpoint.time.monotonic", lambda: now)
        checkpoints = Checkpoints(tmp_path, parts(0), every=3, minutes=5)
        by_epochs = Checkpoints(tmp_path, parts(0), every=3)
        assert [checkpoints.due(e) for e in range(1, 7)] == [False, False, True] * 2
        now += 301
        assert checkpoints.due(1) and not by_epochs.due(1)
        checkpoints.save({"epoch": 1})
        assert not checkpoints.due(2)

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        saved = parts(0)
        checkpoints = Checkpoints(tmp_path / "c", saved, keep=3)
        for epoch in (0, 0, 1, 2, 10, 10, 11):
            with torch.no_grad():
                saved["net"].weight.fill_(epoch)
            checkpoints.save({"epoch": epoch})
        names = ["epoch-000002.pt", "epoch-000010.pt", "last.pt"]
        assert sorted(p.name for p in (tmp_path / "c").iterdir()) == names
        restored = parts(1)
        again = Checkpoints(tmp_path / "c", restored)
        assert len({p.stat().st_ino for p in (tmp_path / "c").iterdir()}) == 3, "files of their own"
        for path, epoch in ((None, 11), (tmp_path / "c/epoch-000002.pt", 2)):
            assert again.load(path) == {"epoch": epoch}
            assert (restored["net"].weight == epoch).all()
        assert again.size == (tmp_path / "c/epoch-000002.pt").stat().st_size > 0

    def test_going_back_gives_up_what_came_later(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, parts(0), keep=3)
        for epoch in (1, 2, 3):
            checkpoints.save({"epoch": epoch})
        shutil.copyfile(tmp_path / "epoch-000001.pt", checkpoints.last)  # as the docs advise
        assert checkpoints.load(tmp_path / "epoch-000002.pt") == {"epoch": 2}
        again = Checkpoints(tmp_path, parts(0), keep=3)
        assert again.load() == {"epoch": 1}
        again.save({"epoch": 2})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-000001.pt", "last.pt"]
        assert again.load(tmp_path / "epoch-000001.pt") == {"epoch": 1}

    def test_one_alone_by_default(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, parts(0))
        for epoch in (0, 1):
            checkpoints.save({"epoch": epoch})
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
        assert checkpoints.size == checkpoints.last.stat().st_size

    @pytest.mark.parametrize("links", [True, False])
    def test_the_last_good_one_outlives_those_that_follow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
    ) -> None:
        if not links:  # as on file systems that have none

            def refuse(*args: object) -> None:
                raise OSError(1, "Operation not permitted")

            monkeypatch.setattr("rambo_trl.training.checkpoint.os.link", refuse)
        checkpoints = Checkpoints(tmp_path, parts(0))
        checkpoints.save({"epoch": 3})
        checkpoints.keep_last_good()
        checkpoints.save({"epoch": 4})
        assert checkpoints.load() == {"epoch": 4}
        assert checkpoints.load(checkpoints.last_good) == {"epoch": 3}

    def test_what_a_kill_left_half_written_is_removed(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, parts(0))
        assert checkpoints.load() is None
        checkpoints.save({"epoch": 3})
        (tmp_path / ".last.pt.77.tmp").write_bytes(checkpoints.last.read_bytes()[:50])
        assert checkpoints.load() == {"epoch": 3}
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_earlier_checkpoint(small_disk: Path) -> None:
    checkpoints = Checkpoints(small_disk, {"net": nn.Linear(100, 100)})
    checkpoints.save({"epoch": 1})
    (small_disk / "filler").write_bytes(bytes(190_000))
    with pytest.raises(OSError, match=r"last\.pt could not be written \(No space left"):
        checkpoints.save({"epoch": 2})
    assert checkpoints.load() == {"epoch": 1}
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "last.pt"]
    (small_disk / "filler").unlink()
    checkpoints.save({"epoch": 2})
    assert checkpoints.load() == {"epoch": 2}
