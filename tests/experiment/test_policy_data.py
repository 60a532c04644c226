"""What a policy knows of its data: names of the entries, and how far they reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl._utils import logger
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.policy import load_policy, save_policy
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules.actor_critic import make_actor

NAMES = ("temp_C", "time_s", "tank_area_m2")
SPEC = Bounded(-torch.ones(2), torch.ones(2))


def make_data() -> OfflineDataset:
    rng = np.random.default_rng(0)
    observations = np.stack(
        [rng.uniform(20, 80, 30), 1.7e9 + np.arange(30.0), np.full(30, 0.8)], axis=1
    )
    return OfflineDataset.from_arrays(
        {
            "observations": dict(zip(NAMES, observations.T, strict=True)),
            "actions": {name: rng.uniform(-1, 1, 30) for name in ("power_W", "flow_l_s")},
            "rewards": rng.normal(size=30),
            "terminals": np.arange(30) == 29,
        },
        max_episode_steps=40,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    data = make_data()
    save_policy(
        tmp_path / "policy.safetensors",
        make_actor(3, SPEC, hidden_sizes=(8,)),
        observation_mean=data.observation_mean,
        observation_std=data.observation_std,
        action_spec=SPEC,
        env_id="",
        data=data.description,
    )
    return tmp_path / "policy.safetensors"


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def rewrite(path: Path, **changes: object) -> None:
    header, tensors = read_safetensors(path, "rambo_trl_policy", "policy file")
    header = {k: v for k, v in (header | changes).items() if v is not None}
    write_safetensors(path, tensors, "rambo_trl_policy", header)


def test_it_is_kept_in_the_file(path: Path, heard: pytest.LogCaptureFixture) -> None:
    known = load_policy(path).data
    assert known is not None
    assert known.observation_names == NAMES and known.action_names == ("power_W", "flow_l_s")
    assert known.observation_low is not None and known.observation_high is not None
    assert 20 <= known.observation_low[0] < 25 and 75 < known.observation_high[0] <= 80
    assert known.observation_low[2] == known.observation_high[2] == pytest.approx(0.8)
    assert not heard.records  # saving checks the policy far outside


def test_far_outside_is_told_once_by_name(path: Path, heard: pytest.LogCaptureFixture) -> None:
    policy = load_policy(path)
    usual = np.array([50.0, 1.7e9 + 15, 0.8])
    policy(usual)
    policy(usual + np.array([45, 0, 0]))  # beyond the data by less than half of their range
    assert not heard.records
    policy(np.stack([usual, usual + np.array([200, 0, 0.1])]))
    (record,) = heard.records
    said = record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in said
    assert "temp_C is 250 (2" in said and "tank_area_m2 is 0.9 (always 0.8 in the data)" in said
    assert "time_s" not in said
    policy(usual + np.array([200, 0, 0]))
    assert len(heard.records) == 1
    # numbers whose first six digits are the same are told apart
    load_policy(path)(usual + np.array([0, 4000, 0]))
    assert "time_s is 1700004015 (1700000000 to 17000000" in heard.records.pop().getMessage()
    load_policy(path)(torch.tensor(usual + np.array([0, 0, 0.1])))  # another policy tells anew
    assert len(heard.records) == 2


def test_readings_that_are_not_finite_are_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"not finite, in entries \['time_s'\]"):
        load_policy(path)([50.0, np.nan, 0.8])


def test_a_file_of_an_older_version_knows_nothing(
    path: Path, heard: pytest.LogCaptureFixture
) -> None:
    rewrite(path, observation_names=None, action_names=None)
    policy = load_policy(path)
    assert policy.data is None
    policy(np.array([1e6, 0.0, 0.0]))
    assert not heard.records


@pytest.mark.parametrize(
    "change",
    [
        {"observation_names": ["a"]},
        {"observation_low": [0.0]},
        {"observation_low": 3.0},
    ],
)
def test_a_header_that_does_not_fit_is_refused(path: Path, change: dict[str, object]) -> None:
    rewrite(path, **change)
    with pytest.raises(ValueError, match="not a usable policy file") as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)
