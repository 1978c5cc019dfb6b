"""The instant baseline as a run: made once, opened again, made anew when anything it was made of has changed."""

from __future__ import annotations

import numpy as np

from kitlib.data import readers
from kitlib.evaluation import metrics, runs
from kitlib.models import linear_probe


def test_the_baseline_is_a_run_that_is_made_once(home, small_sample, monkeypatch):
    data = readers.read(small_sample)
    run = linear_probe.logistic(data, "tiny", n_folds=3)
    assert run.name == f"{data.name}-logistic-tiny"
    assert run.metrics["oof"]["final"] == metrics.score_guesses(run.guesses("oof"), data).final
    assert set(run.guesses("test").sample_id) == set(data.sample_id("test"))
    assert runs.finished_on(data.checksum) == [run.name]

    monkeypatch.setattr(linear_probe.baselines, "logistic", None)  # not called again
    assert linear_probe.logistic(data, "tiny", n_folds=3).metrics == run.metrics


def test_spatial_folds_have_a_run_of_their_own_and_other_settings_replace_one(home, small_sample, monkeypatch):
    data = readers.read(small_sample)
    first = linear_probe.logistic(data, "tiny", n_folds=3)
    spatial = linear_probe.logistic(
        data, n_folds=3, folds_column="spatial"
    )  # tiny is the usual encoder of drawn places
    assert spatial.name == f"{first.name}-spatial" and spatial.settings["folds_column"] == "spatial"
    monkeypatch.setattr(linear_probe.baselines, "C", 0.5)
    again = linear_probe.logistic(data, "tiny", n_folds=3)
    assert again.name == first.name and again.settings["c"] == 0.5 and again.finished


def test_features_are_compared_by_direction_and_drawn_along_their_principal_plane():
    features = np.array([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    assert linear_probe.most_similar(features, np.array([0, 2]), k=2).tolist() == [[1, 2], [1, 0]]
    plane, shares = linear_probe.principal_plane(features * [1, 0.1])
    assert shares[0] > 0.99 and np.allclose(np.abs(plane[:, 0]), np.abs(features[:, 0]), atol=0.2)
