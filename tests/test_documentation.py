"""What the documentation shows runs, and what it points to exists."""

from __future__ import annotations

import csv
import doctest
import importlib
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import quick_scores
import score_by_minute
from launcher.command_line import compose_jobs
from launcher.settings import leaf_keys
from page import put_in

import rambo_trl

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(m.name for m in pkgutil.walk_packages(rambo_trl.__path__, "rambo_trl."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_the_readme_s_component_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "AdversarialModelLoss" in block)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    model = names["world_model"]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in names["agent_loss"].parameters())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_named_tests_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_the_published_scores_in_the_readme_are_neorl2s() -> None:
    rows = (ROOT / "rambo_trl/reporting/neorl2_scores.csv").read_text().splitlines()
    scores = csv.DictReader(row for row in rows if not row.startswith("#"))
    published = next(row for row in scores if row["task"] == "DMSD")
    (listed,) = re.findall(
        r"On DMSD others have published (.*?)\.\*\n", (ROOT / "README.md").read_text(), re.DOTALL
    )
    shown = re.findall(r"(\w+)(?:\s+after\s+2,000\s+epochs)?\s+(\d+\.\d)", listed)
    assert len(shown) == 8
    for method, score in shown:
        assert score == f"{float(published[method.lower()]):.1f}"


def test_the_readme_s_scores_are_those_of_the_published_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quick_scores.py", "--out", str(tmp_path)])
    quick_scores.main()
    current = (tmp_path / "quick_scores.json").read_text()
    assert current == (ROOT / "docs/benchmarks/quick_scores.json").read_text()
    for name in score_by_minute.PUBLISHED:
        with (ROOT / f"docs/results/{name}/results.csv").open() as file:
            for run in csv.DictReader(file):
                assert (run["schedule"], run["epochs"]) == ("quick", "60")
                # settings of their own would not show in the table
                settings = run["settings"].split(", ")
                assert all(x.startswith("adversarial_weight=") for x in settings if x)


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_measured_tables_are_those_of_the_benchmarks_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert put_in(text, ROOT / "docs/benchmarks", (ROOT / page).parent) == text


def commands() -> Iterator[list[str]]:
    """Every different command of the pages that starts a program of this project."""
    found = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        fenced = [line for block in re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
                  for line in block.splitlines()]  # fmt: skip
        for line in [*fenced, *re.findall(r"`(python [^`\n]+)`", text)]:
            command = line.split("&& ")[-1].strip()
            # a shell's variables and launchers that may not be installed are left out
            if command.startswith("python ") and not re.search(r"\$|hydra/", command):
                found.add(" ".join(map(shlex.quote, shlex.split(command, comments=True)[1:])))
    return (shlex.split(command) for command in sorted(found))


@cache
def settings_of(config: Path) -> set[str]:
    (cfg,) = compose_jobs(config.stem, [], check=lambda cfg: None)
    return set(leaf_keys(cfg))


def is_setting(word: str, config: Path) -> bool:
    """Whether a recipe's word sets something that there is, a group to one of its choices."""
    key, _, value = word.partition("=")
    if (config.parent / key).is_dir():
        return all((config.parent / key / f"{v}.yaml").is_file() for v in value.split(","))
    return bool(value) and (key.startswith("hydra.") or key in settings_of(config))


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command's program, options or settings."""
    if words[0] == "-m":
        path = ROOT / words[1].replace(".", "/")
        path, rest = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")), words[2:]
    else:
        path, rest = ROOT / words[0], words[1:]
    if not path.is_file():
        return f"{path} is not there"
    config = ROOT / "recipes/config" / f"{path.stem}.yaml"
    if path.parent.name == "recipes" and config.is_file():
        return next(
            (f"{w} sets nothing" for w in rest if w != "-m" and not is_setting(w, config)), None
        )
    read = path.read_text() + (ROOT / "benchmarks/measuring.py").read_text()
    options = [w.partition("=")[0] for w in rest if w[:2] == "--"]
    return next((f"{option} is no option" for option in options if f'"{option}"' not in read), None)


def test_commands_name_programs_options_and_settings_that_exist() -> None:
    every = list(commands())
    assert len(every) > 30
    problems = {shlex.join(words): problem_of(words) for words in every}
    assert {command: problem for command, problem in problems.items() if problem} == {}


def test_the_table_of_settings_for_those_who_come_from_other_code_is_true() -> None:
    text = (ROOT / "docs/migration.md").read_text().split("\n## ")[0]
    known = settings_of(ROOT / "recipes/config/rambo.yaml") | {"task", "metrics.csv"}
    rows = [line.split("|")[4] for line in text.splitlines() if line.startswith("| ")]
    named = {n for row in rows for n in re.findall(r"`([a-z_.]+)(?:=[^`]*)?`", row)}
    assert len(named) > 25
    assert named - known == set()
