"""Regions: labels, census divisions and clusters, made from training rows alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kitlib import geo
from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.models.regional.regions import Regions


@pytest.fixture(scope="module")
def drawn(small_sample):
    return readers.read(small_sample)


@pytest.fixture(scope="module")
def rows(drawn):
    return np.arange(0, len(drawn.rows("train")), 2)


def test_states_are_regions_of_their_own(drawn, rows):
    regions = Regions.make(drawn, rows, "state")
    points, position = drawn.points("train"), drawn.state_position("train")
    of = regions.assign(points, position)
    assert (regions.names[of[rows]] == drawn.rows("train")["state"].to_numpy()[rows]).all()
    assert regions.count.sum() == len(rows) and (np.bincount(of[rows]) == regions.count).all()
    unseen = ~np.isin(position, position[rows])
    assert (of[unseen] == -1).all() and (of[~unseen] >= 0).all()
    state_probs = np.eye(len(drawn.states))[position]
    assert (regions.probabilities(state_probs)[~unseen].argmax(1) == of[~unseen]).all()


def test_divisions_hold_whole_states(drawn, rows):
    regions = Regions.make(drawn, rows, "division")
    assert 2 <= len(regions) <= 9
    state = drawn.rows("train")["state"].to_numpy()
    of = regions.assign(drawn.points("train"), drawn.state_position("train"))
    per_state = pd.Series(of[of >= 0]).groupby(state[of >= 0]).nunique()
    assert (per_state == 1).all()
    if "California" in state[rows]:
        assert regions.names[of[state == "California"][0]] == "Pacific"


def test_the_table_of_divisions_is_that_of_the_census_bureau():
    table = pd.read_csv(paths.package_dir() / "models/regional/divisions.csv")
    assert len(table) == 51 and table["state"].is_unique
    sizes = table.groupby("division").size()
    assert sizes.to_dict() == {
        "New England": 6, "Middle Atlantic": 3, "East North Central": 5, "West North Central": 7, "South Atlantic": 9,
        "East South Central": 4, "West South Central": 4, "Mountain": 8, "Pacific": 5,
    }  # fmt: skip


def test_clusters_take_the_nearest_centre_and_share_states(drawn, rows):
    regions = Regions.make(drawn, rows, "cluster:5")
    points, position = drawn.points("train"), drawn.state_position("train")
    assert len(regions) == 5
    of = regions.assign(points, np.full(len(points), -1))  # the state is not needed
    assert (of == geo.nearest(points, regions.centres)[1][:, 0]).all()
    assert (regions.assign(drawn.points("test"), drawn.state_position("test")) == -1).all()  # the truth is hidden
    assert np.bincount(of[rows], minlength=5).tolist() == regions.count.tolist()
    everywhere = np.arange(len(points))
    many = Regions.make(drawn, everywhere, "cluster:40").by_state[np.unique(position)]
    assert np.allclose(many.sum(1), 1) and (many.max(1) < 1).any()


def test_probabilities_sum_to_one_also_where_nothing_is_known(drawn, rows):
    regions = Regions.make(drawn, rows[:10], "state")
    unknown = np.flatnonzero(regions.by_state.sum(1) == 0)
    assert len(unknown)
    state_probs = np.zeros((2, len(drawn.states)))
    state_probs[0, unknown[0]] = 1
    state_probs[1] = 1 / len(drawn.states)
    routed = regions.probabilities(state_probs)
    assert np.allclose(routed.sum(1), 1)
    assert np.allclose(routed[0], regions.count / 10)


def test_a_saved_table_is_the_same(drawn, rows, tmp_path):
    regions = Regions.make(drawn, rows, "cluster:4")
    regions.save(tmp_path / "regions.npz")
    again = Regions.load(tmp_path / "regions.npz")
    assert again.names.tolist() == regions.names.tolist()
    assert np.array_equal(again.assign(drawn.points("train"), rows), regions.assign(drawn.points("train"), rows))


@pytest.mark.parametrize("scheme", ["county", "cluster", "cluster:0", "cluster:x"])
def test_an_unknown_scheme_is_refused(drawn, rows, scheme):
    with pytest.raises(KitError, match="regions: expected state"):
        Regions.make(drawn, rows, scheme)


def test_divisions_are_refused_outside_the_states(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("image,latitude,longitude,country\na.jpg,1,2,Kenya\n")
    with pytest.raises(KitError, match="Kenya is in no census division"):
        Regions.make(readers.read(tmp_path), np.array([0]), "division")
