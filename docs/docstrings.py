"""Docstrings for the site: what is Sphinx's in them becomes Markdown.

The docstrings follow TorchRL's, which Sphinx reads; the site is Markdown. Roles become links, maths
what arithmatex takes, and shapes such as ``[*B, 1]`` keep their asterisks.
"""

from __future__ import annotations

import html
import logging
import re
import textwrap
from typing import Any

import griffe

logger = logging.getLogger("mkdocs.docstrings")

_BLOCK = re.compile(r"^([ \t]*)\.\. math::\n((?:\1[ \t]+\S.*\n?|[ \t]*\n(?=\1[ \t]+\S))+)", re.M)
_INLINE = re.compile(r":math:`([^`]+)`")
# code, which stays as it is, or a shape with an asterisk
_SHAPE = re.compile(r"(`+)[\s\S]*?\1|^[ \t]*(?:>>>|\.\.\. ).*$|\[[^][`\n]*\*[^][`\n]*\]", re.M)
_LEFT = re.compile(r":\w+:`|^[ \t]*\.\. \w+::", re.M)
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([^`]+)`")


def _block(match: re.Match[str]) -> str:
    lines = ["$$", *textwrap.dedent(match[2]).strip().splitlines(), "$$"]
    return "".join(f"{match[1]}{line}\n" for line in lines)


def _inline(match: re.Match[str]) -> str:
    return rf"\({' '.join(match[1].split())}\)"


def _shape(match: re.Match[str]) -> str:
    return match[0].replace("*", r"\*") if match[0].startswith("[") else match[0]


def _role(match: re.Match[str]) -> str:
    short, name = match.groups()
    shown = html.escape(name.rsplit(".", 1)[-1] if short else name)
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'


def as_markdown(text: str) -> str:
    """A docstring's text with what Sphinx alone understands replaced."""
    return _ROLE.sub(_role, _INLINE.sub(_inline, _BLOCK.sub(_block, _SHAPE.sub(_shape, text))))


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """See griffe's documentation of extensions."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
            if left := _LEFT.search(obj.docstring.value):
                # a strict build fails for it
                logger.warning("%s: %r is shown as it stands", obj.path, left[0])
