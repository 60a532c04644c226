"""Exported guards against the Python guard, by what an exported file says of itself alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.data import Bounded

from rambo_trl import GuardedPolicy
from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.policy import Policy, load_policy, save_policy
from rambo_trl.export import export_policy, main
from rambo_trl.modules import make_actor

PAGE = Path(__file__).parents[1] / "docs/export.md"
GUARDS, FORMATS = ["flags", "range", "rate"], ["pt2", "onnx"]


def require(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the policy of a tank: a thermometer, a level, a clock, a constant."""
    rng, count, folder = np.random.default_rng(0), 400, tmp_path_factory.mktemp("mine")
    temp = rng.uniform(20, 75, count)
    ramp = 0.5 + 0.4 * np.sin(np.arange(count) / 9)
    data = OfflineDataset.from_arrays(
        {
            "observations": {
                "temp_C": temp,
                "level_m": 1 + 0.01 * temp + 0.02 * rng.normal(size=count),
                "area_m2": np.full(count, 0.8),
            },
            "actions": {"power_W": 9000 * ramp, "flow_l_s": 1.6 * ramp},
            "rewards": rng.normal(size=count),
            "terminals": np.arange(count) % 100 == 99,
            "timestamps": 15.0 * np.arange(count),
        },
        action_spec=Bounded(torch.zeros(2), torch.tensor([10_000.0, 2.0])),
        max_episode_steps=200,
    )
    torch.manual_seed(0)
    actor = make_actor(3, data.action_spec, hidden_sizes=(16,))
    with torch.no_grad():  # it uses its whole range
        list(actor.parameters())[-2].mul_(20)
    save_policy(
        folder / "policy.safetensors",
        actor,
        **data.statistics,
        action_spec=data.action_spec,
        env_id="",
        data=data.description,
    )
    return folder


@pytest.fixture
def policy(folder: Path) -> Policy:
    return load_policy(folder)


def observations() -> np.ndarray:
    """Such as the data's, then far outside, then with what is not finite."""
    rng = np.random.default_rng(1)
    temp = rng.uniform(20, 75, 300)
    rows = np.stack([temp, 1 + 0.01 * temp, np.full(300, 0.8)], 1)
    rows[100:200] += rng.normal(size=(100, 3)) * [100, 1, 0.1]
    rows[200:] += rng.normal(size=(100, 3)) * [5, 0.1, 0]
    rows[np.arange(200, 300), rng.integers(3, size=100)] = np.tile([np.nan, np.inf, -np.inf, 0], 25)
    return rows.astype(np.float32)


def run(path: Path, *inputs: np.ndarray) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Outputs and metadata of an exported file, by its runtime alone."""
    if path.suffix == ".pt2":
        extra = {"rambo_trl": ""}
        module = torch.export.load(path, extra_files=extra).module()
        made = module(*map(torch.from_numpy, inputs))
        return [y.numpy() for y in made], json.loads(extra["rambo_trl"])
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["rambo_trl"])
    assert [x.name for x in session.get_inputs()] == about["inputs"]
    assert [y.name for y in session.get_outputs()] == about["outputs"]
    return session.run(None, dict(zip(about["inputs"], inputs, strict=True))), about


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_guards_as_python_does(
    format: str, guard: Any, policy: Policy, tmp_path: Path
) -> None:
    require(format)
    path, rows = tmp_path / f"policy.{format}", observations()
    assert export_policy(policy, path, format=format, guard=guard) <= 1e-5
    before = np.random.default_rng(2).uniform([0, 0], [1e4, 2], (300, 2)).astype(np.float32)
    before[::7] = np.nan  # an episode starts
    inputs = [rows, before] if guard == "rate" else [rows]
    (action, distance, far, outside), about = run(path, *inputs)
    assert far.any() and not far.all() and (far & ~outside.any(1)).any()

    python = GuardedPolicy(policy, guard)
    limited = 0
    for i, row in enumerate(rows):
        python.reset(before[i] if np.isfinite(before[i]).all() else None)
        step = python(row)
        limited += bool(step.limited)
        np.testing.assert_allclose(action[i] / [1e4, 2], step.action / [1e4, 2], atol=1e-5)
        np.testing.assert_allclose(distance[i], step.distance, rtol=1e-4)
        assert far[i] == step.flagged
        named = {n for n, o in zip(about["observation_names"], outside[i], strict=True) if o}
        assert named <= {*step.far, *step.missing}
    assert (limited > 50) == (guard != "flags")

    # one row at a time, as a controller asks
    single, _ = run(path, *(x[:1] for x in inputs))
    np.testing.assert_allclose(single[0] / [1e4, 2], action[:1] / [1e4, 2], atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_metadata_alone_tell_names_ranges_and_limits(
    format: str, policy: Policy, tmp_path: Path
) -> None:
    require(format)
    path, rows = tmp_path / f"policy.{format}", observations()
    export_policy(policy, path, format=format, guard="range")
    (action, distance, far, outside), about = run(path, rows)
    data = policy.data
    assert data is not None
    for key, value in data.as_header().items():
        assert np.array_equal(about[key], value), key
    assert about["guard"] == "range" and about["step_interval"] == 15
    np.testing.assert_array_equal(about["observation_mean"], policy.observation_mean)
    np.testing.assert_array_equal(about["observation_std"], policy.observation_std)
    assert about["action_high"] == [10_000, 2]

    # what the graph computes, from the numbers in the file
    exact = rows.astype(float)
    beyond = ~((exact >= about["far_low"]) & (exact <= about["far_high"]))
    np.testing.assert_array_equal(outside, beyond)
    with np.errstate(invalid="ignore"):
        shift = (exact - about["distance_centre"]) @ np.array(about["distance_matrix"]).T
    expected = np.linalg.norm(shift, axis=1)
    readable = np.isfinite(exact).all(1)
    np.testing.assert_allclose(distance[readable], expected[readable], rtol=1e-4)
    assert np.isposinf(distance[~readable]).all() and np.isnan(action[~readable]).all()
    np.testing.assert_array_equal(
        far, beyond.any(1) | ~readable | (expected > about["distance_limit"])
    )
    low, high = about["logged_action_low"], about["logged_action_high"]
    free = policy(rows[readable])
    np.testing.assert_allclose(action[readable], np.clip(free, low, high), rtol=1e-4)
    assert (free < low).any() and (free > high).any()

    # and the page lists each entry
    (table,) = re.findall(r"\| entry \| meaning \|\n((?:\|.*\n)+)", PAGE.read_text())
    listed = set(re.findall(r"`(\w+)`", "".join(r.split("|")[1] for r in table.splitlines())))
    assert listed == about.keys()


def test_without_a_guard_the_file_says_it_all_too(policy: Policy, tmp_path: Path) -> None:
    export_policy(policy, tmp_path / "policy.pt2")
    extra = {"rambo_trl": ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    about = json.loads(extra["rambo_trl"])
    assert about["guard"] is None and about["outputs"] == ["action"]
    assert about["distance_limit"] == policy.data.distance_limit


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "guarded.pt2"
    assert main([str(folder), "--guard", "range", "--out", str(out)]) == 0
    assert "1000 actions agree" in capsys.readouterr().out
    assert run(out, observations())[1]["guard"] == "range"

    save_policy(
        tmp_path / "old.safetensors",
        make_actor(1, Bounded(-1, 1, shape=(1,)), hidden_sizes=(4,)),
        observation_mean=torch.zeros(1),
        observation_std=torch.ones(1),
        action_spec=Bounded(-1, 1, shape=(1,)),
        env_id="",
    )
    assert main([str(tmp_path / "old.safetensors"), "--guard", "range"]) == 2
    assert "this policy does not know what its data cover" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["python", "onnx"])
def test_the_page_s_loop_with_a_fallback_runs(
    kind: str, folder: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tank is kept warm by the policy, and by the thermostat while the sensor is away."""
    require(kind)
    if kind == "onnx":
        export_policy(policy, tmp_path / "policy.onnx", format="onnx", guard="rate")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    mine = [block for block in blocks if "def thermostat" in block]
    (block,) = [block for block in mine if ("onnxruntime" in block) == (kind == "onnx")]
    assert len(block.splitlines()) <= 24
    monkeypatch.chdir(folder)
    block = block.replace("runs/mine/policy.onnx", str(tmp_path / "policy.onnx"))
    names: dict[str, Any] = {}
    exec(block.replace("runs/mine/", ""), names)
    applied = np.array(names["applied"])
    assert np.isfinite(applied).all() and len(applied) == 200
    by_thermostat = (applied == [3000.0, 0.5]).all(1)
    assert by_thermostat[100:110].all() and not by_thermostat.all()
    resumed = int(np.flatnonzero(~by_thermostat[100:])[0]) + 100
    change = np.abs(applied[resumed] - applied[resumed - 1])
    assert (change <= np.array(policy.data.logged_action_change) * 1.001).all()
