"""Bad settings and bad data: one line that names what to change, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from launcher import start as run_start
from launcher.command_line import check_command_line, compose_jobs, describe
from launcher.data_checks import check_data, check_task
from launcher.program import refusing_bad_input
from launcher.schema import SETTINGS, check_device
from launcher.settings import keys_of, leaf_keys, method_settings
from launcher.start import check_places, check_writable, prepare, read_config, resumed_config
from omegaconf import DictConfig, OmegaConf
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"


def dataset(
    env_id: str | None, *, observation_size: int = 9, action_size: int = 1, rows: int = 300
) -> OfflineDataset:
    episode = {
        "observations": np.random.default_rng(0).normal(size=(rows + 1, observation_size)),
        "actions": np.zeros((rows, action_size)),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminations": np.zeros(rows, dtype=bool),
        "truncations": np.zeros(rows, dtype=bool),
    }
    return OfflineDataset.from_episodes(
        [episode], action_spec=Bounded(-1, 1, shape=(action_size,)), name="mine", env_id=env_id
    )


class Endless(gymnasium.Env):
    """It goes on and on."""

    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1), 0.0, False, False, {}


BAD_SETTINGS = [
    # misspelt
    ("sed=1", "rambo has no setting 'sed': did you mean 'seed'?"),
    ("real_fraction=0.5", "did you mean 'agent.real_fraction'?"),
    ("++epoch=3", "did you mean 'epochs'?"),
    ("agent={batch_siz: 3}", "did you mean 'agent.batch_size'?"),
    ("taks=hopper-medium-replay", "did you mean 'task'?"),
    ("task=hoper-medium-replay", "did you mean 'hopper-medium-replay'?"),
    ("schedule=quik", "did you mean 'quick'? (schedule is one of paper, quick, smoke, thorough)"),
    ("hydra/launcher=nowhere", "hydra/launcher=nowhere: there is no such hydra/launcher"),
    # not settings at all
    ("seed", "settings are given as key=value"),
    ("seed=[1", "cannot read 'seed=[1'"),
    ("--seed=1", "cannot read '--seed=1': settings are given as key=value, without dashes"),
    ("task=[hopper-medium-replay]", "task must be one name"),
    ("~seed", "seed cannot be left out: set it with seed=VALUE"),
    ("+seed=3", "Could not append to config. An item is already at 'seed'"),
    ("agent=3", "agent is a group of settings: set one of agent."),
    ("dataset=${nothing}", "nothing"),
    ("seed=0,1", "add -m to run each of them"),
    # of a wrong type
    ("seed=", "seed must be a valid integer, got an empty text"),
    ("epochs=2.5", "epochs must be a valid integer, got 2.5"),
    ("epochs=true", "epochs must be a valid integer, got true"),
    ("epochs=null", "epochs must be a valid integer, got null"),
    ("agent.gamma=false", "agent.gamma must be a valid number, got false"),
    ("compile=1", "compile must be true or false, got 1"),
    ("dataset=3", "dataset must be a valid string, got 3"),
    ("model.hidden_sizes=256", "model.hidden_sizes must be a valid list, got 256"),
    ("on_divergence=ignore", "on_divergence must be 'stop' or 'continue', got ignore"),
    # out of range
    ("agent.gamma=2", "agent.gamma must be less than or equal to 0.99999, got 2"),
    ("seed=-1", "seed must be greater than or equal to 0, got -1"),
    ("agent.critic_lr=0", "agent.critic_lr must be greater than 0, got 0"),
    ("adversarial_weight=nan", "adversarial_weight must be a finite number, got nan"),
    ("reward_scale=-1", "reward_scale must be 'auto' or be greater than 0, got -1"),
    ("model.hidden_sizes=[200,0]", "model.hidden_sizes[1] must be greater than or equal to 1"),
    ("model.hidden_sizes=[]", "model.hidden_sizes must have at least 1 item, got []"),
    ("dataset=''", "dataset must have at least 1 character, got an empty text"),
    ("model.num_elites=9", "model.num_elites (9) must not exceed model.num_members (7)"),
    # not there
    ("device=gpu", "device must be cpu, cuda or cuda:N, got gpu"),
]


@pytest.mark.parametrize(("override", "words"), BAD_SETTINGS)
def test_a_bad_setting_is_one_line_and_code_2(
    override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        check_command_line("rambo", argv=["schedule=smoke", override])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err
    assert err.endswith("\n") and err.count("\n") == 1


def test_good_settings_pass_and_leave_the_numbers_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["schedule=smoke", "seed=1", "agent.gamma=0", "reward_scale=2", "threads=null"]
    check_command_line("rambo", argv=words)
    assert capsys.readouterr() == ("", "")
    (cfg,) = compose_jobs("rambo", words)
    assert type(cfg.agent.gamma) is int and type(method_settings(cfg).reward_scale) is int


def test_a_sweep_is_checked_as_a_whole() -> None:
    jobs = compose_jobs("rambo", ["seed=0,1", "adversarial_weight=0,3e-4"], multirun=True)
    assert [(c.seed, c.adversarial_weight) for c in jobs] == [
        (0, 0), (0, 3e-4), (1, 0), (1, 3e-4),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="adversarial_weight must be"):
        compose_jobs("rambo", ["seed=0,1", "adversarial_weight=3e-4,-1"], multirun=True)
    with pytest.raises(ValueError, match="run_dir=mine is the same for 2 runs"):
        compose_jobs("rambo", ["seed=0,1", "run_dir=mine"], multirun=True)
    compose_jobs("rambo", ["seed=0,1", "run_dir=mine-${seed}"], multirun=True)


@pytest.mark.parametrize("schedule", ["smoke", "quick", "thorough", "paper"])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_has_the_settings_of_its_model_and_the_shipped_ones_pass(
    method: str, schedule: str
) -> None:
    words = [] if method == "finetune" else [f"schedule={schedule}"]  # it has the run's
    (cfg,) = compose_jobs(method, words)
    assert set(leaf_keys(method_settings(cfg))) == {"method", *keys_of(SETTINGS[method])}


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device=cuda, but no CUDA device is available"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ValueError, match="device=cuda:2, but there are only 2: cuda:0 to cuda:1"):
        check_device("cuda:2")


@pytest.mark.parametrize("key", ["agent.batch_size", "model.batch_size", "cloning.batch_size"])
def test_a_batch_larger_than_the_data(key: str) -> None:
    (cfg,) = compose_jobs("rambo", ["schedule=smoke", f"{key}=301", "termination=none"])
    with pytest.raises(ValueError, match=f"{key}=301 is too large: mine has 300 transitions"):
        check_data(cfg, dataset("InvertedDoublePendulum-v5"))
    OmegaConf.update(cfg, key, 300)
    check_data(cfg, dataset("InvertedDoublePendulum-v5"))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6, 1e20])
def test_rewards_of_another_size_that_are_taken_as_they_are(
    size: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (cfg,) = compose_jobs("rambo", ["schedule=paper", "termination=none"])
    data = dataset("InvertedDoublePendulum-v5")
    data.transitions["next", "reward"] *= size / data.transitions["next", "reward"].abs().max()
    if size > 1e15:
        with pytest.raises(ValueError, match="cannot square: use reward_scale=auto"):
            check_data(cfg, data)
    else:
        check_data(cfg, data)
        assert ("reward_scale=auto" in capsys.readouterr().err) == (size != 1)
    OmegaConf.update(cfg, "reward_scale", "auto")
    check_data(cfg, data)
    assert "reward_scale" not in capsys.readouterr().err


class TestBeforeTheData:
    """What needs no data is refused before any are built, downloaded or read."""

    UNBUILT = "dataset=bundled/inverteddoublependulum/random-v0"

    @pytest.fixture
    def prepared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., str]:
        """Prepares a run as the recipe does, with data that must not be asked for."""
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(OfflineDataset, "load", lambda *_, **__: pytest.fail("asked for"))
        monkeypatch.setitem(gymnasium.registry, "Endless-v0", EnvSpec("Endless-v0", Endless))

        def prepare_run(*words: str) -> str:
            (cfg,) = compose_jobs("rambo", ["schedule=smoke", *words])
            (task,) = [w for w in words if w.startswith("task=")] or ["task=hopper-medium-replay"]
            hydra = SimpleNamespace(
                overrides=SimpleNamespace(task=list(words)),
                runtime=SimpleNamespace(choices={"task": task.removeprefix("task=")}),
            )
            monkeypatch.setattr(run_start.HydraConfig, "get", lambda: hydra)
            with pytest.raises(SystemExit) as end, refusing_bad_input():
                prepare(cfg)
            assert end.value.code == 2
            # no set, no half of one and no run folder
            assert [p for p in tmp_path.rglob("*") if p != tmp_path / "minari"] == []
            out, err = capsys.readouterr()
            assert out == "" and err.startswith("error: ") and err.count("\n") == 1
            return err

        return prepare_run

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("termination=no_such_module:rule", "termination=no_such_module:rule cannot be"),
            ("termination=sometimes", "must be auto, none, learned or MODULE:FUNCTION"),
            ("env_id=NoSuch-v0", "environment NoSuch-v0 is not installed"),
            ("env_id=no_such_module:Robot-v0", "no_such_module cannot be imported"),
            ("env_id=Endless-v0", "Endless-v0: it has no time limit"),
            ("agent.batch_size=200000", "agent.batch_size=200000 is too large: bundled/inverted"),
            ("task=walker2d-medium-replay", "does not fit task=walker2d-medium-replay"),
        ],
    )
    def test_a_set_that_would_be_built(
        self, word: str, message: str, prepared: Callable[..., str]
    ) -> None:
        assert message in prepared(self.UNBUILT, word)

    @pytest.mark.parametrize(
        "word", ["dataset=D4RL/antmaze/umaze-v1", "dataset=Ant_maze_u-maze_noisy_multistart.hdf5"]
    )
    def test_mazes_without_their_package(
        self, word: str, prepared: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)  # importing it fails
        for env_id in [key for key in gymnasium.registry if "Maze" in key]:
            monkeypatch.delitem(gymnasium.registry, env_id)
        assert 'pip install "rambo_trl[maze]"' in prepared(word)

    def test_good_settings_get_as_far_as_the_data(self, prepared: Callable[..., str]) -> None:
        with pytest.raises(pytest.fail.Exception, match="asked for"):
            prepared(self.UNBUILT, "termination=none", "agent.batch_size=50000")


class TestDataOfAnotherEnvironmentThanTheTask:
    def told(
        self,
        *words: str,
        chosen: bool,
        capsys: pytest.CaptureFixture[str],
        method: str = "rambo",
        schedule: str = "smoke",
        **data: Any,
    ) -> str:
        task = "hopper-medium-replay"
        given = [f"schedule={schedule}", *words, *([f"task={task}"] if chosen else [])]
        (cfg,) = map(method_settings, compose_jobs(method, given))
        check_task(cfg, dataset(**data), task, given, schedule=schedule)
        return capsys.readouterr().err

    def test_a_chosen_task_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = (
            "mine does not fit task=hopper-medium-replay: .* have 9 and 1 entries, those of "
            "Hopper-v5 11 and 3; choose the task of its environment, or leave task= out"
        )
        for env_id in ("InvertedDoublePendulum-v5", None):
            with pytest.raises(ValueError, match=words):
                self.told(chosen=True, capsys=capsys, env_id=env_id)

    def test_the_default_one_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        told = self.told(chosen=False, capsys=capsys, env_id="InvertedDoublePendulum-v5")
        assert told == (
            "note: mine is from InvertedDoublePendulum-v5; these settings still come from "
            "task=hopper-medium-replay: adversarial_weight=0.0003, rollout_length=2, "
            "clone_behaviour=true, rollout_policy=current\n"
        )
        told = self.told(chosen=False, capsys=capsys, env_id=None)
        assert told.startswith(
            "note: mine names no environment; these settings still come from task=h"
        )

    def test_only_what_nothing_else_has_set_is_told(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data: dict[str, Any] = {"env_id": "InvertedDoublePendulum-v5", "capsys": capsys}
        given = ["rollout_length=2", "adversarial_weight=0"]
        told = self.told(*given, chosen=False, **data)
        assert told.endswith(": clone_behaviour=true, rollout_policy=current\n")
        given += ["clone_behaviour=true", "rollout_policy=current"]
        assert self.told(*given, chosen=False, **data) == ""
        # quick has a lambda of its own, and MOPO all but lambda, which it does not use
        assert "adversarial_weight" not in self.told(chosen=False, schedule="quick", **data)
        assert self.told(chosen=False, method="mopo", **data) == ""

    def test_of_the_same_sizes_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        other = {"observation_size": 11, "action_size": 3}
        assert "task=hopper" in self.told(chosen=True, capsys=capsys, env_id="Other-v1", **other)
        # and the task's own environment is not compared: its arguments may be others
        assert self.told(chosen=True, capsys=capsys, env_id="Hopper-v2") == ""
        with pytest.raises(ValueError, match="does not fit task="):  # which this is not
            self.told(chosen=True, capsys=capsys, env_id="MyLab/Hopper-v2")


@pytest.mark.parametrize(
    ("env_id", "size", "words"),
    [("NoSuchEnv-v0", 9, "NoSuchEnv-v0"), ("InvertedDoublePendulum-v5", 7, "does not fit")],
)
def test_data_that_no_environment_fits(env_id: str, size: int, words: str) -> None:
    (cfg,) = compose_jobs("rambo", ["schedule=smoke"])
    with pytest.raises((ValueError, KeyError), match=words):
        check_data(cfg, dataset(env_id, observation_size=size))


def test_a_run_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/run cannot be made: .*file is no folder"):
        check_writable(tmp_path / "file/run")
    check_writable(tmp_path / "a/b/c")
    monkeypatch.setattr(run_start.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"a/b/c cannot be made: .* is not writable"):
        check_writable(tmp_path / "a/b/c")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_system_errors_are_told_without_numbers() -> None:
    assert describe(OSError(errno.EACCES, os.strerror(errno.EACCES), "x")) == (
        "Permission denied: x"
    )
    assert describe(KeyError("no such rule")) == "no such rule"


class TestResumedSettings:
    saved = OmegaConf.create(
        OmegaConf.to_yaml(compose_jobs("rambo", ["schedule=smoke", "seed=3"])[0])
    )

    def resume(self, *overrides: str, saved: DictConfig = saved) -> DictConfig:
        (cfg,) = compose_jobs("rambo", [*overrides, "resume=there"])
        return resumed_config(cfg, saved, [*overrides, "resume=there"])

    def test_are_the_runs_own(self) -> None:
        assert self.resume() == self.saved
        # one that the run is older than has its default
        older = OmegaConf.masked_copy(self.saved, [k for k in self.saved if k != "pretrained"])
        assert self.resume(saved=older) == self.saved

    def test_may_be_repeated_and_operation_may_change(self) -> None:
        cfg = self.resume("schedule=smoke", "seed=3", "epochs=7", "evaluation.last=2")
        assert (cfg.seed, cfg.epochs, cfg.evaluation.last) == (3, 7, 2)
        assert cfg.agent.hidden_sizes == [32, 32]

    def test_name_the_places_that_have_moved(self) -> None:
        saved = OmegaConf.merge(self.saved, {"dataset": "a.hdf5", "fitted_model": "m"})
        cfg = self.resume("dataset=b.hdf5", "fitted_model=n", saved=saved)
        assert (cfg.dataset, cfg.fitted_model) == ("b.hdf5", "n")
        for other in ("task=walker2d-medium-replay", "fitted_model=null", "cloned_policy=p"):
            with pytest.raises(ValueError, match="a resumed run keeps its"):
                self.resume(other, saved=saved)

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("seed=4", "keeps its seed=3, got 4"),
            ("schedule=paper", "keeps its schedule_name=smoke, got paper"),
            ("agent={critic_lr: 0.1}", "keeps its agent.critic_lr="),
            ("model.hidden_sizes=[8]", r"keeps its model.hidden_sizes=\[32, 32\], got \[8\]"),
        ],
    )
    def test_what_was_learnt_from_stays(self, override: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            self.resume(override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"seed: !!python/object/apply:os.mkdir [ran]\n", "could not determine a constructor"),
        (b"seed: [1\n", "while parsing"),
        (b"seed: ${nothing}\n", "nothing"),
        (b"\xff\xfe\xfa", "config.yaml is not a readable configuration"),
        (b"- seed\n", "it holds no settings"),
        (b"", "it holds no settings"),
    ],
)
def test_a_broken_or_crafted_configuration_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.yaml is not a readable") as error:
        read_config(RunFolder.open(tmp_path))
    assert words in describe(error.value) and "\n" not in describe(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("key", ["fitted_model", "cloned_policy"])
def test_a_file_with_one_part_of_pretraining(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"pretrained=both.pt holds .* leave {key} out"):
        compose_jobs("rambo", ["pretrained=both.pt", f"{key}=one"])
    (cfg,) = compose_jobs("rambo", [f"{key}=nowhere", "pretrained=auto"])
    with pytest.raises(FileNotFoundError, match=f"^{key}=nowhere: there is no such file"):
        check_places(cfg, tmp_path / "run")


def test_only_hydra_s_own_messages_are_told_as_hydra_s(tmp_path: Path) -> None:
    (tmp_path / "logs.py").write_text(
        "import logging, hydra\n"
        f"@hydra.main(version_base='1.3', config_path={str(RECIPES / 'config')!r}, "
        "config_name='rambo')\n"
        "def main(cfg):\n"
        "    for name in ('hydra.a', 'hydra_plugins.b', 'other.c'):\n"
        "        logging.getLogger(name).warning('said by ' + name)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "logs.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    said = re.findall(r"\[HYDRA\] (.*)", done.stdout)
    assert said == ["said by hydra.a", "said by hydra_plugins.b"]
    assert done.stderr == "said by other.c\n" and "other" not in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, "rambo-trl RECIPE key=value"),
        ([], 2, "rambo-trl RECIPE key=value"),
        (["rambos"], 2, "no recipe is called 'rambos'; rambo-trl RECIPE"),
    ],
)
def test_the_installed_command(words: list[str], code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, str(RECIPES), *words], capture_output=True, text=True, timeout=60
    )
    said, silent = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert done.returncode == code and silent == ""
    assert said.startswith(told) and "select_run" in said and said.count("\n") == 1


def test_the_program_itself(
    tmp_path: Path, run_recipe: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The checks are in front of Hydra, and nothing of Hydra's is left in the folder."""
    with pytest.raises(SystemExit) as end:
        run_recipe(tmp_path, "rambo", "-m", "seed=0,1", "task=hoper")
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: task=hoper: there is no such task") and told.count("\n") == 1
    done = subprocess.run(  # where imports could say something too
        [sys.executable, str(RECIPES / "rambo.py"), "pretrained=nowhere.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: pretrained=nowhere.pt: there is no such file")
    assert list(tmp_path.iterdir()) == []
