"""What is evaluated is in evaluation mode, and the agent is the same before and after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import (
    BatchRenorm1d,
    ConsistentDropoutModule,
    NormalParamExtractor,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)
from torchrl.objectives import CrossQLoss, LossModule, SACLoss, TD3Loss

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.evaluation import evaluate_policy, mode_values
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss, ModelTrustLoss
from rambo_trl.training.phases import ModelPhase

SPEC = Bounded(-1, 1, shape=(1,))
LAYERS = {
    "BatchRenorm": lambda: BatchRenorm1d(8),
    "BatchNorm": lambda: nn.BatchNorm1d(8),
    "Dropout": lambda: nn.Dropout(0.5),
    "noise in both modes": lambda: Noisy(),
}


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * torch.randn_like(x)


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, layer: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 8), layer, nn.ReLU(), nn.Linear(8, outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(torch.cat(inputs, -1))


def make_agent(layer: Callable[[], nn.Module], loss: type[LossModule] = SACLoss) -> LossModule:
    critic = ValueOperator(Net(4, 1, layer()), ["observation", "action"])
    if loss is TD3Loss:
        net = nn.Sequential(Net(3, 1, layer()), nn.Tanh())
        return loss(TensorDictModule(net, ["observation"], ["action"]), critic, action_spec=SPEC)
    net = nn.Sequential(Net(3, 2, layer()), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        spec=SPEC,
    )
    return loss(actor, critic, action_spec=SPEC)


def rows(number: int = 32) -> TensorDict:
    following = TensorDict(
        observation=torch.randn(number, 3), reward=torch.randn(number, 1), batch_size=[number]
    )
    return TensorDict(
        observation=torch.randn(number, 3),
        action=SPEC.rand((number,)),
        next=following,
        batch_size=[number],
    )


def modules_of(agent: LossModule) -> list[nn.Module]:
    """With the networks that TorchRL keeps outside of the loss."""
    return [
        m for part in (agent, agent.actor_network, agent.qvalue_network) for m in part.modules()
    ]


def mix_modes(agent: LossModule, training: bool) -> None:
    """As a user may leave them: critics that ``eval()`` does not reach, a frozen layer."""
    agent.train(training)
    agent.qvalue_network.train()
    agent.actor_network.train()
    next(m for m in agent.actor_network.modules() if isinstance(m, nn.ReLU)).eval()


def adversary_s_loss(agent: LossModule) -> None:
    loss = AdversarialModelLoss.from_loss(EnsembleWorldModel(3, 1, hidden_sizes=(8,)), agent)
    loss.entropy_coeff = 0.0 if isinstance(agent, TD3Loss) else 0.1
    loss(rows())["loss_adversarial"].backward()


def make_env() -> EnsembleModelEnv:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(8,))
    return EnsembleModelEnv(model, action_spec=SPEC, starts=rows())


def model_phase(agent: LossModule) -> None:
    env, data = make_env(), TensorDictReplayBuffer(storage=LazyTensorStorage(32))
    data.extend(rows())
    adversary = AdversarialModelLoss.from_loss(env.world_model, agent)
    ModelPhase(env, adversary, EnsembleModelLoss(env.world_model), data, batch_size=8).run(2)


def rollouts(agent: LossModule) -> None:
    ModelRolloutCollector(make_env(), agent.actor_network, num_starts=8, horizon=2).collect()


def evaluation(agent: LossModule) -> None:
    evaluate_policy(agent.actor_network, "Pendulum-v1", num_episodes=2)


def start_values(agent: LossModule) -> None:
    mode_values(agent, agent.actor_network, torch.randn(8, 3))


#: every user of an agent, with every layer and every kind of agent at least once
CASES = [
    *((adversary_s_loss, SACLoss, layer) for layer in LAYERS),
    (adversary_s_loss, TD3Loss, "BatchNorm"),
    (adversary_s_loss, CrossQLoss, "BatchRenorm"),
    *((model_phase, SACLoss, layer) for layer in ("BatchNorm", "Dropout")),
    (model_phase, CrossQLoss, "BatchRenorm"),
    (rollouts, SACLoss, "BatchNorm"),
    (evaluation, SACLoss, "BatchNorm"),
    (start_values, TD3Loss, "BatchRenorm"),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ask", "loss", "layer"), CASES, ids=[f"{a.__name__}-{o.__name__}-{y}" for a, o, y in CASES]
)
def test_the_agent_is_the_same_before_and_after(
    ask: Callable[[LossModule], None], loss: type[LossModule], layer: str, training: bool
) -> None:
    agent = make_agent(LAYERS[layer], loss)
    mix_modes(agent, training)
    modes = [m.training for m in modules_of(agent)]
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    ask(agent)
    after = agent.state_dict()
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []
    assert [m.training for m in modules_of(agent)] == modes


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("layer", ["BatchRenorm", "BatchNorm", "Dropout"])
def test_the_adversary_s_values_are_those_of_evaluation_mode(layer: str) -> None:
    agent, batch = make_agent(LAYERS[layer]), rows()
    agent(batch.clone().set(("next", "done"), torch.zeros(32, 1, dtype=torch.bool)))  # statistics
    loss = AdversarialModelLoss.from_loss(EnsembleWorldModel(3, 1, hidden_sizes=(8,)), agent)
    got = loss.advantage(batch)
    agent.qvalue_network.eval()
    agent.actor_network.eval()
    torch.testing.assert_close(got, loss.advantage(batch), rtol=0, atol=0)
    # the mode, by hand
    hidden = agent.actor_network[0].module[0](batch["next", "observation"])
    action = hidden[:, :1].tanh()
    values = []
    for params in agent.qvalue_network_params.data.unbind(0):
        with params.to_module(agent.qvalue_network):
            values.append(agent.qvalue_network.module(batch["next", "observation"], action))
    torch.testing.assert_close(got[1], torch.stack(values).amin(0).squeeze(-1))


def test_torchrls_dropout_needs_no_mask_where_nothing_is_dropped() -> None:
    actor = TensorDictSequential(
        TensorDictModule(nn.Linear(3, 8), ["observation"], ["hidden"]),
        ConsistentDropoutModule(0.5, "hidden"),
        TensorDictModule(nn.Linear(8, 1), ["hidden"], ["action"]),
    )
    critic = ValueOperator(Net(4, 1, nn.ReLU()), ["observation", "action"])
    env, batch = make_env(), rows()
    loss = AdversarialModelLoss(env.world_model, actor, critic)
    torch.testing.assert_close(loss.advantage(batch), loss.advantage(batch), rtol=0, atol=0)
    assert ModelRolloutCollector(env, actor, num_starts=8, horizon=2).collect().shape == (16,)


def test_each_submodule_gets_its_own_mode_back_whatever_happens() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module[1][1].eval()
    modes = [m.training for m in module.modules()]
    with pytest.raises(KeyError), evaluating(module, None, print, module):
        assert not any(m.training for m in module.modules())
        raise KeyError
    assert [m.training for m in module.modules()] == modes == [True, True, True, True, False]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_loss_leaves_the_modes_too_and_meets_no_break() -> None:
    agent, batch = make_agent(LAYERS["BatchNorm"], TD3Loss), rows()
    loss = AdversarialModelLoss.from_loss(EnsembleWorldModel(3, 1, hidden_sizes=(8,)), agent)
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    modes = [m.training for m in modules_of(agent)]
    value = torch.compile(lambda td: loss(td)["loss_adversarial"], backend="eager", fullgraph=True)
    torch.testing.assert_close(value(batch), loss(batch)["loss_adversarial"])
    after = agent.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [m.training for m in modules_of(agent)] == modes


class Model(nn.Module):
    """A user's Gaussian model, whose layers have a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(4, 4, nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5)))
        self.in_keys = ["observation", "action"]
        self.out_keys = [("next", "observation"), ("next", "reward")]

    def get_dist(self, td: TensorDict) -> torch.distributions.Distribution:
        mean = self.net(td["observation"], td["action"])
        return torch.distributions.Independent(torch.distributions.Normal(mean, 1.0), 1)

    def forward(self, td: TensorDict) -> TensorDict:
        drawn = self.get_dist(td).sample()
        td["next", "observation"], td["next", "reward"] = drawn.split([3, 1], -1)
        return td


def test_a_model_s_reference_is_not_moved_by_being_compared_with() -> None:
    loss = ModelTrustLoss(Model())
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    # the same network draws and drops the same: no distance
    assert loss(rows())["trust_distance"] == 0
    after = loss.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(m.training for m in loss.modules())


def test_an_imagined_step_moves_no_statistics_of_the_model() -> None:
    model = Model()
    env = EnsembleModelEnv(model, action_spec=SPEC, starts=rows(), batch_size=[4])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    env.rollout(3)
    ModelRolloutCollector(env, num_starts=8, horizon=2).collect()
    actor = TensorDictModule(Net(3, 1, nn.ReLU()), ["observation"], ["action"])
    critic = ValueOperator(Net(4, 1, nn.ReLU()), ["observation", "action"])
    loss = AdversarialModelLoss(model, actor, critic)
    loss(rows())["loss_adversarial"].backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
