"""Data sets in memory-mapped files: the same data, opened without reading it."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_loading import FORMATS, measure_load, measure_training, write
from gymnasium import spaces
from tensordict import MemoryMappedTensor, TensorDict
from torchrl.data import Bounded

from rambo_trl.data import (
    ObservationLayout,
    OfflineDataset,
    check_environment,
    make_environment,
    memmap,
    storage,
)
from rambo_trl.data.__main__ import main


def make_dataset(**kwargs: object) -> OfflineDataset:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": 3 + rng.normal(size=(6, 3)),
            "actions": rng.uniform(-1, 1, size=(5, 2)).astype(np.float32),
            "rewards": rng.normal(size=5),
            "terminations": np.arange(5) == (4 if i % 2 else 9),
            "truncations": np.zeros(5, dtype=bool),
        }
        for i in range(4)
    ]
    layout = ObservationLayout.of(spaces.Box(-9, 9, (3,)), name="toy")
    return OfflineDataset.from_episodes(
        episodes,
        action_spec=Bounded(-2, 2, shape=(2,)),
        name="toy",
        observation_layout=layout,
        **kwargs,
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    want = make_dataset(env_id="Hopper-v5", reward_shift=-1.0, reference_scores=(1.0, 3.0))
    want.memmap(tmp_path / "set")
    got = OfflineDataset.load(tmp_path / "set")
    assert vars(got).keys() == vars(want).keys()
    assert (got.transitions == want.transitions).all()
    assert got.transitions.batch_size == want.transitions.batch_size
    for key in ("observation_mean", "observation_std"):
        assert torch.equal(getattr(got, key), getattr(want, key))
    np.testing.assert_array_equal(got.behaviour_returns, want.behaviour_returns)
    np.testing.assert_array_equal(got.whole_episodes, want.whole_episodes)
    for key in ("name", "env_id", "environment", "reference_scores", "remarks", "data_warnings",
                "reward_shift", "observation_layout", "action_spec", "behaviour_score",
                "normalized", "observation_names", "action_names", "num_cut_episodes",
                "step_intervals"):  # fmt: skip
        assert getattr(got, key) == getattr(want, key)
    observation = got.transitions["observation"]
    assert isinstance(observation, MemoryMappedTensor)
    assert Path(observation.filename).is_relative_to(tmp_path / "set")


def test_a_module_named_by_a_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_stranger.py").write_text("open(__file__ + '.ran', 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    make_dataset(env_id="Hopper-v5").memmap(tmp_path / "set")
    description = tmp_path / "set/rambo_trl_dataset.json"
    description.write_text(description.read_text().replace("Hopper-v5", "of_a_stranger:Hopper-v5"))
    found = OfflineDataset.load(tmp_path / "set")
    with pytest.raises(ValueError, match="give env_id=of_a_stranger:Hopper-v5 if you trust it"):
        check_environment(found)
    found.has_simulator = False  # as env_id=none has it
    assert found.environment is None
    assert not (tmp_path / "of_a_stranger.py.ran").exists()
    trusted = OfflineDataset.load(tmp_path / "set", env_id="of_a_stranger:Hopper-v5")
    assert trusted.environment is not None
    make_environment(trusted.environment).close()
    assert (tmp_path / "of_a_stranger.py.ran").exists()
    monkeypatch.delitem(sys.modules, "of_a_stranger")


def test_what_it_was_made_with_stays(tmp_path: Path) -> None:
    make_dataset(env_id="Hopper-v5", reward_shift=-1.0).memmap(tmp_path / "set")
    OfflineDataset.load(tmp_path / "set", env_id="Hopper-v5", reward_shift=-1.0)
    for key, value in (("env_id", "Ant-v5"), ("reward_shift", 2.0)):
        with pytest.raises(ValueError, match=f"made with {key}=.*leave out {key}={value}"):
            OfflineDataset.load(tmp_path / "set", **{key: value})
    same = {"action_spec": Bounded(-2, 2, shape=(2,)), "reference_scores": (-20.272305, 3234.3)}
    OfflineDataset.load(tmp_path / "set", **same)
    for key, value in (
        ("normalize", False),
        ("reference_scores", (0.0, 1.0)),
        ("observation_keys", ["goal"]),
        ("max_episode_steps", 10),
        ("action_spec", Bounded(-1, 2, shape=(2,))),
    ):
        with pytest.raises(ValueError, match=f"made with {key}=.*leave out {key}=") as caught:
            OfflineDataset.load(tmp_path / "set", **{key: value})
        assert "\n" not in str(caught.value)


def test_nothing_is_written_over_and_nothing_half_built_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(memmap.np, "savez", full)
        with pytest.raises(OSError, match=f"{tmp_path}/set cannot be written .*No space left"):
            data.memmap(tmp_path / "set")
    assert not list(tmp_path.iterdir())
    data.memmap(tmp_path / "set")
    with pytest.raises(ValueError, match="is there already"):
        data.memmap(tmp_path / "set")


def test_a_disk_without_room_is_told_before_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mapped files are made sparse: a full disk would kill the process when they are filled.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(TensorDict, "memmap", lambda *_, **__: pytest.fail("written to"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="set cannot be written .*free some space, or choose"):
            make_dataset().memmap(tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_room_is_counted_where_it_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not on this file system")

    monkeypatch.setattr(storage.os, "posix_fallocate", unsupported)
    storage.check_space(tmp_path, 1000)
    with pytest.raises(OSError, match="No space left"):
        storage.check_space(tmp_path, 1 << 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0.0, 0.5, None])
def test_a_file_cut_short_is_refused_and_left_as_it_is(tmp_path: Path, keep: float | None) -> None:
    # Mapping a file that is too short would lengthen it, with zeros that pass for data.
    make_dataset().memmap(tmp_path / "set")
    path = tmp_path / "set/transitions/observation.memmap"
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="set is incomplete or damaged .*observation.memmap"):
        OfflineDataset.load(tmp_path / "set")
    assert not path.exists() if keep is None else path.stat().st_size == keep * len(content)


@pytest.mark.parametrize("part", ["arrays.npz", "transitions/meta.json", "version"])
def test_a_damaged_folder_is_named(tmp_path: Path, part: str) -> None:
    make_dataset().memmap(tmp_path / "set")
    if part == "version":
        path = tmp_path / "set/rambo_trl_dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    else:
        (tmp_path / "set" / part).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{tmp_path}/set .*make it anew") as caught:
        OfflineDataset.load(tmp_path / "set")
    assert "\n" not in str(caught.value)


class _Crafted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore")  # tensordict loads pickles with a warning, unless told
def test_a_crafted_folder_runs_nothing(tmp_path: Path) -> None:
    make_dataset().memmap(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/transitions")
    rows = make_dataset().transitions
    rows.set_non_tensor("crafted", _Crafted(tmp_path / "ran"))
    rows.memmap(tmp_path / "set/transitions", copy_existing=True)
    path = tmp_path / "set/rambo_trl_dataset.json"  # as if the folder had been made like this
    description = json.loads(path.read_text())
    path.unlink()
    description["files"] = memmap._file_sizes(tmp_path / "set")
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="make it anew"):
        OfflineDataset.load(tmp_path / "set")
    assert not (tmp_path / "ran").exists()


def test_the_command_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("d4rl", 1000, tmp_path)
    assert main([str(path), "--memmap", str(tmp_path / "set")]) == 0
    assert len(OfflineDataset.load(tmp_path / "set")) == 1000
    assert main([str(path), "--memmap", str(tmp_path / "set")]) == 2
    assert "is there already" in capsys.readouterr().err
    options = ["--action-low=-2,-3,-1", "--action-high=1,3,5", "--reward-shift", "-1"]
    options += ["--max-episode-steps", "1000", "--memmap", str(tmp_path / "other")]
    assert main([str(path), *options]) == 0
    got = OfflineDataset.load(tmp_path / "other")
    assert got.action_low.tolist() == [-2, -3, -1] and got.reward_shift == -1
    assert main([str(path), "--action-low=-2", "--action-high=1,3,5"]) == 2
    assert "--action-low has 1 numbers and --action-high 3" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(path), "--action-low=-2,-2,-2"])
    assert "give both" in capsys.readouterr().err


def test_each_format_of_the_benchmark_loads(tmp_path: Path) -> None:
    for kind in FORMATS:
        folder = tmp_path / kind
        folder.mkdir()
        result = measure_load(str(write(kind, 2000, folder)))
        assert result["transitions"] == (1998 if kind == "d4rl-without-next" else 2000)
        assert result["float32_bytes"] == result["transitions"] * 107


def test_training_reads_from_the_disk(tmp_path: Path) -> None:
    result = measure_training(str(write("memmap", 2000, tmp_path)), updates=5)
    assert result["transitions"] == 2000 and np.isfinite(result["last_loss"])
