"""The middles of states and their saved tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from data_helper import competition

from kitlib import geo
from kitlib.data import geography, readers


@pytest.fixture
def places(home, tmp_path):
    return readers.read(competition(tmp_path))


def test_a_row_for_each_state_with_its_two_middles(places):
    table = geography.states_table(places)
    assert table["state"].tolist() == ["Alaska", "Arkansas", "Washington"] and table["places"].tolist() == [4, 4, 4]
    for row in table.itertuples():
        points = places.points("train")[places.rows("train")["state"] == row.state]
        centroid = geo.from_unit_vectors(geo.unit_vectors(points).sum(axis=0))
        assert np.allclose([row.latitude, row.longitude], centroid)
        assert np.allclose([row.median_latitude, row.median_longitude], geo.geometric_median(points))
        assert row.mean_km_from_centroid == pytest.approx(geo.distance_km(points, centroid).mean())
        assert row.mean_km_from_median <= row.mean_km_from_centroid + 1e-9


def test_a_state_without_places_is_left_out(places):
    places.table.loc[places.table["state"] == "Alaska", ["state", "state_idx"]] = ["Washington", 46]
    assert geography.states_table(places)["places"].tolist() == [4, 8]


def test_saved_tables_can_be_read_again(places):
    table = geography.states_table(places)
    cells = geography.load_or_make_cells(places, 4)
    csv, matrix, parquet = geography.save(places, table, geo.distance_matrix_km(places.points("train")[:3]), cells)
    pd.testing.assert_frame_equal(pd.read_csv(csv), table.reset_index(drop=True))
    assert np.load(matrix).shape == (3, 3) and len(pd.read_parquet(parquet)) == len(cells)
