"""ReverseRolloutCollector: chains into the data, ends, flags, a reverse model that is learnt."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.collectors import ReverseRolloutCollector, reverse_transitions
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel, make_actor
from rambo_trl.training.pretraining import clone_behaviour, fit_world_model

SPEC = Bounded(-1, 1, shape=(1,))


class CountingDown(EnsembleWorldModel):
    """The exact reverse of "the first entry counts up by one"; the second, a name, stays."""

    def sample(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        before = observation.clone()
        before[:, 0] -= 1
        return before, 10 * observation[:, :1]


def collector(horizon: int, over_at: float = 1e9, **kwargs) -> ReverseRolloutCollector:
    names = torch.arange(12.0)
    env = EnsembleModelEnv(
        CountingDown(2, 1, hidden_sizes=(2,)),
        action_spec=SPEC,
        starts=TensorDict(observation=torch.zeros(1, 2), batch_size=[1]),
        termination=lambda o, a, n: n[..., 0] >= over_at,
    )
    env.sample_starts = lambda num: torch.stack([names % 4, names], -1)
    return ReverseRolloutCollector(env, num_starts=12, horizon=horizon, chunk_size=5, **kwargs)


def test_reversal_exchanges_the_states_only() -> None:
    data = TensorDict(
        observation=torch.randn(5, 2),
        action=torch.randn(5, 1),
        next=TensorDict(
            observation=torch.randn(5, 2), reward=torch.randn(5, 1), done=torch.zeros(5, 1)
        ),
        batch_size=[5],
    )
    back = reverse_transitions(data)
    assert (back["observation"] == data["next", "observation"]).all()
    assert (back["next", "observation"] == data["observation"]).all()
    assert (back["next", "reward"] == data["next", "reward"]).all()
    assert set(back["next"].keys()) == {"observation", "reward"}
    twice = reverse_transitions(back)
    assert (twice == data.select(*twice.keys(True, True))).all()


def test_chains_run_forwards_into_their_starts() -> None:
    td = collector(3).collect()
    assert td.shape == (36,)
    assert (td["next", "observation"][:, 0] == td["observation"][:, 0] + 1).all()
    # the reward belongs to the state that the transition leads into
    assert (td["next", "reward"] == 10 * td["next", "observation"][:, :1]).all()
    got = sorted(map(tuple, td["next", "observation"].tolist()))
    assert got == sorted((n % 4 - step, float(n)) for n in range(12) for step in range(3))
    assert not (td["next", "done"] | td["next", "truncated"]).any()


def test_ends_are_those_of_the_forward_direction() -> None:
    td = collector(3, over_at=3).collect()
    # rows that lead into 3 end there; all of them are the first of their chain
    assert (td["next", "terminated"].squeeze(-1) == (td["next", "observation"][:, 0] == 3)).all()
    assert td["next", "terminated"].sum() == 3
    assert (td["next", "done"] == td["next", "terminated"]).all()
    assert td.shape == (36,)


def test_nothing_leads_out_of_a_terminal_state() -> None:
    # from 3 the predecessor is 2, where it would have been over already
    td = collector(3, over_at=2).collect()
    assert (td["observation"][:, 0] < 2).all()
    assert set(td["next", "observation"][:, 1].tolist()) == {n for n in range(12) if n % 4 < 3}


def test_policy_acts_on_the_state_that_is_led_into() -> None:
    def policy(td: TensorDict) -> TensorDict:
        return td.set("action", td["observation"][:, :1] / 10)

    td = collector(3, policy=policy).collect()
    torch.testing.assert_close(td["action"], td["next", "observation"][:, :1] / 10)


def test_a_learnt_reverse_model_and_policy_undo_the_dynamics() -> None:
    """s' = s + a, r = s'_0, and a = 0.5 s in the data: then s = s' / 1.5 and a = s' / 3."""
    observation = 2 * torch.rand(2000, 1) - 1
    action = (0.5 * observation + 0.02 * torch.randn(2000, 1)).clamp(-0.99, 0.99)
    following = observation + action
    data = TensorDict(
        observation=observation,
        action=action,
        next=TensorDict(observation=following, reward=following.clone(), batch_size=[2000]),
        batch_size=[2000],
    )
    back = reverse_transitions(data)
    model = EnsembleWorldModel(1, 1, num_members=2, num_elites=2, hidden_sizes=(32, 32))
    fit_world_model(model, back, lr=5e-3, max_passes=8, batch_size=64)
    actor = make_actor(1, SPEC, hidden_sizes=(32,))
    clone_behaviour(actor, back, SPEC, passes=5, lr=5e-3, batch_size=64)
    env = EnsembleModelEnv(model, action_spec=SPEC, starts=back)
    td = ReverseRolloutCollector(env, actor, num_starts=500, horizon=2).collect()
    assert td.shape == (1000,)
    # the imagined transitions obey the forward dynamics that the models never saw
    error = td["observation"] + td["action"] - td["next", "observation"]
    assert error.abs().mean() < 0.05
    assert (td["next", "reward"] - td["next", "observation"]).abs().mean() < 0.05
    assert (td["action"] - td["next", "observation"] / 3).abs().mean() < 0.06


@pytest.mark.slow
@pytest.mark.usefixtures("graphs_only")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        results.append(collector(3, over_at=2, compile=compiled).collect())
    for key in results[0].keys(True, True):
        torch.testing.assert_close(results[1][key], results[0][key])
