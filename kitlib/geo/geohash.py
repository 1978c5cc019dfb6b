"""Geohashes: a place as a short word; each further character divides its cell into 32.

The code is Niemeyer's (2008, public domain): bits of longitude and latitude alternate, longitude first, and five bits
make a character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.geo import sphere

ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"
LONGEST = 12  # characters: 60 bits, 4 cm


def bits(length: int) -> tuple[int, int]:
    """The number of bits of latitude and of longitude in a geohash of `length` characters."""
    if not 1 <= length <= LONGEST:
        raise KitError(f"geohash: expected 1 to {LONGEST} characters; got {length}")
    return 5 * length // 2, (5 * length + 1) // 2


def encode(points: ArrayLike, length: int) -> np.ndarray:
    """Geohashes (...) of `length` characters for points (..., 2) [lat, lon] in degrees.

    >>> str(encode([57.64911, 10.40744], 11))
    'u4pruydqqvj'
    """
    points = sphere.check_points(points, "points to encode")
    n_bits = np.array(bits(length))
    share = (points + np.array([90.0, 180.0])) / np.array([180.0, 360.0])
    # The north pole and the date line belong to the last cell.
    lat, lon = np.moveaxis(np.minimum((share * 2.0**n_bits).astype(np.int64), 2**n_bits - 1), -1, 0)
    word = np.zeros(lat.shape, np.int64)
    left = [int(n_bits[1]), int(n_bits[0])]
    for bit in range(5 * length):
        left[bit % 2] -= 1
        word = word << 1 | (lon, lat)[bit % 2] >> left[bit % 2] & 1
    characters = np.array(list(ALPHABET))[word[..., None] >> 5 * np.arange(length)[::-1] & 31]
    return np.ascontiguousarray(characters).view(f"U{length}")[..., 0]


def decode(geohash: str | Sequence[str] | np.ndarray) -> np.ndarray:
    """The centre (2,) [lat, lon] of a geohash's cell, or centres (N, 2) of several. Raises KitError for other text.

    >>> decode("ezs42").round(3).tolist()
    [42.605, -5.603]
    """
    if not isinstance(geohash, str):
        return np.array([decode(str(one)) for one in geohash], float).reshape(-1, 2)
    n_bits = bits(len(geohash))
    if not is_geohash(geohash):
        raise KitError(f"geohash: expected the characters {ALPHABET}; got {geohash!r}")
    word = "".join(f"{ALPHABET.index(character):05b}" for character in geohash)
    cell = np.array([int(word[1::2] or "0", 2), int(word[::2], 2)])
    return (cell + 0.5) / 2.0 ** np.array(n_bits) * [180.0, 360.0] - [90.0, 180.0]


def is_geohash(text: str) -> bool:
    """Whether `text` is a geohash in lower case."""
    return len(text) <= LONGEST and re.fullmatch(f"[{ALPHABET}]+", text) is not None


def radius_km(length: int) -> float:
    """The distance from the centre of a cell at the equator to its corner.

    >>> [round(radius_km(length)) for length in (2, 4, 6)]
    [699, 22, 1]
    """
    lat, lon = bits(length)
    return float(sphere.distance_km([0.0, 0.0], [90.0 / 2**lat, 180.0 / 2**lon]))
