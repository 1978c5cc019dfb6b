"""The blank map: true areas, insets in their place, nothing cut off."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib import atlas, geo

CITIES = {
    "Alaska": (61.2, -149.9), "California": (34.0, -118.2), "Florida": (25.8, -80.2), "Hawaii": (19.6, -155.5),
    "Kansas": (37.7, -97.3), "Maine": (43.7, -70.3), "Texas": (29.8, -95.4), "Washington": (47.6, -122.3),
}  # fmt: skip
NAMES = list(CITIES)
POINTS = np.array(list(CITIES.values()))


def limits_hold(axes, xy: np.ndarray) -> bool:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return bool(np.all((xy >= (left, bottom)) & (xy <= (right, top))))


def test_albers_keeps_areas_and_true_parallels():
    # A box of one degree has the same area on the map as on the sphere, wherever it lies.
    for lat, lon in [(30.0, -120.0), (45.0, -70.0)]:
        corners = np.array([(lat, lon), (lat, lon + 1), (lat + 1, lon + 1), (lat + 1, lon)])
        edges = np.concatenate([np.linspace(a, b, 50, False) for a, b in zip(corners, np.roll(corners, -1, 0))])  # noqa: B905
        x, y = atlas.CONTIGUOUS(edges).T
        drawn = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        true = geo.EARTH_RADIUS_KM**2 * np.radians(1) * (np.sin(np.radians(lat + 1)) - np.sin(np.radians(lat)))
        assert drawn == pytest.approx(true, rel=1e-3)
    np.testing.assert_allclose(atlas.CONTIGUOUS(np.array([37.5, -96.0])), 0, atol=1e-9)


def test_insets_are_where_their_states_are():
    assert atlas.inset_of(POINTS).tolist() == [1, 0, 0, 2, 0, 0, 0, 0]
    assert atlas.inset_of(np.array([(52.8, 173.2), (55.3, -131.6), (21.9, -159.7), (48.4, -124.7)])).tolist() == [
        1,
        1,
        2,
        0,
    ]


def test_no_state_is_cut_off_and_no_inset_touches_another_state():
    canvas = atlas.Map(POINTS)
    rings = [r for state in atlas.state_rings().values() for r in state]
    for name in NAMES:
        assert all(limits_hold(canvas.axes, canvas.xy(r)) for r in atlas.state_rings()[name]), name
    for line in canvas.axes.lines:  # the inset boxes
        low, high = line.get_xydata().min(0), line.get_xydata().max(0)
        inside = [np.all((canvas.xy(r) > low) & (canvas.xy(r) < high), 1).any() for r in rings]
        pieces = {int(atlas.inset_of(r.mean(0))) for r, hit in zip(rings, inside, strict=True) if hit}
        assert len(pieces) == 1
        assert 0 not in pieces


def test_places_outside_the_united_states_get_a_world_grid():
    world = atlas.Map(np.array([(48.9, 2.4), (40.7, -74.0)]))
    assert not world.is_us
    assert world.axes.get_xlabel() == "longitude"


def test_all_states_are_drawn_and_territories_are_not():
    assert len(atlas.state_rings()) == 51  # with the District of Columbia
    assert "Puerto Rico" not in atlas.state_rings()
