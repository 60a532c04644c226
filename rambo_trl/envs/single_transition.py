"""The Single Transition Example (paper sec. 6): one step, one-dimensional, four islands of data."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

__all__ = [
    "DATA_INTERVALS",
    "SingleTransitionEnv",
    "expected_reward",
    "make_single_transition_data",
]

#: (lowest action, highest action, mean successor) where the mean is not the one elsewhere
_REGIONS = ((-0.8, -0.65, 1.0), (-0.2, -0.05, 0.5), (0.05, 0.2, 1.25), (0.65, 0.8, 1.5))
_MEAN_ELSEWHERE = 0.5
_SUCCESSOR_STD = 0.2

#: the intervals of actions that the data covers, each in the middle of a region
DATA_INTERVALS = ((-0.75, -0.7), (-0.15, -0.1), (0.1, 0.15), (0.7, 0.75))


def expected_reward(action: Tensor) -> Tensor:
    """The true expected reward of actions in [-1, 1], which is the mean successor state.

    Args:
        action: [*], or [*, 1] as an environment has it.

    Returns:
        The same shape: 1.0 in [-0.8, -0.65], 1.25 in [0.05, 0.2], 1.5 in [0.65, 0.8], and 0.5
        anywhere else.
    """
    mean = torch.full_like(action, _MEAN_ELSEWHERE)
    for low, high, value in _REGIONS:
        mean = torch.where((action >= low) & (action <= high), value, mean)
    return mean


def _draw_successor(action: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(action.shape, generator=generator, dtype=action.dtype, device=action.device)
    return expected_reward(action) + _SUCCESSOR_STD * noise


def make_single_transition_data(
    num_transitions: int = 1000, *, generator: torch.Generator | None = None
) -> TensorDict:
    """Draw the example's data set: actions uniform over the four :data:`DATA_INTERVALS`.

    Args:
        num_transitions: number of rows N.
        generator: source of the random numbers; torch's own by default.

    Returns:
        TensorDict [N] with ``"observation"`` [N, 1] (0), ``"action"`` [N, 1] and under
        ``"next"`` the ``"observation"``, the equal ``"reward"`` and the flags ``terminated``
        (true), ``truncated`` (false) and ``done`` (true), each [N, 1].

    Raises:
        ValueError: if ``num_transitions`` is below 1.

    Examples:
        >>> from rambo_trl.envs.single_transition import make_single_transition_data
        >>> make_single_transition_data(8)["next", "reward"].shape
        torch.Size([8, 1])
    """
    if num_transitions < 1:
        raise ValueError(f"num_transitions must be at least 1, got {num_transitions}")
    bounds = torch.tensor(DATA_INTERVALS)
    shape = (num_transitions, 1)
    low, high = bounds[torch.randint(len(bounds), shape, generator=generator)].unbind(-1)
    action = torch.lerp(low, high, torch.rand(shape, generator=generator))
    successor = _draw_successor(action, generator)
    terminated = torch.ones(shape, dtype=torch.bool)
    return TensorDict(
        {
            "observation": torch.zeros(shape),
            "action": action,
            "next": {
                "observation": successor,
                "reward": successor.clone(),
                "terminated": terminated,
                "truncated": torch.zeros_like(terminated),
                "done": terminated.clone(),
            },
        },
        batch_size=[num_transitions],
    )


class SingleTransitionEnv(EnvBase):
    """A one-step decision problem in which an offline learner is tempted to leave its data.

    The episode starts in state 0. The action in [-1, 1] leads to a successor
    ``s' ~ N(mean(a), 0.2)`` (standard deviation), see :func:`expected_reward`; the reward is
    the successor state, and the episode terminates. Four narrow intervals of actions make up
    the data; what a model believes between and beyond them is extrapolation.

    Keyword Args:
        batch_size: number of environments; with the empty default, tensordicts of any batch
            size can be reset and stepped.
        device: where the env lives.

    Reference: https://arxiv.org/abs/2204.12581, sec. 6. Its appendix, which gives the
    numbers, is not at hand: those here are a reconstruction.

    Examples:
        >>> from rambo_trl.envs.single_transition import SingleTransitionEnv
        >>> SingleTransitionEnv(batch_size=[4]).rollout(5).shape
        torch.Size([4, 1])
    """

    batch_locked = False

    def __init__(
        self,
        *,
        batch_size: torch.Size | tuple[int, ...] | list[int] = (),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            device=device, batch_size=torch.Size(batch_size), allow_done_after_reset=False
        )
        self._generator: torch.Generator | None = None
        shape = (*self.batch_size, 1)
        self.observation_spec = Composite(
            observation=Unbounded(shape, device=self.device),
            shape=self.batch_size,
            device=self.device,
        )
        self.action_spec = Bounded(-1.0, 1.0, shape, device=self.device)
        self.reward_spec = Unbounded(shape, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        batch_size = self.batch_size if tensordict is None else tensordict.batch_size
        shape = (*batch_size, 1)
        running = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return TensorDict(
            {
                "observation": torch.zeros(shape, device=self.device),
                "terminated": running,
                "done": running.clone(),
            },
            batch_size=batch_size,
            device=self.device,
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        successor = _draw_successor(tensordict.get("action"), self._generator)
        terminated = torch.ones_like(successor, dtype=torch.bool)
        return TensorDict(
            {
                "observation": successor,
                "reward": successor.clone(),
                "terminated": terminated,
                "done": terminated.clone(),
            },
            batch_size=tensordict.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator = torch.Generator(self.device or "cpu").manual_seed(seed)
