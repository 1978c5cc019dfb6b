"""State outlines: which state a point lies in, and the shapes that maps are drawn from.

The shapes are the Census Bureau's cartographic boundaries (2017, public domain) as packed by the npm package
us-atlas 3.0.1; see assets/README.md. Coastlines are simplified to about a kilometre, so a pier may lie in no state.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import shapely

from kitlib import paths


@cache
def state_shapes() -> dict[str, shapely.MultiPolygon]:
    """The 50 states, the District of Columbia and 5 territories by name; coordinates are (longitude, latitude).

    Source: the TopoJSON specification; arcs are delta-encoded integers, and ~i is arc i reversed.

    >>> round(state_shapes()["Colorado"].bounds[1], 1), len(state_shapes())
    (37.0, 56)
    """
    topology = json.loads((paths.assets_dir() / "states-10m.json").read_text())
    scale, shift = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]

    def ring(indices: list[int]) -> np.ndarray:
        pieces = [arcs[i] if i >= 0 else arcs[~i][::-1] for i in indices]
        return np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])

    def shape(geometry: dict[str, Any]) -> shapely.MultiPolygon:
        polygons = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
        rings = [[ring(indices) for indices in polygon] for polygon in polygons]
        whole = shapely.MultiPolygon([shapely.Polygon(outer, holes) for outer, *holes in rings])
        # in Delaware and Oregon simplification made rings touch themselves
        valid = shapely.make_valid(whole, method="structure", keep_collapsed=False)
        return valid if isinstance(valid, shapely.MultiPolygon) else shapely.MultiPolygon([valid])

    return {g["properties"]["name"]: shape(g) for g in topology["objects"]["states"]["geometries"]}


def state_of(points: np.ndarray) -> np.ndarray:
    """The name of the state each point lies in, "" at sea, abroad and for NaN.

    points: (N, 2) [lat, lon] degrees. Returns (N,) object array of str; a point on a border gets either state.

    >>> state_of(np.array([[41.88, -87.63], [48.86, 2.35]])).tolist()
    ['Illinois', '']
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    shapes = state_shapes()
    # The tree holds the points, because shapely prepares what a tree is asked about: twice as fast as a tree of states.
    inside, which = shapely.STRtree(shapely.points(points[known, ::-1])).query(
        list(shapes.values()), predicate="intersects"
    )
    found = np.full(len(points), "", dtype=object)
    found[known[which]] = np.array(list(shapes), dtype=object)[inside]
    return found
