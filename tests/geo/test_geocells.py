"""Geocells: they respect states, hold about equally many places, and stand where places are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kitlib import geo
from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import geography
from kitlib.data.places import Places
from kitlib.geo import geocells

CITIES = np.array([[36.1, -115.1], [39.5, -119.8], [40.7, -112.0], [37.1, -113.6], [45.0, -93.2]])
STATE = np.array([0, 0, 1, 1, 4])  # by city; states 2 and 3 have no places


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    city = np.repeat(np.arange(5), [300, 60, 90, 60, 3])
    return CITIES[city] + rng.normal(0, 0.2, (len(city), 2)), STATE[city]


@pytest.fixture(scope="module")
def cells(drawn):
    return geocells.make(*drawn, places_per_cell=30)


def test_cells_are_in_proportion_to_the_places_of_each_state(drawn, cells):
    assert list(cells.columns) == ["cell", "latitude", "longitude", "state_position", "count", "radius_km"]
    assert cells["cell"].tolist() == list(range(len(cells)))
    assert cells["count"].sum() == len(drawn[0])
    per_state = cells.groupby("state_position").size()
    assert per_state.index.tolist() == [0, 1, 4]
    assert abs(per_state[0] - 12) <= 2 and abs(per_state[1] - 5) <= 1 and per_state[4] == 1
    assert cells.loc[cells["state_position"] != 4, "count"].min() >= 5


def test_every_place_is_in_a_cell_of_its_state_and_counts_agree(drawn, cells):
    points, state = drawn
    own = geocells.assign(points, cells, state)
    assert (cells["state_position"].to_numpy()[own] == state).all()
    np.testing.assert_array_equal(np.bincount(own, minlength=len(cells)), cells["count"])
    km = geo.distance_km(points, cells[["latitude", "longitude"]].to_numpy()[own])
    assert km.mean() < 15
    inside = km <= cells["radius_km"].to_numpy()[own]
    assert 0.85 < inside.mean() <= 0.97


def test_the_nearest_cell_of_the_own_state_is_taken(cells):
    in_reno = [[39.5, -119.8]]
    assert cells["state_position"][geocells.assign(in_reno, cells)[0]] == 0
    forced = geocells.assign(in_reno, cells, [1])[0]
    own = cells[cells["state_position"] == 1]
    km = geo.distance_km(in_reno, own[["latitude", "longitude"]].to_numpy())
    assert forced == own["cell"].iloc[km.argmin()]
    # a state without cells, as when a fold's training rows have none of it: the nearest of all
    assert geocells.assign(in_reno, cells, [2])[0] == geocells.assign(in_reno, cells)[0]


def test_a_centre_is_the_median_of_one_cell():
    points = np.array([[40.0, -100], [40, -100], [40, -100], [45, -90]])
    cells = geocells.make(points, np.zeros(4, int), places_per_cell=50)
    assert len(cells) == 1
    assert geo.distance_km(cells.loc[0, ["latitude", "longitude"]].to_numpy(float), [40, -100]) < 1e-3


def test_small_cells_go_to_their_neighbours():
    points = np.r_[np.full((40, 2), [40.0, -100]), [[48.0, -70]]]
    assert geocells.make(points, np.zeros(41, int), 20, min_places=1)["count"].tolist() in ([40, 1], [1, 40])
    (only,) = geocells.make(points, np.zeros(41, int), 20, min_places=5)["count"]
    assert only == 41


def test_same_seed_same_cells_and_fewer_distinct_points_than_cells(drawn, cells):
    pd.testing.assert_frame_equal(geocells.make(*drawn, places_per_cell=30), cells)
    repeated = geocells.make(np.repeat(CITIES[:2], 50, axis=0), np.zeros(100, int), 10)
    assert repeated["count"].tolist() == [50, 50]
    assert (repeated["radius_km"] < 1e-3).all()


def test_bad_input_is_refused(drawn):
    with pytest.raises(KitError, match="places of known states; got 0"):
        geocells.make(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(KitError, match="got 1, 1 of none"):
        geocells.make([[0, 0]], [-1])
    with pytest.raises(KitError, match="places_per_cell: expected a number from 1; got 0"):
        geocells.make(*drawn, places_per_cell=0)


def test_cells_are_kept_and_keyed_by_what_made_them(drawn, tmp_path, home, monkeypatch):
    points, state = drawn
    table = pd.DataFrame({"split": "train", "sample_id": range(len(points)), "image_only": "", "state": "x"})
    table = table.assign(state_idx=state, latitude=points[:, 0], longitude=points[:, 1])
    places = Places("x", tmp_path, table, pd.DataFrame({"state_idx": range(5), "state": list("abcde")}))
    cells = geography.load_or_make_cells(places, 30)
    assert cells["count"].sum() == len(points)
    fold = geography.load_or_make_cells(places, 30, rows=np.arange(len(points)) % 5 > 0)
    assert fold["count"].sum() == (np.arange(len(points)) % 5 > 0).sum()
    monkeypatch.setattr(geography, "make", None)  # from here on only files can answer
    pd.testing.assert_frame_equal(geography.load_or_make_cells(places, 30), cells)
    pd.testing.assert_frame_equal(
        geography.load_or_make_cells(places, 30, rows=np.flatnonzero(np.arange(len(points)) % 5)), fold
    )
    with pytest.raises(TypeError):
        geography.load_or_make_cells(places, 31)
    assert len(list(paths.derived_dir(places.key).glob("cells-*.parquet"))) == 2
