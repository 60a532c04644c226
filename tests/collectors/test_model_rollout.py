"""ModelRolloutCollector: which transitions, in which chain, with which flags."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel, make_actor

SPEC = Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]))


def make_env(**kwargs) -> EnsembleModelEnv:
    model = EnsembleWorldModel(3, 2, num_elites=3, hidden_sizes=(8, 8))
    model.elites.copy_(torch.tensor([6, 1, 3]))
    kwargs = {
        "action_spec": SPEC,
        "starts": TensorDict({"observation": torch.randn(200, 3)}, [200]),
        "termination": lambda o, a, n: n[..., 0] > 0.8,
    } | kwargs
    return EnsembleModelEnv(model, **kwargs)


class CountingModel(EnsembleWorldModel):
    """Deterministic: the first entry counts up by one; the second, a name, stays."""

    def sample(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        following = observation.clone()
        following[:, 0] += 1
        return following, 10 * following[:, :1]


def collect_by_name(num_starts: int, horizon: int, chunk_size: int) -> tuple[TensorDict, list[int]]:
    """Every row has a name n of its own and ends when its count reaches n + 1."""
    names = torch.arange(float(num_starts))
    env = EnsembleModelEnv(
        CountingModel(2, 1, hidden_sizes=(2,)),
        action_spec=Bounded(-1, 1, shape=(1,)),
        starts=TensorDict({"observation": torch.zeros(1, 2)}, [1]),
        termination=lambda o, a, n: n[..., 0] >= n[..., 1] + 1,
    )
    env.sample_starts = lambda num: torch.stack([torch.zeros(num), names], -1)
    collector = ModelRolloutCollector(
        env, num_starts=num_starts, horizon=horizon, chunk_size=chunk_size
    )
    return collector.collect(), (names + 1).int().tolist()


@pytest.mark.parametrize(("num_starts", "chunk_size"), [(30, 30), (30, 7), (5, 2), (1, 1)])
@pytest.mark.parametrize("horizon", [1, 4, 9, 22, 23, 25])
def test_exactly_the_valid_transitions(num_starts: int, chunk_size: int, horizon: int) -> None:
    td, lengths = collect_by_name(num_starts, horizon, chunk_size)
    want = Counter(
        (float(name), float(step), step + 1.0, step + 1 == length, step + 1 == horizon != length)
        for name, length in enumerate(lengths)
        for step in range(min(length, horizon))
    )
    got = Counter(
        zip(
            td["observation"][:, 1].tolist(),
            td["observation"][:, 0].tolist(),
            td["next", "observation"][:, 0].tolist(),
            td["next", "terminated"].squeeze(-1).tolist(),
            td["next", "truncated"].squeeze(-1).tolist(),
            strict=True,
        )
    )
    assert got == want
    assert td.shape == (sum(min(length, horizon) for length in lengths),)
    torch.testing.assert_close(td["next", "reward"], 10 * td["next", "observation"][:, :1])
    torch.testing.assert_close(td["observation"][:, 1], td["next", "observation"][:, 1])
    torch.testing.assert_close(
        td["next", "done"], td["next", "terminated"] | td["next", "truncated"]
    )


def test_rows_go_on_from_their_own_successors() -> None:
    env = make_env()
    td = ModelRolloutCollector(
        env, make_actor(3, SPEC, hidden_sizes=(8,)), num_starts=40, horizon=4, chunk_size=16
    ).collect()
    starts = {tuple(x) for x in env.starts["observation"].tolist()}
    following = {
        tuple(x)
        for x, ended in zip(
            td["next", "observation"].tolist(), td["next", "done"].squeeze(-1), strict=True
        )
        if not ended
    }
    observed = [tuple(x) for x in td["observation"].tolist()]
    assert sum(x in starts for x in observed) == 40
    assert sorted(x for x in observed if x not in starts) == sorted(following)
    assert td["next", "terminated"].any()
    torch.testing.assert_close(
        td["next", "terminated"], td["next", "observation"][:, :1] > 0.8, rtol=0, atol=0
    )
    assert not (td["next", "terminated"] & td["next", "truncated"]).any()


def test_random_actions_are_uniform_within_their_bounds() -> None:
    td = ModelRolloutCollector(make_env(), num_starts=2000, horizon=3).collect()
    action = td["action"].double().numpy()
    assert stats.kstest(action[:, 0], "uniform", args=(-1, 2)).pvalue > 1e-4
    assert stats.kstest(action[:, 1], "uniform", args=(0, 3)).pvalue > 1e-4
    assert abs(stats.pearsonr(action[:, 0], action[:, 1])[0]) < 0.06


def test_bounds_must_be_finite() -> None:
    bounds = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, float("inf")])
    with pytest.raises(ValueError, match=r"finite bounds are required.*to \[1.0, inf\]"):
        ModelRolloutCollector(make_env(action_spec=Bounded(*bounds)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_the_rest", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_policy", [True, False])
def test_items_have_the_models_dtype(
    dtype: torch.dtype, of_the_rest: torch.dtype, with_policy: bool
) -> None:
    spec = Bounded(SPEC.space.low, SPEC.space.high, dtype=of_the_rest)
    env = EnsembleModelEnv(
        EnsembleWorldModel(3, 2, hidden_sizes=(8,)).to(dtype),
        action_spec=spec,
        starts=TensorDict({"observation": torch.randn(20, 3, dtype=of_the_rest)}, [20]),
    )
    policy = make_actor(3, spec, hidden_sizes=(8,), dtype=dtype) if with_policy else None
    collector = ModelRolloutCollector(env, policy, num_starts=6, horizon=2)
    torch.set_default_dtype(of_the_rest)
    try:
        td = collector.collect()
    finally:
        torch.set_default_dtype(torch.float32)
    floats = (td["observation"], td["action"], td["next", "observation"], td["next", "reward"])
    assert {x.dtype for x in floats} == {dtype}


def test_policy_is_sampled_and_used_live() -> None:
    actor = make_actor(3, SPEC, hidden_sizes=(8,))
    env = make_env(starts=TensorDict({"observation": torch.zeros(1, 3)}, [1]))
    collector = ModelRolloutCollector(env, actor, num_starts=500, horizon=1)
    action = collector.collect()["action"]
    assert action[:, 0].std() > 0.2, "a sample, not the mode"
    assert not action.requires_grad
    with torch.no_grad():
        actor[0].module[0][-1].bias[:2] = 20.0
    assert (collector.collect()["action"] > torch.tensor([0.9, 2.9])).all()


def test_a_deterministic_policy_will_do() -> None:
    policy = TensorDictModule(
        lambda observation: observation[:, :2].tanh(), ["observation"], ["action"]
    )
    td = ModelRolloutCollector(make_env(), policy, num_starts=20, horizon=2).collect()
    torch.testing.assert_close(td["action"], td["observation"][:, :2].tanh())


def test_same_seed_same_items_and_fresh_starts_each_time() -> None:
    env = make_env(termination=None)
    collector = ModelRolloutCollector(env, num_starts=20, horizon=2, chunk_size=7)
    items = iter(collector)
    torch.manual_seed(5)
    first, second = next(items), next(items)
    torch.manual_seed(5)
    again = next(items)
    assert (first == again).all()
    assert not torch.allclose(first["observation"][:20], second["observation"][:20])
    assert collector.state_dict() == {"iterations": 3}
    other = ModelRolloutCollector(env, num_starts=20)
    other.load_state_dict(collector.state_dict())
    assert other.state_dict() == {"iterations": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("with_policy", "matmul_dtype", "horizon"),
    [(True, None, 3), (False, torch.bfloat16, 3), (True, None, 22)],
)
def test_compiled_equals_eager(
    with_policy: bool, matmul_dtype: torch.dtype | None, horizon: int
) -> None:
    # neither the rows by the chunk, nor a chunk by the elites, divide evenly
    env = make_env()
    env.world_model.matmul_dtype = matmul_dtype
    # bfloat16 has eight binary digits
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if matmul_dtype is None else {"rtol": 0, "atol": 2e-2}
    actor = make_actor(3, SPEC, hidden_sizes=(8,)) if with_policy else None
    items = []
    for compiled in (False, True):
        collector = ModelRolloutCollector(
            env, actor, num_starts=37, horizon=horizon, chunk_size=16, compile=compiled
        )
        torch.manual_seed(5)
        items.append([collector.collect(), collector.collect()])
        collector.shutdown()
    for eager, compiled in zip(*items, strict=True):
        assert eager.shape == compiled.shape
        for key in eager.keys(True, True):
            torch.testing.assert_close(compiled[key], eager[key], **tolerance)
        # where nothing is rounded to the other side: the exact products' median is 5e-5 off
        off = compiled["next", "observation"] - eager["next", "observation"]
        assert off.abs().median() < 1e-5


@pytest.mark.parametrize("name", ["num_starts", "horizon", "chunk_size"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        ModelRolloutCollector(make_env(), **{name: 0})
