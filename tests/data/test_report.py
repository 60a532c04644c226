"""``python -m rambo_trl.data``: the report, its figure and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.__main__ import main
from rambo_trl.data.report import (
    describe_dataset,
    episode_lengths,
    measure_coverage,
    plot_dataset,
)

PNG = b"\x89PNG"


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Three episodes of 3, 4 and 5 steps in the sizes of Hopper; each reward is its step."""
    rng = np.random.default_rng(0)
    flags = np.zeros((2, 12), dtype=bool)
    flags[0, 2], flags[1, [6, 11]] = True, True
    values = {
        "observations": rng.normal(size=(12, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(12, 3)).astype(np.float32),
        "rewards": np.float32([0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]),
        "terminals": flags[0],
        "timeouts": flags[1],
    }
    values["next_observations"] = np.roll(values["observations"], -1, axis=0)
    values["observations"][:, 5] = values["next_observations"][:, 5] = 7.0
    return values | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hopper_medium-v2.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in arrays().items():
            file[key] = value
    return path


def row(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line.removeprefix(label).split()


def test_the_numbers(path: Path) -> None:
    text = describe_dataset(OfflineDataset.load(path))
    assert max(map(len, text.splitlines())) <= 100
    assert "12 transitions in 3 episodes" in text
    assert "11 observation entries, 3 action entries" in text
    assert "1 terminated, 2 truncated" in text
    # returns 3, 6 and 10; lengths 3, 4 and 5
    assert row(text, "return") == ["6.33", "2.87", "3.00", "6.00", "10.00"]
    assert row(text, "steps") == ["4.00", "0.82", "3.00", "4.00", "5.00"]
    assert row(text, "reward") == ["1.58", "1.26", "0.00", "1.50", "4.00"]
    low, high = -20.272305, 3234.3
    assert row(text, "score")[0] == f"{100 * (19 / 3 - low) / (high - low):.2f}"
    assert row(text, "observation 5") == ["7", "0", "7", "7", "constant"]  # in its own unit
    first = arrays()["observations"][:, 0]
    assert float(row(text, "observation 0 ")[0]) == pytest.approx(first.mean(), abs=1e-3)
    assert row(text, "action 0")[-3:] == ["-1", "to", "1"]
    assert "FAILED" not in text and "Hopper-v5 is installed and fits" in text


def test_checks_that_fail_and_remarks() -> None:
    constant = arrays(rewards=np.ones(12, np.float32))
    text = describe_dataset(OfflineDataset.from_arrays(constant, env_id="Walker2d-v5"))
    flat = " ".join(text.split())
    assert "warning all 12 rewards are 1" in flat and "odd_data=accept" in flat
    assert "note all 12" not in flat
    assert "FAILED data set arrays does not fit Walker2d-v5: observations of size 11" in flat
    assert "rewards differ" not in flat
    plain = " ".join(describe_dataset(OfflineDataset.from_arrays(constant)).split())
    assert "environment none named" in plain and "cannot be evaluated" in plain


def test_many_entries_are_cut_short() -> None:
    many = np.random.default_rng(0).normal(size=(12, 200)).astype(np.float32)
    data = OfflineDataset.from_arrays(arrays(observations=many, next_observations=many + 1))
    assert data.num_episodes == data.num_cut_episodes == 12 and len(data.behaviour_returns) == 0
    text = describe_dataset(data)
    assert "... and 163 more" in text and len(text.splitlines()) < 70


def test_episode_lengths_with_an_unfinished_one() -> None:
    raw = OfflineDataset.from_arrays(arrays(), normalize=False).transitions
    raw["next", "truncated"][-1] = False
    data = OfflineDataset(raw, action_spec=Bounded(-1, 1, shape=(3,)))
    assert episode_lengths(data).tolist() == [3, 4, 5]
    assert episode_lengths(data).sum() == len(data)


def test_command(
    path: Path,
    tmp_path: Path,
    run_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    figure = tmp_path / "set.png"
    words = ["python", "-m", "rambo_trl.data", str(path), "--figure", str(figure)]
    run_command(tmp_path, words)
    said = capsys.readouterr().out
    assert said.startswith("data set ") and said.endswith(f"{figure}\n")
    assert figure.read_bytes().startswith(PNG)


@pytest.mark.parametrize("kind", ["unknown", "corrupt", "figure type", "figure folder"])
def test_bad_input_is_one_line_and_exit_code_2(
    kind: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(path)]
    if kind == "unknown":
        arguments = ["no such set"]
    elif kind == "corrupt":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "figure type":
        arguments += ["--figure", str(tmp_path / "set.hdf6")]
    else:
        arguments += ["--figure", str(tmp_path / "nowhere" / "set.png")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("key", ["env_spec", "observation_layout", "name", "env_id", "remarks"])
def test_a_folder_whose_description_lacks_something_is_one_line(
    key: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OfflineDataset.load(path).memmap(tmp_path / "set")
    (description,) = (tmp_path / "set").glob("*.json")
    found = json.loads(description.read_text())
    del found[key]
    description.write_text(json.dumps(found))
    assert main([str(tmp_path / "set")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "set" in err and key in err


def test_an_environment_that_does_not_take_its_arguments_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = EnvSpec("Hopper-v5", "nowhere:Env", kwargs={"no_such_argument": 1})
    raw = OfflineDataset.from_arrays(arrays(), normalize=False).transitions
    data = OfflineDataset(
        raw, action_spec=Bounded(-1, 1, shape=(3,)), env_id="Hopper-v5", env_spec=spec
    )
    data.memmap(tmp_path / "set")
    assert main([str(tmp_path / "set")]) == 0  # the data can be trained on without it
    words = " ".join(capsys.readouterr().out.split())
    assert "environment Hopper-v5 with no_such_argument=1 size" in words
    assert "FAILED environment Hopper-v5 cannot be made with the arguments {'no_such" in words
    assert "(TypeError: " in words and "env_id=none to go without" in words


ROWS = 20_000


def dataset(observation: np.ndarray, action: np.ndarray, **options: Any) -> OfflineDataset:
    rows = len(observation)
    following = TensorDict(
        observation=torch.from_numpy(observation.astype(np.float32)),
        reward=torch.arange(rows, dtype=torch.float32),
        terminated=torch.zeros(rows, dtype=torch.bool),
        batch_size=[rows],
    )
    transitions = TensorDict(
        observation=following["observation"].clone(),
        action=torch.from_numpy(action.astype(np.float32)),
        next=following,
        batch_size=[rows],
    )
    low, high = torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 10.0, 6.0])
    return OfflineDataset(
        transitions,
        action_spec=Bounded(low, high, shape=(3,)),
        **options,
    )


def made() -> tuple[np.ndarray, np.ndarray]:
    """Four free entries, the first three times more, one constant; uniform, half, one value."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(ROWS, 4)) * [1, 1e-2, 100, 1] + 50
    first = free[:, :1]
    still = np.full((ROWS, 1), 7.0)
    observation = np.column_stack([free, 3 * first, -first, first, still])
    action = np.column_stack(
        [rng.uniform(-1, 1, ROWS), rng.uniform(0, 5, ROWS), np.full(ROWS, 5.5)]
    )
    return observation, action


@pytest.mark.parametrize("normalize", [True, False])
def test_known_spreads(normalize: bool) -> None:
    found = measure_coverage(dataset(*made(), normalize=normalize))
    np.testing.assert_allclose(found.actions, [1.0, 0.5, 1 / 20], atol=0.01)
    # eigenvalues 4, 1, 1, 1 and zeros: (4 + 3)^2 / (16 + 3)
    assert found.directions == pytest.approx(49 / 19, abs=0.03)
    assert found.variance == pytest.approx(5 / 7, abs=0.01)
    assert found.plane.shape == (ROWS, 2)
    # the entries that move together, whatever the sign
    together = np.corrcoef(found.plane[:, 0], made()[0][:, 0])[0, 1]
    assert abs(together) == pytest.approx(1, abs=1e-3)


def test_more_data_of_the_same_kind_cover_no_more() -> None:
    once, twice = (measure_coverage(dataset(*(np.tile(x, (n, 1)) for x in made()))) for n in (1, 2))
    np.testing.assert_allclose(once.actions, twice.actions)
    assert once.directions == pytest.approx(twice.directions, abs=1e-3)


def test_states_that_never_change() -> None:
    found = measure_coverage(dataset(np.full((50, 1), 3.0), made()[1][:50]))
    assert found.directions == 0 and found.variance == 0 and found.plane.shape == (50, 1)


def test_the_report_tells_it() -> None:
    text = describe_dataset(dataset(*made()))
    assert "actions as if spread evenly over 52 % of their bounds, action 2 over 5 %" in text
    assert "states as if spread evenly over 2.6 of their 8 directions" in text


def test_names_with_dollars_are_drawn_as_they_stand(tmp_path: Path) -> None:
    names = ["$_^", "cost_$^_$", *map(str, range(9))]
    data = OfflineDataset.from_arrays(arrays(), name="logs_$^_$.hdf5", observation_names=names)
    plot_dataset(data, tmp_path / "data.png")
    assert (tmp_path / "data.png").read_bytes().startswith(PNG)
