from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rambo_trl.experiment.folder import (
    RunFolder,
    new_folder,
    package_versions,
    remove_unfinished,
    write_atomically,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


class TestCreateAndOpen:
    @pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "results.json"])
    def test_refuses_a_folder_that_holds_a_run(self, tmp_path, name):
        (tmp_path / name).write_text("old")
        with pytest.raises(FileExistsError, match=f"already holds a run.*{name}") as error:
            RunFolder.create(tmp_path)
        assert "\n" not in str(error.value)
        assert (tmp_path / name).read_text() == "old"

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(FileExistsError, match="File exists"):
            RunFolder.create(tmp_path / "run")

    def test_opens_what_was_created_beside_other_files(self, tmp_path):
        path = tmp_path / "a/b"
        path.mkdir(parents=True)
        (path / "notes.txt").write_text("mine")
        RunFolder.create(path).write_config("seed: 1\n")
        assert RunFolder.open(path).checkpoint_dir == path / "checkpoint"
        names = {p.name: p.read_text() for p in path.iterdir()}
        assert names == {"notes.txt": "mine", "config.yaml": "seed: 1\n"}

    def test_open_says_what_is_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            RunFolder.open(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"holds no run: config\.yaml is missing"):
            RunFolder.open(tmp_path)


class TestLock:
    def test_a_second_process_is_refused(self, folder):
        folder.lock()
        folder.lock()
        with pytest.raises(BlockingIOError, match="in use by another process"):
            RunFolder(folder.path).lock()
        folder.unlock()
        RunFolder(folder.path).lock()

    def test_it_dies_with_its_process_and_what_was_written_stays(self, folder):
        code = (
            "import os, signal, sys\n"
            "from rambo_trl.experiment.folder import RunFolder\n"
            "folder = RunFolder(sys.argv[1])\n"
            "folder.lock()\n"
            "folder.append_metrics({'epoch': 1, 'score': 2.5})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False)
        folder.lock()
        assert folder.read_metrics() == [{"epoch": 1, "score": 2.5}]
        assert [path.name for path in folder.path.iterdir()] == ["metrics.csv"]


class TestMetrics:
    def test_reads_back_what_was_written(self, folder):
        rows = [
            {"epoch": np.int64(0), "score": 0.1 + 0.2, "mean_q": -1e-300},
            {"epoch": 1, "score": None, "mean_q": np.float64(12)},
            {"epoch": 2, "score": math.inf, "mean_q": math.nan},
        ]
        for row in rows:
            folder.append_metrics(row)
        *usual, odd = folder.read_metrics()
        assert usual == rows[:2]
        assert odd["score"] == math.inf and math.isnan(odd["mean_q"])
        assert isinstance(usual[1]["mean_q"], float) and isinstance(usual[1]["epoch"], int)

    def test_columns_stay_as_the_first_row_set_them(self, folder):
        folder.append_metrics({"epoch": 1, "score": 1.0, "mean_q": 2.0})
        folder.append_metrics({"mean_q": 4.0, "epoch": 2})
        assert (folder.path / "metrics.csv").read_text() == (
            "epoch,score,mean_q\n1,1.0,2.0\n2,,4.0\n"
        )

    def test_unknown_key_is_an_error_and_writes_nothing(self, folder):
        folder.append_metrics({"epoch": 1, "score": 1.0})
        with pytest.raises(ValueError, match="fieldnames: 'scroe'"):
            folder.append_metrics({"epoch": 2, "scroe": 1.0})
        assert len(folder.read_metrics()) == 1

    def test_truncated_and_written_again_equals_the_undisturbed_file(self, folder):
        for epoch in range(5):
            folder.append_metrics({"epoch": epoch, "score": epoch / 3 if epoch % 2 else None})
        whole = (folder.path / "metrics.csv").read_bytes()
        again = RunFolder(folder.path)
        again.truncate_metrics(2)
        assert [row["epoch"] for row in again.read_metrics()] == [0, 1, 2]
        for epoch in (3, 4):
            again.append_metrics({"epoch": epoch, "score": epoch / 3 if epoch % 2 else None})
        assert (folder.path / "metrics.csv").read_bytes() == whole

    def test_truncating_everything_frees_the_columns(self, folder):
        folder.truncate_metrics(0)
        folder.append_metrics({"epoch": 1, "score": 1.0})
        folder.truncate_metrics(0)
        assert folder.read_metrics() == []
        folder.append_metrics({"epoch": 1, "other": 1.0})
        assert folder.read_metrics() == [{"epoch": 1, "other": 1.0}]

    @pytest.mark.parametrize("lost", [1, 5, 8])
    def test_half_a_line_at_the_end_is_dropped(self, folder, lost):
        path = folder.path / "metrics.csv"
        for epoch in (1, 2):
            folder.append_metrics({"epoch": epoch, "score": 100.25})
        path.write_bytes(path.read_bytes()[:-lost])
        again = RunFolder(folder.path)
        assert [row["epoch"] for row in again.read_metrics()] == [1]
        again.truncate_metrics(9)
        again.append_metrics({"epoch": 7, "score": 1.0})
        assert [row["epoch"] for row in again.read_metrics()] == [1, 7]

    def test_half_a_header_is_dropped(self, folder):
        (folder.path / "metrics.csv").write_text("epoch,sco")
        assert folder.read_metrics() == []
        folder.truncate_metrics(0)
        folder.append_metrics({"epoch": 1, "score": 1.0})
        assert folder.read_metrics() == [{"epoch": 1, "score": 1.0}]


class TestResults:
    def test_round_trip_with_nulls_for_what_is_not_finite(self, folder):
        folder.write_results(
            {
                "score": np.float32(0.5),
                "return_std": math.nan,
                "seconds": {"rollout": math.inf, "total": 3},
                "returns": (1.0, -math.inf),
                "diverged": np.bool_(False),
                "note": None,
            }
        )
        assert folder.read_results() == {
            "score": 0.5,
            "return_std": None,
            "seconds": {"rollout": None, "total": 3},
            "returns": [1.0, None],
            "diverged": False,
            "note": None,
        }
        text = (folder.path / "results.json").read_text()
        assert '"diverged": false' in text
        json.loads(text, parse_constant=pytest.fail)  # strictly

    def test_what_has_no_json_form_is_refused(self, folder):
        with pytest.raises(TypeError, match="no JSON form of a Tensor"):
            folder.write_results({"seconds": {"total": torch.zeros(())}})
        assert not (folder.path / "results.json").exists()

    def test_those_that_cannot_be_read_are_named(self, folder):
        with pytest.raises(FileNotFoundError, match="has not ended"):
            folder.read_results()
        (folder.path / "results.json").write_text("{")
        with pytest.raises(ValueError, match=r"results.json is damaged or of another kind"):
            folder.read_results()


def test_writers_of_one_file_with_the_same_process_number_do_not_meet(tmp_path, monkeypatch):
    # such as the first process of each of two containers, which this one stands for twice
    path, replace = tmp_path / "file", os.replace

    def replace_after_the_other(*names):
        monkeypatch.undo()
        write_atomically(path, b"the other's")
        replace(*names)

    monkeypatch.setattr("os.replace", replace_after_the_other)
    write_atomically(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_atomically_names_the_file_that_does_not_fit(small_disk):
    write_atomically(small_disk / "file", b"old")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_atomically(small_disk / "file", bytes(300_000))
    assert error.value.filename == str(small_disk / "file")
    assert (small_disk / "file").read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["file"]


def test_what_was_never_finished_is_removed(tmp_path):
    for name in (".last.pt.12.tmp", "last.pt", ".hidden"):
        (tmp_path / name).write_text("")
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "last.pt"]


def test_package_versions():
    versions = package_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions.keys() > {"python", "torchrl", "tensordict", "gymnasium", "mujoco", "rambo_trl"}


def test_of_folders_asked_for_at_once_each_is_new(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs/a"), range(8)))
    names = sorted(path.name for path in made)
    assert names == ["a", *(f"a-{n}" for n in range(2, 9))]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
