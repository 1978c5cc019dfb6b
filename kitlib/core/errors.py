"""The errors for bad input and for damaged files, and short messages of others' errors and of long values."""

from __future__ import annotations

import errno
import re
import reprlib
from collections.abc import Iterable
from typing import Any

# What the system refuses for want of something outside the kit: the user's to mend, so that a sentence is enough.
REFUSALS = {
    errno.ENOSPC: "no space or no inodes are left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "the link leads to itself",
    errno.ENXIO: "no ordinary file",
    errno.ENODEV: "no ordinary file",
    errno.EFBIG: "the file is too large for the file system or its limit",
    errno.ENOMEM: "not enough memory",
    errno.EADDRINUSE: "the address or port is in use",
    errno.ENAMETOOLONG: "the file name is too long",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.EMFILE: "too many files are open",
    errno.EIO: "the disk cannot be read or written",
}


class KitError(ValueError):
    """Bad input; the message is one sentence that names the fault, its place, and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback, which says nothing to whom the sentence is for."""
        return [f"error: {self}"]


class Interrupted(KeyboardInterrupt):
    """Work that the user stopped; the message is one sentence on what is saved and how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Damaged(KitError):
    """A file that the kit wrote is damaged, cut, or of a form that this kit does not write; the message names it."""


def refusal(error: OSError) -> str | None:
    """The sentence for what the system refused, naming the file; None if the error is not of that kind.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "a/b.npz"))
    'b.npz: no space or no inodes are left on the disk'
    """
    if error.errno not in REFUSALS:
        return None
    name = str(error.filename or "").rstrip("/").rpartition("/")[2]
    return f"{name[:80]}: {REFUSALS[error.errno]}" if name else REFUSALS[error.errno]


def sentence(error: BaseException) -> str | None:
    """The sentence that ends a command for a fault that is the user's to mend; None for others, which need a traceback.

    Such faults are a KitError, what the system refused (`refusal`) and a lack of memory, as they are or as a library
    reports them, and whatever was raised from one of these.

    >>> sentence(RuntimeError("I/O error: No space left on device (os error 28)"))
    'no space or no inodes are left on the disk'
    """
    text = str(error)
    if isinstance(error, KitError):
        return text
    if isinstance(error, OSError) and (refused := refusal(error)):
        return refused
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", text):
        return f"not enough memory ({text.partition(chr(10))[0] or type(error).__name__})"
    if (number := re.search(r"\(os error (\d+)\)", text)) and int(number.group(1)) in REFUSALS:  # of safetensors
        return REFUSALS[int(number.group(1))]
    if "PytorchStreamWriter failed writing" in text:
        return "a checkpoint could not be written, most often because no space is left on the disk"
    return sentence(error.__cause__) if error.__cause__ else None


def shown(value: Any, most: int = 120) -> str:
    """A value as an error message shows it: its `repr`, cut when it is long.

    >>> shown("a" * 200, most=5), shown(10**5000)
    ("'aaaa… (202 characters)", 'a number of thousands of digits')
    """
    try:
        text = repr(value) if isinstance(value, str | float | int) else reprlib.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def one_line(error: Exception, most: int = 200) -> str:
    """The message of a library's error in one line, cut when it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def shorten(values: Iterable, most: int = 8) -> str:
    """The first few values for an error message.

    >>> shorten([3, 5, 8], most=2)
    '3, 5 and 1 more'
    """
    values = list(values)
    text = ", ".join(str(v) for v in values[:most]) or "nothing"
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
