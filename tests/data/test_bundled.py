"""The builder of the bundled data sets, on a tiny policy bundle."""

from __future__ import annotations

import csv
import errno
import resource
from collections.abc import Callable
from pathlib import Path

import gymnasium
import minari
import mujoco
import numpy as np
import pytest
import torch

from rambo_trl.data import (
    OfflineDataset,
    bundled,
    bundled_names,
    ensure_bundled,
    mujoco_messages_logged,
    names,
)
from rambo_trl.data.behaviour import PolicyBundle, collect_episodes, uniform_random_actions
from rambo_trl.data.bundled import build_bundled, bundled_path
from rambo_trl.data.scores import normalized_score, reference_scores_for
from rambo_trl.runtime.progress import Bar

ENV = "InvertedDoublePendulum-v5"
NAME = "bundled/inverteddoublependulum/{}-v0"

#: hashes of the policies that play the sets of version 0, by the first half
VERSION_0 = {
    "HalfCheetah-v5": "9d8d9f03ed0b8f0fdabdf1066ae0994c",
    "Hopper-v5": "89ceab1e5c1e65d1e82739ee4c4fd842",
    "InvertedDoublePendulum-v5": "0356dd86425d570b484a79846f6e534c",
    "Walker2d-v5": "469f157d5b356a0aa1e4c03012b171df",
}


def build(kind: str, policies_dir: Path, num_steps: int = 300, **kwargs: object) -> OfflineDataset:
    name = NAME.format(kind)
    build_bundled(name, num_steps=num_steps, policies_dir=policies_dir, progress=False, **kwargs)
    return OfflineDataset.load(name)


def found_sets(root: Path) -> list[str]:
    """List whatever under Minari's root could be taken for a data set."""
    assert set(minari.list_local_datasets()) <= set(bundled_names())
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.hdf5"))


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize("kind", ["random", "medium", "medium-replay", "medium-expert", "expert"])
def test_build_each_kind(kind: str, policies_dir: Path) -> None:
    data = build(kind, policies_dir)
    assert 300 <= len(data) < 400
    assert data.env_id == ENV and data.observation_size == 9 and data.action_size == 1
    assert list(minari.list_local_datasets()) == [NAME.format(kind)]
    low, high = data.reference_scores or (0, 0)
    assert 40 < low < 80 and high == 260.0  # random play, and the expert's return in the bundle
    # untrained policies fall soon, and every fall is a termination with its true next state
    ends = data.transitions["next", "terminated"].squeeze(-1)
    assert int(ends.sum()) == data.num_episodes > 20
    metadata = minari.load_dataset(NAME.format(kind)).storage.metadata
    assert 0 < metadata["seed"] < 1_000_000
    assert len(metadata["composition"]) == {"medium-replay": 3, "medium-expert": 2}.get(kind, 1)


@pytest.mark.usefixtures("minari_root")
def test_the_bar_is_full_when_the_set_is_there_and_not_before(
    policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = NAME.format("medium-replay"), []

    class Noting(Bar):
        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            assert self.total == 200
            seen.append((self.n / self.total, bundled_path(name).exists()))
            return shown

    monkeypatch.setattr(bundled, "Bar", Noting)
    build_bundled(name, num_steps=200, policies_dir=policies_dir)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 20
    assert all(there or share < 1 for share, there in seen[:-2]) and seen[-1] == (1, True)


@pytest.mark.usefixtures("minari_root")
def test_episodes_are_whole_and_true_to_the_simulator(policies_dir: Path) -> None:
    build("medium-replay", policies_dir, num_steps=150)
    env = gymnasium.make(ENV)
    seeds = []
    storage = minari.load_dataset(NAME.format("medium-replay")).storage
    metadata = list(storage.get_episode_metadata(range(storage.total_episodes)))
    for episode, meta in zip(
        storage.get_episodes(range(storage.total_episodes)), metadata, strict=True
    ):
        seeds.append(meta["seed"])
        observation, _ = env.reset(seed=meta["seed"])
        steps = len(episode["rewards"])
        for t in range(steps):
            np.testing.assert_array_equal(observation, episode["observations"][t])
            observation, reward, terminated, truncated, _ = env.step(episode["actions"][t])
            assert reward == episode["rewards"][t]
            assert terminated == episode["terminations"][t]
            assert truncated == episode["truncations"][t]
            assert (terminated or truncated) == (t == steps - 1)
        np.testing.assert_array_equal(observation, episode["observations"][-1])
    env.close()
    assert len(set(seeds)) == len(seeds)


@pytest.mark.usefixtures("minari_root")
def test_shares_of_the_snapshots(policies_dir: Path) -> None:
    build("medium-replay", policies_dir, num_steps=300, weights=[1, 1, 4])
    metadata = minari.load_dataset(NAME.format("medium-replay")).storage.metadata
    assert [steps for _, steps in metadata["composition"]] == [50, 50, 200]
    for weights in ([1, 1], [1, 1, 0]):
        with pytest.raises(ValueError, match="3 positive numbers"):
            build("medium-replay", policies_dir, weights=weights, overwrite=True)


@pytest.mark.usefixtures("minari_root")
def test_same_seed_same_data_and_the_callers_generator_untouched(policies_dir: Path) -> None:
    torch.manual_seed(3)
    first = build("medium", policies_dir)
    after = torch.rand(1)
    again = build("medium", policies_dir, overwrite=True)
    assert (again.transitions == first.transitions).all()
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


def test_existing_set_is_not_written_over(minari_root: Path, policies_dir: Path) -> None:
    build("medium", policies_dir)
    with pytest.raises(ValueError, match="overwrite"):
        build("medium", policies_dir)
    longer = build("medium", policies_dir, num_steps=600, overwrite=True)
    assert len(longer) >= 600
    assert len(found_sets(minari_root)) == 1


def test_two_builds_at_once_keep_the_first(
    minari_root: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = bundled._move_into_place

    def other_is_faster(name: str, built: Path, overwrite: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bundled, "_move_into_place", move)
            build_bundled(name, num_steps=50, policies_dir=policies_dir, progress=False)
        move(name, built, overwrite)

    monkeypatch.setattr(bundled, "_move_into_place", other_is_faster)
    data = build("medium", policies_dir, num_steps=500)
    assert len(data) < 100
    assert len(found_sets(minari_root)) == 1


def test_unknown_name_suggests(minari_root: Path) -> None:
    with pytest.raises(ValueError, match="nearest: bundled/hopper/medium-replay-v0"):
        OfflineDataset.load("bundled/hoper/medium-reply-v0")
    with pytest.raises(ValueError, match="no bundled data set"):
        ensure_bundled("bundled/ant/medium-v0")
    assert not minari_root.exists() or not list(minari_root.iterdir())


def test_missing_policies_are_named(minari_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env=Walker2d-v5` .* at .*Walker2d-v5.safetensors"):
        build_bundled("bundled/walker2d/medium-v0", policies_dir=tmp_path)
    with pytest.raises(ValueError, match=r"env=Hopper-v5 bundle_until=medium` .*-to-medium.safe"):
        build_bundled("bundled/hopper/medium-expert-v1", policies_dir=tmp_path)
    assert not minari_root.exists() or not list(minari_root.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "env_id", ["HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "Walker2d-v5"]
)
def test_the_packages_policies_play_as_well_as_they_say(env_id: str) -> None:
    assert env_id in {path.stem for path in names.POLICIES.glob("*.safetensors")}
    policies = PolicyBundle(names.POLICIES / f"{env_id}.safetensors")
    assert policies.env_id == env_id and len(policies) > 9
    env = gymnasium.make(env_id)
    said = [snapshot["return_mean"] for snapshot in policies.snapshots]
    assert max(said) == said[policies.expert] and 0 < policies.medium < policies.expert
    torch.manual_seed(0)
    played = []
    for index in (0, policies.medium, policies.expert):
        act = policies.act(index, env.observation_space.shape[0], env.action_space)
        episodes = collect_episodes(act, env_id, num_steps=1_500, seed=index, num_copies=2)
        played.append(float(np.mean([np.sum(episode.rewards) for episode in episodes])))
    # the header has the mode's returns, the data are played with its noise
    random, medium, expert = played
    assert expert > 0.7 * said[policies.expert]
    assert 0.5 * said[policies.medium] < medium < 0.9 * expert
    assert random < 0.1 * medium


class Walk(gymnasium.Env):
    """An episode of 1 or 40 steps, equally likely; the time limit is 50."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.left = 1 if self.np_random.random() < 0.5 else 40
        return np.zeros(1), {}

    def step(self, action: np.ndarray):
        self.left -= 1
        return np.zeros(1), 1.0, self.left == 0, False, {}


@pytest.fixture
def walk_id() -> str:
    gymnasium.register("Walk-v0", Walk, max_episode_steps=50)
    yield "Walk-v0"
    del gymnasium.registry["Walk-v0"]


def test_short_episodes_are_not_favoured(walk_id: str) -> None:
    # Kept are the first episodes to start: the share of long ones is what one copy alone gives.
    act = uniform_random_actions(Walk.action_space)
    kept = {
        copies: [
            collect_episodes(act, walk_id, num_steps=500, seed=1000 * s, num_copies=copies)
            for s in range(30)
        ]
        for copies in (1, 8)
    }
    for one, many in zip(kept[1], kept[8], strict=True):
        assert [len(e) for e in one] == [len(e) for e in many]
        assert [e.seed for e in one] == [e.seed for e in many]
    lengths = [len(e) for episodes in kept[8] for e in episodes]
    assert abs(np.mean(np.array(lengths) == 40) - 0.5) < 0.06


def test_steps_are_reached_by_less_than_one_episode(walk_id: str) -> None:
    act = uniform_random_actions(Walk.action_space)
    counted = []
    for num_steps in (1, 30, 333):
        episodes = collect_episodes(
            act, walk_id, num_steps=num_steps, seed=5, on_steps=counted.append
        )
        assert sum(map(len, episodes)) >= num_steps > sum(map(len, episodes[:-1]))
    assert sum(counted) == 364  # none of those that come after the last one asked for


def test_time_limit_truncates() -> None:
    gymnasium.register("Walk-v1", Walk, max_episode_steps=20)
    try:
        act = uniform_random_actions(Walk.action_space)
        episodes = collect_episodes(act, "Walk-v1", num_steps=200, seed=0)
    finally:
        del gymnasium.registry["Walk-v1"]
    for episode in episodes:
        assert len(episode) in (1, 20)
        assert bool(episode.terminations[-1]) == (len(episode) == 1)
        assert bool(episode.truncations[-1]) == (len(episode) == 20)


def test_policies_are_stochastic_snapshots(policies_dir: Path) -> None:
    bundle = PolicyBundle(policies_dir / f"{ENV}.safetensors")
    assert len(bundle) == 3 and bundle.env_id == ENV
    space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation = np.tile(np.random.default_rng(0).normal(size=(1, 9)), (4000, 1))
    torch.manual_seed(0)
    actions = [bundle.act(i, 9, space)(observation) for i in range(3)]
    for action in actions:
        assert action.shape == (4000, 1) and np.abs(action).max() <= 1 and action.std() > 0.1
    means = [action.mean() for action in actions]
    assert np.ptp(means) > 0.05  # each snapshot its own weights
    wrong = bundle.header | {"hidden_sizes": [8, 8, 8]}
    bundle.header = wrong
    with pytest.raises(ValueError, match="does not fit"):
        bundle.act(0, 9, space)


def test_uniform_actions_fill_their_bounds() -> None:
    space = gymnasium.spaces.Box(np.float32([-2, 1]), np.float32([0, 5]))
    actions = uniform_random_actions(space)(np.zeros((5000, 3)))
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.min(0), [-2, 1], atol=0.01)
    np.testing.assert_allclose(actions.max(0), [0, 5], atol=0.01)
    np.testing.assert_allclose(actions.mean(0), [-1, 3], atol=0.1)


def test_mujoco_leaves_no_log_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with mujoco_messages_logged():
        gymnasium.make("HalfCheetah-v5").close()
    assert not list(tmp_path.iterdir())
    assert "deprecated" not in capfd.readouterr().err
    assert mujoco.get_mju_user_warning() is None  # as before


@pytest.mark.parametrize(
    ("kind", "snapshots"),
    [("medium", [1]), ("medium-replay", [0, 1, 2]), ("medium-expert", [1, 2]), ("expert", [2])],
)
def test_each_kind_is_played_by_its_own_snapshots(
    kind: str, snapshots: list[int], policies_dir: Path
) -> None:
    bundle = PolicyBundle(policies_dir / f"{ENV}.safetensors")
    parts = bundled._parts(kind, [bundle], ENV, 300, None)
    assert [part.label for part in parts] == [f"snapshot at step {1000 * n}" for n in snapshots]
    observation = np.ones((5, 9))
    for part, n in zip(parts, snapshots, strict=True):
        actions = []
        for act in (part.act, bundle.act(n, 9, bundled._actions(ENV))):
            torch.manual_seed(0)
            actions.append(act(observation))
        np.testing.assert_array_equal(*actions)


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("medium", [20]),
        ("medium-replay", [0, 10, 20]),
        ("medium-expert", [20, 2000]),
        ("expert", [2000]),
        ("random", None),
    ],
)
def test_version_1_takes_the_expert_alone_from_the_training_up_to_it(
    kind: str, steps: list[int] | None, policies_dir: Path
) -> None:
    name = f"bundled/hopper/{kind}-v1"
    build_bundled(name, num_steps=120, policies_dir=policies_dir, progress=False)
    metadata = minari.load_dataset(name).storage.metadata
    labels = ["uniform random"] if steps is None else [f"snapshot at step {n}" for n in steps]
    assert [label for label, _ in metadata["composition"]] == labels
    hashes = [PolicyBundle(policies_dir / file).sha256 for file in names.policy_files(name)]
    assert metadata["policies_sha256"] == (" ".join(hashes) or None)
    assert len(hashes) == {"random": 0, "medium-expert": 2}.get(kind, 1)


def test_a_training_up_to_the_medium_policy_has_no_expert(policies_dir: Path) -> None:
    policies = PolicyBundle(policies_dir / "Hopper-v5-to-medium.safetensors")
    assert policies.medium == 2
    with pytest.raises(ValueError, match="of Hopper-v5 end with the medium one"):
        _ = policies.expert


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"])
def test_the_packages_trainings_end_with_a_medium_policy(env_id: str) -> None:
    file = names.POLICIES / f"{env_id}-to-medium.safetensors"
    policies = PolicyBundle(file)
    said = [snapshot["return_mean"] for snapshot in policies.snapshots]
    assert policies.env_id == env_id and len(policies) > 30 and file.stat().st_size < 1e6
    assert policies.medium == len(policies) - 1
    scores = reference_scores_for(env_id)
    assert scores is not None and 0.3 < normalized_score(said[-1], scores) / 100 < 0.5


@pytest.mark.usefixtures("minari_root")
def test_the_sets_of_version_0_stay_as_they_were() -> None:
    for env_id, half in VERSION_0.items():
        assert PolicyBundle(names.POLICIES / f"{env_id}.safetensors").sha256.startswith(half)
    name = NAME.format("medium-expert")
    build_bundled(name, num_steps=60, progress=False)
    metadata = minari.load_dataset(name).storage.metadata
    assert metadata["seed"] == 400_000 and metadata["policies_sha256"].startswith(VERSION_0[ENV])
    played = [["snapshot at step 11000", 30], ["snapshot at step 12000", 30]]
    assert metadata["composition"] == played


def test_the_page_has_the_measured_table() -> None:
    docs = Path(__file__).parents[2] / "docs"
    with (docs / "results" / "bundled_sets.csv").open(newline="") as f:
        head, *rows = csv.reader(f)
    cells = [[f"`{row[0]}`", *row[1:]] for row in rows]
    table = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    assert "\n".join(f"| {' | '.join(row)} |" for row in table) in (docs / "data.md").read_text()


def test_a_set_has_policies_or_is_not_offered() -> None:
    for name in bundled_names():
        assert all((names.POLICIES / file).is_file() for file in names.policy_files(name)), name


def test_bundles_are_small() -> None:
    sizes = [path.stat().st_size for path in names.POLICIES.glob("*.safetensors")]
    assert max(sizes) < 1_000_000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("stage", ["collect_episodes", "create_dataset_from_buffers", "move"])
def test_a_build_that_cannot_be_written_leaves_nothing(
    stage: str,
    error: BaseException,
    minari_root: Path,
    policies_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, attribute = {
        "collect_episodes": (bundled, "collect_episodes"),
        "create_dataset_from_buffers": (minari, "create_dataset_from_buffers"),
        "move": (bundled, "_move_into_place"),
    }[stage]
    real: Callable[..., object] = getattr(owner, attribute)

    def fails_after(*args: object, **kwargs: object) -> None:
        if stage != "move":
            real(*args, **kwargs)  # everything is written when it breaks
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, fails_after)
        with pytest.raises(type(error)) as caught:
            build("medium", policies_dir)
    if isinstance(error, OSError):
        assert f"in {minari_root} ([Errno 28] No space left)" in str(caught.value)
        assert "MINARI_DATASETS_PATH" in str(caught.value)
    assert found_sets(minari_root) == []
    assert not list(minari_root.glob(".building-*"))
    assert not bundled_path(NAME.format("medium")).exists()
    assert len(build("medium", policies_dir)) >= 300  # and a later build works


def test_a_full_disk_is_told_before_anything_is_played(
    minari_root: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # HDF5 crashes on a full disk: there is no error to be caught while it writes.
    monkeypatch.setattr(bundled, "collect_episodes", lambda *args, **kwargs: pytest.fail("played"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be built in .*MINARI_DATASETS_PATH"):
            build_bundled(
                "bundled/inverteddoublependulum/random-v0",
                policies_dir=policies_dir,
                progress=False,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(minari_root.iterdir())


def test_a_root_that_cannot_be_made(
    tmp_path: Path, policies_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "minari"))
    with pytest.raises(OSError, match="root cannot be made.*MINARI_DATASETS_PATH"):
        OfflineDataset.load("bundled/inverteddoublependulum/random-v0")
    with pytest.raises(OSError, match="root cannot be made"):
        OfflineDataset.load("toy/set-v0")
    assert bundled.bundled_names()


@pytest.mark.parametrize(("length", "count"), [(1, 60), (400, 4)])
def test_the_room_asked_for_is_enough(length: int, count: int, store: Callable[..., Path]) -> None:
    episode = {
        "observations": np.zeros((length + 1, 9)),
        "actions": np.zeros((length, 2), np.float32),
        "rewards": np.zeros(length),
        "terminations": np.zeros(length, bool),
        "truncations": np.arange(length) == length - 1,
    }
    folder = store("toy/size-v0", *[episode] * count)
    written = sum(path.stat().st_size for path in folder.parent.rglob("*"))
    asked = bundled._stored_bytes("InvertedDoublePendulum-v5", length * count, count)
    assert written < asked - 1_000_000  # without what is always added


@pytest.mark.usefixtures("minari_root")
def test_load_builds_on_first_use(policies_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "POLICIES", policies_dir)
    small = (ENV, 200, ("expert",), 1)
    monkeypatch.setitem(names.BUNDLED_ENVIRONMENTS, "inverteddoublependulum", small)
    data = OfflineDataset.load(NAME.format("expert"), progress=False)
    assert 200 <= len(data) < 300 and (bundled_path(NAME.format("expert")) / "data").is_dir()
    monkeypatch.setattr(bundled, "build_bundled", lambda *args, **kwargs: pytest.fail("again"))
    ensure_bundled(NAME.format("expert"))
    assert (OfflineDataset.load(NAME.format("expert")).transitions == data.transitions).all()
