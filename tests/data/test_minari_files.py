"""Sets and files that cannot be read: the cause is told, nothing is to be deleted."""

from __future__ import annotations

import copy
import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec
from safetensors import SafetensorError

from rambo_trl.data import OfflineDataset, make_environment
from rambo_trl.data.storage import why_unreadable

LOCKED = BlockingIOError(errno.EAGAIN, "Unable to open file (unable to lock file, errno = 11)")
HOLD = """
import h5py, sys
with h5py.File(sys.argv[1], "a"):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LOCKED, "is open in another program: close it there"),
        (
            OSError("... (file is already open for write (may use h5clear))"),
            "can be repaired with h5clear",
        ),
        (OSError(errno.ENOLCK, "(unable to lock file, errno = 37)"), "HDF5_USE_FILE_LOCKING=FALSE"),
        (PermissionError(errno.EACCES, "denied"), "not readable for this user: change its perm"),
        (OSError("Permission denied (os error 13)"), "not readable for this user"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read from where it lies"),
        (MemoryError(), "does not fit into memory (MemoryError)"),
        (ImportError("No module named 'pyarrow'"), "needs a package that is not installed"),
        (TypeError("unexpected keyword"), "cannot be read here (TypeError"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "is damaged or of another kind"),
        (OSError("truncated file: eof = 3"), "is damaged or of another kind"),
        (SafetensorError("invalid header"), "is damaged or of another kind"),
        (KeyError("dataset_id"), "is damaged or of another kind (KeyError: 'dataset_id'): copy it"),
    ],
)
def test_what_keeps_a_file_from_being_read(error: Exception, words: str) -> None:
    told = why_unreadable(error)
    assert words in told and ("copy it again" in told) == ("damaged" in words)


def test_no_message_advises_to_delete() -> None:
    root = Path(__file__).parents[2]
    for path in [*root.glob("rambo_trl/**/*.py"), *root.glob("recipes/*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            told = '"' in line and any(word in line.lower() for word in ("delete ", "remove the f"))
            assert not told, f"{path}: {line}"


EPISODE = {
    "observations": np.random.default_rng(0).normal(size=(4, 3)),
    "actions": np.zeros((3, 1), np.float32),
    "rewards": np.arange(3.0),
    "terminations": np.zeros(3, bool),
    "truncations": np.array([0, 0, 1], bool),
}


@pytest.fixture
def stored(store: Callable[..., Path]) -> Path:
    """The folder of a whole set."""
    return store("me/mine-v0", EPISODE, env="InvertedPendulum-v5")


@pytest.fixture
def held() -> Iterator[Callable[[Path], None]]:
    """Have another program open an HDF5 file for writing."""
    programs: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> None:
        command = [sys.executable, "-c", HOLD, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        programs.append(subprocess.Popen(command, **pipes))
        assert programs[-1].stdout is not None and programs[-1].stdout.readline() == "open\n"

    yield hold
    for program in programs:
        program.communicate()


def refused(name: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        OfflineDataset.load(name)
    message = str(caught.value)
    assert "delete" not in message and "\n" not in message
    return message


def rewrite(folder: Path, **fields: object) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_set_is_not_called_broken(stored: Path, held: Callable[[Path], None]) -> None:
    held(stored / "main_data.hdf5")
    message = refused("me/mine-v0")
    assert f"{stored} is open in another program" in message
    assert "damaged" not in message
    message = refused(stored / "main_data.hdf5")  # as a D4RL file
    assert "is open in another program" in message and "corrupt" not in message

    rewrite(stored, minari_version="~=0.9.0")
    assert "made by Minari ~=0.9.0, which the installed Minari" in refused("me/mine-v0")
    assert refused("me/mine-v0").endswith("pip install -U minari")


@pytest.mark.skipif(os.geteuid() == 0, reason="who may read everything")
def test_a_set_that_may_not_be_read(stored: Path) -> None:
    for name in ("metadata.json", "main_data.hdf5"):
        (stored / name).chmod(0)
        assert "not readable for this user" in refused("me/mine-v0")
        (stored / name).chmod(0o600)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_minari_file_cut_short_is_named(share: float, stored: Path) -> None:
    path = stored / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refused("me/mine-v0")
    assert "me/mine-v0: episode 0 cannot be read" in message and "copy it again" in message


def test_a_minari_set_that_lacks_episodes_or_files(stored: Path) -> None:
    rewrite(stored, total_episodes=4)
    assert "episode 1 cannot be read" in refused("me/mine-v0")
    (stored / "metadata.json").write_text("{")
    assert "metadata.json is damaged" in refused("me/mine-v0")
    (stored / "metadata.json").unlink()
    assert "no whole Minari set" in refused("me/mine-v0")
    assert "folder without a Minari set" in refused(stored)


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    assert "folder without a Minari set" in refused(tmp_path)


def test_arrow_storage(stored: Path, store: Callable[..., Path]) -> None:
    want = OfflineDataset.load("me/mine-v0")
    for form in ("arrow", "parquet"):
        if importlib.util.find_spec("pyarrow") is None:
            rewrite(stored, data_format=form)  # as if made elsewhere
            assert "not installed" in (message := refused("me/mine-v0"))
            assert 'pip install "minari[arrow]"' in message
        else:
            store(f"toy/{form}-v0", EPISODE, data_format=form)
            got = OfflineDataset.load(f"toy/{form}-v0")
            assert (got.transitions == want.transitions).all()


def without_spaces(folder: Path, **changes: object) -> None:
    """Take away the observation space: then Minari makes the environment to ask for it."""
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"]) | changes
    del metadata["observation_space"]
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))


def test_a_set_whose_environment_is_not_installed(stored: Path) -> None:
    without_spaces(stored, id="Nowhere-v0", entry_point="nowhere_at_all:Env")
    message = refused("me/mine-v0")
    assert "mine-v0 needs a package" in message and "nowhere_at_all" in message


def test_a_set_in_an_unknown_wrapper(stored: Path) -> None:
    wrapper = {"name": "Own", "entry_point": "my_lab.wrappers:Own", "kwargs": {}}
    without_spaces(stored, additional_wrappers=[wrapper])
    message = refused("me/mine-v0")
    assert "the wrapper my_lab.wrappers:Own, which is not Gymnasium's" in message
    assert "damaged" not in message


@pytest.mark.parametrize("spaces", [True, False])
def test_no_class_that_a_file_names_is_imported(spaces: bool, stored: Path, tmp_path: Path) -> None:
    # a set that somebody else made: its environment is a function that makes a folder
    made = tmp_path / "made"
    crafted = {"entry_point": "os:mkdir", "kwargs": {"path": str(made)}}
    if spaces:
        spec = json.loads(json.loads((stored / "metadata.json").read_text())["env_spec"])
        rewrite(stored, env_spec=json.dumps(spec | crafted))
        data = OfflineDataset.load("me/mine-v0")
        with pytest.raises(ValueError, match="cannot be made with the arguments"):
            make_environment(data.environment or "")
    else:
        without_spaces(stored, **crafted)
        assert "names os:mkdir as the class of InvertedPendulum-v5" in refused("me/mine-v0")
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
