"""EnsembleModelEnv: TorchRL's contract, starts, seeds, ends."""

from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import StepCounter, TransformedEnv, check_env_specs

from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel

SPEC = Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]))


def make_env(**kwargs) -> EnsembleModelEnv:
    kwargs = {
        "action_spec": SPEC,
        "starts": TensorDict({"observation": torch.randn(50, 3)}, [50]),
    } | kwargs
    return EnsembleModelEnv(EnsembleWorldModel(3, 2, hidden_sizes=(8,)), **kwargs)


class CountingModel(EnsembleWorldModel):
    """Deterministic: the first entry counts up by one, the others stay; reward is the count."""

    def sample(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        following = observation.clone()
        following[:, 0] += 1
        return following, following[:, :1].clone()


def counting_env(batch_size: int, **kwargs) -> EnsembleModelEnv:
    """Starts at 0; the second entry says at which count the row ends."""
    ends = torch.arange(2.0, 2.0 + batch_size)
    starts = TensorDict(
        {"observation": torch.stack([torch.zeros(batch_size), ends, torch.zeros(batch_size)], -1)},
        [batch_size],
    )
    return EnsembleModelEnv(
        CountingModel(3, 2, hidden_sizes=(2,)),
        action_spec=SPEC,
        starts=starts,
        termination=lambda o, a, n: n[..., 0] >= n[..., 1],
        batch_size=[batch_size],
        **kwargs,
    )


@pytest.mark.parametrize("batch_size", [(), (4,), (2, 3)])
def test_specs(batch_size: tuple[int, ...]) -> None:
    env = make_env(batch_size=batch_size, termination=lambda o, a, n: n[..., 0] > 0.5)
    check_env_specs(env)
    assert env.action_spec.shape == (*batch_size, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_the_rest", [torch.float32, torch.float64])
def test_everything_has_the_models_dtype(dtype: torch.dtype, of_the_rest: torch.dtype) -> None:
    env = EnsembleModelEnv(
        EnsembleWorldModel(3, 2, hidden_sizes=(8,)).to(dtype),
        action_spec=Bounded(SPEC.space.low, SPEC.space.high, dtype=of_the_rest),
        starts=TensorDict({"observation": torch.randn(50, 3, dtype=of_the_rest)}, [50]),
        batch_size=[4],
    )
    check_env_specs(env)
    td = env.rollout(2)
    floats = (td["observation"], td["action"], td["next", "observation"], td["next", "reward"])
    assert {x.dtype for x in floats} == {dtype}


def test_unbatched_env_steps_any_batch() -> None:
    env = make_env(termination=lambda o, a, n: n[..., 0] > 0)
    for shape in ((), (5,), (2, 5)):
        td = TensorDict(
            {"observation": torch.randn(*shape, 3), "action": torch.zeros(*shape, 2)}, shape
        )
        following = env.step(td)["next"]
        assert following["observation"].shape == (*shape, 3)
        assert following["terminated"].shape == (*shape, 1)
        torch.testing.assert_close(following["terminated"], following["observation"][..., :1] > 0)


def test_step_is_the_models_sample_and_leaves_no_gradient() -> None:
    env = make_env()
    observation, action = torch.randn(6, 3), torch.rand(6, 2)
    torch.manual_seed(3)
    want = env.world_model.sample(observation, action)
    torch.manual_seed(3)
    td = env.step(TensorDict({"observation": observation, "action": action}, [6]))["next"]
    torch.testing.assert_close(td["observation"], want[0])
    torch.testing.assert_close(td["reward"], want[1])
    assert not td["observation"].requires_grad


def test_world_model_is_used_live() -> None:
    env = make_env()
    with torch.no_grad():
        for parameter in env.world_model.parameters():
            parameter.zero_()
        env.world_model.biases[-1][:, 0, 3] = 123.0
        env.world_model.max_log_var.fill_(-30.0)
        env.world_model.min_log_var.fill_(-40.0)
    assert env.rollout(1)["next", "reward"].item() == pytest.approx(123.0, abs=1e-2)


def test_ended_rows_restart_from_the_starts_and_the_others_go_on() -> None:
    # TorchRL resets only the rows that are done; a row's count must not be touched by another's
    env = counting_env(3)
    td = env.rollout(12, break_when_any_done=False)
    assert "truncated" not in set(td["next"].keys())
    count, end = td["observation"][..., 0], td["observation"][..., 1]
    restarted = td["next", "done"][:, :-1, 0]
    assert restarted.any(1).all(), "each row ends at least once"
    assert (restarted.any(0) & ~restarted.all(0)).any(), "not all at once"
    assert (count[:, 1:][restarted] == 0).all()
    torch.testing.assert_close(
        td["observation"][:, 1:][~restarted], td["next", "observation"][:, :-1][~restarted]
    )
    torch.testing.assert_close(td["next", "done"][..., 0], count + 1 >= end)


def test_a_plain_collector_drives_it() -> None:
    env = TransformedEnv(counting_env(3), StepCounter(max_steps=3))
    collector = Collector(env, None, frames_per_batch=36, total_frames=72)
    batches = list(collector)
    assert [b.shape for b in batches] == [(3, 12)] * 2
    td = torch.cat(batches, 1)
    done, terminated, truncated = (
        td["next", k][..., 0] for k in ("done", "terminated", "truncated")
    )
    count, end = td["next", "observation"][..., 0], td["next", "observation"][..., 1]
    torch.testing.assert_close(terminated, count >= end)
    torch.testing.assert_close(truncated, td["next", "step_count"][..., 0] >= 3)
    torch.testing.assert_close(done, terminated | truncated)
    again = td["observation"][:, 1:][done[:, :-1]]
    assert (again[:, 0] == 0).all()
    torch.testing.assert_close(
        td["observation"][:, 1:][~done[:, :-1]], td["next", "observation"][:, :-1][~done[:, :-1]]
    )
    collector.shutdown()


def test_seed_makes_rollouts_repeat_without_a_warning() -> None:
    env = make_env(batch_size=[4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.set_seed(7)
        first = env.rollout(5)
        env.set_seed(7)
        second = env.rollout(5)
        env.set_seed(8)
        third = env.rollout(5)
    assert (first == second).all()
    assert not torch.allclose(first["observation"], third["observation"])


def make_buffer(observation: Tensor) -> TensorDictReplayBuffer:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(observation)))
    rows = {"observation": observation, "action": torch.zeros(len(observation), 2)}
    buffer.extend(TensorDict(rows, [len(observation)]))
    return buffer


@pytest.mark.parametrize("source", ["tensordict", "buffer"])
def test_starts_are_drawn_uniformly_from_the_source(source: str) -> None:
    observation = torch.arange(5.0)[:, None].expand(5, 3).clone()
    starts = (
        make_buffer(observation)
        if source == "buffer"
        else TensorDict({"observation": observation}, [5])
    )
    env = make_env(starts=starts, batch_size=[4])
    drawn = env.sample_starts(5000)
    assert drawn.shape == (5000, 3)
    assert not torch.equal(env.sample_starts(20), env.sample_starts(20))
    counts = drawn[:, 0].long().bincount()
    assert counts.shape == (5,)
    # six standard deviations
    assert (counts - 1000).abs().max() < 6 * (5000 * 0.2 * 0.8) ** 0.5
    reset = env.reset()
    assert reset["observation"].shape == (4, 3)
    assert not reset["done"].any()
    check_env_specs(env)


def test_action_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="action_spec has 1 entries"):
        make_env(action_spec=Bounded(-1, 1, shape=(1,)))


def test_observations_of_another_size_are_refused() -> None:
    four = torch.ones(4)
    for name, given in {
        "starts' observation": {"starts": TensorDict({"observation": torch.randn(50, 4)}, [50])},
        "observation_mean": {"observation_mean": four, "observation_std": torch.ones(3)},
        "observation_std": {"observation_mean": torch.ones(3), "observation_std": four},
    }.items():
        with pytest.raises(
            ValueError, match=f"{name} is of shape .*4.*observations have 3 entries"
        ):
            make_env(**given)


@pytest.mark.parametrize("source", ["TensorDict", "buffer"])
def test_a_rule_given_normalised_observations_is_warned_of(source: str) -> None:
    raw = torch.randn(400, 3) * 0.01 + 5.0
    mean, std = raw.mean(0), raw.std(0)
    following = {"terminated": torch.zeros(400, 1, dtype=torch.bool)}
    rows = TensorDict(
        {
            "observation": (raw - mean) / std,
            "action": SPEC.rand((400,)),
            "next": {"observation": (raw - mean) / std, **following},
        },
        [400],
    )
    starts: TensorDict | TensorDictReplayBuffer = rows
    if source == "buffer":
        starts = TensorDictReplayBuffer(storage=LazyTensorStorage(400))
        make_env(starts=starts, termination=lambda o, a, n: n[..., 0] < 4.0)  # still empty
        starts.extend(rows)

    def make(low: float, **kwargs: Tensor) -> None:
        make_env(starts=starts, termination=lambda o, a, n: n[..., 0] < low, **kwargs)

    with pytest.warns(UserWarning, match="ends 100 % of the non-terminal transitions"):
        make(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(4.0, observation_mean=mean, observation_std=std)
        make(-1.0)  # a rule that is made for them
        if source == "TensorDict":  # without what a rule reads nothing is tried
            make_env(starts=rows.exclude("action"), termination=lambda o, a, n: n[..., 0] < 4.0)
        rows["next", "terminated"].fill_(True)
        if source == "TensorDict":
            make(4.0)  # the data end there too


def test_the_rule_sees_states_and_actions_in_the_environments_units() -> None:
    mean, std = torch.tensor([5.0, -1.0, 0.0]), torch.tensor([2.0, 0.5, 3.0])
    low, high = torch.tensor([0.0, 3.0]), torch.tensor([50_000.0, 4.0])
    seen = []

    def rule(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        seen.extend([observation, next_observation, action])
        return next_observation[..., 0] > 6

    units = {"observation_mean": mean, "observation_std": std}
    env = make_env(termination=rule, action_low=low, action_high=high, **units)
    before, after = torch.randn(2, 2, 3)
    ended = env.is_terminal(before, torch.tensor([[-1.0, 1.0], [0.0, -0.5]]), after)
    torch.testing.assert_close(seen[:2], [before * std + mean, after * std + mean])
    assert seen[2].tolist() == [[0.0, 4.0], [25_000.0, 3.25]]
    assert torch.equal(ended, seen[1][:, :1] > 6)
    for kwargs in ({"action_low": low}, {"observation_mean": low}, {"observation_std": low}):
        with pytest.raises(ValueError, match=f"give both .*{next(iter(kwargs))}"):
            make_env(**kwargs)


def test_every_step_of_trajectories_is_a_start() -> None:
    observation = torch.randn(4, 5, 3)
    env = make_env(starts=TensorDict(observation=observation, batch_size=[4, 5]))
    rows = {tuple(row) for row in observation.reshape(-1, 3).tolist()}
    assert {tuple(row) for row in env.sample_starts(200).tolist()} == rows
    with pytest.raises(ValueError, match=r"starts' observation is of shape \[4, 5, 3\]: the"):
        make_env(starts=TensorDict(observation=observation, batch_size=[4]))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=7)
    buffer.extend(TensorDict(observation=observation, batch_size=[4]))
    starts = make_env(starts=buffer).sample_starts(7)
    assert starts.shape == (7, 3) and {tuple(row) for row in starts.tolist()} <= rows
