"""Figures: every one draws, and says its numbers and its note."""

from __future__ import annotations

import numpy as np
import pandas as pd
from figure_helper import DISTANCE, NAMES, NOTE, png, texts

from kitlib.figures import charts, style

RNG = np.random.default_rng(0)


def test_geographic_order_puts_neighbours_side_by_side():
    order = [NAMES[i] for i in charts.geographic_order(DISTANCE)]
    assert sorted(order) == NAMES
    assert abs(order.index("Texas") - order.index("Kansas")) == 1
    assert charts.geographic_order(DISTANCE[:2, :2]).tolist() == [0, 1]


def test_soft_labels_state_what_the_true_state_keeps():
    rows = {km: np.exp(-DISTANCE[4] / km) / np.exp(-DISTANCE[4] / km).sum() for km in (75, 300)}
    figure = charts.soft_labels(rows, NAMES, "Kansas", note=NOTE)
    assert f"300 km: {rows[300][4]:.0%} stays with Kansas" in texts(figure)
    assert NOTE in texts(figure)
    png(charts.true_mass([10, 75, 300], np.array([[1, 1], [0.9, 0.8], [0.5, 0.4]]), note=NOTE))


def test_charts_of_data_draw():
    counts = charts.counts(NAMES, {"train": np.arange(8), "test": np.ones(8)}, title="Places", note=NOTE)
    assert "train: 28 places, 0 to 7 each" in texts(counts) and "test: 8 places, 1 each" in texts(counts)
    assert [bar.get_height() for bar in counts.axes[0].patches] == [7, 6, 5, 4, 3, 2, 1, 0]
    png(counts)
    assert "rarer ones not drawn: 5" in texts(charts.counts(NAMES, {"train": np.arange(8)}, most=3))
    png(charts.distance_matrix(DISTANCE, NAMES, note=NOTE))
    assert "median 2" in texts(charts.histogram([1, 2, np.nan, 3], "km"))


def test_training_curves_share_a_panel_and_skip_missing_values():
    history = pd.DataFrame(
        {"train_loss": [3.0, 2.0, 1.0], "held_out_loss": [np.nan, np.nan, 1.5], "lr": [1e-3, 1e-3, 1e-4]}
    )
    figure = charts.training_curves(history, note=NOTE)
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == ["loss", "lr"]
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "held-out places"]
    png(figure)


def test_a_single_epoch_is_a_dot_at_its_number():
    figure = charts.training_curves(pd.DataFrame({"loss": [2.0]}, index=pd.Index([1], name="epoch")))
    figure.draw_without_rendering()
    assert figure.axes[0].get_xticks().tolist() == [1] and "a single epoch" in texts(figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 1.9 and high > 2.1


def test_the_last_digits_of_a_constant_are_no_curve():
    figure = charts.training_curves(pd.DataFrame({"mass": [0.81766791, 0.81766796, 0.81766793]}))
    low, high = figure.axes[0].get_ylim()
    assert low < 0.75
    assert high > 0.89


def test_fold_scores_name_mean_and_spread():
    figure = charts.fold_scores(pd.DataFrame({"final": [0.4, 0.6]}), note=NOTE)
    assert "0.5 ± 0.14" in texts(figure)
    alone = charts.fold_scores(pd.DataFrame({"final": [0.4]}))
    assert "±" not in texts(alone) and "one fold" in texts(alone)
    png(alone)


def test_picture_rows_show_every_picture_once():
    pictures = RNG.integers(0, 255, (4, 3, 16, 16, 3), dtype=np.uint8)
    captions = ["one", "two", "three", "four"]
    figure = charts.picture_rows(pictures, ["a", "b", "c"], captions, together=2, title="Pairs", note=NOTE)
    assert len(figure.axes) == 12
    np.testing.assert_array_equal(figure.axes[7].images[0].get_array(), pictures[2, 1])
    assert all(word in texts(figure) for word in [*captions, "a", "b", "c", "Pairs", NOTE])
    assert len(figure.artists) == 1
    png(charts.picture_rows(pictures[:1]))


def test_save_is_atomic_and_settings_of_the_caller_stay(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    path = tmp_path / "figures/km.png"
    figure = charts.histogram([1, 2, 3], "km")
    assert style.save(figure, path) is figure
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["km.png"]
    assert dict(matplotlib.rcParams) == before


def test_neighbours_stand_beside_their_place_with_state_and_distance():
    pictures = RNG.integers(0, 255, (2, 3, 8, 8, 3), np.uint8)
    states = [["Ohio", "Iowa", "Utah"], ["Maine", "Ohio", "Iowa"]]
    figure = charts.neighbour_rows(
        pictures, states, [[10.0, 2000.0], [1.0, 3.0]], first="held out", view="south", note=NOTE
    )
    for text in ("Iowa\n10 km away", "Utah\n2,000 km away", "held out", "most similar", "the south view", NOTE):
        assert text in texts(figure)
    caption = next(text for text in figure.texts if text.get_text().startswith("Utah"))
    left, right = figure.axes[2].get_position().intervalx
    assert left <= caption.get_position()[0] < right  # below its own picture
    assert caption.get_position()[1] < figure.axes[2].get_position().y0
    png(figure)


def test_a_wall_has_a_caption_below_each_picture_and_no_empty_ones():
    figure = charts.picture_wall(RNG.integers(0, 255, (5, 8, 8, 3), np.uint8), NAMES[:5], columns=3, title="Wall")
    assert len(figure.axes) == 5 and all(name in texts(figure) for name in NAMES[:5])
    png(figure)


def test_a_wall_shows_the_views_of_a_place_as_one_square():
    views = np.stack([np.full((2, 3, 5, 3), 10 * (view + 1), np.uint8) for view in range(3)], axis=1)
    for axes in charts.picture_wall(views, NAMES[:2]).axes:
        square = np.asarray(axes.images[0].get_array())
        assert square.shape == (6, 10, 3)
        assert [square[r, c, 0] for r, c in ((0, 0), (2, 9), (3, 0), (5, 9))] == [10, 20, 30, 0]
