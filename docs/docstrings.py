"""Docstrings for the site: Sphinx's roles become links, its maths becomes MathML.

The docstrings follow TorchRL's, which Sphinx reads; the site is Markdown. Nothing is loaded from
elsewhere: browsers draw MathML themselves.
"""

from __future__ import annotations

import html
import logging
import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

logger = logging.getLogger("mkdocs.docstrings")

_BLOCK = re.compile(r"^([ \t]*)\.\. math::\n((?:\1[ \t]+\S.*\n?|[ \t]*\n(?=\1[ \t]+\S))+)", re.M)
_INLINE = re.compile(r"(^|\s+)?:math:`([^`]+)`")
_LEFT = re.compile(r":\w+:`|^[ \t]*\.\. \w+::", re.M)
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([^`]+)`")


def _block(match: re.Match[str]) -> str:
    maths = convert(" ".join(textwrap.dedent(match[2]).split()), display="block")
    return f"{match[1]}<p>{maths}</p>\n"


def _inline(match: re.Match[str]) -> str:
    # Markdown would take an element at a line's start for a block
    space = " " if match[1] else ""
    return f"{space}<span>{convert(' '.join(match[2].split()))}</span>"


def _role(match: re.Match[str]) -> str:
    short, name = match.groups()
    shown = html.escape(name.rsplit(".", 1)[-1] if short else name)
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'


def as_markdown(text: str) -> str:
    """A docstring's text with what Sphinx alone understands replaced."""
    return _ROLE.sub(_role, _INLINE.sub(_inline, _BLOCK.sub(_block, text)))


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """See griffe's documentation of extensions."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
            if left := _LEFT.search(obj.docstring.value):
                # a strict build fails for it
                logger.warning("%s: %r is shown as it stands", obj.path, left[0])
