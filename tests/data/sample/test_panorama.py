"""The strip: geometry of the four views, seams, light."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.data.sample.panorama import NOISE, Light, Strip, Thing, noise

GREY = np.full(3, 0.5)


def strip(sun_azimuth: float = np.pi, direct: float = 1.0, size: int = 64, heading: float = 0.0) -> Strip:
    light = Light(0.6, sun_azimuth, direct, 0.0, 1e6, np.array([0.2, 0.4, 0.8]), np.array([0.8, 0.9, 0.9]), np.ones(3))
    painted = Strip(size, light, heading, lane=-1.0)
    painted.canvas[:] = 0
    return painted


def thing(across: float, along: float, height: float = 3.0) -> Thing:
    return Thing("block", 0, across, along, height, np.ones(3), np.ones(3))


@pytest.mark.parametrize(
    ("across", "along", "view"),
    [(1, 20, 0), (21, 0, 1), (1, -20, 2), (-19, 0, 3)],
    ids=["north", "east", "south", "west"],
)
def test_a_thing_stands_in_the_middle_of_the_view_that_faces_it(across, along, view):
    painted = strip()
    painted.put([thing(across, along)])
    columns = np.flatnonzero(painted.canvas.sum(axis=(0, 1)))
    assert columns.mean() == pytest.approx(64 * view + 32, abs=1.5)


def test_height_on_the_strip_is_height_over_distance():
    painted = strip(size=128)
    painted.put([thing(1, 16, 4.0)])
    rows = np.flatnonzero(painted.canvas.sum(axis=(0, 2)))
    assert len(rows) == pytest.approx(64 * 4 / 16, rel=0.1)
    assert rows[-1] == pytest.approx(64 + 64 * 2.5 / 16, abs=1.5)


def test_a_thing_on_the_seam_is_on_both_ends():
    painted = strip()
    painted.put([thing(-14, 15)])
    columns = painted.canvas.sum(axis=(0, 1)) > 0
    assert columns[0] and columns[-1] and not columns[64:192].any()


def test_the_strip_is_continuous_where_views_meet():
    painted = strip()
    painted.sky(np.random.default_rng(0))
    painted.hills(np.full(16, 0.8), GREY, 0.2, np.random.default_rng(0))
    sky = painted.canvas[:, 5:30]
    steps = np.abs(np.diff(sky, axis=2)).mean(axis=(0, 1))
    seams = np.abs(sky[:, :, [64, 128, 192, 0]] - sky[:, :, [63, 127, 191, 255]]).mean(axis=(0, 1))
    assert seams.max() < 3 * np.percentile(steps, 95)


@pytest.mark.parametrize("view", range(4))
def test_the_sun_is_where_it_should_be(view):
    painted = strip(sun_azimuth=view * np.pi / 2)
    painted.sky(np.random.default_rng(0))
    brightness = painted.canvas[:, :32].sum(axis=0).reshape(32, 4, 64).mean(axis=(0, 2))
    assert brightness.argmax() == view
    assert brightness[view] > 1.1 * np.delete(brightness, view).max()


def test_things_towards_the_sun_show_their_shaded_side():
    painted = strip(sun_azimuth=np.pi)
    painted.put([thing(1, 20), thing(1, -20)])
    north, south = painted.canvas[:, :, :64], painted.canvas[:, :, 128:192]
    assert north[north > 0].mean() > 1.2 * south[south > 0].mean()


def test_walls_and_wires_keep_to_their_side():
    painted = strip()
    painted.wall(8, 0, 5, GREY)
    painted.wall(8, 0, np.full(NOISE, 5.0), GREY, grain=0.1)
    assert painted.canvas[:, :, 64:128].max() > 0.3 and painted.canvas[:, :, 192:].max() == 0
    painted.canvas[:] = 1
    painted.wire(-8, 0, 38, 8)
    assert painted.canvas[:, :, 64:128].min() == 1 and painted.canvas[:, :, 192:].min() < 0.9


def test_noise_is_standard_and_repeats():
    picture = noise(1.0)
    assert picture.shape == (NOISE, NOISE) and noise(1.0) is picture
    assert picture.std() == pytest.approx(1, rel=1e-3) and abs(picture.mean()) < 1e-3
