"""Words that are pasted back, places with odd letters, folders that nobody else has."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launcher.command_line import check_command_line, compose_jobs, setting
from launcher.program import EndingWell
from launcher.start import check_progress
from launcher.sweep import name_sweep

from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interrupted

ODD = (
    "a (b).hdf5", "é/日本", "a,b", "a=b", "a'b", 'a"b', "a\\", "a\\\\'b", 'a\\"b', "~x", "a$b",
    "$x",
    "a${b}", "[x]", "{x}", "123", "null", "true", " a ", "a#b;c|d&e>f*g?h!i^j`k", "x: y", "runs/a",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_suggested_setting_is_read_back_by_shell_and_hydra(text: str) -> None:
    words = shlex.split(f"python rambo.py schedule=smoke {setting('dataset', text)}")
    (cfg,) = compose_jobs("rambo", words[2:])
    assert cfg.dataset == text


def test_the_hint_of_a_signal_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "my recipes/rambo.py")])
    path = tmp_path / "runs (é), 1"
    with pytest.raises(SystemExit), EndingWell() as run:
        run.folder = RunFolder.create(path)
        raise Interrupted(signal.SIGTERM)
    hint = capsys.readouterr().err.partition("resume with: ")[2]
    python, script, word = shlex.split(hint)
    assert (python, script) == ("python", sys.argv[0])
    assert compose_jobs("rambo", [word])[0].resume == str(path)


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("dataset=a (b).hdf5", """'dataset="a (b).hdf5"'"""),
        ("dataset=a,b.hdf5", """'dataset="a,b.hdf5"'"""),
    ],
)
def test_a_place_that_hydra_cannot_read_is_told_with_its_quotes(
    word: str, suggested: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check_command_line("rambo", argv=["schedule=smoke", word])
    err = capsys.readouterr().err
    assert f"write {suggested}" in err and err.count("\n") == 1


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me é"))
    monkeypatch.setattr(sys, "argv", ["rambo.py", "schedule=smoke", "dataset=~/x.hdf5", "~x"])
    with pytest.raises(SystemExit):  # of the last word, which is no setting
        check_command_line("rambo")
    assert sys.argv[2] == f'dataset="{tmp_path}/me é/x.hdf5"' and sys.argv[3] == "~x"


def test_a_finished_run_is_said_to_be_and_fewer_epochs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_run: Any
) -> None:
    (cfg,) = compose_jobs("rambo", ["schedule=smoke", "epochs=20"])

    def check(path: Path, *words: str, **kwargs: Any) -> str:
        folder = RunFolder(path) if path.exists() else RunFolder.open(make_run(path, **kwargs))
        check_progress(cfg, folder, [f"resume={path}", *words])
        return capsys.readouterr().out

    with pytest.raises(SystemExit) as end:
        check(tmp_path / "a")
    assert not end.value.code
    assert "the run is finished: all its 20 epochs are done" in capsys.readouterr().out
    assert "the run is finished" in check(tmp_path / "a", "video=gif")  # which is then made
    assert check(tmp_path / "b", ended=False) == ""
    with pytest.raises(SystemExit):
        check(tmp_path / "c", diverged=True)
    assert "it diverged in epoch 20" in capsys.readouterr().out
    cfg.epochs = 30
    assert check(tmp_path / "a", "epochs=30") == ""
    cfg.epochs = 19
    with pytest.raises(ValueError, match="^epochs=19, but the run has done 20: give no fewer"):
        check(tmp_path / "b")


def test_sweeps_begun_in_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    for name in ("now", "now-2"):
        monkeypatch.setattr(sys, "argv", ["rambo.py", "-m", "seed=0,1"])
        name_sweep()
        assert sys.argv[-1] == f"hydra.sweep.dir=runs/sweeps/{name}"
        assert (tmp_path / "runs/sweeps" / name).is_dir()
    name_sweep()  # which has its folder
    assert len(sys.argv) == 4
