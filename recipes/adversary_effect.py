"""What the adversary did to a run's model: ``python recipes/adversary_effect.py RUN``.

Compares the model as it was fitted (``pretrained_model.safetensors`` in the run folder) with the
one after adversarial training: on the data and away from it, one step and many. Adversarial
training is to leave the former alone and to lower the value of the latter (paper sec. 5), until
the policy's value in the model is a lower bound on its value in the environment (Proposition 1).
Writes ``adversary_effect.png`` and ``adversary_effect.json`` into the run folder, or where
``--out`` says. The last line says whether the adversary's effect stands out from the noise of the
fit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import launcher.starting  # noqa: F401
import numpy as np
from launcher.command_line import describe
from launcher.inspection import load_finished

from rambo_trl.experiment.folder import RunFolder, write_atomically
from rambo_trl.reporting.adversary_measures import measure
from rambo_trl.reporting.adversary_report import EFFECT_FILE, PLACES, draw
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy


def describe_effect(effect: Mapping[str, Any]) -> list[str]:
    """What was measured, in words."""
    error, policy = effect["model_error"], effect["policy_actions"]["value"]
    random, returns = effect["random_actions"]["value"], effect["returns"]
    last = {name: curve["mean"][-1] for name, curve in returns.items()}
    moved = {key: way["moved"] for key, way in effect["next_states"].items()}
    at_data = {key: way[0] for key, way in effect["next_states"]["policy_actions"].items()}
    lines = [
        f"error on {effect['rows']} rows of the data: {error['fitted']:.4g} before adversarial "
        f"training, {error['adversarial']:.4g} after",
        f"change of r + gamma V(s'): {policy[0]:+.4g} at the data's actions, {policy[-1]:+.4g} at "
        f"the policy's, {random[-1]:+.4g} at random ones (medians)",
        f"next states moved by {at_data['moved']:.3g} standard deviations of the data at the "
        f"data's actions, {moved['policy_actions'][-1]:.3g} at the policy's, "
        f"{moved['random_actions'][-1]:.3g} at random ones; from the data's own they lie "
        f"{at_data['fitted']:.3g} before adversarial training, {at_data['adversarial']:.3g} after "
        "(medians)",
        f"discounted return of {effect['horizon']} steps: "
        + ", ".join(f"{value:.4g} {PLACES[name]}" for name, value in last.items()),
    ]
    if effect["horizon"] < effect["horizon_asked"]:
        lines.append(
            f"longer rollouts are not compared: from step {effect['horizon'] + 1} on a model's "
            "mean reward is beyond twice the data's largest, so it cannot be believed"
        )
    if "real" in last:
        gap = last["adversarial"] - last["real"]
        error_bar = 2 * float(
            np.hypot(*(returns[name]["standard_error"][-1] for name in ("real", "adversarial")))
        )
        what = "a lower bound on" if gap < -error_bar else "above"
        if abs(gap) <= error_bar:
            what = "within two standard errors of"
        lines.append(f"the value in the adversarial model is {what} the environment's")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, tell; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=expand_home, metavar="RUN", help="run folder of RAMBO")
    parser.add_argument("--out", type=expand_home, help="where to write, by default the run folder")
    parser.add_argument(
        "--pretrained", type=expand_home, help="the model before adversarial training"
    )
    parser.add_argument("--horizon", type=int, default=100, help="steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    out: Path = options.out or options.run
    try:
        if options.horizon < 1:
            raise ValueError(f"--horizon must be at least 1, got {options.horizon}")
        run = load_finished(options.run, options.pretrained)
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    with busy("measuring the models before and after adversarial training"):
        gamma, weight = run.cfg.agent.gamma, run.adversary.adversarial_loss.adversarial_weight
        effect = {
            "seed": run.cfg.seed,
            "epoch": run.epoch,
            # as training left it, where a budget adapts it
            "adversarial_weight": float(f"{float(weight):.3g}"),
            **measure(run.adversary, run.fitted, run.data, gamma=gamma, horizon=options.horizon),
            "adversary": adversary_effect(run.adversary, run.data, gamma=gamma),
        }
    write_atomically(out / EFFECT_FILE, (json.dumps(effect, indent=2) + "\n").encode())
    rows = RunFolder(options.run).read_metrics()
    draw(effect, [r for r in rows if (r["epoch"] or 0) <= run.epoch], out / "adversary_effect.png")
    print("\n".join(describe_effect(effect)))
    print(f"figure: {out / 'adversary_effect.png'}")
    print(effect["adversary"]["line"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
