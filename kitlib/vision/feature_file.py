"""The file of cached features: allocated once, written in parts by several processes, checked by checksums."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from kitlib.core import storage
from kitlib.core.errors import Damaged

PAGE = 4096  # bytes of a file that a machine writes at once, even for a single row


def rows_of(shape: tuple[int, int, int], part: int, parts: int) -> range:
    """The rows of a part; all but the first begin at a page of the file, which no other part then writes to."""
    n_rows = shape[0]
    aligned = PAGE // math.gcd(PAGE, 2 * shape[1] * shape[2])
    start, stop = (min(n_rows, math.ceil(n_rows * k / parts / aligned) * aligned) for k in (part, part + 1))
    return range(start, stop)


def allocate(file: Path, shape: tuple[int, int, int]) -> None:
    """Make an .npy file of float16 whose rows begin at its second page. Raises OSError if the disk has no room."""
    header = repr({"descr": "<f2", "fortran_order": False, "shape": shape}).encode()
    header = header.ljust(PAGE - 11) + b"\n"
    with file.open("wb") as out:
        out.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        out.truncate(size := PAGE + 2 * math.prod(shape))
    storage.reserve(file, size)


def is_whole(folder: Path, shape: tuple[int, int, int]) -> bool:
    """Whether the features in `folder` are as they were written."""
    try:
        meta = storage.read_json(folder / "meta.json", needed=("checksum", "pictures_per_second"))
        with storage.reading(folder / "features.npy"):
            features = np.load(folder / "features.npy", mmap_mode="r")
            stops, recorded = meta.get("parts", [shape[0]]), np.atleast_1d(meta["checksum"]).tolist()
            parts = zip([0, *stops], stops, strict=False)
            return features.shape == shape and [checksum(features[a:b]) for a, b in parts] == recorded
    except (Damaged, FileNotFoundError):
        return False


def checksum(features: np.ndarray) -> int:
    """CRC-32 of features (N, V, D), part by part: they may be larger than the memory."""
    crc = 0
    for start in range(0, len(features), 1024):
        crc = zlib.crc32(features[start : start + 1024].data, crc)
    return crc
