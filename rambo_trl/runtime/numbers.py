"""Numbers as text."""

from __future__ import annotations

__all__ = ["format_value"]


def format_value(value: float, decimals: int = 1) -> str:
    """A short text for a number of unknown size.

    Examples:
        >>> [format_value(x) for x in (-1238.25, 0.00042127, 2.5e7)]
        ['-1238.2', '0.0004213', '2.5e+07']
    """
    return f"{value:.{decimals}f}" if value == 0 or 1 <= abs(value) < 1e6 else f"{value:.4g}"
