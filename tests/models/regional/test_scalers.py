"""Scalers of regions: exact inverses, one unit for both directions, files that load again."""

from __future__ import annotations

import joblib
import numpy as np
import pytest

from kitlib import geo
from kitlib.geo import projection
from kitlib.models.regional.scalers import KINDS, RegionScaler, file_id

rng = np.random.default_rng(0)
FIJI = projection.from_local_km(rng.normal(0, [60, 20], (80, 2)), [-17.8, 179.9])
POLE = projection.from_local_km(rng.normal(0, 200, (80, 2)), [90.0, 0.0])
CITY = projection.from_local_km(rng.normal(0, 5, (80, 2)), [14.6, 121.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", [FIJI, POLE, CITY], ids=["date line", "pole", "city"])
def test_the_inverse_is_exact(kind, points):
    scaler = RegionScaler.fit(points, kind)
    again = scaler.inverse_transform(scaler.transform(points))
    assert geo.distance_km(again, points).max() < 1e-6  # km
    assert np.abs(again[:, 0] - points[:, 0]).max() < 1e-6
    assert np.abs((again[:, 1] - points[:, 1] + 180) % 360 - 180).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_as_far_to_the_east_as_to_the_north(kind):
    scaler = RegionScaler.fit(FIJI, kind)
    start, east, north = scaler.inverse_transform([[0.0, 0.0], [0.01, 0.0], [0.0, 0.01]])
    assert np.isclose(geo.distance_km(start, east), 0.01 * scaler.unit_km, rtol=1e-3)
    assert np.isclose(geo.distance_km(start, north), 0.01 * scaler.unit_km, rtol=1e-3)


def test_what_each_kind_makes_of_the_wider_direction():
    east = {kind: RegionScaler.fit(FIJI, kind).transform(FIJI)[:, 0] for kind in KINDS}
    assert np.isclose(np.median(east["robust"]), 0, atol=1e-9)
    assert np.isclose(np.subtract(*np.percentile(east["robust"], [75, 25])), 1)
    assert np.isclose(east["standard"].mean(), 0, atol=1e-9) and np.isclose(east["standard"].std(), 1)
    assert np.isclose(east["minmax"].min(), 0, atol=1e-9) and np.isclose(east["minmax"].max(), 1)
    scaled = RegionScaler.fit(FIJI, "minmax").transform(FIJI)
    assert scaled.min() > -1e-9 and scaled.max() < 1 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_places_without_any_spread(kind):
    one = np.array([[10.0, 20.0]])
    scaler = RegionScaler.fit(np.repeat(one, 3, axis=0), kind)
    assert np.isclose(scaler.unit_km, 1)
    assert np.allclose(scaler.inverse_transform(scaler.transform(one)), one, atol=1e-6)


def test_most_places_in_one_spot_do_not_blow_the_scale_up():
    points = np.concatenate([np.repeat([[10.0, 20.0]], 9, axis=0), [[12.0, 20.0]]])
    assert np.abs(RegionScaler.fit(points, "robust").transform(points)).max() < 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_scaler_gives_latitude_and_longitude_by_itself(kind, tmp_path):
    scaler = RegionScaler.fit(CITY, kind)
    path = scaler.save(tmp_path, "a/b")
    assert path.name == "scaler_region_a%2Fb.joblib"
    content = joblib.load(path)
    assert np.allclose(content.inverse_transform(scaler.transform(CITY)), CITY, atol=1e-7)
    assert content.kind == kind and np.array_equal(content.centre, scaler.centre)


def test_different_names_are_different_files():
    names = ["New York", "new/york", "1", "1.0", "a%2Fb", "a/b", "São Paulo", "x" * 300, "x" * 301, "é" * 90]
    assert len({file_id(name) for name in names}) == len(names)
    assert not any("/" in file_id(name) or len(file_id(name)) > 120 for name in names)


def test_a_long_name_is_a_short_file(tmp_path):
    names = ["東京都千代田区霞が関" * 9, "東京都千代田区霞が関" * 9 + "x", "/" * 5000]
    assert len({file_id(name) for name in names}) == 3
    for name in names:
        assert RegionScaler.fit(CITY, "robust").save(tmp_path, name).is_file()
