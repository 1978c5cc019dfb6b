"""What the commands share: words NAME=VALUE, and the end on Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kitlib.core.errors import KitError, shown


def pairs(given: list[str] | None) -> dict[str, str]:
    """Convert NAME=VALUE texts to a dict. Raises KitError for a text without a name, and for a repeated name.

    >>> pairs(["EPOCHS=5", "ENCODER=timm:x@a=b"])
    {'EPOCHS': '5', 'ENCODER': 'timm:x@a=b'}
    """
    named: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise KitError(f"-p: expected NAME=VALUE; got {shown(text)}")
        if name in named:
            raise KitError(f"-p {name}: expected one value; got {shown(named[name])} and {shown(value)}")
        named[name] = value
    return named


@contextmanager
def stoppable() -> Iterator[None]:
    """End the command on Ctrl-C, after everything is saved, with one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished work is saved: run the same command again to continue\n")
        raise SystemExit(130) from None
