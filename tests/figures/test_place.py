"""One place: the areas that hold its weight lie where the weight is."""

from __future__ import annotations

import numpy as np
from figure_helper import NOTE, png, texts

from kitlib.figures import place
from kitlib.figures.atlas import Map

DENVER, BOSTON = (39.7, -105.0), (42.4, -71.1)


def test_the_density_has_its_peak_at_the_heaviest_point_and_its_spread_in_km():
    for points in (np.array([DENVER, BOSTON]), np.array([(48.1, 11.6), (60.2, 24.9)])):  # the US, and elsewhere
        canvas = Map(points)
        across, up, density = place._density(canvas, points, np.array([0.8, 0.2]), 100.0)
        y, x = np.unravel_index(density.argmax(), density.shape)
        step = np.array([across[1] - across[0], up[1] - up[0]])
        assert (np.abs(np.array([across[x], up[y]]) - canvas.xy(points[0])) <= step).all()
        mass = density / density.sum()
        near = across < (canvas.xy(points)[:, 0].mean())
        heavy = mass[:, near].sum() if canvas.xy(points)[0, 0] < canvas.xy(points)[1, 0] else mass[:, ~near].sum()
        assert 0.75 < heavy < 0.85


def test_likelihood_has_a_panel_for_each_place_on_the_same_map():
    points = np.array([[DENVER, BOSTON], [BOSTON, BOSTON]])
    figure = place.likelihood(points, [[0.6, 0.4], [1.0, 0.0]], points[:, 0], points[:, 1], ["torn", "sure"], note=NOTE)
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert all(text in texts(figure) for text in ("torn", "sure", "50%", "90% of the weight", NOTE))
    png(figure)
