"""k-step imagined rollouts from states of the data (Algorithm 1, line 3): the hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules.actor_critic import action_bounds
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import trying
from rambo_trl.runtime.compiling import compile_like_eager
from rambo_trl.runtime.cuda_graphs import capture_on_gpu

__all__ = ["ModelRolloutCollector"]

#: rows that stay in a CPU's cache while all k steps of a chunk are taken
_CPU_CHUNK = 2000
#: up to so many steps are one graph; longer rollouts are made of graphs with fewer, which compile
#: in a fraction of the time and are nearly as fast
_GRAPH_STEPS, _BLOCK_STEPS = 20, 5


class ModelRolloutCollector:
    """Iterate over flat TensorDicts of imagined transitions.

    Each item holds the transitions of ``num_starts`` rollouts of ``horizon`` steps: start
    states are drawn from the env's ``starts``, actions sampled from the policy, next states
    from the world model. A rollout stops where it terminates; only valid transitions are
    returned, ordered by step: shuffle them before you take a part.

    Rows are rolled out in chunks that fit the cache (all at once on a GPU) without
    synchronisation; ended rows are masked, and dropped once at the end. With ``compile``, all
    steps of a chunk (policy, model, termination) are one graph, on a GPU a captured CUDA graph; of
    more than 20 steps up to five are, and it is called repeatedly. Random numbers and, up to
    rounding, transitions are the same as without.

    Args:
        env: the world model's environment.
        policy: an actor reading the env's observation and writing its action, or None for
            uniformly random actions. It acts in evaluation mode and samples from its distribution.

    Keyword Args:
        num_starts: rollouts per item (50,000 in the published configuration).
        horizon: steps k per rollout.
        compile: compile the chunk's rollout.
        chunk_size: rows per chunk; by default 2,000 on a CPU and all on a GPU.

    Raises:
        ValueError: if a size is smaller than 1, the actions' bounds are not finite, or the policy
            fails on a few rows or writes no action of the env.
        TypeError: if the env is not an ``EnsembleModelEnv`` (a transform around one is not either),
            or the policy is no TensorDict module.

    The items hold N transitions, under the world model's keys: ``"observation"``
    [N, observation_size], normalised as the starts are, ``"action"`` [N, action_size],
    ``("next", "observation")`` [N, observation_size], ``("next", "reward")`` [N, 1] and the boolean
    flags ``terminated``, ``truncated`` (the horizon was reached) and ``done`` [N, 1] under
    ``"next"``.
    """

    def __init__(
        self,
        env: EnsembleModelEnv,
        policy: TensorDictModuleBase | None = None,
        *,
        num_starts: int = 50_000,
        horizon: int = 5,
        compile: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        if not isinstance(env, EnsembleModelEnv):
            raise TypeError(
                f"ModelRolloutCollector needs an EnsembleModelEnv, got {type(env).__name__}: a "
                "transform would be ignored; use PessimisticModelEnv, or a plain Collector"
            )
        if chunk_size is None:
            chunk_size = num_starts if env.device.type == "cuda" else min(_CPU_CHUNK, num_starts)
        for name, value in (
            ("num_starts", num_starts),
            ("horizon", horizon),
            ("chunk_size", chunk_size),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.env = env
        self.policy = policy
        self.num_starts = num_starts
        self.horizon = horizon
        self.chunk_size = chunk_size
        self.compile = compile
        action_spec = env.full_action_spec_unbatched[env.keys.action]
        self._action_low, high = action_bounds(action_spec, type(self).__name__)
        self._action_range = high - self._action_low
        if policy is not None:
            check_policy(policy, env)
        self._iterations = 0
        blocks = [n for n in range(1, _BLOCK_STEPS + 1) if horizon % n == 0]
        self._steps = horizon if horizon <= _GRAPH_STEPS else max(blocks)
        self._run: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None

    def _act(self, observation: Tensor) -> Tensor:
        if self.policy is None:
            low = self._action_low
            noise = torch.rand(
                observation.shape[0], low.shape[0], dtype=low.dtype, device=observation.device
            )
            return low + noise * self._action_range
        rows = TensorDict({self.env.keys.observation: observation}, observation.shape[:1])
        return self.policy(rows).get(self.env.keys.action)

    def _take_steps(self, observation: Tensor, alive: Tensor) -> tuple[Tensor, ...]:
        steps = []
        for _ in range(self._steps):
            action = self._act(observation)
            next_observation, reward, terminated = self.env.transition(observation, action)
            steps.append((observation, action, next_observation, reward, terminated, alive))
            alive = alive & ~terminated
            # an ended row stays in its last valid state, so that nothing overflows
            observation = torch.where(alive, next_observation, observation)
        return (*(torch.stack(x) for x in zip(*steps, strict=True)), observation, alive)

    def _chunk(self, observation: Tensor) -> tuple[Tensor, ...]:
        if self._run is None:
            name = "the imagined rollouts"
            run = compile_like_eager(self._take_steps, self.compile, name=name)
            # a replay overwrites the previous results: capture only where there is one
            once = self.chunk_size >= self.num_starts and self._steps == self.horizon
            self._run = capture_on_gpu(run, self.compile and once, name=name)
        alive, blocks = torch.ones_like(observation[:, :1], dtype=torch.bool), []
        for _ in range(self.horizon // self._steps):
            *block, observation, alive = self._run(observation, alive)
            blocks.append(block)
        return tuple(torch.cat(x) for x in zip(*blocks, strict=True))

    @torch.no_grad()
    def collect(self) -> TensorDictBase:
        """Roll out once from ``num_starts`` fresh starts; flat TensorDict [valid transitions]."""
        keys, observation = self.env.keys, self.env.sample_starts(self.num_starts)
        chunks = []
        # set outside the compiled chunk, which would recompile for another mode
        with evaluating(self.env, self.policy), set_exploration_type(ExplorationType.RANDOM):
            for start in observation.split(self.chunk_size):
                chunks.append(self._chunk(start))
        parts = [torch.cat(x, dim=1) for x in zip(*chunks, strict=True)]
        observation, action, next_observation, reward, terminated, alive = parts
        truncated = torch.zeros_like(terminated)
        truncated[-1] = ~terminated[-1]
        flat = TensorDict(
            {
                keys.observation: observation,
                keys.action: action,
                "next": {
                    keys.observation: next_observation,
                    keys.reward: reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "done": terminated | truncated,
                },
            },
            batch_size=terminated.shape[:2],
        )
        self._iterations += 1
        # row numbers, since a mask would be converted to them anew for each entry
        valid = alive.view(-1).nonzero().squeeze(-1)
        return flat.reshape(-1).apply(
            lambda entry: entry.index_select(0, valid), batch_size=valid.shape
        )

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            yield self.collect()

    def state_dict(self) -> dict[str, Any]:
        """The number of items collected; the random state is torch's."""
        return {"iterations": self._iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._iterations = int(state_dict["iterations"])

    def shutdown(self, *args: object, **kwargs: object) -> None:
        """Release the compiled graph; there are no processes to stop."""
        self._run = None


def check_policy(policy: object, env: EnsembleModelEnv) -> None:
    """Check that a policy acts in an env.

    Raises:
        TypeError: if it is neither a TensorDict module nor a function of TensorDicts.
        ValueError: if it fails on a few observations, or writes no action of the env's size.
    """
    keys = env.keys
    if not callable(policy) or (isinstance(policy, nn.Module) and not hasattr(policy, "in_keys")):
        raise TypeError(
            f"the policy must be a TensorDict module that reads {keys.observation!r} and writes "
            f"{keys.action!r}, got {type(policy).__name__}"
        )
    size = env.observation_spec[keys.observation].shape[-1]
    with (
        trying(
            f"the policy fails on rows that hold {keys.observation!r} [2, {size}] and nothing else",
            env.device,
        ),
        evaluating(policy),
        set_exploration_type(ExplorationType.RANDOM),
    ):
        observation, action = env.few_rows()
        out = policy(TensorDict({keys.observation: observation}, [len(observation)]))
    if not isinstance(out, TensorDictBase):
        got = type(out).__name__
    elif (acted := out.get(keys.action, None)) is None:
        got = f"only {getattr(policy, 'out_keys', list(out.keys(True)))}"
    elif acted.shape != action.shape:
        got = f"shape {list(acted.shape)} for {len(action)} rows"
    else:
        return
    raise ValueError(
        f"the policy must write {keys.action!r} {list(action.shape)}, the action that the world "
        f"model reads, to a TensorDict; it writes {got}"
    )
