"""Scenery: climate follows the map, style the state, and pictures both."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib import geo
from kitlib.data.sample import scenery

PLACES = {  # latitude, longitude, state_idx
    "Las Vegas": (36.17, -115.14, 27),
    "Seattle": (47.61, -122.33, 46),
    "Miami": (25.76, -80.19, 8),
    "Des Moines": (41.59, -93.62, 14),
    "Juneau": (58.30, -134.42, 1),
    "Boulder": (40.01, -105.27, 5),
}


def look(*names: str, seed: int = 0, urban: float = 0.3) -> list:
    rows = np.array([PLACES[name] for name in names])
    return scenery.appearances(rows[:, :2], rows[:, 2].astype(int), np.full(len(rows), urban), seed)


def views(name: str, n: int, size: int = 64) -> np.ndarray:
    place = look(name)[0]
    return np.stack([scenery.paint(place, size, np.random.default_rng(i)) for i in range(n)]).astype(float)


@pytest.mark.parametrize(
    ("latitude", "day", "hour", "height", "azimuth"),
    [
        (40, 172, 12, 73.4, 180),
        (40, 355, 12, 26.6, 180),
        (0, 81, 6, 0, 90),
        (0, 81, 18, 0, 270),
        (19.5, 172, 12, 86, 0),
    ],
)
def test_sun(latitude, day, hour, height, azimuth):
    """Solstices and equinoxes; in June the sun at noon stands north of Hawaii."""
    got_height, got_azimuth = np.degrees(scenery.sun(latitude, day, hour))
    assert got_height == pytest.approx(height, abs=0.7)
    assert (got_azimuth - azimuth + 180) % 360 - 180 == pytest.approx(0, abs=1.5)


def test_climate_is_what_one_expects():
    by_name = dict(zip(PLACES, look(*PLACES), strict=True))
    assert by_name["Las Vegas"].wet < 0.2 < 0.6 < by_name["Seattle"].wet
    assert by_name["Juneau"].warm < by_name["Des Moines"].warm < by_name["Miami"].warm
    assert by_name["Des Moines"].farm > 0.8 and by_name["Des Moines"].relief < 0.2
    assert by_name["Seattle"].conifer > by_name["Miami"].conifer


def test_mountains_stand_where_they_are():
    """From Boulder the Rockies are in the west (direction 12 of 16)."""
    boulder = look("Boulder")[0]
    assert boulder.rim[12] > boulder.rim[4] + 0.15


def test_neighbours_look_alike_across_a_state_line_but_for_the_states_clues():
    points = np.array([[38.0, -87.99], [38.0, -87.94], [38.0, -75.6]])
    here, there, far = scenery.appearances(points, np.array([12, 13, 7]), np.full(3, 0.3), 0)
    assert geo.distance_km(points[0], points[1]) < 5
    assert np.abs(here.hues - there.hues).max() < 0.1 < np.abs(here.hues - far.hues).max()
    assert abs(here.wet - there.wet) < 0.02
    assert (here.sign, here.pole, here.edge) != (there.sign, there.pole, there.edge)


def test_appearances_depend_on_the_seed_only():
    first, again, other = look("Miami")[0], look("Miami")[0], look("Miami", seed=1)[0]
    assert np.array_equal(first.hues, again.hues) and first.sign == again.sign
    assert not np.allclose(first.hues, other.hues)
    alone, among = look("Miami")[0], look(*PLACES)[2]
    assert np.allclose(alone.hues, among.hues) and np.allclose(alone.soil, among.soil)


def test_pictures_are_uint8_views_and_repeat():
    place = look("Seattle")[0]
    painted = scenery.paint(place, 48, np.random.default_rng(1))
    assert painted.shape == (4, 48, 48, 3) and painted.dtype == np.uint8
    assert np.array_equal(painted, scenery.paint(place, 48, np.random.default_rng(1)))
    assert not np.array_equal(painted, scenery.paint(place, 48, np.random.default_rng(2)))
    assert painted.std() > 20


def test_the_desert_is_browner_than_the_forest_and_the_south_brighter_than_the_north():
    desert, forest = views("Las Vegas", 12), views("Seattle", 12)
    ground = np.s_[:, :, 34:58]
    assert (desert[ground][..., 0] - desert[ground][..., 1]).mean() > (
        forest[ground][..., 0] - forest[ground][..., 1]
    ).mean()
    sky = desert[:, :, :30].mean(axis=(0, 2, 3, 4))
    assert sky[2] > sky[0] + 2


def test_every_kind_of_place_can_be_painted():
    """Towns, villages, fields, winters: no warning, nothing out of range."""
    with np.errstate(all="raise", under="ignore"):
        for urban in (0.0, 0.5, 1.0):
            for place in look(*PLACES, urban=urban):
                for i in range(3):
                    scenery.paint(place, 32, np.random.default_rng([7, i]))
