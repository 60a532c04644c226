"""What compiling promises: eager's numbers, no second compilation, a way on without it."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter

from rambo_trl.runtime import compiling
from rambo_trl.runtime.compiling import compile_like_eager

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def noisy_gradient(weight: Tensor, x: Tensor) -> Tensor:
    value = x @ weight
    loss = (torch.randn_like(value) + value).relu().square().sum()
    return torch.autograd.grad(loss, weight)[0]


def test_random_numbers_and_gradients_are_eagers() -> None:
    weight, x = nn.Parameter(torch.randn(3, 4)), torch.randn(5, 3)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        results.append(compile_like_eager(noisy_gradient, enabled)(weight, x))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="may draw in another order")
def test_random_numbers_are_drawn_in_eagers_order() -> None:
    def draws(x: Tensor) -> Tensor:
        first = torch.rand(4, 3)  # used last: nothing but the order of the lines puts it first
        second = torch.randn(3, 4)
        third = torch.rand_like(x)
        return (x + third).exp() @ (first.argsort(0) + second.T.sin() @ x).T

    with torch.no_grad():  # a graph without gradients is put in order by other rules
        found = []
        for run in (draws, compile_like_eager(draws)):
            torch.manual_seed(0)
            found.append(run(torch.ones(3, 3)))
    torch.testing.assert_close(found[1], found[0])


def test_not_enabled_is_the_function_itself() -> None:
    assert compile_like_eager(noisy_gradient, enabled=False) is noisy_gradient


def test_many_functions_of_the_same_lines_do_not_exhaust_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a sweep in one process builds the same parts again and again
    counter = CompileCounter()
    original = torch.compile

    def counting(function, *, options, **kwargs):
        return original(function, backend=counter, **kwargs)

    monkeypatch.setattr(torch, "compile", counting)
    limit = torch._dynamo.config.recompile_limit

    def build(number: int):
        return compile_like_eager(lambda x: x + number)

    for number in range(limit + 3):
        assert build(number)(torch.zeros(())) == number
    assert counter.frame_count == limit + 3


def test_every_compilation_is_told_when_it_begins_and_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, options, **kw: original(f, backend="eager"))
    run = compile_like_eager(lambda x: x + 1, name="the agent's update")
    told = []

    def records() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == compiling.__name__]

    with caplog.at_level("DEBUG", logger=compiling.__name__):
        for size in (2, 2, 3, 2):  # another size is compiled anew
            caplog.clear()
            run(torch.zeros(size))
            told.append([getattr(record, "compiling", "-") for record in records()])
        caplog.clear()
        run(torch.zeros(4))
    assert told == [["compiling the agent's update", None], [], told[0], []]
    begun, ended = records()
    assert (begun.levelname, ended.levelname) == ("INFO", "DEBUG")
    assert begun.getMessage().startswith("compiling the agent's update: seconds to a minute")


def test_what_the_caller_s_state_is_made_of_is_checked() -> None:
    class Owner:
        sign = 1

        def answer(self, x: Tensor) -> Tensor:
            return x + self.sign

    owner = Owner()
    run = compile_like_eager(owner.answer)
    assert run(torch.zeros(())) == 1
    owner.sign = -1
    assert run(torch.zeros(())) == -1
    assert run(torch.zeros(2)).tolist() == [-1, -1]  # and shapes


def test_a_function_in_the_place_of_another_is_seen() -> None:
    def add(x: Tensor) -> Tensor:
        return x + 1

    def take(x: Tensor) -> Tensor:
        return x - 1

    class Owner:
        rule = staticmethod(add)

        def __init__(self) -> None:
            self.call = compile_like_eager(self.answer)

        def answer(self, x: Tensor) -> Tensor:
            return self.rule(x)

    owner = Owner()
    owner.rule = add
    assert owner.call(torch.zeros(())) == 1
    owner.rule = take
    assert owner.call(torch.zeros(())) == -1


def test_modes_coefficients_and_rules_of_modules_are_checked() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coefficient, self.offset, self.inner = 0.0, None, nn.Dropout(1.0)
            self.rule = lambda x: x

        def forward(self, x: Tensor) -> Tensor:
            x = self.rule(self.inner(x))
            x = x if self.offset is None else x + self.offset
            return x * self.coefficient if self.coefficient else x

    module = Scaled().eval()
    run, one = compile_like_eager(lambda x: module(x)), torch.ones(())
    assert run(one) == 1
    module.coefficient = 2.0
    assert run(one) == 2
    module.coefficient = 3.0
    assert run(one) == 3
    module.offset = 1.0
    assert run(one) == 6
    module.train()
    assert run(one) == 3
    module.eval()
    assert run(one) == 6
    module.rule = lambda x: x + 1
    assert run(one) == 9


def test_without_a_compiler_it_runs_eagerly_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "_warned", False)

    def broken(function, **kwargs):
        def call(*args):
            raise BackendCompilerFailed("no compiler here", RuntimeError("g++ not found"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    double, triple = compile_like_eager(lambda x: 2 * x), compile_like_eager(lambda x: 3 * x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert double(4) == 8
        assert double(5) == 10
        assert triple(2) == 6
    assert len(caught) == 1
    assert "runs uncompiled" in str(caught[0].message)


def test_errors_of_the_function_itself_are_raised() -> None:
    def refuses(x: Tensor) -> Tensor:
        return x.reshape(7)

    with pytest.raises(RuntimeError, match=r"shape|reshape"):
        compile_like_eager(refuses)(torch.zeros(3))


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_survived() -> None:
    script = (
        "import torch\n"
        "from rambo_trl.runtime.compiling import compile_like_eager\n"
        "f = compile_like_eager(lambda x: (x.sin() + x.cos()).exp())\n"
        "x = torch.randn(100)\n"
        "assert torch.equal(f(x), (x.sin() + x.cos()).exp())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "CXX": "/no/such/compiler",
            "PATH": "/nowhere",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("runs uncompiled") == 1
