"""Maps hold every point they are given, and say what they leave out."""

from __future__ import annotations

import numpy as np
import pytest
from figure_helper import NAMES, NOTE, POINTS, png, texts
from matplotlib.collections import LineCollection, PathCollection

from kitlib import geo
from kitlib.figures import maps

RNG = np.random.default_rng(0)


def limits_hold(axes, xy: np.ndarray) -> bool:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return bool(np.all((xy >= (left, bottom)) & (xy <= (right, top))))


@pytest.mark.parametrize(
    "points",
    [
        POINTS,
        POINTS[:1],
        POINTS[[5]],
        np.array([(52.8, 173.2), (40.0, -100.0)]),
        np.array([(48.9, 2.4), (-33.9, 151.2)]),
    ],
    ids=["all", "Alaska", "Maine", "Aleutians", "world"],
)
def test_every_point_is_inside_the_frame(points):
    figure = maps.places(points, note=NOTE)
    axes = figure.axes[0]
    (marks,) = [c for c in axes.collections if c.get_zorder() == 2]
    drawn = np.asarray(marks.get_offsets())
    assert len(drawn) == len(points)
    assert limits_hold(axes, drawn)
    assert NOTE in texts(figure)
    png(figure)


def test_a_wide_map_shows_the_whole_contiguous_land_and_a_small_one_zooms():
    def width(points):
        return float(np.ptp(maps.places(points).axes[0].get_xlim()))

    assert width(POINTS[[1, 4]]) == pytest.approx(width(POINTS[[1, 2, 5, 7]]), rel=1e-6)
    assert width(POINTS[[5]]) < 1000


def test_insets_are_there_only_for_points_that_need_them():
    assert len(maps.places(POINTS).axes[0].lines) == 2
    assert len(maps.places(POINTS[[1, 2]]).axes[0].lines) == 0


def test_maps_draw_many_places_and_say_how_many_they_drew():
    points = np.column_stack([RNG.uniform(30, 45, 66_000), RNG.uniform(-110, -80, 66_000)])
    png(maps.density(points, note=NOTE))
    cells = maps.cells(points, points[:50], RNG.integers(20, 60, 50), RNG.uniform(1, 90, 50))
    assert "20,000 of 66,000 drawn" in texts(cells)
    errors = maps.errors(points, points[::-1], geo.distance_km(points, points[::-1]), most=500)
    assert "500 of 66,000 drawn" in texts(errors)
    assert sum(len(c.get_segments()) for c in errors.axes[0].collections if isinstance(c, LineCollection)) == 500


def test_values_shade_known_states_and_mark_the_others_with_a_dot():
    centres = np.array([POINTS[NAMES.index("Texas")], POINTS[NAMES.index("Alaska")], (44.0, -79.5)])
    figure = maps.values(["Texas", "Alaska", "Ontario"], centres, [1.0, 2.0, 3.0], "accuracy", note=NOTE)
    shades = [c for c in figure.axes[0].collections if isinstance(c, PathCollection) and c.get_array() is not None]
    assert [c.get_array().tolist() for c in shades] == [[1.0, 2.0], [3.0]]
    assert shades[0].get_clim() == shades[1].get_clim() == (1.0, 3.0)
    png(figure)
    png(maps.values(["France", "Japan"], np.array([(47, 2), (36, 138)]), [0.2, np.nan], "accuracy"))


def test_embedding_colours_follow_the_map():
    colours = maps.position_colours(POINTS)
    assert colours.shape == (len(POINTS), 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    north_west, south_west = colours[NAMES.index("Washington")], colours[NAMES.index("Hawaii")]
    assert np.abs(north_west - south_west).max() > 0.2
    png(maps.embedding(POINTS[:, ::-1], POINTS, ("PC 1", "PC 2"), note=NOTE))


def test_error_page_is_html_with_escaped_labels_and_its_note(tmp_path):
    km, path = geo.distance_km(POINTS, POINTS[::-1]), tmp_path / "map.html"
    text = maps.save_error_page(path, POINTS, POINTS[::-1], km, ["<b>x</b>"] * 8, note=NOTE).read_text()
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert NOTE in text
    many = np.repeat(POINTS, 40, 0)
    maps.save_error_page(path, many, many[::-1], geo.distance_km(many, many[::-1]), [""] * len(many), most=100)
    assert path.read_text().count("L.polyline(") == 100
