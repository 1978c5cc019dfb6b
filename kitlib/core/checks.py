"""The checks of single values that settings, notebook parameters and the command line share.

Each takes the name that its error message begins with, and raises KitError for a value that it does not allow.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Any

from kitlib.core import paths
from kitlib.core.errors import KitError, shown

LARGEST = 2**32 - 1  # the largest seed of numpy; the kit needs no larger number


def number(name: str, value: Any, low: float, high: float = LARGEST, kind: type = int, above: bool = False) -> Any:
    """A whole number from `low` to `high`, or any finite number with kind float; above: `low` itself is not allowed.

    >>> number("DEVICES", 2, 1), number("MAX_HOURS", 0.5, 0, kind=float)
    (2, 0.5)
    """
    if type(value) not in (int, kind) or not low <= value <= high or (above and value == low):
        start, end = f"{'above' if above else 'from'} {low:g}", "" if high == LARGEST else f" to {high:g}"
        raise KitError(f"{name}: expected a {'whole ' if kind is int else ''}number {start}{end}; got {shown(value)}")
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> Any:
    """One of the `allowed` texts."""
    if value not in allowed:
        raise KitError(f"{name}: expected one of {', '.join(allowed)}; got {shown(value)}")
    return value


def meant(name: str, allowed: Collection[str]) -> str:
    """The allowed name that is most like an unknown one, for its error message; "" if none is like it.

    >>> meant("DATTA", ["DATA", "RUN"])
    ' (did you mean DATA?)'
    """
    close = difflib.get_close_matches(name, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def whole_numbers(name: str, text: str | int, low: int = 0, high: int = LARGEST) -> list[int]:
    """Different whole numbers from `low` to `high` in a text, commas between; an empty text holds none.

    >>> whole_numbers("folds", "0,3")
    [0, 3]
    """
    parts = [part.strip() for part in str(text).split(",")] if str(text).strip() else []
    values = [int(part) for part in parts if part.isdecimal() and len(part) < 20]
    if len(set(values)) != len(parts) or not all(low <= value <= high for value in values):
        allowed = f"from {low}" + (f" to {high}" if high < LARGEST else "")
        raise KitError(f"{name}: expected different whole numbers {allowed}, commas between; got {shown(text)}")
    return values


def numbers(name: str, text: str) -> list[float]:
    """At least one finite number above 0 in a text, commas between.

    >>> numbers("radii_km", "2000, 2.5")
    [2000.0, 2.5]
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise KitError(f"{name}: expected numbers above 0, commas between; got {shown(text)}")
    return values


def names(name: str, text: str) -> list[str]:
    """Names of runs in a text, commas between; an empty text holds none.

    >>> names("COMPARE", "a, b")
    ['a', 'b']
    """
    return [paths.file_name(part.strip(), name) for part in text.split(",") if part.strip()]
