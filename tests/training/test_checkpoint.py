"""Checkpoints restore everything, refuse what they cannot read, and run no code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rambo_trl.data import make_replay_buffer
from rambo_trl.training.checkpoint import load_checkpoint, save_checkpoint


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
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, parts(0), {"epoch": 2})
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
