"""The phases of an epoch: SAC updates on mixed data, then adversarial model updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.data import RealModelReplayBuffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating, in_mode, training_modules
from rambo_trl.modules.world_models import next_key
from rambo_trl.objectives import AdversarialModelLoss, BehaviourAnchorLoss, EnsembleModelLoss
from rambo_trl.runtime.cuda_graphs import capture_on_gpu
from rambo_trl.training.gradient_step import (
    FlatSoftUpdate,
    GradientStep,
    MetricMeans,
    ProgressBar,
    adam,
    set_rates,
)
from rambo_trl.training.phase_checks import (
    check_parts,
    check_real_rows,
    drawn_rows,
    imagined_rows,
)

__all__ = ["AgentPhase", "ModelPhase"]

#: what a schedule may be of
Scheduled: TypeAlias = Literal["critic", "actor", "alpha", "anchor"]


class AgentPhase:
    """Algorithm 1, line 4: SAC updates on real and imagined transitions.

    Args:
        loss: TorchRL's SAC loss.

    Keyword Args:
        critic_lr: Adam's learning rate for the critics.
        actor_lr: for the actor.
        alpha_lr: for the temperature.
        tau: rate of the target critics' soft update.
        schedules: factors on the learning rates of ``"critic"``, ``"actor"`` and ``"alpha"`` and on
            the weight of the ``"anchor"``, as functions of the number of updates taken before. The
            anchor's may return a scalar on the device, which is then not waited for.
        anchor: a further term of the actor, on rows of the data.
        anchor_rows: draws a batch of these rows for every update.
        after_update: called after every update, for example to average the actor
            (``torch.optim.swa_utils.AveragedModel``).
        compile: compile the losses.

    Raises:
        ValueError: if a schedule is of something else, or an anchor has no rows.
    """

    def __init__(
        self,
        loss: SACLoss,
        *,
        critic_lr: float = 3e-4,
        actor_lr: float = 1e-4,
        alpha_lr: float = 1e-4,
        tau: float = 0.005,
        schedules: Mapping[Scheduled, Callable[[int], float | Tensor]] | None = None,
        anchor: BehaviourAnchorLoss | None = None,
        anchor_rows: RealModelReplayBuffer | None = None,
        after_update: Callable[[], object] | None = None,
        compile: bool = False,
    ) -> None:
        if (anchor is None) != (anchor_rows is None):
            raise ValueError("give both anchor and anchor_rows, or neither")
        self.loss, self.anchor, self.anchor_rows = loss, anchor, anchor_rows
        self.after_update = after_update
        # TorchRL makes a buffer of it at first use: inside a graph each call would remove it again
        getattr(loss, "target_entropy", None)
        self.target_update = FlatSoftUpdate(loss, tau=tau)
        self.optimizer = adam(
            (loss.qvalue_network_params.parameters(), critic_lr),
            (loss.actor_network_params.parameters(), actor_lr),
            ([loss.log_alpha] if loss.log_alpha.requires_grad else [], alpha_lr),
        )
        self._schedules = _Schedules(self.optimizer, anchor, schedules or {})
        name = "the agent's update"
        self._step = GradientStep(self._losses, self.optimizer, compile=compile, name=name)
        self._update = capture_on_gpu(self._step_and_follow, compile, name=name)

    @property
    def stateful_parts(self) -> dict[str, Any]:
        """What checkpoints hold."""
        parts = {"loss": self.loss, "optimizer": self.optimizer}
        return parts | ({"schedules": self._schedules} if self._schedules.factors else {})

    def _losses(self, batch: TensorDictBase, *anchor_rows: TensorDictBase) -> TensorDictBase:
        # the actor's term detaches the critics, so that one backward serves all three terms
        out = self.loss(batch)
        # loss_actor is mean(alpha log pi - min Q): what remains is the mean value of the policy's
        # actions
        mean_q = -(out.get("loss_actor") + out.get("alpha") * out.get("entropy"))
        out.set("mean_q", mean_q.detach())
        for rows in anchor_rows:
            assert self.anchor is not None
            out.update(self.anchor(rows))
        return out

    def _step_and_follow(self, *batches: TensorDictBase) -> dict[str, Tensor]:
        metrics = self._step(*batches)
        self.target_update.step()
        return metrics

    def run(
        self, batches: Iterable[TensorDictBase], bar: ProgressBar | None = None
    ) -> dict[str, float]:
        """Take one SAC update per batch of transitions [B]; returns the mean metrics."""
        means = MetricMeans()
        rows = None if self.anchor_rows is None else self.anchor_rows.endless()
        for batch in batches:
            self._schedules.step()
            means.add(self._update(batch) if rows is None else self._update(batch, next(rows)))
            if self.after_update is not None:
                self.after_update()
            if bar is not None:
                bar.update(1)
        return means.read()


class _Schedules:
    """Learning rates, and the anchor's weight, as functions of the number of updates."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        anchor: BehaviourAnchorLoss | None,
        factors: Mapping[Scheduled, Callable[[int], float | Tensor]],
    ) -> None:
        names = get_args(Scheduled)
        if unknown := set(factors) - set(names):
            raise ValueError(f"schedules may be of {', '.join(names)}, got {sorted(unknown)}")
        if "anchor" in factors and anchor is None:
            raise ValueError("there is a schedule of the anchor, but no anchor")
        self.factors, self.optimizer, self.anchor, self.updates = factors, optimizer, anchor, 0
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._weight = 0.0 if anchor is None else float(anchor.weight)

    def step(self) -> None:
        """Set what the next update uses."""
        groups: tuple[Scheduled, ...] = ("critic", "actor", "alpha")
        factors = [self.factors.get(name) for name in groups]
        rates = [
            None if factor is None else rate * float(factor(self.updates))
            for factor, rate in zip(factors, self._rates, strict=True)
        ]
        set_rates(self.optimizer, rates)
        if (factor := self.factors.get("anchor")) and self.anchor is not None:
            self.anchor.weight.fill_(self._weight * factor(self.updates))
        self.updates += 1

    def state_dict(self) -> dict[str, int]:
        """The number of updates."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.updates = int(state_dict["updates"])


class ModelPhase:
    """Algorithm 1, line 5: adversarial updates along imagined on-policy trajectories.

    From states of the data the policy acts in the model for ``horizon`` steps; each step is
    followed by one update of the model on the imagined rows (Eq. 5) and on real rows, a batch for
    each elite (the likelihood term), together Eq. 9. Rows that terminate are restarted from
    the data, because the critics are not trained on states beyond.

    With the loss's ``density="member"`` each imagined row is evaluated, forwards and backwards, by
    the member alone that draws it.

    Agent and env are in evaluation mode during the updates; the likelihood term's world model
    keeps its mode. All modes are restored afterwards.

    Args:
        env: the world model's environment; the model must have a differentiable density. For
            ``density="member"`` it must not override ``transition``.
        adversarial_loss: Eq. 5, of the same model; agent and model with the same keys.
        model_loss: the likelihood term, or a trust term instead. Any module with ``in_keys``,
            entries of ``real_buffer``, that returns a TensorDict with scalar terms ``loss_*``. It
            is given rows [real_batch_size]; with an attribute ``members``, ``"elites"`` or
            ``"all"``, a batch for each of these of an ensemble, [num_elites, real_batch_size] or
            [num_members, real_batch_size].
        real_buffer: the data.

    Keyword Args:
        batch_size: imagined rows of an update.
        real_batch_size: real rows of an update, per member; by default ``batch_size``.
        horizon: steps k of a trajectory.
        lr: Adam's learning rate.
        compile: compile the losses.
        after_update: called with the detached metrics of every update, for example to step a
            :class:`~rambo_trl.objectives.LikelihoodBudget`.

    Raises:
        TypeError: if a part has a wrong type.
        ValueError: if the parts do not fit together, by their keys for example, or one of them
            fails on a few rows.
    """

    def __init__(
        self,
        env: EnsembleModelEnv,
        adversarial_loss: AdversarialModelLoss,
        model_loss: TensorDictModuleBase,
        real_buffer: ReplayBuffer,
        *,
        batch_size: int = 256,
        real_batch_size: int | None = None,
        horizon: int = 5,
        lr: float = 3e-4,
        compile: bool = False,
        after_update: Callable[[dict[str, Tensor]], object] | None = None,
    ) -> None:
        self.env = env
        self.after_update = after_update
        self.adversarial_loss = adversarial_loss
        self.model_loss = model_loss
        self.real_buffer = real_buffer
        self.batch_size = batch_size
        self.real_batch_size = batch_size if real_batch_size is None else real_batch_size
        self.horizon, self.lr = horizon, lr
        check_parts(env, adversarial_loss, model_loss)
        check_real_rows(real_buffer, model_loss)
        model = env.world_model
        fitted = getattr(model_loss, "members", None)
        # if the likelihood term trains the elites alone, so does the adversarial one
        self._apart = fitted == "elites" and isinstance(model, EnsembleWorldModel)
        # batches of real rows: one for each member that is fitted, or a single one
        self._batches: tuple[int, ...] = ()
        if self._apart:
            self._batches = (model.num_elites,)
        elif fitted == "all" and hasattr(model, "num_members"):
            self._batches = (model.num_members,)
        # one forward pass for imagined and real rows, unless the likelihood term needs other
        # members, or a subclass takes its steps in its own way
        self._together = (
            self._apart
            and isinstance(model_loss, EnsembleModelLoss)
            and type(env).transition is EnsembleModelEnv.transition
            and type(model).sample is EnsembleWorldModel.sample
        )
        self._by_member = adversarial_loss.density == "member"
        # modules that are in training mode in the likelihood term, see _playing
        self._in_training: list[nn.Module] = []
        trained = model.elite_parameters() if self._apart else model.parameters()
        self.optimizer = adam((trained, lr))
        name = "the adversarial update"
        self._step = GradientStep(
            self._losses, self.optimizer, passed_on=("observation",), compile=compile, name=name
        )
        self._update = capture_on_gpu(self._step_and_go_on, compile, name=name)

    @property
    def stateful_parts(self) -> dict[str, Any]:
        """What checkpoints hold besides the model."""
        return {"optimizer": self.optimizer}

    def _losses(
        self, observation: Tensor, restarts: Tensor, real: TensorDictBase
    ) -> TensorDictBase:
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            action = self._act(observation)
        if self._together:
            imagined = self._imagine_together(observation, action, real)
        elif self._by_member:
            imagined = drawn_rows(self.env, self.adversarial_loss, observation, action)
        else:
            imagined = self._imagine(observation, action)
        out = self.adversarial_loss(imagined)
        with in_mode(self._in_training, training=True):
            likelihood = self.model_loss(real)
        names = list(likelihood.keys())
        if not any(name.startswith("loss_") for name in names):
            raise ValueError(
                f"model_loss ({type(self.model_loss).__name__}) must return terms whose names "
                f"begin with 'loss_', such as loss_model, got {names}"
            )
        # the observations of the next step
        terminated = imagined.get(next_key(self.adversarial_loss.tensor_keys.terminated))
        next_observation = imagined.get(self.env.keys.next_observation)
        next_observation = torch.where(terminated, restarts, next_observation)
        return out.update(likelihood).set("observation", next_observation)

    def _imagine_together(
        self, observation: Tensor, action: Tensor, real: TensorDictBase
    ) -> TensorDict:
        """Sample one step; it and the real rows then hold predictions of one pass over both."""
        model, (state_key, action_key) = self.env.world_model, self.model_loss.in_keys[:2]
        rows, real_rows = (observation, action), (real.get(state_key), real.get(action_key))
        if self._by_member:
            prediction, real_prediction = model.predict_drawn(rows, real_rows)
            key, by_row = model.drawn_key, list(prediction)
        else:
            prediction, real_prediction = model.predict_together(
                rows, real_rows, members=model.elites
            )
            key, by_row = model.prediction_key, [x.movedim(0, 1) for x in prediction]
        real.set(self.model_loss.prediction_key, _as_entry(real_prediction, real.batch_size))
        imagined = self._imagine(observation, action, prediction)
        # set outside of _imagine, which has no gradients: the density needs the prediction's
        return imagined.set(key, _as_entry(by_row, imagined.batch_size))

    def _act(self, observation: Tensor) -> Tensor:
        keys = self.env.keys
        imagined = TensorDict({keys.observation: observation}, observation.shape[:1])
        return self.adversarial_loss.actor_network(imagined).get(keys.action)

    @torch.no_grad()
    def _imagine(
        self, observation: Tensor, action: Tensor, prediction: tuple[Tensor, Tensor] | None = None
    ) -> TensorDict:
        """Sample one step, from predictions of the elites if these are given."""
        if prediction is None:
            step = self.env.transition(observation, action)
        else:
            sampled = self.env.world_model.sample(observation, action, prediction)
            step = self.env.judge(observation, action, *sampled)
        return imagined_rows(self.env, self.adversarial_loss, observation, action, *step)

    def _step_and_go_on(
        self, observation: Tensor, restarts: Tensor, real: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One update, and the observations of the next step."""
        metrics = self._step(observation, restarts, real)
        return metrics.pop("observation"), metrics

    def run(self, num_updates: int, bar: ProgressBar | None = None) -> dict[str, float]:
        """Take ``num_updates`` updates; returns the mean metrics."""
        means = MetricMeans()
        with self._playing():
            for done in range(0, num_updates, self.horizon):
                steps = min(self.horizon, num_updates - done)
                # starts, restarts and real rows of all steps are drawn at once: two draws, not 2 k
                starts = self.env.sample_starts(steps * self.batch_size).unflatten(0, (steps, -1))
                shape = (steps, *self._batches, self.real_batch_size)
                real = self.real_buffer.sample(math.prod(shape))
                real = real.select(*self.model_loss.in_keys).reshape(*shape)
                observation = starts[0]
                for step in range(steps):
                    # the last step's trajectories end, whatever follows
                    restarts = starts[(step + 1) % steps]
                    observation, metrics = self._update(observation, restarts, real[step])
                    means.add(metrics)
                    if self.after_update is not None:
                        self.after_update(metrics)
                    if bar is not None:
                        bar.update(1)
        return means.read()

    @contextmanager
    def _playing(self) -> Iterator[None]:
        """Detach the elites and set all modes, outside of what is compiled."""
        loss, model = self.adversarial_loss, self.env.world_model
        # no layer of the library's ensemble depends on the mode
        plain = type(model) is EnsembleWorldModel
        self._in_training = [] if plain else training_modules(model)
        with (
            evaluating(self.env, loss.actor_network, *loss.qvalue_networks),
            model.elites_apart() if self._apart else nullcontext(),
        ):
            yield


def _as_entry(prediction: Sequence[Tensor], batch_size: torch.Size) -> TensorDict:
    """Mean and log-variance as an entry for losses and densities."""
    mean, log_var = prediction
    return TensorDict({"mean": mean, "log_var": log_var}, batch_size)
