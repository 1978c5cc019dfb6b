"""Places by state: neighbours differ in colour, and who lies outside their state is marked."""

from __future__ import annotations

import numpy as np
from figure_helper import NOTE, png, texts

from kitlib.figures import states
from kitlib.geo import outlines

NAMES = list(outlines.state_shapes())
CENTRES = np.array([(shape.representative_point().y, shape.representative_point().x)
                    for shape in outlines.state_shapes().values()])  # fmt: skip


def test_no_two_neighbouring_states_share_one_of_five_colours():
    pairs = states.touching(NAMES, CENTRES, np.arange(len(NAMES)))
    named = {frozenset((NAMES[a], NAMES[b])) for a, b in pairs}
    assert {frozenset(("Utah", "Idaho")), frozenset(("Georgia", "Alabama")), frozenset(("Iowa", "Minnesota"))} <= named
    assert frozenset(("Texas", "Kansas")) not in named and len(named) > 100
    colours = states.neighbour_colours(NAMES, pairs)
    assert all(colours[a] != colours[b] for a, b in pairs)
    assert len(set(colours)) <= 5


def test_countries_are_neighbours_where_their_places_are():
    lon = np.r_[np.linspace(0, 8, 9), np.linspace(9, 15, 7), np.linspace(140, 150, 9)]
    points, code = np.column_stack([np.where(lon > 100, -30.0, 48.0), lon]), np.repeat([0, 1, 2], [9, 7, 9])
    assert states.touching(["France", "Germany", "Australia"], points, code) == {(0, 1)}


def test_more_neighbours_than_colours_still_get_one():
    assert (
        len(states.neighbour_colours([str(i) for i in range(12)], [(a, b) for a in range(12) for b in range(a)])) == 12
    )


def test_places_outside_their_state_are_ringed_and_counted():
    points, names = CENTRES[[0, 1, 2, 3]].copy(), np.array(NAMES, dtype=object)[[0, 1, 2, 3]]
    names[3] = NAMES[0]
    assert states.outside(points, names).tolist() == [False, False, False, True]
    assert not states.outside(points[:2], ["Bavaria", "Bavaria"]).any()
    figure = states.places(points, names, title="States", note=NOTE)
    assert "outside the outline of its state (1)" in texts(figure)
    png(figure)
    assert "ring" not in texts(states.places(points[:3], names[:3]))
