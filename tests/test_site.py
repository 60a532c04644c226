"""The documentation site as it is built: what a browser gets to draw."""

from __future__ import annotations

import html
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]*)"', page.read_text())
        loaded += re.findall(r'<link\b[^>]*"stylesheet"[^>]*\bhref="([^"]*)"', page.read_text())
        assert len(loaded) > 3
        for address in loaded:
            assert "//" not in address, f"{page} loads {address}"
    css = site / "assets/katex/katex.min.css"
    fonts = re.findall(r"url\((fonts/[^)]+\.woff2)\)", css.read_text())
    assert len(fonts) > 15 and all((css.parent / font).is_file() for font in fonts)


@pytest.mark.parametrize(
    ("page", "inline", "displayed"),
    [("api/objectives", r"\hat A", r"\lambda \, \operatorname{mean}_B"),
     ("algorithm", None, r"\lambda \, V(\text{policy in the model})")],
)  # fmt: skip
def test_formulas_are_handed_to_katex(
    page: str, inline: str | None, displayed: str, site: Path
) -> None:
    text = (site / page / "index.html").read_text()
    assert re.search(r'src="[./]*/assets/katex/katex\.min\.js".*src="[./]*/assets/maths\.js"',
                     text, re.DOTALL)  # fmt: skip
    assert f'<div class="arithmatex">\\[\n{displayed}' in text
    assert inline is None or f'<span class="arithmatex">\\({inline}\\)</span>' in text
    assert ":math:" not in text and "$$" not in text


def test_shapes_keep_their_asterisks(site: Path) -> None:
    pages = sorted((site / "api").rglob("*.html"))
    assert "values stacked in front, [K, *B, 1], or [K, *B] where" in " ".join(
        text_of(site / "api/objectives/index.html").split()
    )
    for page in pages:
        text = page.read_text()
        assert set(re.findall(r"<em>(.*?)</em>", text, re.DOTALL)) <= {"required"}, page
        assert r"\*" not in text, page


def test_headings_are_import_paths_and_signatures_have_defaults(site: Path) -> None:
    names = [
        name
        for page in (site / "api").rglob("*.html")
        for name in re.findall(
            r'doc-object-name doc-(?:class|function)-name">([\w.]+)</span>', page.read_text()
        )
    ]
    paths = [name for name in names if name.startswith("rambo_trl.")]
    assert "rambo_trl.objectives.AdversarialModelLoss" in paths and len(paths) > 60
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
    text = text_of(site / "api/objectives/index.html")
    assert "AdversarialModelLoss(\n    world_model: TensorDictModuleBase,\n" in text
    assert "    adversarial_weight: float = 0.0003,\n" in text


def test_the_home_page_has_a_picture(site: Path) -> None:
    (picture,) = re.findall(
        r'<img alt="[^"]{20,}" src="([^"]+)"', (site / "index.html").read_text()
    )
    assert (site / picture).is_file()


@pytest.fixture(scope="module")
def web_address() -> Callable[[str], str | None]:
    spec = importlib.util.spec_from_file_location("repository", ROOT / "docs/repository.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.web_address


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://example.org/who/what.git\n", "https://example.org/who/what"),
        ("https://who:secret@example.org/a/b/what", "https://example.org/a/b/what"),
        ("git@example.org:who/what.git", "https://example.org/who/what"),
        ("ssh://git@example.org:2222/who/what.git", "https://example.org/who/what"),
        ("/srv/git/what.git", None),
        ("../what", None),
        ("file:///srv/git/what.git", None),
        ("", None),
    ],
)
def test_the_repository_s_page_is_its_remote_s(
    remote: str, address: str | None, web_address: Callable[[str], str | None]
) -> None:
    assert web_address(remote) == address
