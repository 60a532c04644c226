"""The recipes as they are installed: ``rambo-trl rambo schedule=smoke``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> list[str]:
    """The recipes' names."""
    return [
        path.stem
        for path in sorted(HERE.glob("[a-z]*.py"))
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]


def main() -> None:
    """Run the recipe that the first word names with the words that follow."""
    names, words = programs(), sys.argv[1:]
    usage = f"rambo-trl RECIPE key=value ..., RECIPE one of {', '.join(names)}"
    if words[:1] in (["--help"], ["-h"]):
        print(usage)
        return
    if not words or words[0] not in names:
        asked = f"no recipe is called {words[0]!r}; " if words else ""
        print(f"{asked}{usage}", file=sys.stderr)
        sys.exit(2)
    if not all(map(importlib.util.find_spec, ("hydra", "pydantic"))):
        print(
            "error: the recipes need hydra-core and pydantic: pip install 'rambo_trl[recipes]'",
            file=sys.stderr,
        )
        sys.exit(2)
    # a program of its own, so that it is run just as from a checkout
    os.execv(sys.executable, [sys.executable, str(HERE / f"{words[0]}.py"), *words[1:]])


if __name__ == "__main__":
    main()
