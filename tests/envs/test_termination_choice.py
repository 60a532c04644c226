"""The user's choice of a termination rule, and rules learnt from data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.envs import (
    EnsembleModelEnv,
    LearnedTermination,
    fit_termination,
    learned_termination,
    termination,
)
from rambo_trl.modules import EnsembleWorldModel

MEAN, STD = torch.tensor([5.0, -1.0, 0.0]), torch.tensor([2.0, 0.5, 1.0])
NO_ENDS, SOME_ENDS = torch.zeros(10, 1, dtype=torch.bool), torch.tensor([[True], [False]])


def ends_of(next_observation: Tensor) -> Tensor:
    """The true rule of these tests, in the environment's units: entry 0 above 7.6."""
    return next_observation[..., 0] > 7.6


def make_transitions(rows: int, seed: int = 0, *, ends: bool = True) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    observation, following = torch.randn(2, rows, 3, generator=generator)
    terminated = ends_of(following * STD + MEAN) if ends else torch.zeros(rows, dtype=torch.bool)
    return TensorDict(
        {
            "observation": observation,
            "action": 2 * torch.rand(rows, 1, generator=generator) - 1,
            "next": {"observation": following, "terminated": terminated[:, None]},
        },
        [rows],
    )


class TestChoice:
    @pytest.mark.parametrize("env_id", [None, "Chess-v1"])
    def test_lost_ends_are_refused(self, env_id: str | None) -> None:
        with pytest.raises(ValueError, match="1 of 2 transitions are terminal: choose") as error:
            termination.choose_rule("auto", env_id=env_id, terminated=SOME_ENDS)
        for word in ("learned", "MODULE:FUNCTION", "none", env_id or "no environment"):
            assert word in str(error.value)

    @pytest.mark.parametrize("env_id", [None, "Chess-v1"])
    def test_without_any_end_in_the_data_none_is_needed(self, env_id: str | None) -> None:
        rule = termination.choose_rule("auto", env_id=env_id, terminated=NO_ENDS)
        assert rule is termination.never

    def test_words(self) -> None:
        for choice, want in (("none", termination.never), ("learned", "learned"), (print, print)):
            got = termination.choose_rule(choice, env_id="Hopper-v5", terminated=SOME_ENDS)
            assert got is want

    def test_an_import_path_in_the_working_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "rules_of_mine.py").write_text(
            "def fell(observation, action, next_observation):\n"
            "    return next_observation[..., 0] > 7.6\n"
            "limit = 3\n"
        )
        monkeypatch.chdir(tmp_path)
        before = list(sys.path)
        rule = termination.choose_rule("rules_of_mine:fell", env_id=None, terminated=SOME_ENDS)
        x = torch.tensor([[7.0, 0, 0], [8.0, 0, 0]])
        assert rule(x, x[:, :1], x).tolist() == [False, True]
        assert sys.path == before
        with pytest.raises(ValueError, match="rules_of_mine:limit is not a function but int"):
            termination.import_rule("rules_of_mine:limit")
        with pytest.raises(ValueError, match="cannot be imported .*no attribute 'fall'"):
            termination.import_rule("rules_of_mine:fall")
        monkeypatch.delitem(sys.modules, "rules_of_mine")
        (tmp_path / "rules_unfinished.py").write_text("def fell(observation:\n")
        (tmp_path / "rules_failing.py").write_text("limits = {}['z']\n")
        for module, words in (
            ("rules_unfinished", "SyntaxError: "), ("rules_failing", "KeyError: 'z'"),
            (".rules_failing", "TypeError: "),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=rf"cannot be imported \({words}") as error:
                termination.import_rule(f"{module}:fell")
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("path", ["fell", "rules:", ":fell", "learnt"])
    def test_a_misspelt_choice(self, path: str) -> None:
        with pytest.raises(ValueError, match="must be auto, none, learned or MODULE:FUNCTION"):
            termination.choose_rule(path, env_id=None, terminated=NO_ENDS)

    def test_a_module_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match=r"nowhere:rule cannot be imported \(No module named"):
            termination.import_rule("nowhere:rule")


class TestCheck:
    def check(self, rule: termination.TerminationRule, **kwargs: Any) -> tuple:
        return termination.check_rule(
            rule, make_transitions(2000), observation_mean=MEAN, observation_std=STD, **kwargs
        )

    def test_the_true_rule_agrees_with_the_data(self) -> None:
        assert self.check(lambda s, a, n: ends_of(n)) == (1.0, 0.0)
        assert self.check(termination.never) == (0.0, 0.0)

    def test_the_units_are_the_environments(self) -> None:
        caught, false = self.check(lambda s, a, n: n[:, 0] > (7.6 - 5) / 2)
        assert caught == 1.0 and false > 0.9  # nearly every state lies above

    def test_no_more_rows_than_asked(self) -> None:
        seen = []

        def rule(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
            seen.append(len(observation))
            return ends_of(next_observation)

        assert self.check(rule, max_rows=50) == (1.0, 0.0)
        assert len(seen) == 2 and max(seen) <= 50

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            (lambda s, a, n: n[:, 0], "must return a boolean tensor .* got torch.float32"),
            (lambda s, a, n: n > 0, r"must return a boolean tensor \[\d+\] .*, 3\)"),
            (lambda s, a, n: True, "got bool"),
            (lambda s, a, n: n[:, 99] > 0, "fails on the data .IndexError"),
            (lambda s: s, "fails on the data .TypeError"),
        ],
    )
    def test_rules_that_cannot_be_used(self, rule: termination.TerminationRule, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            self.check(rule)

    def test_a_rule_that_stays_on_the_cpu_is_found_before_the_run(self) -> None:
        settings: dict[str, Any] = {"device": "meta"}  # in a GPU's place
        with pytest.raises(ValueError, match="returns a tensor on cpu for observations on meta"):
            self.check(lambda s, a, n: torch.zeros(len(n), dtype=torch.bool), **settings)


@pytest.fixture(scope="module")
def learnt() -> tuple[LearnedTermination, learned_termination.TerminationFit]:
    """A rule fitted on 4,000 rows, about a tenth of them terminal."""
    return fit_termination(
        make_transitions(4000),
        observation_mean=MEAN,
        observation_std=STD,
        max_updates=1000,
        lr=3e-3,
    )


class TestLearned:
    def test_it_finds_the_true_rule(self, learnt: tuple) -> None:
        rule, fit = learnt
        fresh = make_transitions(20_000, seed=7)
        raw = [fresh[key] * STD + MEAN for key in ("observation", ("next", "observation"))]
        got, want = rule(raw[0], fresh["action"], raw[1]), ends_of(raw[1])
        assert got.dtype == torch.bool and got.shape == want.shape
        assert (got == want).float().mean() > 0.98
        assert got[want].float().mean() > 0.9 and want[got].float().mean() > 0.9
        assert fit.rows == 400 and 20 < fit.terminal_rows < 60
        assert fit.recall > 0.8 and fit.precision > 0.8 and fit.false_ends < 0.05

    def test_held_out_rows_are_not_fitted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = make_transitions(400)
        data["observation"][:, 0] = torch.arange(400.0)  # a name
        fitted, held, logits = set(), set(), LearnedTermination.logits

        def recorded(rule: LearnedTermination, *step: Tensor) -> Tensor:
            (fitted if torch.is_grad_enabled() else held).update(step[0][:, 0].tolist())
            return logits(rule, *step)

        monkeypatch.setattr(LearnedTermination, "logits", recorded)
        _, fit = fit_termination(data, observation_mean=MEAN, observation_std=STD, max_updates=200)
        assert len(held) == fit.rows and fitted.isdisjoint(held)

    def test_the_fit_stops_in_time_and_keeps_its_best_weights(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make_transitions(400)
        data["next", "terminated"] = torch.rand(400, 1) < 0.3  # nothing to learn: it overfits
        looks, logits = [], LearnedTermination.logits

        def recorded(rule: LearnedTermination, *step: Tensor) -> Tensor:
            out = logits(rule, *step)
            if not torch.is_grad_enabled():
                looks.append(out.clone())
            return out

        monkeypatch.setattr(LearnedTermination, "logits", recorded)
        _, fit = fit_termination(
            data, observation_mean=MEAN, observation_std=STD, lr=1e-2, patience=2, max_updates=2000
        )
        assert fit.updates == 600  # the first look was the best
        assert torch.equal(looks[-1], looks[0]) and not torch.equal(looks[1], looks[0])

    @pytest.mark.parametrize(("threshold", "ends"), [(0.01, True), (0.99, False)])
    def test_the_threshold_counts(self, threshold: float, ends: bool) -> None:
        rule = LearnedTermination(MEAN, STD, action_size=1, threshold=threshold)
        x = torch.randn(20, 3) * STD + MEAN
        assert (rule(x, x[:, :1], x) == ends).all()

    def test_probabilities_are_those_of_the_data_not_of_the_balanced_batches(self) -> None:
        """Ends that nothing predicts: the probability must be their rate."""
        data = make_transitions(4000)
        generator = torch.Generator().manual_seed(3)
        data["next", "terminated"] = torch.rand(4000, 1, generator=generator) < 0.05
        rule, _ = fit_termination(
            data, observation_mean=MEAN, observation_std=STD, max_updates=200, patience=1
        )
        fresh = make_transitions(2000, seed=5)
        probability = rule.probability(
            fresh["observation"] * STD + MEAN,
            fresh["action"],
            fresh["next", "observation"] * STD + MEAN,
        )
        assert 0.02 < float(probability.mean()) < 0.1

    def test_the_same_seed_the_same_rule_and_the_callers_generator_untouched(self) -> None:
        settings = {"observation_mean": MEAN, "observation_std": STD, "max_updates": 200}
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, second, other = (
            fit_termination(make_transitions(300), **settings, seed=seed)[0] for seed in (4, 4, 5)
        )
        assert torch.equal(torch.get_rng_state(), state)
        pairs = list(zip(first.parameters(), second.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(next(first.parameters()), next(other.parameters()))

    def test_a_state_that_is_not_finite_ends(self, learnt: tuple) -> None:
        x = torch.full((2, 3), float("nan"))
        assert learnt[0](x, x[:, :1], x).all()

    def test_its_state_comes_back(self, learnt: tuple) -> None:
        rule, _ = learnt
        other = LearnedTermination(torch.zeros(3), torch.ones(3), action_size=1)
        other.load_state_dict(rule.state_dict())
        x = 3 * torch.randn(50, 3) + MEAN
        assert torch.equal(other(x, x[:, :1], x), rule(x, x[:, :1], x))

    @pytest.mark.parametrize("ends", [False, True])
    def test_data_of_one_kind_are_refused(self, ends: bool) -> None:
        data = make_transitions(50, ends=False)
        data["next", "terminated"].fill_(ends)
        with pytest.raises(ValueError, match="at least 2 .* transitions, the data have 0"):
            fit_termination(data, observation_mean=MEAN, observation_std=STD)

    def test_two_of_each_kind_are_enough(self) -> None:
        data = make_transitions(50, ends=False)
        data["next", "terminated"][:2] = True
        _, fit = fit_termination(data, observation_mean=MEAN, observation_std=STD, max_updates=200)
        assert fit.terminal_rows == 1 and "held-out rows" in str(fit)

    @pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
    def test_thresholds_out_of_range(self, threshold: float) -> None:
        with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
            LearnedTermination(MEAN, STD, action_size=1, threshold=threshold)

    def test_it_ends_imagined_rollouts(self, learnt: tuple) -> None:
        torch.manual_seed(0)
        env = EnsembleModelEnv(
            EnsembleWorldModel(3, 1, hidden_sizes=(16,)),
            action_spec=Bounded(-1, 1, shape=(1,)),
            starts=make_transitions(500).select("observation"),
            termination=learnt[0],
            observation_mean=MEAN,
            observation_std=STD,
        )
        rows = ModelRolloutCollector(env, num_starts=400, horizon=3).collect()
        raw = rows["next", "observation"] * STD + MEAN
        ended = rows["next", "terminated"].squeeze(-1)
        assert 0.02 < ended.float().mean() < 0.5 and len(rows) < 1200
        assert (ended == ends_of(raw)).float().mean() > 0.95

    @pytest.mark.filterwarnings("ignore")  # the compiler's own
    def test_it_compiles_as_one_graph(self, learnt: tuple) -> None:
        x, action = 3 * torch.randn(50, 3) + MEAN, torch.zeros(50, 1)
        compiled = torch.compile(learnt[0], backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, action, x), learnt[0](x, action, x))
