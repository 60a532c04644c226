"""Files that cannot be read, and are not damaged: the cause is told, nothing is to be deleted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from safetensors import SafetensorError

from rambo_trl.data import OfflineDataset
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


@pytest.fixture
def stored(minari_root: Path) -> Path:
    """The folder of a whole set."""
    episode = EpisodeBuffer(
        observations=np.random.default_rng(0).normal(size=(4, 3)),
        actions=np.zeros((3, 1), np.float32),
        rewards=np.arange(3.0),
        terminations=np.zeros(3, bool),
        truncations=np.array([0, 0, 1], bool),
    )
    with pytest.warns(UserWarning):  # Minari asks for an author and the like
        minari.create_dataset_from_buffers(
            "me/mine-v0",
            buffer=[episode],
            observation_space=gymnasium.spaces.Box(-9, 9, (3,), np.float64),
            action_space=gymnasium.spaces.Box(-1, 1, (1,)),
            env="InvertedPendulum-v5",
        )
    return minari_root / "me/mine-v0/data"


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


def test_a_set_in_an_unknown_wrapper(stored: Path) -> None:
    metadata = json.loads((stored / "metadata.json").read_text())
    spec = json.loads(metadata["env_spec"])
    wrapper = {"name": "Own", "entry_point": "my_lab.wrappers:Own", "kwargs": {}}
    del metadata["observation_space"]
    metadata["env_spec"] = json.dumps(spec | {"additional_wrappers": [wrapper]})
    (stored / "metadata.json").write_text(json.dumps(metadata))
    message = refused("me/mine-v0")
    assert "the wrapper my_lab.wrappers:Own, which is not Gymnasium's" in message
    assert "damaged" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="who may read everything")
def test_a_set_that_may_not_be_read(stored: Path) -> None:
    for name in ("metadata.json", "main_data.hdf5"):
        (stored / name).chmod(0)
        assert "not readable for this user" in refused("me/mine-v0")
        (stored / name).chmod(0o600)
