"""The retrieval family: three methods out of fold, what may not meet, galleries, resume, refusals."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

import geoclip_reference

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data import folds, readers
from kitlib.evaluation import fold_files, metrics, runs
from kitlib.models.retrieval import analysis, embedders, geoclip, search, voting
from kitlib.models.retrieval import run as retrieval
from kitlib.models.retrieval.config import METHODS
from kitlib.models.retrieval.run import Config, Session
from kitlib.vision import weights

KNN = Config(encoder="tiny", mirror=False)
METRIC = dataclasses.replace(KNN, method="metric", dim=16, epochs=3, batch=16, mirror=True)
GPS = dataclasses.replace(KNN, method="gps", dim=16, hidden=16, epochs=2, batch=16, gallery="grid:200")

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def knn(world):
    return retrieval.train(KNN, world, "knn", n_folds=3)


def check(run, world):
    oof, test = run.guesses("oof"), run.guesses("test")
    assert sorted(oof.sample_id) == sorted(world.sample_id("train"))
    assert sorted(test.sample_id) == sorted(world.sample_id("test"))
    assert oof.answered.all() and (oof.state_probs > 0).all()
    assert run.metrics["oof"] == metrics.score_guesses(oof, world).as_dict()
    assert run.metrics["accuracy"]["mean_km"] == pytest.approx(run.metrics["oof"]["mean_km"])


def test_knn_guesses_every_place_out_of_fold_and_the_test(knn, world):
    check(knn, world)
    again = retrieval.predict("knn", world)
    assert np.array_equal(again.state_probs, knn.guesses("test").state_probs)
    assert set(analysis.choices(knn)["fold"]) == {0, 1, 2}


def test_a_place_meets_neither_its_fold_nor_its_near_duplicates(knn, world):
    table = folds.load_or_make(world, n_folds=3).set_index("sample_id")
    points = pd.DataFrame(world.points("train"), index=world.sample_id("train"))
    oof = knn.guesses("oof")
    for row, name in enumerate(oof.sample_id):
        own = points[table.loc[points.index, "stratified"].to_numpy() == table.loc[name, "stratified"]].to_numpy()
        assert geo.distance_matrix_km(own, oof.points[row][oof.weights[row] > 0]).min() > 0.001


def test_k_and_temperature_are_chosen_without_the_held_out_fold(knn, world):
    session = Session(knn, world)
    builder = session.builder(1, session.features["train"])
    table = folds.load_or_make(world, n_folds=3)
    of_fold, group = table["stratified"].to_numpy(), table["group"].to_numpy()
    assert np.array_equal(builder.rows, builder.calibration_rows)
    assert not set(builder.rows) & set(session.held_out_rows(1))
    assert [groups.tolist() for groups in builder.exclusion_groups] == [group.tolist(), of_fold.tolist()]
    chosen = builder.build(embedders.load(fold_files.folder(knn, 1), "knn", "mean"))[0].vote
    assert chosen == session.retriever(1).vote


def test_a_trained_embedder_leaves_whole_groups_for_calibration(world):
    run = retrieval.train(METRIC, world, "metric", n_folds=3, only_folds=[0], max_hours=1e-9)
    session = Session(run, world)
    builder = session.builder(0, session.features["train"])
    group = folds.load_or_make(world, n_folds=3)["group"].to_numpy()
    trained_on = np.setdiff1d(builder.rows, builder.calibration_rows)
    assert builder.embedder_is_trained and len(builder.calibration_rows) == round(0.2 * len(builder.rows))
    assert not set(group[trained_on]) & set(group[builder.calibration_rows])
    assert not set(builder.rows) & set(session.held_out_rows(0))


def test_candidates_are_looked_at_again(world):
    run = retrieval.train(dataclasses.replace(KNN, rerank=True), world, "reranked", n_folds=3)
    check(run, world)
    again = retrieval.predict("reranked", world)
    assert np.array_equal(again.state_probs, run.guesses("test").state_probs)


@pytest.mark.parametrize("by", ["heading", "rotation"])
def test_views_are_compared_in_other_ways(world, by):
    check(retrieval.train(dataclasses.replace(KNN, by=by), world, by, n_folds=3), world)


def test_rotation_does_not_mind_where_the_camera_points():
    torch.manual_seed(0)
    features = torch.randn(10, 1, 4, 6)
    turned = features.roll(1, dims=2)
    frozen = embedders.Frozen.fit(features, "rotation")
    entries = frozen.entries(features, np.zeros((10, 2)))
    similarity, index = search.search(frozen.queries(turned), entries, 1)
    assert index[:, 0].tolist() == list(range(10)) and np.allclose(similarity, 1, atol=1e-5)


def test_metric_learns_and_goes_on_where_it_was_cut_short(world):
    run = retrieval.train(METRIC, world, "metric", n_folds=3, max_hours=1e-9)
    assert not run.finished
    run = retrieval.train(METRIC, world, "metric", n_folds=3)
    check(run, world)
    whole = retrieval.train(METRIC, world, "whole", n_folds=3, only_folds=[0])
    again, first = whole.guesses("oof"), run.guesses("oof").at(whole.guesses("oof").sample_id)
    assert np.allclose(again.state_probs, first.state_probs, atol=1e-6)
    before = [(fold_files.folder(run, fold) / "gallery.npz").stat().st_mtime_ns for fold in range(3)]
    (run.dir / "metrics.json").unlink()
    retrieval.train(METRIC, world, "metric", n_folds=3)
    assert before == [(fold_files.folder(run, fold) / "gallery.npz").stat().st_mtime_ns for fold in range(3)]


def test_the_refit_trains_on_all_places_and_votes_as_the_folds_have_chosen(world):
    run = retrieval.train(dataclasses.replace(METRIC, refit=True, epochs=1), world, "refit", n_folds=3)
    scores, session = retrieval.choices(run), retrieval.Session(run, world)
    mean = scores.groupby(["k", "temperature"])["final"].mean()
    vote = session.retriever(3).vote
    assert set(scores["fold"]) == {0, 1, 2} and mean[vote.k, vote.temperature] == pytest.approx(mean.max())
    rows = [storage.read_json(session.folder(fold) / "metric/fit.json")["settings"]["rows"] for fold in (0, 3)]
    assert len(session.retriever(3).entries.points) == 60 and rows[0] != rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", [METRIC, GPS], ids=["metric", "gps"])
def test_the_encoder_learns_too_and_its_features_are_kept(world, config):
    tuned = dataclasses.replace(config, finetune_epochs=1, finetune_blocks=-1, finetune_batch=16, finetune_rate=1e-3)
    run = retrieval.train(tuned, world, f"tuned-{config.method}", n_folds=3, only_folds=[0])
    session = Session(run, world)
    plain, own = session.features["train"].float(), session.fold_features(0)["train"].float()
    assert (plain.shape[1], own.shape[1]) == (1, 1 + tuned.mirror)  # mirrored ones of the encoder that has learned
    assert not torch.allclose(plain[:, 0], own[:, 0], atol=1e-2)
    again = session.guess(0, "train", session.held_out_rows(0))
    assert np.array_equal(again.state_probs, run.guesses("oof").at(again.sample_id).state_probs)
    assert set(fold_files.history(run)["phase"]) == {config.method, "finetune"}
    assert (run.guesses("test").state_probs > 0).all()


@pytest.mark.slow
def test_lora_on_a_clip_tower_goes_on_and_predicts(world, clip):
    config = dataclasses.replace(METRIC, encoder=clip, finetune_epochs=1, lora_rank=2, finetune_batch=16)
    assert not retrieval.train(config, world, "clip", n_folds=3, only_folds=[1], max_hours=1e-9).finished
    run = retrieval.train(config, world, "clip", n_folds=3, only_folds=[1])
    learned = weights.read(fold_files.folder(run, 1) / "encoder.safetensors")[0]
    assert learned and all("_proj" in name for name in learned)
    again = retrieval.predict("clip", world)
    assert np.array_equal(again.state_probs, run.guesses("test").state_probs)


@pytest.mark.slow
def test_gps_starts_from_published_weights(world, tmp_path):
    file = tmp_path / "location_encoder_weights.pth"
    torch.save(geoclip_reference.weights(), file)  # of the published sizes and names, drawn
    config = dataclasses.replace(GPS, geoclip=str(file), gallery="train", epochs=1, rate=1e-6)
    run = retrieval.train(config, world, "geoclip", n_folds=3, only_folds=[0])
    ours = Session(run, world).retriever(0).embedder.match.location
    points = torch.from_numpy(world.points("train")[:5])
    assert torch.allclose(ours(points), geoclip.load_geoclip(file)(points), atol=0.05)
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(KitError, match=r"other\.pth"):
        other = dataclasses.replace(config, geoclip=str(tmp_path / "other.pth"))
        retrieval.train(other, world, "refused", n_folds=3)
    assert "refused" not in runs.list_runs()


@pytest.mark.slow
def test_two_processes_train_a_fold(world):
    run = retrieval.train(METRIC, world, "two", n_folds=3, only_folds=[0], devices=2)
    assert run.finished and run.guesses("oof").answered.all()


def test_lora_needs_an_encoder_with_attention(world):
    config = dataclasses.replace(METRIC, finetune_epochs=1, lora_rank=2)
    with pytest.raises(KitError, match=r"lora_rank 2: expected an hf: encoder .*got 'tiny'"):
        retrieval.train(config, world, "lora", n_folds=3, only_folds=[0])


def test_held_out_places_before_and_after(world, knn):
    run = retrieval.train(METRIC, world, "metric", n_folds=3)
    rows, embeddings = analysis.before_and_after(run, world, 2)
    assert sorted(world.sample_id("train")[rows]) == sorted(Session(run, world).guess(2, "train", rows).sample_id)
    assert list(embeddings) == ["frozen", "metric"] and {len(x) for x in embeddings.values()} == {len(rows)}
    assert list(analysis.before_and_after(knn, world, 2)[1]) == ["frozen"]
    queries, matches = analysis.most_alike(run, world, 2, n=3, k=4)
    assert set(queries) <= set(rows) and matches.shape == (3, 4) and not set(matches.ravel()) & set(rows)


def test_galleries_of_some_sizes(world, knn):
    table = analysis.by_gallery_size(knn, world, 0, [5, 20])
    assert table["size"].tolist()[:2] == [5, 20] and (table["mean_km"] >= table["possible_mean_km"]).all()


def test_gps_guesses_points_of_the_grid(world):
    run = retrieval.train(GPS, world, "gps", n_folds=3)
    check(run, world)
    grid, oof = GPS.points(), run.guesses("oof")
    assert geo.nearest(oof.points.reshape(-1, 2), grid)[0].max() < 1e-3


def test_gps_takes_a_file_or_training_places(world, tmp_path):
    table = pd.DataFrame({"lat": [40.0, 35.0, 45.0], "lng": [-100.0, -90.0, -110.0]})
    table.to_csv(tmp_path / "gallery.csv", index=False)
    config = dataclasses.replace(GPS, gallery=str(tmp_path / "gallery.csv"))
    run = retrieval.train(config, world, "file", n_folds=3, only_folds=[0])
    assert run.guesses("oof").weights.shape[1] == 3
    config = dataclasses.replace(GPS, gallery="train", gallery_size=20)
    run = retrieval.train(config, world, "budget", n_folds=3, only_folds=[0])
    entries, _ = voting.Entries.load(fold_files.folder(run, 0) / "gallery.npz")
    assert len(entries.points) == 20 and geo.nearest(entries.points, world.points("train"))[0].max() < 1e-3


def test_places_without_a_picture_are_not_answered(small_sample, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(small_sample, folder)
    world = readers.read(folder)
    broken = world.rows("train").iloc[3]
    for column in world.image_columns:
        (world.folder / broken[column]).write_bytes(b"no picture")
    run = retrieval.train(KNN, world, "broken", n_folds=3)
    oof = run.guesses("oof")
    assert oof.sample_id[~oof.answered].tolist() == [broken["sample_id"]]
    assert run.metrics["unanswered"] == 1 and run.metrics["oof"]["n"] == 60


def test_a_folder_with_metadata_ends_with_metrics_too(world, tmp_path):
    rows = world.rows("train")
    table = rows[["latitude", "longitude", "state"]].assign(filename=rows[world.image_columns[0]], country="US")
    for name in table["filename"]:
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.folder / name, tmp_path / "own" / name)
    table.to_csv(tmp_path / "own/metadata.csv", index=False)
    own = readers.read(tmp_path / "own", region_column="state")
    run = retrieval.train(KNN, own, "own", n_folds=3)
    assert run.metrics["oof"]["n"] == 60 and run.metrics["accuracy"]["n"] == 60


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "magic"}, "expected one of knn, metric, gps"),
        ({"by": "smell"}, "expected one of mean, heading, rotation"),
        ({"method": "metric", "by": "heading"}, "expected mean with method"),
        ({"gallery": "grid:50"}, "expected train or places:DATA with method"),
        ({"sigmas": "2,x"}, "expected numbers above 0"),
        ({"smoothing": 0.0}, "more than 0"),
        ({"finetune_epochs": 1}, "expected 0 with method"),
        ({"method": "metric", "geoclip": "a.pth"}, "it is for gps"),
        ({"method": "metric", "lora_rank": 4}, "expected 0 with finetune_epochs 0"),
        ({"method": "gps", "dropout": 1.0}, "dropout: expected below 1"),
    ],
)
def test_config_refuses(changed, message):
    with pytest.raises(KitError, match=message):
        Config(**changed)


def test_a_method_takes_what_it_reads_of_shared_settings():
    cell = {"ENCODER": "tiny", "GALLERY": "grid:50", "GALLERY_SIZE": 10, "EPOCHS": 5, "METHOD": "metric"}
    made = Config.for_methods(METHODS, cell, "{by: heading, loss: both}")
    assert made["knn"] == Config(encoder="tiny", by="heading", gallery_size=10)
    assert made["metric"] == Config(encoder="tiny", method="metric", gallery_size=10, epochs=5, loss="both")
    assert made["gps"] == Config(encoder="tiny", method="gps", gallery="grid:50", epochs=5)
    assert Config.for_methods(["gps"], {}, "", "sample")["gps"] == Config(
        encoder="tiny", method="gps", dim=256, hidden=128, epochs=20, rate=4e-3, mirror=True
    )
    with pytest.raises(KitError, match="unknown setting rates"):
        Config.for_methods(["gps"], {}, "{rates: 1}")
    with pytest.raises(
        KitError, match="by: expected the default, metric, gps do not read it"
    ):  # or it would be ignored in silence
        Config.for_methods(["metric", "gps"], {}, "{by: heading}")


@pytest.mark.parametrize("gallery", ["grid:fine", "world:1", "missing.csv", "empty.csv", "far.csv"])
def test_a_gallery_that_is_none_is_refused_before_a_run_begins(world, tmp_path, monkeypatch, gallery):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("lat,lon\n")
    (tmp_path / "far.csv").write_text("lat,lon\n95,10\n")
    with pytest.raises(KitError):
        retrieval.train(dataclasses.replace(GPS, gallery=gallery), world, "refused", n_folds=3)
    assert "refused" not in runs.list_runs()


def test_features_of_another_encoder_are_refused():
    frozen = embedders.Frozen.fit(torch.randn(10, 1, 4, 6), "mean")
    with pytest.raises(KitError, match=r"expected shape \(N, M, V, 6\).* from the same encoder; got \(2, 1, 4, 7\)"):
        frozen.queries(torch.randn(2, 1, 4, 7))
