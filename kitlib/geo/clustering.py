"""Density clusters on the globe by scikit-learn's DBSCAN, and the distances that guide the choice of its radius.

labels = dbscan(points, eps_km=25.0, min_samples=5)  # (N,) int, -1 is noise
np.sort(neighbour_km(points, k=4))                   # (N,) the curve that shows a good eps_km
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.geo import sphere
from kitlib.geo.sphere import EARTH_RADIUS_KM, Array

SMALLEST_EPS_KM = 1e-6  # a millimetre; much below it coordinates are rounded


def dbscan(points: ArrayLike, eps_km: float, min_samples: int) -> np.ndarray:
    """Cluster labels (N,) of points (N, 2): 0, 1, ... in the order of their first core points, -1 for noise.

    A core point has at least `min_samples` points, including itself, within `eps_km`. Core points within `eps_km` of
    each other share a cluster; another point joins the first cluster with a core point that close (Ester et al. 1996).
    Memory grows with the number of pairs within `eps_km`: 0.7 GB for the competition's 65,980 places at 100 km. Raises
    KitError for an `eps_km` below a millimetre and for `min_samples` below 1.
    """
    from sklearn.cluster import DBSCAN

    points = check_places(points)
    if not eps_km >= SMALLEST_EPS_KM:
        raise KitError(f"eps_km: expected a number from {SMALLEST_EPS_KM:g}; got {eps_km:g}")
    check_min_samples(min_samples)
    if not len(points):
        return np.empty(0, int)
    chord = 2 * math.sin(min(eps_km / EARTH_RADIUS_KM, math.pi) / 2)
    # Haversine distances on degrees give the same labels; chords are twice as fast in the tree.
    return DBSCAN(eps=chord, min_samples=int(min_samples), algorithm="ball_tree").fit_predict(
        sphere.unit_vectors(points)
    )


def neighbour_km(points: ArrayLike, k: int) -> np.ndarray:
    """Distances (N,) from points (N, 2) to their k-th nearest other point, the usual guide to a good eps.

    Sorted, they rise slowly and then bend: the bend is a good eps for min_samples = k + 1 (Ester et al. 1996).
    Raises KitError if there are fewer than k other points.

    >>> neighbour_km([[0, 0], [0, 1], [0, 3]], 1).round(1).tolist()
    [111.2, 111.2, 222.4]
    """
    points = check_places(points)
    if not 1 <= k < len(points):
        raise KitError(f"k: expected 1..{len(points) - 1} for {len(points)} places; got {k}")
    return sphere.nearest(points, points, k + 1)[0][:, k]


def check_places(points: ArrayLike) -> Array:
    """Return points (N, 2) as float64. Raises KitError for another shape and for points that are not on Earth."""
    points = sphere.check_points(points, "places")
    if points.ndim != 2:
        raise KitError(f"places: expected shape (N, 2); got {points.shape}")
    return points


def check_min_samples(min_samples: int) -> None:
    """Raise KitError unless `min_samples` is a whole number from 1."""
    if min_samples < 1 or min_samples != int(min_samples):
        raise KitError(f"min_samples: expected a whole number from 1, including the place itself; got {min_samples}")
