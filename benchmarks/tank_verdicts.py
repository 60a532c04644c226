"""Judge runs on the heating tank's log: ``python benchmarks/tank_verdicts.py DATASET RUN... ``.

What ``recipes/offline_report.py`` measures, for many runs in one process: the behaviour's critics
are fitted once, and a run without a model of its own, or trained on another reward of the same log,
is judged by ``DATASET`` and by the model of ``--model``. Writes ``offline_values.json`` into every
run folder, from where ``recipes/heating_tank.py evaluate`` compares the verdicts with the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from launcher.inspection import load_saved
from launcher.offline import discount_of, offline_values

from rambo_trl.data import OfflineDataset
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation
from rambo_trl.reporting.offline_values import verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="the log, with the reward that counts")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--model", type=Path, required=True, help="run whose model is asked")
    parser.add_argument("--updates", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=128, help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = OfflineDataset.load(options.dataset)
    model, evaluation = load_saved(options.model), None
    fit = {"updates": options.updates, "hidden_sizes": (options.width, options.width)}
    for path in options.runs:
        run = load_saved(path)
        if not torch.allclose(run.data.observation_mean, data.observation_mean):
            raise ValueError(f"{path} was trained on other observations than {data.name}'s")
        evaluation = evaluation or OfflineEvaluation(data, gamma=discount_of(run.cfg), fit=fit)
        run = replace(run, data=data, model=run.model or model.model)
        values = offline_values(path, again=True, run=run, evaluation=evaluation)
        print(f"{path.name}: {verdict(values).sentence}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
