"""MOPO's penalty and MOReL's halting on ensembles whose outputs are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs import check_env_specs

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.uncertainty import (
    MOPOPenalty,
    MORELHalting,
    PessimisticModelEnv,
    largest_disagreement,
    largest_std_norm,
)
from rambo_trl.modules import EnsembleWorldModel

SPEC = Bounded(-1, 1, shape=(1,))
PESSIMISMS = {"MOPO": MOPOPenalty(0.5), "MOReL": MORELHalting(2.5, -7.0)}


class KnownModel(EnsembleWorldModel):
    """Three members, two elites (2 and 0).

    Member m predicts s + offset[m] * a with standard deviations std[m] (next observation twice,
    reward); the sampled successor adds one to the first entry and pays the second one.
    """

    offsets = torch.tensor([[0.0, 0.0], [0.0, -4.0], [3.0, 0.0]])
    stds = torch.tensor([[3.0, 4.0, 0.0], [50.0, 0.0, 0.0], [1.0, 2.0, 2.0]])

    def __init__(self) -> None:
        super().__init__(2, 1, num_members=3, num_elites=2, hidden_sizes=(2,))
        self.elites.copy_(torch.tensor([2, 0]))

    def predict(
        self, observation: Tensor, action: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        which = torch.arange(3) if members is None else members
        mean = observation + self.offsets[which][:, None] * action
        reward = 1000.0 * which[:, None, None].expand(-1, len(action), 1)  # must not count
        # the spread grows with the action
        std = self.stds[which][:, None] * action.abs() + 1e-12
        return torch.cat([mean, reward], -1), 2 * std.log()

    def sample(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        following = observation.clone()
        following[:, 0] += 1
        return following, observation[:, 1:].clone()


def third_step(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return next_observation[..., 0] >= 3


def known_starts() -> TensorDict:
    return TensorDict({"observation": torch.tensor([[0.0, 10.0]])}, [1])


def known_env(cls: type[EnsembleModelEnv] = PessimisticModelEnv, **kwargs) -> EnsembleModelEnv:
    kwargs = {"starts": known_starts(), "termination": third_step, "action_spec": SPEC} | kwargs
    return cls(KnownModel(), **kwargs)


OBSERVATION = torch.tensor([[0.0, 10.0], [0.0, 20.0], [5.0, 30.0]])
ACTION = torch.tensor([[1.0], [-0.5], [0.0]])


def test_mopo_by_hand() -> None:
    env = known_env(pessimism=MOPOPenalty(0.5))
    following, reward, terminated = env.transition(OBSERVATION, ACTION)
    # norms of 5 |a|, 3 |a| and 50 |a|: the last is member 1's, which counts though it is no elite
    torch.testing.assert_close(reward, torch.tensor([[10 - 25.0], [20 - 12.5], [30.0]]))
    torch.testing.assert_close(following[:, 0], torch.tensor([1.0, 1.0, 6.0]))
    assert terminated.flatten().tolist() == [False, False, True]


@pytest.mark.parametrize("reward_scale", [1.0, 250.0])
def test_mopo_counts_in_the_units_of_the_data(reward_scale: float) -> None:
    """Whatever the data were divided by, the raw reward falls by lambda times the raw norm."""
    observation_std = np.array([0.02, 30.0])
    env = known_env(
        pessimism=MOPOPenalty(
            5.0, units=torch.tensor([*observation_std, reward_scale], dtype=torch.float64)
        )
    )
    _, reward, _ = env.transition(OBSERVATION, ACTION)
    raw_stds = KnownModel.stds.numpy() * np.append(observation_std, reward_scale)
    raw_norm = np.linalg.norm(raw_stds[:, None] * ACTION.abs().numpy(), axis=2)
    want = reward_scale * OBSERVATION[:, 1].numpy() - 5.0 * np.amax(raw_norm, axis=0)
    np.testing.assert_allclose(reward_scale * reward.flatten().numpy(), want, rtol=1e-5)


def test_morel_by_hand() -> None:
    # members differ by 3 |a|, 4 |a| and, the most, 5 |a|: 5, 2.5 and 0
    env = known_env(pessimism=MORELHalting(2.5, -7.0))
    _, reward, terminated = env.transition(OBSERVATION, ACTION)
    assert reward.flatten().tolist() == [-7.0, 20.0, 30.0]  # 2.5 is not above 2.5
    assert terminated.flatten().tolist() == [True, False, True]
    _, reward, terminated = known_env(pessimism=MORELHalting(2.4, -7.0)).transition(
        OBSERVATION, ACTION
    )
    assert reward.flatten().tolist() == [-7.0, -7.0, 30.0]
    assert terminated.all()


def test_disagreement_against_a_plain_loop() -> None:
    mean = torch.randn(7, 20, 5).double()
    want = [
        max(
            (mean[i, b] - mean[j, b]).norm().item()
            for i, j in itertools.product(range(7), [*range(7)])
        )
        for b in range(20)
    ]
    torch.testing.assert_close(largest_disagreement(mean), torch.tensor(want).double())
    assert (largest_disagreement(mean[:1]) == 0).all()


def test_std_norm_against_a_plain_loop() -> None:
    log_var = torch.randn(5, 20, 3).double()
    want = [
        max(math.sqrt(sum(math.exp(v) for v in log_var[m, b].tolist())) for m in range(5))
        for b in range(20)
    ]
    torch.testing.assert_close(largest_std_norm(log_var), torch.tensor(want).double())


def test_threshold_from_data() -> None:
    action = torch.tensor([[0.1], [-0.2], [0.6]])  # disagreements 0.5, 1 and 3
    data = TensorDict(
        {
            "observation": torch.randn(3, 2),
            "action": action,
            "next": {"reward": torch.tensor([[3.0], [-2.0], [1.0]])},
        },
        [3],
    )
    for chunk_size in (1, 2, 10):
        halting = MORELHalting.from_data(KnownModel(), data, penalty=5.0, chunk_size=chunk_size)
        assert halting.threshold == pytest.approx(3.0, rel=1e-5)
        assert halting.halt_reward == -7.0
    halting = MORELHalting.from_data(KnownModel(), data, num_stds=2.0)
    assert halting.threshold == pytest.approx(1.5 + 2 * math.sqrt(3.5 / 3), rel=1e-5)
    assert halting.halt_reward == -2.0
    with pytest.raises(ValueError, match="penalty"):
        MORELHalting.from_data(KnownModel(), data, penalty=-1.0)


def as_rows(td: TensorDict) -> TensorDict:
    keys = ["observation", "action", ("next", "observation"), ("next", "reward")]
    return td.select(*keys, ("next", "terminated"), ("next", "done")).reshape(-1)


@pytest.mark.parametrize("name", PESSIMISMS)
def test_rollout_and_collector_see_the_same(name: str) -> None:
    """Both agree with the formula on every row that they return."""
    env = known_env(pessimism=PESSIMISMS[name], batch_size=[30])
    rows = {
        "rollout": as_rows(env.rollout(6, break_when_any_done=False)),
        "collector": as_rows(ModelRolloutCollector(env, num_starts=30, horizon=6).collect()),
    }
    for td in rows.values():
        action, reward = td["action"].abs(), td["next", "reward"]
        terminated = td["next", "terminated"]
        ended = td["next", "observation"][:, :1] >= 3
        unknown = 5 * action > 2.5
        if name == "MOPO":
            torch.testing.assert_close(reward, 10 - 0.5 * 50 * action)
            assert (terminated == ended).all()
        else:
            assert 0 < unknown.sum() < len(td)
            assert (reward == torch.where(unknown, -7.0, 10.0)).all()
            assert (terminated == (ended | unknown)).all()
        assert (td["next", "done"] >= terminated).all()


def test_collector_walks_on_only_where_the_model_is_known() -> None:
    env = known_env(pessimism=PESSIMISMS["MOReL"], termination=None)
    td = ModelRolloutCollector(env, num_starts=500, horizon=3).collect()
    step = td["observation"][:, 0]
    for k in range(3):
        known = (~td["next", "terminated"][step == k]).sum().item()
        following = 0 if k == 2 else (step == k + 1).sum().item()
        assert k == 2 or known == following
    assert (step == 0).sum() == 500
    assert (step == 2).sum() < 200


def far_out(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return next_observation[..., 0] > 1.5


def random_env(cls: type[EnsembleModelEnv], model: EnsembleWorldModel, **kwargs):
    starts = TensorDict({"observation": torch.randn(50, 3)}, [50])
    return cls(model, starts=starts, action_spec=SPEC, termination=far_out, **kwargs)


def real_pessimism(name: str) -> MOPOPenalty | MORELHalting:
    # a threshold in the middle of an untrained ensemble's disagreements
    return {"MOPO": MOPOPenalty(1.3), "MOReL": MORELHalting(0.3, -7.0)}[name]


@pytest.mark.parametrize("name", PESSIMISMS)
@pytest.mark.parametrize("batch_size", [(), (2, 3)])
def test_specs(name: str, batch_size: tuple[int, ...]) -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    kwargs = {"pessimism": real_pessimism(name), "batch_size": batch_size}
    check_env_specs(random_env(PessimisticModelEnv, model, **kwargs))


@pytest.mark.parametrize("name", PESSIMISMS)
def test_a_seed_gives_the_next_observations_of_the_plain_env(name: str) -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    envs = [
        random_env(PessimisticModelEnv, model, pessimism=real_pessimism(name)),
        random_env(EnsembleModelEnv, model),
    ]
    rows, steps = (torch.randn(40, 3), torch.rand(40, 1)), []
    for env in envs:
        torch.manual_seed(0)
        steps.append(env.transition(*rows))
    (next_observation, reward, terminated), (as_plain, plain_reward, ended) = steps
    assert (next_observation == as_plain).all() and (reward != plain_reward).any()
    assert (terminated >= ended).all() and (terminated != ended).any() == (name == "MOReL")


def test_no_gradient_and_no_change_of_the_arguments() -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    for pessimism in (MOPOPenalty(1.0), MORELHalting(0.0, -1.0)):
        reward, terminated = torch.ones(6, 1), torch.zeros(6, 1, dtype=torch.bool)
        new = pessimism(model, torch.randn(6, 3), torch.rand(6, 1), reward, terminated)
        assert not new[0].requires_grad
        assert (reward == 1).all()
        assert not terminated.any()
        assert (new[0] < 1).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MOPOPenalty(-1.0), "coefficient"),
        (lambda: MOPOPenalty(math.nan), "coefficient"),
        (lambda: MOPOPenalty(1.0, units=torch.tensor([1.0, 0.0])), "units"),
        (lambda: MORELHalting(-1.0, 0.0), "threshold"),
        (lambda: MORELHalting(math.inf, 0.0), "threshold"),
        (lambda: MORELHalting(1.0, -math.inf), "halt_reward"),
    ],
)
def test_settings_are_checked(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", PESSIMISMS)
def test_compiles_as_one_graph(name: str) -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    env = random_env(PessimisticModelEnv, model, pessimism=real_pessimism(name))
    compiled = torch.compile(env.transition, backend="eager", fullgraph=True)
    observation, action = torch.randn(40, 3), torch.rand(40, 1)
    results = []
    for run in (env.transition, compiled):
        torch.manual_seed(5)
        with torch.no_grad():
            results.append(run(observation, action))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize("name", PESSIMISMS)
def test_compiled_collector_equals_eager(name: str) -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    env = random_env(PessimisticModelEnv, model, pessimism=real_pessimism(name))
    results = []
    for compile in (False, True):
        collector = ModelRolloutCollector(env, num_starts=40, horizon=3, compile=compile)
        torch.manual_seed(5)
        results.append(collector.collect())
    torch.testing.assert_close(results[1], results[0])
