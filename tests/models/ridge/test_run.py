"""The ridge family: a run on the drawn sample, its guesses for new places, damaged pictures, its command."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.evaluation import baselines, guesses, metrics
from kitlib.models import multiview, ridge
from kitlib.models.ridge.run import Session

CONFIG = ridge.Config(encoder="tiny", places_per_cell=8)


@pytest.fixture(scope="module")
def run(world):
    return ridge.train(CONFIG, world, "ridge", n_folds=3)


def test_beats_the_commonest_states_and_guesses_every_place(run, world):
    oof, test = run.guesses("oof"), run.guesses("test")
    assert sorted(oof.sample_id) == sorted(world.sample_id("train"))
    assert len(test) == len(world.rows("test"))
    commonest = metrics.score_guesses(baselines.beside(run, world)["commonest"], world)
    assert run.metrics["oof"]["final"] > commonest.final + 0.02


def test_the_saved_model_gives_the_same_guesses_again(run, world):
    again = ridge.predict("ridge", world)
    np.testing.assert_allclose(again.state_probs, run.guesses("test").state_probs, atol=1e-6)
    np.testing.assert_allclose(again.point(), run.guesses("test").point(), atol=1e-3)


def test_the_refit_learns_test_places_that_the_folds_are_sure_of(world, caplog):
    caplog.set_level("INFO")
    tests = {}
    for pseudo in (0.0, 0.05, 1.0):
        config = dataclasses.replace(CONFIG, refit=True, pseudo=pseudo)
        run = ridge.train(config, world, f"pseudo-{pseudo:.2f}", n_folds=3)
        tests[pseudo] = guesses.Guesses.load(run.checkpoints / "fold_3" / "test.npz").state_probs
    assert "fold 3, the refit, learns 20 of 20 test places too" in caplog.text and "learns 0 of 20" in caplog.text
    np.testing.assert_array_equal(tests[0.0], tests[1.0])
    assert np.abs(tests[0.0] - tests[0.05]).max() > 1e-3


def test_crops_guess_beside_the_whole_by_the_same_model(run, world):
    cropped = ridge.train(dataclasses.replace(CONFIG, crops="centre, bottomless"), world, "crops", n_folds=3)
    test, session = cropped.guesses("test"), Session(run, world)
    parts = []
    for session.crop in ("", "centre", "bottomless"):
        parts.append(guesses.average([session.guess(fold, "test") for fold in range(3)]))
    np.testing.assert_allclose(test.state_probs, np.mean([p.state_probs for p in parts], axis=0), atol=1e-6)
    np.testing.assert_allclose(ridge.predict("crops", world).state_probs, test.state_probs, atol=1e-6)
    assert not np.allclose(parts[0].state_probs, parts[1].state_probs, atol=1e-3)


def test_crops_that_are_none_or_of_an_encoder_that_learns_are_refused(world):
    with pytest.raises(KitError, match="crops: expected some of centre, bottomless; got top"):
        dataclasses.replace(CONFIG, crops="centre,top")
    with pytest.raises(KitError, match="crops: expected '' where the encoder learns"):
        multiview.train(multiview.Config(encoder="tiny", crops="centre"), world, "refused", n_folds=3)


def test_stages_and_several_encoders_give_wider_features(run, world):
    wide = ridge.train(
        dataclasses.replace(CONFIG, encoder="tiny#stages+tiny"), world, "wide", n_folds=3, only_folds=[0]
    )
    assert wide.metrics["oof"]["final"] > 0.2
    from kitlib.vision import weights

    tensors, settings = weights.read(wide.checkpoints / "fold_0" / "ridge.safetensors")
    assert len(tensors["mean"]) == sum(settings["parts"]) == 2464 + 672
    assert wide.settings["encoder"] == "tiny#stages+tiny"
