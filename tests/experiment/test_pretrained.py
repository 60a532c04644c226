"""The cache of pretrained parts: the same as pretraining, for the same data and settings only."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import save_checkpoint
from rambo_trl.experiment.evaluation import write_policy
from rambo_trl.experiment.pretrained import (
    PART_FILES,
    Pretrained,
    dataset_digest,
    file_digest,
    load_parts,
    save_fitted_model,
)
from rambo_trl.modules import EnsembleWorldModel, make_actor


def dataset(reward: float = 1.0, *, env_id: str | None = None, bound: float = 1) -> OfflineDataset:
    episode = {
        "observations": np.linspace(0, 1, 12).reshape(6, 2),
        "actions": np.zeros((5, 1)),
        "rewards": np.array([1, 1, 1, 1, reward]),
        "terminations": np.zeros(5, dtype=bool),
        "truncations": np.zeros(5, dtype=bool),
    }
    spec = Bounded(-bound, bound, shape=(1,))
    return OfflineDataset.from_episodes([episode], action_spec=spec, env_id=env_id)


def test_the_digest_changes_with_the_data() -> None:
    digests = {
        dataset_digest(d)
        for d in (dataset(), dataset(2.0), dataset(bound=2), dataset(env_id="Hopper-v5"))
    }
    assert len(digests) == 4
    assert dataset_digest(dataset()) == dataset_digest(dataset())


SETTINGS = {"dataset_digest": "d", "seed": 0, "model": {"lr": 1e-3}}


def pretrained(where: str | None, folder: Path, net: nn.Module, **settings: object) -> Pretrained:
    return Pretrained(where, {"net": net}, settings={**SETTINGS, **settings}, folder=folder)


def made(folder: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    """A pretrained network in the cache, what is drawn next, and the file."""
    torch.manual_seed(5)
    net = nn.Linear(3, 2)
    store = pretrained("auto", folder, net)
    with store.claimed():
        assert store.load() is None
        store.save({"cloned": {"score": 3.5}, "passes": 4})
    assert store.path is not None
    return net, torch.rand(4), store.path


def test_parts_measures_and_random_state_come_back(tmp_path: Path) -> None:
    net, draws, _ = made(tmp_path / "cache")
    torch.manual_seed(6)
    other = nn.Linear(3, 2)
    assert pretrained("auto", tmp_path / "cache", other).load() == {
        "cloned": {"score": 3.5},
        "passes": 4,
    }
    assert torch.equal(torch.rand(4), draws)
    assert torch.equal(net.weight, other.weight)


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": {"lr": 2e-3}}, {"dataset_digest": "e"}])
def test_other_settings_are_another_file(tmp_path: Path, change: dict) -> None:
    made(tmp_path)
    assert pretrained("auto", tmp_path, nn.Linear(3, 2), **change).load() is None


def test_without_a_cache_nothing_is_read_or_written(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    store = pretrained(None, tmp_path / "cache", nn.Linear(3, 2))
    with store.claimed():
        assert store.load() is None
        store.save({})
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 1


def test_a_named_file_of_another_seed_leaves_the_random_state(tmp_path: Path) -> None:
    net, _, path = made(tmp_path)
    other = nn.Linear(3, 2)
    torch.manual_seed(9)
    draws = torch.rand(3)
    torch.manual_seed(9)
    assert pretrained(str(path), tmp_path, other, seed=9).load() is not None
    assert torch.equal(torch.rand(3), draws) and torch.equal(net.weight, other.weight)


@pytest.mark.parametrize(
    ("sizes", "digest", "words"),
    [
        ((3, 2), "e", "pretrained on other data"),
        ((4, 2), "d", "saved with other settings: its net does not fit"),  # whose bias fits
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(
    tmp_path: Path, sizes: tuple[int, int], digest: str, words: str
) -> None:
    _, _, path = made(tmp_path)
    net = nn.Linear(*sizes)
    before, draws = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=words):
        pretrained(str(path), tmp_path, net, dataset_digest=digest).load()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    _, _, path = made(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pretrained=.*nowhere.pt"):
        pretrained(str(tmp_path / "nowhere.pt"), tmp_path, nn.Linear(3, 2)).load()
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        pretrained("auto", tmp_path, nn.Linear(3, 2)).load()


def test_of_several_runs_one_pretrains(tmp_path: Path) -> None:
    made: list[str] = []

    def pretrain() -> None:
        store = pretrained("auto", tmp_path / "cache", nn.Linear(3, 2))
        with store.claimed():
            if store.load() is None:
                time.sleep(0.2)
                store.save({"passes": 1})
                made.append(threading.current_thread().name)

    # the lock is that of an open file: threads wait for each other as processes do
    runs = [threading.Thread(target=pretrain) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert len(made) == 1


def test_what_killed_runs_left_is_removed_but_nothing_of_living_ones(tmp_path: Path) -> None:
    _, _, path = made(tmp_path)
    other, living = ("0" * 32, "1" * 32)
    for key in (other, living):
        (tmp_path / f"{key}.lock").touch()
    mine, dead, alive = (
        tmp_path / f".{name}.pt.77.tmp" for name in (path.stem, other, living)
    )  # 77: the processes that wrote them, here or on another machine
    strange = tmp_path / ".somebody_elses.pt.77.tmp"
    for file in (mine, dead, alive, strange):
        file.write_bytes(b"half")
    net = nn.Linear(3, 2)
    assert pretrained("auto", tmp_path, net).load() is not None
    assert mine.exists(), "only the one that has the lock may know that nobody is writing it"
    with (tmp_path / f"{living}.lock").open("ab") as lock:  # as its writer holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pretrained("auto", tmp_path, net).claimed():
            assert [f.exists() for f in (mine, dead, alive, strange)] == [False, False, True, True]
        assert alive.read_bytes() == b"half"
    with pretrained("auto", tmp_path, net).claimed():
        assert not alive.exists() and strange.exists() and path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_each_run_makes_its_own_and_is_told(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    folder = tmp_path / "cache"
    first, second = (pretrained("auto", folder, nn.Linear(3, 2)) for _ in range(2))
    assert first.path is not None
    folder.mkdir()
    another_s = folder / f".{first.path.name}.77.tmp"  # nobody knows whether its writer lives
    another_s.write_bytes(b"half")
    torchrl_logger.addHandler(caplog.handler)
    try:
        with first.claimed(), second.claimed():  # neither waits
            for store in (first, second):
                store.save({"passes": 1})
    finally:
        torchrl_logger.removeHandler(caplog.handler)
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        f"the file system of {folder} has no locks ({os.strerror(number)}): runs that begin at "
        "once pretrain each for itself"
    )
    assert another_s.exists()
    # what has been made is shared all the same
    third = nn.Linear(3, 2)
    with pretrained("auto", folder, third).claimed():
        assert pretrained("auto", folder, third).load() == {"passes": 1}
    assert torch.equal(third.weight, second.parts["net"].weight)


def world_model(hidden: int = 4) -> EnsembleWorldModel:
    return EnsembleWorldModel(2, 1, num_members=3, num_elites=2, hidden_sizes=(hidden,))


class TestPartsOfAnyFile:
    measured = {"holdout_mse": [0.5, 0.1, 0.25], "model_passes": 4}

    def parts(self, seed: int, **sizes: int) -> dict[str, nn.Module]:
        torch.manual_seed(seed)
        model = world_model(**sizes)
        model.set_elites(torch.tensor([3.0, 1.0, 2.0]).roll(seed))
        model.fit_input_statistics(torch.randn(9, 2), torch.randn(9, 1))
        return {"world_model": model, "actor": self.actor()}

    def actor(self) -> nn.Module:
        return make_actor(2, dataset().action_spec, hidden_sizes=[4])

    @pytest.fixture
    def run(self, tmp_path: Path) -> dict[str, nn.Module]:
        """A run folder with both parts' files and a copy of the store's file."""
        parts, digest = self.parts(0), dataset_digest(dataset())
        model, policy = (tmp_path / name for name in PART_FILES.values())
        save_fitted_model(model, parts["world_model"], digest=digest, measured=self.measured)
        write_policy(policy, parts["actor"], dataset(), 0)
        settings = {"dataset_digest": digest}
        store = Pretrained("auto", parts, settings=settings, folder=tmp_path / "cache")
        store.save(self.measured)
        store.path.rename(tmp_path / "both.pt")
        return parts

    @pytest.mark.parametrize(
        ("path", "names"),
        [
            ("both.pt", ["world_model", "actor"]),
            ("both.pt", ["world_model"]),
            ("both.pt", ["actor"]),
            ("pretrained_model.safetensors", ["world_model"]),
            ("policy.safetensors", ["actor"]),
            (".", ["actor", "world_model"]),
        ],
    )
    def test_those_asked_for_are_taken(
        self, run: dict[str, nn.Module], path: str, names: list[str], tmp_path: Path
    ) -> None:
        parts = self.parts(1)
        wanted, drawn = {name: parts[name] for name in names}, torch.get_rng_state()
        data = dataset()
        measured = load_parts(tmp_path / path, wanted, data, digest=dataset_digest(data))
        assert measured == (
            {} if (path, names) == ("policy.safetensors", ["actor"]) else self.measured
        )
        assert torch.equal(torch.get_rng_state(), drawn)
        for name, part in parts.items():
            mine, theirs = part.state_dict(), run[name].state_dict()
            same = all(
                torch.equal(mine[key], value)
                for key, value in theirs.items()
                if "_extra" not in key
            )
            assert same is (name in names), name

    def test_all_or_none(self, run: dict[str, nn.Module], tmp_path: Path) -> None:
        parts = self.parts(1, hidden=5)
        before = copy.deepcopy(parts["actor"].state_dict())
        named = {name: parts[name] for name in ("actor", "world_model")}
        for path, words in ((".", "of other sizes"), ("both.pt", "its world_model does not fit")):
            with pytest.raises(ValueError, match=words):
                load_parts(tmp_path / path, named, dataset(), digest=dataset_digest(dataset()))
            for name, value in parts["actor"].state_dict().items():
                assert torch.equal(value, before[name])

    def test_what_is_something_else_is_refused(
        self, run: dict[str, nn.Module], tmp_path: Path
    ) -> None:
        digest = dataset_digest(dataset())
        save_checkpoint(tmp_path / "last.pt", {"world_model": nn.Linear(1, 1)}, {"epoch": 1})
        for path, name, words in (
            ("both.pt", "reverse_model", r"holds the parts \['actor', 'world_model'\], not rev"),
            ("last.pt", "world_model", "is a run's checkpoint, not a file of pretrained parts"),
            ("policy.safetensors", "world_model", "does not say"),
            ("pretrained_model.safetensors", "actor", "not one written by save_policy"),
        ):
            part = self.parts(1).get(name, world_model())
            with pytest.raises(ValueError, match=words):
                load_parts(tmp_path / path, {name: part}, dataset(), digest=digest)
        for path in ("both.pt", "pretrained_model.safetensors"):
            with pytest.raises(ValueError, match="other data"):
                load_parts(tmp_path / path, {"world_model": world_model()}, dataset(), digest="e")
        model = tmp_path / "pretrained_model.safetensors"
        model.write_bytes(model.read_bytes()[:99])
        with pytest.raises(ValueError, match="not a readable model file"):
            load_parts(model, {"world_model": world_model()}, dataset(), digest=digest)
        for name, file in PART_FILES.items():
            with pytest.raises(FileNotFoundError, match=f"cache.{file}"):
                part = {name: self.parts(1)[name]}
                load_parts(tmp_path / "cache", part, dataset(), digest=digest)

    @pytest.mark.parametrize("header", [None, "", "3", json.dumps({"format": 99})])
    def test_a_model_s_file_of_another_kind_is_refused(
        self, tmp_path: Path, header: str | None
    ) -> None:
        path, model = tmp_path / "model.safetensors", world_model()
        metadata = None if header is None else {"rambo_trl_fitted_model": header}
        save_file(dict(model.state_dict()), path, metadata=metadata)
        with pytest.raises(ValueError, match="does not say"):
            load_parts(path, {"world_model": model}, dataset(), digest="d")

    def test_a_policy_of_bounds_in_double_precision(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        bounds = (torch.tensor([x], dtype=torch.float64) for x in (1e9, 1e9 + 1))
        rows = {"observations": rng.normal(size=(9, 2)), "actions": 1e9 + rng.random((9, 1)),
                "rewards": rng.random(9), "terminals": np.arange(9) % 3 == 2}  # fmt: skip
        data = OfflineDataset.from_arrays(
            {**rows, "next_observations": rows["observations"] + 1},
            action_spec=Bounded(*bounds, shape=(1,), dtype=torch.float64),
        )
        actors = [make_actor(2, data.action_spec, hidden_sizes=[4]) for _ in range(2)]
        write_policy(tmp_path / "policy.safetensors", actors[0], data, 0)
        load_parts(tmp_path, {"actor": actors[1]}, data, digest=dataset_digest(data))
        for one, other in zip(actors[0].parameters(), actors[1].parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_file_s_digest_is_that_of_its_content(tmp_path: Path) -> None:
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c and len(a) == 64
