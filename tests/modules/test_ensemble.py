"""The ensemble world model: density, sampling, elites, statistics, state."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from torch import Tensor, nn

from rambo_trl.modules import EnsembleWorldModel, ensemble
from rambo_trl.modules.functional import soft_clamp
from rambo_trl.objectives import EnsembleModelLoss


def constant_model(outputs: Tensor, log_var: float, elites: list[int]) -> EnsembleWorldModel:
    """Members that predict constants [M, D] (change of state, reward) whatever the input."""
    members, size = outputs.shape
    model = EnsembleWorldModel(
        size - 1,
        1,
        num_members=members,
        num_elites=len(elites),
        hidden_sizes=(4,),
        log_var_init=(-60.0, 60.0),
    )
    with torch.no_grad():
        for weight in model.weights:
            weight.zero_()
        model.biases[-1][:, 0, :size] = outputs
        model.biases[-1][:, 0, size:] = log_var
    model.elites.copy_(torch.tensor(elites))
    return model


def random_model(observation_size: int = 3, action_size: int = 2, **kwargs) -> EnsembleWorldModel:
    model = EnsembleWorldModel(observation_size, action_size, hidden_sizes=(8, 8), **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.input_mean.normal_()
        model.input_std.uniform_(0.5, 2)
    return model.double()


def transitions(*batch_size: int, observation_size: int = 3, action_size: int = 2) -> TensorDict:
    def randn(size: int) -> Tensor:
        return torch.randn(*batch_size, size, dtype=torch.float64)

    return TensorDict(
        {
            "observation": randn(observation_size),
            "action": randn(action_size),
            "next": {"observation": randn(observation_size), "reward": randn(1)},
        },
        batch_size,
    )


def member_by_hand(model: EnsembleWorldModel, member: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """One member's raw output for one row [observation, action], layer by layer."""
    size = model.observation_size
    h = (x - model.input_mean) / model.input_std
    for i, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        h = h @ weight[member] + bias[member, 0]
        if i < len(model.weights) - 1:
            h = h / (1 + (-h).exp())
    mean, raw = h[: size + 1].clone(), h[size + 1 :]
    mean[:size] += x[:size]
    upper, lower = model.max_log_var, model.min_log_var
    clamped = upper - (1 + (upper - raw).exp()).log()
    return mean, lower + (1 + (clamped - lower).exp()).log()


def test_predict_is_each_members_network_on_standardised_inputs() -> None:
    model, td = random_model(), transitions(5)
    mean, log_var = model.predict(td["observation"], td["action"])
    for member in range(7):
        for row in range(5):
            x = torch.cat([td["observation"][row], td["action"][row]])
            want_mean, want_log_var = member_by_hand(model, member, x)
            torch.testing.assert_close(mean[member, row], want_mean)
            torch.testing.assert_close(log_var[member, row], want_log_var)


def test_predict_of_chosen_members_and_of_rows_of_their_own() -> None:
    model, td = random_model(), transitions(5)
    everything = model.predict(td["observation"], td["action"])
    members = torch.tensor([6, 1, 3])
    some = model.predict(td["observation"], td["action"], members)
    rows = transitions(3, 5)
    own = model.predict(rows["observation"], rows["action"], members)
    for got, full in zip(some, everything, strict=True):
        torch.testing.assert_close(got, full[members])
    for i, member in enumerate(members.tolist()):
        full = model.predict(rows["observation"][i], rows["action"][i])
        for got, want in zip(own, full, strict=True):
            torch.testing.assert_close(got[i], want[member])


def test_batches_predicted_together_are_predicted_as_each_alone() -> None:
    model = random_model(num_members=4, num_elites=3)
    model.elites.copy_(torch.tensor([2, 0, 3]))
    shared, own = transitions(5), transitions(3, 7)
    pairs = [(x["observation"], x["action"]) for x in (shared, own)]
    for found, pair in zip(
        model.predict_together(*pairs, members=model.elites), pairs, strict=True
    ):
        torch.testing.assert_close(found, model.predict(*pair, model.elites))
    (found,) = model.predict_together(pairs[0])
    torch.testing.assert_close(found, model.predict(*pairs[0]))


@pytest.mark.parametrize("rows", [1, 7])
def test_known_predictions_give_the_same_draws_and_densities(rows: int) -> None:
    model = random_model(num_members=4, num_elites=3)
    model.elites.copy_(torch.tensor([2, 0, 3]))
    batch = transitions(rows)
    pair = batch["observation"], batch["action"]
    prediction = model.predict(*pair, model.elites)
    torch.manual_seed(0)
    want = model.sample(*pair)
    torch.manual_seed(0)
    found = model.sample(*pair, prediction)
    torch.testing.assert_close(found, want)
    assert not any(x.requires_grad for x in found)

    mean, log_var = (x.movedim(0, 1) for x in prediction)
    known = batch.clone()
    known[model.prediction_key] = TensorDict({"mean": mean, "log_var": log_var}, [rows])
    torch.testing.assert_close(model.log_prob(known), model.log_prob(batch))
    # and it is these that count, with their gradient
    moved = batch.clone()
    moved[model.prediction_key] = TensorDict({"mean": mean + 1, "log_var": log_var}, [rows])
    assert not torch.allclose(model.log_prob(moved), model.log_prob(batch))
    for known_or_not in (known, batch):
        model.zero_grad()
        model.log_prob(known_or_not).sum().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        if known_or_not is known:
            first = grads
    torch.testing.assert_close(first, grads)


def test_each_row_is_predicted_by_one_elite_drawn_anew() -> None:
    model, rows, draws = random_model(num_members=4, num_elites=3), transitions(7), 1500
    model.elites.copy_(torch.tensor([2, 0, 3]))
    pair, real = ((x["observation"], x["action"]) for x in (rows, transitions(3, 5)))
    of_all, _ = model.predict(*pair, model.elites)
    counts = torch.zeros(3, 7)
    together = torch.zeros(3, 3)
    for _ in range(draws):
        (mean, log_var), others = model.predict_drawn(pair, real)
        elite = (mean == of_all).all(-1).float().argmax(0)
        assert mean.shape == log_var.shape == (7, 4)
        torch.testing.assert_close(mean, of_all[elite, torch.arange(7)])
        counts[elite, torch.arange(7)] += 1
        together[elite[0], elite[1]] += 1
    torch.testing.assert_close(others, model.predict(*real, model.elites))
    # every row is uniform over the elites
    z = (counts - draws / 3) / (draws * 2 / 9) ** 0.5
    assert z.abs().max() < 4.5
    # and two rows are, but for the blocks' equal size (7 rows, 3 of 9 places), independent
    assert (together.diag().sum() / draws).item() == pytest.approx(2 / 8, abs=0.05)


@pytest.mark.parametrize("batch_size", [(9,), (3, 3)])
def test_the_density_of_a_drawn_row_is_that_of_the_elite_that_drew(
    batch_size: tuple[int, ...],
) -> None:
    model = random_model(num_members=4, num_elites=3)
    model.elites.copy_(torch.tensor([2, 0, 3]))
    given = transitions(*batch_size)
    rows = model.draw(given.exclude("next"))
    found = model.member_log_prob(rows)
    assert found.shape == batch_size
    drawn, value = rows[model.drawn_key], torch.cat([*rows["next"].values()], -1)
    by_hand = stats.norm.logpdf(
        value.numpy(), drawn["mean"].detach().numpy(), drawn["log_var"].detach().exp().sqrt()
    )
    torch.testing.assert_close(found.detach(), torch.tensor(by_hand.sum(-1)))
    # it is one of the mixture's components, which all three have drawn some of
    mixture = model.get_dist(rows)
    of_all = mixture.component_distribution.log_prob(value.unsqueeze(-2))
    distance, elite = (of_all - found.unsqueeze(-1)).abs().min(-1)
    assert distance.max() < 1e-9 and elite.unique().tolist() == [0, 1, 2]
    # the mixture's own density is not touched by what the rows say
    torch.testing.assert_close(model.log_prob(rows), mixture.log_prob(value))
    torch.testing.assert_close(model.log_prob(rows), of_all.logsumexp(-1) - math.log(3))


def test_drawn_rows_are_distributed_as_the_models_own() -> None:
    outputs = torch.tensor([[0.0, 0, 0, 0], [3.0, 3, 3, 3]])
    model = constant_model(outputs, log_var=0.0, elites=[0, 1])
    rows = TensorDict(observation=torch.zeros(4000, 3), action=torch.zeros(4000, 1))
    rows.batch_size = [4000]
    drawn, own = (f(rows.copy())["next", "observation"] for f in (model.draw, model))
    assert stats.ks_2samp(drawn[:, 0].numpy(), own[:, 0].numpy()).pvalue > 1e-4
    assert not drawn.requires_grad


def test_rows_that_were_not_drawn_have_no_members_density() -> None:
    model = random_model()
    with pytest.raises(KeyError, match="no 'drawn_prediction': draw them with draw"):
        model.member_log_prob(transitions(3))
    with torch.no_grad():
        rows = model.draw(transitions(3))
        assert model.member_log_prob(rows).shape == (3,)
    with pytest.raises(RuntimeError, match="outside of no_grad"):
        model.member_log_prob(rows)


def test_no_rows_are_no_predictions() -> None:
    mean, log_var = EnsembleWorldModel(3, 1).predict(torch.zeros(0, 3), torch.zeros(0, 1))
    assert mean.shape == log_var.shape == (7, 0, 4)


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("rows", [128, 131])
def test_rows_cut_into_blocks_for_two_threads_change_no_prediction(
    own_rows: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EnsembleWorldModel(3, 1, hidden_sizes=(16, 16)).double()
    shape = (5, rows) if own_rows else (rows,)
    observation, action = torch.randn(*shape, 3).double(), torch.randn(*shape, 1).double()
    weight = torch.randn(5, rows, 4).double()

    def prediction_and_gradients() -> tuple[Tensor, ...]:
        mean, log_var = model.predict(observation, action, model.elites)
        total = (weight * (mean + log_var)).sum()
        return mean, log_var, *torch.autograd.grad(total, list(model.parameters()))

    whole = prediction_and_gradients()
    seen = []
    monkeypatch.setattr(ensemble, "threads_of", lambda x: 2)
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, w: seen.append(x.shape[:2]) or bmm(x, w))
    cut = prediction_and_gradients()
    assert set(seen) == {(10, 64) if rows == 128 else (5, 131)}
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def twins(**kwargs: Any) -> tuple[EnsembleWorldModel, EnsembleWorldModel]:
    """The same members twice, the second with rounded products."""
    plain, rounding = (
        EnsembleWorldModel(3, 2, matmul_dtype=dtype, **kwargs) for dtype in (None, torch.bfloat16)
    )
    rounding.load_state_dict(plain.state_dict())
    return plain, rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_between_hidden_layers_alone_are_rounded(dtype: torch.dtype) -> None:
    plain, rounding = twins(num_members=3, num_elites=2, hidden_sizes=(32, 32, 32))
    plain, rounding = plain.to(dtype), rounding.to(dtype)
    observation, action = torch.randn(9, 3, dtype=dtype), torch.randn(9, 2, dtype=dtype)
    x = torch.cat([observation, action], dim=-1)
    for member in range(3):
        h = x
        for i, weight in enumerate(plain.weights):
            w = weight[member]
            product = rounded(rounded(h) @ rounded(w)) if i in (1, 2) else h @ w
            h = product + plain.biases[i][member]
            h = nn.functional.silu(h) if i < 3 else h
        mean, log_var = (p[member] for p in rounding.predict(observation, action))
        assert mean.dtype == log_var.dtype == dtype
        want = h[:, :4] + torch.cat([observation, torch.zeros(9, 1, dtype=dtype)], dim=-1)
        bounds = plain.min_log_var, plain.max_log_var
        off = torch.cat([mean - want, log_var - soft_clamp(h[:, 4:], *bounds)]).abs()
        # a sum taken in another order may be rounded to the other side, but few are; another
        # layer rounded, or none, moves half of the entries by 4e-6 or more
        assert off.median() < 1e-6 and off.max() < 2e-3


def test_gradients_through_rounded_products_are_those_of_the_exact_ones_but_for_rounding() -> None:
    plain, rounding = twins(hidden_sizes=(64, 64, 64))
    td = transitions(200, observation_size=3, action_size=2).float()
    for first, second in zip(
        *(
            torch.autograd.grad(model.log_prob(td).mean(), [*model.weights, *model.biases])
            for model in (plain, rounding)
        ),
        strict=True,
    ):
        assert second.dtype == torch.float32
        error = (first - second).norm() / first.norm()
        assert error < 0.03
    assert not torch.equal(first, second)


def test_rounded_products_are_a_matter_of_the_model_not_of_its_state() -> None:
    plain, rounding = twins(hidden_sizes=(8, 8))
    assert plain.state_dict().keys() == rounding.state_dict().keys()
    assert all(p.dtype == torch.float32 for p in rounding.parameters())
    assert deepcopy(rounding).matmul_dtype == torch.bfloat16
    for other in (torch.float16, torch.float8_e4m3fn, torch.int8):
        with pytest.raises(ValueError, match=f"must be torch.bfloat16 or None, got {other}"):
            EnsembleWorldModel(3, 2, matmul_dtype=other)


def test_a_compiled_graph_knows_the_number_of_threads() -> None:
    model = EnsembleWorldModel(3, 1, num_members=3, num_elites=3, hidden_sizes=(8,))
    observation, action = torch.randn(128, 3), torch.randn(128, 1)
    sizes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        for node in graph.graph.find_nodes(op="call_function", target=torch.bmm):
            sizes.append(tuple(node.args[0].meta["example_value"].shape[:2]))
        return graph

    torch.set_num_threads(2)
    try:
        compiled = torch.compile(model.predict, backend=backend, fullgraph=True)
        got, want = compiled(observation, action), model.predict(observation, action)
        torch.testing.assert_close(got, want)
    finally:
        torch.set_num_threads(1)
    assert sizes == 2 * [(6, 64)]


@pytest.mark.parametrize("batch_size", [(6,), (2, 3), ()])
def test_log_prob_is_the_elites_mixture(batch_size: tuple[int, ...]) -> None:
    model = random_model(num_elites=3)
    model.elites.copy_(torch.tensor([6, 1, 3]))
    td = transitions(*batch_size)
    got = model.log_prob(td)
    assert got.shape == batch_size
    torch.testing.assert_close(got, _mixture_by_hand(model, td, [6, 1, 3]))
    value = torch.cat([td["next", "observation"], td["next", "reward"]], dim=-1)
    before, dist = td.clone(), model.get_dist(td)
    assert (dist.batch_shape, dist.event_shape) == (batch_size, (4,))
    torch.testing.assert_close(dist.log_prob(value), got)
    assert set(td.keys(True)) == set(before.keys(True)) and (td == before).all()


def _mixture_by_hand(model: EnsembleWorldModel, td: TensorDict, elites: list[int]) -> Tensor:
    out = []
    for row in td.reshape(-1):
        x = torch.cat([row["observation"], row["action"]])
        y = torch.cat([row["next", "observation"], row["next", "reward"]]).numpy()
        density = 0.0
        for member in elites:
            mean, log_var = (z.detach().numpy() for z in member_by_hand(model, member, x))
            density += stats.norm.pdf(y, mean, np.exp(0.5 * log_var)).prod() / len(elites)
        out.append(math.log(density))
    return torch.tensor(out, dtype=torch.float64).reshape(td.batch_size)


ELITES = [6, 1, 3]


def _members_with_known_outputs(log_var: float = -50.0) -> EnsembleWorldModel:
    member = torch.arange(7.0)
    return constant_model(torch.stack([10 * member, 100 * member], -1), log_var, ELITES)


def _drawn(model: EnsembleWorldModel, rows: int) -> Tensor:
    """The member that each row's sample came from, read off its value."""
    observation = torch.arange(float(rows))[:, None]
    following, reward = model.sample(observation, torch.zeros(rows, 1))
    member = ((following - observation) / 10).round()
    torch.testing.assert_close(following, observation + 10 * member, rtol=0, atol=1e-3)
    torch.testing.assert_close(reward, 100 * member, rtol=0, atol=1e-3)
    return member.squeeze(-1).long()


def test_samples_come_from_the_elites_uniformly_in_every_row() -> None:
    model, rows, draws = _members_with_known_outputs(), 10, 1200
    counts = np.zeros((rows, 7))
    for _ in range(draws):
        counts[np.arange(rows), _drawn(model, rows).numpy()] += 1
    assert counts[:, [0, 2, 4, 5]].sum() == 0, "only elites are drawn"
    for row in range(rows):
        assert stats.chisquare(counts[row, ELITES]).pvalue > 1e-4, f"row {row}: {counts[row]}"
    assert stats.chisquare(counts.sum(0)[ELITES]).pvalue > 1e-4


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 300])
def test_any_number_of_rows_can_be_sampled(rows: int) -> None:
    members = _drawn(_members_with_known_outputs(), rows)
    assert members.shape == (rows,)
    assert set(members.tolist()) <= set(ELITES)
    loads = [(members == e).sum().item() for e in ELITES]
    assert max(loads) <= -(-rows // 3)


def test_elites_of_neighbouring_rows_are_independent_of_their_order() -> None:
    # equal blocks in a fixed order would give neighbouring rows the same elite
    model = _members_with_known_outputs()
    same = np.mean([(m := _drawn(model, 30))[0].item() == m[1].item() for _ in range(800)])
    # 10 slots an elite: the partner of row 0 shares its elite in 9 of 29 cases
    assert same == pytest.approx(9 / 29, abs=0.07)


def test_samples_have_the_predicted_mean_and_variance() -> None:
    log_var = math.log(0.3)
    model = constant_model(torch.tensor([[1.0, -2.0], [1.0, -2.0]]), log_var, [0, 1])
    following, reward = model.sample(torch.full((40_000, 1), 5.0), torch.zeros(40_000, 1))
    for got, mean in ((following, 6.0), (reward, -2.0)):
        z = (got.double().numpy().ravel() - mean) / math.sqrt(0.3)
        assert stats.kstest(z, "norm").pvalue > 1e-4
        # the variance of 40,000 draws varies by 0.7 %
        assert z.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(following.ravel(), reward.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("batch_size", [(6,), (2, 3), ()])
def test_forward_writes_the_successor(batch_size: tuple[int, ...]) -> None:
    model = _members_with_known_outputs()
    td = TensorDict(
        {"observation": torch.randn(*batch_size, 1), "action": torch.zeros(*batch_size, 1)},
        batch_size,
    )
    out = model(td)
    assert set(out.keys(True, True)) == {
        "observation",
        "action",
        ("next", "observation"),
        ("next", "reward"),
    }
    member = out["next", "reward"] / 100
    torch.testing.assert_close(
        out["next", "observation"], td["observation"] + 10 * member, rtol=0, atol=1e-2
    )


def test_keys_can_be_nested_and_renamed() -> None:
    model = random_model(
        observation_key=("agent", "state"), action_key="move", reward_key=("agent", "gain")
    )
    td = transitions(4)
    renamed = TensorDict(
        {"agent": {"state": td["observation"]}, "move": td["action"]}, batch_size=[4]
    )
    assert model.in_keys == [("agent", "state"), "move"]
    assert model.out_keys == [("next", "agent", "state"), ("next", "agent", "gain")]
    out = model(renamed)
    out["next", "observation"] = out["next", "agent", "state"]
    out["next", "reward"] = out["next", "agent", "gain"]
    td["next"] = out["next"].select("observation", "reward")
    want = _mixture_by_hand(model, td, [0, 1, 2, 3, 4])
    torch.testing.assert_close(model.log_prob(renamed), want)


def test_input_statistics_are_those_of_the_rows_but_for_constant_entries() -> None:
    model = random_model()
    observation, action = 5 + 3 * torch.randn(500, 3), torch.randn(500, 2)
    observation[:, 1] = 0.1
    observation[::2, 1] += 1e-8  # the next number in single precision
    model.fit_input_statistics(observation, action)
    inputs = torch.cat([observation, action], -1).double().numpy()
    np.testing.assert_allclose(model.input_mean.numpy(), inputs.mean(0), rtol=1e-5, atol=1e-6)
    std = inputs.std(0)
    std[1] = 1.0
    np.testing.assert_allclose(model.input_std.numpy(), std, rtol=1e-5)


def test_standardisation_is_applied_once() -> None:
    # with identity layers the network's input is its output: (x - mean) / std, once
    model = EnsembleWorldModel(1, 1, num_members=1, num_elites=1, hidden_sizes=(2,))
    model.fit_input_statistics(torch.tensor([[4.0], [8.0]]), torch.tensor([[-1.0], [1.0]]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.weights[0][0] = 1e-3 * torch.eye(2)  # SiLU is x / 2 close to 0
        model.weights[1][0, :, :2] = 2e3 * torch.eye(2)
    mean, _ = model.predict(torch.tensor([[10.0]]), torch.tensor([[3.0]]))
    # (10 - 6) / 2 = 2 on top of the observation; (3 - 0) / 1 = 3 is the reward
    torch.testing.assert_close(mean[0, 0], torch.tensor([12.0, 3.0]), rtol=0, atol=0.02)


def test_elites_are_the_members_with_the_lowest_error() -> None:
    model = random_model(num_elites=3)
    model.set_elites(torch.tensor([0.7, 0.2, 0.9, 0.1, 0.8, 0.3, 0.6]))
    assert model.elites.tolist() == [3, 1, 5]


@pytest.mark.parametrize("error", [torch.ones(6), torch.tensor([1.0] * 6 + [math.nan])])
def test_set_elites_refuses_what_is_not_one_finite_error_per_member(error: Tensor) -> None:
    with pytest.raises(ValueError, match="one finite error per member"):
        random_model().set_elites(error)


def test_elites_trained_apart_are_the_same_members_and_are_written_back() -> None:
    model = random_model(num_members=4, num_elites=2)
    model.elites.copy_(torch.tensor([3, 1]))
    before = [p.detach().clone() for p in (*model.weights, *model.biases)]
    batch = transitions(6)
    inside = (batch["observation"], batch["action"], model.elites)
    want = model.predict(*inside)
    with pytest.raises(KeyboardInterrupt), model.elites_apart():
        torch.testing.assert_close(model.predict(*inside), want, rtol=0, atol=0)
        for parameter in model.elite_parameters()[:-2]:
            with torch.no_grad():
                parameter.add_(1.0)
        moved = model.predict(*inside)
        raise KeyboardInterrupt  # after an error too
    torch.testing.assert_close(model.predict(*inside), moved, rtol=0, atol=0)
    for old, new in zip(before, (*model.weights, *model.biases), strict=True):
        assert torch.equal(new[[0, 2]], old[[0, 2]])
        assert torch.equal(new[[1, 3]], old[[1, 3]] + 1)
    assert "_apart" not in "".join(model.state_dict())
    assert len(list(model.parameters())) == len(before) + 2


def test_all_members_can_be_asked_while_the_elites_are_apart() -> None:
    model = random_model(num_members=3, num_elites=2)
    model.elites.copy_(torch.tensor([2, 0]))
    batch = transitions(4)
    inside = (batch["observation"], batch["action"])
    before = model.predict(*inside)[0]
    with model.elites_apart():
        with torch.no_grad():
            model.elite_parameters()[0].add_(1.0)
        among_all, elites = (model.predict(*inside, m)[0] for m in (None, model.elites))
        with pytest.raises(RuntimeError, match="must be None or world_model.elites"):
            model.predict(*inside, torch.tensor([1]))
    torch.testing.assert_close(among_all[[2, 0]], elites)
    torch.testing.assert_close(among_all[1], before[1])
    assert not torch.allclose(among_all[0], before[0])


def test_what_is_saved_or_copied_while_the_elites_are_apart_is_whole() -> None:
    model = random_model(num_members=3, num_elites=2)
    batch = transitions(4)
    inside = (batch["observation"], batch["action"])
    with model.elites_apart():
        with torch.no_grad():
            model.elite_parameters()[0].add_(1.0)
        state, copied = model.state_dict(), deepcopy(model)
        kept = {key: value.clone() for key, value in state.items()}
        loaded = pickle.loads(pickle.dumps(model))
        nested = nn.ModuleDict({"model": model}).state_dict()
        want = model.predict(*inside, model.elites)
    restored = random_model(num_members=3, num_elites=2)
    restored.load_state_dict(kept)
    for other in (restored, copied, loaded):
        torch.testing.assert_close(other.predict(*inside, other.elites), want)
        other.predict(*inside)
    assert torch.equal(nested["model.weights.0"], kept["weights.0"])


def test_elites_and_statistics_survive_a_state_dict() -> None:
    model = random_model(num_elites=3)
    model.set_elites(torch.tensor([0.7, 0.2, 0.9, 0.1, 0.8, 0.3, 0.6]))
    other = random_model(num_elites=3)
    td = transitions(4)
    assert not torch.allclose(other.log_prob(td), model.log_prob(td))
    other.load_state_dict(model.state_dict())
    assert other.elites.tolist() == [3, 1, 5]
    torch.testing.assert_close(other.log_prob(td), model.log_prob(td), rtol=0, atol=0)
    torch.manual_seed(1)
    first = other.sample(td["observation"], td["action"])
    torch.manual_seed(1)
    second = model.sample(td["observation"], td["action"])
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_parameters_start_as_published() -> None:
    model = EnsembleWorldModel(11, 3)
    shapes = [tuple(w.shape) for w in model.weights]
    assert shapes == [(7, 14, 200), (7, 200, 200), (7, 200, 200), (7, 200, 200), (7, 200, 24)]
    for weight in model.weights:
        bound = 1 / math.sqrt(weight.shape[1])
        assert weight.abs().max() <= bound
        # standard deviation of a normal truncated at twice its own
        assert weight.std().item() == pytest.approx(0.5 * bound * 0.8796, rel=0.02)
        assert not torch.allclose(weight[0], weight[1])
    assert model.min_log_var.tolist() == [-10.0] * 12 and model.max_log_var.tolist() == [0.5] * 12


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_elites": 8}, "num_elites"),
        ({"num_elites": 0}, "num_elites"),
        ({"num_members": 0}, "positive"),
        ({"hidden_sizes": (8, 0)}, "positive"),
    ],
)
def test_impossible_sizes_are_refused(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EnsembleWorldModel(3, 1, **kwargs)


class TestTheRewardsUnit:
    """Networks predict the reward in units of its own; everything else knows nothing of it."""

    def pair(self, unit: float) -> tuple[EnsembleWorldModel, EnsembleWorldModel]:
        """The same networks, once for rewards in some unit."""
        plain = random_model()
        scaled = deepcopy(plain)
        scaled.fit_reward_statistics(unit * torch.tensor([[1.0], [2.0], [6.0]]))
        assert float(scaled.reward_mean) == pytest.approx(3 * unit)
        return plain, scaled

    @pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
    def test_predictions_are_scaled_and_densities_are_their_gaussians(self, unit: float) -> None:
        plain, scaled = self.pair(unit)
        td, std = transitions(8), float(scaled.reward_std)
        (mean, log_var), (got, got_var) = (
            m.predict(td["observation"], td["action"]) for m in (plain, scaled)
        )
        torch.testing.assert_close(got[..., :-1], mean[..., :-1])
        torch.testing.assert_close(got[..., -1], 3 * unit + std * mean[..., -1], rtol=1e-5, atol=0)
        torch.testing.assert_close(got_var[..., -1], log_var[..., -1] + 2 * math.log(std))
        moved = td.clone()
        moved["next", "reward"] = 3 * unit + std * td["next", "reward"]
        torch.testing.assert_close(
            scaled.log_prob(moved), plain.log_prob(td) - math.log(std), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            scaled.log_prob(moved),
            scaled.get_dist(moved).log_prob(
                torch.cat([moved["next", "observation"], moved["next", "reward"]], -1)
            ),
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip
        losses = [EnsembleModelLoss(m)(x) for m, x in ((plain, td), (scaled, moved))]
        for key in ("loss_model", "mse"):
            torch.testing.assert_close(losses[1][key], losses[0][key], rtol=1e-4, atol=1e-4)

    def test_a_state_from_before_there_were_statistics_means_none(self) -> None:
        plain, scaled = self.pair(1e3)
        state = plain.state_dict()
        del state["reward_mean"], state["reward_std"]
        scaled.load_state_dict(state)
        td = transitions(4)
        assert torch.equal(scaled.log_prob(td), plain.log_prob(td))

    @pytest.mark.parametrize(("rewards", "std"), [([0.0, 0.0], 1.0), ([-5e4, -5e4], 5e4)])
    def test_rewards_that_are_all_equal_keep_their_size(
        self, rewards: list[float], std: float
    ) -> None:
        model = random_model()
        model.fit_reward_statistics(torch.tensor(rewards).unsqueeze(-1))
        assert float(model.reward_std) == pytest.approx(std)
