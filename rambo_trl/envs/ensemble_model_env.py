"""The world model as a TorchRL environment."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded, Composite, ReplayBuffer, Unbounded
from torchrl.envs import ModelBasedEnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data.scaling import denormalize_action
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs.termination import TerminationRule, check_rule
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import device_and_dtype, transition_keys, trying

__all__ = ["EnsembleModelEnv"]


class EnsembleModelEnv(ModelBasedEnvBase):
    """A model-based environment that steps a world model.

    The model is an :class:`~rambo_trl.modules.EnsembleWorldModel` or any TensorDict module that
    samples and writes ``("next", observation)`` [*B, observation_size] and ``("next", reward)``
    [*B, 1] or [*B]. The env's keys are the model's, nested ones too; the flags ``"terminated"`` and
    ``"done"`` are entries of the root. The model is stepped in evaluation mode and always samples,
    even where the policy's exploration is deterministic.

    Observations are normalised, as the world model was fitted on them. Episodes start in
    states drawn from ``starts``, and end (``terminated``) where the termination rule says so;
    a horizon is set by the collector or a ``StepCounter`` transform. Start states and specs
    have the world model's dtype, whatever the dtype of ``starts`` and ``action_spec``.

    Args:
        world_model: its parameters are used live.

    Keyword Args:
        action_spec: bounds of the actions, of shape [action_size].
        starts: source of the start states: a replay buffer or a TensorDict [*] with the model's
            observation, normalised; of trajectories [N, T] every step may be a start.
        termination: a rule on observations in the environment's units, see
            :mod:`rambo_trl.envs.termination`; by default nothing terminates.
        observation_mean, observation_std: statistics [observation_size] that denormalise
            observations for the termination rule; without them it is given the observations as
            they are. A warning is issued if the rule then ends most non-terminal transitions of
            ``starts``, which suggests that they are normalised.
        action_low, action_high: the environment's actions [action_size] for -1 and 1, also for the
            rule; without them it is given the actions as they are.
        batch_size: number of environments for a plain ``rollout()`` or ``Collector``; with
            the empty default, tensordicts of any batch size can be stepped.
        device: where the env lives.

    Raises:
        TypeError: if the world model, the starts, the rule or ``action_spec`` has a wrong type.
        ValueError: if actions, starts or statistics do not have the world model's sizes, or the
            model fails on a few rows or writes entries of another shape.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from rambo_trl.envs import EnsembleModelEnv
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> starts = TensorDict(observation=torch.randn(100, 3), batch_size=[100])
        >>> env = EnsembleModelEnv(EnsembleWorldModel(3, 1), starts=starts,
        ...                        action_spec=Bounded(-1, 1, shape=(1,)), batch_size=[4])
        >>> env.rollout(5).shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        world_model: TensorDictModuleBase,
        *,
        action_spec: Bounded,
        starts: ReplayBuffer | TensorDictBase,
        termination: TerminationRule | None = None,
        observation_mean: Tensor | None = None,
        observation_std: Tensor | None = None,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        batch_size: torch.Size | tuple[int, ...] | list[int] = (),
        device: torch.device | str | None = None,
    ) -> None:
        if (observation_mean is None) != (observation_std is None):
            raise ValueError("give both observation_mean and observation_std, or neither")
        if (action_low is None) != (action_high is None):
            raise ValueError("give both action_low and action_high, or neither")
        if termination is not None and not callable(termination):
            raise TypeError(
                "termination must be a function of (observation, action, next_observation), got "
                f"{type(termination).__name__}: choose_rule returns one by name"
            )
        _check_action_spec(action_spec, getattr(world_model, "action_size", None))
        keys = transition_keys(world_model)
        starts, rows = _checked_starts(starts, keys.observation)
        observations = {
            # a buffer may still be empty
            "starts' observation": None if rows is None else rows.get(keys.observation),
            "observation_mean": observation_mean,
            "observation_std": observation_std,
        }
        size = getattr(world_model, "observation_size", None)
        if size is None:
            size = next((v.shape[-1] for v in observations.values() if v is not None), None)
        if size is None:
            raise ValueError(
                "the number of observation entries is unknown: starts are an empty buffer and "
                f"{type(world_model).__name__} has no observation_size; fill the buffer first"
            )
        for name, value in observations.items():
            if value is not None and value.shape[-1:] != (size,):
                raise ValueError(
                    f"{name} is of shape {list(value.shape)}, the world model's observations have "
                    f"{size} entries"
                )
        model_device, dtype = device_and_dtype(world_model)
        super().__init__(
            world_model, device=device or model_device, batch_size=torch.Size(batch_size)
        )
        self.starts = starts
        self.termination = termination
        self.keys = keys
        for name, value in (
            ("observation_mean", observation_mean),
            ("observation_std", observation_std),
            ("action_low", action_low),
            ("action_high", action_high),
        ):
            self.register_buffer(name, None if value is None else value.to(self.device))
        shape = self.batch_size
        self.observation_spec = Composite(
            {keys.observation: Unbounded((*shape, size), device=self.device, dtype=dtype)},
            shape=shape,
            device=self.device,
        )
        self.state_spec = self.observation_spec.clone()
        action_spec = action_spec.to(self.device).to(dtype)
        action_spec = action_spec.expand(*shape, *action_spec.shape[-1:])
        self.action_spec = Composite({keys.action: action_spec}, shape=shape, device=self.device)
        reward_spec = Unbounded((*shape, 1), device=self.device, dtype=dtype)
        self.reward_spec = Composite({keys.reward: reward_spec}, shape=shape, device=self.device)
        if not isinstance(world_model, EnsembleWorldModel):
            self._try_model(size)
        if termination is not None and observation_mean is None:
            self._try_rule(termination)

    def few_rows(self) -> tuple[Tensor, Tensor]:
        """Two mean observations and random actions to try a module on."""
        size = self.observation_spec[self.keys.observation].shape[-1]
        action = self.full_action_spec_unbatched[self.keys.action].rand((2,))
        return action.new_zeros(2, size), action

    def _try_model(self, size: int) -> None:
        """Check that the model can be stepped and writes the right shapes.

        Raises:
            ValueError: naming what is wrong.
        """
        name = type(self.world_model).__name__
        with trying(f"the world model {name} fails on 2 rows of the env's sizes", self.device):
            observation, action = self.few_rows()
            next_observation, reward = self._sample(observation, action)
        for key, value, shapes in (
            (self.keys.next_observation, next_observation, ((2, size),)),
            (self.keys.next_reward, reward, ((2, 1), (2,))),
        ):
            if value is None or tuple(value.shape) not in shapes:
                got = "nothing" if value is None else f"shape {list(value.shape)}"
                raise ValueError(
                    f"the world model {name} writes {got} as {key!r} of 2 rows, expected "
                    f"{' or '.join(str(list(shape)) for shape in shapes)}"
                )
            if value.dtype != observation.dtype:
                raise ValueError(
                    f"the world model {name} writes {value.dtype} as {key!r}, expected "
                    f"{observation.dtype}, the dtype of its input: cast it"
                )

    def _try_rule(self, rule: TerminationRule) -> None:
        """Warn if a rule in the environment's units seems to be given normalised observations."""
        num, keys = len(self.starts), self.keys
        rows = self.starts[draw_rows(num, 2000)] if num else None
        read = (keys.observation, keys.action, keys.next_observation, ("next", "terminated"))
        if not isinstance(rows, TensorDictBase) or any(rows.get(k, None) is None for k in read):
            return
        _, false_ends = check_rule(rule, rows.select(*read).to(self.device), keys=keys)
        if false_ends is not None and false_ends > 0.5:
            warnings.warn(
                f"the termination rule ends {100 * false_ends:.0f} % of the non-terminal "
                "transitions in starts: it takes observations in the environment's units, so give "
                "the observation_mean and observation_std that these are normalised with",
                stacklevel=3,
            )

    def _denormalize(self, observation: Tensor) -> Tensor:
        if self.observation_mean is None:
            return observation
        return observation * self.observation_std + self.observation_mean

    def is_terminal(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Apply the termination rule to normalised observations and actions [B, size].

        Returns:
            boolean [B, 1].
        """
        if self.termination is None:
            return torch.zeros_like(action[..., :1], dtype=torch.bool)
        shape = action.shape[:-1]
        if self.action_low is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        with evaluating(self.termination):
            ended = self.termination(
                self._denormalize(observation), action, self._denormalize(next_observation)
            )
        return ended.reshape(*shape, 1)

    def transition(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step on plain tensors, the body of the hot path.

        Args:
            observation: normalised [B, observation_size].
            action: [B, action_size].

        Returns:
            Next observation [B, observation_size], reward [B, 1], terminated [B, 1].
        """
        if isinstance(self.world_model, EnsembleWorldModel):
            sampled = self.world_model.sample(observation, action)
        else:
            sampled = self._sample(observation, action)
        return self.judge(observation, action, *sampled)

    def judge(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outcome of a step for a sampled next observation and reward, as :meth:`transition`.

        Override it to change the reward or the end of steps.
        """
        terminated = self.is_terminal(observation, action, next_observation)
        return next_observation, reward.reshape(-1, 1), terminated

    def _sample(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Call a world model that is no ensemble on rows [B]."""
        keys = self.keys
        rows = TensorDict({keys.observation: observation, keys.action: action}, action.shape[:1])
        # the model's randomness does not depend on the policy's exploration type
        with (
            torch.no_grad(),
            evaluating(self.world_model),
            set_exploration_type(ExplorationType.RANDOM),
        ):
            rows = self.world_model(rows)
        return rows.get(keys.next_observation, None), rows.get(keys.next_reward, None)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict.get(self.keys.observation)
        action = tensordict.get(self.keys.action)
        shape = action.shape[:-1]
        with evaluating(self):
            next_observation, reward, terminated = self.transition(
                observation.reshape(-1, observation.shape[-1]), action.reshape(-1, action.shape[-1])
            )
        terminated = terminated.reshape(*shape, 1)
        return TensorDict(
            {
                self.keys.observation: next_observation.reshape(observation.shape),
                self.keys.reward: reward.reshape(*shape, 1),
                "terminated": terminated,
                "done": terminated.clone(),
            },
            batch_size=tensordict.batch_size,
            device=self.device,
        )

    def sample_starts(self, num: int) -> Tensor:
        """Draw start states uniformly with replacement: [num, observation_size].

        Raises:
            ValueError: if a buffer's rows are not of that shape.
        """
        key = self.keys.observation
        if isinstance(self.starts, TensorDictBase):
            observation = self.starts.get(key)
            rows = torch.randint(len(observation), (num,), device=observation.device)
            observation = observation[rows]
        else:
            observation = _observation_of(self.starts.sample(num), key)
            if observation.ndim > 2:  # a buffer of trajectories
                observation = observation.flatten(0, -2)
                rows = torch.randint(len(observation), (num,), device=observation.device)
                observation = observation[rows]
            size = self.observation_spec[key].shape[-1]
            if observation.shape != (num, size):
                raise ValueError(
                    f"{num} rows of starts hold an observation {key!r} of shape "
                    f"{list(observation.shape)}, expected {[num, size]}"
                )
        return observation.to(self.device, device_and_dtype(self.world_model)[1])

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        shape = self.batch_size if tensordict is None else tensordict.batch_size
        start = self.sample_starts(shape.numel()).reshape(*shape, -1)
        done = torch.zeros(*shape, 1, dtype=torch.bool, device=self.device)
        return TensorDict(
            {self.keys.observation: start, "terminated": done, "done": done.clone()},
            batch_size=shape,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            torch.manual_seed(seed)


def _check_action_spec(action_spec: object, action_size: int | None) -> None:
    """Check that actions are vectors, of the world model's size if that is known.

    Raises:
        TypeError: if the spec has a wrong type.
        ValueError: if it has a wrong shape.
    """
    if not isinstance(action_spec, (Bounded, Unbounded)):
        raise TypeError(
            "action_spec must be Bounded, of shape [action_size], got "
            f"{type(action_spec).__name__}: actions are continuous, a single leaf"
        )
    if len(action_spec.shape) != 1:
        raise ValueError(
            f"action_spec is of shape {list(action_spec.shape)}, expected [action_size]: use one "
            "environment's (action_spec_unbatched)"
        )
    if action_size is not None and action_spec.shape[-1] != action_size:
        raise ValueError(
            f"action_spec has {action_spec.shape[-1]} entries, the world model's actions "
            f"have {action_size}"
        )


def _observation_of(rows: Any, key: NestedKey) -> Tensor:
    """The observation in rows of starts.

    Raises:
        ValueError: if there is none.
    """
    batch = isinstance(rows, TensorDictBase)
    observation = rows.get(key, None) if batch else None
    if not isinstance(observation, Tensor):
        got = list(rows.keys(True, True)) if batch else type(rows).__name__
        raise ValueError(f"starts must hold the world model's observation {key!r}, got {got}")
    return observation


def _checked_starts(
    starts: Any, key: NestedKey
) -> tuple[ReplayBuffer | TensorDictBase, TensorDictBase | None]:
    """The starts, flat, and rows of them; None for an empty buffer.

    Raises:
        TypeError: if they are neither a TensorDict nor a replay buffer.
        ValueError: if they hold no observation, or no row.
    """
    if isinstance(starts, TensorDictBase):
        starts = starts if starts.batch_dims == 1 else starts.reshape(-1)
        if not len(starts):
            raise ValueError("starts hold no rows: at least one start state is needed")
        observation = _observation_of(starts, key)
        if observation.ndim != 2:
            raise ValueError(
                f"starts' observation is of shape {list(observation.shape)}: the TensorDict's "
                "batch size must be all of it but the last, [N] for [N, observation_size]"
            )
        return starts, starts
    if isinstance(starts, ReplayBuffer):
        rows = starts[:1] if len(starts) else None
        if not isinstance(rows, TensorDictBase):
            return starts, None
        _observation_of(rows, key)
        return starts, rows
    hint = ": give TensorDict({...: starts}, [N])" if isinstance(starts, Tensor) else ""
    raise TypeError(
        f"starts must be a replay buffer or a TensorDict that holds {key!r}, got "
        f"{type(starts).__name__}{hint}"
    )
