"""The instant baseline as a run: made once, opened again, made anew when anything it was made of has changed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kitlib.data import readers
from kitlib.evaluation import metrics, runs
from kitlib.models import linear_probe


def test_the_baseline_is_a_run_that_is_made_once(home, small_sample, monkeypatch):
    data = readers.read(small_sample)
    run = linear_probe.logistic(data, "tiny", n_folds=3)
    assert re.fullmatch(rf"{data.name}-logistic-tiny-[0-9a-f]{{8}}", run.name)
    assert run.metrics["oof"]["final"] == metrics.score_guesses(run.guesses("oof"), data).final
    assert set(run.guesses("test").sample_id) == set(data.sample_id("test"))
    assert runs.finished_on(data.checksum) == [run.name]

    monkeypatch.setattr(linear_probe.baselines, "logistic", None)  # not called again
    assert linear_probe.logistic(data, "tiny", n_folds=3).metrics == run.metrics


@pytest.mark.parametrize("name", ["oof.npz", "test.npz", "metrics.json", "params.json"])
def test_a_damaged_baseline_is_made_anew(shared_home, world, name, caplog):
    run = linear_probe.logistic(world, "tiny", n_folds=3)
    whole = (run.dir / name).read_bytes()
    (run.dir / name).write_bytes(whole[:-20])
    again = linear_probe.logistic(world, "tiny", n_folds=3)
    assert again.name == run.name and "is made anew" in caplog.text
    assert name == "params.json" or (run.dir / name).read_bytes() == whole


def test_other_settings_have_a_run_of_their_own_and_leave_the_first_as_it_is(shared_home, world, monkeypatch):
    first = linear_probe.logistic(world, "tiny", n_folds=3)
    files = {path: path.read_bytes() for path in first.dir.iterdir()}
    spatial = linear_probe.logistic(world, n_folds=3, folds_column="spatial")  # tiny is the usual one of drawn places
    small = linear_probe.logistic(world, "tiny", 32, n_folds=3)
    monkeypatch.setattr(linear_probe.baselines, "C", 0.5)
    other = linear_probe.logistic(world, "tiny", n_folds=3)
    assert spatial.settings["folds_column"] == "spatial" and small.settings["image_size"] == 32
    assert other.settings["c"] == 0.5 and len({run.name for run in (first, spatial, small, other)}) == 4
    assert {path: path.read_bytes() for path in first.dir.iterdir()} == files


def test_features_are_compared_by_direction_and_drawn_along_their_principal_plane():
    features = np.array([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    assert linear_probe.most_similar(features, np.array([0, 2]), k=2).tolist() == [[1, 2], [1, 0]]
    plane, shares = linear_probe.principal_plane(features * [1, 0.1])
    assert shares[0] > 0.99 and np.allclose(np.abs(plane[:, 0]), np.abs(features[:, 0]), atol=0.2)


def test_each_encoder_of_a_name_has_a_baseline(world):
    runs = linear_probe.of_each(world, "tiny#stages+tiny", n_folds=3)
    assert [run.name for run in runs] == [linear_probe.logistic(world, "tiny", n_folds=3).name]
    assert linear_probe.single("") == [""]
