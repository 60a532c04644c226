"""A search for settings goes by the offline choice's figure, and by returns only if asked to."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import select_run
import yaml
from launcher.command_line import OFFLINE_SEARCHES, compose_jobs

from rambo_trl.reporting.selection import unsteadiness

RECIPES = Path(__file__).parents[2] / "recipes"
#: RAMBO's command line around a training of no time: the larger lambda, the steadier mean Q and
#: the lower the score. A rollout length of 4 fails.
STANDIN = """
import json, pathlib, sys
if "-m" in sys.argv:
    sys.path.insert(0, sys.argv.pop(1))
    import hydra
    from launcher.command_line import CONFIG_DIR, check_command_line
    from launcher.sweep import sweep_job
    check_command_line("rambo")
    main = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="rambo")
    sys.exit(main(sweep_job(sys.argv[0]))())
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words["run_dir"].strip("'"))
folder.mkdir(parents=True, exist_ok=True)
if words["rollout_length"] == "4":
    sys.exit(3)
weight = float(words["adversarial_weight"])
settings = {"adversarial_weight": weight, "rollout_length": int(words["rollout_length"])}
(folder / "config.yaml").write_text(json.dumps(settings))
(folder / "metrics.csv").write_text("epoch,mean_q\\n" + "".join(
    f"{epoch},{100 + (-1) ** epoch / weight}\\n" for epoch in range(1, 21)))
(folder / "results.json").write_text(json.dumps({
    "score": 1 / weight, "seed": 0, "dataset": "mine", "schedule": "quick", "epochs": 20,
    "diverged": False, "return_mean": None, "q_bound": 1e9}))
"""


def test_the_figure_is_the_choice_s(make_run: Callable[..., str], tmp_path: Path) -> None:
    q = [*np.linspace(0, 500, 30), *([500.0, 502.0] * 15)]
    steady = make_run(tmp_path / "a", mean_q=q, q_bound=600.0)
    assert unsteadiness(steady) == pytest.approx(1.0)
    assert unsteadiness(steady, wanted=1000) == pytest.approx(1.0)
    beyond = make_run(tmp_path / "b", mean_q=q, q_bound=501.0)
    assert unsteadiness(beyond) == math.inf
    diverged = make_run(tmp_path / "c", mean_q=q, q_bound=600.0, diverged=True, score=99.0)
    assert unsteadiness(diverged) == math.inf
    with pytest.raises(ValueError, match="has no mean Q to choose by"):
        unsteadiness(make_run(tmp_path / "d", mean_q=None))


def search(cwd: Path, sweeper: str, *words: str) -> subprocess.CompletedProcess[str]:
    (cwd / "standin.py").write_text(STANDIN)
    command = [
        sys.executable, "standin.py", str(RECIPES), "-m", f"hydra/sweeper={sweeper}",
        f"hydra.sweep.dir={sweeper}", *words,
    ]  # fmt: skip
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


SPACE = ("adversarial_weight=tag(log, interval(1e-4, 1e-2))", "rollout_length=choice(2,3,4)")


@pytest.mark.slow
@pytest.mark.parametrize(("sweeper", "best"), [("optuna_offline", max), ("optuna_online", min)])
def test_a_search_finds_what_it_looks_for(sweeper: str, best: Callable, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = search(tmp_path, sweeper, *SPACE, "hydra.sweeper.n_trials=7")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {
        path: yaml.safe_load((path.parent / "config.yaml").read_text())
        for path in sorted((tmp_path / sweeper).glob("*/results.json"))
    }
    weights = [settings["adversarial_weight"] for settings in tried.values()]
    # some trials failed, and the search went on without them
    assert 2 < len(set(weights)) == len(weights) < 7
    found = yaml.safe_load((tmp_path / sweeper / "optimization_results.yaml").read_text())
    assert found["best_params"]["adversarial_weight"] == pytest.approx(best(weights))
    assert found["best_value"] == pytest.approx(1 / best(weights))
    if sweeper == "optuna_offline":
        assert select_run.main(["--rule", "q", str(tmp_path / sweeper)]) == 0
        # the same search, gone on with for longer, draws the same trials and passes them over
        again = search(tmp_path, sweeper, *SPACE, "hydra.sweeper.n_trials=10")
        assert again.returncode == 0, again.stdout + again.stderr
        assert "holds a run with" not in again.stdout + again.stderr
        assert set(tried) < set((tmp_path / sweeper).glob("*/results.json"))
        for path, settings in tried.items():
            assert yaml.safe_load((path.parent / "config.yaml").read_text()) == settings


def test_a_search_by_the_mean_q_of_a_method_without_critics_is_refused() -> None:
    for sweeper in OFFLINE_SEARCHES:
        with pytest.raises(ValueError, match=f"bc has no mean Q that hydra/sweeper={sweeper}"):
            compose_jobs("bc", [f"hydra/sweeper={sweeper}"], multirun=True)
