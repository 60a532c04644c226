"""EnsembleModelLoss: numbers, gradients of each term, the LossModule contract."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss

ELITES = [6, 1, 3]


def make_model(**kwargs) -> EnsembleWorldModel:
    model = EnsembleWorldModel(2, 1, num_elites=3, hidden_sizes=(8, 8), **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.elites.copy_(torch.tensor(ELITES))
    return model.double()


def real_batch(*batch_size: int) -> TensorDict:
    def randn(size: int) -> torch.Tensor:
        return torch.randn(*batch_size, size, dtype=torch.float64)

    return TensorDict(
        {
            "observation": randn(2),
            "action": randn(1),
            "next": {"observation": randn(2), "reward": randn(1)},
        },
        batch_size,
    )


def nll_by_loop(model: EnsembleWorldModel, batch: TensorDict, member: int) -> float:
    """Mean over rows and dimensions of (mu - y)^2 exp(-logvar) + logvar of one member."""
    mean, log_var = model.predict(batch["observation"], batch["action"], torch.tensor([member]))
    target = torch.cat([batch["next", "observation"], batch["next", "reward"]], -1)
    total = 0.0
    for b in range(batch.shape[0]):
        for d in range(3):
            v = log_var[0, b, d].item()
            total += (mean[0, b, d].item() - target[b, d].item()) ** 2 / math.exp(v) + v
    return total / (batch.shape[0] * 3)


@pytest.mark.parametrize("members", ["all", "elites"])
def test_shared_batch_is_the_sum_over_members_of_their_means(members: str) -> None:
    model, batch = make_model(), real_batch(5)
    out = EnsembleModelLoss(model, members=members)(batch)
    fitted = range(7) if members == "all" else ELITES
    want = sum(nll_by_loop(model, batch, m) for m in fitted)
    assert out["loss_model"].item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("members", ["all", "elites"])
def test_batch_per_member_reaches_that_member_only(members: str) -> None:
    model = make_model()
    fitted = list(range(7)) if members == "all" else ELITES
    batch = real_batch(len(fitted), 5)
    loss = EnsembleModelLoss(model, members=members)
    want = sum(nll_by_loop(model, batch[i], m) for i, m in enumerate(fitted))
    assert loss(batch)["loss_model"].item() == pytest.approx(want, rel=1e-10)

    # another batch for the last one changes that member's gradient and no other's
    gradients = []
    changed = batch.clone()
    changed[-1] = real_batch(5)
    for b in (batch, changed):
        model.zero_grad()
        loss(b)["loss_model"].backward()
        gradients.append(model.weights[0].grad.clone())
    differs = (gradients[0] != gradients[1]).flatten(1).any(1)
    assert differs.nonzero().flatten().tolist() == [fitted[-1]]


@pytest.mark.parametrize("members", ["all", "elites"])
def test_known_predictions_give_the_same_loss(members: str) -> None:
    model = make_model()
    fitted = list(range(7)) if members == "all" else ELITES
    batch = real_batch(len(fitted), 5)
    loss = EnsembleModelLoss(model, members=members)
    want = loss(batch)
    mean, log_var = model.predict(batch["observation"], batch["action"], torch.tensor(fitted))
    known = batch.clone()
    known[loss.prediction_key] = TensorDict({"mean": mean, "log_var": log_var}, batch.shape)
    torch.testing.assert_close(loss(known), want)
    known[loss.prediction_key, "log_var"] = log_var + 1
    assert not torch.allclose(loss(known)["loss_model"], want["loss_model"])


@pytest.mark.parametrize("members", ["all", "elites"])
def test_penalties_by_hand(members: str) -> None:
    model, decay = make_model(), [0.1, 0.2, 0.3]
    fitted = list(range(7)) if members == "all" else ELITES
    loss = EnsembleModelLoss(model, weight_decay=decay, bound_weight=0.05, members=members)
    out = loss(real_batch(4))
    pairs = zip(decay, model.weights, strict=True)
    want = sum(0.5 * c * (w.detach()[fitted] ** 2).sum().item() for c, w in pairs)
    assert out["loss_decay"].item() == pytest.approx(want)
    want = 0.05 * (model.max_log_var.sum() - model.min_log_var.sum()).item()
    assert out["loss_bounds"].item() == pytest.approx(want, rel=1e-6)
    assert want > 0


def test_published_coefficients() -> None:
    model = EnsembleWorldModel(2, 1, hidden_sizes=(8, 8, 8, 8))
    published = [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    assert EnsembleModelLoss(model).weight_decay == pytest.approx(published)
    assert float(EnsembleModelLoss(model).bound_weight) == pytest.approx(1e-3)
    # another depth keeps the ends
    decay = EnsembleModelLoss(make_model()).weight_decay
    assert decay == pytest.approx([2.5e-5, 7.5e-5, 1e-4])


def touched(model: EnsembleWorldModel) -> dict[str, list[int] | bool]:
    """For every parameter, the members (or whether any entry) with a gradient."""
    out: dict[str, list[int] | bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        if "log_var" in name:
            if parameter.grad.abs().sum() > 0:
                out[name] = True
        elif (rows := parameter.grad.flatten(1).any(1).nonzero().flatten()).numel():
            out[name] = sorted(rows.tolist())
    return out


@pytest.mark.parametrize("members", ["all", "elites"])
@pytest.mark.parametrize("term", ["loss_model", "loss_bounds", "loss_decay"])
def test_each_term_alone_reaches_its_own_parameters(members: str, term: str) -> None:
    # narrow bounds, so that the likelihood's gradient reaches both of them
    model = make_model(log_var_init=(-1.0, 1.0))
    loss = EnsembleModelLoss(model, members=members)
    loss(real_batch(16))[term].backward()
    fitted = list(range(7)) if members == "all" else sorted(ELITES)
    bounds = {"min_log_var": True, "max_log_var": True}
    weights = {f"weights.{i}": fitted for i in range(3)}
    biases = {f"biases.{i}": fitted for i in range(3)}
    want = {
        "loss_model": weights | biases | bounds,
        "loss_bounds": bounds,
        "loss_decay": weights,
    }[term]
    assert touched(model) == want


def test_reductions() -> None:
    model, batch = make_model(), real_batch(5)
    out = {r: EnsembleModelLoss(model, reduction=r)(batch) for r in ("mean", "sum", "none")}
    each = out["none"]["loss_model"]
    assert each.shape == (7, 5)
    torch.testing.assert_close(out["mean"]["loss_model"], each.mean(1).sum())
    torch.testing.assert_close(out["sum"]["loss_model"], each.sum())
    twice = EnsembleModelLoss(model)(torch.cat([batch, batch]))
    torch.testing.assert_close(twice["loss_model"], out["mean"]["loss_model"])
    for term in ("loss_bounds", "loss_decay"):
        torch.testing.assert_close(out["sum"][term], out["mean"][term])


def test_mse_is_a_detached_metric_of_every_member() -> None:
    model, batch = make_model(), real_batch(6)
    loss = EnsembleModelLoss(model)
    out = loss(batch)
    target = torch.cat([batch["next", "observation"], batch["next", "reward"]], -1)
    mean, _ = model.predict(batch["observation"], batch["action"])
    want = torch.stack([((mean[m] - target) ** 2).mean() for m in range(7)]).detach()
    torch.testing.assert_close(out["mse"], want)
    torch.testing.assert_close(loss.member_mse(batch), want)
    assert not out["mse"].requires_grad


def test_keys_can_be_renamed_and_nested() -> None:
    model, batch = make_model(), real_batch(5)
    loss = EnsembleModelLoss(model)
    want = loss(batch)["loss_model"]
    assert loss.in_keys == [
        "observation",
        "action",
        ("next", "observation"),
        ("next", "reward"),
    ]
    loss.set_keys(
        observation=("agent", "state"),
        action="move",
        next_observation=("agent", "after"),
        next_reward="gain",
    )
    assert loss.in_keys == [("agent", "state"), "move", ("agent", "after"), "gain"]
    renamed = TensorDict(
        {
            "agent": {"state": batch["observation"], "after": batch["next", "observation"]},
            "move": batch["action"],
            "gain": batch["next", "reward"],
        },
        batch_size=[5],
    )
    torch.testing.assert_close(loss(renamed)["loss_model"], want)
    loss.in_keys = ["move"]
    assert loss.in_keys == ["move"]
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(colour="red")
    keys = EnsembleModelLoss(make_model(observation_key=("agent", "state"))).in_keys
    assert keys == [("agent", "state"), "action", ("next", "agent", "state"), ("next", "reward")]


def test_contract_of_input_output_and_state() -> None:
    model, batch = make_model(), real_batch(5)
    before = batch.clone()
    loss = EnsembleModelLoss(model, bound_weight=0.5)
    out = loss(batch)
    assert set(out.keys()) == set(loss.out_keys)
    assert set(batch.keys(True)) == set(before.keys(True))
    assert (batch == before).all()
    other = EnsembleModelLoss(make_model())
    other.load_state_dict(loss.state_dict())
    for key in loss.out_keys:
        torch.testing.assert_close(other(batch)[key], out[key])
    loss.bound_weight = 1.0
    torch.testing.assert_close(loss(batch)["loss_bounds"], 2 * out["loss_bounds"])


@pytest.mark.parametrize("observation_size", [2, 1])
def test_keywords_do_instead_of_a_tensordict(observation_size: int) -> None:
    # with one entry everywhere the batch size cannot be told from the shapes alone
    model, batch = EnsembleWorldModel(observation_size, 1, hidden_sizes=(8,)), real_batch(5).float()
    batch["observation"] = batch["observation"][..., :observation_size]
    batch["next", "observation"] = batch["next", "observation"][..., :observation_size]
    loss = EnsembleModelLoss(model)
    keywords = {key if isinstance(key, str) else "_".join(key): batch[key] for key in loss.in_keys}
    for name, value in zip(loss.out_keys, loss(**keywords), strict=True):
        torch.testing.assert_close(value, loss(batch)[name])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"members": "some"}, "members"),
        ({"reduction": "max"}, "reduction"),
        ({"weight_decay": [0.1]}, "weight_decay"),
    ],
)
def test_settings_are_checked(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EnsembleModelLoss(make_model(), **kwargs)


@pytest.mark.parametrize("batch_size", [(), (6, 5), (1, 7, 5)])
def test_other_batch_shapes_are_refused(batch_size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[7, B\]"):
        EnsembleModelLoss(make_model())(real_batch(*batch_size))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("backend", "members"),
    [("eager", "all"), pytest.param("inductor", "elites", marks=pytest.mark.slow)],
)
def test_compiled_equals_eager(backend: str, members: str) -> None:
    model, batch = make_model(), real_batch(5)
    loss = EnsembleModelLoss(model, members=members)

    def objective(batch: TensorDict) -> torch.Tensor:
        out = loss(batch)
        return out["loss_model"] + out["loss_bounds"] + out["loss_decay"]

    results = []
    for run in (objective, torch.compile(objective, backend=backend, fullgraph=True)):
        model.zero_grad()
        value = run(batch)
        value.backward()
        results.append((value.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_gradients_of_the_beta_nll_are_weighted_by_the_variances(beta: float) -> None:
    """Eq. 5 of https://arxiv.org/abs/2203.09168, its gradients by hand (Eqs. 6 and 7)."""
    model, batch = make_model(), real_batch(4)
    mean, log_var = (t.detach().requires_grad_() for t in model.predict(*batch_of(batch)))
    batch = TensorDict(
        {key: batch[key].expand(7, *batch[key].shape) for key in ("observation", "action")}
        | {"next": batch["next"].expand(7, 4)},
        [7, 4],
    )
    batch["member_prediction"] = TensorDict({"mean": mean, "log_var": log_var}, [7, 4])
    EnsembleModelLoss(model, beta=beta)(batch)["loss_model"].backward()
    target = torch.cat([batch["next", "observation"], batch["next", "reward"]], -1)
    error, variance = (mean - target).detach(), log_var.detach().exp()
    rows = 4 * 3  # of each member, and its entries
    torch.testing.assert_close(mean.grad, 2 * error * variance ** (beta - 1) / rows)
    torch.testing.assert_close(
        log_var.grad, (1 - error.square() / variance) * variance**beta / rows
    )


def batch_of(batch: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["observation"], batch["action"]


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_a_beta_outside_of_0_to_1_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must lie between 0 and 1"):
        EnsembleModelLoss(make_model(), beta=beta)
