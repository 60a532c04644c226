"""Checkpoints restore everything, refuse what they cannot read, and run no code."""

from __future__ import annotations

import copy
import enum
import os
import pickle
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.experiment.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_optimizer,
    make_deterministic,
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


def test_the_random_state_of_older_checkpoints_is_restored(tmp_path: Path) -> None:
    # as they held it before TorchRL's GlobalRNGState, and of a machine with a GPU
    seed_everything(4)
    draws()
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state = {
        "cpu": torch.get_rng_state(),
        "cuda": [torch.zeros(16, dtype=torch.uint8)],
        "python": {"version": version, "numbers": torch.tensor(numbers), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }
    torch.save({"parts": {}, "progress": {"epoch": 1}, "random": state}, tmp_path / "last.pt")
    following = draws()
    seed_everything(5)
    assert load_checkpoint(tmp_path / "last.pt", {}) == {"epoch": 1}
    assert draws() == following
    set_random_state({"cpu": state["cpu"]})  # what is not named is left alone
    assert draws()[-1] == following[-1] and draws()[:-1] != following[:-1]


def test_the_random_states_of_the_gpus_that_there_are_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restored: list[Any] = []
    for name, stand_in in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "get_rng_state_all": lambda: ["now"],
        "set_rng_state_all": lambda states: restored.extend(states),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    saved = [torch.tensor([n]) for n in (1, 2)]
    for key in ("torch_cuda", "cuda"):
        set_random_state({key: saved})
    assert restored == [saved[0]] * 2


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


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has asked for no determinism, and has asked for none when it is over."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield monkeypatch
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_deterministic_algorithms_are_asked_for_everywhere(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(torch._inductor.config, "deterministic", False)
    undecided.setattr(torch.backends.cudnn, "benchmark", True)
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch._inductor.config.deterministic
    assert not torch.backends.cudnn.benchmark


def test_determinism_that_comes_too_late_is_refused(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="comes too late: the GPU is in use already"):
        make_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    undecided.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # told by the user from the start
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_numpy_scalars_in_the_progress_come_back_as_pythons(tmp_path: Path) -> None:
    seconds = defaultdict(float, agent=np.float32(0.5))
    progress = {
        "epoch": np.int64(3),
        "score": np.float64(0.1),
        "cloned": {"found": np.bool_(True), np.str_("name"): [np.float64(2), (np.int8(1), None)]},
        "seconds": seconds,
        "weights": torch.ones(2),
    }
    save_checkpoint(tmp_path / "last.pt", {}, progress)
    found = load_checkpoint(tmp_path / "last.pt", {})
    assert torch.equal(found.pop("weights"), torch.ones(2))
    wanted = {
        "epoch": 3,
        "score": 0.1,
        "cloned": {"found": True, "name": [2.0, (1, None)]},
        "seconds": {"agent": 0.5},
    }
    assert found == wanted and repr(found) == repr(wanted)
    assert progress["seconds"] is seconds and isinstance(progress["epoch"], np.int64)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({"epoch": 2, "path": Path("x")}, r"progress\.path cannot be kept .*: PosixPath"),
        ({"cloned": [{"scores": np.zeros(2)}]}, r"progress\.cloned\[0\]\.scores .*: ndarray"),
        ({"colour": (0, Colour.RED)}, r"progress\.colour\[1\] .*: Colour"),
        ({"score": np.longdouble(1)}, r"progress\.score .*: longdouble"),
        ({"seeds": {0, 1}}, r"progress\.seeds .*: set"),
        ({"by": {Path("x"): 1}}, r"a key of progress\.by .*: PosixPath"),
    ],
)
def test_progress_that_would_not_come_back_is_refused(
    tmp_path: Path, progress: dict[str, Any], words: str
) -> None:
    path = tmp_path / "checkpoint/last.pt"
    with pytest.raises(TypeError, match=words):
        save_checkpoint(path, parts(0), progress)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(path, parts(0), {"epoch": 1})
    with pytest.raises(TypeError, match=words):
        save_checkpoint(path, parts(0), progress)
    assert load_checkpoint(path, parts(1)) == {"epoch": 1}


def test_a_learning_rate_of_numpy_s_comes_back_as_python_s(tmp_path: Path) -> None:
    optimizers = []
    for _ in range(2):
        optimizer = torch.optim.Adam(nn.Linear(3, 2).parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: np.cos(n / 9))
        optimizers.append(optimizer)
    optimizer.step()
    schedule.step()
    (rate,) = (group["lr"] for group in optimizer.param_groups)
    assert isinstance(rate, np.float64)
    save_checkpoint(tmp_path / "last.pt", {"optimizer": optimizer}, {})
    load_checkpoint(tmp_path / "last.pt", {"optimizer": optimizers[0]})
    (group,) = optimizers[0].param_groups
    assert group["lr"] == rate and type(group["lr"]) is float


def everything(run: dict[str, Any]) -> list[torch.Tensor]:
    """A run's weights, moments and rows, copied."""
    moments = [value for state in run["optimizer"].state.values() for value in state.values()]
    rows = [run["buffer"][:]["a"]] if "buffer" in run else []
    return copy.deepcopy([*run["net"].state_dict().values(), *moments, *rows])


@pytest.mark.parametrize("fault", ["net", "optimizer", "mixed"])
def test_parts_that_do_not_all_fit_are_left_as_they_were(tmp_path: Path, fault: str) -> None:
    def run(seed: int, fraction: float = 0.5) -> dict[str, Any]:
        torch.manual_seed(seed)
        buffers, net = [make_replay_buffer(8) for _ in range(3)], nn.Linear(3, 2)
        buffers[0].extend(TensorDict({"a": torch.randn(4, 3)}, [4]))
        mixed = RealModelReplayBuffer(*buffers[1:], real_fraction=fraction)
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        # the order of a run whose network comes last
        return {"buffer": buffers[0], "mixed": mixed, "optimizer": optimizer, "net": net}

    saved, own = run(0, 0.25), run(1)
    words = f"{fault} does not fit"
    if fault == "net":  # whose bias fits
        saved["net"] = nn.Linear(4, 2)
    elif fault == "optimizer":
        saved["optimizer"] = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    else:  # which only it knows
        words += r" \(the saved real_fraction"
        own.pop("buffer"), saved.pop("buffer")
    save_checkpoint(tmp_path / "last.pt", saved, {"epoch": 1})
    before, draws = everything(own), torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"last.pt was saved with other settings: its {words}"):
        load_checkpoint(tmp_path / "last.pt", own)
    for was, now in zip(before, everything(own), strict=True):
        assert torch.equal(was, now)
    assert torch.equal(draws, torch.get_rng_state())
    own["net"](torch.ones(1, 3)).sum().backward()
    own["optimizer"].step()  # still the network's


class TestCheckpoints:
    def test_due_by_epochs_or_by_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("rambo_trl.experiment.checkpoint.time.monotonic", lambda: now)
        checkpoints = Checkpoints(tmp_path, parts(0), every=3, minutes=5)
        by_epochs = Checkpoints(tmp_path, parts(0), every=3)
        assert [checkpoints.due(e) for e in range(1, 7)] == [False, False, True] * 2
        now += 299
        assert not checkpoints.due(1)
        now += 2
        assert checkpoints.due(1) and not by_epochs.due(1)
        checkpoints.save({"epoch": 1})
        assert not checkpoints.due(2)

    @pytest.mark.parametrize("links", [True, False])
    def test_the_newest_are_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
    ) -> None:
        if not links:  # as on file systems that have none

            def refuse(*args: object) -> None:
                raise OSError(1, "Operation not permitted")

            monkeypatch.setattr("os.link", refuse)
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
        assert checkpoints.load() is None
        for epoch in (0, 1):
            checkpoints.save({"epoch": epoch})
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
        assert checkpoints.size == checkpoints.last.stat().st_size

    def test_the_last_good_one_outlives_those_that_follow(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, parts(0))
        checkpoints.save({"epoch": 3})
        checkpoints.keep_last_good()
        assert not checkpoints.last_good.samefile(checkpoints.last)
        checkpoints.save({"epoch": 4})
        assert checkpoints.load() == {"epoch": 4}
        assert checkpoints.load(checkpoints.last_good) == {"epoch": 3}

    def test_a_reader_leaves_what_is_being_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # the reader stands for another process: a report on a run that goes on
        writer, reader = (Checkpoints(tmp_path, parts(seed)) for seed in range(2))
        writer.save({"epoch": 1})
        replace = os.replace

        def replace_after_a_reader(*names: Any) -> None:
            assert reader.load() == {"epoch": 1}
            replace(*names)

        monkeypatch.setattr("os.replace", replace_after_a_reader)
        writer.save({"epoch": 2})
        assert reader.load() == {"epoch": 2}
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
