"""k-step imagined rollouts from states of the data (Algorithm 1, line 3): the hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Bounded
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


class ModelRolloutCollector:
    """Iterate over flat TensorDicts of imagined transitions.

    Each item holds the transitions of ``num_starts`` rollouts of ``horizon`` steps: start
    states are drawn from the env's ``starts``, actions sampled from the policy, successors
    from the world model. A row that terminates stops there; only valid transitions are
    returned, all first steps first: shuffle them before you take a part.

    The rows are walked in chunks that fit the cache (all at once on a GPU) without
    synchronisation; ended rows are masked, and dropped once at the end. With ``compile``, all
    steps of a chunk (policy, model, termination) are one graph; the random numbers are the
    same as without, hence the transitions too, up to rounding. On a GPU that graph is captured
    into a CUDA graph.

    Args:
        env: the world model's environment.
        policy: an actor reading the env's observation and writing its action, or None for
            uniformly random actions. It is in evaluation mode while it acts: running statistics
            stay as they are, and nothing is dropped out; what it explores with is its distribution.

    Keyword Args:
        num_starts: rollouts per item (50,000 in the published configuration).
        horizon: steps k per rollout.
        compile: compile the chunk's rollout.
        chunk_size: rows per chunk; by default 2,000 on a CPU and all on a GPU.

    Raises:
        ValueError: if a size is smaller than 1, the actions' bounds are not finite, or the policy
            fails on a few rows or writes no action of the env.
        TypeError: if the env is another, for instance wrapped in a transform, or the policy is no
            TensorDict module.

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
                "transform would be stepped around; use PessimisticModelEnv, or a plain Collector"
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
        action_spec = env.full_action_spec[env.keys.action]
        if not isinstance(action_spec, Bounded):
            raise TypeError(f"the env's action_spec must be Bounded, got {action_spec}")
        size = action_spec.shape[-1]
        low, high = (bound.reshape(-1, size)[0] for bound in action_bounds(action_spec))
        self._action_low, self._action_range = low, high - low
        if policy is not None:
            check_policy(policy, env)
        self._iterations = 0
        self._run: Callable[[Tensor], tuple[Tensor, ...]] | None = None

    def _act(self, observation: Tensor) -> Tensor:
        if self.policy is None:
            low = self._action_low
            noise = torch.rand(
                observation.shape[0], low.shape[0], dtype=low.dtype, device=observation.device
            )
            return low + noise * self._action_range
        rows = TensorDict({self.env.keys.observation: observation}, observation.shape[:1])
        return self.policy(rows).get(self.env.keys.action)

    def _rollout_chunk(self, observation: Tensor) -> tuple[Tensor, ...]:
        steps = []
        alive = torch.ones_like(observation[:, :1], dtype=torch.bool)
        for _ in range(self.horizon):
            action = self._act(observation)
            following, reward, terminated = self.env.transition(observation, action)
            steps.append((observation, action, following, reward, terminated, alive))
            alive = alive & ~terminated
            # an ended row stands still in its last valid state, so that nothing overflows
            observation = torch.where(alive, following, observation)
        return tuple(torch.stack(x) for x in zip(*steps, strict=True))

    def _chunk(self, observation: Tensor) -> tuple[Tensor, ...]:
        if self._run is None:
            name = "the imagined rollouts"
            run = compile_like_eager(self._rollout_chunk, self.compile, name=name)
            # a replay overwrites the last one's results: only where there is a single chunk
            whole = self.chunk_size >= self.num_starts
            self._run = capture_on_gpu(run, self.compile and whole, name=name)
        return self._run(observation)

    @torch.no_grad()
    def collect(self) -> TensorDictBase:
        """Roll out once from ``num_starts`` fresh starts; flat TensorDict [valid transitions]."""
        keys, observation = self.env.keys, self.env.sample_starts(self.num_starts)
        chunks = []
        # set out here, so that the compiled chunk meets one mode only
        with evaluating(self.env, self.policy), set_exploration_type(ExplorationType.RANDOM):
            for start in observation.split(self.chunk_size):
                chunks.append(self._chunk(start))
        parts = [torch.cat(x, dim=1) for x in zip(*chunks, strict=True)]
        observation, action, following, reward, terminated, alive = parts
        truncated = torch.zeros_like(terminated)
        truncated[-1] = ~terminated[-1]
        flat = TensorDict(
            {
                keys.observation: observation,
                keys.action: action,
                "next": {
                    keys.observation: following,
                    keys.reward: reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "done": terminated | truncated,
                },
            },
            batch_size=terminated.shape[:2],
        )
        self._iterations += 1
        # found once for all entries: indexing with a mask looks for its rows anew for each
        valid = alive.view(-1).nonzero().squeeze(-1)
        return flat.reshape(-1).apply(
            lambda entry: entry.index_select(0, valid), batch_size=valid.shape
        )

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            yield self.collect()

    def state_dict(self) -> dict[str, Any]:
        """How many items were collected; the random state is torch's own."""
        return {"iterations": self._iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._iterations = int(state_dict["iterations"])

    def shutdown(self, *args: object, **kwargs: object) -> None:
        """Release the compiled graph; no processes are held."""
        self._run = None


def check_policy(policy: object, env: EnsembleModelEnv) -> None:
    """Refuse a policy that does not act in an env.

    Raises:
        TypeError: if it is no TensorDict module, nor a function of TensorDicts.
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
        acted = policy(TensorDict({keys.observation: observation}, [len(observation)]))
    found = acted.get(keys.action, None) if isinstance(acted, TensorDictBase) else None
    if found is None or found.shape != action.shape:
        if found is not None:
            got = f"of shape {list(found.shape)} for {len(action)} rows"
        elif isinstance(acted, TensorDictBase):
            got = f"nothing of that name but {getattr(policy, 'out_keys', list(acted.keys(True)))}"
        else:
            got = f"no TensorDict but {type(acted).__name__}"
        raise ValueError(
            f"the policy must write {keys.action!r} {list(action.shape)}, the action that "
            f"the world model reads; it writes {got}"
        )
