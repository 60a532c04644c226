"""What is odd but usable, damaged Minari files, and builds that cannot be written."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from torchrl._utils import logger
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, bundled, make_environment
from rambo_trl.data.bundled import build_bundled, bundled_path

SPEC = Bounded(-1.0, 1.0, shape=(2,))


def make_episode(steps: int, seed: int, *, terminated: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ends = np.zeros((2, steps), dtype=bool)
    ends[0 if terminated else 1, -1] = True
    return {
        "observations": rng.normal(size=(steps + 1, 3)),
        "actions": rng.uniform(-1, 1, size=(steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": ends[0],
        "truncations": ends[1],
    }


def load(*episodes: dict[str, np.ndarray]) -> OfflineDataset:
    return OfflineDataset.from_episodes(episodes, action_spec=SPEC, name="toy")


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_usual_data_has_no_remarks(heard: pytest.LogCaptureFixture) -> None:
    assert load(make_episode(5, 0), make_episode(5, 1), make_episode(1, 2)).remarks == ()
    assert not heard.records


def test_rewards_all_equal(heard: pytest.LogCaptureFixture) -> None:
    episode = make_episode(5, 0)
    episode["rewards"][:] = 1.0
    (remark,) = load(episode).data_warnings
    assert load(episode).remarks == (remark,)
    assert remark.startswith("all 5 rewards are 1:") and "check the rewards" in remark
    assert heard.records[0].getMessage() == f"toy: {remark}"
    assert heard.records[0].levelname == "WARNING"


def test_terminal_and_timed_out_at_once_is_told() -> None:
    both = make_episode(5, 0, terminated=True)
    both["truncations"][-1] = True
    (remark,) = load(both, make_episode(5, 1)).data_warnings
    assert remark.startswith("1 rows are terminal and timed out at once and count as terminal")
    assert "clear their terminal flags" in remark


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_duplicate_episodes(seeds: list[int]) -> None:
    # The seed decides the whole episode, its length too.
    remarks = load(*(make_episode(3 + seed, seed) for seed in seeds)).data_warnings
    repeats = [i for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if not repeats:
        assert remarks == ()
    else:
        (remark,) = remarks
        assert remark.startswith(f"{len(repeats)} episodes repeat an earlier one")
        assert f"the first is episode {repeats[0]}:" in remark


def test_an_episode_that_goes_on_after_an_end_is_told() -> None:
    early = make_episode(5, seed=1, terminated=True)
    early["truncations"][2] = True
    late = make_episode(4, seed=2, terminated=True)
    late["terminations"][0] = True
    data = load(make_episode(3, seed=0), early, late)
    (told,) = data.data_warnings
    assert told.startswith(
        "2 episodes continue after an end flag, the first is episode 1 after step"
    )
    assert data.num_episodes == 3
    assert data.transitions["next", "done"].flatten().nonzero().flatten().tolist() == [
        *(2,), *(5, 7), *(8, 11),
    ]  # fmt: skip


def test_episodes_that_share_their_observations_are_no_duplicates() -> None:
    first, second = make_episode(5, 0), make_episode(5, 0)
    second["actions"][2, 0] = 0.5
    assert load(first, second).remarks == ()


def test_one_row_episodes() -> None:
    shuffled = [make_episode(1, seed) for seed in range(4)]
    (remark,) = load(*shuffled).data_warnings
    assert remark.startswith("all 4 episodes have one row")
    one_step_task = [make_episode(1, seed, terminated=True) for seed in range(4)]
    assert load(*one_step_task).remarks == ()
    assert len(load(*one_step_task)) == 4


def store(name: str, **kwargs: object) -> Path:
    with pytest.warns(UserWarning):  # Minari asks for an author and the like
        minari.create_dataset_from_buffers(
            name,
            buffer=[EpisodeBuffer(**make_episode(200, seed)) for seed in range(3)],
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
            **kwargs,
        )
    return bundled_path(name) / "data"


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_minari_file_cut_short_is_named(share: float) -> None:
    path = store("toy/cut-v0") / "main_data.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="toy/cut-v0: episode 0 cannot be read") as caught:
        OfflineDataset.load("toy/cut-v0")
    assert "copy it again" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("minari_root")
def test_a_minari_set_that_lacks_episodes_or_metadata() -> None:
    folder = store("toy/less-v0")
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"total_episodes": 4}))
    with pytest.raises(ValueError, match="episode 3 cannot be read"):
        OfflineDataset.load("toy/less-v0")
    (folder / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read: .*metadata.json is damaged"):
        OfflineDataset.load("toy/less-v0")


@pytest.mark.usefixtures("minari_root")
def test_arrow_storage() -> None:
    want = OfflineDataset.load(str(store("toy/same-v0")))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        # As if made elsewhere: the metadata say how the set is stored.
        folder = bundled_path("toy/same-v0") / "data"
        metadata = json.loads((folder / "metadata.json").read_text())
        for form in ("arrow", "parquet"):
            (folder / "metadata.json").write_text(json.dumps(metadata | {"data_format": form}))
            with pytest.raises(ValueError, match=r'not installed.*pip install "minari\[arrow\]"'):
                OfflineDataset.load("toy/same-v0")
        return
    for form in ("arrow", "parquet"):
        store(f"toy/{form}-v0", data_format=form)
        got = OfflineDataset.load(f"toy/{form}-v0")
        assert (got.transitions == want.transitions).all()


@pytest.mark.usefixtures("minari_root")
def test_a_set_whose_environment_is_not_installed() -> None:
    folder = store("toy/foreign-v0")
    metadata = json.loads((folder / "metadata.json").read_text())
    del metadata["observation_space"]  # then Minari makes the environment to ask for it
    spec = gymnasium.spec("Hopper-v5").to_json().replace("Hopper-v5", "Nowhere-v0")
    metadata["env_spec"] = spec.replace("gymnasium.envs.mujoco.hopper_v5", "nowhere_at_all")
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="foreign-v0 needs a package.*nowhere_at_all"):
        OfflineDataset.load("toy/foreign-v0")


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize("spaces", [True, False])
def test_no_class_that_a_file_names_is_imported(spaces: bool, tmp_path: Path) -> None:
    # a set that somebody else made: its environment is a function that makes a folder
    folder = store("toy/crafted-v0")
    metadata = json.loads((folder / "metadata.json").read_text())
    made = tmp_path / "made"
    spec = json.loads(gymnasium.spec("Hopper-v5").to_json())
    spec.update(entry_point="os:mkdir", kwargs={"path": str(made)})
    metadata["env_spec"] = json.dumps(spec)
    if not spaces:
        del metadata["observation_space"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    if spaces:
        data = OfflineDataset.load("toy/crafted-v0")
        assert data.environment is not None
        with pytest.raises((TypeError, ValueError)):  # Hopper has no such argument
            make_environment(data.environment)
    else:
        with pytest.raises(ValueError, match="names os:mkdir as the class of Hopper-v5"):
            OfflineDataset.load("toy/crafted-v0")
    assert not made.exists()


def test_wrappers_of_a_file_are_gymnasiums() -> None:
    spec = copy.deepcopy(gymnasium.spec("Hopper-v5"))
    own = WrapperSpec("TimeLimit", "gymnasium.wrappers.common:TimeLimit", {"max_episode_steps": 3})
    spec.additional_wrappers = (own,)
    env = make_environment(spec)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    env.close()
    spec.additional_wrappers = (WrapperSpec("Foreign", "os:mkdir", {}),)
    with pytest.raises(ValueError, match="wrapper os:mkdir"):
        make_environment(spec)


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder without a Minari set"):
        OfflineDataset.load(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_build_that_cannot_be_written_leaves_nothing(
    number: int, minari_root: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bundled/inverteddoublependulum/random-v0"
    real = minari.create_dataset_from_buffers

    def fails(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # the file is there, and then the last write fails
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(minari, "create_dataset_from_buffers", fails)
        with pytest.raises(OSError, match="MINARI_DATASETS_PATH") as caught:
            build_bundled(name, num_steps=50, policies_dir=policies_dir, progress=False)
    message = str(caught.value)
    assert os.strerror(number) in message and str(minari_root) in message
    assert not list(minari_root.rglob("*.hdf5")) and not list(minari_root.glob(".building-*"))
    build_bundled(name, num_steps=50, policies_dir=policies_dir, progress=False)
    assert len(OfflineDataset.load(name)) >= 50


def test_a_full_disk_is_told_before_anything_is_played(
    minari_root: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # HDF5 crashes on a full disk: there is no error to be caught while it writes.
    monkeypatch.setattr(bundled, "collect_episodes", lambda *args, **kwargs: pytest.fail("played"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be built in .*MINARI_DATASETS_PATH"):
            build_bundled(
                "bundled/inverteddoublependulum/random-v0",
                policies_dir=policies_dir,
                progress=False,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(minari_root.iterdir())


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize(("length", "count"), [(1, 60), (400, 4)])
def test_the_room_asked_for_is_enough(length: int, count: int) -> None:
    episodes = [make_episode(length, seed) for seed in range(count)]
    name = "toy/size-v0"
    with pytest.warns(UserWarning):  # Minari asks for an author and the like
        minari.create_dataset_from_buffers(
            name,
            buffer=[
                EpisodeBuffer(**e | {"observations": np.resize(e["observations"], (length + 1, 9))})
                for e in episodes
            ],
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float64),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        )
    written = sum(path.stat().st_size for path in bundled_path(name).rglob("*"))
    asked = bundled._stored_bytes("InvertedDoublePendulum-v5", length * count, count)
    assert written < asked - 1_000_000  # without what is always added


def test_a_root_that_cannot_be_made(
    tmp_path: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "minari"))
    with pytest.raises(OSError, match="root cannot be made.*MINARI_DATASETS_PATH"):
        OfflineDataset.load("bundled/inverteddoublependulum/random-v0")
    with pytest.raises(OSError, match="root cannot be made"):
        OfflineDataset.load("toy/set-v0")
    assert bundled.bundled_names()
