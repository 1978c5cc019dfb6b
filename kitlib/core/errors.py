"""The errors for bad input and for damaged files, and what turns others' errors and long lists into a short message."""

from __future__ import annotations

import errno
from collections.abc import Iterable

# What the system refuses for want of something outside the kit: the user's to mend, so that a sentence is enough.
REFUSALS = {
    errno.ENOSPC: "no space or no inodes are left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "the file name is too long",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.EMFILE: "too many files are open",
    errno.EIO: "the disk cannot be read or written",
}


class KitError(ValueError):
    """Bad input; the message is one sentence that names the fault, its place, and what is allowed."""


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


def shorten(values: Iterable, most: int = 8) -> str:
    """The first few values for an error message.

    >>> shorten([3, 5, 8], most=2)
    '3, 5 and 1 more'
    """
    values = list(values)
    text = ", ".join(str(v) for v in values[:most]) or "nothing"
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
