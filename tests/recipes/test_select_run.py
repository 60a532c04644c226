"""The offline choice looks at training alone, throws divergence out and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import select_run
from launcher import valuing

from rambo_trl.reporting.offline_values import OFFLINE_VALUES_FILE, OfflineValues, Samples
from rambo_trl.reporting.runs import Record, configurations, find_runs
from rambo_trl.reporting.selection import rank, rank_by_return, why_discarded, window_of

MakeRun = Callable[..., str]
BOUND = 600.0


def waver(size: float, *, level: float = 200.0, epochs: int = 60, seed: int = 0) -> list[float]:
    """Mean Q that rises to a level and then wavers around it."""
    noise = size * np.random.default_rng(seed).standard_normal(epochs)
    return (level * (1 - np.exp(-np.arange(epochs) / 4)) + noise).tolist()


def three(
    make_run: MakeRun, folder: Path, *, scores: tuple[float, float, float] = (70.0, 50.0, 90.0)
) -> Path:
    """A steady configuration, a wavering one and one that leaves what the rewards allow."""
    steady, wavering, exploding = scores
    for s in range(2):
        for name, score, values, weight in (
            ("steady", steady, waver(1.0, seed=s), 3e-4),
            ("wavering", wavering, waver(20.0, seed=s), 3e-3),
            ("exploding", exploding, [*waver(0.1, epochs=59), 2 * BOUND], 0.0),
        ):
            make_run(
                folder / f"{name}{s}", seed=s, score=score, mean_q=values, q_bound=BOUND,
                settings={"adversarial_weight": weight},
            )  # fmt: skip
    return folder


def test_the_steadiest_is_chosen_whatever_its_evaluations(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = []
    for k, scores in enumerate(((float("nan"), 1.0, 2.0), (0.0, 100.0, 50.0), (70.0, 50.0, 90.0))):
        assert (
            select_run.main(["--rule", "q", str(three(make_run, tmp_path / str(k), scores=scores))])
            == 0
        )
        text = capsys.readouterr().out
        choices.append(text.split("afterwards")[0].replace(str(tmp_path / str(k)), ""))
    assert choices[0] == choices[1] == choices[2]
    assert "chosen: RAMBO (adversarial_weight=0.0003), quick" in text
    # neither marked as diverged nor bad in its evaluations: only the bound tells
    assert "exploding0: epoch 60: mean Q 1200 is beyond 600" in text
    # but what a choice by score would have given is told
    assert "offline choice      70.0  RAMBO (adversarial_weight=0.0003)" in text
    assert "online choice       90.0  RAMBO (adversarial_weight=0.0)" in text
    assert "mean of all         70.0" in text


def test_variance_is_that_of_the_last_epochs(make_run: MakeRun, tmp_path: Path) -> None:
    values = [*np.linspace(0, 500, 30), *([500.0, 502.0] * 15)]
    make_run(tmp_path / "a", mean_q=values, q_bound=BOUND)
    found = configurations(find_runs([tmp_path / "a"])[0])
    window = window_of(found[0].runs)
    assert window == 30  # half of the run, however many are wanted
    (candidate,) = rank(found, window)
    assert candidate.variance == pytest.approx(1.0) and candidate.mean_q == pytest.approx(501.0)
    assert window_of(found[0].runs, 10) == 10


def test_a_configuration_of_which_fewer_runs_diverge_comes_first(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for s in range(2):
        for name, size, weight in (("calm", 1.0, 1.0), ("wild", 30.0, 2.0)):
            make_run(
                tmp_path / f"{name}{s}", seed=s, mean_q=waver(size, seed=s), q_bound=BOUND,
                diverged=name == "calm" and s == 1, settings={"adversarial_weight": weight},
            )  # fmt: skip
    first, second = rank(configurations(find_runs([tmp_path])[0]), 30)
    assert first.configuration.differs == {"adversarial_weight": 2.0}
    assert second.share_discarded == 0.5 and second.variance < first.variance


@pytest.mark.parametrize(
    ("mean_q", "entropy", "expected"),
    [
        (float("nan"), None, "epoch 2: "),
        (float("inf"), None, "epoch 2: "),
        (-2 * BOUND, None, "epoch 2: "),
        (BOUND, None, None),
        # a run's bound holds the entropy already: it is not added once more
        (BOUND, 2.0, None),
        (BOUND + 0.5, 2.0, "mean Q 600.5 is beyond 600"),
        (1.0, float("nan"), "not finite: entropy"),
    ],
)
def test_what_rules_a_run_out(mean_q: float, entropy: float | None, expected: str | None) -> None:
    row = {"mean_q": mean_q, "alpha": 1.0, "entropy": entropy, "score": float("nan")}
    rows = [{"epoch": 1, "mean_q": 1.0}, {"epoch": 2, **row}]
    results = {"diverged": False, "q_bound": BOUND, "epochs": 2}
    reason = why_discarded(Record(Path("r"), results, rows, {}))
    assert (reason is None) if expected is None else (expected in (reason or ""))


def test_a_diverged_run_is_no_return_of_zero(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # where every return is negative, 0 would be the best
    unscored = {"behaviour_score": None, "behaviour_score_best": None, "cloned_score": None}
    for s in range(2):
        for name, value, weight in (("whole", -100.0, 1.0), ("half", -90.0, 2.0)):
            make_run(
                tmp_path / f"{name}{s}", seed=s, score=None, return_mean=value, q_bound=BOUND,
                mean_q=waver(1.0, seed=s), diverged=name == "half" and s == 1,
                settings={"adversarial_weight": weight}, **unscored,
            )  # fmt: skip
    assert select_run.main(["--rule", "q", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "online choice     -100.0  RAMBO (adversarial_weight=1.0)" in text
    assert "without the diverged runs (1)" in text
    found = configurations(find_runs([tmp_path])[0])
    assert [value for value, _ in rank_by_return(found)] == [-100.0, -90.0]


def test_a_run_of_one_epoch_is_out(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # one value has no deviation: such a run would always be the steadiest
    short = make_run(tmp_path / "short", mean_q=[1.0], q_bound=BOUND, settings={"tau": 1.0})
    assert select_run.main(["--rule", "q", short]) == 2
    assert "every run is out: fewer than two epochs of mean Q" in capsys.readouterr().err
    make_run(tmp_path / "long", mean_q=waver(1.0), q_bound=BOUND, settings={"tau": 2.0})
    assert select_run.main(["--rule", "q", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "chosen: RAMBO (tau=2.0), quick" in text
    assert f"out: {short}: fewer than two epochs of mean Q" in text
    assert "mean Q, last 30 epochs" in text  # nor does it shorten the others' window


def test_what_is_left_out_or_not_recorded_is_named(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", mean_q=waver(1.0), score=None)
    make_run(tmp_path / "b", diverged=True)
    make_run(tmp_path / "s/001", seed=1, ended=False)
    make_run(tmp_path / "s/002", mean_q=None, method="BC")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/results.json").write_text("{}")
    assert select_run.main(["--rule", "q", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    first, second, third = err.splitlines()
    assert first.startswith(f"left out, {tmp_path / 'other/results.json'} is another program's")
    assert second == f"left out, not ended: {tmp_path / 's/001'}"
    assert third == f"left out, no mean Q in its metrics: {tmp_path / 's/002'}"
    assert "do not record" in out and "b: mean Q is beyond" in out


def test_bad_input_is_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", dataset="bundled/hopper/medium-v0")
    broken = make_run(tmp_path / "c", diverged=True)
    without = make_run(tmp_path / "d", mean_q=None)
    for words, expected in (
        ([str(tmp_path / "none")], "does not exist"),
        ([one, "--level", "1"], "--level"),
        ([one], "none of these runs has a policy to value: --rule q goes by mean Q alone"),
        ([one, other], "choose within one"),
        ([broken], "every run is out"),
        ([without], "none of these runs has a mean Q"),
        ([one, "--window", "1"], "--window"),
        ([make_run(tmp_path / "e", ended=False)], "no run that has ended"),
    ):
        rule = [] if "--level" in words or "--rule q" in expected else ["--rule", "q"]
        assert select_run.main([*rule, *words]) == 2
        captured = capsys.readouterr()
        line = captured.err.splitlines()[-1]
        assert captured.out == "" and line.startswith("error: ") and expected in line


def valued(
    path: str,
    by_member: Sequence[float],
    *,
    gamma: float = 0.99,
    starts: int = 9,
    name: str = OFFLINE_VALUES_FILE,
) -> str:
    """A run whose policy has been valued; its policy is not read."""
    folder = Path(path)
    (folder / "policy.safetensors").touch()
    member = np.array(by_member)
    samples = {
        "policy": Samples(np.full(starts, member.mean()), member),
        "behaviour": Samples(np.full(starts, 10.0), np.array([9.0, 10.0, 11.0])),
    }
    OfflineValues("d", gamma, 0.9, 1.0, {}, {}, {}, samples=samples).write(folder, name)
    return path


class Saved:
    """A run that has been read."""

    data = object()


class Evaluation:
    """What values runs on the same data."""

    def __init__(self, data: object, *, gamma: float) -> None:
        self.data, self.gamma = data, gamma


class Stub:
    """Values runs at once, and notes which; one in a folder ``torn`` cannot be read."""

    def __init__(self) -> None:
        self.measured: list[tuple[str, Evaluation]] = []
        self.read: list[Saved | None] = []

    def load(self, path: Path, other: Saved | None) -> Saved:
        self.read.append(other)
        if path.name == "torn":
            raise FileNotFoundError("no checkpoint")
        return Saved()

    def measure(
        self, path: Path, *, again: bool, run: Saved, evaluation: Evaluation, name: str
    ) -> None:
        self.measured.append((path.name, evaluation))
        valued(str(path), (1.0, 1.5, 2.0), gamma=evaluation.gamma, name=name)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """In the place of fitted Q evaluation."""
    stub = Stub()
    monkeypatch.setattr(valuing, "load_saved", stub.load)
    monkeypatch.setattr(valuing, "OfflineEvaluation", Evaluation)
    monkeypatch.setattr(valuing, "offline_values", stub.measure)
    return stub


def test_the_choice_goes_by_the_values_that_are_there(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, weight, score, by_member in (
        ("low", 1.0, 90.0, (20.0, 21.0, 22.0)),
        ("high", 2.0, 70.0, (50.0, 51.0, 52.0)),
    ):
        settings = {"adversarial_weight": weight}
        run = make_run(tmp_path / name, settings=settings, score=score, q_bound=BOUND)
        valued(run, by_member)
    # what its training rules out needs no values, and a method without critics is a candidate
    diverged = make_run(tmp_path / "diverged", diverged=True, settings={"adversarial_weight": 3.0})
    (Path(diverged) / "policy.safetensors").touch()
    valued(make_run(tmp_path / "clone", mean_q=None, method="BC"), (30.0, 31.0, 32.0))
    bare = make_run(tmp_path / "bare", settings={"adversarial_weight": 4.0})
    assert select_run.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == f"left out, no policy.safetensors: {bare}\n"
    assert "| 1 | RAMBO (adversarial_weight=2.0), quick | 1 | - | 51 (48.08 to 53.92) |" in out
    assert "| 2 | BC, quick | 1 | - | 31 " in out
    assert "chosen: RAMBO (adversarial_weight=2.0), quick\nbecause its estimate exceeds" in out
    assert "its estimate exceeds that of the logged behaviour, by 41 (41 to 41)" in out
    assert f"out: {diverged}: mean Q is beyond" in out
    assert "offline choice      70.0" in out and "online choice       90.0" in out


def test_values_of_different_kinds_are_not_compared(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = valued(make_run(tmp_path / "a"), (1.0, 2.0))
    other = valued(make_run(tmp_path / "b"), (1.0, 2.0), starts=7)
    assert select_run.main([one, other]) == 2
    assert "different held-out episodes: give --again" in capsys.readouterr().err


def test_runs_with_other_discount_factors_are_valued_with_one(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], stub: Stub
) -> None:
    for name, gamma, weight in (("a", 0.99, 1.0), ("b", 0.995, 2.0)):
        settings = {"agent": {"gamma": gamma}, "adversarial_weight": weight}
        valued(make_run(tmp_path / name, settings=settings), (1.0, 1.5, 2.0), gamma=gamma)
    own = (tmp_path / "b/offline_values.json").read_bytes()
    valued(make_run(tmp_path / "clone", method="BC"), (1.0, 1.5, 2.0))  # has no discount factor
    assert select_run.main([str(tmp_path)]) == 0
    assert "discount by 0.99 and 0.995: all are valued with 0.99 (" in capsys.readouterr().err
    assert [(name, e.gamma) for name, e in stub.measured] == [("b", 0.99)]
    assert (tmp_path / "b/offline_values.json").read_bytes() == own  # the report's stays
    assert select_run.main([str(tmp_path)]) == 0 and len(stub.measured) == 1
    assert select_run.main([str(tmp_path), "--gamma", "0.995"]) == 0
    assert [name for name, _ in stub.measured[1:]] == ["a", "clone"]
    assert select_run.main([str(tmp_path), "--gamma", "1"]) == 2
    assert "--gamma must be" in capsys.readouterr().err


def test_what_is_missing_is_measured_once(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], stub: Stub
) -> None:
    valued(make_run(tmp_path / "a"), (1.0, 1.5, 2.0))
    for name in ("b", "c", "torn"):
        (Path(make_run(tmp_path / name, settings={"tau": name})) / "policy.safetensors").touch()
    assert select_run.main([str(tmp_path)]) == 0
    measured, read = stub.measured, stub.read
    assert [name for name, _ in measured] == ["b", "c"]
    # the data are read and the behaviour is valued once
    assert measured[0][1] is measured[1][1] and isinstance(read[1], Saved)
    said = capsys.readouterr().err
    assert "(2 of 3" in said and f"left out, no checkpoint: {tmp_path / 'torn'}" in said
    assert select_run.main([str(tmp_path)]) == 0 and len(measured) == 2
    assert select_run.main([str(tmp_path), "--again"]) == 0 and len(measured) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_dataset")
def test_real_runs_are_valued_with_the_same_data(
    tmp_path: Path,
    run_recipe: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("task=inverteddoublependulum-medium-replay", "schedule=smoke", "compile=false",
             "threads=1", "dataset=test/idp/tiny-v0", "evaluation.episodes=2")  # fmt: skip
    for recipe, own in (("bc", ()), ("rambo", ("adversarial_weight=3e-4",))):
        run_recipe(tmp_path, recipe, *words, *own, f"run_dir={recipe}")
    capsys.readouterr()
    brief = partial(valuing.OfflineEvaluation, fit={"updates": 20, "regression_updates": 5})
    monkeypatch.setattr(valuing, "OfflineEvaluation", brief)
    runs = find_runs([tmp_path])[0]
    known = valuing.values_of_runs(runs)
    assert capsys.readouterr().err.count("valuing ") == 2
    bc, rambo = (values.samples for _, values in known if values)
    assert bc["behaviour"].by_start == pytest.approx(rambo["behaviour"].by_start)
    assert bc["policy"].by_start.shape == rambo["policy"].by_start.shape
    assert bc["policy"].by_start != pytest.approx(rambo["policy"].by_start)
    assert len(valuing.values_of_runs(runs)) == 2
    assert "valuing " not in capsys.readouterr().err
