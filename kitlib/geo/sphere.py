"""Great-circle distances on a sphere with the competition's radius; no other module computes distances.

Points are arrays (..., 2) of [latitude, longitude] in degrees, distances are kilometres. The functions compute with
unit vectors, so that the date line and the poles need no special case, and with chords (differences of unit vectors),
which are precise at a metre, where the arc cosine of a dot product is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from kitlib.core.errors import KitError

EARTH_RADIUS_KM = 6371.0
BLOCK = 2**17  # elements processed at once: temporaries of 1 MB stay in the cache
Array = NDArray[np.floating]


def unit_vectors(points: ArrayLike) -> Array:
    """Points (..., 2) as unit vectors (..., 3): x towards (0, 0), y towards (0, 90), z towards the north pole.

    >>> unit_vectors([90.0, 12.0]).round(9).tolist()
    [0.0, 0.0, 1.0]
    """
    lat_rad, lon_rad = np.moveaxis(np.radians(np.asarray(points, float)), -1, 0)
    across = np.cos(lat_rad)
    return np.stack([across * np.cos(lon_rad), across * np.sin(lon_rad), np.sin(lat_rad)], axis=-1)


def from_unit_vectors(vectors: ArrayLike) -> Array:
    """Vectors (..., 3) of any positive length as points (..., 2)."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=-1))


def check_points(points: ArrayLike, what: str) -> Array:
    """Return points (..., 2) as float64. Raises KitError naming `what` and the first point that is not on Earth."""
    points = np.asarray(points, float)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise KitError(f"{what}: expected points of shape (..., 2), [latitude, longitude]; got shape {points.shape}")
    bad = ~((np.abs(points[..., 0]) <= 90) & (np.abs(points[..., 1]) <= 180))  # NaN fails both
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        lat, lon = points[first]
        where = f" at {first[0] if len(first) == 1 else first}" if first else ""
        raise KitError(
            f"{what}: expected latitudes -90..90 and longitudes -180..180; {int(bad.sum())} of {bad.size} points are "
            f"not on Earth, first{where}: latitude {lat:g}, longitude {lon:g}"
        )
    return points


def distance_km(a: ArrayLike, b: ArrayLike) -> Array:
    """Great-circle distances (...) between points a and b (..., 2), broadcast; exact from millimetres to antipodes.

    >>> float(distance_km([36.12, -86.67], [33.94, -118.40]).round(2))
    2886.44
    """
    a, b = unit_vectors(a), unit_vectors(b)
    # 2 atan2(|a - b|, |a + b|): unlike asin and acos it is well-conditioned at both ends (Kahan).
    return 2 * EARTH_RADIUS_KM * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def distance_matrix_km(
    a: ArrayLike, b: ArrayLike | None = None, dtype: DTypeLike = np.float32, out: np.ndarray | None = None
) -> np.ndarray:
    """Great-circle distances (N, M) between points a (N, 2) and b (M, 2), b being a when None.

    They are computed in float64, with an error of at most 0.2 m, at the antipodes, and in little extra memory.
    dtype: of the result. out: an array (N, M) to write to, such as a memory map; `dtype` is then not used.
    """
    vectors = unit_vectors(a)
    x, y, z = np.ascontiguousarray((vectors if b is None else unit_vectors(b)).T)
    if out is None:
        out = np.empty((len(vectors), len(x)), dtype)
    rows = max(1, BLOCK // max(1, len(x)))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        squared = (block[:, :1] - x) ** 2
        for axis, other in ((1, y), (2, z)):
            difference = block[:, axis : axis + 1] - other
            difference *= difference
            squared += difference
        half_chord = np.sqrt(squared, out=squared)
        half_chord *= 0.5
        angle_rad = np.arcsin(np.minimum(half_chord, 1, out=half_chord), out=half_chord)
        angle_rad *= 2 * EARTH_RADIUS_KM
        out[start : start + rows] = angle_rad
    return out


def nearest(points: ArrayLike, of: ArrayLike, k: int = 1) -> tuple[Array, NDArray[np.intp]]:
    """Distances (N, k) in km and indices (N, k) of the k nearest of `of` (M, 2) to points (N, 2), nearest first.

    >>> nearest([[0.0, 179.9]], [[0.0, 0.0], [0.0, -179.9]])[1].tolist()
    [[1]]
    """
    from scipy.spatial import cKDTree

    of = np.asarray(of, float)
    if not 1 <= k <= len(of):
        raise KitError(f"k: expected 1..{len(of)} for {len(of)} points; got {k}")
    chord, index = cKDTree(unit_vectors(of)).query(unit_vectors(points), k=range(1, k + 1))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1)), index


def pairs_within_km(points: ArrayLike, radius_km: float) -> NDArray[np.intp]:
    """Sorted index pairs (P, 2), i < j, of the points (N, 2) that are at most `radius_km` apart."""
    from scipy.spatial import cKDTree

    chord = 2 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2)
    pairs = cKDTree(unit_vectors(points)).query_pairs(chord, output_type="ndarray")
    return pairs[np.lexsort(pairs.T[::-1])]
