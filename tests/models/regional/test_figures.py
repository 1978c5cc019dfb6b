"""Figures of regional training: every number that they tell is the right one, and nothing is cut off in silence."""

from __future__ import annotations

import numpy as np
import pytest
from figure_helper import NOTE, overlapping_texts, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.figures.style import GREY, PALETTE
from kitlib.geo import projection
from kitlib.models.regional import figures

RNG = np.random.default_rng(0)
CITY = np.array([14.6, 121.0]) + RNG.normal(0, 0.01, (60, 2))


def marks(axes) -> list[PathCollection]:
    return [
        c for c in axes.collections if isinstance(c, PathCollection) and len(c.get_offsets()) and c.get_zorder() > 1
    ]


def inside(axes, xy: np.ndarray) -> np.ndarray:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return np.all((xy >= (left, bottom)) & (xy <= (right, top)), axis=-1)


def test_dropped_places_near_the_kept_ones_share_their_map():
    reason = np.where(np.arange(60) < 5, "mad", np.where(np.arange(60) < 8, "dbscan", ""))
    figure = figures.dropped(CITY, reason, "Dropped", NOTE)
    (axes,) = figure.axes
    assert all(f"{word} ({n})" in texts(figure) for word, n in [("kept", 52), ("mad", 5), ("dbscan", 3)])
    kept, *others = marks(axes)
    assert len(kept.get_offsets()) == 52
    np.testing.assert_allclose(kept.get_facecolor()[0, :3], to_rgba(GREY)[:3])
    assert [len(c.get_offsets()) for c in others] == [3, 5]
    assert not overlapping_texts(figure)


@pytest.mark.parametrize("far", [(0.0, 0.0), (14.6, -175.0), (-80.0, 20.0)])
def test_dropped_places_far_away_get_a_map_of_their_own(far):
    points, reason = np.concatenate([CITY, [far]]), ["mad", *[""] * 59, "excluded"]
    figure = figures.dropped(points, reason, "Dropped", NOTE)
    whole, zoom = figure.axes
    assert sum(len(c.get_offsets()) for c in marks(whole)) == 61
    assert sum(len(c.get_offsets()) for c in marks(zoom)) == 60
    for axes in (whole, zoom):
        assert all(inside(axes, np.asarray(c.get_offsets())).all() for c in marks(axes))
    assert np.ptp(zoom.get_xlim()) < 0.2
    circle = np.concatenate(next(c for c in whole.collections if isinstance(c, LineCollection)).get_segments())
    assert inside(whole, circle).all()
    assert not overlapping_texts(figure)


def test_all_or_none_may_be_dropped():
    assert "mad (60)" in texts(figures.dropped(CITY, ["mad"] * 60))
    assert "kept (60)" in texts(figures.dropped(CITY, [""] * 60))
    with pytest.raises(KitError, match="expected one reason a place, at least one; got 60 and 2"):
        figures.dropped(CITY, ["mad", ""])
    with pytest.raises(KitError, match="got 0 and 0"):
        figures.dropped(np.empty((0, 2)), [])


def test_neighbour_curve_says_the_share_above_eps():
    km = np.concatenate([np.linspace(1, 20, 95), [0.0], [100.0, 200.0], [np.nan, np.inf]])
    figure = figures.neighbour_curve(RNG.permutation(km), 20, 4, "eps", NOTE)
    assert "eps 20 km: 4.0% of the places (4) lie above" in texts(figure)
    assert "at distance 0, drawn at the bottom: 1" in texts(figure) and "without a neighbour 4: 2" in texts(figure)
    (axes,) = figure.axes
    curve, eps = axes.lines
    assert len(curve.get_xdata()) == 98 and (np.diff(curve.get_ydata()) >= 0).all() and axes.get_yscale() == "log"
    assert set(eps.get_ydata()) == {20}
    with pytest.raises(KitError, match="an eps above 0"):
        figures.neighbour_curve(km, 0, 4)
    with pytest.raises(KitError, match="got 0, 5"):
        figures.neighbour_curve([], 5, 4)


@pytest.mark.parametrize("km", [[0.0, 0.0], [np.nan], [3.0], [1e-6, 1e4]])
def test_neighbour_curve_draws_odd_distances(km):
    assert figures.neighbour_curve(km, 5, 4, "eps", NOTE)._repr_png_().startswith(b"\x89PNG")


def local(n_regions: int) -> tuple[list[str], dict, dict]:
    names = [f"region {i}" for i in range(n_regions)]
    true = {name: RNG.normal(0, 3**i % 100 + 1, (2 * i + 1, 2)) for i, name in enumerate(names)}
    return names, true, {name: 0.5 * xy for name, xy in true.items()}


@pytest.mark.parametrize("n_regions", [1, 2, 6, 31])
def test_region_errors_draw_the_largest_regions(n_regions):
    names, true, guess = local(n_regions)
    figure = figures.region_errors(true, guess, names, 12, "Errors", NOTE)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").split("\n")[0] for axes in shown] == names[::-1][:12]
    for axes in shown:
        assert axes.get_aspect() == 1
        assert inside(axes, np.asarray(marks(axes)[0].get_offsets())).all()
    rest = sum(len(true[name]) for name in names[:-12])
    assert (f"smaller regions not drawn: {n_regions - 12} ({rest} places)" in texts(figure)) == (n_regions > 12)
    assert not overlapping_texts(figure)


def test_region_errors_tell_the_distance_on_the_globe():
    centre = np.array([64.0, -150.0])
    true = centre + RNG.uniform(-3, 3, (40, 2))
    guess = true + RNG.normal(0, 1, (40, 2))
    figure = figures.region_errors(*([projection.to_local_km(p, centre)] for p in (true, guess)), ["Alaska"])
    mean = float(panels_title(figure).split(" km")[0])
    planar = np.linalg.norm(projection.to_local_km(true, centre) - projection.to_local_km(guess, centre), axis=1)
    assert mean == pytest.approx(planar.mean(), rel=0.02)
    assert mean == pytest.approx(geo.distance_km(true, guess).mean(), rel=0.02)


def panels_title(figure) -> str:
    return figure.axes[0].get_title(loc="left").split("\n")[1]


def test_region_errors_tell_guesses_that_leave_their_panel():
    true = RNG.normal(0, 5, (60, 2))
    guess = true + 1
    guess[7] = (900, 0)
    figure = figures.region_errors([true], [guess], ["a"])
    assert "guesses outside their panel: 1" in texts(figure)
    assert figure.axes[0].get_xlim()[1] < 50
    with pytest.raises(KitError, match="region a: expected a guess for each of 60 places; got 3"):
        figures.region_errors([true], [guess[:3]], ["a"])
    with pytest.raises(KitError, match="expected at least one with places; got none of 1"):
        figures.region_errors([true[:0]], [guess[:0]], ["a"])


@given(st.floats(1e-3, 1e5))
def test_a_scale_bar_is_a_round_number_that_fits(value):
    number = figures._round_number(value)
    assert value / 2.5 * (1 - 1e-9) <= number <= value
    assert f"{number:e}"[0] in "125"


@pytest.mark.parametrize("n_regions", [1, 6, 31, 60])
def test_against_median_sorts_by_gain_and_tells_both_means(n_regions):
    names = [f"the region of number {i}" for i in range(n_regions)]
    counts, median = RNG.integers(1, 2000, n_regions), RNG.uniform(2, 300, n_regions)
    model, pooled = median * RNG.uniform(0.3, 1.2, n_regions), counts < 500
    figure = figures.against_median(names, model, median, counts, pooled, "Gain", NOTE)
    (axes,) = figure.axes
    order = np.argsort(model - median)
    assert [label.get_text() for label in axes.get_yticklabels()] == [names[i] for i in order]
    dots = next(c for c in marks(axes) if len(c.get_edgecolor()) and c.get_zorder() == 4)
    np.testing.assert_allclose(np.asarray(dots.get_offsets())[:, 0], model[order])
    hollow = np.all(np.broadcast_to(dots.get_facecolor(), (n_regions, 4)) == 1, axis=1)
    assert hollow.tolist() == pooled[order].tolist()
    assert ("pooled model" in texts(figure)) == pooled.any()
    for km in (model, median):
        assert f"{np.average(km, weights=counts):,.3g} km overall" in texts(figure)
    assert all(f"{n:,}" in texts(figure) for n in counts)
    assert not overlapping_texts(figure)


def test_against_median_colours_gain_and_loss_and_tells_what_it_leaves_out():
    figure = figures.against_median(["a", "b", "c"], [1, 5, np.nan], [4, 4, 4], [10, 10, 0])
    lines = next(c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    assert [tuple(c[:3]) for c in lines.get_colors()] == [to_rgba(PALETTE[i])[:3] for i in (2, 1)]
    assert "regions without places: 1" in texts(figure) and "pooled" not in texts(figure)
    with pytest.raises(KitError, match="expected one value a region"):
        figures.against_median(["a"], [1, 2], [3], [4])
    with pytest.raises(KitError, match="with places and distances; got none of 1"):
        figures.against_median(["a"], [1], [3], [0])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(-85, 85), st.floats(-180, 180)), min_size=1, max_size=8), st.randoms())
def test_dropped_shows_every_place_wherever_it_is(points, random):
    reason = [random.choice(["", "mad"]) for _ in points]
    axes = figures.dropped(points, reason).axes[0]
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in marks(axes)])
    assert len(drawn) == len(points) and inside(axes, drawn).all()
