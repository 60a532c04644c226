"""Which runs share a fitted model and a cloned policy, and runs that are given one of the two."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import bc
import launcher.pretraining
import pytest
import torch
from launcher.command_line import compose_jobs
from launcher.launch import make_run
from launcher.offline import cloned_policy
from launcher.pretraining import PRETRAINING, find_pretrained, pretrain
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.checkpoint import seed_everything
from rambo_trl.experiment.evaluation import write_policy
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.policy import load_policy
from rambo_trl.experiment.pretrained import dataset_digest
from rambo_trl.experiment.signals import Interruption

pytestmark = pytest.mark.usefixtures("brief_ending")
#: a task whose behaviour is cloned
BASE = ("schedule=smoke", "task=hopper-medium-replay")


@cache
def shipped(name: str) -> DictConfig:
    words = BASE if name == "bc" else (*BASE, "pretrained=auto")
    (cfg,) = compose_jobs(name, words, check=lambda cfg: None)
    published = getattr(importlib.import_module(name), "published", lambda task: {})
    for key, value in published("").items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
    return cfg


def compose(name: str, *words: str) -> DictConfig:
    cfg = shipped(name).copy()
    for word in words:
        key, value = word.split("=")
        # settings that there are, and other values
        OmegaConf.update(cfg, key, OmegaConf.from_dotlist([f"x={value}"]).x, force_add=False)
    return cfg


def key_of(cfg: DictConfig, digest: str = "data") -> str:
    return find_pretrained(cfg, {"dataset_digest": digest}, net=torch.nn.Identity()).key


#: of the model, but not of its fit
ADVERSARIAL = {
    "model.adversarial_lr", "model.adversarial_lr_decay", "model.adversarial_batch_size",
    "model.likelihood_batch_size",
}  # fmt: skip
#: of adversarial training and of what comes after pretraining
SHARED = [
    "adversarial_weight=0", "adversarial_weight=0.01", "model.adversarial_lr=1", "epochs=7",
    "model.adversarial_lr_decay=cosine", "model.adversarial_batch_size=9",
    "model.likelihood_batch_size=9", "adversary_density=member",
    "model_updates=3", "agent_updates=3", "rollout_length=9", "rollout_starts=7",
    "retained_epochs=2", "agent.critic_lr=1", "agent.actor_lr=1", "agent.gamma=0.5",
    "agent.real_fraction=0.1", "advantage_clip=2", "model_term=kl", "likelihood_budget=1",
    "value_budget=9",
    "on_divergence=continue", "checkpoint_every=9", "run_dir=elsewhere", "evaluation.every=9",
]  # fmt: skip
#: what decides the fit, the clone or what is measured of it
OWN = [
    "seed=1", "model.lr=1", "model.num_members=9", "model.num_elites=1", "model.batch_size=17",
    "model.hidden_sizes=[7]", "model.patience=9", "model.min_improvement=0.5", "model.max_passes=9",
    "model.max_updates=9", "model.holdout_every=9", "cloning.updates=9",
    "model.lr_decay=cosine", "model.beta=0.5", "cloning.episode_share=0.5", "cloning.passes=9",
    "cloning.lr=1",
    "cloning.batch_size=17", "clone_behaviour=false",
    "agent.hidden_sizes=[7]", "evaluation.episodes=9", "num_critics=3", "compile=true",
    "deterministic=true", "float32_matmul_precision=medium", "model_matmul_dtype=bfloat16",
]  # fmt: skip


@pytest.mark.parametrize("word", SHARED)
def test_runs_that_pretrain_alike_share_a_file(word: str) -> None:
    cfg = compose("rambo", word)
    assert cfg != compose("rambo") and key_of(cfg) == key_of(compose("rambo"))


@pytest.mark.parametrize("word", OWN)
def test_runs_that_pretrain_otherwise_have_files_of_their_own(word: str) -> None:
    assert compose("rambo").clone_behaviour is True
    assert key_of(compose("rambo", word)) != key_of(compose("rambo"))


def test_every_setting_of_the_fit_and_the_clone_is_tried() -> None:
    tried = {word.split("=")[0] for word in OWN}
    cfg = compose("rambo")
    settings = {f"{group}.{key}" for group in ("model", "cloning") for key in cfg[group]}
    assert settings - tried == ADVERSARIAL


def test_the_data_and_the_threads_have_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("rambo")
    assert key_of(cfg, "data") == key_of(cfg, "data") != key_of(cfg, "other data")
    here = key_of(cfg)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert key_of(cfg) != here


def test_a_file_with_one_part_counts_by_its_content(tmp_path: Path) -> None:
    file, same, other = (tmp_path / name for name in ("file", "same", "other"))
    for path, content in ((file, "x"), (same, "x"), (other, "y")):
        path.write_text(content)
    keys = {}
    for name in ("fitted_model", "cloned_policy"):
        keys[name] = key_of(compose("rambo", f"{name}={file}"))
        assert keys[name] == key_of(compose("rambo", f"{name}={same}"))
        assert keys[name] != key_of(compose("rambo", f"{name}={other}"))
    assert len({key_of(compose("rambo")), *keys.values()}) == 3


def test_the_documentation_names_all_that_the_key_is_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    (tmp_path / "file").touch()
    files = (f"{name}={tmp_path / 'file'}" for name in ("fitted_model", "cloned_policy"))
    cfg = compose(
        "rambo",
        "device=cuda",
        "deterministic=true",
        "float32_matmul_precision=high",
        "model_matmul_dtype=bfloat16",
        "num_critics=3",
        "reward_scale=2.0",
        "rollout_direction=both",
        *files,
    )
    settings = find_pretrained(cfg, {"dataset_digest": "d"}, net=torch.nn.Identity()).settings
    text = (Path(__file__).parents[2] / "docs/pretraining.md").read_text()
    table = text.split("| in the name of an `auto` file |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = {name for cell in cells for name in re.findall("`([a-z0-9_.]+)`", cell)}
    words = {"dataset_digest": "the data's", "versions": "versions", "card": "the GPU's name"}
    assert all(word in "".join(cells) for word in words.values())
    assert named == (settings.keys() - words.keys()) | ADVERSARIAL


# --- the key is right about it: runs that share one begin pretraining in the same state, and one
# that loads the file goes on as one that has pretrained


def data(shift: float = 0.0) -> OfflineDataset:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(300, 2, generator=generator)
    action = 2 * torch.rand(300, 1, generator=generator) - 1
    following = TensorDict(
        observation=observation + 0.1 * action,
        reward=action + shift,
        terminated=(observation[:, :1] > 1),
        batch_size=[300],
    )
    rows = TensorDict(observation=observation, action=action, next=following, batch_size=[300])
    return OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))


class Begun(BaseException):
    """What a recipe hands to its pretraining, and nothing of what follows."""

    def __init__(
        self, run: Any, cfg: DictConfig, rows: OfflineDataset, model: Any, actor: Any, *more: Any
    ) -> None:
        self.run, self.cfg, self.model, self.actor = run, cfg, model, actor
        self.parts = (run, cfg, rows, model, actor, *more)

    def pretrain(self) -> None:
        pretrain(*self.parts)

    @property
    def file(self) -> Path:
        """Its model as it was fitted."""
        return self.run.folder.path / "pretrained_model.safetensors"


def begun(folder: Path, name: str, *words: str) -> Begun:
    """A run right before its pretraining."""
    small = (
        "model.batch_size=64", "cloning.batch_size=64", "termination=none", "threads=1",
        "model.max_updates=20", "cloning.updates=20",
    )  # fmt: skip
    cfg = compose(name, *small, "clone_behaviour=true", *words, f"cache_dir={folder}/cache")
    path = RunFolder.create(folder / f"run{len(list(folder.iterdir()))}")
    run = make_run(cfg, data(), path, Interruption())
    seed_everything(cfg.seed)
    recipe = importlib.import_module(name)

    def begin(*parts: Any, further: Any = None) -> None:
        raise Begun(*parts, further)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "pretrain", begin)
        with pytest.raises(Begun) as caught:
            recipe.train(run, cfg, run.dataset)
    return caught.value


def state(method: Begun) -> dict[str, torch.Tensor]:
    """All that pretraining starts from, or leaves behind."""
    parts = {"model": method.model, "actor": method.actor}
    found = {f"{name}.{k}": v for name, m in parts.items() for k, v in m.state_dict().items()}
    found["random"] = torch.get_rng_state()
    return {k: v.detach().clone() for k, v in found.items() if isinstance(v, torch.Tensor)}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


OTHERS: list[tuple[str, tuple[str, ...]]] = [
    ("mopo", ()),
    ("mobile", ()),
    ("morel", ()),
    ("combo", ()),
    ("rambo", ("adversarial_weight=0",)),
    ("rambo", ("model_term=kl",)),
    ("rambo", ("likelihood_budget=1", "advantage_clip=1")),
    ("rambo", ("rollout_policy=random", "retained_epochs=1", "agent.batch_size=17")),
]


@pytest.mark.parametrize(("name", "words"), OTHERS)
def test_runs_that_share_a_key_begin_in_the_same_state(
    name: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    one = begun(tmp_path, "rambo")
    wanted, key = state(one), key_of(one.cfg)
    other = begun(tmp_path, name, *words)
    assert key_of(other.cfg) == key
    assert differences(state(other), wanted) == []
    assert differences(state(begun(tmp_path, name, *words, "seed=1")), wanted)


def test_a_run_with_another_adversary_continues_from_the_file_as_if_it_had_pretrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = begun(tmp_path, "rambo", "adversarial_weight=0.1")
    before = state(one)
    one.pretrain()
    wanted = state(one)
    assert differences(before, wanted)
    (file,) = (tmp_path / "cache").glob("*.pt")
    assert file.stem == key_of(one.cfg, dataset_digest(data()))

    other = begun(tmp_path, "rambo", "adversarial_weight=0")
    monkeypatch.setattr(launcher.pretraining, "fit_world_model", refuse)
    monkeypatch.setattr(launcher.pretraining, "clone_behaviour", refuse)
    other.pretrain()
    monkeypatch.undo()
    assert differences(state(other), wanted) == []
    assert {"holdout_mse", "model_passes", "cloned"} <= one.run.progress.keys()
    for measured in PRETRAINING:
        assert other.run.progress.get(measured) == one.run.progress.get(measured)

    for n, words in enumerate((["seed=1"], ["model.lr=1e-2"], ["cloning.lr=1e-2"]), start=2):
        begun(tmp_path, "rambo", *words).pretrain()
        assert len(list((tmp_path / "cache").glob("*.pt"))) == n, words


def test_other_data_is_another_digest() -> None:
    assert dataset_digest(data()) != dataset_digest(data(shift=1e-3))


# --- one part alone


@pytest.fixture(scope="module")
def pretrained_run(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """A run of RAMBO that has pretrained, with its model in its folder."""
    method = begun(tmp_path_factory.mktemp("first"), "rambo", "pretrained=null")
    method.pretrain()
    return method


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("there is nothing to fit or to clone")


def test_the_clone_is_kept_and_found_again(pretrained_run: Begun, tmp_path: Path) -> None:
    folder = pretrained_run.run.folder.path
    wanted = pretrained_run.actor.state_dict()
    kept = load_policy(folder / "cloned_policy.safetensors").actor.state_dict()
    assert all(torch.equal(kept[k], wanted[k]) for k in kept)
    clone = cloned_policy(folder, pretrained_run.cfg, pretrained_run.run.dataset)
    assert clone is not None
    assert all(torch.equal(x, wanted[k]) for k, x in clone.state_dict().items())
    # a run that kept no file is cloned again, with other draws
    again = cloned_policy(tmp_path, pretrained_run.cfg, pretrained_run.run.dataset)
    assert again is not None
    assert any(not torch.equal(x, wanted[k]) for k, x in again.state_dict().items())
    cfg = DictConfig({**pretrained_run.cfg, "clone_behaviour": False})
    assert cloned_policy(tmp_path, cfg, pretrained_run.run.dataset) is None


def test_a_fitted_model_alone(
    pretrained_run: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.pretraining, "fit_world_model", refuse)
    file = pretrained_run.file
    # the last of RAMBO's takes MOPO's
    for name, words in (("rambo", ()), ("mopo", ()), ("rambo", ("adversarial_weight=0",))):
        words = (*words, f"fitted_model={file}", "pretrained=null", "seed=1")
        method = begun(tmp_path, name, *words)
        file = method.file
        before = state(method)
        method.pretrain()
        after, wanted = state(method), state(pretrained_run)
        models = [{k: v for k, v in s.items() if k.startswith("model.")} for s in (after, wanted)]
        assert differences(*models) == []
        changed = differences(before, after)
        assert any(k.startswith("actor.") for k in changed), "it clones for itself"
        for measured in ("holdout_mse", "model_passes"):
            assert method.run.progress[measured] == pretrained_run.run.progress[measured]


def test_the_policy_of_a_bc_run_alone(
    pretrained_run: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose("bc", "agent.batch_size=64", "epochs=1")
    run = make_run(cfg, data(), RunFolder.create(tmp_path / "bc"), Interruption())
    bc.train(run, cfg, run.dataset)
    file = tmp_path / "bc/policy.safetensors"

    monkeypatch.setattr(launcher.pretraining, "clone_behaviour", refuse)
    # also in a task that does not clone
    words = (f"cloned_policy={file}", "clone_behaviour=false")
    one = begun(tmp_path, "rambo", *words)
    before = state(one)
    one.pretrain()
    policy = load_policy(file).actor.state_dict()
    assert all(torch.equal(one.actor.state_dict()[k], v) for k, v in policy.items())
    assert any(k.startswith("model.") for k in differences(before, state(one))), "it fits a model"
    assert one.run.progress["cloned"]  # and is evaluated, as a cloned policy is

    # a sweep over lambda: the second run finds both in the cache
    words = (f"cloned_policy={tmp_path / 'bc'}", "clone_behaviour=false")  # the folder is the same
    other = begun(tmp_path, "rambo", *words, "adversarial_weight=0.1")
    monkeypatch.setattr(launcher.pretraining, "fit_world_model", refuse)
    other.pretrain()
    assert differences(state(other), state(one)) == []


@pytest.fixture
def policy_file(pretrained_run: Begun, tmp_path: Path) -> Path:
    run = pretrained_run.run
    write_policy(tmp_path / "policy.safetensors", pretrained_run.actor, run.dataset, 0)
    return tmp_path / "policy.safetensors"


def test_both_parts_given_leave_nothing_to_do(
    pretrained_run: Begun, policy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.pretraining, "clone_behaviour", refuse)
    model = pretrained_run.file
    words = ("pretrained=null", "seed=1", f"fitted_model={model}", f"cloned_policy={policy_file}")
    monkeypatch.setattr(launcher.pretraining, "fit_world_model", refuse)
    method = begun(tmp_path, "rambo", *words)
    drawn = torch.get_rng_state()
    method.pretrain()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert differences(state(method), state(pretrained_run)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.hidden_sizes=[7]"], "policy.safetensors has hidden layers of [32, 32]"),
        (["model.hidden_sizes=[7]"], "pretrained_model.safetensors holds a model of other sizes"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_before_any_work(
    words: list[str], message: str, pretrained_run: Begun, policy_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher.pretraining, "fit_world_model", refuse)  # would be the first work
    model = pretrained_run.file
    files = (f"fitted_model={model}", f"cloned_policy={policy_file}")
    method = begun(tmp_path, "rambo", *files, *words)
    with pytest.raises(SystemExit) as end:
        method.pretrain()
    assert end.value.code == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error:")]
    assert message in line


def test_a_resumed_run_keeps_the_model_as_it_was_fitted(tmp_path: Path) -> None:
    method = begun(tmp_path, "rambo", "pretrained=null")
    method.pretrain()
    file = method.file
    before = file.read_bytes()
    with torch.no_grad():  # as adversarial training does
        method.model.biases[-1].add_(1.0)
    method.run.progress["epoch"] = 1
    method.pretrain()
    assert file.read_bytes() == before
