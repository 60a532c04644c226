"""What the documentation shows runs, and what it points to exists."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

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


def test_the_pitfalls_name_tests_that_exist() -> None:
    text = (ROOT / "docs/pitfalls.md").read_text()
    found, path = 0, None
    for reference in re.findall(r"`((?:tests/[\w/]+\.py)?::test_\w+)`", text):
        file, test = reference.split("::")
        path = ROOT / file if file else path
        assert path is not None and f"def {test}(" in path.read_text(), reference
        found += 1
    assert found >= 12
