"""Outlines against places whose state is common knowledge."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from kitlib import geo
from kitlib.geo import outlines

CITIES = {
    "Chicago": (41.88, -87.63, "Illinois"),
    "New York": (40.713, -74.006, "New York"),
    "Jersey City": (40.728, -74.077, "New Jersey"),
    "Kansas City, Missouri": (39.099, -94.578, "Missouri"),
    "Kansas City, Kansas": (39.114, -94.627, "Kansas"),
    "Juneau": (58.30, -134.42, "Alaska"),
    "Adak": (51.88, -176.65, "Alaska"),
    "Attu, beyond the date line": (52.9, 173.18, "Alaska"),
    "Honolulu": (21.307, -157.858, "Hawaii"),
    "Washington": (38.907, -77.036, "District of Columbia"),
    "Key West": (24.555, -81.78, "Florida"),
    "San Juan": (18.4655, -66.1057, "Puerto Rico"),
    "Detroit": (42.33, -83.045, "Michigan"),
    "Dover": (39.158, -75.524, "Delaware"),
    "Portland, Oregon": (45.515, -122.678, "Oregon"),
    "Windsor, Canada": (42.30, -83.03, ""),
    "the Atlantic": (35.0, -60.0, ""),
    "unknown": (np.nan, np.nan, ""),
}


@pytest.mark.parametrize("city", CITIES)
def test_known_cities(city):
    latitude, longitude, state = CITIES[city]
    assert outlines.state_of(np.array([[latitude, longitude]])).tolist() == [state]


def test_many_points_at_once_keep_their_order():
    points = np.array([city[:2] for city in CITIES.values()])
    assert outlines.state_of(points).tolist() == [city[2] for city in CITIES.values()]
    assert outlines.state_of(np.empty((0, 2))).shape == (0,)


def test_shapes_are_valid_multipolygons():
    shapes = outlines.state_shapes()
    assert len(shapes) == 56
    assert all(isinstance(shape, shapely.MultiPolygon) and shape.is_valid for shape in shapes.values())
    assert outlines.state_shapes() is shapes


def test_areas_are_right():
    """Census land and inland water area, in thousands of square kilometres."""
    for state, expected in {"Colorado": 269.6, "Texas": 695.7, "Delaware": 5.0, "Oregon": 254.8}.items():
        shape = outlines.state_shapes()[state]
        west, south, east, north = shape.bounds
        rng = np.random.default_rng(0)
        points = np.stack([rng.uniform(south, north, 20_000), rng.uniform(west, east, 20_000)], axis=1)
        box = geo.EARTH_RADIUS_KM**2 * np.radians(east - west) * np.ptp(np.sin(np.radians([south, north])))
        weight = np.cos(np.radians(points[:, 0]))
        area = box * weight[outlines.state_of(points) == state].sum() / weight.sum() / 1000
        assert area == pytest.approx(expected, rel=0.07), state


LAND = {
    "Paris": (48.9, 2.4, True),
    "Chukotka, beyond the date line": (67.0, -178.0, True),
    "Chukotka, before it": (67.0, 178.0, True),
    "Wrangel Island": (71.2, -179.5, True),
    "Viti Levu": (-17.8, 178.0, True),
    "the South Pole": (-90.0, 0.0, True),
    "Antarctica at the date line": (-88.0, 180.0, True),
    "the Caspian Sea": (42.0, 51.0, False),
    "the Pacific at the date line": (0.0, 180.0, False),
    "the Atlantic": (35.0, -40.0, False),
    "the North Pole": (90.0, 0.0, False),
}


@pytest.mark.parametrize("place", LAND)
def test_land_and_sea(place):
    latitude, longitude, land = LAND[place]
    assert bool(shapely.intersects_xy(outlines.land_shape(), longitude, latitude)) == land


def test_land_is_three_tenths_of_the_globe():
    shape = outlines.land_shape()
    assert shape.is_valid and shape.bounds[::2] == (-180, 180)
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 40_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 40_000)))
    assert shapely.contains_xy(shape, lon, lat).mean() == pytest.approx(0.292, abs=0.01)
