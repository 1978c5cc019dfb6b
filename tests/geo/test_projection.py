"""Local kilometres: exact distances from the centre, and back to the same place anywhere on Earth."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kitlib import geo
from kitlib.geo import projection

latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)
points = st.tuples(latitudes, longitudes).map(np.array)


@given(point=points, centre=points)
def test_there_and_back_is_the_same_place_at_the_true_distance(point, centre):
    local = projection.to_local_km(point, centre)
    assert np.isclose(np.hypot(*local), geo.distance_km(point, centre), atol=1e-6)
    if np.hypot(*local) < 19_000:  # nearer the antipode a millimetre turns into any direction
        assert geo.distance_km(projection.from_local_km(local, centre), point) < 1e-6


def test_degrees_come_back_exactly_around_the_date_line_and_near_a_pole():
    rng = np.random.default_rng(0)
    for centre in ([-17.8, 179.9], [65.0, -180.0], [89.5, 12.0], [-89.9, -100.0]):
        there = projection.from_local_km(rng.normal(0, 300, (500, 2)), centre)
        again = projection.from_local_km(projection.to_local_km(there, centre), centre)
        turned = (again[:, 1] - there[:, 1] + 180) % 360 - 180
        assert np.abs(again[:, 0] - there[:, 0]).max() < 1e-6
        assert np.abs(turned).max() < 1e-6


def test_east_is_first_and_a_kilometre_is_one_both_ways():
    centre = [60.0, 25.0]
    east, north = projection.to_local_km([[60.0, 25.01], [60.01, 25.0]], centre)
    assert east[0] > 0 > -0.01 < east[1] < 0.01
    assert abs(north[0]) < 1e-9 < north[1]
    assert np.isclose(np.hypot(*east), geo.distance_km(centre, [60.0, 25.01]))


def test_the_centre_is_zero_and_the_antipode_half_way_round():
    assert np.abs(projection.to_local_km([10.0, 20.0], [10.0, 20.0])).max() < 1e-9
    assert np.isclose(np.hypot(*projection.to_local_km([-90.0, 0.0], [90.0, 0.0])), np.pi * geo.EARTH_RADIUS_KM)


def test_centres_broadcast():
    centres = np.array([[0.0, 0.0], [10.0, 10.0], [-45.0, 170.0]])
    assert np.abs(projection.to_local_km(centres, centres)).max() < 1e-9
    assert projection.to_local_km(np.zeros((5, 1, 2)), centres).shape == (5, 3, 2)
