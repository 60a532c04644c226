"""The other methods' recipes: whole runs, resumed ones, refusals, settings, and what they learn."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launcher.command_line import compose_jobs
from launcher.launch import make_run
from launcher.parts import make_buffers, make_data_batches
from launcher.start import resumed_config
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl import load_policy
from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import stateful
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.signals import Interruption
from rambo_trl.training.phases import AgentPhase

RECIPES = Path(__file__).parents[2] / "recipes"
#: recipe to its label, and a metric that shows the method's own part at work
MODEL_BASED = {
    "mopo": ("MOPO", "model_reward"),
    "mobile": ("MOBILE", "inconsistency"),
    "morel": ("MOReL (SAC)", "model_terminated"),
    "combo": ("COMBO", "loss_conservative"),
}
METHODS = {
    **MODEL_BASED,
    "cql": ("CQL", "loss_cql"),
    "iql": ("IQL", "loss_value"),
    "td3_bc": ("TD3+BC", "cloning_error"),
    "rebrac": ("ReBRAC", "cloning_error"),
    "bc": ("BC", "loss_bc"),
}
TINY = (
    "task=inverteddoublependulum-medium-replay", "schedule=smoke", "dataset=test/idp/tiny-v0",
)  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, run_recipe: Callable[..., None]) -> Callable[..., Path]:
    """Runs a recipe: its run folder, under ``tmp_path``."""

    def run(name: str, *words: str) -> Path:
        run_recipe(tmp_path, name, *words)
        return tmp_path / "run"

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("tiny_dataset", "brief_measures")
@pytest.mark.parametrize("name", METHODS)
def test_a_run_and_its_resumption(
    name: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    small = ["model.max_updates=20"] if name in MODEL_BASED else []
    if name == "rebrac":  # whose batches are larger than these data
        small = ["agent.batch_size=256"]
    folder = recipe(name, *TINY, *small, "agent_updates=5", "run_dir=run", "checkpoints_kept=2")
    label, metric = METHODS[name]
    results = json.loads((folder / "results.json").read_text())
    assert results["method"] == label and results["schedule"] == "smoke"
    assert results["diverged"] is False and results["epochs"] == 2
    assert results["agent_updates"] == 10 and "model_updates" not in results
    found = rows(folder)
    assert [row["epoch"] for row in found] == ["1", "2"]
    # this data has no reference scores, and cloning no discount factor
    empty = {"score", "score_std", *(["discounted_return_mean"] if name == "bc" else [])}
    assert all({key for key, x in row.items() if x == ""} == empty for row in found)
    numbers = [float(x) for row in found for key, x in row.items() if key not in empty]
    assert np.isfinite(numbers).all()
    assert metric in found[0] and found[0][metric] != found[1][metric]
    assert ("mean_q" in found[0]) is (name != "bc")
    assert results["return_mean"] == pytest.approx(float(found[-1]["return_mean"]))
    action = load_policy(folder / "policy.safetensors")(np.zeros((3, 9)))
    assert action.shape == (3, 1) and np.abs(action).max() <= 1
    assert (folder / "learning_curve.png").stat().st_size > 0
    assert (folder / "pretrained_model.safetensors").is_file() is (name in MODEL_BASED)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert cfg.method == name and ("model" in cfg) is (name in MODEL_BASED)

    # as a kill in the second epoch would have left it
    shutil.copytree(folder, tmp_path / "whole")
    shutil.copy(folder / "checkpoint/epoch-000001.pt", folder / "checkpoint/last.pt")
    (folder / "results.json").unlink()
    request.getfixturevalue("undrawn")
    recipe(name, "resume=run")
    for file in ("metrics.csv", "policy.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    again = json.loads((folder / "results.json").read_text())
    for key in ("seconds", "checkpoint_bytes"):  # a checkpoint holds the seconds
        del results[key], again[key]
    assert again == results
    out, err = capsys.readouterr()
    assert "resuming after epoch 1" in out + err


@pytest.mark.usefixtures("tiny_dataset", "undrawn")
def test_a_run_that_diverges_before_its_first_checkpoint_is_marked(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # model-free: no pretraining has left a checkpoint to go back to
    folder = recipe("td3_bc", *TINY, "agent.critic_lr=100000", "checkpoint_every=50", "run_dir=run")
    results = json.loads((folder / "results.json").read_text())
    assert results["diverged"] is True and results["score"] == 0
    assert results["divergence"]["epoch"] == results["epochs"] == 1
    assert "DIVERGED" in capsys.readouterr().out
    assert np.isfinite(load_policy(folder / "policy.safetensors")(np.zeros(9))).all()


@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("rambo", ["dataset=bundled/hoper/medium-replay-v0"], "bundled/hopper/medium-replay-v0"),
        ("rambo", ["rollout_length=0"], "rollout_length"),
        ("rambo", ["agent.batch_size=100000"], "agent.batch_size"),
        ("rambo", ["resume=nowhere"], "nowhere"),
        ("cql", ["rollout_length=3"], "cql has no setting 'rollout_length'"),
        ("iql", ["model.lr=1e-3"], "iql has no setting 'model.lr'"),
        ("iql", ["agent={alpha_lr: 1e-3}"], "iql has no setting 'agent.alpha_lr'"),
        ("bc", ["agent.gamma=0.9"], "bc has no setting 'agent.gamma'"),
        ("mopo", ["adversarial_weight=1e-3"], "mopo has no setting 'adversarial_weight'"),
        (
            "mopo",
            ["penalty_coefficient=-1"],
            "penalty_coefficient must be greater than or equal to 0",
        ),
        ("mopo", ["penalty=1"], "mopo has no setting 'penalty'"),
        ("mopo", ["method=combo"], "mopo has no setting 'method'"),
        ("combo", ["penalized_actions=all"], "penalized_actions must be 'rollout'"),
        ("morel", ["halting.penalty=-1"], "halting.penalty must be greater than or equal to 0"),
        ("td3_bc", ["agent.actor_every=0"], "agent.actor_every must be greater than or equal to 1"),
        ("iql", ["agent.expectile=0.4"], "agent.expectile must be greater than or equal to 0.5"),
        ("cql", ["schedule=fast"], "schedule=fast: there is no such schedule"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    name: str,
    words: list[str],
    message: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        recipe(name, *TINY, *words)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_touched(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 1\n")
    with pytest.raises(SystemExit) as end:
        recipe("bc", *TINY, "run_dir=run")
    assert end.value.code == 2 and "error: run folder run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_is_resumed_by_its_own_recipe() -> None:
    (saved,) = compose_jobs("morel", ["schedule=smoke"])
    (cfg,) = compose_jobs("rambo", ["resume=there"])
    with pytest.raises(ValueError, match=r"there is a run of method=morel, not rambo: .*morel\.py"):
        resumed_config(cfg, saved, ["resume=there"])


@pytest.mark.parametrize("schedule", ["smoke", "quick", "thorough", "paper"])
@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_rule_and_the_shipped_ones_pass(name: str, schedule: str) -> None:
    (cfg,) = compose_jobs(name, [f"schedule={schedule}"])
    (rambo,) = compose_jobs("rambo", [f"schedule={schedule}"])
    for key in ("epochs", "agent_updates", "evaluation", "agent.hidden_sizes"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(rambo, key)
    assert cfg.on_divergence == "stop", "unless told otherwise"
    # the method's own settings hold whatever the schedule
    assert cfg.agent.tau == 0.005 or name in ("morel", "bc")


#: data set to MOPO's (h, lambda), COMBO's (length, beta), MOBILE's (length, beta) and ReBRAC's
#: (beta_1, beta_2), as docs/methods.md has them
BY_TASK: dict[str, tuple[tuple[float, float], ...]] = {
    "halfcheetah-random": ((5, 0.5), (5, 0.5), (5, 0.5), (0.001, 0.1)),
    "halfcheetah-medium": ((1, 1), (5, 0.5), (5, 0.5), (0.001, 0.01)),
    "halfcheetah-medium-replay": ((5, 1), (5, 0.5), (5, 0.1), (0.01, 0.001)),
    "halfcheetah-medium-expert": ((5, 5), (5, 5), (5, 1), (0.01, 0.1)),
    "hopper-random": ((5, 1), (5, 0.5), (5, 5), (0.001, 0.01)),
    "hopper-medium": ((5, 5), (5, 5), (5, 1.5), (0.01, 0.01)),
    "hopper-medium-replay": ((5, 1), (5, 0.5), (5, 0.1), (0.05, 0.5)),
    "hopper-medium-expert": ((5, 1), (5, 5), (5, 1.5), (0.1, 0.01)),
    "walker2d-random": ((1, 1), (5, 0.5), (5, 2), (0.01, 0)),
    "walker2d-medium": ((5, 5), (1, 5), (5, 0.5), (0.05, 0.1)),
    "walker2d-medium-replay": ((1, 1), (1, 0.5), (1, 0.5), (0.05, 0.01)),
    "walker2d-medium-expert": ((1, 2), (1, 5), (1, 1.5), (0.01, 0.01)),
    "others": ((5, 1), (5, 0.5), (5, 0.5), (0.01, 0.01)),
}
OTHERS = ["inverteddoublependulum-medium-replay", "pointmaze-umaze-waypoint", ""]
COLUMNS = [(0, "mopo"), (1, "combo"), (2, "mobile"), (3, "rebrac")]


@pytest.mark.parametrize(("column", "name"), COLUMNS)
def test_published_settings_follow_the_task(column: int, name: str) -> None:
    published = importlib.import_module(name).published
    for row, settings in BY_TASK.items():
        for task in OTHERS if row == "others" else [row]:
            assert tuple(published(task).values())[:2] == settings[column], task
            assert published(f"d4rl-{task}") == published(task)


def test_what_else_mobile_and_rebrac_have_by_task() -> None:
    mobile, rebrac = (importlib.import_module(name).published for name in ("mobile", "rebrac"))
    tasks = [*BY_TASK, "antmaze-umaze"]
    shares = {task: mobile(task)["agent.real_fraction"] for task in tasks}
    assert shares.pop("halfcheetah-medium-expert") == 0.5 and set(shares.values()) == {0.05}
    kept = {task for task in tasks if mobile(task)["agent.fixed_alpha"]}
    assert kept == {"hopper-medium", "hopper-medium-replay"}
    assert mobile("hopper-medium")["agent.fixed_alpha"] == 0.2
    # AntMaze's rewards are a hundred times as large in its authors' code
    mazes = {
        "umaze": (0.003, 0.002), "umaze-diverse": (0.003, 0.001), "medium-play": (0.001, 0.0005),
        "medium-diverse": (0.001, 0), "large-play": (0.002, 0.001), "large-diverse": (0.002, 0.002),
    }  # fmt: skip
    for maze, (actor, critic) in mazes.items():
        found = list(rebrac(f"d4rl-antmaze-{maze}").values())
        assert found == pytest.approx([actor, critic / 100, 3e-4, 5e-5, 256, 0.999])
    assert list(rebrac("hopper-medium").values())[2:] == [1e-3, 1e-3, 1024, 0.99]


def test_the_page_on_methods_has_the_table_of_tasks() -> None:
    page = (RECIPES.parent / "docs/methods.md").read_text()
    (table,) = re.findall(r"\| data set \| MOPO: h, lambda .*\n\|[-|]*\n((?:\|.*\n)+)", page)
    found = {}
    for line in table.splitlines():
        row, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        pairs = [re.match(r"([\d.]+), ([\d.]+)( \(none published\))?$", cell) for cell in cells]
        found[row] = tuple((float(pair[1]), float(pair[2])) for pair in pairs if pair)
    assert found == BY_TASK


@pytest.mark.usefixtures("tiny_dataset", "brief_ending")
@pytest.mark.parametrize(("column", "name"), COLUMNS[:3])
def test_a_run_has_the_published_settings_of_its_task(
    column: int, name: str, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the little data at hand are not of the task's environment
    monkeypatch.setattr("launcher.start.check_task", lambda *args, **kwargs: None)
    words = ("schedule=smoke", "dataset=test/idp/tiny-v0", "epochs=1", "agent_updates=1")
    folder = recipe(name, *words, "task=d4rl-walker2d-medium", "run_dir=run", "rollout_starts=20")
    cfg = OmegaConf.load(folder / "config.yaml")
    key = "conservative_weight" if name == "combo" else "penalty_coefficient"
    weight = cfg[key]
    assert (cfg.rollout_length, weight) == BY_TASK["walker2d-medium"][column]
    results = json.loads((folder / "results.json").read_text())
    assert results["rollout_length"] == cfg.rollout_length
    assert results[key] == weight
    # rollouts end early at most
    made = float(rows(folder)[0]["model_transitions"])
    assert made == 20 if cfg.rollout_length == 1 else 20 < made <= 20 * cfg.rollout_length


@pytest.mark.parametrize("name", ["mopo", "combo", "mobile", "rebrac"])
def test_every_published_row_is_a_task(name: str) -> None:
    tasks = {path.stem for path in (RECIPES / "config/task").glob("*.yaml")}
    assert {f"d4rl-{row}" for row in importlib.import_module(name).PUBLISHED} <= tasks


# --- what they learn: one step, its reward 1 - (a - best(s))^2; the data's actions are noisy and
# 0.3 too low. Cloning takes the noise out; the other methods move towards the best action.

NOISE, SHIFT = 0.4, 0.3


def best(observation: torch.Tensor) -> torch.Tensor:
    return 0.4 * observation


def worth(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return 1 - (action - best(observation)).square()


def one_step_data(rows: int = 2000, high: float = 1.0) -> OfflineDataset:
    observation = 2 * torch.rand(rows, 1) - 1
    action = best(observation) - SHIFT + NOISE * torch.randn(rows, 1)
    action = action.clamp(-1, 1)
    return OfflineDataset(
        TensorDict(
            observation=observation,
            action=action,
            next=TensorDict(
                observation=torch.zeros(rows, 1),
                reward=worth(observation, action),
                terminated=torch.ones(rows, 1, dtype=torch.bool),
                batch_size=[rows],
            ),
            batch_size=[rows],
        ),
        action_spec=Bounded(-1, high, shape=(1,)),
        name="one-step",
    )


#: larger steps than published ones, because the runs are short; one step has no future
FAST = [
    "agent.gamma=0", "agent.critic_lr=3e-3", "schedule=smoke", "epochs=2", "agent.batch_size=128",
    "agent.actor_lr=3e-3", "agent_updates=100",
]  # fmt: skip
CRITICS = 2  # the first so many are for critics
MODEL_SETTINGS = [
    "termination=none", "rollout_length=1", "rollout_starts=2000", "clone_behaviour=true",
    "cloning.passes=5", "cloning.lr=3e-3", "model.max_passes=15", "model.lr=3e-3",
    "model.patience=5", "agent.alpha_init=0.01",
]  # fmt: skip
LEARNT: dict[str, tuple[list[str], float]] = {
    "mopo": ([*MODEL_SETTINGS, "penalty_coefficient=0.5"], 0.97),
    "mobile": (
        [
            *MODEL_SETTINGS,
            "penalty_coefficient=0.5",
            "agent.fixed_alpha=0",
            "agent_updates=200",
        ],
        0.96,
    ),
    "morel": (MODEL_SETTINGS, 0.97),
    "combo": ([*MODEL_SETTINGS, "conservative_weight=0.1"], 0.96),
    "cql": (
        [
            "agent.conservative_weight=0.1",
            "agent.alpha_init=0.01",
            "agent.num_actions=4",
        ],
        0.96,
    ),
    "iql": (
        [
            "agent.scale_rewards=false",
            "agent.value_lr=3e-3",
            "agent.temperature=10",
            "agent_updates=200",
        ],
        0.96,
    ),
    "td3_bc": ([], 0.96),
    "rebrac": ([], 0.96),
    "bc": (["agent_updates=250"], 0.81),
}


@pytest.fixture
def train(
    brief_ending: None, tmp_path: Path, composed: Callable[..., DictConfig]
) -> Callable[..., Any]:
    """Trains a method on some data: its results and the first row of its metrics."""

    def train(name: str, data: OfflineDataset, *words: str) -> tuple[dict[str, Any], Any]:
        folder = RunFolder.create(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        cfg = composed(name, *words)
        results = importlib.import_module(name).train(
            make_run(cfg, data, folder, Interruption()), cfg, data
        )
        return {**results, "folder": folder.path}, rows(folder.path)[0]

    return train


@pytest.mark.parametrize("name", METHODS)
def test_beats_the_datas_mean(name: str, train: Callable[..., Any]) -> None:
    data = one_step_data()
    words, threshold = LEARNT[name]
    fast = FAST[CRITICS:] if name == "bc" else FAST
    results, _ = train(name, data, *fast, *words)
    assert results["diverged"] is False
    policy = load_policy(results["folder"] / "policy.safetensors")
    observation = torch.linspace(-0.9, 0.9, 100).unsqueeze(-1)
    learnt = worth(observation, policy(observation)).mean().item()
    # 0.76 in the mean; what a noiseless clone is worth: 0.91
    assert data.transitions["next", "reward"].mean() < 0.8
    assert learnt > threshold
    if name == "bc":
        assert learnt < 0.92  # nothing tells it what is better


# --- published values, in the configuration and in the objects that train

PUBLISHED_VALUES: dict[str, dict[str, float | bool | str]] = {
    "mopo": {
        "agent.real_fraction": 0.05, "agent.critic_lr": 3e-4, "agent.actor_lr": 3e-4,
        "agent.alpha_lr": 3e-4, "clone_behaviour": False,
    },
    "mobile": {
        "agent.real_fraction": 0.05, "agent.critic_lr": 3e-4, "agent.actor_lr": 1e-4,
        "agent.alpha_lr": 1e-4, "clone_behaviour": False, "num_samples": 10,
        "agent.fixed_alpha": 0.2,
    },
    "combo": {
        "agent.real_fraction": 0.5, "agent.critic_lr": 3e-4, "agent.actor_lr": 1e-4,
        "agent.alpha_lr": 1e-4, "clone_behaviour": False, "penalized_actions": "logsumexp",
        "num_actions": 10,
    },
    "cql": {
        "agent.conservative_weight": 5, "agent.num_actions": 10, "agent.critic_lr": 3e-4,
        "agent.actor_lr": 1e-4, "agent.alpha_lr": 1e-4,
    },
    "iql": {
        "agent.expectile": 0.7, "agent.temperature": 3, "agent.scale_rewards": True,
        "agent.critic_lr": 3e-4, "agent.value_lr": 3e-4, "agent.actor_lr": 3e-4,
    },
    "td3_bc": {
        "agent.bc_alpha": 2.5, "agent.policy_noise": 0.2, "agent.noise_clip": 0.5,
        "agent.actor_every": 2, "agent.critic_lr": 3e-4, "agent.actor_lr": 3e-4,
    },
    "rebrac": {
        "agent.actor_penalty": 0.05, "agent.critic_penalty": 0.5, "agent.hidden_layers": 3,
        "agent.layer_norm": True, "agent.policy_noise": 0.2, "agent.noise_clip": 0.5,
        "agent.actor_every": 2, "agent.batch_size": 1024, "agent.critic_lr": 1e-3,
        "agent.actor_lr": 1e-3,
    },
    "bc": {"agent.actor_lr": 3e-4, "episode_share": 1.0},
}  # fmt: skip


#: where the authors have other values for AntMaze
IN_ANTMAZE: dict[str, dict[str, float]] = {
    "iql": {"agent.expectile": 0.9, "agent.temperature": 10},
    "mobile": {"agent.fixed_alpha": 0},  # the authors have no AntMaze
    "rebrac": {
        "agent.actor_penalty": 0.001, "agent.critic_penalty": 5e-6, "agent.batch_size": 256,
        "agent.gamma": 0.999, "agent.critic_lr": 5e-5, "agent.actor_lr": 3e-4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_VALUES)
def test_published_values_hold_in_every_schedule_and_task(
    name: str, composed: Callable[..., DictConfig]
) -> None:
    wanted = {"agent.batch_size": 256, **PUBLISHED_VALUES[name]}
    if name != "bc":  # which has no critics
        wanted = {"agent.gamma": 0.99, "agent.tau": 0.005, **wanted}
    schedules = [path.stem for path in (RECIPES / "config/schedule").glob("*.yaml")]
    assert len(schedules) >= 3
    tasks = {"hopper-medium-replay": {}, "d4rl-antmaze-medium-play": IN_ANTMAZE.get(name, {})}
    for task, others in tasks.items():
        for schedule in schedules:
            cfg = composed(name, f"schedule={schedule}", f"task={task}", task=task)
            found = {key: OmegaConf.select(cfg, key) for key in wanted}
            assert found == {**wanted, **others}


@pytest.fixture
def made(composed: Callable[..., DictConfig], parts_of: Callable[..., Any]) -> Callable[..., Any]:
    """A method's parts, and batches of the data, which are rows that are worth -1 to 1."""

    def made(name: str, *words: str, data: OfflineDataset | None = None) -> Any:
        data = data or one_step_data(rows=300)
        rule = ["termination=none"] if name in {"rambo", *MODEL_BASED} else []
        cfg = composed(name, "schedule=smoke", *rule, *words)
        parts = parts_of(name, cfg, data)
        parts.cfg, parts.batches = cfg, make_data_batches(cfg, data.transitions).batches
        return parts

    return made


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch, made: Callable[..., Any]) -> Callable[..., Any]:
    """A method's parts, and the rows that it trains on."""

    def trained_on(name: str, data: OfflineDataset, *words: str) -> Any:
        rows: list[Any] = []

        def noting(cfg: DictConfig, transitions: Any, **kwargs: Any) -> Any:
            rows.append(transitions)
            return make_data_batches(cfg, transitions, **kwargs)

        monkeypatch.setattr("launcher.parts.make_data_batches", noting)
        return made(name, *words, data=data), rows[0]

    return trained_on


IN_MODEL = {"world_model", "agent_loss", "agent_optimizer", "model_buffer", "collector"}


@pytest.mark.parametrize("name", ["rambo", *METHODS])
def test_checkpoints_have_the_names_of_earlier_versions(
    name: str, made: Callable[..., Any]
) -> None:
    parts = made(name).parts
    wanted = IN_MODEL if name in {"rambo", *MODEL_BASED} else {"loss", "phase"}
    more = {"rambo": {"model_optimizer"}, "mobile": {"agent_schedules"}}.get(name, set())
    assert stateful(parts).keys() == wanted | more
    if name in MODEL_BASED:  # where a rule is learnt, it is held too
        assert parts["termination"] is None


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Each parameter's, by its place in memory."""
    return {p.data_ptr(): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def rates_of(parameters: Iterable[torch.Tensor], rates: dict[int, float]) -> set[float]:
    return {rates[parameter.data_ptr()] for parameter in parameters}


def answer(params: Any, value: float) -> None:
    """Make networks give this value whatever they are asked."""
    for key, tensor in params.items(True, True):
        tensor.data.zero_()
        if key[-1] == "bias" and tensor.shape[-1] == 1:
            tensor.data.fill_(value)


def test_iqls_published_values_reach_its_loss(made: Callable[..., Any]) -> None:
    iql = made("iql")
    loss, phase = iql.parts["loss"], iql.parts["phase"]
    (step,) = phase.steps
    assert step.losses is loss
    assert (loss.expectile, loss.temperature) == (0.7, 3)
    rates = learning_rates(step.optimizer)
    for network in ("actor", "qvalue", "value"):
        assert rates_of(getattr(loss, f"{network}_network_params").parameters(), rates) == {3e-4}
    actor_factor, *others = step.lr_factor
    last = iql.cfg.epochs * iql.cfg.agent_updates
    factors = [actor_factor(n) for n in (0, last // 2, last)]
    assert factors == pytest.approx([1, 0.5, 0])
    assert [factor(last) for factor in others] == [1, 1]
    assert phase.target_update.eps == 1 - 0.005

    # the same in what is computed: Q = 0.2 throughout, and V below or above it
    batch = next(iter(iql.batches(1)))
    answer(loss.target_qvalue_network_params, 0.2)
    with torch.no_grad():
        log_prob = float(loss.actor_network.get_dist(batch).log_prob(batch["action"]).mean())
        for value, slope, weight in ((0.0, 0.7, np.exp(0.6)), (-9.8, 0.7, 100), (0.5, 0.3, None)):
            answer(loss.value_network_params, value)
            out = loss(batch.copy())
            assert float(out["loss_value"]) == pytest.approx(slope * (0.2 - value) ** 2, rel=1e-4)
            if weight is not None:
                assert float(out["loss_actor"]) == pytest.approx(-weight * log_prob, rel=1e-4)


def test_td3_bcs_published_values_reach_its_loss_and_pace(made: Callable[..., Any]) -> None:
    td3_bc = made("td3_bc")
    loss, phase = td3_bc.parts["loss"], td3_bc.parts["phase"]
    assert (loss.alpha, loss.policy_noise, loss.noise_clip) == (2.5, 0.2, 0.5)
    assert [step.every for step in phase.steps] == [1, 2] and phase.target_every == 2
    critics, actor = (learning_rates(step.optimizer) for step in phase.steps)
    assert rates_of(loss.qvalue_network_params.parameters(), critics) == {3e-4}
    assert rates_of(loss.actor_network_params.parameters(), actor) == {3e-4}
    assert phase.target_update.eps == 1 - 0.005

    # alpha is the weight of a critic's value that is divided by its mean magnitude
    answer(loss.qvalue_network_params, -1.7)
    metrics = phase.steps[1].losses(next(iter(td3_bc.batches(1)))).detach()
    assert float(metrics["loss_actor"] - metrics["cloning_error"]) == pytest.approx(2.5, rel=1e-4)

    # who has moved after each of four updates
    networks = {
        "critics": loss.qvalue_network_params,
        "actor": loss.actor_network_params,
        "target critics": loss.target_qvalue_network_params,
        "target actor": loss.target_actor_network_params,
    }
    moved = []
    for batch in td3_bc.batches(4):
        before = {name: params.data.clone() for name, params in networks.items()}
        phase.run([batch])
        moved.append({name for name in before if (networks[name].data != before[name]).any()})
    assert moved == [{"critics"}, set(networks), {"critics"}, set(networks)]


def test_rebracs_published_values_reach_its_loss_and_pace(made: Callable[..., Any]) -> None:
    data = one_step_data(rows=300)
    data.reward_scale = 4.0
    words = ["agent.actor_penalty=0.05", "agent.critic_penalty=0.5"]
    rebrac = made("rebrac", *words, data=data)
    loss, phase = rebrac.parts["loss"], rebrac.parts["phase"]
    assert (loss.policy_noise, loss.noise_clip) == (0.2, 0.5)
    # the critics' penalty is for rewards in the data's unit, the actor's for values of size 1
    assert (loss.actor_penalty, loss.critic_penalty) == (0.05, 0.5 / 4)
    assert [step.every for step in phase.steps] == [1, 2] and phase.target_every == 2
    critics, actor = (learning_rates(step.optimizer) for step in phase.steps)
    assert rates_of(loss.qvalue_network_params.parameters(), critics) == {1e-3}
    assert rates_of(loss.actor_network_params.parameters(), actor) == {1e-3}
    assert phase.target_update.eps == 1 - 0.005
    width = rebrac.cfg.agent.hidden_sizes[0]
    layers = [m for m in loss.qvalue_network.modules() if not list(m.children())]
    kinds = [type(m).__name__ for m in layers]
    assert kinds == ["Linear", "LayerNorm", "ReLU"] * 3 + ["Linear"]
    shapes = [tuple(p.shape[-2:]) for p in rebrac.policy.parameters() if p.ndim > 1]
    assert shapes == [(width, 1), (width, width), (width, width), (2, width)]
    plain = made("rebrac", *words, "agent.layer_norm=false").parts["loss"]
    assert not [m for m in plain.qvalue_network.modules() if isinstance(m, torch.nn.LayerNorm)]


def test_rebrac_trains_on_the_next_actions(trained_on: Callable[..., Any]) -> None:
    data = one_step_data(rows=300)
    data.transitions["next", "terminated"].fill_(False)
    data.transitions["next", "done"].fill_(False)
    _, transitions = trained_on("rebrac", data)
    action = data.transitions["action"]
    assert torch.equal(transitions["next", "action"], action[1:])  # nothing follows the last row
    assert torch.equal(transitions["action"], action[:-1])
    assert ("next", "action") not in data.transitions.keys(True), "the data set is untouched"


def test_cqls_published_values_reach_its_loss(made: Callable[..., Any]) -> None:
    cql = made("cql")
    loss, (step,) = cql.parts["loss"], cql.parts["phase"].steps
    assert (loss.min_q_weight, loss.num_random) == (5, 10)
    assert not loss.with_lagrange, "the weight is fixed"
    assert loss.deterministic_backup and not loss.max_q_backup, "no entropy in the target"
    rates = learning_rates(step.optimizer)
    assert rates_of(loss.qvalue_network_params.parameters(), rates) == {3e-4}
    assert rates_of([*loss.actor_network_params.parameters(), loss.log_alpha], rates) == {1e-4}
    assert cql.parts["phase"].target_update.eps == 1 - 0.005

    # the weight reaches its term, and no cloning stands in for the actor's
    terms, batch = {}, next(iter(cql.batches(1)))
    for weight in (1, 5):
        loss.min_q_weight = weight
        torch.manual_seed(1)
        terms[weight] = step.losses(batch.copy()).detach()
        assert "loss_actor_bc" not in terms[weight]
    assert float(terms[5]["loss_cql"]) == pytest.approx(5 * float(terms[1]["loss_cql"]), rel=1e-4)


def test_bc_is_maximum_likelihood_at_its_rate(made: Callable[..., Any]) -> None:
    bc = made("bc")
    loss, phase = bc.parts["loss"], bc.parts["phase"]
    (step,) = phase.steps
    assert step.losses is loss and phase.target_update is None
    rates = learning_rates(step.optimizer)
    assert rates_of(bc.policy.parameters(), rates) == {3e-4} == set(rates.values())
    batch = next(iter(bc.batches(1)))
    likelihood = bc.policy.get_dist(batch).log_prob(batch["action"]).mean()
    torch.testing.assert_close(loss(batch)["loss_bc"], -likelihood)


@pytest.mark.parametrize(
    ("name", "real", "critic", "others"),
    [("mopo", 13, 3e-4, 3e-4), ("mobile", 13, 3e-4, 1e-4), ("combo", 128, 3e-4, 1e-4)],
)
def test_the_model_based_methods_published_values_reach_the_agent(
    name: str, real: int, critic: float, others: float, made: Callable[..., Any]
) -> None:
    method = made(name)
    agent, collector = method.parts["agent"], method.parts["collector"]
    mixed = make_buffers(method.cfg, one_step_data(rows=300))[2]
    assert (mixed.num_real, mixed.batch_size) == (real, 256)
    loss, rates = agent.loss, learning_rates(agent.optimizer)
    assert agent.target_update.eps == 1 - 0.005
    assert rates_of(loss.qvalue_network_params.parameters(), rates) == {critic}
    assert rates_of([*loss.actor_network_params.parameters(), loss.log_alpha], rates) == {others}
    # of tasks that none is published for
    assert collector.horizon == 5
    if name == "mopo":
        assert collector.env.pessimism.coefficient == 1.0
    elif name == "mobile":
        assert (loss.penalty_coefficient, loss.num_samples, loss.num_real) == (0.5, 10, real)
        assert loss.deterministic_backup and loss.world_model is method.parts["world_model"]
        assert loss.log_alpha.requires_grad, "the temperature is learnt"
    else:
        assert (loss.conservative_weight, loss.num_real) == (0.5, real)
        assert (loss.penalized_actions, loss.num_actions) == ("logsumexp", 10)


def test_mopo_penalises_the_rollouts(made: Callable[..., Any]) -> None:
    """The same rollouts with and without: rewards differ by the coefficient times u(s, a).

    u(s, a) is of the data's own units, and of all members, elites or not.
    """
    data, found = one_step_data(rows=300), {}
    data.observation_std *= 7
    data.reward_scale = 4.0
    for coefficient in (0, 2):
        torch.manual_seed(1)
        words = ["rollout_starts=50", "rollout_length=1", f"penalty_coefficient={coefficient}"]
        mopo = made("mopo", *words, data=data)
        found[coefficient] = mopo.parts["collector"].collect()
    rollouts = found[0]
    assert torch.equal(rollouts["action"], found[2]["action"])
    _, log_var = mopo.parts["world_model"].predict(rollouts["observation"], rollouts["action"])
    stds = log_var.exp().sqrt()
    stds[..., :-1] *= data.observation_std
    stds[..., -1] *= data.reward_scale
    uncertainty = stds.square().sum(-1).sqrt().amax(0)
    difference = (rollouts["next", "reward"] - found[2]["next", "reward"]) * data.reward_scale
    torch.testing.assert_close(difference.squeeze(-1), 2 * uncertainty)
    # a mean Q that the penalty alone explains is no divergence
    largest = float(data.transitions["next", "reward"].abs().max()) * data.reward_scale
    assert mopo.monitor.max_abs_reward == pytest.approx(largest + mopo.penalty)
    assert mopo.penalty >= float(difference.max())


def test_mobile_keeps_a_fixed_temperature_in_the_rewards_unit(made: Callable[..., Any]) -> None:
    data = one_step_data(rows=300)
    data.reward_scale = 4.0
    loss = made("mobile", "agent.fixed_alpha=0.2", data=data).parts["agent"].loss
    assert not loss.log_alpha.requires_grad
    assert float(loss.log_alpha.exp()) == pytest.approx(0.2 / 4)


def test_only_mobiles_actor_slows_down(train: Callable[..., Any]) -> None:
    """At the end of the cosine the actor stands still, the critics go on."""
    words = [*FAST, *MODEL_SETTINGS, "model.max_passes=1", "cloning.passes=1", "agent_updates=3"]
    moved: dict[str, list[float]] = {"actor": [], "critics": []}

    def noting(agent: Any, *batches: Any) -> Any:
        before = {p: p.detach().clone() for p in agent.loss.parameters()}
        metrics = take(agent, *batches)
        for name, params in (
            ("actor", agent.loss.actor_network_params),
            ("critics", agent.loss.qvalue_network_params),
        ):
            gaps = [float((p.detach() - before[p]).abs().max()) for p in params.parameters()]
            moved[name].append(max(gaps))
        return metrics

    take = AgentPhase._step_and_follow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentPhase, "_step_and_follow", noting)
        train("mobile", one_step_data(rows=300), *words)
    assert len(moved["actor"]) == 6
    assert moved["actor"][-1] < 0.1 * moved["actor"][0]
    assert moved["critics"][-1] > 0.3 * moved["critics"][0]


@pytest.mark.parametrize(
    ("words", "shift", "bound"),
    [
        ([], 0, 0.0),
        ([], -2, None),
        (["clip_targets=false"], 0, None),
        (["clip_targets=true"], 0, 0),
    ],
)
def test_mobile_cuts_targets_off_where_rewards_are_positive(
    words: list[str], shift: float, bound: float | None, made: Callable[..., Any]
) -> None:
    data = one_step_data(rows=300)
    data.transitions["next", "reward"] += shift
    mobile = made("mobile", *words, data=data)
    assert mobile.parts["agent"].loss.min_target == bound
    assert mobile.results["clipped_targets"] is (bound is not None)


def test_mobile_refuses_to_cut_all_targets_off(made: Callable[..., Any]) -> None:
    data = one_step_data(rows=300)
    data.transitions["next", "reward"] -= 2
    with pytest.raises(ValueError, match="no reward of one-step is positive: .*=false"):
        made("mobile", "clip_targets=true", data=data)


def test_combos_weight_reaches_its_term(train: Callable[..., Any]) -> None:
    words = [*FAST, *MODEL_SETTINGS, "model.max_passes=1", "cloning.passes=1", "epochs=1"]
    words += ["agent_updates=2", "conservative_weight=3"]
    _, row = train("combo", one_step_data(rows=300), *words)
    penalized, data = float(row["penalized_qvalue"]), float(row["data_qvalue"])
    assert float(row["loss_conservative"]) == pytest.approx(3 * 2 * (penalized - data), rel=1e-3)


def test_iql_scales_rewards_by_the_returns(trained_on: Callable[..., Any]) -> None:
    data = one_step_data(rows=300)
    iql, transitions = trained_on("iql", data)
    reward, own = transitions["next", "reward"], data.transitions["next", "reward"]
    assert float(reward.max() - reward.min()) == pytest.approx(1000, rel=1e-4)
    assert own.max() <= 1, "the data set itself is untouched"
    # the bound on Q is of the rewards that it trains on, and in the data's unit, as what is shown
    unit = float(own.max() - own.min()) / 1000
    assert iql.monitor.max_abs_reward == pytest.approx(unit * float(reward.abs().max()))
    for returns, message in ((np.ones(300), "all episodes"), (np.ones(0), "no episode .* whole")):
        data.behaviour_returns = returns
        with pytest.raises(ValueError, match=message + r".*: set agent\.scale_rewards=false"):
            trained_on("iql", data)


def test_a_smaller_threshold_halts_morel_sooner_and_costs_the_penalty(
    made: Callable[..., Any],
) -> None:
    data, found = one_step_data(rows=300), {}
    worst = float(data.transitions["next", "reward"].min())
    for stds, penalty in (("0", 0), ("null", 2)):
        morel = made("morel", f"halting.num_stds={stds}", f"halting.penalty={penalty}", data=data)
        collector = morel.parts["collector"]
        found[stds] = float(collector.collect()["next", "terminated"].float().mean())
        assert morel.results["halting"]["reward"] == pytest.approx(worst - penalty)
        assert collector.env.pessimism.halt_reward == pytest.approx(worst - penalty)
    assert found["0"] > found["null"] + 0.2


@pytest.mark.parametrize(
    "name", ["mopo", "mobile", "morel", "combo", "cql", "iql", "td3_bc", "rebrac"]
)
def test_the_discount_factor_reaches_the_targets(name: str, made: Callable[..., Any]) -> None:
    # another one than TorchRL's default, which would hide a setting that goes nowhere
    method = made(name, "agent.gamma=0.9")
    loss = method.parts["agent"].loss if name in MODEL_BASED else method.parts["loss"]
    assert float(loss.value_estimator.gamma) == pytest.approx(0.9) == method.monitor.gamma


def test_combo_knows_which_rows_are_real(made: Callable[..., Any]) -> None:
    # at one half the real rows are as many as the imagined ones
    combo = made("combo", "agent.real_fraction=0.25")
    mixed = make_buffers(combo.cfg, one_step_data(rows=300))[2]
    assert combo.parts["agent"].loss.num_real == mixed.num_real == 64


@pytest.mark.parametrize("name", ["iql", "bc"])
def test_actions_at_the_bounds_are_cloned_from_within(
    name: str, trained_on: Callable[..., Any]
) -> None:
    data = one_step_data(rows=300)
    data.transitions["action"][0] = 1.0
    _, transitions = trained_on(name, data)
    assert transitions["action"].abs().max() < 1
    assert data.transitions["action"].max() == 1, "the data set itself is untouched"


def test_the_best_episodes_are_cloned(trained_on: Callable[..., Any], monkeypatch: Any) -> None:
    rows = torch.tensor([3, 4, 5, 90])
    asked: list[float] = []

    def noting(data: OfflineDataset, share: float) -> torch.Tensor:
        asked.append(share)
        return rows

    monkeypatch.setattr("bc.best_episode_rows", noting)
    data = one_step_data(rows=300)
    bc, transitions = trained_on("bc", data, "episode_share=0.1")
    assert bc.label == "10 % BC" and asked == [0.1]
    torch.testing.assert_close(transitions["observation"], data.transitions["observation"][rows])
    bc, transitions = trained_on("bc", data)
    assert bc.label == "BC" and asked == [0.1] and len(transitions) == 300
