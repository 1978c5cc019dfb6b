"""Runs in a table, two of them compared pair by pair, and what has changed since one was made."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from data_helper import competition

from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import baselines, comparison, metrics, runs


@pytest.fixture
def places(home, tmp_path):
    return readers.read(competition(tmp_path / "us", n_train=24))


def made(places, name, oof, **settings):
    run = runs.start(
        name, {"family": "multiview", "data": "data/raw/us", "n_folds": 5} | settings, data={"places": places.checksum}
    )
    run.save_guesses("oof", oof)
    scores = metrics.score_guesses(oof, places).as_dict()
    run.finish({"oof": scores, "half_width": 0.01, "folds": {str(fold): {} for fold in range(5)}})
    return run


def right(places, rows):
    """Guesses that know the places in `rows`, and the commonest states of the others."""
    ids, idx = places.sample_id("train"), places.states["state_idx"].to_numpy()
    common = baselines.commonest(places, np.arange(len(ids)), ids)
    probs, points = common.state_probs.copy(), common.points.copy()
    probs[rows] = np.eye(len(idx))[places.state_position("train")[rows]]
    points[rows, 0] = places.points("train")[rows]
    return type(common)(ids, idx, probs, points, common.weights, common.answered)


def test_the_table_names_scores_and_what_differs(places):
    made(places, "first", right(places, np.arange(4)), seed=0)
    made(places, "second", right(places, np.arange(8)), seed=1)
    runs.start("half", {"family": "multiview", "n_folds": 5}, data={"places": places.checksum})
    (runs.open_run("half").dir / "params.json").write_text("[]")
    table = comparison.table().set_index("run")
    assert table.loc["second", "differs"] == "seed=1" and table.loc["second", "data"] == "us"
    assert table.loc["first", "score"] == pytest.approx(runs.open_run("first").metrics["oof"]["final"])
    assert "params.json" in table.loc["half", "differs"]
    text = comparison.as_text(comparison.table())
    assert "0.0100" in text and "5 of 5" in text


def test_a_gain_is_paired_and_has_an_interval(places):
    made(places, "first", right(places, np.arange(4)))
    made(places, "second", right(places, np.arange(16)), seed=1)
    both = comparison.compare("first", "second", places)
    assert both.gain == pytest.approx(both.score_b - both.score_a) and both.gain > both.half_width > 0
    assert both.states == "state right: both 10, only first 0, only second 8, neither 6"
    assert "second is better" in both.verdict and both.gains[:4].tolist() == [0] * 4
    assert both.settings.values.tolist() == [["seed", None, 1]]
    assert (both.by_state["gain"] * both.by_state["places"]).sum() / both.n == pytest.approx(both.gain)
    assert "within chance" in comparison.compare("first", "first", places).verdict
    made_elsewhere = runs.start("other", {"family": "multiview"}, data={"places": "0"})
    with pytest.raises(KitError, match="other: expected a run on"):
        comparison.compare("first", made_elsewhere.name, places)


def test_the_interval_covers_the_mean_and_grows_where_places_repeat():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=40), 3)
        group = np.repeat(np.arange(40), 3)
        half = metrics.half_width(values, group)
        inside += abs(values.mean()) < half
        assert half > 1.6 * metrics.half_width(values, np.arange(120))
    assert 0.9 < inside / 300 < 0.98
    assert np.isnan(metrics.half_width([1.0, 2.0], [0, 0]))


def test_the_parts_of_the_score_have_its_mean(places):
    guesses = right(places, np.arange(10))
    parts = metrics.place_scores(guesses, places)
    assert parts.mean() == pytest.approx(metrics.score_guesses(guesses, places).final)
    assert parts[:10] == pytest.approx(1.0)


def test_what_has_changed_since_a_run(places, monkeypatch):
    monkeypatch.setattr(runs, "git_commit", lambda: "abc")
    run = made(places, "first", right(places, np.arange(4)))
    assert comparison.changes_since(run, places) == []
    monkeypatch.setattr(runs, "git_commit", lambda: "def+")
    moved = pd.concat([places.table.assign(latitude=places.table["latitude"] + 0.1)])
    changes = comparison.changes_since(run, type(places)(places.name, places.folder, moved, places.states))
    assert changes[0] == "commit was abc, now def+" and "table" in changes[-1] and len(changes) == 3


def test_places_guesses_and_runs_are_short_and_escaped_in_a_notebook(places):
    run = made(places, "first", right(places, np.arange(4)), encoder="<b>")
    assert "0." in run._repr_html_() and "<td>&lt;b&gt;</td>" in run._repr_html_()
    assert "24 train" in places._repr_html_() and len(places._repr_html_()) < 1500
    assert "24 places (24 answered)" in run.guesses("oof")._repr_html_()
