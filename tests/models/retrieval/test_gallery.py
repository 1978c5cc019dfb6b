"""Galleries: dealt in turn from cells, clusters and labels; grids on land; CSVs; what a gallery can earn at best."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import grid as geo_grid
from kitlib.geo import outlines
from kitlib.models.retrieval import gallery

ONE_CELL = [39.9, -99.9]


def towns(n: int = 3000, seed: int = 0) -> np.ndarray:
    """Nine in ten places in three towns, the others anywhere in a box of 1,000 km."""
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(35, 44, n), rng.uniform(-105, -94, n)], axis=1)
    near = rng.random(n) < 0.9
    centres = np.array([[36.0, -104.0], [40.0, -100.0], [43.0, -95.0]])
    points[near] = (centres[rng.integers(0, 3, n)] + rng.normal(0, 0.1, (n, 2)))[near]
    return points


def in_one_cell(n: int) -> np.ndarray:
    return np.tile(ONE_CELL, (n, 1))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_cells_and_labels_take_their_turns(data):
    """A turn at a time, with queues: as many of each cell, and in it of each label, as were there to be dealt."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 60))
    points, label = rng.uniform(30, 34, (n, 2)), rng.integers(0, 4, n)
    budget = data.draw(st.integers(1, n))
    rows = gallery.choose(points, budget, labels=label, cell_km=150)
    assert len(set(rows.tolist())) == budget and rows.min() >= 0 and rows.max() < n

    cell = geo_grid.blocks(points, 150)
    chosen = np.isin(np.arange(n), rows)
    size, taken = np.bincount(cell), np.bincount(cell[chosen], minlength=cell.max() + 1)
    turns = next(t for t in range(n + 1) if np.minimum(size, t).sum() >= budget)
    assert (taken >= np.minimum(size, turns - 1)).all() and (taken <= turns).all()
    for one in range(len(size)):
        there = np.bincount(label[cell == one], minlength=4)
        dealt, left, order = np.zeros(4, int), there.copy(), sorted(range(4), key=lambda x: (-there[x], x))
        while dealt.sum() < taken[one]:
            for x in order:
                if left[x] and dealt.sum() < taken[one]:
                    left[x] -= 1
                    dealt[x] += 1
        np.testing.assert_array_equal(np.bincount(label[chosen & (cell == one)], minlength=4), dealt)


def test_more_budget_only_adds_and_the_seed_decides():
    points = towns()
    few, many = gallery.choose(points, 100), gallery.choose(points, 700)
    np.testing.assert_array_equal(many[:100], few)
    assert not np.array_equal(gallery.choose(points, 100, seed=1), few)
    assert sorted(gallery.choose(points, 3000)) == list(range(3000))
    np.testing.assert_array_equal(gallery.choose(points, 100), few)


def test_what_a_cell_looks_like_is_represented_by_its_middle():
    """Three kinds of look in one cell, 100, 10 and 2 times: one of each, the largest first, the most typical."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [100, 10, 2])
    looks = np.eye(3, 8)[kind] + rng.normal(0, 0.05, (112, 8))
    looks *= rng.uniform(0.5, 3, (112, 1))
    rows = gallery.choose(in_one_cell(112), 6, embeddings=looks, clusters=3)
    assert kind[rows].tolist() == [0, 1, 2, 0, 1, 2]
    unit = looks / np.linalg.norm(looks, axis=1, keepdims=True)
    for k in range(2):
        members = np.flatnonzero(kind == k)
        away = np.linalg.norm(unit[members] - unit[members].mean(axis=0), axis=1)
        assert rows[k] == members[away.argmin()]


def test_labels_take_turns_within_clusters_and_may_be_a_table():
    kind = np.repeat([0, 1], 40)
    labels = pd.DataFrame({"season": ["summer"] * 38 + ["winter"] * 2 + ["summer"] * 40, "year": [2019, 2024] * 40})
    looks = np.eye(2)[kind] + np.random.default_rng(0).normal(0, 0.02, (80, 2))
    rows = gallery.choose(in_one_cell(80), 8, embeddings=looks, labels=labels, clusters=2)
    combined = labels["season"] + labels["year"].astype(str)
    assert set(combined[rows[kind[rows] == 0]]) == {"summer2019", "summer2024", "winter2019", "winter2024"}
    assert set(combined[rows[kind[rows] == 1]]) == {"summer2019", "summer2024"}
    as_array = gallery.choose(in_one_cell(80), 8, embeddings=looks, labels=combined.to_numpy(), clusters=2)
    np.testing.assert_array_equal(as_array, rows)


def test_the_same_seed_chooses_the_same_and_alike_places_are_no_trouble():
    points = towns(1500)
    looks = np.random.default_rng(0).normal(size=(1500, 4)).astype(np.float16)
    usual = gallery.choose(points, 200, embeddings=looks)
    np.testing.assert_array_equal(gallery.choose(points, 200, embeddings=looks), usual)
    alike = np.repeat(looks[:3], 10, axis=0)
    assert sorted(gallery.choose(in_one_cell(30), 3, embeddings=alike) // 10) == [0, 1, 2]
    assert len(gallery.choose(in_one_cell(20), 5, embeddings=np.zeros((20, 4)))) == 5


def test_the_land_is_better_covered_than_by_chance():
    points = towns()
    land = geo_grid.land_grid(40, ["Kansas"])
    by_chance = gallery.expected_scores(points[gallery.at_random(3000, 150)], land)
    in_turn = gallery.expected_scores(points[gallery.choose(points, 150)], land)
    assert in_turn["mean_km"] < 0.75 * by_chance["mean_km"]
    assert in_turn["geoscore"] > by_chance["geoscore"]


def test_a_grid_of_the_world_has_all_land_but_antarctica():
    grid = geo_grid.world_grid(200)
    assert abs(len(grid) * 200**2 - 135e6) < 5e6  # km2 of land without Antarctica, by Natural Earth's coarse outlines
    for place in ([48.9, 2.3], [-25.0, 134.0], [64.0, 100.0]):
        assert geo.nearest(np.array([place]), grid)[0][0, 0] < 200
    assert grid[:, 0].min() > -60
    with pytest.raises(KitError, match=r"expected 5\.0 km or more"):
        geo_grid.world_grid(1)


def test_at_random_takes_each_as_often():
    rows = np.concatenate([gallery.at_random(10, 4, seed) for seed in range(500)])
    assert np.bincount(rows, minlength=10) == pytest.approx(np.full(10, 200), abs=50)
    assert len(set(gallery.at_random(10, 10).tolist())) == 10


def test_expected_scores_are_those_of_the_nearest_entry():
    found = gallery.expected_scores([[0.0, 0.0], [0.0, 10.0]], [[0.0, 1.0], [0.0, 10.0]])
    km = np.radians(1) * geo.EARTH_RADIUS_KM
    assert found["n"] == 2 and found["mean_km"] == pytest.approx(km / 2) and found["within_25_km"] == 0.5
    assert found["geoscore"] == pytest.approx(2500 + 2500 * np.exp(-km / 1492.7))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"budget": 0}, r"expected 1\.\.4 of 4 places and a seed from 0; got 0, 0"),
        ({"budget": 5}, "got 5, 0"),
        ({"cell_km": 0}, "expected cell_km above 0"),
        ({"clusters": 0}, "clusters from 1"),
        ({"seed": -1}, "got 2, -1"),
        ({"embeddings": np.ones((3, 2))}, r"got \(3, 2\)"),
        ({"labels": ["a"]}, "labels: expected shape"),
        ({"points": [[91.0, 0.0]]}, "not on Earth"),
        ({"points": np.empty((0, 2))}, "N at least 1"),
    ],
)
def test_what_makes_no_gallery_is_refused(arguments, message):
    with pytest.raises(KitError, match=message):
        gallery.choose(**{"points": in_one_cell(4), "budget": 2} | arguments)


def test_a_grid_covers_the_land_evenly():
    grid = geo_grid.land_grid(20, ["Colorado", "Kansas"])
    assert len(grid) * 400 == pytest.approx((269.6 + 213.1) * 1000, rel=0.01)  # square kilometres, by the Census
    assert set(outlines.state_of(grid)) == {"Colorado", "Kansas"}
    apart = geo.nearest(grid, grid, k=2)[0][:, 1]
    assert apart.min() > 0.8 * 20 and apart.max() < 1.3 * 20
    rng = np.random.default_rng(0)
    anywhere = np.stack([rng.uniform(37.3, 39.7, 2000), rng.uniform(-108, -95, 2000)], axis=1)
    assert geo.nearest(anywhere, grid)[0].max() < 20


def test_grids_of_neighbours_fit_together_and_all_states_are_there():
    both, one = geo_grid.land_grid(30, ["Kansas", "Colorado"]), geo_grid.land_grid(30, ["Kansas"])
    assert {tuple(p) for p in one} < {tuple(p) for p in both}
    whole = geo_grid.land_grid(50)
    states = outlines.state_of(whole)
    assert len(set(states)) > 45 and "" not in states
    alaska = geo_grid.land_grid(15, ["Alaska"])
    assert alaska[:, 1].max() > 170 and alaska[:, 1].min() < -170  # on both sides of the date line


@pytest.mark.parametrize(
    "spacing_km, states, message",
    [
        (20, ["Kanzas"], "expected a list of some of .*Kansas.*; got Kanzas"),
        (20, [], "expected a list"),
        (20, "Kansas", "a single name"),
        (0.1, ["Kansas"], "0.5 km or more"),
        (float("nan"), ["Kansas"], "0.5 km or more"),
        (500, ["Delaware"], "no grid point in Delaware"),
    ],
)
def test_grids_that_cannot_be_made_are_refused(spacing_km, states, message):
    with pytest.raises(KitError, match=message):
        geo_grid.land_grid(spacing_km, states)


@pytest.mark.parametrize("header", ["latitude,longitude", "LAT,LON", "Lat, lng", "lat,long", "latitude,lng"])
def test_any_csv_with_coordinates(tmp_path, header):
    path = tmp_path / "points.csv"
    path.write_text(f"\ufeffid,{header},country\n007,41.5,-87.25,US\n8,-33,151,\n", encoding="utf-8")
    points, others = gallery.read_csv(path)
    assert points.tolist() == [[41.5, -87.25], [-33.0, 151.0]] and points.dtype == np.float64
    assert others.to_dict("list") == {"id": ["007", "8"], "country": ["US", ""]}
    assert len(gallery.choose(points, 1, labels=others)) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("lat,x\n1,2\n", "expected a column longitude or lon or lng or long; got lat, x"),
        ("lat,lon,LON\n1,2,3\n", "expected one column lon; got lon and LON"),
        ("lat,lon\n1,2\n,3\n", "expected numbers in lat and lon; got 1 of 2 rows without.*in line 3"),
        ("lat,lon\n-87.25,41.5\n95,3\n", "row 0 is line 2.*first at 1: latitude 95"),
        ("lat,lon\n", "expected at least one row"),
    ],
)
def test_faulty_csvs_are_refused(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(KitError, match=message):
        gallery.read_csv(path)
    with pytest.raises(KitError, match=r"absent\.csv is missing"):
        gallery.read_csv(tmp_path / "absent.csv")
