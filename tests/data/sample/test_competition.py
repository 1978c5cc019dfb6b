"""The sample competition: the competition's files to the byte, a world that repeats, and a folder never half-drawn."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simplejpeg
from data_helper import SHARED, competition

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.data.readers import VIEWS
from kitlib.data.sample import competition as sample
from kitlib.data.sample import scenery
from kitlib.geo import outlines

REAL = SHARED / "competition"
small = partial(sample.draw, n_train=6, n_test=3, size=32)


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("the real competition's tables (shared/competition) are not at hand")
    return REAL


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_tables_are_the_real_ones_to_the_byte(small_sample, real):
    folder = small_sample / "kaggle_dataset"
    assert (folder / "state_mapping.csv").read_bytes() == (real / "state_mapping.csv").read_bytes()
    template = (folder / "sample_submission.csv").read_text().splitlines()
    assert template == (real / "sample_submission.csv").read_text().splitlines()[: len(template)]
    ours, theirs = (
        (f).read_text().splitlines() for f in (folder / "train_ground_truth.csv", real / "train_head_5rows.csv")
    )
    assert ours[0] == theirs[0]
    row = re.compile(r"\d+,(img_\d{6}_(north|east|south|west)\.jpg,){4}[A-Z][A-Za-z ]+,\d+,\d+\.\d{6},-\d+\.\d{6}")
    assert all(row.fullmatch(line) for line in ours[1:] + theirs[1:])
    assert [line.split(",")[:5] for line in ours[1:6]] == [line.split(",")[:5] for line in theirs[1:6]]


def test_rows_agree_with_each_other_and_with_the_map(small_sample):
    folder = small_sample / "kaggle_dataset"
    train, mapping = pd.read_csv(folder / "train_ground_truth.csv"), pd.read_csv(folder / "state_mapping.csv")
    truth, template = pd.read_csv(small_sample / "test_truth.csv"), pd.read_csv(folder / "sample_submission.csv")
    assert (len(train), len(truth), len(template), len(mapping)) == (60, 20, 20, 33)
    assert truth.columns.tolist() == ["sample_id", "state", "state_idx", "latitude", "longitude"]
    assert truth["sample_id"].equals(template["sample_id"])
    for table in (train, truth):
        assert table["sample_id"].tolist() == list(range(len(table)))
        assert (table["state"].map(mapping.set_index("state")["state_idx"]) == table["state_idx"]).all()
        assert (outlines.state_of(table[["latitude", "longitude"]].to_numpy()) == table["state"]).all()
        assert table["state"].value_counts().max() <= np.ceil(len(table) / 33)
    assert not train["state_idx"].is_monotonic_increasing


def test_pictures(small_sample):
    folder = small_sample / "kaggle_dataset"
    for split, n in (("train", 60), ("test", 20)):
        names = {f.name for f in (folder / f"{split}_images").iterdir()}
        assert names == {f"img_{i:06d}_{view}.jpg" for i in range(n) for view in VIEWS}
    seen = [
        (folder / f"{split}_images/img_000000_{view}.jpg").read_bytes() for split in ("train", "test") for view in VIEWS
    ]
    assert len(set(seen)) == 8
    pictures = [simplejpeg.decode_jpeg(data) for data in seen]
    assert all(picture.shape == (96, 96, 3) and picture.std() > 15 for picture in pictures)


def test_every_picture_says_that_it_is_drawn():
    views = np.full((4, 256, 256, 3), 100, np.uint8)
    labelled = sample._label(views.copy())
    assert (labelled[:, :236] == 100).all()
    strip = labelled[:, 236:]
    assert (strip[0] == strip[3]).all() and strip.max() > 180 and (strip == 80).mean() > 0.5
    assert "not photographs" in sample.DRAWN and "not photographs" in sample.README


def test_the_same_settings_draw_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("KITLIB_WORKERS", "1")
    alone = files(small(tmp_path / "alone"))
    monkeypatch.setenv("KITLIB_WORKERS", "3")
    assert files(small(tmp_path / "together")) == alone
    other = files(small(tmp_path / "other", seed=1))
    same = {name for name in alone if other[name] == alone[name]}
    assert same == {"README.txt", "kaggle_dataset/sample_submission.csv", "kaggle_dataset/state_mapping.csv"}


def test_a_drawn_folder_is_left_alone_and_other_settings_replace_it(tmp_path):
    folder = small(tmp_path / "s")
    written = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert small(tmp_path / "s") == folder
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == written
    assert small(folder, n_train=4) == folder
    assert len(list((folder / "kaggle_dataset/train_images").iterdir())) == 16
    assert json.loads((folder / "sample.json").read_text())["n_train"] == 4
    assert [f.name for f in tmp_path.iterdir()] == ["s"]


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("mine", "file"):
        with pytest.raises(KitError, match="something other than a drawn sample"):
            small(tmp_path / name)
    assert (tmp_path / "mine/thesis.txt").read_text() == "dear"


@pytest.mark.parametrize(
    "settings", [{"n_train": 0}, {"n_test": 0}, {"seed": -1}, {"size": 30}, {"size": 33}, {"size": 1024}]
)
def test_senseless_settings_are_refused(tmp_path, settings):
    with pytest.raises(KitError, match="expected"):
        small(tmp_path / "s", **settings)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    kept = files(small(tmp_path / "old"))

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenery, "paint", fail)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / name, n_train=40)
    assert [f.name for f in tmp_path.iterdir()] == ["old"]
    assert files(tmp_path / "old") == kept


def test_a_kill_leaves_no_half_drawn_folder(tmp_path):
    code = f"from kitlib.data.sample import competition as sample; sample.draw({str(tmp_path / 's')!r}, n_train=5000)"
    drawing = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".s-drawing-*/new/kaggle_dataset/train_images/*")):
        assert drawing.poll() is None
        time.sleep(0.05)
    drawing.send_signal(signal.SIGKILL)
    drawing.wait()
    assert not (tmp_path / "s").exists()
    left = next(tmp_path.glob(".s-drawing-*"))
    os.utime(left, (0, 0))
    small(tmp_path / "s")
    assert not left.exists()


def test_ensure_draws_the_sample_once(home, monkeypatch):
    monkeypatch.setattr(sample, "draw", small)
    folder = sample.ensure("sample")
    assert folder == home / "data/raw/sample/kaggle_dataset"
    monkeypatch.delattr(sample, "draw")
    assert sample.ensure("sample") == folder
    with pytest.raises(KitError):
        sample.ensure("nowhere")


def test_places_follow_the_real_density():
    """The centroid of every state's places lies near that of the real ones, be it far from the middle."""
    states = sample._states().set_index("state")
    train, _ = sample._places(33 * 300, 33, 0)
    drawn = train.groupby("state")[["latitude", "longitude"]].mean().loc[states.index]
    away = geo.distance_km(drawn.to_numpy(), states[["latitude", "longitude"]].to_numpy())
    assert np.median(away) < 60 and away.max() < 160
    nevada = train.loc[train["state"] == "Nevada", ["latitude", "longitude"]].to_numpy()
    assert (geo.distance_km(nevada, np.array([36.17, -115.14])) < 120).mean() > 0.4, "Nevada is mostly Las Vegas"


def test_places_cluster_in_towns_that_stay_when_more_are_drawn():
    few = sample._state_places("Iowa", 50, 0, 14)[["latitude", "longitude"]].to_numpy()
    many = sample._state_places("Iowa", 400, 0, 14)[["latitude", "longitude"]].to_numpy()
    neighbour = np.sort(geo.distance_km(many[:, None], many[None]), axis=1)[:, 1]
    assert np.median(neighbour) < 2.5  # 400 places spread evenly over Iowa would be 9 km apart
    assert np.median(geo.distance_km(few[:, None], many[None]).min(axis=1)) < 5


def test_pictures_tell_where_they_were_taken():
    """Mean colours of a 6 x 6 grid in four views, and a ridge regression: far above chance, nearer than a constant."""
    train, test = sample._places(400, 150, 0)

    def features(places: pd.DataFrame, split: int) -> np.ndarray:
        points = places[["latitude", "longitude"]].to_numpy()
        looks = scenery.appearances(points, places["state_idx"].to_numpy(), places["urban"].to_numpy(), 0)
        views = np.stack([scenery.paint(p, 48, np.random.default_rng([split, i])) for i, p in enumerate(looks)])
        return views.reshape(len(views), 4, 6, 8, 6, 8, 3).mean(axis=(3, 5)).reshape(len(views), -1) / 255

    x, held_out = features(train, 0), features(test, 1)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, held_out = (x - mean) / deviation, (held_out - mean) / deviation
    centred = pd.get_dummies(train["state"]).to_numpy(float) - 1 / 33
    kernel = x @ x.T / x.shape[1]
    scores = held_out @ x.T / x.shape[1] @ np.linalg.solve(kernel + 3 * np.eye(len(x)), centred)
    top5 = np.sort(train["state"].unique())[np.argsort(-scores, axis=1)[:, :5]]
    top1 = (top5[:, 0] == test["state"]).mean()
    assert 3 / 33 < top1 < 0.6
    assert (top5 == test["state"].to_numpy()[:, None]).any(axis=1).mean() > 0.33
    vectors = geo.unit_vectors(train[["latitude", "longitude"]].to_numpy())
    offsets = np.linalg.solve(kernel + 3 * np.eye(len(x)), vectors - vectors.mean(axis=0))
    guess = geo.from_unit_vectors(vectors.mean(axis=0) + held_out @ x.T / x.shape[1] @ offsets)
    truth = test[["latitude", "longitude"]].to_numpy()
    constant = geo.distance_km(geo.geometric_median(train[["latitude", "longitude"]].to_numpy()), truth)
    assert geo.distance_km(guess, truth).mean() < 0.93 * constant.mean()


def test_places_know_that_they_are_drawn(small_sample, tmp_path):
    drawn, other = readers.load(small_sample), readers.read(competition(tmp_path))
    assert drawn.is_drawn and drawn.preset == "sample" and "not photographs" in drawn.note
    assert not other.is_drawn and other.preset == other.note == ""
