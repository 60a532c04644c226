"""A Minari set from a remote: Minari's own downloader, with a remote that is a folder."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import minari
import numpy as np
import pytest
from minari.namespace import create_namespace
from minari.storage import remotes
from minari.storage.remotes.cloud_storage import CloudStorage
from tensordict import TensorDict
from torchrl.data.datasets import MinariExperienceReplay

from rambo_trl.data import OfflineDataset, minari_source

NAME = "far/away/walk-v0"


class FolderRemote(CloudStorage):
    """Minari's interface to a remote, ``folder://PATH``; notes what it is asked for."""

    asked: list[str] = []
    fails: BaseException | None = None

    def __init__(self, name: str, token: str | None = None) -> None:
        self.root = Path(name)

    def list_datasets(self, prefix: str | None = None) -> Iterable[str]:
        self.asked.append(f"list {prefix}")
        for path in sorted(self.root.rglob("data/metadata.json")):
            name = path.parents[1].relative_to(self.root).as_posix()
            if name.startswith(prefix or ""):
                yield name

    def get_dataset_metadata(self, dataset_id: str) -> dict:
        return json.loads((self.root / dataset_id / "data/metadata.json").read_text())

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        self.asked.append(f"download {dataset_id}")
        # the description comes first, and alone where the connection breaks
        (path / dataset_id / "data").mkdir(parents=True)
        shutil.copy(self.root / dataset_id / "data/metadata.json", path / dataset_id / "data")
        if self.fails is not None:
            raise self.fails
        shutil.copytree(self.root / dataset_id, path / dataset_id, dirs_exist_ok=True)

    def list_namespaces(self) -> Iterable[str]:
        for path in self.root.rglob("namespace_metadata.json"):
            yield path.parent.relative_to(self.root).as_posix()

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        (path / namespace).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.root / namespace / "namespace_metadata.json", path / namespace)

    def upload_dataset(self, dataset_id: str) -> None:
        raise NotImplementedError

    def upload_namespace(self, namespace: str) -> None:
        raise NotImplementedError


def episode(version: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(version)
    return {
        "observations": rng.normal(size=(6, 3)),
        "actions": rng.uniform(-1, 1, size=(5, 2)).astype(np.float32),
        "rewards": rng.normal(size=5),
        "terminations": np.arange(5) == 4,
        "truncations": np.zeros(5, dtype=bool),
    }


@pytest.fixture
def root(tmp_path: Path, store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, and a remote with versions 0 and 1 of a set, and a 2 of a Minari to come."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "remote"))
    for namespace in ("far", "far/away"):
        create_namespace(namespace)
    for version in range(3):
        store(NAME.replace("v0", f"v{version}"), episode(version))
    path = tmp_path / "remote/far/away/walk-v2/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"minari_version": "99.0"}))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    monkeypatch.setenv("MINARI_REMOTE", f"folder://{tmp_path}/remote")
    monkeypatch.setitem(remotes._registry, "folder", lambda: FolderRemote)
    monkeypatch.setattr(FolderRemote, "asked", [])
    return tmp_path / "root"


def test_it_is_downloaded_once_and_loaded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = NAME.replace("v0", "v1")  # the newest that this Minari reads
    data = OfflineDataset.load(name)
    # once for an answer in time, once by Minari's downloader
    assert FolderRemote.asked == [*["list far/away/walk"] * 2, f"download {name}"]
    assert f"Downloading {name}" in capsys.readouterr().out  # Minari says what goes on
    assert (root / name / "data/main_data.hdf5").is_file()
    assert (root / "far/away/namespace_metadata.json").is_file()
    want = OfflineDataset.from_episodes([episode(1)], action_spec=data.action_spec)
    assert (data.transitions == want.transitions).all() and data.name == name

    again = OfflineDataset.load(name)  # it is local now
    assert (again.transitions == data.transitions).all() and len(FolderRemote.asked) == 3


def test_an_older_version_is_had_as_asked_for(root: Path) -> None:
    with pytest.warns(UserWarning, match="far/away/walk-v1"):  # Minari recommends the newer
        data = OfflineDataset.load(NAME)
    want = OfflineDataset.from_episodes([episode(0)], action_spec=data.action_spec)
    assert (data.transitions == want.transitions).all()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("v2", "is not compatible with .* latest compatible version .*: far/away/walk-v1"),
        ("v7", "doesn't exist in the remote .* far/away/walk-v1"),
    ],
)
def test_a_version_that_cannot_be_had(version: str, words: str, root: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        OfflineDataset.load(NAME.replace("v0", version))
    assert "\n" not in str(caught.value) and not (root / "far").exists()


@pytest.mark.parametrize("error", [ConnectionError("cut off"), KeyboardInterrupt()])
def test_half_a_download_is_not_left_to_be_found(
    error: BaseException, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAME.replace("v0", "v1")
    with monkeypatch.context() as patch:
        patch.setattr(FolderRemote, "fails", error)
        kind = ValueError if isinstance(error, Exception) else KeyboardInterrupt
        with pytest.raises(kind) as caught:
            OfflineDataset.load(name)
    if kind is ValueError:
        assert "downloading it failed (ConnectionError: cut off)" in str(caught.value)
    assert not (root / name).exists()
    assert len(OfflineDataset.load(name)) == 5  # the next try is a whole one


def test_of_two_downloads_at_once_the_first_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAME.replace("v0", "v1")
    download = FolderRemote.download_dataset

    def beside_another(self: FolderRemote, dataset_id: str, path: Path) -> None:
        download(self, dataset_id, path)
        shutil.copytree(self.root / dataset_id, root / dataset_id)
        (root / name / "of_the_other_job").touch()

    monkeypatch.setattr(FolderRemote, "download_dataset", beside_another)
    assert len(OfflineDataset.load(name)) == 5 and (root / name / "of_the_other_job").exists()
    assert sorted(path.name for path in root.iterdir()) == ["far"]  # nothing half is left


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_torchrls_own_reader_gives_no_data(
    data_format: str, tmp_path: Path, store: Callable[..., Path]
) -> None:
    # Why Minari's sets are not read through MinariExperienceReplay: all that it gives is zeros,
    # because the files that it makes for the data stay empty, and it knows no Arrow.
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    store("near/walk-v0", episode(0), episode(1), data_format=data_format)

    def theirs() -> TensorDict:
        settings = {"batch_size": 2, "root": tmp_path / "torchrl", "load_from_local_minari": True}
        return MinariExperienceReplay("near/walk-v0", download=False, **settings)[:]

    ours = OfflineDataset.load("near/walk-v0", normalize=False).transitions
    if data_format == "arrow":
        with pytest.raises(FileNotFoundError, match=r"main_data\.hdf5"):
            theirs()
        return
    rows = theirs()
    assert len(rows) == len(ours) == 10
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        assert (rows[key] == 0).all() and (ours[key] != 0).all()
    assert not rows["next", "done"].any()


def test_a_misspelt_local_name_is_refused_without_the_network(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINARI_REMOTE")
    monkeypatch.setattr(minari, "list_remote_datasets", lambda **_: pytest.fail("asked"))
    with pytest.raises(ValueError, match="Nearest known names: bundled/hopper/medium-v0"):
        OfflineDataset.load("bundle/hoper/medium-v0")
    # a file of the same folder too
    monkeypatch.chdir(root.parent)
    (root.parent / "my-logs-v1").mkdir()
    with pytest.raises(ValueError, match="is not asked.*Nearest known names: my-logs-v1"):
        OfflineDataset.load("my-log-v1")
    (root.parent / "log.hdf5").touch()
    with pytest.raises(ValueError, match=r"no data file lg.hdf5: did you mean log.hdf5\?"):
        OfflineDataset.load("lg.hdf5")


def test_a_remote_that_does_not_answer_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.delenv("MINARI_REMOTE")
    monkeypatch.setattr(minari, "list_remote_datasets", lambda **_: released.wait(60))
    monkeypatch.setattr(minari_source, "_SECONDS", 0.01)
    told: list[str] = []
    monkeypatch.setattr(minari_source.torchrl_logger, "warning", told.append)
    with pytest.raises(ValueError, match=r"no answer from the remote within 0.01 s"):
        OfflineDataset.load("zzz/qqq-v0")
    assert "zzz/qqq-v0 is not on this machine: asking" in told[-1]
    released.set()
    assert list(root.iterdir()) == []
