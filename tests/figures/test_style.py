"""Texts of the data are drawn as the texts that they are, in every figure of the kit."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from figure_helper import NOTE
from hostile_helper import HOSTILE
from matplotlib.text import Text

from kitlib import geo
from kitlib.figures import charts, maps, place, scores, states, style
from kitlib.models.regional import figures as regional
from kitlib.models.retrieval import figures as retrieval
from kitlib.models.retrieval import similarity
from kitlib.models.vlm import figures as vlm

N = len(HOSTILE)
RNG = np.random.default_rng(0)
POINTS = np.column_stack([RNG.uniform(-60, 70, N), RNG.uniform(-180, 180, N)])
KM = RNG.uniform(10, 900, N)
DISTANCE = geo.distance_matrix_km(POINTS)
PICTURES = np.zeros((N, 2, 8, 8, 3), np.uint8)
FEATURES = RNG.normal(size=(40, 8))
PAIRS = similarity.pairs(RNG.uniform(-40, 40, (40, 2)), FEATURES)
SUMMARY = similarity.summary(RNG.uniform(-40, 40, (40, 2)), FEATURES, 100)


def frame(place: str) -> pd.DataFrame:
    row = {"phase": "train", "sample_id": place, "truth": [48.0, 11.0], "point": [47.0, 12.0], "km": 130.0}
    return pd.DataFrame([row | {"step": step, "tau_km": 200.0, "reward": 0.5} for step in range(3)])


def opinion(texts: list[str]) -> place.Opinion:
    return place.Opinion(texts[:5], np.full(5, 0.2), POINTS, np.full(N, 1 / N), POINTS[0])


def galleries(texts: list[str]) -> pd.DataFrame:
    numbers = ("mean_km", "possible_mean_km", "geoscore", "possible_geoscore")
    rows = [{"chosen": name, "size": 10} for name in texts] + [{"chosen": "all", "size": 20}]
    return pd.DataFrame(rows).assign(**dict.fromkeys(numbers, 500.0))


# Every figure with texts of the data: made from as many of them as it is meant for.
FIGURES: dict[Callable, Callable[..., style.Figure]] = {
    maps.gains: lambda texts, **words: maps.gains(POINTS, KM - KM.mean(), *texts[:2], **words),
    charts.counts: lambda texts, **words: charts.counts(texts, {texts[0]: np.ones(len(texts))}, **words),
    charts.distance_matrix: lambda texts, **words: charts.distance_matrix(DISTANCE, texts, **words),
    charts.soft_labels: lambda texts, **words: charts.soft_labels({75: np.ones(N), 9: KM}, texts, texts[0], N, **words),
    charts.training_curves: lambda texts, **words: charts.training_curves(
        pd.DataFrame(np.ones((3, 6)), columns=texts[:6]), **words
    ),
    charts.fold_scores: lambda texts, **words: charts.fold_scores(
        pd.DataFrame({"final": KM}, index=[text[:9] for text in texts]), **words
    ),
    charts.picture_rows: lambda texts, **words: charts.picture_rows(PICTURES, texts[:2], texts, **words),
    charts.neighbour_rows: lambda texts, **words: charts.neighbour_rows(
        PICTURES, np.column_stack([texts, texts]), KM[:, None], texts[0], texts[0], **words
    ),
    charts.picture_wall: lambda texts, **words: charts.picture_wall(PICTURES[:, 0], texts, **words),
    states.places: lambda texts, **words: states.places(POINTS, texts, **words),
    place.place: lambda texts, **words: place.place(
        PICTURES[0],
        texts[:2],
        dict.fromkeys(texts[:2], opinion(texts)),
        POINTS[0],
        texts[0],
        PICTURES[0],
        texts[:2],
        **words,
    ),
    place.likelihood: lambda texts, **words: place.likelihood(
        np.stack([POINTS, POINTS]), np.full((2, N), 1 / N), POINTS[:2], POINTS[:2], texts[:2], **words
    ),
    place.decisive: lambda texts, **words: place.decisive(PICTURES[0], texts[:2], np.ones((2, 3, 3)), **words),
    maps.places: lambda texts, **words: maps.places(POINTS[:8], texts[:8], **words),
    maps.confusions: lambda texts, **words: maps.confusions(texts, texts[1:] + texts[:1], texts, POINTS, **words),
    maps.values: lambda texts, **words: maps.values(texts, POINTS, KM, "km", **words),
    maps.embedding: lambda texts, **words: maps.embedding(POINTS, POINTS, texts[:2], **words),
    scores.scores: lambda texts, **words: scores.scores(pd.Series(KM, index=texts), **words),
    scores.calibration: lambda texts, **words: scores.calibration(
        dict.fromkeys(texts[:2], KM / 900), KM < 300, **words
    ),
    scores.cumulative_error: lambda texts, **words: scores.cumulative_error(dict.fromkeys(texts[:6], KM), **words),
    scores.by_gallery_size: lambda texts, **words: scores.by_gallery_size(galleries(texts[:4]), **words),
    scores.state_errors: lambda texts, **words: scores.state_errors(texts, KM / 900, KM, np.ones(N, int), **words),
    scores.confusion: lambda texts, **words: scores.confusion(texts, texts[::-1], texts, POINTS, **words),
    retrieval.against_distance: lambda texts, **words: retrieval.against_distance(
        dict.fromkeys(texts[:3], PAIRS), dict.fromkeys(texts[:3], SUMMARY), **words
    ),
    retrieval.distributions: lambda texts, **words: retrieval.distributions(dict.fromkeys(texts[:3], PAIRS), **words),
    retrieval.spectra: lambda texts, **words: retrieval.spectra(dict.fromkeys(texts[:6], KM), **words),
    scores.weights_over_folds: lambda texts, **words: scores.weights_over_folds(texts, np.ones((5, N)), KM, **words),
    regional.dropped: lambda texts, **words: regional.dropped(POINTS, texts, **words),
    regional.region_errors: lambda texts, **words: regional.region_errors(
        dict.fromkeys(texts, KM.reshape(-1, 1)[:4] * [1, 2]), dict.fromkeys(texts, np.ones((4, 2))), texts, N, **words
    ),
    regional.against_median: lambda texts, **words: regional.against_median(texts, KM, KM[::-1], np.ones(N), **words),
    vlm.learning: lambda texts, **words: vlm.learning(frame(texts[0]), **words),
    vlm.rewards_by_distance: lambda texts, **words: vlm.rewards_by_distance(dict.fromkeys(texts[:6], 200.0), **words),
}
NUMBERS_ONLY = {
    charts.true_mass, charts.histogram, maps.density, maps.cells, maps.errors, maps.differences, scores.by_nearest,
    scores.confidence, regional.neighbour_curve,
}  # fmt: skip


def test_the_walk_covers_every_figure():
    modules = (charts, maps, place, scores, states, regional, retrieval, vlm)
    figures = {
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation == "Figure"
    }
    assert figures == FIGURES.keys() | NUMBERS_ONLY


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: f"{make.__module__.split('.')[-2]}-{make.__name__}")
@pytest.mark.filterwarnings("ignore:Glyph")
def test_texts_of_data_are_drawn_as_they_are(make):
    for start in (0, 7):  # the first texts are in every figure
        texts = HOSTILE[start:] + HOSTILE[:start]
        figure = FIGURES[make](texts, title=f"{texts[0]} of a title", note=f"{texts[0]} · {NOTE}")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*onstrained_layout.*")
            figure.draw_without_rendering()
        shown = figure.findobj(Text)
        assert not any(text.get_parse_math() or text.get_usetex() for text in shown if "$" in text.get_text())
        words = " ".join(" ".join(text.get_text() for text in shown).split())
        assert style.plain(texts[0], 12)[:7] in words
        if make in (scores.state_errors, scores.confusion, charts.counts, charts.picture_rows):
            assert all(" ".join(style.plain(text, 24)[:14].split()) in words for text in texts)


def test_a_long_text_keeps_both_ends_and_no_text_breaks_its_line():
    assert [len(style.plain(text, 40)) <= 40 for text in HOSTILE] == [True] * N
    assert style.plain("L" * 150 + "M" * 150, 12) == "LLLLLLL…MMMM"
    assert style.plain("a\u2028b\x00\u202ec") == "a b c" and style.plain("$x$ {{7*7}}") == "$x$ {{7*7}}"
    assert style.plain("_x").strip("\u200b") == "_x"
