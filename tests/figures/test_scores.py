"""Figures of right and wrong: their numbers are the arrays' numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from figure_helper import NAMES, NOTE, POINTS, overlapping_texts, png, texts

from kitlib.evaluation import metrics
from kitlib.figures import scores

RNG = np.random.default_rng(0)


def test_confusion_rows_are_shares_of_the_states_that_occur_and_rows_without_places_stay_blank():
    a, b, c = NAMES[:3]
    figure = scores.confusion([a, a, b], [a, b, c], NAMES, POINTS, note=NOTE)
    shares = np.ma.filled(figure.axes[0].collections[0].get_array().reshape(3, 3), np.nan)
    assert sorted(shares[np.isfinite(shares)].tolist()) == [0, 0, 0, 0.5, 0.5, 1]
    assert np.isnan(shares).all(1).sum() == 1
    png(figure)


def test_score_table_puts_the_best_last_in_whole_kilometres():
    truth, points = [3, 4], [[0.0, 0.0], [0.0, 0.0]]
    good = metrics.score_arrays(truth, points, [[3], [4]], points)
    bad = metrics.score_arrays(truth, points, [[4], [3]], [[0.0, 1.0], [0.0, 1.0]])
    table = scores.score_table({"good": good, "bad": bad})
    assert table.index.tolist() == ["bad", "good"]
    assert table.loc["good", "final"] == 1
    assert table["mean km"].tolist() == [111, 0]
    assert table["places"].dtype == int and table.loc["good", "top-1"] == "100.0%"


def test_weights_over_folds_have_a_bar_for_all_and_a_dot_for_each_fold():
    each = np.array([[0.7, 0.3, 0.0], [0.5, 0.4, 0.1]])
    figure = scores.weights_over_folds(["a", "b", "c"], each, [0.6, 0.1, 0.3], note=NOTE)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]  # the heaviest first
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.3, 0.1]
    assert [dots.get_offsets()[:, 0].tolist() for dots in axes.collections] == [[0.7, 0.0, 0.3], [0.5, 0.1, 0.4]]
    png(figure)


def test_scores_grey_the_baselines_and_name_chance():
    table = pd.Series({"blend": 0.5, "commonest": 0.2})
    figure = scores.scores(table, chance=0.18, baselines=["commonest"], note=NOTE)
    assert "chance 0.180" in texts(figure)
    assert len({patch.get_facecolor() for patch in figure.axes[0].patches}) == 2
    png(figure)


def test_error_charts_draw_and_say_their_numbers():
    km = np.array([0.5, 20, 180, 600, 2000, 9000.0])
    figure = scores.cumulative_error({"mine": km, "theirs": km * 2}, note=NOTE)
    assert "mine (median 390 km)" in texts(figure)
    assert "50%" in texts(figure)  # three of six within 200 km
    assert figure.axes[0].get_xlim()[1] > 18_000  # on the other side of the globe
    png(figure)
    assert "2 places a bar" in texts(scores.by_nearest(km, km < 200, km, bins=3))
    png(scores.state_errors(NAMES, RNG.random(8), RNG.uniform(1, 900, 8), np.arange(1, 9), note=NOTE))
    png(scores.by_nearest(km[:1], [True], km[:1]))


def test_calibration_is_zero_for_an_honest_forecast_and_large_for_a_boaster():
    held = np.repeat(0.75, 100)
    both = scores.calibration({"honest": held, "a boaster": np.ones(100)}, np.arange(100) < 75, note=NOTE)
    assert "honest: calibration error 0.000" in texts(both) and "boaster: calibration error 0.250" in texts(both)
    assert both.axes[0].get_xlim()[1] > 1  # the last dot is whole
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in both.axes[1].patches if bar.get_height()]
    assert np.allclose(bars, [(0.705, 0.75), (0.95, 0.995)])  # side by side in their bins
    assert overlapping_texts(both) == []
    png(both)


def test_the_sure_and_far_are_counted_apart_from_the_unsure():
    sure, km = np.array([0.1, 0.2, 0.3, 0.8, 0.85, 0.9, 0.95, 0.2]), np.array([900, 10, 800, 0, 2000, 3, 750, 20.0])
    figure = scores.confidence(sure, km, km < 100, note=NOTE)
    for text in ("unsure, far: 2 (25%)", "sure, far: 2 (25%)", "unsure, near: 2 (25%)", "sure, near: 2 (25%)"):
        assert text in texts(figure)
    assert "state right (4)" in texts(figure) and overlapping_texts(figure) == []
    low, high = figure.axes[0].get_ylim()
    assert low < 1 and high > 2000
    png(figure)
    png(scores.confidence([0.5], [0.0], [True]))


def gallery_sizes() -> pd.DataFrame:
    rows = [("land", 100, 3000.4, 4700.0, 900.6, 80.0, 0.25, 0.9), ("at random", 100, 2900, 4600, 950, 90, 0.2, 0.85)]
    rows.append(("all", 800, 3700, 4900, 600, 20, 0.4, 1.0))
    told = ["geoscore", "possible_geoscore", "mean_km", "possible_mean_km", "within_200_km", "possible_within_200_km"]
    return pd.DataFrame(rows, columns=["chosen", "size", *told])


def test_galleries_of_some_sizes_are_drawn_and_told():
    table = scores.gallery_table(gallery_sizes())
    assert table.loc[("land", 100), ("measured", "Geoscore")] == 3000
    assert table.loc[("land", 100), ("measured", "mean km")] == 901
    assert table.loc[("all", 800), ("possible", "within 200 km")] == 1.0
    figure = scores.by_gallery_size(gallery_sizes(), title="galleries")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["land", "at random", "all"]
    assert left.get_ylabel() == "mean error (km)" and right.get_ylabel() == "Geoscore"
    assert {line.get_linestyle() for line in left.lines} >= {"-", "--"}


def test_accuracy_table_has_shares_and_the_best_last():
    table = scores.accuracy_table({"good": [0.5, 30.0, 100.0], "bad": [4000.0, 5000.0, 6000.0]})
    assert table.index.tolist() == ["bad", "good"]
    assert table.loc["good", ["mean km", "median km", "25 km", "200 km"]].tolist() == ["43.5", "30", "33.3%", "100.0%"]
