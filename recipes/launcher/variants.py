"""RAMBO's variants as parts: the data term of the adversary's update, and reverse rollouts.

By default they are the paper's; see ``docs/variants.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from launcher.parts import (
    Actor,
    make_collector,
    make_data_batches,
    make_model_env,
    make_policy,
    make_world_model,
)
from launcher.pretraining import clone_with_bar, fit_with_bar
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.objectives import SACLoss

from rambo_trl.collectors import (
    ModelRolloutCollector,
    ReverseRolloutCollector,
    reverse_transitions,
)
from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows, discounted_returns, early_rows
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.termination import TerminationRule
from rambo_trl.experiment.divergence import ModelErrorBound, model_error_bound
from rambo_trl.experiment.run import Run
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import (
    AdversarialModelLoss,
    BehaviourAnchorLoss,
    EnsembleModelLoss,
    LikelihoodBudget,
    ModelTrustLoss,
    ValueBudget,
)
from rambo_trl.training.offline import cosine_decay

#: rows of the data on which the model's error is followed
ERROR_ROWS = 1000


def averaged_actor(cfg: DictConfig, actor: Actor) -> AveragedModel | None:
    """The actor's exponential moving average, which is then evaluated in the actor's place."""
    rate = cfg.agent.actor_average
    return AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(rate)) if rate else None


def agent_variants(
    cfg: DictConfig,
    data: OfflineDataset,
    sac: SACLoss,
    actor: Actor,
    averaged: AveragedModel | None,
    budget: ValueBudget | None = None,
) -> dict[str, Any]:
    """What an agent that starts from the data has besides: rates that fall, an anchor.

    With a budget the anchor is as heavy as its model is doubted.
    """
    total, settings = cfg.epochs * cfg.agent_updates, cfg.agent
    rate = cosine_decay(total) if settings.lr_decay == "cosine" else lambda _: 1.0

    def late(updates: int) -> float:
        return 0.0 if updates < settings.critic_warmup else rate(updates)

    variants: dict[str, Any] = {}
    if averaged is not None:
        variants["after_update"] = lambda: averaged.update_parameters(actor)
    if settings.lr_decay != "none" or settings.critic_warmup:
        variants["schedules"] = {"critic": rate, "actor": late, "alpha": late}
    if settings.anchor_weight:
        last = settings.anchor_final / settings.anchor_weight

        def weight(updates: int) -> float | Tensor:
            faded = fading_anchor(last, min(updates / total, 1))
            return faded if budget is None else faded * budget.doubt

        variants["schedules"] = variants.get("schedules", {}) | {"anchor": weight}
        spread = float(discounted_returns(data.transitions, settings.gamma).std()) or 1.0
        variants["anchor"] = BehaviourAnchorLoss(sac, settings.anchor_weight * spread)
        best = best_episode_rows(data, cfg.cloning.episode_share)
        keys = ("observation", "action")
        variants["anchor_rows"] = make_data_batches(
            cfg,
            data.transitions[_more_early_rows(cfg, data, best)].select(*keys),
            keys=keys,
            batch_size=settings.anchor_batch_size,
        )
    return variants


def fading_anchor(last: float, share: float) -> float:
    """A factor on the anchor's weight that goes from 1 to ``last`` over the run.

    By a constant ratio an update, so that the actor is free for much of the run while its learning
    rate is not small yet; linearly where it ends at 0.

    Args:
        last: the factor at the end.
        share: of the run that is over, from 0 to 1.
    """
    return last**share if last else 1 - share


def start_rows(cfg: DictConfig, data: OfflineDataset, rows: TensorDictBase) -> TensorDictBase:
    """Rows that rollouts start from; a share of them from the first steps of episodes.

    Args:
        cfg: the configuration.
        data: the data.
        rows: their transitions [N] on the device.
    """
    numbers = _more_early_rows(cfg, data, torch.arange(len(data)))
    return rows if len(numbers) == len(rows) else rows.select("observation")[numbers.to(cfg.device)]


def _more_early_rows(cfg: DictConfig, data: OfflineDataset, rows: Tensor) -> Tensor:
    """Row numbers [M], and those among the first steps of episodes repeated up to their share."""
    if not cfg.early_share:
        return rows
    early = rows[torch.isin(rows, early_rows(data.transitions, cfg.early_steps))]
    extra = round((cfg.early_share * len(rows) - len(early)) / (1 - cfg.early_share))
    if extra <= 0 or not len(early):
        return rows
    return torch.cat([rows, early[torch.arange(extra) % len(early)]])


def has_value_budget(cfg: DictConfig) -> bool:
    """Whether lambda follows the values: not beside a likelihood budget, nor where it is 0."""
    given = cfg.value_budget is not None and cfg.likelihood_budget is None
    return given and bool(cfg.adversarial_weight)


class DataTerm:
    """The term that keeps the model accurate on the data, and the model's error there.

    As published, a likelihood term beside lambda times the adversarial one (Eq. 9). With
    ``model_term`` a distance to the fitted model takes its place (Eq. 8); with
    ``likelihood_budget`` lambda, the inverse of Eq. 7's multiplier, is adapted so that the term
    rises by at most the budget; with ``value_budget`` so that the values of the data's steps fall
    by at most that.

    Args:
        cfg: the configuration.
        data: the data; the model's error is measured on a fixed sample of its rows.
        adversarial: the adversarial loss, whose lambda the budget changes.
        env: the model as an environment.

    Attributes:
        loss: the data term that is minimised.
        trust: the distance to the fitted model, or None.
        budget: the rule that adapts lambda to Eq. 7, or None.
        value_budget: the rule that adapts it to the values, or None.
    """

    def __init__(
        self,
        cfg: DictConfig,
        data: OfflineDataset,
        adversarial: AdversarialModelLoss,
        env: EnsembleModelEnv,
    ) -> None:
        world_model = adversarial.world_model
        self._data, self._world_model = data, world_model
        self._likelihood = EnsembleModelLoss(world_model, members="elites")
        self.trust: ModelTrustLoss | None = None
        self.budget: LikelihoodBudget | None = None
        self.value_budget: ValueBudget | None = None
        if cfg.model_term != "likelihood":
            self.trust = ModelTrustLoss(world_model, divergence=cfg.model_term)
        if cfg.likelihood_budget is not None:
            self.budget = LikelihoodBudget(adversarial, cfg.likelihood_budget, lr=cfg.budget_lr)
        self.loss: TensorDictModuleBase = self.trust or self._likelihood
        rows = draw_rows(len(data), ERROR_ROWS)
        self._rows = data.transitions[rows].to(cfg.device)
        if has_value_budget(cfg):
            self.value_budget = ValueBudget(adversarial, env, self._rows, cfg.value_budget)

    def record_fit(self, run: Run) -> None:
        """Record the fitted model's error; anchor the trust term or the budget. Once a run."""
        if run.progress["epoch"]:
            return
        run.progress["fitted_error"] = self.model_error().tolist()
        if self.value_budget is not None:
            self.value_budget.anchor()
        if self.trust is not None:
            self.trust.anchor()
        elif self.budget is not None:
            with torch.no_grad():
                self.budget.budget += self._likelihood(self._rows)["loss_model"]

    @property
    def after_update(self) -> Callable[[dict[str, Tensor]], object] | None:
        """A step of lambda towards the budget (Eq. 7), where there is one."""
        budget, key = self.budget, "loss_model" if self.trust is None else "trust_distance"
        return None if budget is None else lambda metrics: budget.step(metrics[key])

    def model_error(self) -> Tensor:
        """The elites' mean squared error on fixed rows of the data; draws no random numbers.

        Returns:
            [observation_size + 1], one per observation entry, then the reward.
        """
        return self._likelihood.entry_mse(self._rows).cpu()

    def error_bound(self, run: Run) -> ModelErrorBound:
        """The model errors beyond which the run counts as diverged."""
        entries = self._data.observation_size + 1
        # runs of earlier versions did not measure it
        run.progress.setdefault("fitted_error", [max(run.progress["holdout_mse"])] * entries)
        return model_error_bound(
            self._rows,
            torch.tensor(run.progress["fitted_error"]),
            scale=self._world_model.output_scale,
            names=(*self._data.observation_names, "reward"),
        )

    def end_turn(self) -> dict[str, Any]:
        """End the adversary's turn: adapt lambda to the values.

        Returns:
            The model's error, entry by entry, and lambda where it changes.
        """
        metrics: dict[str, Any] = {"model_error": self.model_error()}
        if self.value_budget is not None:
            metrics["model_value_fall"] = float(self.value_budget.step())
        if (budget := self.budget or self.value_budget) is not None:
            metrics["model_lambda"] = float(budget.adversarial_loss.adversarial_weight)
        return metrics


class _WithinData(EnsembleModelEnv):
    """A model whose states stay near the data, however many steps are taken in it."""

    def stay_near(self, rows: TensorDictBase) -> None:
        """Bound states by the data's range, by its width on either side.

        Args:
            rows: the data's, [N].
        """
        low, high = rows[self.keys.observation].aminmax(dim=0)
        self.low, self.high = 2 * low - high, 2 * high - low

    def transition(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the model's, the next state within the bounds."""
        next_observation, reward, terminated = super().transition(observation, action)
        return next_observation.clamp(self.low, self.high), reward, terminated


class RolloutCollector:
    """Forward rollouts, or with ``rollout_direction`` reverse ones in their place or beside them.

    Reverse rollouts lead into the data (ROMI, Wang et al. 2021, https://arxiv.org/abs/2110.00188),
    which the paper suggests as future work for AntMaze (sec. 6). They are taken in a backward
    model, which predicts the previous state, by a policy cloned from the data; with
    ``rollout_policy=random`` actions are random.

    With ``imagined_episodes`` there are whole episodes besides, from the first states of the
    data's, as MOReL has them (Kidambi et al. 2020, https://arxiv.org/abs/2005.05951), no longer
    than the longest of these: the policy leaves the data in the course of an episode, and no
    rollout of k steps follows it there.

    Args:
        cfg: the configuration.
        data: the data.
        env: the forward model as an environment.
        actor: the policy of forward rollouts.
        starts: the data's rows on their device, [N].
        termination: the rule of both models.
    """

    def __init__(
        self,
        cfg: DictConfig,
        data: OfflineDataset,
        env: EnsembleModelEnv,
        actor: Actor,
        starts: TensorDictBase,
        termination: TerminationRule,
    ) -> None:
        self._cfg, direction = cfg, cfg.rollout_direction
        self.forward: ModelRolloutCollector | None = make_collector(cfg, env, actor)
        self.episodes: ModelRolloutCollector | None = None
        if cfg.imagined_episodes and direction != "reverse":
            first = starts[early_rows(data.transitions, 1).to(starts.device)]
            within = make_model_env(_WithinData, data, env.world_model, first, termination)
            within.stay_near(starts)
            lengths = [int(end - begin) for begin, end in data.whole_episodes]
            self.episodes = ModelRolloutCollector(
                within,
                self.forward.policy,
                num_starts=cfg.imagined_episodes,
                horizon=min(cfg.imagined_steps, max(lengths, default=cfg.imagined_steps)),
                compile=cfg.compile,
            )
        self.reverse: ReverseRolloutCollector | None = None
        self.reverse_model: EnsembleWorldModel | None = None
        self.reverse_policy: Actor | None = None
        if direction == "forward":
            return
        num_starts = cfg.rollout_starts
        if direction == "both":
            num_starts //= 2
            self.forward.num_starts -= num_starts
        else:
            self.forward = None
        self._transitions = reverse_transitions(starts)
        self.reverse_model = make_world_model(cfg, data)
        if cfg.rollout_policy == "current":
            self.reverse_policy = make_policy(cfg, data)
        model, rows = self.reverse_model, self._transitions
        reverse_env = make_model_env(EnsembleModelEnv, data, model, rows, termination)
        self.reverse = ReverseRolloutCollector(
            reverse_env,
            self.reverse_policy,
            num_starts=num_starts,
            horizon=cfg.rollout_length,
            compile=cfg.compile,
        )

    def collect(self) -> TensorDictBase:
        """One round of rollouts; flat TensorDict [valid transitions]."""
        collectors = (self.forward, self.reverse, self.episodes)
        rounds = [c.collect() for c in collectors if c is not None]
        return rounds[0] if len(rounds) == 1 else torch.cat(rounds)

    def pretrain(self, run: Run) -> None:
        """Fit the reverse model and clone its policy, on the data read backwards."""
        if self.reverse_model is None:
            return
        fit = fit_with_bar(run, self._cfg, self.reverse_model, self._transitions, "reverse model")
        run.progress["reverse_holdout_mse"] = fit.holdout_mse
        if self.reverse_policy is not None:
            clone_with_bar(
                run, self._cfg, self.reverse_policy, self._transitions, "clone reverse policy"
            )

    @property
    def pretrained_parts(self) -> dict[str, Any]:
        """What pretraining changes here, for checkpoints and runs that share it."""
        parts = {"reverse_model": self.reverse_model, "reverse_policy": self.reverse_policy}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """What determines the next round, apart from the random state."""
        if self.forward is None or self.reverse is None:
            (only,) = (c for c in (self.forward, self.reverse) if c is not None)
            return only.state_dict()
        return {"forward": self.forward.state_dict(), "reverse": self.reverse.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if self.forward is None or self.reverse is None:
            (only,) = (c for c in (self.forward, self.reverse) if c is not None)
            only.load_state_dict(state_dict)
        else:
            self.forward.load_state_dict(state_dict["forward"])
            self.reverse.load_state_dict(state_dict["reverse"])
