"""Put measured figures into the documentation: python benchmarks/page.py.

Reads the JSON files that the benchmarks wrote with ``--out docs/benchmarks``; what each benchmark's
``report`` makes of its own goes between the ``<!-- benchmark:NAME -->`` markers of the pages. No
number between them is written by hand. Between markers of the name ``NAME_on_MACHINE`` goes
``NAME_on_MACHINE.json``, a copy of what another machine gave.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from pathlib import Path

from rambo_trl.runtime.places import expand_home

MARKED = re.compile(r"(<!-- benchmark:(\w+) -->\n).*?(<!-- end of benchmark:\2 -->)", re.DOTALL)
PAGES = ("docs/benchmarks.md", "README.md")


def put_in(text: str, folder: Path, page_folder: Path) -> str:
    """Fill every pair of markers whose JSON file is there, with its report and the figure."""

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        path = folder / f"{name}.json"
        if not path.is_file():
            return match[0]
        benchmark = importlib.import_module(name.partition("_on_")[0])
        report = benchmark.report(json.loads(path.read_text(encoding="utf-8")))
        if benchmark.CAPTION:
            figure = os.path.relpath(path.with_suffix(".png"), page_folder)
            report += f"\n\n![{benchmark.CAPTION}]({figure})"
        return f"{start}{report}\n{end}"

    return MARKED.sub(fill, text)


def main() -> None:
    """Rewrite the pages."""
    parser = argparse.ArgumentParser(description="Put measured figures into the documentation.")
    parser.add_argument("--folder", type=expand_home, default=Path("docs/benchmarks"))
    parser.add_argument("pages", nargs="*", type=expand_home, default=[Path(p) for p in PAGES])
    args = parser.parse_args()
    for page in args.pages:
        before = page.read_text(encoding="utf-8")
        after = put_in(before, args.folder, page.parent)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"written: {page}")


if __name__ == "__main__":
    main()
