"""Great-circle maths: known distances, degenerate inputs, and properties that must hold for all points."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import sphere

HALF_WAY_ROUND = np.pi * geo.EARTH_RADIUS_KM
METRE = 1e-3

points = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
clouds = st.lists(st.tuples(points, st.integers(0, 5)), min_size=1, max_size=8).filter(
    lambda cloud: any(weight for _, weight in cloud)
)


def objective(cloud, weights, guess):
    return float((np.asarray(weights) * geo.distance_km(cloud, guess)).sum() / np.sum(weights))


def by_search(cloud, weights, spread_deg):
    """The median by a grid of starts and Nelder-Mead, on a plane that is tilted to lie around the cloud."""
    centre = geo.from_unit_vectors(np.asarray(weights, float) @ geo.unit_vectors(cloud))
    grid = np.linspace(-spread_deg, spread_deg, 9)
    starts = sorted(
        ((objective(cloud, weights, centre + np.array([a, b])), a, b) for a in grid for b in grid),
        key=lambda start: start[0],
    )[:3]
    found = [
        minimize(
            lambda d: objective(cloud, weights, centre + d),
            start[1:],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-9},
        )
        for start in starts
    ]
    return min(found, key=lambda result: result.fun)


def test_examples_in_docstrings():
    assert doctest.testmod(sphere).failed == 0


def test_known_distances():
    assert geo.distance_km([52.2296756, 21.0122287], [52.406374, 16.9251681]) == pytest.approx(278.458, abs=1e-3)
    assert geo.distance_km([0, 0], [0, 1]) == pytest.approx(111.19492664, abs=1e-8)
    assert geo.distance_km([0, 179.5], [0, -179.5]) == pytest.approx(111.19492664, abs=1e-8)
    assert geo.distance_km([90, 10], [-90, 77]) == pytest.approx(HALF_WAY_ROUND)
    assert geo.distance_km([90, 10], [90, -170]) == pytest.approx(0, abs=1e-9)


def test_a_metre_and_a_metre_from_the_antipode():
    metre_deg = np.degrees(METRE / geo.EARTH_RADIUS_KM)
    assert geo.distance_km([40.0, -100.0], [40.0 + metre_deg, -100.0]) == pytest.approx(METRE, rel=1e-6)
    matrix = geo.distance_matrix_km([[40.0, -100.0]], [[40.0 + metre_deg, -100.0]])
    assert matrix[0, 0] == pytest.approx(METRE, rel=1e-6)
    short = HALF_WAY_ROUND - geo.distance_km([40.0, -100.0], [-40.0 + metre_deg, 80.0])
    assert short == pytest.approx(METRE, rel=1e-3)


def test_distances_broadcast():
    assert geo.distance_km(np.zeros((4, 1, 2)), np.ones((5, 2))).shape == (4, 5)


def test_matrix_is_chunked_and_agrees_with_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], 1) for n in (37, 23))
    pairs = geo.distance_km(a[:, None], b)
    monkeypatch.setattr(sphere, "BLOCK", 50)
    matrix = geo.distance_matrix_km(a, b)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, pairs, atol=2 * METRE)
    out = np.empty((37, 23))
    assert geo.distance_matrix_km(a, b, out=out) is out
    np.testing.assert_allclose(out, pairs, atol=1e-6)
    own = geo.distance_matrix_km(a)
    assert (np.diag(own) == 0).all() and (own == own.T).all()
    assert geo.distance_matrix_km(a, a[:0]).shape == (37, 0)


def test_a_point_that_is_not_on_earth_is_named():
    with pytest.raises(KitError, match=r"^train: expected .* not on Earth, first at 1: latitude 91, longitude 0"):
        geo.check_points([[0, 0], [91, 0], [np.nan, 0]], "train")
    with pytest.raises(KitError, match="shape"):
        geo.check_points([1.0, 2.0, 3.0], "train")
    assert geo.check_points([[90, -180]], "train").dtype == float


def test_median_of_one_point_and_of_padding():
    np.testing.assert_allclose(geo.geometric_median([[12.0, -34.0]]), [12, -34], atol=1e-9)
    padded = geo.geometric_median([[12.0, -34.0], [np.nan, np.nan]], [1, 0])
    np.testing.assert_allclose(padded, [12, -34], atol=1e-9)


def test_median_across_the_date_line_and_at_the_poles():
    across = geo.geometric_median([[10, 170], [10, -170], [-10, 170], [-10, -170]])
    assert geo.distance_km(across, [0, 180]) < METRE
    pole = geo.geometric_median([[80, 0], [80, 90], [80, 180], [80, -90]])
    assert geo.distance_km(pole, [90, 0]) < METRE


def test_median_of_antipodes_is_between_them():
    for weights in ([1, 1], [2, 1]):
        median = geo.geometric_median([[30, 40], [-30, -140]], weights)
        assert objective([[30, 40], [-30, -140]], weights, median) == pytest.approx(
            HALF_WAY_ROUND * weights[1] / sum(weights)
        )


def test_median_at_an_input_point():
    # Where three angles are below 120 degrees the point inside a triangle is best; with a point in it, that point.
    cross = [[0, 0], [0, 10], [0, -10], [10, 0], [-10, 0]]
    assert geo.distance_km(geo.geometric_median(cross), [0, 0]) < METRE
    obtuse = [[0, 0], [1, 20], [1, -20]]
    assert geo.distance_km(geo.geometric_median(obtuse), [0, 0]) < METRE
    # two copies of a point hold as one of their summed weight
    twice = [[0, 0], [20, 0], [0, 20], [0, 0]]
    assert geo.distance_km(geo.geometric_median(twice, [0.8, 1, 1, 0.8]), [0, 0]) < METRE


def test_median_leaves_an_input_point_that_is_not_best():
    cloud, weights = np.array([[30.0, -90], [45, -90], [38, -110], [37, -70]]), [2, 1, 1.5, 1.5]
    median = geo.geometric_median(cloud, weights)
    expected = by_search(cloud, weights, 15)
    assert objective(cloud, weights, median) <= expected.fun + 1e-9
    assert geo.distance_km(median, cloud).min() > 10


def test_median_agrees_with_a_minimiser():
    rng = np.random.default_rng(1)
    for _ in range(5):
        cloud = np.stack([rng.uniform(20, 60, 12), rng.uniform(-130, -60, 12)], 1)
        weights = rng.dirichlet(np.full(12, 0.7))
        assert (
            objective(cloud, weights, geo.geometric_median(cloud, weights)) <= by_search(cloud, weights, 20).fun + 1e-6
        )


def test_median_of_many_points_is_drawn_to_a_heavy_one_and_to_a_city():
    rng = np.random.default_rng(5)
    cloud = np.stack([rng.uniform(25, 48, 3000), rng.uniform(-124, -67, 3000)], 1)
    weights = np.r_[np.ones(2999), 2500.0]
    assert geo.distance_km(geo.geometric_median(cloud, weights), cloud[-1]) < METRE
    city = np.r_[cloud[:1000], rng.normal([36.17, -115.14], 0.05, (1500, 2))]
    median = geo.geometric_median(city)
    assert geo.distance_km(median, [36.17, -115.14]) < 10
    assert objective(city, np.ones(2500), median) <= by_search(city, np.ones(2500), 1).fun + 1e-6


def test_medians_of_many_rows_are_those_of_single_rows(monkeypatch):
    rng = np.random.default_rng(2)
    cloud = np.stack([rng.uniform(20, 60, (40, 7)), rng.uniform(-130, -60, (40, 7))], -1)
    weights = rng.random((40, 7))
    single = np.stack([geo.geometric_median(c, w) for c, w in zip(cloud, weights, strict=True)])
    monkeypatch.setattr(sphere, "BLOCK", 70)
    assert geo.distance_km(geo.geometric_median(cloud, weights), single).max() < METRE
    assert geo.geometric_median(cloud.reshape(8, 5, 7, 2)).shape == (8, 5, 2)


def test_group_medians_are_those_of_each_group():
    rng = np.random.default_rng(6)
    cloud = np.stack([rng.uniform(20, 60, 50), rng.uniform(-130, -60, 50)], 1)
    group = rng.choice([0, 1, 3], 50)
    medians = geo.group_medians(cloud, group, 5)
    assert np.isnan(medians[[2, 4]]).all()
    for g in (0, 1, 3):
        assert geo.distance_km(medians[g], geo.geometric_median(cloud[group == g])) < METRE


def test_weights_that_mean_nothing_are_refused():
    for bad in ([0, 0], [-1, 2], [np.nan, 1]):
        with pytest.raises(KitError, match="weight"):
            geo.geometric_median([[0, 0], [1, 1]], bad)
    with pytest.raises(KitError, match=r"\(\.\.\., K, 2\)"):
        geo.geometric_median(np.zeros((0, 2)))


def test_nearest_is_what_the_matrix_says():
    rng = np.random.default_rng(3)
    a, b = (np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], 1) for n in (30, 50))
    km, index = geo.nearest(a, b, k=4)
    matrix = geo.distance_matrix_km(a, b, dtype=np.float64)
    np.testing.assert_array_equal(index, np.argsort(matrix, axis=1)[:, :4])
    np.testing.assert_allclose(km, np.sort(matrix, axis=1)[:, :4], atol=1e-6)
    assert geo.nearest(a, b)[0].shape == (30, 1)
    with pytest.raises(KitError, match=r"1\.\.50"):
        geo.nearest(a, b, k=51)


def test_pairs_within_are_what_the_matrix_says():
    rng = np.random.default_rng(4)
    a = np.stack([rng.uniform(-90, 90, 80), rng.uniform(-180, 180, 80)], 1)
    matrix = geo.distance_matrix_km(a, dtype=np.float64)
    for radius_km in (500, 3000, 25_000):
        expected = np.argwhere(np.triu(matrix <= radius_km, k=1))
        np.testing.assert_array_equal(geo.pairs_within_km(a, radius_km), expected)


@settings(deadline=None)
@given(points, points, points)
def test_distance_is_a_metric(a, b, c):
    ab, bc, ac = geo.distance_km(a, b), geo.distance_km(b, c), geo.distance_km(a, c)
    assert ab == geo.distance_km(b, a)
    assert 0 <= ab <= HALF_WAY_ROUND + 1e-9
    assert ac <= ab + bc + 1e-6
    assert geo.distance_km(a, a) == 0


@settings(deadline=None)
@given(points)
def test_there_and_back(point):
    back = geo.from_unit_vectors(7.0 * geo.unit_vectors(point))
    assert geo.distance_km(point, back) < 1e-6
    assert (np.abs(back) <= [90, 180]).all()


@settings(deadline=None)
@given(clouds)
def test_no_input_point_and_no_step_aside_beats_the_median(cloud):
    where, weights = np.array([p for p, _ in cloud]), np.array([w for _, w in cloud], float)
    median = geo.geometric_median(where, weights)
    least = objective(where, weights, median)
    for point in where[weights > 0]:
        assert least <= objective(where, weights, point) + METRE
    for aside in ([0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]):
        assert least <= objective(where, weights, median + aside) + METRE


@settings(deadline=None)
@given(clouds, st.floats(-180, 180))
def test_the_median_turns_with_the_globe(cloud, turn):
    where, weights = np.array([p for p, _ in cloud]), np.array([w for _, w in cloud], float)
    turned = where.copy()
    turned[:, 1] = (turned[:, 1] + turn + 180) % 360 - 180
    a = objective(where, weights, geo.geometric_median(where, weights))
    b = objective(turned, weights, geo.geometric_median(turned, weights))
    assert a == pytest.approx(b, abs=METRE)
