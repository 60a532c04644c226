"""Actor and critic builders."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.modules import make_actor, make_qvalue


def test_actions_keep_asymmetric_bounds_and_the_mode_is_the_squashed_location() -> None:
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 5.0])
    actor = make_actor(3, Bounded(low, high), hidden_sizes=(8,))
    td = TensorDict({"observation": 20 * torch.randn(500, 3)}, [500])
    with set_exploration_type(ExplorationType.RANDOM):
        sampled = actor(td.clone())["action"]
        assert not torch.allclose(sampled, actor(td.clone())["action"])
    assert (sampled >= low).all()
    assert (sampled <= high).all()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        out = actor(td.clone())
    squashed = low + (high - low) * (out["loc"].tanh() + 1) / 2
    torch.testing.assert_close(out["action"], squashed, rtol=1e-3, atol=1e-3)


def test_log_density_is_the_change_of_variables() -> None:
    actor = make_actor(2, Bounded(-2.0, 2.0, shape=(2,)), hidden_sizes=(8,))
    td = TensorDict({"observation": torch.randn(50, 2)}, [50])
    dist = actor.get_dist(td.clone())
    with set_exploration_type(ExplorationType.RANDOM):
        out = actor(td.clone())
    loc, scale, action = (out[k].double() for k in ("loc", "scale", "action"))
    raw = torch.atanh(action / 2)
    normal = torch.distributions.Normal(loc, scale).log_prob(raw)
    want = (normal - (2 * (1 - (action / 2) ** 2)).log()).sum(-1)
    torch.testing.assert_close(dist.log_prob(out["action"]).double(), want, rtol=1e-3, atol=1e-3)


def test_critic_reads_state_and_action() -> None:
    critic = make_qvalue(3, 2, hidden_sizes=(8,))
    td = TensorDict({"observation": torch.randn(4, 3), "action": torch.randn(4, 2)}, [4])
    value = critic(td)["state_action_value"]
    net = critic.module
    torch.testing.assert_close(value, net(torch.cat([td["observation"], td["action"]], -1)))
    assert value.shape == (4, 1)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("of_bounds", [torch.float32, torch.float64])
def test_actions_have_the_parameters_dtype(
    default: torch.dtype, dtype: torch.dtype | None, of_bounds: torch.dtype
) -> None:
    spec = Bounded(-2.0, 2.0, shape=(2,), dtype=of_bounds)
    torch.set_default_dtype(default)
    try:
        actor = make_actor(3, spec, hidden_sizes=(8,), dtype=dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    want = dtype or default
    assert {p.dtype for p in actor.parameters()} == {want}
    td = actor(TensorDict({"observation": torch.zeros(4, 3, dtype=want)}, [4]))
    assert td["action"].dtype == want


def test_unbounded_actions_are_refused() -> None:
    with pytest.raises(TypeError, match="Bounded action_spec"):
        make_actor(3, Unbounded(shape=(1,)))


INF = float("inf")


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, INF), (-INF, 0.0), (-INF, INF), (-3e38, 3e38), (float("nan"), 1.0), (1.0, -1.0), (1, 1)],
)
def test_bounds_must_be_finite_and_in_order(low: float, high: float) -> None:
    spec = Bounded(torch.tensor([-1.0, low]), torch.tensor([1.0, high]))
    with pytest.raises(
        ValueError, match=r"finite bounds are required.*has \[-1.0, .*\] to \[1.0, "
    ):
        make_actor(3, spec)


def test_networks_are_relu_layers_of_the_published_widths() -> None:
    td = TensorDict({"observation": torch.randn(5, 3), "action": torch.rand(5, 1)}, [5])
    inputs = torch.cat([td["observation"], td["action"]], -1)
    actor, critic = make_actor(3, Bounded(-1, 1, shape=(1,))), make_qvalue(3, 1)
    cases = (
        (actor, td["observation"], actor(td.clone())["loc"]),
        (critic, inputs, critic(td.clone())["state_action_value"]),
    )
    for net, hidden, got in cases:
        *layers, last = (m for m in net.modules() if isinstance(m, nn.Linear))
        assert [layer.out_features for layer in layers] == [256, 256]
        for layer in layers:
            hidden = layer(hidden).relu()
        torch.testing.assert_close(got, last(hidden)[:, :1])


def test_the_policy_can_become_almost_deterministic() -> None:
    actor = make_actor(3, Bounded(-1, 1, shape=(1,)), hidden_sizes=(8,))
    td = TensorDict({"observation": torch.randn(50, 3)}, [50])
    *_, last = (m for m in actor.modules() if isinstance(m, nn.Linear))
    scales = []
    for bias in (0.0, -20.0):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(bias)
        scales.append(actor(td.clone())["scale"])
    torch.testing.assert_close(scales[0], torch.ones(50, 1))
    assert (scales[1] > 0).all() and (scales[1] < 0.02).all()
