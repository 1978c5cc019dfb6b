"""Clusters on the globe by density, exactly scikit-learn's, in time and memory that do not grow with the density.

labels = dbscan(points, eps_km=25.0, min_samples=5)  # (N,) int, -1 is noise
neighbour_km(points, k=4)                            # (N,) sorted, the curve that shows a good eps_km
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from kitlib.core.errors import KitError
from kitlib.geo import sphere
from kitlib.geo.sphere import EARTH_RADIUS_KM, Array

CHUNK = 2**20  # neighbours held at once
FEW = 16  # neighbours; so many are sooner found than counted
SMALLEST_EPS_KM = 1e-6  # a millimetre; much below it coordinates are rounded
SLACK = 1 + 1e-9  # scipy's bound of a search excludes the bound itself


def dbscan(points: ArrayLike, eps_km: float, min_samples: int) -> np.ndarray:
    """Clusters (N,) of points (N, 2): 0, 1, ... in the order of their first core points, and -1 for noise.

    A core point has `min_samples` points, itself counted, within `eps_km`; core points that near each other share a
    cluster; any other point joins the first cluster that has a core point that near (Ester et al. 1996). Labels are
    those of scikit-learn. Space is cut into cells so small that all points of one are neighbours (Gunawan 2013), hence
    neither time nor memory grows with the number of pairs. KitError for an `eps_km` below a millimetre and for
    `min_samples` below 1.
    """
    points = check_places(points)
    if not eps_km >= SMALLEST_EPS_KM:
        raise KitError(f"eps_km={eps_km:g} of clusters: allowed are numbers from {SMALLEST_EPS_KM:g}")
    check_min_samples(min_samples)
    labels = np.full(len(points), -1)
    if len(points) < min_samples:
        return labels
    if eps_km >= math.pi * EARTH_RADIUS_KM:  # everything is near everything
        return np.zeros_like(labels)
    vectors, chord = sphere.unit_vectors(points), 2 * math.sin(eps_km / EARTH_RADIUS_KM / 2)

    index = np.floor(vectors / (chord / math.sqrt(3)))  # (N, 3), the cell of a point; its diagonal is a chord
    order = np.lexsort(index.T)
    cell = np.empty(len(points), int)
    cell[order] = np.cumsum(np.r_[0, (np.diff(index[order], axis=0) != 0).any(axis=1)])
    is_core = np.bincount(cell)[cell] >= min_samples
    rest = order[~is_core[order]]  # in the order of cells the tree's nodes stay in the cache
    is_core[rest] = _has_neighbours(cKDTree(vectors), vectors[rest], chord, min_samples)
    core = np.flatnonzero(is_core)
    if not len(core):
        return labels

    component = _components(vectors[core], index[core], cell[core], chord)
    _, first, component = np.unique(component, return_index=True, return_inverse=True)
    labels[core] = np.argsort(np.argsort(first))[component]
    rest = order[~is_core[order]]
    labels[rest] = _first_cluster(vectors[rest], vectors[core], labels[core], chord, min_samples)
    return labels


def neighbour_km(points: ArrayLike, k: int) -> np.ndarray:
    """Distances (N,) from points (N, 2) to their k-th nearest other point, the usual guide to DBSCAN's eps.

    Sorted, they rise slowly and then bend: the bend is a good eps for min_samples = k + 1 (Ester et al. 1996).
    KitError where there are not k others.

    >>> neighbour_km([[0, 0], [0, 1], [0, 3]], 1).round(1).tolist()
    [111.2, 111.2, 222.4]
    """
    points = check_places(points)
    if not 1 <= k < len(points):
        raise KitError(f"neighbour {k} asked of {len(points)} places: allowed is 1..{len(points) - 1}")
    return sphere.nearest(points, points, k + 1)[0][:, k]


def check_places(points: ArrayLike) -> Array:
    """Points (N, 2) as float64, or a KitError that says what is wrong with them."""
    points = sphere.check_points(points, "places")
    if points.ndim != 2:
        raise KitError(f"places have shape {points.shape}, wanted is (N, 2)")
    return points


def check_min_samples(min_samples: int) -> None:
    """KitError for a number of neighbours that makes no sense."""
    if min_samples < 1 or min_samples != int(min_samples):
        raise KitError(f"min_samples={min_samples}: allowed are whole numbers from 1, the place itself counted")


def _has_neighbours(tree: cKDTree, vectors: Array, chord: float, least: int) -> np.ndarray:
    """Whether at least so many of the tree's points lie within `chord` of points (n, 3)."""
    if least <= FEW:
        return tree.query(vectors, [least], distance_upper_bound=chord * SLACK)[0][:, 0] <= chord
    return tree.query_ball_point(vectors, chord, return_length=True) >= least


def _components(vectors: Array, index: Array, cell: np.ndarray, chord: float) -> np.ndarray:
    """The component (n,) of core points that hang together by steps of at most `chord`; index (n, 3) of their cells."""
    _, first, cell, count = np.unique(cell, return_index=True, return_inverse=True, return_counts=True)
    pairs = cKDTree(index[first]).query_pairs(2, p=math.inf, output_type="ndarray")  # no farther cell is in reach

    def joined(links: np.ndarray) -> np.ndarray:
        graph = coo_array((np.ones(len(links), bool), links.T), shape=(len(first), len(first)))
        return connected_components(graph, directed=False)[1]

    # One point a cell settles nearly all; only cells still apart are searched.
    a, b = first[pairs.T]
    links = pairs[((vectors[a] - vectors[b]) ** 2).sum(axis=1) <= chord**2]
    apart = np.not_equal(*joined(links)[pairs.T])
    pairs = pairs[apart]
    if not len(pairs):
        return joined(links)[cell]
    order, start = np.argsort(cell, kind="stable"), np.cumsum(count) - count

    def members(cells: np.ndarray) -> tuple[np.ndarray, Array]:
        """For each pair its cell's points, and the pair's number as a fourth coordinate that keeps pairs apart."""
        n = count[cells]
        pair = np.repeat(np.arange(len(cells)), n)
        row = order[np.arange(len(pair)) + np.repeat(start[cells] - np.cumsum(n) + n, n)]
        return pair, np.column_stack([vectors[row], 4.0 * pair])

    _, those = members(pairs[:, 0])
    pair, these = members(pairs[:, 1])
    distance, _ = cKDTree(those).query(these, distance_upper_bound=chord * SLACK)
    return joined(np.concatenate([links, pairs[np.unique(pair[distance <= chord])]]))[cell]


def _first_cluster(vectors: Array, core: Array, labels: np.ndarray, chord: float, min_samples: int) -> np.ndarray:
    """The lowest of the core points' labels within `chord` of points (n, 3) that are not core points; -1 for none."""
    k = max(1, min(min_samples - 1, len(core)))  # a point with more neighbours would be a core point
    tree, none = cKDTree(core), np.iinfo(labels.dtype).max
    lowest, labels = np.full(len(vectors), none), np.append(labels, none)  # the tree's mark for no neighbour is n
    for rows in np.array_split(np.arange(len(vectors)), -(-len(vectors) * k // CHUNK) or 1):
        distance, near = tree.query(vectors[rows], range(1, k + 1), distance_upper_bound=chord * SLACK)
        lowest[rows] = np.where(distance <= chord, labels[near], none).min(axis=1, initial=none)
    return np.where(lowest < none, lowest, -1)
