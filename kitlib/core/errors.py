"""The error for bad input, and a helper that shortens long lists in its message."""

from __future__ import annotations

from collections.abc import Iterable


class KitError(ValueError):
    """Bad input; the message is one sentence that names the fault, its place, and what is allowed."""


def shorten(values: Iterable, most: int = 8) -> str:
    """The first few values for an error message.

    >>> shorten([3, 5, 8], most=2)
    '3, 5 and 1 more'
    """
    values = list(values)
    text = ", ".join(str(v) for v in values[:most]) or "nothing"
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
