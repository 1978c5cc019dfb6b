"""Maps hold every point they are given, and say what they leave out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from figure_helper import NAMES, NOTE, POINTS, png, texts
from hostile_helper import HOSTILE
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import FancyArrowPatch

from kitlib import geo
from kitlib.figures import error_page, maps

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


class Elements(HTMLParser):
    """The elements of a page with their attributes and texts."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict, str]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)


def page_of(path, true, guess, labels, **options) -> tuple[Elements, dict]:
    """The elements of an error page, and the data in it."""
    page = error_page.save_error_page(path, true, guess, geo.distance_km(true, guess), labels, **options)
    elements = Elements(page.read_text(encoding="utf-8"))
    return elements, next(json.loads(text) for _, attributes, text in elements.found if attributes.get("id") == "data")


def test_an_error_page_holds_texts_of_the_data_as_json_and_nowhere_else(tmp_path):
    points, path = np.resize(POINTS, (len(HOSTILE), 2)), tmp_path / "map.html"
    block = '<script type="application/json".*</script>'
    page_of(path, points, points[::-1], ["x"] * len(points))
    same = re.sub(block, "", path.read_text())
    elements, data = page_of(path, points, points[::-1], HOSTILE, note=HOSTILE[0])
    assert sorted(data["labels"]) == sorted(HOSTILE) and data["caption"].endswith(HOSTILE[0])
    text = path.read_text(encoding="utf-8")
    assert re.sub(block, "", text) == same
    assert "\u2028" not in text and "\u202e" not in text
    assert "${alert" not in text and "<img src=x" not in text and text.count("</script>") == text.count("<script")
    assert not [
        attributes for tag, attributes, _ in elements.found if tag in ("script", "link") and "src" in attributes
    ]


def test_an_error_page_has_all_places_by_their_errors_and_the_shorter_lines(tmp_path):
    many = np.repeat(POINTS, 40, 0)
    km = geo.distance_km(many, many[::-1])
    pictures = {int(np.argmax(km)): [b"jpeg"]}
    _, data = page_of(tmp_path / "map.html", many, many[::-1], [f"{k:.3f}" for k in km], pictures=pictures, note=NOTE)
    assert NOTE in data["caption"] and "320 places" in data["caption"] and "of 1 of 320 places" in data["without"]
    assert [float(label) for label in data["labels"]] == sorted(km.round(3).tolist())
    assert data["level"] == sorted(data["level"]) and data["level"][-1] == 15
    ((place, jpegs),) = data["pictures"].items()
    assert float(data["labels"][int(place)]) == km.max().round(3) and jpegs == ["anBlZw=="]
    fiji, samoa, paris = (-17.7, 178.0), (-13.8, -171.8), (48.9, 2.4)
    _, data = page_of(tmp_path / "near.html", np.array([fiji, samoa]), np.array([samoa, fiji]), ["", ""])
    (west, east), bounds = data["bounds"], np.array(data["bounds"])
    assert bounds[1, 1] - bounds[0, 1] == pytest.approx(10.2) and west[0] == -17.7 and east[0] == -13.8
    _, data = page_of(tmp_path / "far.html", np.array([fiji, paris]), np.array([samoa, paris]), ["", ""])
    guess = dict(zip(data["latitude"], data["guess_longitude"], strict=True))
    assert guess[fiji[0]] == pytest.approx(188.2) and guess[paris[0]] == 2.4


def test_lines_of_a_map_of_the_world_take_the_short_way(tmp_path):
    chukotka, kamchatka, paris = (66.0, -175.0), (56.0, 160.0), (48.9, 2.4)
    canvas = maps.Map(np.array([chukotka, kamchatka, paris]))
    lines, rows = canvas.lines([chukotka, paris], [kamchatka, paris])
    assert rows.tolist() == [0, 1, 0] and np.ptp(lines[..., 0], axis=1).tolist() == [25, 0, 25]


def test_differences_have_a_line_each_and_a_dot_by_the_state():
    moved, differs = POINTS + np.array([0.5, 2.0]), np.arange(len(POINTS)) % 3 == 0
    figure = maps.differences(POINTS, moved, geo.distance_km(POINTS, moved), differs, note=NOTE)
    lines = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    assert sum(len(c.get_segments()) for c in lines) == len(POINTS)
    assert "dark ring: another first state (3)" in texts(figure)
    assert len(figure.axes[0].lines) == 2  # Alaska and Hawaii in their insets
    png(figure)
    png(maps.differences(POINTS, POINTS, np.zeros(len(POINTS)), np.zeros(len(POINTS), bool)))


def arrows(figure) -> list[FancyArrowPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]


def test_an_arrow_leads_from_each_state_to_the_one_it_is_most_confused_with():
    true = ["Texas"] * 10 + ["Maine"] * 4 + ["Kansas"] * 2
    guess = ["Kansas"] * 5 + ["Florida"] * 2 + ["Texas"] * 3 + ["Alaska", "Florida", "Maine", "Maine"] + ["Kansas"] * 2
    figure = maps.confusions(true, guess, NAMES, POINTS, note=NOTE)
    drawn = arrows(figure)
    widths = sorted(arrow.get_linewidth() for arrow in drawn)
    assert len(drawn) == 2 and widths[1] > 2 * widths[0]  # five places and one; Kansas is always right
    (near,) = [c for c in figure.axes[0].collections if c.get_zorder() == 4]
    assert sorted(near.get_array().tolist()) == [0.25, 0.5]
    ends = [maps.Map(POINTS).xy(POINTS[NAMES.index(name)]) for name in ("Maine", "Florida")]  # nearer than Alaska
    assert np.allclose(min(drawn, key=lambda arrow: arrow.get_linewidth())._posA_posB, ends)
    assert "widest arrow: 5 places" in texts(figure)
    png(figure)
    assert "no state is confused" in texts(maps.confusions(["Texas"], ["Texas"], NAMES, POINTS))
    assert "1 states not drawn" in texts(maps.confusions(true, guess, NAMES, POINTS, most=1))
