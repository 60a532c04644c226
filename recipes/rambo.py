"""RAMBO on an offline data set: the paper's Algorithm 1, top to bottom.

``python recipes/rambo.py`` trains on the default task in minutes; ``schedule=paper`` is the
published schedule. See ``config/rambo.yaml`` for the keys, and
https://arxiv.org/abs/2204.12581 for the algorithm. What it shares with other methods, the model's
fit and rollouts for one, is in ``model_based.py``; what surrounds an epoch in ``training_run.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import launcher.starting  # noqa: F401
import torch
from launcher.program import refusing_bad_input
from model_based import FITTED_MODEL, ModelBased
from reverse_rollouts import BothDirections, ReverseRollouts
from torch import Tensor
from torchrl.objectives import SACLoss
from training_run import Metrics, Run, launch

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data.rows import draw_rows
from rambo_trl.experiment.checkpoint import Stateful
from rambo_trl.experiment.divergence import DivergenceMonitor, model_error_bound
from rambo_trl.experiment.pretrained import load_fitted_model
from rambo_trl.objectives import (
    AdversarialModelLoss,
    EnsembleModelLoss,
    LikelihoodBudget,
    ModelTrustLoss,
)
from rambo_trl.reporting.adversary_verdict import adversary_effect
from rambo_trl.reporting.paper import rambo_label
from rambo_trl.training.phases import ModelPhase

#: rows of the data on which the model's error is followed
ERROR_ROWS = 1000


class Rambo(ModelBased):
    """The parts of Algorithm 1: those of any model-based method, and the adversary.

    Args:
        run: its configuration and data.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        cfg, dataset = run.cfg, run.dataset
        self.label = rambo_label(cfg.adversarial_weight, dataset.name)
        self.reverse = self.turn_round() if cfg.rollout_direction != "forward" else None
        adversarial = AdversarialModelLoss.from_loss(
            self.world_model,
            self.loss,
            adversarial_weight=cfg.adversarial_weight,
            gamma=cfg.agent.gamma,
            advantage_clip=cfg.advantage_clip,
        )
        self.likelihood = EnsembleModelLoss(self.world_model, members="elites")
        self.trust = (
            None
            if cfg.model_term == "likelihood"
            else ModelTrustLoss(self.world_model, divergence=cfg.model_term)
        )
        self.budget = (
            None
            if cfg.likelihood_budget is None
            else LikelihoodBudget(adversarial, cfg.likelihood_budget, lr=cfg.budget_lr)
        )
        self.adversary = ModelPhase(
            self.env,
            adversarial,
            self.likelihood if self.trust is None else self.trust,
            self.real,
            batch_size=cfg.model.batch_size,
            horizon=cfg.rollout_length,
            lr=cfg.model.adversarial_lr,
            compile=cfg.compile,
            after_update=None if self.budget is None else self.spend,
        )
        rows = draw_rows(len(dataset), ERROR_ROWS)
        self.error_rows = dataset.transitions[rows].to(cfg.device)
        # without an adversary the model stays as it was fitted
        self.model_updates = cfg.model_updates if cfg.adversarial_weight > 0 else 0

    def make_loss(self, *networks: Any, **settings: Any) -> SACLoss:
        """SAC, with as many critics as configured."""
        return super().make_loss(*networks, num_qvalue_nets=self.run.cfg.num_critics, **settings)

    def turn_round(self) -> ReverseRollouts:
        """Take the rollouts, or half of them, from a model of where the data came from."""
        forward, starts = self.collector, self.run.cfg.rollout_starts
        assert isinstance(forward, ModelRolloutCollector)
        if self.run.cfg.rollout_direction == "reverse":
            reverse = ReverseRollouts(self, starts)
            self.collector = reverse.collector
        else:
            reverse = ReverseRollouts(self, starts // 2)
            forward.num_starts -= starts // 2
            self.collector = BothDirections(forward, reverse.collector)
        return reverse

    def _pretrain(self) -> None:
        super()._pretrain()
        if self.reverse is not None:
            self.reverse.pretrain()

    def on_fitted(self) -> None:
        """Measure from the fitted model what the adversary may spend, and what it is held to."""
        if self.run.progress["epoch"]:
            return  # the checkpoint has all of it
        self.run.progress["fitted_error"] = self.model_error().tolist()
        if self.trust is not None:
            self.trust.anchor()
        elif self.budget is not None:
            with torch.no_grad():
                self.budget.budget += self.likelihood(self.error_rows)["loss_model"]

    def spend(self, metrics: Mapping[str, Tensor]) -> None:
        """One step of lambda towards the budget (Eq. 7)."""
        assert self.budget is not None
        self.budget.step(metrics["loss_model" if self.trust is None else "trust_distance"])

    @property
    def updates(self) -> int:
        """Gradient steps of an epoch, in the mean."""
        return super().updates + self.model_updates // self.run.cfg.model_updates_every

    def stateful_parts(self) -> dict[str, Stateful]:
        """Everything that decides the run's future, for checkpoints."""
        variants = {"model_trust": self.trust, "likelihood_budget": self.budget}
        return {
            **super().stateful_parts(),
            **({} if self.reverse is None else self.reverse.stateful_parts()),
            "model_optimizer": self.adversary.optimizer,
            **{name: part for name, part in variants.items() if part is not None},
        }

    def pretrained_parts(self) -> dict[str, Stateful]:
        """What pretraining changes, for runs that share it."""
        reverse = {} if self.reverse is None else self.reverse.stateful_parts()
        return {**super().pretrained_parts(), **reverse}

    def monitor(self) -> DivergenceMonitor:
        """Says when the critics leave what the rewards allow, or the model the data."""
        bound = model_error_bound(
            self.error_rows,
            self.fitted_error(),
            scale=self.world_model.output_scale,
            names=(*self.run.dataset.observation_names, "reward"),
        )
        return DivergenceMonitor(
            self.max_abs_reward(), self.run.cfg.agent.gamma, max_model_error=bound
        )

    def fitted_error(self) -> Tensor:
        """:meth:`model_error` before the game; an older run's is measured anew, or estimated."""
        progress = self.run.progress
        if "fitted_error" not in progress:
            file = self.run.folder.path / FITTED_MODEL
            fitted = copy.deepcopy(self.world_model)
            try:
                load_fitted_model(file, fitted, digest=progress["dataset_digest"])
                error = EnsembleModelLoss(fitted).entry_mse(self.error_rows).tolist()
            except (OSError, ValueError):
                entries = self.run.dataset.observation_size + 1
                error = [max(progress["holdout_mse"])] * entries
            progress["fitted_error"] = error
        return torch.tensor(progress["fitted_error"])

    def results(self) -> dict[str, Any]:
        """What ``results.json`` says of RAMBO only."""
        return {
            "adversarial_weight": self.run.cfg.adversarial_weight,
            "model_updates": -(-self.run.progress["epoch"] // self.run.cfg.model_updates_every)
            * self.model_updates,
            **super().results(),
            **{k: v for k, v in self.run.progress.items() if k == "reverse_holdout_mse"},
        }

    def sanity(self) -> dict[str, Any]:
        """With whether the adversary had an effect."""
        return {**super().sanity(), "adversary": adversary_effect(self)}

    def model_error(self) -> Tensor:
        """The elites' mean squared error on fixed rows of the data; no random number is drawn.

        Returns:
            [observation_size + 1], an entry each, the reward last.
        """
        return self.likelihood.entry_mse(self.error_rows).cpu()

    def update_model(self) -> Metrics:
        """Update the model against the agent and towards the data (Eq. 9)."""
        # the first epoch's row names the columns of metrics.csv: the first turn is there
        if not self.model_updates or self.run.progress["epoch"] % self.run.cfg.model_updates_every:
            return {}
        with self.run.watch("model"):
            model: Metrics = {**self.adversary.run(self.model_updates, self.run.bar)}
            model["error"] = self.model_error()
            if self.budget is not None:
                model["lambda"] = float(self.adversary.adversarial_loss.adversarial_weight)
        return {k if k.startswith("loss") else f"model_{k}": v for k, v in model.items()}


def train(run: Run) -> dict[str, Any]:
    """Algorithm 1, from the data set to an evaluated policy."""
    with refusing_bad_input():
        rambo = Rambo(run)
        run.begin(rambo)
    # line 1: the maximum-likelihood model and its elites; and the cloned actor
    rambo.pretrain()
    # line 2: for each iteration
    for row in run.epochs():
        with run.epoch(row):
            # line 3: k-step rollouts in the model from states of the data
            row.update(rambo.roll_out())
            # line 4: the agent, on real and imagined transitions
            row.update(rambo.improve_agent())
            # line 5: the model, against the agent and true to the data
            row.update(rambo.update_model())
    return run.finish()


if __name__ == "__main__":
    launch("rambo", train)
