"""Atomic writes, files that are checked when they are read back, checksums, and locks.

An .npz file holds checksums of its own, a folder gets them from `seal`. What cannot be read as it was written raises
`Damaged`, naming the file and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kitlib.core.errors import Damaged, KitError

log = logging.getLogger(__name__)

os.umask(UMASK := os.umask(0))  # there is no other way to read it
MODE = 0o666 & ~UMASK  # of every file that the kit writes; some libraries make files that nobody else can read
MEND = "delete it and run the same command again"
SEAL = "checksums.json"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` at the end, and is deleted if the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        beside.chmod(MODE)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def digest(*parts: bytes | str | np.ndarray | Path) -> str:
    """A checksum of `parts`, 16 hex characters; a Path contributes the bytes of its file."""
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").digest()
        elif isinstance(part, np.ndarray):
            content = f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
        else:
            content = part.encode() if isinstance(part, str) else part
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


@contextmanager
def reading(path: str | Path, expected: str = "a whole file as the kit writes it", mend: str = MEND) -> Iterator[None]:
    """Turn any error of reading a file that the kit wrote into Damaged, with what was `expected` and how to `mend` it.

    Errors that name themselves pass: KitError, and what the system refuses, such as FileNotFoundError.
    """
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # a damaged file fails in any of a dozen ways
        if isinstance(error, OSError) and error.errno:
            raise
        raise Damaged(f"{place(path)}: expected {expected}; got {type(error).__name__}: {mend}") from error


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON atomically; indent None writes one line."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, kind: type = dict, needed: tuple[str, ...] = (), mend: str = MEND) -> Any:
    """Read a JSON file of a `kind` (dict or list), with the `needed` keys. Raises Damaged, FileNotFoundError."""
    with reading(path, "JSON as the kit writes it", mend):
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        raise Damaged(f"{place(path)}: expected a JSON {kind.__name__}; got {type(content).__name__}: {mend}")
    _refuse_missing(path, "keys", needed, content, mend)
    return content


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name to an .npz file, atomically."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path, needed: tuple[str, ...] = (), mend: str = MEND) -> dict[str, Any]:
    """Read the arrays of an .npz file by name, `needed` among them; pickled ones are refused.

    Raises Damaged, FileNotFoundError.
    """
    with reading(path, "a whole .npz file", mend), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    _refuse_missing(path, "arrays", needed, arrays, mend)
    return arrays


def _refuse_missing(path: str | Path, what: str, needed: tuple[str, ...], content: Any, mend: str) -> None:
    if missing := [name for name in needed if name not in content]:
        expected = f"expected the {what} {', '.join(needed)}"
        raise Damaged(f"{place(path)}: {expected}; missing: {', '.join(missing)}: {mend}")


def checksums(folder: Path) -> dict[str, str]:
    """The checksum of each file in `folder` or deeper by its relative path, hidden files and the seal left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: digest(path) for name, path in named.items() if name != SEAL and not path.name.startswith(".")}


def seal(folder: Path) -> None:
    """Give the files of a folder that a library wrote the kit's MODE, and write their checksums to SEAL."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(MODE)
    write_json(folder / SEAL, checksums(folder))


def check_seal(folder: Path, mend: str = MEND) -> None:
    """Compare the files of a folder with its SEAL. Raises Damaged naming a file that differs or is missing.

    A folder without SEAL, by an earlier kit, passes.
    """
    if not (folder / SEAL).is_file():
        return
    compare(folder, read_json(folder / SEAL, dict, mend=mend), mend)


def compare(folder: Path, recorded: Mapping[str, str], mend: str = MEND) -> None:
    """Compare files in `folder` with their `recorded` checksums. Raises Damaged naming the first that differs."""
    for name, checksum in recorded.items():
        path = folder / name
        if not path.is_file() or digest(path) != checksum:
            what = "another content" if path.is_file() else "no such file"
            raise Damaged(f"{place(path)}: expected the file as it was written; got {what}: {mend}")


def reserve(path: Path, size: int) -> None:
    """Allocate `size` bytes on the disk to the file `path`, so that a full disk does not kill a writer by SIGBUS.

    Raises OSError (ENOSPC), and deletes the file, if there is no room for it.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
            return
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def lock(path: str | Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which exists as long; the system releases it however the process ends.

    Waits for another process that holds it, or raises KitError with the sentence `busy`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy:
                    raise KitError(busy) from None
                log.info("waiting for another process that writes %s", path.stem.lstrip("."))
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # whoever held the lock has just deleted this file
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def place(path: str | Path) -> str:
    """A file's name with that of its folder, which tells a fold's guesses from a run's."""
    return f"{Path(path).name} in {Path(path).parent.name}"
