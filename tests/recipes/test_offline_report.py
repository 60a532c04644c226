"""One command judges a finished run of any method by its log, and says so in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import offline_report
import pytest

from rambo_trl.reporting.offline_values import OfflineValues, verdict

MakeRun = Callable[..., str]


def test_bad_input_is_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    unknown = make_run(tmp_path / "b", settings={"method": "dreamer"})
    (tmp_path / "b" / "policy.safetensors").write_bytes(b"")
    for words, expected in (
        ([str(tmp_path / "none")], "does not exist"),
        ([str(tmp_path / "empty")], "holds no run: config.yaml is missing"),
        ([make_run(tmp_path / "a")], "the run has not ended"),
        ([unknown], "a run of method=dreamer, which is none of"),
        ([str(tmp_path / "a"), "--horizon", "0"], "--horizon must be at least 1, got 0"),
    ):
        assert offline_report.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and expected in line
    assert not list(tmp_path.rglob("offline_report"))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.parametrize("method", ["rambo", "td3_bc"])
def test_a_run_from_its_start_to_its_page(
    method: str,
    tmp_path: Path,
    run_recipe: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    settings = ("schedule=smoke", "env_id=none", "task=inverteddoublependulum-medium-replay",
                "dataset=test/idp/tiny-v0", "run_dir=run")  # fmt: skip
    run_recipe(tmp_path, method, *settings)
    words = [str(run), "--horizon", "5", "--updates", "20"]
    assert offline_report.main(words) == 0
    out = run / "offline_report"
    judged = verdict(OfflineValues.read(run))
    text = (out / "index.md").read_text(encoding="utf-8")
    assert text.splitlines()[2] == f"> **Verdict: {judged.sentence}.**"
    assert capsys.readouterr().out.splitlines()[-1] == f"verdict: {judged.sentence}"
    pictures = {"actions.png", "values.png"}
    report = json.loads((out / "report.json").read_text())
    if method == "rambo":
        pictures |= {"distance.png", "model_error.png", "calibration.png"}
        one_step = report["model"]["one_step"]
        # the very rows that the fit held out, a tenth of the data
        assert one_step["unseen"] and "that the fit held out" in one_step["where"]
        assert one_step["columns"][-1] == "reward" and report["support"]["horizon"] == 5
    else:
        assert report["model"] is None and "there is none to check" in text
    assert {path.name for path in out.iterdir()} == {"index.md", "report.json", *pictures}

    # again: what was measured is read, other files stay, and another place takes it too
    (out / "notes.txt").write_text("mine")
    values = (run / "offline_values.json").stat().st_mtime_ns
    assert offline_report.main([*words, "--out", str(tmp_path / "there")]) == 0
    assert offline_report.main(words[:-2]) == 0
    assert (run / "offline_values.json").stat().st_mtime_ns == values
    assert (out / "index.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "there" / "index.md").read_text(encoding="utf-8") == text
    assert (out / "notes.txt").read_text() == "mine"
