from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from rambo_trl.experiment.evaluation import evaluate_policy, rollout_episodes
from rambo_trl.experiment.policy import Policy, load_into_actor, load_policy, save_policy
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules.actor_critic import make_actor

OBSERVATION_SIZE = 11
SPEC = Bounded(low=torch.tensor([-1.0, -0.5, 0.0]), high=torch.tensor([1.0, 2.0, 0.1]))


def make_arguments() -> dict:
    return {
        "actor": make_actor(OBSERVATION_SIZE, SPEC, hidden_sizes=(16, 8)),
        "observation_mean": torch.linspace(-2, 2, OBSERVATION_SIZE),
        "observation_std": torch.linspace(0.1, 3, OBSERVATION_SIZE),
        "action_spec": SPEC,
        "env_id": "Hopper-v5",
    }


@pytest.fixture
def saved(tmp_path) -> tuple[Path, dict]:
    arguments, path = make_arguments(), tmp_path / "policy.safetensors"
    state = torch.get_rng_state()
    save_policy(path, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    assert arguments["actor"].training
    return path, arguments


def rewrite(path: Path, header: dict, tensors: dict) -> None:
    """Change a good file's header or tensors."""
    kept, old = read_safetensors(path, "rambo_trl_policy", "policy file")[::-1]
    write_safetensors(path, kept | tensors, "rambo_trl_policy", old | header)


class TestRoundTrip:
    def test_same_actions_as_the_actor_on_normalised_observations(self, saved):
        path, arguments = saved
        raw = torch.randn(50, OBSERVATION_SIZE) * 3
        normalised = (raw - arguments["observation_mean"]) / arguments["observation_std"]
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            td = arguments["actor"](TensorDict({"observation": normalised}, [50]))
        torch.testing.assert_close(load_policy(path)(raw), td["action"], rtol=0, atol=0)

    def test_everything_is_kept_in_a_file_that_its_run_folder_stands_for(self, saved):
        path, arguments = saved
        before = torch.get_rng_state()
        policy = load_policy(path.parent)
        assert torch.equal(torch.get_rng_state(), before)
        assert policy.env_id == "Hopper-v5"
        for name in ("observation_mean", "observation_std"):
            assert torch.equal(getattr(policy, name), arguments[name])
        for key, value in arguments["actor"].state_dict().items():
            assert torch.equal(policy.actor.state_dict()[key], value)
        assert not any(p.requires_grad for p in policy.actor.parameters())

    def test_actions_reach_but_do_not_leave_the_bounds(self, saved):
        action = load_policy(saved[0])(1e6 * torch.randn(200, OBSERVATION_SIZE))
        assert (action >= SPEC.space.low).all() and (action <= SPEC.space.high).all()
        torch.testing.assert_close(action.amax(0), SPEC.space.high, rtol=1e-4, atol=1e-4)

    def test_the_mode_is_taken_whatever_the_caller_explores(self, saved):
        policy = load_policy(saved[0])
        observation = torch.randn(OBSERVATION_SIZE)
        with set_exploration_type(ExplorationType.RANDOM):
            assert torch.equal(policy(observation), policy(observation))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_in_float32_whatever_the_default(self, saved, dtype):
        raw = torch.randn(5, OBSERVATION_SIZE)
        want = load_policy(saved[0])(raw)
        torch.set_default_dtype(dtype)
        try:
            policy = load_policy(saved[0])
            got = policy(raw)
        finally:
            torch.set_default_dtype(torch.float32)
        assert {p.dtype for p in policy.actor.parameters()} == {torch.float32}
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_saving_replaces_and_leaves_nothing_beside(self, saved):
        path, arguments = saved
        save_policy(path, **arguments | {"env_id": "Walker2d-v5", "notes": {"score": 1.5}})
        assert load_policy(path).env_id == "Walker2d-v5"
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @pytest.mark.gpu
    def test_on_a_gpu(self, saved):
        raw = torch.randn(5, OBSERVATION_SIZE)
        action = load_policy(saved[0], device="cuda")(raw)
        assert action.device.type == "cuda"
        torch.testing.assert_close(action.cpu(), load_policy(saved[0])(raw), rtol=1e-4, atol=1e-5)


class TestIntoAnActor:
    def load(self, path: Path, actor=None, **changes) -> None:
        with torch.random.fork_rng():
            fitting = make_arguments() | changes
        space = fitting["action_spec"].space
        data = SimpleNamespace(**fitting, action_low=space.low, action_high=space.high)
        load_into_actor(path, actor or fitting["actor"], data)

    def test_it_has_the_policys_weights_and_can_be_trained(self, saved):
        path, arguments = saved
        actor, state = make_arguments()["actor"], torch.get_rng_state()
        mean = arguments["observation_mean"] + 1e-6  # sums in another order
        self.load(path, actor, observation_mean=mean)
        assert torch.equal(torch.get_rng_state(), state)
        assert actor is not arguments["actor"]
        for key, value in arguments["actor"].state_dict().items():
            assert torch.equal(actor.state_dict()[key], value)
        assert all(p.requires_grad for p in actor.parameters())

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"observation_mean": torch.linspace(-2, 2.2, 11)}, "was trained on other data"),
            ({"observation_std": torch.linspace(0.1, 3.1, 11)}, "was trained on other data"),
            ({"observation_mean": torch.zeros(9), "observation_std": torch.ones(9)},
             "was trained on other data"),
            ({"action_spec": Bounded(-1, 1, shape=(3,))}, "has actions with low"),
            ({"actor": make_actor(11, SPEC, hidden_sizes=(16, 16))},
             r"has hidden layers of \[16, 8\], this actor has \[16, 16\]"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused(self, saved, changes, match):
        with pytest.raises(ValueError, match=match) as error:
            self.load(saved[0], **changes)
        assert str(saved[0]) in str(error.value)


class TestCall:
    @pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_arrays(self, saved, lead, dtype):
        observation = np.ones((*lead, OBSERVATION_SIZE), dtype=dtype)
        action = load_policy(saved[0])(observation)
        assert (observation == 1).all()
        assert isinstance(action, np.ndarray)
        assert action.dtype == np.float32 and action.shape == (*lead, 3)
        if action.size:
            np.testing.assert_array_equal(load_policy(saved[0])(observation.tolist()), action)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_readings_that_are_not_finite_are_refused(self, saved, value):
        observation = np.zeros((2, OBSERVATION_SIZE))
        observation[1, 3] = value
        with pytest.raises(ValueError, match=r"not finite, in entries \[3\] of the observation"):
            load_policy(saved[0])(observation)

    def test_tensors(self, saved):
        action = load_policy(saved[0])(torch.zeros(4, OBSERVATION_SIZE, dtype=torch.float64))
        assert isinstance(action, torch.Tensor)
        assert action.dtype == torch.float32 and action.shape == (4, 3)

    @pytest.mark.parametrize("shape", [(), (10,), (11, 1)])
    def test_wrong_size(self, saved, shape):
        with pytest.raises(ValueError, match=r"observations of shape \[\.\.\., 11\], got \["):
            load_policy(saved[0])(np.zeros(shape).tolist())

    def test_same_returns_as_the_evaluation_during_training(self, saved):
        path, arguments = saved
        policy = load_policy(path)
        assert isinstance(policy, Policy)
        ours = rollout_episodes(policy, policy.env_id, num_episodes=3, seed=5)
        theirs = evaluate_policy(
            arguments["actor"],
            "Hopper-v5",
            num_episodes=3,
            seed=5,
            observation_mean=arguments["observation_mean"],
            observation_std=arguments["observation_std"],
        )
        np.testing.assert_array_equal(ours.returns, theirs.returns)


class TestBadFiles:
    def assert_refused(self, path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match) as error:
            load_policy(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)

    def test_missing(self, tmp_path):
        for path in (tmp_path / "policy.safetensors", tmp_path):
            with pytest.raises(FileNotFoundError, match=r"no policy file at .*policy.safetensors"):
                load_policy(path)

    @pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
    def test_truncated(self, saved, kept):
        data = saved[0].read_bytes()
        saved[0].write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
        self.assert_refused(saved[0], "is not a policy file, or only a part of one")

    @pytest.mark.parametrize("metadata", [None, {"rambo_trl_policy": "{"},
                                          {"rambo_trl_policy": "[1]"}])  # fmt: skip
    def test_another_safetensors_file(self, saved, metadata):
        save_file(load_file(saved[0]), saved[0], metadata=metadata)
        self.assert_refused(saved[0], "not one written by save_policy")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"format_version": 2}, "format_version is 2"),
            ({"hidden_sizes": [16, 0]}, "not a usable policy file"),
            ({"hidden_sizes": [16]}, "size mismatch"),
            ({"action_low": [-1.0, float("-inf"), 0.0]}, "both must be finite"),
            ({"action_high": [1.0, 2.0]}, "must match"),
            ({"action_low": [1.0, 2.0, 3.0]}, "action_low must be below action_high"),
            ({"env_spec": "{"}, "not a usable policy file"),
            ({"observation_mean": torch.zeros(5)}, "must match"),
            ({"observation_std": torch.zeros(11)}, "positive"),
            ({"observation_mean": torch.full((11,), torch.nan)}, "finite"),
            ({"layers.1.bias": torch.zeros(9)}, "size mismatch for bias"),
        ],
    )
    def test_a_header_or_tensors_that_do_not_fit(self, saved, changes, match):
        tensors = {k: v for k, v in changes.items() if isinstance(v, torch.Tensor)}
        rewrite(saved[0], {k: v for k, v in changes.items() if k not in tensors}, tensors)
        self.assert_refused(saved[0], match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"observation_mean": torch.zeros(4), "observation_std": torch.ones(4)}, "size mismatch"),
        ({"observation_std": torch.zeros(OBSERVATION_SIZE)}, "positive"),
    ],
)
def test_save_refuses_what_could_not_be_loaded(tmp_path, change, match):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(ValueError, match=f"cannot save the policy.*{match}"):
        save_policy(path, **make_arguments() | change)
    assert not path.exists()


def with_activation(activation: nn.Module) -> ProbabilisticActor:
    actor = make_actor(OBSERVATION_SIZE, SPEC, hidden_sizes=(16, 8))
    net = actor.module[0].module[0]
    net[1] = net[3] = activation
    return actor


def with_noise() -> ProbabilisticActor:
    actor = make_actor(OBSERVATION_SIZE, SPEC, hidden_sizes=(16, 8))
    actor.module[0].module[0].register_forward_hook(lambda module, inputs, x: x + torch.rand(()))
    return actor


class TestAnotherPolicyThanTheActor:
    @pytest.mark.parametrize(
        "actor",
        [
            with_activation(nn.Tanh()),
            with_activation(nn.LeakyReLU()),
            make_actor(OBSERVATION_SIZE, Bounded(-2, 2, shape=(3,)), hidden_sizes=(16, 8)),
            with_noise(),
        ],
        ids=["Tanh", "LeakyReLU", "bounds", "noise"],
    )
    def test_it_is_refused_and_nothing_written(self, tmp_path, actor):
        arguments = make_arguments()
        path, state = tmp_path / "policy.safetensors", torch.get_rng_state()
        match = "cannot save the policy: .* would differ by up to .*: it is not one of make_actor's"
        with pytest.raises(ValueError, match=match):
            save_policy(path, **arguments | {"actor": actor})
        assert torch.equal(torch.get_rng_state(), state)
        assert not path.exists()

    def test_an_actor_in_float64_is_rounded(self, tmp_path):
        spec = Bounded(SPEC.space.low, SPEC.space.high, dtype=torch.float64)
        actor = make_actor(OBSERVATION_SIZE, spec, hidden_sizes=(16, 8), dtype=torch.float64)
        path = tmp_path / "policy.safetensors"
        save_policy(path, **make_arguments() | {"actor": actor, "action_spec": spec})
        assert {p.dtype for p in actor.parameters()} == {torch.float64}
        assert {p.dtype for p in load_policy(path).actor.parameters()} == {torch.float32}

    def test_a_diverged_one_is_written_as_it_is(self, tmp_path):
        arguments = make_arguments()
        with torch.no_grad():
            next(arguments["actor"].parameters()).fill_(torch.nan)
        path = tmp_path / "policy.safetensors"
        save_policy(path, **arguments)
        assert np.isnan(load_policy(path)(np.zeros(OBSERVATION_SIZE))).all()


def test_an_actor_in_minus_one_to_one_acts_in_the_environments_units(tmp_path):
    spec = Bounded(-1, 1, shape=(2,))
    actor = make_actor(3, spec, hidden_sizes=(8,))
    low, high = torch.tensor([0.0, -0.7]), torch.tensor([50_000.0, 1.2])
    mean = torch.tensor([1.7e9, 0.0, 5.0], dtype=torch.float64)
    save_policy(
        tmp_path / "policy.safetensors", actor, observation_mean=mean,
        observation_std=torch.tensor([10.0, 1.0, 2.0], dtype=torch.float64), action_spec=spec,
        env_id="", action_low=low, action_high=high,
    )  # fmt: skip
    policy = load_policy(tmp_path)
    raw = np.array([[1.7e9 + 3.0, 0.5, 4.0], [1.7e9 + 3.5, 0.5, 4.0]])
    action = policy(raw)
    x = torch.tensor([[0.3, 0.5, -0.5], [0.35, 0.5, -0.5]])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = actor(TensorDict({"observation": x}, [2]))["action"]
    want = (low + (mode + 1) / 2 * (high - low)).numpy()
    np.testing.assert_allclose(action, want, rtol=1e-5)
    assert not np.array_equal(action[0], action[1])  # half a second is seen


def test_a_dictionary_is_refused_by_its_entries(saved):
    policy = load_policy(saved[0])
    entries = {"observation": np.zeros(5), "desired_goal": np.zeros(2)}
    with pytest.raises(ValueError, match=r"one array of \d+ entries, got .*observation, desired_g"):
        policy(entries)
    with pytest.raises(ValueError, match="observation_layout.flatten"):
        policy(TensorDict(observation=torch.zeros(5)))


def test_a_specification_that_cannot_be_kept_is_told(tmp_path, caplog) -> None:
    spec = gymnasium.spec("Hopper-v5")
    spec = replace(spec, kwargs={"reward": lambda x: x})
    save_policy(tmp_path / "policy.safetensors", **make_arguments(), env_spec=spec)
    assert "the policy's file names Hopper-v5 alone" in caplog.text
    assert load_policy(tmp_path / "policy.safetensors").environment == "Hopper-v5"
