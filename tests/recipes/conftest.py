"""What the recipes' tests share: a small data set, and run folders that are made up."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import minari
import pytest
from launcher.command_line import compose_jobs
from minari.data_collector import EpisodeBuffer
from omegaconf import DictConfig, OmegaConf

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.run import Inspection

ENV_ID = "InvertedDoublePendulum-v5"
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def tiny_dataset() -> None:
    """A small Minari set of random play, as a user's own would lie on disk."""
    env = gymnasium.make(ENV_ID)
    env.action_space.seed(0)
    episodes = []
    for i in range(60):
        observation, _ = env.reset(seed=i)
        episode = EpisodeBuffer(
            id=i,
            observations=[observation],
            actions=[],
            rewards=[],
            terminations=[],
            truncations=[],
        )
        ended = False
        while not ended:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            episode.observations.append(observation)
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            episode.terminations.append(terminated)
            episode.truncations.append(truncated)
            ended = terminated or truncated
        episodes.append(episode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author and a permalink
        minari.create_dataset_from_buffers("test/idp/tiny-v0", buffer=episodes, env=env)
    env.close()


@pytest.fixture(scope="session")
def run_recipe(run_command: Callable[[Path, Sequence[str]], None]) -> Callable[..., None]:
    """Runs a recipe in a folder, in this process."""

    def run(cwd: Path, name: str, *words: str) -> None:
        run_command(cwd, ["python", str(RECIPES / f"{name}.py"), *words])

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their figures, which take longer to draw than a small training."""
    for figure in ("run.plot_policy_path", "results.plot_learning_curve"):
        monkeypatch.setattr(f"rambo_trl.experiment.{figure}", lambda *_, **__: None)


@pytest.fixture
def brief_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the measures at their end: the policy's path in the model, the adversary's effect."""
    monkeypatch.setattr("rambo_trl.experiment.policy_path.MOST_STEPS", 10)
    monkeypatch.setattr("rambo_trl.reporting.adversary_verdict.UPDATES", 2)


@pytest.fixture
def brief_ending(undrawn: None, brief_measures: None) -> None:
    """Both."""


@pytest.fixture(scope="session")
def make_run() -> Callable[..., str]:
    """Makes a run folder up, for tests of what reads them."""
    return _make_run


def _make_run(
    path: Path,
    *,
    seed: int = 0,
    score: float | None = 50.0,
    mean_q: Sequence[float] | None = (100.0,) * 20,
    dataset: str = "bundled/hopper/medium-replay-v0",
    diverged: bool = False,
    ended: bool = True,
    settings: Mapping[str, Any] | None = None,
    **results: Any,
) -> str:
    """A run folder with an evaluation every fifth epoch.

    Args:
        path: the folder.
        seed: its seed.
        score: of every evaluation; None for data without reference scores.
        mean_q: by epoch; None for a method without critics.
        dataset: its data set.
        diverged: whether it diverged in its last epoch.
        ended: whether there is a results.json.
        settings: of config.yaml.
        **results: of results.json.
    """
    folder = RunFolder.create(path)
    settings = {"seed": seed, "run_dir": str(path), **(settings or {})}
    folder.write_config("".join(f"{key}: {value}\n" for key, value in settings.items()))
    epochs = 20 if mean_q is None else len(mean_q)
    for epoch in range(1, epochs + 1):
        row: dict[str, Any] = {"epoch": epoch, "loss_actor": 1.0}
        if mean_q is not None:
            row["mean_q"] = mean_q[epoch - 1]
        at = epoch % 5 == 0 and not (diverged and epoch == epochs)
        row["score"] = score if at else None
        row["return_mean"] = 30.0 * (score or 1.0) if at else None
        folder.append_metrics(row)
    if ended:
        folder.write_results(
            {
                "method": "RAMBO", "dataset": dataset, "schedule": "quick", "seed": seed,
                "epochs": epochs, "agent_updates": 1000 * epochs, "model_updates": 10 * epochs,
                "behaviour_score": 10.0, "behaviour_score_best": 98.0, "cloned_score": 9.0,
                "score": score, "return_mean": 30.0 * (score or 1.0), "diverged": diverged,
                "divergence": {"epoch": epochs, "reason": "mean Q is beyond"} if diverged else None,
                "seconds": {"agent": 60.0, "model": 30.0}, **results,
            }
        )  # fmt: skip
    return str(path)


def compose(name: str, *words: str, task: str = "") -> DictConfig:
    """A recipe's configuration, with the published values of a task where it has null."""
    (cfg,) = compose_jobs(name, words, check=lambda cfg: None)
    published = getattr(importlib.import_module(name), "published", lambda task: {})
    for key, value in published(task).items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
    return cfg


class Parts(Inspection):
    """What a recipe makes of its configuration, without a training.

    Attributes:
        label: the method's name in results.
        monitor: what says when a run has diverged.
        updates: gradient steps of an epoch.
        results: what ``results.json`` says of the method only.
        penalty: what it takes off a reward at most.
    """

    label: str
    monitor: DivergenceMonitor
    updates: int
    results: Mapping[str, Any]
    penalty: float

    def __init__(self, name: str, cfg: DictConfig, data: OfflineDataset) -> None:
        super().__init__()
        importlib.import_module(name).train(self, cfg, data)

    def track(self, *, label: str, **parts: Any) -> None:
        self.label = label
        super().track(label=label, **parts)

    def epochs(self, **given: Any) -> Any:
        self.monitor, self.updates = given["monitor"], given["updates"]
        return super().epochs()

    def finish(self, **given: Any) -> dict[str, Any]:
        self.results, self.penalty = given["results"], given.get("penalty", 0.0)
        return {}


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """Composes a recipe's configuration, unchecked."""
    return compose


@pytest.fixture(scope="session")
def parts_of() -> type[Parts]:
    """Makes a recipe's parts."""
    return Parts
