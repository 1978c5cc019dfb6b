"""Divisions of the globe: blocks of about equal size, and grids of evenly spaced points on land."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kitlib import geo
from kitlib.core.errors import KitError, shorten
from kitlib.geo import sphere

if TYPE_CHECKING:
    import shapely

KM_PER_DEGREE = float(np.radians(1.0)) * sphere.EARTH_RADIUS_KM
GRID_KM = 0.5  # the finest grid: 37 million points in the United States
WORLD_KM = 5.0  # the same for all land: five million points
CHUNK = 2**20  # grid points made at once
GOLDEN = (5**0.5 - 1) / 2
ANTARCTICA = -60.0  # degrees of latitude south of which there are no roads


def blocks(points: np.ndarray, block_km: float) -> np.ndarray:
    """Block ids (N,) 0…B-1 of points (N, 2): rows of latitude `block_km` high, divided into pieces about as wide."""
    row = np.floor((points[:, 0] + 90) * KM_PER_DEGREE / block_km).astype(np.int64)
    middle_rad = np.radians((row + 0.5) * block_km / KM_PER_DEGREE - 90)
    pieces = np.maximum(1, np.round(360 * KM_PER_DEGREE * np.cos(middle_rad) / block_km)).astype(np.int64)
    piece = np.floor((points[:, 1] + 180) / 360 * pieces).astype(np.int64) % pieces
    return np.unique(np.stack([row, piece], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def land_grid(spacing_km: float, states: Sequence[str] | None = None) -> np.ndarray:
    """Points (M, 2) spread evenly over the land of some states (None: all), one per spacing_km squared.

    The points are those of a Fibonacci lattice on the whole sphere that lie on land, so that the grids of neighbouring
    states fit together; a state much smaller than spacing_km squared may get none. Source: Swinbank and Purser 2006
    (doi:10.1256/qj.05.227).
    """
    shapes = geo.outlines.state_shapes()
    names = list(shapes if states is None else states)
    if isinstance(states, str) or not names or set(names) - set(shapes):
        got = "a single name" if isinstance(states, str) else shorten(sorted(set(names) - set(shapes)))
        raise KitError(f"states: expected a list of some of {', '.join(shapes)}; got {got}")
    total = _lattice_size(spacing_km, GRID_KM)
    inside = [_on_lattice(shapes[state], total) for state in names]
    number = np.unique(np.concatenate(inside))  # a point on a border is in both states
    if not len(number):
        raise KitError(f"spacing_km: {spacing_km:g} km leaves no grid point in {shorten(names)}; take fewer km")
    return _lattice(number, total)


def world_grid(spacing_km: float) -> np.ndarray:
    """Points (M, 2) spread like those of `land_grid` over all land but Antarctica and small islands."""
    total = _lattice_size(spacing_km, WORLD_KM)
    points = _lattice(_on_lattice(geo.outlines.land_shape(), total), total)
    return points[points[:, 0] > ANTARCTICA]


def _lattice_size(spacing_km: float, least_km: float) -> int:
    """The number of points on the whole sphere. Raises KitError for a grid that is too fine."""
    if not spacing_km >= least_km:
        raise KitError(f"spacing_km: expected {least_km} km or more; got {spacing_km}")
    return int(4 * np.pi * (sphere.EARTH_RADIUS_KM / spacing_km) ** 2)


def _lattice(number: np.ndarray, total: int) -> np.ndarray:
    """The points (n, 2) with these numbers (n,), from south to north, of the Fibonacci lattice of `total` points."""
    latitude = np.degrees(np.arcsin((2 * number + 1) / total - 1))
    return np.stack([latitude, (number * GOLDEN % 1) * 360 - 180], axis=1)


def _on_lattice(shape: shapely.MultiPolygon, total: int) -> np.ndarray:
    """The numbers of the lattice points that lie in a shape."""
    import shapely  # `blocks` needs none of it

    west, south, east, north = shape.bounds
    low, high = ((np.sin(np.radians([south, north])) + 1) / 2 * total).astype(np.int64)
    shapely.prepare(shape)
    inside = []
    for start in range(low, high + 1, CHUNK):
        number = np.arange(start, min(start + CHUNK, high + 1))
        longitude = (number * GOLDEN % 1) * 360 - 180
        number = number[(longitude >= west) & (longitude <= east)]
        points = _lattice(number, total)
        inside.append(number[shapely.intersects_xy(shape, points[:, 1], points[:, 0])])
    return np.concatenate(inside)
