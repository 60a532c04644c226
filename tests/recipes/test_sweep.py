"""Jobs of a sweep: each ends for itself, and a killed one goes on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.errors import MissingConfigException
from launcher import sweep
from launcher.command_line import compose_jobs
from omegaconf import OmegaConf

RECIPE = Path(__file__).parents[2] / "recipes/rambo.py"
#: what a recipe does around its training, in a second
STANDIN = """
import json, os, pathlib, signal, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path((words.get("run_dir") or words["resume"]).strip("'"))
folder.mkdir(parents=True, exist_ok=True)
tries = folder / "tries"
with tries.open("a") as file:
    print(*sys.argv[1:], file=file)
(folder / "config.yaml").touch()
print("said by the job", flush=True)
found = {}
exec(words["do"])
results = {"score": 12.5, "return_mean": 3.0, "behaviour_score": 9.0, "diverged": False} | found
(folder / "results.json").write_text(json.dumps(results))
"""
FIRST = "if len(tries.read_text().splitlines()) == 1: "


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs a job of a sweep whose recipe is the stand-in."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(STANDIN)

    def run(do: str, *, retries: int = 1, launcher: str = "ray", run_dir=None, words=(), **more):
        hydra = SimpleNamespace(
            job=SimpleNamespace(num=3),
            runtime=SimpleNamespace(choices={"task": "hopper", "hydra/launcher": launcher}),
            sweep=SimpleNamespace(dir="swept"),
            overrides=SimpleNamespace(task=words or ["seed=7", f"do={do}"]),
        )
        monkeypatch.setattr(sweep.HydraConfig, "get", lambda: hydra)
        cfg = {"method": "rambo", "seed": 7, "threads": 2, "retries": retries, "run_dir": run_dir}
        cfg |= {"dataset": "log.hdf5", **more}
        return sweep.run_job(OmegaConf.create(cfg), str(recipe), str(tmp_path))

    run.folder = tmp_path / "swept/003-rambo-hopper-seed7"
    return run


def tries(job) -> list[str]:
    return (job.folder / "tries").read_text().splitlines()


def test_a_job_that_ends_well_gives_its_score(job):
    assert job("pass") == 12.5
    (only,) = tries(job)
    assert only.split()[0] == "seed=7" and only.endswith(f"run_dir={job.folder}")
    assert "said by the job" in job.folder.with_name(f"{job.folder.name}.log").read_text()


def test_a_job_on_data_of_one_s_own_is_named_after_them(job, tmp_path, monkeypatch):
    # files are looked for where the sweep was started, wherever a worker stands
    (tmp_path / "log.hdf5").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job("pass", words=["seed=7", "dataset=log.hdf5", "do=pass"])
    job("pass", words=["seed=7", "dataset=log.hdf5", "task=hopper", "do=pass"])
    assert {path.name for path in (tmp_path / "swept").iterdir() if path.is_dir()} == {
        "003-rambo-log-seed7",
        "003-rambo-hopper-seed7",
    }


def test_a_killed_job_is_resumed(job, capsys):
    assert job(FIRST + "os.kill(os.getpid(), signal.SIGKILL)") == 12.5
    first, second = tries(job)
    assert "run_dir=" in first and second.endswith(f"resume={job.folder}")
    assert "run_dir=" not in second
    assert "job 3 ended with signal SIGKILL, once more" in capsys.readouterr().out


def test_a_job_killed_before_its_folder_held_a_run_starts_anew(job):
    assert (
        job(FIRST + "(folder / 'config.yaml').unlink(), os.kill(os.getpid(), signal.SIGKILL)")
        == 12.5
    )
    assert ["run_dir=" in words for words in tries(job)] == [True, True]


@pytest.mark.parametrize(
    ("code", "retries", "begun"), [(1, 0, 1), (1, 2, 3), (sweep.BAD_INPUT, 5, 1)]
)
def test_a_job_that_fails_is_tried_again_and_reported(job, code, retries, begun):
    told = rf"job 3 \(seed=7 .*\) failed with exit code {code}: see "
    with pytest.raises(RuntimeError, match=told):
        job(f"sys.exit({code})", retries=retries)
    assert len(tries(job)) == begun


DIVERGED = (
    'found = {"score": 0.0, "return_mean": -3.0, "diverged": True, "behaviour_score": %s, '
    '"divergence": {"epoch": 4, "reason": "mean Q 1e+09 is beyond 20"}}'
)


@pytest.mark.parametrize(("behaviour_score", "value"), [("9.0", 0.0), ("None", -math.inf)])
def test_a_run_that_diverged_has_not_failed_and_is_told(job, capsys, behaviour_score, value):
    for words in ([], ["seed=7"]):  # also of a sweep that goes on
        assert job(DIVERGED % behaviour_score, words=words) == value
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == f"job 3 DIVERGED in epoch 4: mean Q 1e+09 is beyond 20; see {job.folder}"
    assert len(tries(job)) == 1


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        ("seed: 7\nthreads: 4\n", {"threads": 2}, None),  # how it is operated
        ("seed: 7\nrun_dir: x\n", {}, None),
        ("seed: 8\n", {}, "seed=8, not 7: give this sweep an"),
        ("seed: null\n", {}, "seed=None, not 7"),
        # older than the setting, it had what all had then
        ("seed: 7\n", {"model_matmul_dtype": "float32"}, None),
        ("seed: 7\n", {"model_matmul_dtype": "bfloat16"}, "model_matmul_dtype=float32, not bf"),
    ],
)
def test_a_finished_job_is_passed_over_but_not_taken_for_another(job, saved, given, message):
    job("pass")
    (job.folder / "config.yaml").write_text(saved)
    words = ["seed=7", *(f"{key}={value}" for key, value in given.items())]
    with (
        pytest.raises(RuntimeError, match=f"holds a run with {message}")
        if message
        else contextlib.nullcontext()
    ):
        assert job("pass", words=words, **given) == 12.5
    assert len(tries(job)) == 1


def test_one_at_a_time_writes_no_log_and_run_dir_is_obeyed(job, tmp_path):
    assert job("pass", launcher="basic", run_dir="mine") == 12.5
    assert (tmp_path / "mine/results.json").is_file()
    assert not list(tmp_path.rglob("*.log"))


#: a worker with a job that waits; told to end, the job leaves a note
WORKER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from launcher import sweep
sweep.SECONDS_TO_END = 1
command = [sys.executable, "-c", sys.argv[3], sys.argv[2]]
sweep._run(command, ".", pathlib.Path(sys.argv[2] + ".log"))
"""
WAITING_JOB = """
import os, pathlib, signal, sys, time
note = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (note.with_suffix(".told").touch(), sys.exit()))
note.write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux kernel's service")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_job_goes_with_its_worker_and_is_told_if_that_is_possible(name, tmp_path):
    note = tmp_path / "pid"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, RECIPE.parent, note, WAITING_JOB],
        # a shell's background jobs, and what they start, ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: note.is_file() and note.read_text(), 120)
        pid = int(note.read_text())
        worker.send_signal(signal.Signals[name])
        code = worker.wait(60)
        wait_for(lambda: state_of(pid) in (None, "Z"), 20)
    finally:
        worker.kill()
        worker.wait()
    assert code == (-9 if name == "SIGKILL" else 128 + signal.Signals[name])
    assert note.with_suffix(".told").exists() == (name != "SIGKILL")


def test_a_plugin_that_is_not_installed_is_told_with_its_extra(monkeypatch):
    def without(config_name, words):
        choice = words[-1].replace("optuna_offline", "optuna").replace("=", "/")
        raise MissingConfigException("Could not find it", choice, ["basic"])

    monkeypatch.setattr("launcher.command_line.compose", without)
    for word, extra in (
        ("hydra/launcher=joblib", "sweep"),
        ("hydra/launcher=ray", "ray"),
        ("hydra/launcher=submitit_slurm", "slurm"),
        ("hydra/sweeper=optuna_offline", "optuna"),
    ):
        with pytest.raises(ValueError, match=rf"pip install 'rambo_trl\[{extra}\]'$"):
            compose_jobs("rambo", ["seed=0,1", word], multirun=True)


def test_the_ends_of_an_interval_are_checked():
    words = ["hydra/sweeper=basic", "rollout_length=int(interval(2,5))"]
    jobs = compose_jobs("rambo", words, multirun=True)
    assert [cfg.rollout_length for cfg in jobs] == [2, 5]
    with pytest.raises(ValueError, match="adversarial_weight must be .*, got -1"):
        compose_jobs("rambo", [*words, "adversarial_weight=interval(-1,1e-3)"], multirun=True)


def state_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return None


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def process_of(folder: Path) -> int | None:
    """The process that trains into a folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(words) > 2 and words[1].endswith("rambo.py") and f"run_dir={folder}" in words:
            return int(path.parent.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("launcher", "victim"), [("ray", "run"), ("ray", "worker"), ("joblib", "run")]
)
def test_three_runs_on_two_workers_one_of_them_killed(launcher, victim, tiny_dataset, tmp_path):
    workers = {
        "ray": ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.num_cpus=1",
                "+hydra.launcher.ray.init.include_dashboard=false"],
        "joblib": ["hydra.launcher.n_jobs=2"],
    }  # fmt: skip
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    command = [
        sys.executable, str(RECIPE), "-m", "schedule=smoke", "epochs=4", "seed=0,1,2",
        "task=inverteddoublependulum-medium-replay", "dataset=test/idp/tiny-v0",
        "hydra.sweep.dir=swept", f"hydra/launcher={launcher}", *workers[launcher],
    ]  # fmt: skip
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},  # else Ray keeps a token at home
        )  # fmt: skip
    folder = tmp_path / "swept/001-rambo-inverteddoublependulum-medium-replay-seed1"
    try:
        metrics = folder / "metrics.csv"
        wait_for(
            lambda: (metrics.is_file() and process_of(folder)) or process.poll() is not None, 900
        )
        pid = process_of(folder)
        assert pid is not None, (tmp_path / "said").read_text()
        if victim == "worker":  # Ray starts another one, and the run ends with its worker
            pid = parent_of(pid)
            assert "ray::" in Path(f"/proc/{pid}/cmdline").read_text()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(900) == 0, (tmp_path / "said").read_text()
    finally:
        process.terminate()
        process.wait()
    results = sorted((tmp_path / "swept").glob("*/results.json"))
    assert [json.loads(path.read_text())["seed"] for path in results] == [0, 1, 2]
    assert all(json.loads(path.read_text())["epochs"] == 4 for path in results)
    # the killed run went on where it was, in the same folder
    assert "resuming after epoch" in folder.with_name(f"{folder.name}.log").read_text()
    epochs = [line.split(",")[0] for line in metrics.read_text().splitlines()]
    assert epochs == ["epoch", "1", "2", "3", "4"]

    report = RECIPE.with_name("report.py")
    done = subprocess.run(
        [sys.executable, report, "swept", "--out", "report"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stderr) == 0
    header, _, row = (line for line in done.stdout.splitlines() if line.startswith("|"))
    titles, cells = ([cell.strip() for cell in line.split("|")] for line in (header, row))
    assert cells[titles.index("seeds")] == "3"


@pytest.mark.slow
def test_a_failed_job_takes_no_other_with_it(tiny_dataset, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(RECIPE), "-m", "schedule=smoke", "epochs=1",
            "dataset=none/of/these-v0,test/idp/tiny-v0", "hydra.sweep.dir=swept",
            "task=inverteddoublependulum-medium-replay",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "job 0 (" in done.stderr and "failed with exit code 2" in done.stderr
    (result,) = (tmp_path / "swept").glob("*/results.json")
    assert result.parent.name.startswith("001-")
