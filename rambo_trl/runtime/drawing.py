"""Text of a user's, as it stands, in figures."""

from __future__ import annotations

__all__ = ["literal"]


def literal(text: object) -> str:
    r"""A text that Matplotlib draws as it is: ``$`` would begin a formula, and fail on most names.

    Examples:
        >>> print(literal("runs/$x_^$"))
        runs/\$x_^\$
    """
    drawn = str(text).encode("utf-8", "replace").decode()  # no font has half a character
    return drawn.replace("$", r"\$")
