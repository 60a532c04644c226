"""NeoRL-2's data sets: where they are found, their download, and the validation rows."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data import OfflineDataset, neorl2_source
from rambo_trl.data.neorl2_source import NEORL2_TASKS, neorl2_names
from rambo_trl.experiment.pretrained import dataset_digest

STEPS = 10


def write(path: Path, *, episodes: int = 6, seed: int = 0, **changed: np.ndarray | None) -> Path:
    """A file of random episodes of DMSD's sizes."""
    rng = np.random.default_rng(seed)
    states = rng.normal(5.0, 2.0, size=(episodes, STEPS + 1, 6)).astype(np.float32)
    rows = episodes * STEPS
    columns = {
        "obs": states[:, :-1].reshape(rows, 6),
        "next_obs": states[:, 1:].reshape(rows, 6),
        "action": rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "reward": rng.normal(2.0, 1.0, size=rows).astype(np.float32),
        "done": np.zeros(rows, np.float32),
        "truncated": (np.arange(rows) % STEPS == STEPS - 1).astype(np.float32),
    } | changed
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{key: v for key, v in columns.items() if v is not None})
    return path


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's folders is looked into, and no server asked."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("NEORL2_DATASETS_PATH", raising=False)
    monkeypatch.setattr(neorl2_source, "OWN_FOLDER", str(tmp_path / "own"))
    monkeypatch.setattr(neorl2_source, "ADDRESS", (tmp_path / "none").as_uri())


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(torchrl_logger, "warning", lines.append)
    return lines


@pytest.mark.parametrize(
    "place",
    [
        "named/DMSD-train.npz",
        "named/DMSD-high-100000-train.npz",
        "named/DMSD/DMSD-high-100000-train.npz",
        "own/DMSD-train.npz",
        "work/neorl2/DMSD/DMSD-train.npz",
    ],
)
def test_is_found_in_all_folders_and_by_either_name(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEORL2_DATASETS_PATH", str(tmp_path / "named"))
    write(tmp_path / place)
    write(tmp_path / place.replace("100000-train", "20000-val").replace("train", "val"), seed=1)
    write((tmp_path / place).with_name("DMSD-best-train.npz"), episodes=1)  # no name of theirs
    data = OfflineDataset.load("neorl2/DMSD")
    assert data.name == "neorl2/DMSD" and data.num_episodes == 6
    assert data.env_id == "rambo_trl/DMSD-v0" and data.reference_scores == (30.60, 849.51)
    assert data.holdout is not None and len(data.holdout) == 60


def test_the_folders_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEORL2_DATASETS_PATH", str(tmp_path / "named"))
    for episodes, place in enumerate(("work/neorl2", "own", "named"), 1):
        write(tmp_path / place / "DMSD-train.npz", episodes=episodes)
        assert OfflineDataset.load("neorl2/DMSD").num_episodes == episodes


@pytest.mark.parametrize("named", ["{}/DMSD-train.npz", "{}"])
def test_a_path_works_too(named: str, tmp_path: Path, warned: list[str]) -> None:
    write(tmp_path / "there/DMSD-train.npz")
    data = OfflineDataset.load(named.format(tmp_path / "there"))
    assert data.env_id == "rambo_trl/DMSD-v0" and data.holdout is None
    text = " ".join(warned)
    assert "no file of validation rows" in text and "not the published file" in text


def test_a_set_of_an_unknown_task_has_neither_scores_nor_environment(tmp_path: Path) -> None:
    data = OfflineDataset.load(write(tmp_path / "Mine-train.npz"))
    assert data.env_id is None and data.reference_scores is None


def test_paths_that_are_none(tmp_path: Path) -> None:
    for name in ("DMSD-train.npz", "Simglucose-train.npz", "DMSD-val.npz", "other.npz"):
        write(tmp_path / name)
    for name, text in {
        "": "holds several sets",
        "DMSD-val.npz": "validation rows",
        "other.npz": "not named like a NeoRL-2 file",
        "absent-train.npz": "is not there",
    }.items():
        with pytest.raises(ValueError, match=text):
            OfflineDataset.load(tmp_path / name)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "DMSD-train.npz", next_obs=None)
    with pytest.raises(ValueError, match="lacks next_obs: a NeoRL-2 file has obs, action"):
        OfflineDataset.load(path)
    whole = write(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="DMSD-train.npz is damaged"):
        OfflineDataset.load(path)


@pytest.mark.parametrize(("name", "near"), [("neorl2/dmsd", "DMSD"), ("neorl2/Fuson", "Fusion")])
def test_a_wrong_name_is_told_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no NeoRL-2 data set '{name}'; nearest: neorl2/{near}$"):
        OfflineDataset.load(name)
    with pytest.raises(ValueError, match=", ".join(neorl2_names())):
        OfflineDataset.load("neorl2/xyz")


@pytest.mark.parametrize(("task", "used"), [("RocketRecovery", (100, 25)), ("Fusion", (20, 5))])
def test_tasks_of_few_data_have_their_first_episodes_only(
    task: str, used: tuple[int, int], tmp_path: Path
) -> None:
    write(tmp_path / f"{task}-train.npz", episodes=150)
    write(tmp_path / f"{task}-val.npz", episodes=40)
    data = OfflineDataset.load(tmp_path, env_id=None)
    assert data.num_episodes == used[0] and len(data) == used[0] * STEPS
    assert data.holdout is not None and len(data.holdout) == used[1] * STEPS


class TestHoldout:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        write(tmp_path / "DMSD-train.npz")
        write(tmp_path / "DMSD-val.npz", seed=1)
        return tmp_path

    def test_has_the_scale_of_the_training_rows(self, files: Path) -> None:
        data = OfflineDataset.load(files, reward_shift=1.0, reward_scale="auto")
        with np.load(files / "DMSD-val.npz") as raw:
            rows = {key: torch.from_numpy(raw[key]) for key in raw}
        assert data.holdout is not None
        for key, ours in (("obs", "observation"), ("next_obs", ("next", "observation"))):
            torch.testing.assert_close(data.denormalize(data.holdout[ours]), rows[key])
        torch.testing.assert_close(data.holdout["action"], rows["action"])
        reward = data.holdout["next", "reward"].squeeze(-1)
        torch.testing.assert_close(reward * data.reward_scale - 1, rows["reward"])
        alone = OfflineDataset.load(files / "DMSD-train.npz", reward_shift=1.0)
        torch.testing.assert_close(data.observation_mean, alone.observation_mean)
        assert len(data) == 60 and data.reward_scale > 1

    def test_lies_on_the_disk_too(self, files: Path, tmp_path: Path) -> None:
        data = OfflineDataset.load(files, reward_scale="auto")
        opened = data.memmap(tmp_path / "mapped")
        assert data.holdout is not None and opened.holdout is not None
        for key in ("observation", ("next", "reward"), ("next", "truncated")):
            torch.testing.assert_close(opened.holdout[key], data.holdout[key])
        raw = OfflineDataset.load(tmp_path / "mapped")
        assert raw.holdout is not None and raw.reward_scale == 1
        torch.testing.assert_close(
            raw.holdout["next", "reward"], data.holdout["next", "reward"] * data.reward_scale
        )

    def test_counts_in_the_digest(self, files: Path) -> None:
        digests = {dataset_digest(OfflineDataset.load(files))}
        write(files / "DMSD-val.npz", seed=2)
        digests.add(dataset_digest(OfflineDataset.load(files)))
        (files / "DMSD-val.npz").unlink()
        digests.add(dataset_digest(OfflineDataset.load(files)))
        assert len(digests) == 3

    def test_of_other_sizes_is_refused(self, files: Path) -> None:
        odd = np.zeros((60, 5), np.float32)
        write(files / "DMSD-val.npz", obs=odd, next_obs=odd)
        with pytest.raises(ValueError, match="5 and 2 entries, those of .* 6 and 2"):
            OfflineDataset.load(files)


class TestDownload:
    @pytest.fixture
    def server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder that is served as the published address, with DMSD's files in it."""
        root = tmp_path / "served"
        files = [
            write(root / "DMSD" / f"DMSD-{s}.npz", seed=i) for i, s in enumerate(("train", "val"))
        ]
        sums = [hashlib.md5(path.read_bytes()).hexdigest() for path in files]
        published = NEORL2_TASKS["DMSD"]._replace(train=sums[0], val=sums[1])
        monkeypatch.setitem(NEORL2_TASKS, "DMSD", published)

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
                if (root / "breaks").exists() and "train" in self.path:
                    outputfile.write(source.read(100))  # of the length that it said
                else:
                    super().copyfile(source, outputfile)

        served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            neorl2_source, "ADDRESS", f"http://127.0.0.1:{served.server_address[1]}"
        )
        yield root / "DMSD"
        served.shutdown()
        served.server_close()

    def test_goes_to_the_folder_that_is_named(
        self, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
    ) -> None:
        monkeypatch.setenv("NEORL2_DATASETS_PATH", str(tmp_path / "named"))
        data = OfflineDataset.load("neorl2/DMSD")
        assert data.num_episodes == 6 and data.holdout is not None and not warned
        names = sorted(path.name for path in (tmp_path / "named").iterdir())
        assert names == ["DMSD-train.npz", "DMSD-val.npz"]
        (server / "DMSD-train.npz").unlink()  # it is not asked again
        assert OfflineDataset.load("neorl2/DMSD").num_episodes == 6

    def test_by_default_to_neorl2_s_own_folder(self, server: Path, tmp_path: Path) -> None:
        OfflineDataset.load("neorl2/DMSD")
        assert (tmp_path / "own/DMSD-train.npz").is_file()

    @pytest.mark.parametrize("how", ["truncated", "breaks", "other", "missing"])
    def test_that_fails_leaves_nothing_and_says_where_to_put_it(
        self, how: str, server: Path, tmp_path: Path
    ) -> None:
        path = server / "DMSD-train.npz"
        if how == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        elif how == "breaks":
            (server.parent / "breaks").touch()
        elif how == "other":
            write(path, seed=5)
        else:
            path.unlink()
        with pytest.raises(ValueError) as caught:
            OfflineDataset.load("neorl2/DMSD")
        text = str(caught.value)
        if how != "breaks":  # told by either, depending on Python's version
            assert ("404" if how == "missing" else "gave a file with the MD5") in text
        assert f"put them into {tmp_path / 'own'}" in text and "NEORL2_DATASETS_PATH" in text
        assert NEORL2_TASKS["DMSD"].train in text and "\n" not in text
        assert [path.name for path in (tmp_path / "own").iterdir()] == ["DMSD-val.npz"]
        with pytest.raises(ValueError, match="downloading it failed"):  # half a set is none
            OfflineDataset.load("neorl2/DMSD")
