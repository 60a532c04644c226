"""The world model as a TorchRL environment."""

from __future__ import annotations

import warnings

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, ReplayBuffer, Unbounded
from torchrl.envs import ModelBasedEnvBase

from rambo_trl.data.rows import draw_rows
from rambo_trl.envs.termination import TerminationRule, check_rule
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.scaling import denormalize_action

__all__ = ["EnsembleModelEnv"]


class EnsembleModelEnv(ModelBasedEnvBase):
    """A model-based environment that steps an :class:`~rambo_trl.modules.EnsembleWorldModel`.

    Observations are normalised, as the world model was fitted on them. Episodes start in
    states drawn from ``starts``, and end (``terminated``) where the termination rule says so;
    a horizon is the collector's or a ``StepCounter`` transform's matter. Start states and specs
    have the world model's dtype, whatever that of ``starts`` and ``action_spec`` is.

    Args:
        world_model: the ensemble; its parameters are used live.

    Keyword Args:
        action_spec: bounds of the actions, of shape [action_size].
        starts: where start states come from: a replay buffer or a TensorDict [*] with
            ``"observation"``, normalised; of trajectories [N, T] every step may be one.
        termination: a rule on observations in the environment's own units, see
            :mod:`rambo_trl.envs.termination`; by default nothing terminates.
        observation_mean, observation_std: statistics [observation_size] that take normalised
            observations back to the environment's units, for the termination rule; without them
            the observations are taken as they are. A rule that so ends most of the transitions in
            ``starts`` that went on is warned of: they are normalised, it seems.
        action_low, action_high: what the actions -1 and 1 stand for in the environment's units,
            [action_size], for the rule as well; without them actions are taken as they are.
        batch_size: number of environments for a plain ``rollout()`` or ``Collector``; with
            the empty default, tensordicts of any batch size can be stepped.
        device: where the env lives.

    Raises:
        ValueError: if actions, starts or statistics are of another size than the world model's.

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
        world_model: EnsembleWorldModel,
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
        if action_spec.shape[-1] != world_model.action_size:
            raise ValueError(
                f"action_spec has {action_spec.shape[-1]} entries, the world model's actions "
                f"have {world_model.action_size}"
            )
        size = world_model.observation_size
        if isinstance(starts, TensorDictBase) and starts.batch_dims != 1:
            starts = starts.reshape(-1)  # of trajectories every step is a start
        observations = {
            # a buffer may still be empty
            "starts' observation": starts.get("observation", None)
            if isinstance(starts, TensorDictBase)
            else None,
            "observation_mean": observation_mean,
            "observation_std": observation_std,
        }
        start = observations["starts' observation"]
        if start is not None and start.ndim != 2:
            raise ValueError(
                f"starts' observation is of shape {list(start.shape)}: give a TensorDict whose "
                "batch size is this but for the entries"
            )
        for name, value in observations.items():
            if value is not None and value.shape[-1:] != (size,):
                raise ValueError(
                    f"{name} is of shape {list(value.shape)}, the world model's observations have "
                    f"{size} entries"
                )
        if device is None:
            device = world_model.input_mean.device
        super().__init__(world_model, device=device, batch_size=torch.Size(batch_size))
        self.starts = starts
        self.termination = termination
        dtype = world_model.input_mean.dtype
        for name, value in (
            ("observation_mean", observation_mean),
            ("observation_std", observation_std),
            ("action_low", action_low),
            ("action_high", action_high),
        ):
            self.register_buffer(name, None if value is None else value.to(self.device))
        shape = self.batch_size
        self.observation_spec = Composite(
            observation=Unbounded((*shape, size), device=self.device, dtype=dtype),
            shape=shape,
            device=self.device,
        )
        self.state_spec = self.observation_spec.clone()
        action_spec = action_spec.to(self.device).to(dtype)
        self.action_spec = action_spec.expand(*shape, *action_spec.shape[-1:])
        self.reward_spec = Unbounded((*shape, 1), device=self.device, dtype=dtype)
        if termination is not None and observation_mean is None:
            self._try_rule(termination)

    def _try_rule(self, rule: TerminationRule) -> None:
        """Warn of a rule in the environment's units that is given normalised observations."""
        num = len(self.starts)
        rows = self.starts[draw_rows(num, 2000)] if num else None
        needed = {"observation", "action", ("next", "observation"), ("next", "terminated")}
        if not isinstance(rows, TensorDictBase) or not needed <= set(rows.keys(True)):
            return
        size = self.world_model.observation_size
        _, others = check_rule(
            rule,
            rows.to(self.device),
            observation_mean=torch.zeros(size, device=self.device),
            observation_std=torch.ones(size, device=self.device),
        )
        if others is not None and others > 0.5:
            warnings.warn(
                f"the termination rule ends {100 * others:.0f} % of the transitions in starts that "
                "went on: it takes observations in the environment's units, so give the "
                "observation_mean and observation_std that these are normalised with",
                stacklevel=3,
            )

    def _denormalize(self, observation: Tensor) -> Tensor:
        if self.observation_mean is None:
            return observation
        return observation * self.observation_std + self.observation_mean

    def is_terminal(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Apply the termination rule to the learner's observations and actions [B, size].

        Returns:
            boolean [B, 1].
        """
        if self.termination is None:
            return torch.zeros_like(action[..., :1], dtype=torch.bool)
        shape = action.shape[:-1]
        if self.action_low is not None:
            action = denormalize_action(action, self.action_low, self.action_high)
        ended = self.termination(
            self._denormalize(observation), action, self._denormalize(next_observation)
        )
        return ended.reshape(*shape, 1)

    def transition(
        self,
        observation: Tensor,
        action: Tensor,
        prediction: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step on plain tensors, the body of the hot path.

        Args:
            observation: normalised [B, observation_size].
            action: [B, action_size].
            prediction: what the elites predict for these rows, where that is known already,
                see :meth:`~rambo_trl.modules.EnsembleWorldModel.sample`.

        Returns:
            Next observation [B, observation_size], reward [B, 1], terminated [B, 1].
        """
        known = () if prediction is None else (prediction,)
        next_observation, reward = self.world_model.sample(observation, action, *known)
        return next_observation, reward, self.is_terminal(observation, action, next_observation)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict.get("observation")
        action = tensordict.get("action")
        shape = action.shape[:-1]
        next_observation, reward, terminated = self.transition(
            observation.reshape(-1, observation.shape[-1]), action.reshape(-1, action.shape[-1])
        )
        terminated = terminated.reshape(*shape, 1)
        return TensorDict(
            {
                "observation": next_observation.reshape(observation.shape),
                "reward": reward.reshape(*shape, 1),
                "terminated": terminated,
                "done": terminated.clone(),
            },
            batch_size=tensordict.batch_size,
            device=self.device,
        )

    def sample_starts(self, num: int) -> Tensor:
        """Draw start states uniformly with replacement: [num, observation_size]."""
        if isinstance(self.starts, TensorDictBase):
            observation = self.starts.get("observation")
            rows = torch.randint(len(observation), (num,), device=observation.device)
            observation = observation[rows]
        else:
            observation = self.starts.sample(num).get("observation")
            if observation.ndim > 2:  # a buffer of trajectories
                observation = observation.flatten(0, -2)
                rows = torch.randint(len(observation), (num,), device=observation.device)
                observation = observation[rows]
        return observation.to(self.device, self.world_model.input_mean.dtype)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        shape = self.batch_size if tensordict is None else tensordict.batch_size
        start = self.sample_starts(shape.numel()).reshape(*shape, -1)
        done = torch.zeros(*shape, 1, dtype=torch.bool, device=self.device)
        return TensorDict(
            {"observation": start, "terminated": done, "done": done.clone()},
            batch_size=shape,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            torch.manual_seed(seed)
