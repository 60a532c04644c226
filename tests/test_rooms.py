"""Who may import whom, so that each room can be read, and taken, without those above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rambo_trl

ROOT = Path(rambo_trl.__file__).parent
#: a room may import from those before it, and from itself
ORDER = (
    "runtime",
    "data",
    "modules",
    "envs",
    "collectors",
    "objectives",
    "training",
    "experiment",
    "reporting",
)
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_go_one_way(module: Path) -> None:
    room = ORDER.index(module.parts[0])
    names = imported(ROOT / module)
    rooms = {n.split(".")[1] for n in names if n.startswith("rambo_trl.") and n.count(".")}
    assert {ORDER.index(r) for r in rooms & set(ORDER)} <= set(range(room + 1))
    assert not {name.split(".")[0] for name in names} & {"hydra", "omegaconf", "launcher"}


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {
        ".".join(("rambo_trl", *m.with_suffix("").parts)).removesuffix(".__init__") for m in MODULES
    }
    names -= {name for name in names if name.count(".") == 1}  # packages gather what is in them
    graph = {
        name: {n for n in imported(ROOT.parent / (name.replace(".", "/") + ".py")) if n in names}
        for name in names
    }
    while leaves := {name for name, below in graph.items() if not below}:
        graph = {name: below - leaves for name, below in graph.items() if name not in leaves}
    assert graph == {}
