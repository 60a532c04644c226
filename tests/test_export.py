from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Bounded

import rambo_trl
from rambo_trl import export
from rambo_trl.data.columns import DataDescription
from rambo_trl.experiment.policy import Policy, load_policy, save_policy
from rambo_trl.export import PolicyModule, export_policy, main
from rambo_trl.modules import make_actor

PAGE = Path(__file__).parents[1] / "docs/export.md"
SIZE, BOUNDS = 11, Bounded(low=torch.tensor([-1.0, -0.5, 0.0]), high=torch.tensor([1.0, 2.0, 0.1]))
FORMATS = ["pt2", "onnx"]


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    save_policy(
        path,
        make_actor(SIZE, BOUNDS, hidden_sizes=(16, 8)),
        observation_mean=torch.linspace(-2, 2, SIZE),
        observation_std=torch.linspace(0.1, 3, SIZE),
        action_spec=BOUNDS,
        env_id="Hopper-v5",
        data=DataDescription(
            ("temp_C", *(f"x{i}" for i in range(SIZE - 1))),
            ("power_W", "flow_l_s", "valve"),
            (20.0,) * SIZE,
            (75.0,) * SIZE,
        ),
    )
    return path


def require(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


#: y of x by an exported file in its runtime
CODE = {
    "pt2": "import torch; f = torch.export.load(path).module(); y = f(torch.from_numpy(x)).numpy()",
    "onnx": "import onnxruntime; s = onnxruntime.InferenceSession(path); "
    "y = s.run(['action'], {'observation': x})[0]",
}


def run_apart(path: Path, observation: np.ndarray) -> np.ndarray:
    """An exported file in a process that knows nothing of this library."""
    np.save(path.with_name("x.npy"), observation)
    code = (
        "import sys, numpy; path = sys.argv[1]; x = numpy.load(sys.argv[2]); "
        f"{CODE[path.suffix[1:]]}; numpy.save(sys.argv[3], y); "
        "assert not {'torchrl', 'tensordict', 'rambo_trl'} & sys.modules.keys()"
    )
    names = [str(path), str(path.with_name("x.npy")), str(path.with_name("y.npy"))]
    subprocess.run([sys.executable, "-c", code, *names], check=True)
    return np.load(names[2])


def run_here(path: Path, observation: np.ndarray) -> np.ndarray:
    names = {"path": path, "x": observation}
    exec(CODE[path.suffix[1:]], names)
    return names["y"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_thousand_actions_agree_in_the_formats_own_runtime(format, policy_path, tmp_path):
    require(format)
    out = tmp_path / f"policy.{format}"
    assert export_policy(load_policy(policy_path), out, format=format) <= 1e-5
    # states far outside the data as well, where actions saturate
    x = np.random.default_rng(0).normal(size=(1000, SIZE)).astype(np.float32) * 5
    expected = load_policy(policy_path)(x)
    assert expected.std(0).min() > 0.005
    np.testing.assert_allclose(run_apart(out, x), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(run_here(out, x[:1]), expected[:1], rtol=0, atol=1e-5)
    # what the file is for is in it
    if format == "pt2":
        extra = {"rambo_trl": ""}
        torch.export.load(out, extra_files=extra)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(out)
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == ("observation", ["batch", SIZE])
        assert (made.name, made.shape) == ("action", ["batch", 3])
        extra = session.get_modelmeta().custom_metadata_map
    about = json.loads(extra["rambo_trl"])
    assert about["env_id"] == "Hopper-v5" and about["observation_size"] == SIZE
    assert about["observation_names"][0] == "temp_C"
    assert about["action_names"] == ["power_W", "flow_l_s", "valve"]
    assert about["observation_low"][0] == 20.0 and about["observation_high"][0] == 75.0


@pytest.mark.parametrize("scale", [1.001, float("nan")])
def test_an_export_that_differs_is_not_written(scale, policy_path, tmp_path, monkeypatch):
    original = PolicyModule.forward
    monkeypatch.setattr(
        PolicyModule,
        "forward",
        lambda self, observation: (
            original(self, observation) * (scale if torch.compiler.is_exporting() else 1)
        ),
    )
    with pytest.raises(RuntimeError, match="differ from the policy's"):
        export_policy(load_policy(policy_path), tmp_path / "p.pt2")
    assert not (tmp_path / "p.pt2").exists()


class TestCommand:
    def test_a_run_folder(self, policy_path, capsys):
        out = policy_path.with_suffix(".pt2")
        assert main([str(policy_path.parent), "--format", "pt2"]) == 0
        assert "1000 actions agree" in capsys.readouterr().out
        written = out.read_bytes()
        assert main([str(policy_path)]) == 2  # nothing is overwritten
        assert out.read_bytes() == written
        assert re.fullmatch(r"error: .*pt2 exists: name another file\n", capsys.readouterr().err)

    def test_no_policy_there(self, tmp_path, capsys):
        assert main([str(tmp_path)]) == 2
        assert "no policy file at" in capsys.readouterr().err

    def test_a_missing_package_is_named(self, policy_path, capsys, monkeypatch):
        find = export.importlib.util.find_spec
        monkeypatch.setattr(
            export.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
        )
        if find("onnx") is None:
            pytest.skip("needs onnx")
        assert main([str(policy_path), "--format", "onnx"]) == 2
        assert "pip install 'rambo_trl[export]'" in capsys.readouterr().err


def test_the_page_s_look_at_logs_runs(policy_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n([^`]*?# such as yours[^`]*?)```", PAGE.read_text())
    monkeypatch.chdir(policy_path.parent)
    exec(block.replace("runs/mine/policy.safetensors", policy_path.name), {})
    assert "of the rows lie outside" in capsys.readouterr().out


@pytest.mark.parametrize("language", ["python", "pt2", "onnx"])
def test_the_page_s_loops_run(language, policy_path, tmp_path, monkeypatch):
    """Each loop of the page plays one episode with the same return."""
    policy = load_policy(policy_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    word = {"python": "load_policy(", "pt2": "torch.export.load(", "onnx": "onnxruntime."}[language]
    (block,) = [block for block in blocks if word in block and "env.step" in block]
    if language != "python":
        require(language)
        export_policy(policy, tmp_path / f"policy.{language}", format=language)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block.replace("runs/mine/", ""), names)
    env = gymnasium.make("Hopper-v5")
    observation, total, ended = env.reset(seed=0)[0], 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, ended = total + float(reward), terminated or truncated
    assert names["total"] == pytest.approx(total, rel=1e-3)
    assert rambo_trl.load_policy is load_policy


def wide_policy(path: Path) -> Policy:
    """50,000 W beside 1.2 l/s, in states with a time stamp."""
    spec = Bounded(-1, 1, shape=(2,))
    save_policy(
        path,
        make_actor(2, spec, hidden_sizes=(16, 8)),
        observation_mean=torch.tensor([1.7e9, 3.0], dtype=torch.float64),
        observation_std=torch.tensor([40.0, 2.0], dtype=torch.float64),
        action_spec=spec,
        action_low=torch.zeros(2),
        action_high=torch.tensor([50_000.0, 1.2]),
        env_id="",
    )
    return load_policy(path)


@pytest.mark.parametrize("format", FORMATS)
def test_raw_observations_and_actions_of_any_unit(format, tmp_path):
    require(format)
    policy, out = wide_policy(tmp_path / "policy.safetensors"), tmp_path / f"policy.{format}"
    assert export_policy(policy, out, format=format) <= 1e-5
    x = np.array([1.7e9, 3.0]) + np.random.default_rng(0).normal(size=(50, 2)) * [40, 2]
    expected = policy(x)
    assert np.ptp(expected / [50_000, 1.2], axis=0).min() > 0.01
    got = run_here(out, x)
    np.testing.assert_allclose(got / [50_000, 1.2], expected / [50_000, 1.2], atol=1e-5)


def test_each_entry_is_checked_against_its_own_range(tmp_path, monkeypatch):
    policy = wide_policy(tmp_path / "policy.safetensors")
    original = PolicyModule.forward

    def off_by_a_little(
        self, observation
    ):  # half a litre a second is a hundred-thousandth of 50 kW
        error = 0.4 if torch.compiler.is_exporting() else 0.0
        return original(self, observation) + torch.tensor([0.0, error])

    monkeypatch.setattr(PolicyModule, "forward", off_by_a_little)
    with pytest.raises(RuntimeError, match=r"by up to 0.4 in action 1, 0.3 of its range"):
        export_policy(policy, tmp_path / "p.pt2")
