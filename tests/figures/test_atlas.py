"""The blank map: true areas, insets in their place, nothing cut off."""

from __future__ import annotations

import numpy as np
import pytest
from figure_helper import NAMES, POINTS
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

from kitlib import geo
from kitlib.figures import atlas
from kitlib.figures.style import LAND


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


def drawn_land(canvas: atlas.Map) -> list:
    return [path for collection in canvas.axes.collections for path in collection.get_paths()]


def test_places_outside_the_united_states_get_land_on_a_grid():
    world = atlas.Map(np.array([(48.9, 2.4), (40.7, -74.0), (-33.9, 151.2)]))
    assert not world.is_us
    assert world.axes.get_xlabel() == "longitude"
    (land,) = drawn_land(world)
    for point, on_land in [((48.9, 2.4), True), ((-25.0, 135.0), True), ((40.0, -40.0), False)]:
        assert land.contains_point(world.xy(np.array(point))) == on_land
    assert np.abs(world.axes.get_ylim()).max() <= 90


def test_a_city_is_all_land():
    city = atlas.Map(np.array([(14.60, 120.97), (14.62, 121.0)]))
    assert drawn_land(city) == []
    assert city.axes.get_facecolor() == to_rgba(LAND)


def test_islands_on_both_sides_of_the_date_line_stay_together():
    fiji = np.array([(-17.8, 177.4), (-16.8, -179.9), (-18.2, -178.8), (-17.0, 180.0)])
    canvas = atlas.Map(fiji)
    assert np.ptp(canvas.axes.get_xlim()) < 6
    assert limits_hold(canvas.axes, canvas.xy(fiji))
    canvas.figure.draw_without_rendering()
    labels = [float(text.get_text().replace("−", "-")) for text in canvas.axes.get_xticklabels()]
    assert min(labels) < 0 < max(labels) and np.abs(labels).max() <= 180
    (land,) = drawn_land(canvas)
    assert land.contains_point((178.0, -17.8)) and not land.contains_point((180.5, -17.5))


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=6))
def test_longitudes_keep_their_meridian_whatever_the_middle(points):
    points = np.array(points)
    flat = atlas.PlateCarree.around(points)
    xy = flat(points)
    assert (np.abs(xy[:, 0] - flat.middle) <= 180 + 1e-9).all()
    turns = (xy[:, 0] - points[:, 1]) / 360
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)
    assert np.ptp(xy[:, 0]) <= np.ptp(points[:, 1]) + 1e-9
    np.testing.assert_array_equal(xy[:, 1], points[:, 0])


def test_lines_take_the_shorter_way():
    canvas = atlas.Map(np.array([(-17.0, 178.0), (48.9, 2.4), (40.7, -74.0)]))
    start, end = np.array([(-17.0, 178.0), (48.9, 2.4)]), np.array([(-14.0, -171.0), (40.7, -74.0)])
    lines, row = canvas.lines(start, end)
    assert row.tolist() == [0, 1, 0]
    assert lines[:, :, 0].tolist() == [[178, 189], [2.4, -74], [-182, -171]]


def test_all_states_are_drawn_and_territories_are_not():
    assert len(atlas.state_rings()) == 51  # with the District of Columbia
    assert "Puerto Rico" not in atlas.state_rings()
