"""Atomic writes, JSON and .npz files, and checksums."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


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


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name to an .npz file, atomically."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path) -> dict[str, Any]:
    """Read the arrays of an .npz file by name; pickled ones are refused."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
