"""The one error of bad input, and how a long list is shortened in its sentence."""

from __future__ import annotations

from collections.abc import Iterable


class KitError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what is allowed. The command line exits with 2."""


def shorten(values: Iterable, most: int = 8) -> str:
    """The first few values for an error message.

    >>> shorten([3, 5, 8], most=2)
    '3, 5 and 1 more'
    """
    values = list(values)
    text = ", ".join(str(v) for v in values[:most]) or "nothing"
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
