"""Geometry on the globe: distances and medians, projections, grids, geocells, clusters, geohashes, outlines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.geo import clustering as clustering
    from kitlib.geo import geocells as geocells
    from kitlib.geo import geohash as geohash
    from kitlib.geo import grid as grid
    from kitlib.geo import outlines as outlines
    from kitlib.geo import projection as projection
    from kitlib.geo.clustering import neighbour_km as neighbour_km
    from kitlib.geo.median import geometric_median as geometric_median
    from kitlib.geo.median import group_medians as group_medians
    from kitlib.geo.sphere import EARTH_RADIUS_KM as EARTH_RADIUS_KM
    from kitlib.geo.sphere import check_points as check_points
    from kitlib.geo.sphere import distance_km as distance_km
    from kitlib.geo.sphere import distance_matrix_km as distance_matrix_km
    from kitlib.geo.sphere import from_unit_vectors as from_unit_vectors
    from kitlib.geo.sphere import nearest as nearest
    from kitlib.geo.sphere import pairs_within_km as pairs_within_km
    from kitlib.geo.sphere import unit_vectors as unit_vectors
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
