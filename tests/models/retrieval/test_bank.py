"""Places of another data set in the gallery: they join, near-duplicates do not, and states keep their names."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.data.places import Places
from kitlib.data.sample import competition as sample
from kitlib.evaluation import fold_files, runs
from kitlib.models.retrieval import bank, voting
from kitlib.models.retrieval import run as retrieval
from kitlib.models.retrieval.run import Config
from kitlib.vision.inputs import Inputs

KNN = {"encoder": "tiny", "mirror": False}

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def other(tmp_path_factory, world) -> Places:
    """Twenty other drawn places, and a copy of three pictures of the first: of training, of test, of a place moved."""
    folder = sample.draw(tmp_path_factory.mktemp("other"), n_train=20, n_test=6, size=96, seed=7)
    places = readers.read(folder)
    for row, split in ((3, "train"), (5, "test")):
        for column in world.image_columns:
            source = world.folder / world.rows(split)[column].iloc[row]
            shutil.copy(source, places.folder / places.rows("train")[column].iloc[row])
    return readers.read(folder)


@pytest.fixture(scope="module")
def gallery(other) -> str:
    return f"places:{other.folder}"


def test_near_duplicates_of_training_and_test_places_are_found(world, other):
    twins = bank.near_duplicates(Inputs(world, "tiny"), Inputs(other, "tiny"))
    assert np.flatnonzero(twins).tolist() == [3, 5]


def test_places_next_to_a_training_place_are_near_duplicates_too(world, other, monkeypatch):
    monkeypatch.setattr(bank, "NEXT_KM", 300.0)
    near = geo.nearest(other.points("train"), world.points("train"))[0][:, 0] < 300
    twins = bank.near_duplicates(Inputs(world, "tiny"), Inputs(other, "tiny"))
    assert np.flatnonzero(twins).tolist() == sorted({*np.flatnonzero(near), 3, 5})


@pytest.mark.parametrize("method", ["knn", "metric", "gps"])
def test_they_join_the_training_places(world, other, gallery, method):
    options = {} if method == "knn" else {"method": method, "dim": 16, "epochs": 1, "batch": 16, "hidden": 16}
    config = Config(**KNN, **options, gallery=gallery, rerank=method == "knn")
    run = retrieval.train(config, world, f"joined-{method}", n_folds=3, only_folds=[1])
    entries, _ = voting.Entries.load(fold_files.folder(run, 1) / "gallery.npz")
    kept = np.delete(other.points("train"), [3, 5], axis=0)
    assert np.allclose(entries.points[-18:], kept) and len(entries.points) == 18 + 40
    assert run.guesses("oof").answered.all()
    shutil.copytree(run.dir, run.dir.with_name(f"alone-{method}"))
    assert len(retrieval.predict(f"alone-{method}", world)) == 20  # the guesses need the other data set no more


def test_states_go_by_name_else_by_the_places_around(world, other):
    names, states = world.states["state"].tolist(), bank.states_of(other, world, np.arange(60))
    own = other.rows("train")["state"]
    shared = own.isin(names).to_numpy()
    assert shared.any() and (states[shared].argmax(1) == [names.index(name) for name in own[shared]]).all()
    assert (states[shared].max(1) == 1).all() and np.allclose(states.sum(1), 1)
    renamed = Places(other.name, other.folder, other.table.assign(state="elsewhere"), other.states)
    around = bank.states_of(renamed, world, np.arange(60))
    far = geo.nearest(other.points("train"), world.points("train"))[0][:, 0] > bank.REACH_KM
    assert np.allclose(around.sum(1), ~far) and (around[~far].max(1) < 1).any()


def test_a_gallery_of_the_same_places_is_refused(world):
    config = Config(**KNN, gallery=f"places:{world.folder}")
    with pytest.raises(KitError, match=r"expected places of .* that are not in it; got none"):
        retrieval.train(config, world, "itself", n_folds=3, only_folds=[0])


@pytest.mark.parametrize("gallery", ["places:", "places:nowhere"])
def test_a_data_set_that_is_none_is_refused_before_a_run_begins(world, gallery):
    with pytest.raises(KitError, match=r"gallery: expected train|not found"):
        retrieval.train(Config(**KNN, gallery=gallery), world, "refused", n_folds=3)
    assert "refused" not in runs.list_runs()


def test_shared_settings_name_it_for_every_method():
    configs = Config.for_methods(["knn", "metric", "gps"], {"GALLERY": "places:us"})
    assert {config.bank for config in configs.values()} == {"us"}


@pytest.mark.slow
def test_a_fine_tuned_encoder_embeds_them_too(world, gallery):
    options = {"method": "metric", "dim": 16, "epochs": 1, "batch": 16, "finetune_epochs": 1, "finetune_rate": 1e-3}
    config = Config(**KNN, **options, finetune_batch=16, finetune_blocks=-1, gallery=gallery)
    run = retrieval.train(config, world, "tuned", n_folds=3, only_folds=[0])
    assert len(list((fold_files.folder(run, 0) / "embeddings").glob("*/features.npy"))) == 4  # both splits of both
    assert run.guesses("oof").answered.all()
