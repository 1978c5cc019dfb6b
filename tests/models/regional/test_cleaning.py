"""Cleaning: what was planted is found and named, good places stay, and nothing is dropped in silence."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import projection
from kitlib.models.regional import cleaning
from kitlib.models.regional.cleaning import clean

CITIES = {
    "hyderabad": (17.42, 78.47, 3.0),
    "hyderabad_west": (17.49, 78.38, 1.3),
    "jakarta": (-6.21, 106.83, 3.5),
    "lima": (-12.04, -77.09, 2.5),
    "manila": (14.60, 120.99, 1.0),
    "nairobi": (-1.30, 36.80, 4.5),
}
NAMES = np.array(list(CITIES))
PLANTED = {  # row: what becomes of [lat, lon]
    3: lambda p: p[::-1],  # swapped, where the longitude can be a latitude
    70: lambda p: p * 0,
    130: lambda p: -p,
    200: lambda p: p * [1, -1],
    300: lambda p: p + np.array([0, 3.0]),
    350: lambda p: p + np.array([2.0, 0]),
}


def cities(n=60, seed=0):
    """Places of six cities, each a square of a few kilometres, with their sample_ids and groups."""
    rng = np.random.default_rng(seed)
    points = [projection.from_local_km(rng.uniform(-r, r, (n, 2)), [lat, lon]) for lat, lon, r in CITIES.values()]
    group = np.repeat(np.arange(len(CITIES)), n)
    return np.array([f"img_{i:04d}.jpg" for i in range(len(group))]), np.concatenate(points), group


def spoiled(seed=0):
    sample_id, points, group = cities(seed=seed)
    for row, spoil in PLANTED.items():
        points[row] = spoil(points[row])
    return sample_id, points, group


def test_examples_in_docstrings():
    assert doctest.testmod(cleaning).failed == 0


@pytest.mark.parametrize("seed", range(3))
def test_planted_outliers_are_found_and_good_places_stay(seed):
    cleaned = clean(*spoiled(seed), NAMES)
    assert np.flatnonzero(~cleaned.kept).tolist() == sorted(PLANTED)
    assert set(cleaned.dropped["reason"]) == {"mad"}


def test_dbscan_finds_planted_outliers_too():
    cleaned = clean(*spoiled(), NAMES, mad_threshold=0, eps_km=10)
    assert np.flatnonzero(~cleaned.kept).tolist() == sorted(PLANTED)
    assert set(cleaned.dropped["reason"]) == {"dbscan"}
    assert cleaned.dropped["detail"][0] == "no place within 10 km, itself included, has 5 places around it"


@given(
    st.integers(0, 2**32 - 1),
    st.floats(1.0, 6.0),
    st.just(0.0) | st.floats(0.001, 20),
    st.integers(1, 8),
    st.sets(st.integers(0, 89)),
)
@settings(max_examples=60, deadline=None)
def test_every_place_is_either_kept_or_in_the_table(seed, threshold, eps_km, min_samples, exclude):
    sample_id, points, group = cities(15, seed)
    points[::7] += np.random.default_rng(seed).normal(0, 1, points[::7].shape)
    try:
        cleaned = clean(
            sample_id,
            points,
            group,
            NAMES,
            mad_threshold=threshold,
            eps_km=eps_km,
            min_samples=min_samples,
            exclude=exclude,
        )
    except KitError as error:
        assert "would drop all" in str(error)
        return
    rows = cleaned.dropped["row"].to_numpy()
    assert np.array_equal(rows, np.flatnonzero(~cleaned.kept))
    assert np.array_equal(cleaned.dropped["sample_id"], sample_id[rows])
    assert np.array_equal(cleaned.dropped["region"], NAMES[group[rows]])
    assert np.array_equal(cleaned.dropped[["latitude", "longitude"]], points[rows])
    assert set(rows[cleaned.dropped["reason"] == "excluded"]) == exclude
    assert cleaned.dropped["detail"].str.len().min() > 0 if len(rows) else True


def test_the_table_says_which_why_and_how_far():
    sample_id, points, group = spoiled()
    dropped = clean(sample_id, points, group, NAMES, exclude=["img_0001.jpg"]).dropped
    columns = ["row", "sample_id", "region", "latitude", "longitude", "reason", "detail", "km"]
    assert list(dropped.columns) == columns
    assert dropped["row"].tolist() == sorted([1, *PLANTED])
    assert dropped.loc[0, ["sample_id", "reason", "detail"]].tolist() == [
        "img_0001.jpg",
        "excluded",
        "named in exclude",
    ]
    swapped = dropped.loc[1]
    assert re.match(r"(latitude|longitude) \d+\.\d ", swapped["detail"])
    assert swapped["detail"].endswith("robust standard deviations from the median of hyderabad (allowed 3.5)")
    good = (group == 0) & ~np.isin(np.arange(len(group)), [1, 3])
    middle = geo.geometric_median(points[good])
    assert swapped["km"] == pytest.approx(geo.distance_km(points[3], middle))


def test_nothing_to_drop_leaves_an_empty_table_with_all_its_columns():
    cleaned = clean(*cities(), NAMES, eps_km=10)
    assert cleaned.kept.all() and cleaned.dropped.shape == (0, 8)
    assert cleaned.dropped["km"].dtype == float


def test_the_order_is_excluded_then_mad_then_dbscan():
    sample_id, points, group = spoiled()
    points[10] = projection.from_local_km([0.0, 5.9], CITIES["hyderabad"][:2])  # no outlier, but alone
    cleaned = clean(sample_id, points, group, NAMES, eps_km=1.5, min_samples=2, exclude=[3])
    reason = cleaned.dropped.set_index("row")["reason"]
    assert reason[3] == "excluded" and reason[70] == "mad" and reason[10] == "dbscan"


def test_filters_see_only_what_the_earlier_ones_left():
    points = np.array([[0, 0], [0, 0.001], [0, 0.002], [0, 0.003], [0, 0.004], [0, 0.1]], float)
    settings_of = {"mad_threshold": 0, "eps_km": 0.25, "min_samples": 5}
    assert clean(list("abcdef"), points, [0] * 6, ["x"], **settings_of).kept.tolist() == [True] * 5 + [False]
    with pytest.raises(KitError, match="would drop all 5"):
        clean(list("abcdef"), points, [0] * 6, ["x"], exclude=["a"], **settings_of)


def mad_outliers(points, group, threshold=3.5):
    groups, number = np.unique(group, return_inverse=True)
    return ~clean(np.arange(len(points)), points, number, groups.astype(str), mad_threshold=threshold).kept


def test_modified_z_scores_are_those_of_the_handbook():
    lat = np.array([1, 2, 3, 4, 5, 6, 7, 30.0])
    score = 0.6745 * np.abs(lat - 4.5) / np.median(np.abs(lat - 4.5))
    points = np.stack([lat, np.zeros(8)], axis=1)
    for threshold in (0.5, 1.5, 3.5, 8.0, 9.0):
        assert np.array_equal(mad_outliers(points, [7] * 8, threshold), score > threshold)


def test_each_group_has_its_own_median_and_spread():
    _, points, group = cities()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(group))
    points[5] += [0.2, 0]
    found = mad_outliers(points[order], group[order] * 10 - 7)
    assert order[found].tolist() == [5]
    assert not mad_outliers(points, np.zeros(len(group), int)).any()


def test_where_most_values_are_equal_the_mean_deviation_stands_in():
    points = np.array([[10.0, 20.0]] * 9 + [[10.0, 20.5]])
    assert np.flatnonzero(mad_outliers(points, [0] * 10)).tolist() == [9]  # 10 / 1.253314 = 8.0 of them
    assert not mad_outliers(points, [0] * 10, 8.0).any()
    assert not mad_outliers(points[:9], [0] * 9).any()


def test_the_two_names_of_the_date_line_are_one_longitude():
    points = np.array([[0, 180.0], [0, -180.0]] * 4 + [[0, 179.0]])
    assert np.flatnonzero(mad_outliers(points, [0] * 9)).tolist() == [8]


@pytest.mark.parametrize("lon", [179.9, -179.9, 180.0, 0.0, 91.0])
@pytest.mark.parametrize("far", [[0.0, 0.0], [-17.8, 0.1], [-17.8, 90.0], [17.8, 179.9], [-17.8, -90.0]])
def test_fiji_needs_no_special_case(lon, far):
    fiji = projection.from_local_km(np.random.default_rng(1).uniform(-1, 1, (30, 2)) * [120, 60], [-17.8, lon])
    four = projection.from_local_km([[-90, 40], [-30, -20], [30, 20], [90, -40]], [-17.8, lon])
    is_far = [bool(geo.distance_km([-17.8, lon], far) > 1000)]
    assert mad_outliers(np.concatenate([fiji, [far]]), [0] * 31).tolist() == [False] * 30 + is_far
    assert mad_outliers(np.concatenate([four, [far]]), [0] * 5).tolist() == [False] * 4 + is_far


def test_a_third_of_far_places_cannot_turn_the_direction():
    rng = np.random.default_rng(2)
    fiji = projection.from_local_km(rng.uniform(-100, 100, (20, 2)), [-17.8, 180.0])
    far = np.stack([rng.uniform(-20, -15, 9), rng.uniform(-40, 80, 9)], axis=1)
    assert mad_outliers(np.concatenate([fiji, far]), [0] * 29).tolist() == [False] * 20 + [True] * 9


def test_places_all_around_a_pole_are_left_alone():
    points = projection.from_local_km(np.random.default_rng(0).uniform(-300, 300, (200, 2)), [90.0, 0.0])
    assert not mad_outliers(points, [0] * 200).any()
    cleaned = clean(np.arange(201), np.concatenate([points, [[10.0, 0.0]]]), [0] * 201, ["pole"], eps_km=200)
    assert np.flatnonzero(~cleaned.kept).tolist() == [200]


def test_groups_of_fewer_than_five_are_left_alone():
    points = np.array([[0, 0], [0, 0], [0, 0], [50, 50], [0, 0]], float)
    assert not mad_outliers(points[:4], [0] * 4).any()
    assert not mad_outliers(points, [0, 0, 0, 0, 1]).any()


def test_sample_ids_row_numbers_and_digits_can_be_excluded():
    sample_id, points, group = cities()

    def excluded(ids, *exclude):
        return clean(ids, points, group, NAMES, exclude=exclude).dropped["row"].tolist()

    assert excluded(sample_id, "img_0007.jpg", 5, np.int64(9), "11", 5) == [5, 7, 9, 11]
    numbers = np.arange(len(group))[::-1]  # sample_id 0 is the last row
    assert excluded(numbers, "0", 0) == [0, len(group) - 1]
    twins = np.where(np.arange(len(group)) < 2, "twin", sample_id)
    assert excluded(twins, "twin") == [0, 1]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["img_007.jpg"], r"got 'img_007\.jpg'; close are .*img_0"),
        ([360], r"expected sample_ids and rows 0\.\.359; got 360"),
        ([-1], "got -1"),
        (["999"], "got '999'"),
        ([True], "got True"),
        ([1.0], "got 1.0"),
        ("img_0007.jpg", "expected a list .*; got one text"),
        (range(360), "exclude would drop all 360 places"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(exclude, message):
    with pytest.raises(KitError, match=message):
        clean(*cities(), NAMES, exclude=exclude)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"eps_km": 0.001, "mad_threshold": 0},
            r"eps_km=0\.001 with min_samples=5 would drop all 360 places",
        ),
        ({"mad_threshold": 1e-9}, "mad_threshold=1e-09 would drop all"),
    ],
)
def test_settings_that_drop_everything_are_refused(setting, message):
    with pytest.raises(KitError, match=message):
        clean(*cities(), NAMES, **setting)


def test_points_that_are_no_places_are_refused():
    sample_id, points, group = cities()
    for arrays, message in [
        ((sample_id, points[:, :1], group), "places: expected points of shape"),
        ((sample_id, points * np.nan, group), "not on Earth"),
        ((sample_id[:0], points[:0], group[:0]), "expected at least one to clean"),
    ]:
        with pytest.raises(KitError, match=message):
            clean(*arrays, NAMES)


def test_pandas_columns_do_as_well():
    sample_id, points, group = spoiled()
    table = pd.DataFrame({"filename": sample_id, "latitude": points[:, 0], "longitude": points[:, 1]}, index=group)
    cleaned = clean(table["filename"], table[["latitude", "longitude"]], table.index, NAMES.tolist())
    assert np.flatnonzero(~cleaned.kept).tolist() == sorted(PLANTED)
