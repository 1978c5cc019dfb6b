"""Outlines against places whose state is common knowledge."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from kitlib import geo, outlines

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
