"""What ends a command with one sentence: the kit's own refusals, the system's, and those that a library reports."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kitlib.core.errors import Damaged, KitError, sentence, shown


def raised_from(cause: Exception) -> Exception:
    error = RuntimeError("while saving")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Damaged("a.npz: cut"), "a.npz: cut"),
        (OSError(errno.ENAMETOOLONG, "x", "/a/bcd"), "bcd: the file name is too long"),
        (NotADirectoryError(errno.ENOTDIR, "x", "/a/b"), "b: a file stands where a folder is expected"),
        (FileExistsError(errno.EEXIST, "x", "/a/b"), "b: a file stands where a folder is expected"),
        (RuntimeError("Error: I/O error: File too large (os error 27)"), "the file is too large for the file system"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "a checkpoint could not be written"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory (CUDA out of memory. Tried"),
        (raised_from(OSError(errno.ENOSPC, "x", "/a/b")), "b: no space or no inodes are left on the disk"),
        (ZeroDivisionError("division by zero"), None),
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), None),  # most often a mistake of the kit: needs its traceback
        (raised_from(KeyError("x")), None),
    ],
)
def test_the_sentence_of_an_error(error, text):
    assert (sentence(error) is None) if text is None else str(sentence(error)).startswith(text)


def test_an_array_that_does_not_fit():
    with pytest.raises(MemoryError) as error:
        np.empty((2**40, 2**10))
    assert str(sentence(error.value)).startswith("not enough memory (Unable to allocate")


def test_values_in_messages_are_short():
    nested: list = ["x"]
    for _ in range(40):  # 2**40 texts when written out, as YAML's references allow
        nested = [nested, nested]
    assert all(len(shown(value)) < 200 for value in (nested, "a" * 10**6, 10**5000, {"a": nested}))
    assert shown(KitError) and shown("a") == "'a'"


def test_a_notebook_shows_the_sentence_instead_of_a_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("from kitlib.core.errors import Damaged\nraise Damaged('a.npz: expected a whole file')")
    shown = capsys.readouterr().out
    assert shown.strip() == "error: a.npz: expected a whole file"
