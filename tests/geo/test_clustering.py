"""Density clusters: kilometres on the globe, border points, noise, and the curve that shows eps."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import EARTH_RADIUS_KM, clustering, projection
from kitlib.geo.clustering import dbscan, neighbour_km


def by_haversine(points, eps_km, min_samples):
    eps = eps_km / EARTH_RADIUS_KM
    return DBSCAN(eps=eps, min_samples=min_samples, metric="haversine").fit_predict(np.radians(points))


def towns(n, seed=0, spread_km=4.0):
    """Dense towns along a line, their edges fading into each other, and places all over the country."""
    rng = np.random.default_rng(seed)
    centres = projection.from_local_km(np.stack([np.linspace(-150, 150, 12), rng.normal(0, 8, 12)], 1), [40.0, -100.0])
    near = projection.from_local_km(rng.normal(0, spread_km, (n, 2)), centres[rng.integers(0, 12, n)])
    wide = projection.from_local_km(rng.uniform(-300, 300, (n // 5, 2)), [40.0, -100.0])
    return rng.permutation(np.concatenate([near, wide]))


def test_examples_in_docstrings():
    assert doctest.testmod(clustering).failed == 0


def test_a_border_point_joins_the_first_cluster_that_reaches_it():
    points, eps_km, min_samples = towns(1500), 1.0, 5
    labels = dbscan(points, eps_km, min_samples)
    near = geo.distance_matrix_km(points) <= eps_km
    core = near.sum(axis=1) >= min_samples
    border = np.flatnonzero(~core & (near & core).any(axis=1))
    reachable = [set(labels[near[row] & core]) for row in border]
    assert (labels[core] >= 0).all() and (labels[~core & ~(near & core).any(axis=1)] == -1).all()
    assert labels[border].tolist() == [min(clusters) for clusters in reachable]
    assert labels.max() >= 10 and sum(len(clusters) > 1 for clusters in reachable) >= 3


@given(st.integers(0, 2**32 - 1), st.floats(100, 20_000), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_labels_all_over_the_globe_are_those_by_great_circle_distance(seed, eps_km, min_samples):
    points = geo.from_unit_vectors(np.random.default_rng(seed).normal(size=(60, 3)))
    assume(np.abs(geo.distance_matrix_km(points, dtype=np.float64) - eps_km).min() > 1e-6)
    assert np.array_equal(dbscan(points, eps_km, min_samples), by_haversine(points, eps_km, min_samples))


def test_two_dense_towns_in_neighbouring_cells_stay_apart_until_eps_spans_the_gap():
    rng = np.random.default_rng(0)
    west, east = rng.uniform(-0.5, 0.5, (2, 2000, 2))
    points = projection.from_local_km(np.concatenate([west, east + np.array([0, 4.0])]), [0.0, 0.0])
    gap_km = float(geo.distance_matrix_km(points[:2000], points[2000:]).min())
    assert dbscan(points, gap_km * 0.98, 5).max() == 1
    assert dbscan(points, gap_km * 1.02, 5).max() == 0


def test_the_same_place_many_times():
    points = np.concatenate([np.repeat([[10.0, 20.0]], 7, 0), np.repeat([[10.0, 21.0]], 4, 0)])
    assert dbscan(points, 0.001, 5).tolist() == [0] * 7 + [-1] * 4
    assert dbscan(points, 0.001, 4).tolist() == [0] * 7 + [1] * 4
    assert dbscan(points, 150, 5).tolist() == [0] * 11


def test_few_places_and_an_eps_as_large_as_the_globe():
    assert dbscan(np.empty((0, 2)), 1, 1).shape == (0,)
    assert dbscan([[0, 0], [0, 0]], 1, 3).tolist() == [-1, -1]
    assert dbscan([[0, 0], [0, 180], [90, 0]], 30_000, 3).tolist() == [0, 0, 0]


def test_settings_that_make_no_sense_are_refused():
    for bad in (0, -1, 1e-9, float("nan")):
        with pytest.raises(KitError, match="eps_km: expected a number from 1e-06"):
            dbscan([[0, 0]], bad, 1)
    for bad in (0, -3, 2.5):
        with pytest.raises(KitError, match="min_samples: expected a whole number from 1"):
            dbscan([[0, 0]], 1, bad)
    with pytest.raises(KitError, match="expected shape"):
        dbscan([0, 0], 1, 1)
    with pytest.raises(KitError, match="not on Earth"):
        dbscan([[0, 0], [91, 0]], 1, 1)


def test_the_curve_for_choosing_eps_is_the_distance_to_the_kth_other_place():
    points = towns(200)
    km = np.sort(geo.distance_matrix_km(points, dtype=np.float64), axis=1)
    assert np.allclose(neighbour_km(points, 4), km[:, 4], atol=1e-6)
    assert neighbour_km([[0, 0], [0, 0], [0, 1]], 1)[:2].tolist() == [0, 0]
    for k in (0, 3):
        with pytest.raises(KitError, match=r"k: expected 1\.\.2 for 3 places; got"):
            neighbour_km([[0, 0], [0, 0], [0, 1]], k)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_place_is_core_exactly_where_the_curve_is_below_eps(seed, k):
    points = np.random.default_rng(seed).normal(0, 0.05, (40, 2))
    km = neighbour_km(points, k)
    values = np.sort(km)[5:35]
    gap = np.diff(values).argmax()
    eps_km = float(values[gap : gap + 2].mean())
    near = geo.distance_matrix_km(points, dtype=np.float64) <= eps_km
    assert np.array_equal(km <= eps_km, near.sum(axis=1) >= k + 1)
    assert (dbscan(points, eps_km, k + 1)[km <= eps_km] >= 0).all()
