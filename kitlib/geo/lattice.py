"""Lattices of evenly spread points over the states or over all land."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from kitlib.core.errors import KitError, shorten
from kitlib.geo import outlines, sphere

GRID_KM = 0.5  # the finest grid: 37 million points in the United States
WORLD_KM = 5.0  # the same for all land: five million points
CHUNK = 2**20  # grid points made, or embeddings checked, at once
GOLDEN = (5**0.5 - 1) / 2
ANTARCTICA = -60.0  # degrees of latitude south of which nobody drives


def land_grid(spacing_km: float, states: Sequence[str] | None = None) -> np.ndarray:
    """Points (M, 2) spread evenly over the land of some states (None: all of `outlines`), one to spacing_km squared.

    They are those of a Fibonacci lattice on the whole sphere that lie on land, so that grids of neighbouring states fit
    together; their number is the land's area over spacing_km^2, and a state much smaller may get none. Source: Swinbank
    and Purser 2006 (doi:10.1256/qj.05.227).
    """
    shapes = outlines.state_shapes()
    names = list(shapes if states is None else states)
    if isinstance(states, str) or not names or set(names) - set(shapes):
        told = "a single name" if isinstance(states, str) else shorten(sorted(set(names) - set(shapes)))
        raise KitError(f"states for a grid: {told}; allowed is a list of some of {', '.join(shapes)}")
    if not spacing_km >= GRID_KM:
        raise KitError(f"a grid with a point every {spacing_km} km: allowed are {GRID_KM} km and more")
    total = int(4 * np.pi * (sphere.EARTH_RADIUS_KM / spacing_km) ** 2)
    inside = [_on_lattice(shapes[state], total) for state in names]
    number = np.unique(np.concatenate(inside))  # a point on a border is in both states
    if not len(number):
        raise KitError(f"a grid with a point every {spacing_km:g} km has none in {shorten(names)}: take fewer km")
    return _lattice(number, total)


def world_grid(spacing_km: float) -> np.ndarray:
    """Points (M, 2) spread like those of `land_grid` over the land of the world but Antarctica; small islands lack.

    >>> len(world_grid(500))
    538
    """
    if not spacing_km >= WORLD_KM:
        raise KitError(f"a grid of the world with a point every {spacing_km} km: allowed are {WORLD_KM} km and more")
    total = int(4 * np.pi * (sphere.EARTH_RADIUS_KM / spacing_km) ** 2)
    points = _lattice(_on_lattice(outlines.land_shape(), total), total)
    return points[points[:, 0] > ANTARCTICA]


def _lattice(number: np.ndarray, total: int) -> np.ndarray:
    """Points (n, 2) of the Fibonacci lattice of `total` points, by their numbers (n,) from south to north."""
    latitude = np.degrees(np.arcsin((2 * number + 1) / total - 1))
    return np.stack([latitude, (number * GOLDEN % 1) * 360 - 180], axis=1)


def _on_lattice(shape: shapely.MultiPolygon, total: int) -> np.ndarray:
    """The numbers of the lattice points that lie in a shape."""
    west, south, east, north = shape.bounds
    low, high = ((np.sin(np.radians([south, north])) + 1) / 2 * total).astype(np.int64)
    shapely.prepare(shape)
    found = []
    for start in range(low, high + 1, CHUNK):
        number = np.arange(start, min(start + CHUNK, high + 1))
        longitude = (number * GOLDEN % 1) * 360 - 180
        number = number[(longitude >= west) & (longitude <= east)]
        points = _lattice(number, total)
        found.append(number[shapely.intersects_xy(shape, points[:, 1], points[:, 0])])
    return np.concatenate(found)
