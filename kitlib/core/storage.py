"""Atomic writes, JSON and .npz files that are checked when they are read back, checksums, and locks.

An .npz file holds checksums of its own. What cannot be read as it was written raises `Damaged`, naming the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kitlib.core.errors import Damaged, KitError

T = TypeVar("T")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` at the end, and is deleted if the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
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


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON atomically; indent None writes one line."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, kind: type[T] = dict, needed: tuple[str, ...] = ()) -> T:  # type: ignore[assignment]
    """Read a JSON file of a `kind` (dict or list), with the `needed` keys. Raises Damaged, FileNotFoundError."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"{_place(path)}: expected JSON as the kit writes it; got {type(error).__name__}") from error
    if not isinstance(content, kind):
        raise Damaged(f"{_place(path)}: expected a JSON {kind.__name__}; got {type(content).__name__}")
    if missing := [key for key in needed if key not in content]:  # type: ignore[operator]
        raise Damaged(f"{_place(path)}: expected the keys {', '.join(needed)}; missing: {', '.join(missing)}")
    return content


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name to an .npz file, atomically."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the arrays of an .npz file by name, `needed` among them; pickled ones are refused.

    Raises Damaged, FileNotFoundError.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file fails in any of a dozen ways
        raise Damaged(f"{_place(path)}: expected a whole .npz file; got {type(error).__name__}") from error
    if missing := [name for name in needed if name not in arrays]:
        raise Damaged(f"{_place(path)}: expected the arrays {', '.join(needed)}; missing: {', '.join(missing)}")
    return arrays


@contextmanager
def lock(path: str | Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the system releases it however the process ends.

    Waits for another process that holds it, or raises KitError with the sentence `busy`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise KitError(busy) from None
        yield


def _place(path: Path) -> str:
    """A file's name with that of its folder, which tells a fold's guesses from a run's."""
    return f"{path.name} in {path.parent.name}"
