"""Figures of embeddings: what they draw and tell is what was measured, for one embedding and for several."""

from __future__ import annotations

import numpy as np
import pytest
from figure_helper import overlapping_texts, texts
from matplotlib.collections import PathCollection

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval import figures, similarity

RNG = np.random.default_rng(0)
POINTS = RNG.uniform((30, -100), (48, -80), (300, 2)) + 0.0
POINTS[::2] = POINTS[1::2] + RNG.normal(0, 0.1, (150, 2))
NOISE = RNG.normal(size=(300, 60))
GLOBE = geo.unit_vectors(POINTS)
FEATURES = {
    "frozen": NOISE + 1,
    "trained": np.hstack([8 * (GLOBE - GLOBE.mean(0)), 0.02 * NOISE]),
    "trained longer": GLOBE - GLOBE.mean(0),
    "upside down": -NOISE,
}
PAIRS = {name: similarity.pairs(POINTS, x) for name, x in FEATURES.items()}
SUMMARIES = {name: similarity.summary(POINTS, x, 20_000) for name, x in FEATURES.items()}
CURVES = {name: similarity.curve(found) for name, found in PAIRS.items()}
SPECTRA = {name: similarity.spectrum(x) for name, x in FEATURES.items()}
COUNTS = pytest.mark.parametrize("n", [1, 3, 4])


def first(of: dict, n: int) -> dict:
    return dict(list(of.items())[:n])


@COUNTS
def test_against_distance_has_a_panel_an_embedding(n):
    figure = figures.against_distance(first(PAIRS, n), SUMMARIES, 500, "Title", "drawn sample")
    assert len(figure.axes) == n and not overlapping_texts(figure)
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}
    assert len(limits) == 1, "shared axes"
    for axes, (name, found) in zip(figure.axes, SUMMARIES.items(), strict=False):
        told = f"{name}\nSpearman {found.spearman:+.2f}, violations {found.violations:.0%}"
        assert axes.get_title(loc="left") == told and axes.get_xscale() == "log"
        (dots,) = [c for c in axes.collections if isinstance(c, PathCollection)]
        assert len(dots.get_offsets()) == 500 and dots.get_rasterized()
        (line,) = axes.lines
        enough = CURVES[name][CURVES[name]["count"] >= figures.FEW]
        np.testing.assert_allclose(line.get_ydata(), enough["mean"])
    assert "dots: 500 of 44,850 pairs" in texts(figure) and "drawn sample" in texts(figure)


def test_dots_are_of_all_distances():
    km = PAIRS["frozen"].km
    rows = figures._thinned(km, 600)
    assert len(np.unique(rows)) == 600
    assert (km[rows] < 20).sum() > 5 * 600 * (km < 20).mean(), "most pairs are far apart"
    assert sorted(figures._thinned(km[:50], 600)) == list(range(50))


def test_the_same_spot_is_drawn_at_the_edge():
    points = np.repeat(POINTS[:40], 2, axis=0)
    found = {"frozen": similarity.pairs(points, NOISE[:80])}
    figure = figures.against_distance(found, {"frozen": similarity.summary(points, NOISE[:80])})
    (dots,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    left, right = figure.axes[0].get_xlim()
    x = np.asarray(dots.get_offsets())[:, 0]
    assert x.min() == figures.FLOOR_KM and left < x.min() and x.max() < right
    assert f"all {len(found['frozen'].km):,} pairs" in texts(figure) or "3,000 of 3,160" in texts(figure)


@COUNTS
def test_distributions_tell_medians_and_have_equal_areas(n):
    figure = figures.distributions(first(PAIRS, n), title="Title", note="drawn sample")
    assert len(figure.axes) == n and not overlapping_texts(figure)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    for axes, found in zip(figure.axes, PAIRS.values(), strict=False):
        told = [text.get_text() for text in axes.get_legend().get_texts()]
        near = [found.cosine, *(found.cosine[found.km <= km] for km in (100, 50))]
        wanted = ["any two", "within 100 km", "within 50 km"]
        assert told == [f"{word}: {np.median(c):.2f}" for word, c in zip(wanted, near, strict=True)]
        for patch in axes.patches:
            values, edges, _ = patch.get_data()
            assert np.sum(values * np.diff(edges)) == pytest.approx(1)


def test_distributions_are_those_of_all_pairs_not_of_the_drawn_ones():
    drawn = similarity.pairs(POINTS, FEATURES["trained"], 20_000)
    (axes,) = figures.distributions({"trained": drawn}).axes
    told = float(axes.get_legend().get_texts()[0].get_text().split()[-1])
    assert told == pytest.approx(np.median(PAIRS["trained"].cosine), abs=0.03)
    assert np.median(drawn.cosine) > told + 0.1, "near pairs, which are alike, are drawn more often"


def test_distributions_without_near_pairs_say_so():
    figure = figures.distributions({"frozen": PAIRS["frozen"]}, near_km=(100, 1e-6))
    assert "within 1e-06 km: no pair" in texts(figure)
    same = similarity.pairs(POINTS[:5], np.ones((5, 3)))
    assert figures.distributions({"collapsed": same})._repr_png_().startswith(b"\x89PNG")


@COUNTS
def test_spectra_mark_the_effective_dimension(n):
    figure = figures.spectra(first(SPECTRA, n), "Title", "drawn sample")
    (axes,) = figure.axes
    curves, marks = axes.lines[::2], axes.lines[1::2]
    for (name, values), curve, mark in zip(SPECTRA.items(), curves, marks, strict=False):
        used = similarity.participation(values)
        assert curve.get_label() == f"{name}: effective dimension {used:.3g}"
        assert curve.get_ydata()[-1] == pytest.approx(1) and (np.diff(curve.get_ydata()) >= 0).all()
        assert mark.get_xdata()[0] == used and 0 < mark.get_ydata()[0] <= 1
    assert not overlapping_texts(figure)
    assert "collapsed: nothing varies" in texts(figures.spectra({"collapsed": np.zeros(4)}))


def test_nothing_to_draw_is_refused():
    for draw in (figures.distributions, figures.spectra):
        with pytest.raises(KitError, match="expected at least one by name; got none"):
            draw({})
    with pytest.raises(KitError, match="expected at least one by name; got none"):
        figures.against_distance({}, {})
    with pytest.raises(KitError, match="expected one of each embedding; got none of frozen"):
        figures.against_distance({"frozen": PAIRS["frozen"]}, {})
