"""Kilometres east and north of a centre: the azimuthal equidistant projection and its inverse.

Distances and directions from the centre are exact, also at the poles and across the date line (Snyder 1987, Map
Projections, a Working Manual, p. 191).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kitlib.geo import sphere
from kitlib.geo.sphere import EARTH_RADIUS_KM, Array


def axes(centre: ArrayLike) -> Array:
    """Unit vectors (..., 3, 3) to the east, to the north and up at centres (..., 2)."""
    centre = np.asarray(centre, float)
    up, lon_rad = sphere.unit_vectors(centre), np.radians(centre[..., 1])
    east = np.stack([-np.sin(lon_rad), np.cos(lon_rad), np.zeros_like(lon_rad)], axis=-1)
    return np.stack([east, np.cross(up, east), up], axis=-2)


def to_local_km(points: ArrayLike, centre: ArrayLike) -> Array:
    """Convert points (..., 2) to [east, north] (..., 2) in km from the centres (..., 2), broadcast.

    >>> to_local_km([0.0, -179.0], [0.0, 179.0]).round(3).tolist()
    [222.39, 0.0]
    """
    vectors, frame = sphere.unit_vectors(points), axes(centre)
    east, north, up = np.moveaxis(np.einsum("...ad,...d->...a", frame, vectors), -1, 0)
    sine = np.hypot(east, north)
    stretch = np.arctan2(sine, up) / np.where(sine > 0, sine, 1)
    antipode = (sine == 0) & (up < 0)  # all directions are equal: choose north
    flat = np.stack([east * stretch, np.where(antipode, np.pi, north * stretch)], axis=-1)
    return EARTH_RADIUS_KM * flat


def from_local_km(local: ArrayLike, centre: ArrayLike) -> Array:
    """Convert [east, north] (..., 2) in km from the centres (..., 2) to points (..., 2).

    >>> from_local_km([222.39, 0.0], [0.0, 179.0]).round(3).tolist()
    [0.0, -179.0]
    """
    flat, frame = np.asarray(local, float) / EARTH_RADIUS_KM, axes(centre)
    angle_rad = np.hypot(flat[..., 0], flat[..., 1])
    along = np.concatenate([flat * np.sinc(angle_rad / np.pi)[..., None], np.cos(angle_rad)[..., None]], axis=-1)
    return sphere.from_unit_vectors(np.einsum("...a,...ad->...d", along, frame))
