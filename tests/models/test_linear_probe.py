"""The instant baseline as a run: made once, opened again, made anew when anything it was made of has changed."""

from __future__ import annotations

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


def test_other_settings_make_the_baseline_anew(home, small_sample):
    data = readers.read(small_sample)
    first = linear_probe.logistic(data, "tiny", n_folds=3)
    again = linear_probe.logistic(data, "tiny", n_folds=3, folds_column="spatial")
    assert again.name == first.name
    assert again.settings["folds_column"] == "spatial"
    assert again.finished
