"""What lies between a command line and a training: the run's name, its device, its errors."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from launcher.command_line import compose_jobs
from launcher.launch import choose_gpu, launch
from launcher.parts import make_policy, start_observations
from launcher.start import choose_run_dir, resumed_config
from omegaconf import OmegaConf

from rambo_trl.data import OfflineDataset

WORDS = (
    "schedule=smoke", "task=inverteddoublependulum-medium-replay", "dataset=test/idp/tiny-v0",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.mark.parametrize("error", [ValueError("no such part"), OSError("no such file")])
@pytest.mark.parametrize("begun", [False, True])
def test_errors_before_a_run_has_begun_are_refused_and_later_ones_raised(
    begun: bool, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs: list[Any] = []
    precision = torch.get_float32_matmul_precision()

    def train(run: Any, cfg: Any, data: OfflineDataset) -> NoReturn:
        runs.append(run)
        assert torch.get_float32_matmul_precision() == "medium"
        if begun:
            policy = make_policy(cfg, data)
            run.track(label="failing", policy=policy, actor=policy)
        raise error

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    words = [*WORDS, "float32_matmul_precision=medium", f"run_dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["bc.py", *words])
    try:
        with pytest.raises(type(error) if begun else SystemExit) as end:
            launch("bc", train)
    finally:
        torch.set_float32_matmul_precision(precision)
    (run,), said = runs, capsys.readouterr().err
    assert run.begun is begun
    if begun:
        assert end.value is error and "error:" not in said
    else:
        assert end.value.code == 2 and said == f"error: {error}\n"
    # the configuration reaches the run
    assert run.options.epochs == run.options.evaluation_episodes == 2
    assert run.options.gamma is None and run.options.schedule_name == "smoke"
    assert run.options.settings["dataset"] == "test/idp/tiny-v0"


def test_a_full_disk_is_not_the_input_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: Any, *_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = [*WORDS, f"run_dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["bc.py", *words])
    with pytest.raises(SystemExit) as end:
        launch("bc", train)
    assert end.value.code == 1 and "once that is settled, resume with: " in capsys.readouterr().err


def test_a_run_may_be_resumed_with_another_precision() -> None:
    (saved,) = compose_jobs("rambo", ["float32_matmul_precision=medium"])
    words = ["resume=there", "float32_matmul_precision=high"]
    (cfg,) = compose_jobs("rambo", words)
    assert resumed_config(cfg, saved, words).float32_matmul_precision == "high"


def test_a_gpu_is_chosen_by_its_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_gpu("cpu")
    choose_gpu("cuda")  # which torch.cuda.set_device refuses
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:1"):
        choose_gpu(device)
    assert chosen == [torch.device("cuda:1")]


def test_a_run_of_one_s_own_data_is_not_named_after_the_default_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.hdf5").touch()

    def name(*words: str, method: str = "rambo") -> str:
        values = dict(word.split("=") for word in words)
        cfg = {"run_dir": None, "method": method, "schedule_name": "quick", "seed": 3} | values
        found = choose_run_dir(OmegaConf.create(cfg), "hopper-medium-replay", words)
        assert found.parent == Path("runs")
        return found.name.split("-quick-seed3-")[0]

    assert name() == name("task=x") == name("task=x", "dataset=mine/a-v0") == "hopper-medium-replay"
    assert name("dataset=mine/heater-v0", method="bc") == "bc-mine-heater-v0"
    assert name(f"dataset={tmp_path}/log.hdf5") == name("dataset=log.hdf5") == "log"
    assert name("dataset=../x y.h5") == "x-y.h5"


class Rows:
    """Data whose observations are the rows' numbers."""

    def __init__(self, done: torch.Tensor) -> None:
        self.transitions = {
            "observation": torch.arange(len(done)).unsqueeze(-1),
            ("next", "done"): done,
        }


def test_episodes_start_after_ends() -> None:
    def starts(done: torch.Tensor) -> torch.Tensor:
        return start_observations(Rows(done), "cpu").flatten()  # type: ignore[arg-type]

    done = torch.tensor([False, True, True, False, False, True]).unsqueeze(-1)
    assert starts(done).tolist() == [0, 2, 3]
    # episodes of two kinds in turn: neither is passed over
    many = starts(torch.ones(2000, 1, dtype=torch.bool))
    assert len(many.unique()) == 1000
    assert 0.4 < (many % 2).float().mean() < 0.6
