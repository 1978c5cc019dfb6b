"""Finished runs and blends asked about photographs: the answers are those of the test places, and are written whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

pytest.importorskip("torch")

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.core.storage import write_json
from kitlib.data import pictures
from kitlib.evaluation import ensemble, guesses, runs, submission
from kitlib.models import locate, multiview, regional, retrieval

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def trained(world, small_sample):
    """A run of three families, one routed by another, and the folder of the test places without the training part."""
    options = {"n_folds": 2}
    multiview.train(
        multiview.Config(encoder="tiny", heads_epochs=2, finetune_epochs=0, places_per_cell=8),
        world,
        "heads",
        **options,
    )
    retrieval.train(retrieval.Config(encoder="tiny", mirror=False), world, "knn", **options)
    regional.train(
        regional.Config(encoder="tiny", finetune=False, router="heads", min_places=4), world, "routed", **options
    )
    regional.train(regional.Config(encoder="tiny", finetune=False, min_places=4), world, "own", **options)
    source = small_sample / "kaggle_dataset"
    asked = small_sample.parent / "asked"
    shutil.copytree(source / "test_images", asked / "test_images")
    for name in ("sample_submission.csv", "state_mapping.csv"):
        shutil.copy(source / name, asked)
    return asked


@pytest.mark.parametrize("name", ["heads", "knn", "own", "routed"])
def test_the_test_places_asked_as_photographs_have_the_run_s_own_guesses(trained, small_sample, name):
    answer, own = locate.ask(name, trained, small_sample), runs.open_run(name).guesses("test")
    own = own.at(answer.guesses.sample_id)
    np.testing.assert_allclose(answer.guesses.state_probs, own.state_probs, atol=2e-3)
    assert np.abs(answer.guesses.point() - own.point()).max() < 0.05


def test_a_blend_answers_with_its_weights_and_everything_is_written(trained, small_sample, world, tmp_path):
    weights, one = {"heads": 0.75, "knn": 0.25}, {"heads": 1.0, "knn": 1.0}
    blend = ensemble.Blend(weights, {"heads": 0.4, "knn": 0.6}, one | {"heads": 1.5}, one | {"knn": 0.5})
    own = blend({name: runs.open_run(name).guesses("test") for name in weights})
    path, _ = submission.save("blend", own, world, {"members": blend.as_dict()})
    answer = locate.ask("blend", trained, small_sample)
    written = answer.save(tmp_path)
    assert [file.name for file in written] == ["answers.csv", "answers.npz", "answers.html", "submission.csv"]
    assert submission.diff(path, tmp_path / "submission.csv").first_differs < 0.1
    table = pd.read_csv(tmp_path / "answers.csv")
    assert len(table) == 20 and (table["radius_50_km"] <= table["radius_90_km"]).all()
    shown = table[[f"probability_{rank}" for rank in range(1, 6)]].to_numpy()
    assert (np.diff(shown, axis=1) <= 0).all() and (shown.sum(axis=1) <= 1.001).all()
    page = (tmp_path / "answers.html").read_text()
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert len(data["places"]) == 20 and all(len(place["pictures"]) == 4 for place in data["places"])


def test_photographs_with_truth_are_scored_and_names_are_text(trained, small_sample, world, tmp_path):
    state = world.states["state"][0]
    folder = tmp_path / "mine"
    shutil.copytree(trained / "test_images", folder)
    name = sorted(file.name for file in folder.iterdir())[0]
    hostile = "</script><b>{{7*7}}.jpg"
    (folder / name).rename(folder / hostile.replace("/", "_"))
    (folder / "metadata.csv").write_text(
        f"filename,latitude,longitude,state\n{hostile.replace('/', '_')},40,-83,{state}\nnowhere.jpg,,,\n"
    )
    answer = locate.ask("heads", folder, small_sample)
    assert answer.score is not None and answer.score.n == 1
    assert answer.table["km"].notna().sum() == 1 and answer.guesses.answered.tolist() == [True, False]
    answer.save(tmp_path / "out")
    page = (tmp_path / "out/answers.html").read_text()
    assert hostile.replace("/", "_") not in page and "\\u003c_script\\u003e\\u003cb\\u003e{{7*7}}" in page


def test_uploaded_pictures_are_answered_below_the_button(trained, small_sample, tmp_path):
    button, shown = locate.upload("heads", small_sample, tmp_path).children
    picture = next((trained / "test_images").iterdir()).read_bytes()
    file = {"type": "image/jpeg", "size": len(picture), "last_modified": datetime.now(UTC)}
    button.value = (file | {"name": "../mine.jpg", "content": memoryview(picture)},)
    assert "mine" in shown.value and "<table" in shown.value
    assert [file.name for file in tmp_path.glob("*/*.jpg")] == ["mine.jpg"]
    button.value = (file | {"name": "x.txt", "content": memoryview(b"<b>")},)
    assert "expected pictures" in shown.value and "<b>" not in shown.value


def test_a_run_copied_alone_answers_as_before_and_says_what_is_missing(trained, small_sample, tmp_path, monkeypatch):
    whole = {name: locate.ask(name, trained, small_sample) for name in ("heads", "knn", "own", "routed")}
    folder = runs.open_run("heads").dir.parent
    monkeypatch.setenv("KITLIB_HOME", str(tmp_path))
    monkeypatch.setenv("KITLIB_GIVEN", "{}")
    for name, answer in whole.items():
        shutil.copytree(folder / name, tmp_path / "data/runs" / name)
        alone = locate.ask(name, trained)
        np.testing.assert_allclose(alone.guesses.state_probs, answer.guesses.state_probs, atol=1e-6)
        np.testing.assert_allclose(alone.guesses.point(), answer.guesses.point(), atol=1e-6)
        assert "known_1" in answer.table and "known_1" not in alone.table
        assert any("is not on this machine" in text for text in alone.notes()) and alone.alike()[0] == []
        assert not any("is not on this machine" in text for text in answer.notes())
    assert not list((tmp_path / "data").glob("derived/*/pictures/train*"))


def test_neighbours_that_look_alike_are_on_the_page(trained, small_sample, tmp_path):
    answer = locate.ask("heads", trained, small_sample)
    alike = answer.alike(most=2)
    assert [len(place) for place in alike[:3]] == [locate.ALIKE, locate.ALIKE, 0]
    known = answer.known.rows("train").set_index("sample_id")
    for n, other in ((n, other) for n, place in enumerate(alike) for other in place):
        assert other["jpeg"].startswith(b"\xff\xd8") and known.loc[other["sample_id"], "state"] == other["state"]
        point = known.loc[other["sample_id"], ["latitude", "longitude"]].to_numpy(float)
        assert abs(geo.distance_km(answer.guesses.point()[n], point) - other["km"]) < 0.06


def test_a_training_picture_looks_like_itself_and_lost_views_are_said_to_be_left_out(trained, world, tmp_path):
    row = world.rows("train").iloc[5]
    (tmp_path / "in").mkdir()
    shutil.copy(world.folder / row["image_north"], tmp_path / "in/a_north.jpg")
    for view in world.views:
        shutil.copy(world.folder / row[f"image_{view}"], tmp_path / "in" / f"b_{view}.jpg")
    answer = locate.ask("heads", tmp_path / "in", world.folder)
    assert answer.alike()[1][0]["sample_id"] == row["sample_id"]
    said = [text for text in answer.notes() if "views" in text]
    assert said == ["3 of 8 views are not there (1 of 2 rows): they are left out, as in training with view dropout."]
    checks = [entry["check"] for entry in pictures.pack(answer.places, "test").problems()]
    assert "missing picture" not in checks


def test_exif_is_compared_with_the_guess_and_never_used(trained, small_sample, tmp_path):
    (tmp_path / "in").mkdir()
    picture = sorted((trained / "test_images").iterdir())[0]
    with Image.open(picture) as image:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "S", 2: (40.0, 30.0, 0.0), 3: "E", 4: (10.0, 0.0, 36.0)})
        image.save(tmp_path / "in/a.jpg", exif=exif, quality="keep")
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (400.0, 0.0, 0.0), 3: "E", 4: (10.0, 0.0, 0.0)})
        image.save(tmp_path / "in/b.jpg", exif=exif, quality="keep")
        image.save(tmp_path / "in/c.jpg", quality="keep")
    answer = locate.ask("heads", tmp_path / "in", small_sample)
    points, broken = answer.exif
    np.testing.assert_allclose(points[0], [-40.5, 10.01])
    assert np.isnan(points[1:]).all() and broken == 1
    assert np.abs(answer.guesses.point() - answer.guesses.point()[0]).max() < 1e-6
    km = geo.distance_km(answer.guesses.point()[0], points[0])
    assert abs(answer.table["exif_km"][0] - km) < 0.06 and answer.table["exif_km"].isna().sum() == 2
    assert any(
        "1 of 3 places has a point" in text and "1 pictures have a broken one" in text for text in answer.notes()
    )


def test_radii_hold_the_share_of_the_weight():
    one = guesses.Guesses(
        np.array([1]), np.array([0]), np.ones((1, 1)), np.array([[[0.0, 0.0], [0.0, 1.0], [0.0, 10.0]]]),
        np.array([[0.6, 0.35, 0.05]]), np.array([True]),
    )  # fmt: skip
    assert locate.radii_km(one, (0.5, 0.9, 1.0)).round().tolist() == [[0.0, 111.0, 1112.0]]


def test_pictures_that_cannot_be_read_are_refused_or_named(trained, small_sample, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(KitError, match=r"expected at least one picture that can be read; got text.jpg"):
        locate.ask("heads", tmp_path, small_sample)
    shutil.copy(next((small_sample / "kaggle_dataset/test_images").glob("*_north.jpg")), tmp_path / "holiday.jpg")
    notes = " ".join(locate.ask("heads", tmp_path, small_sample).notes())
    assert "1 places have no picture that can be read (text.jpg)" in notes


def test_refusals_name_what_is_wrong(trained, small_sample, world):
    with pytest.raises(KitError, match=r"neither a run nor a submission 'none'; there are: .*heads"):
        locate.ask("none", trained)
    own = runs.open_run("heads").params
    runs.start("empty", own["settings"], data=own["data"], learned=own["learned"])
    with pytest.raises(KitError, match="empty: expected a run with a trained fold"):
        locate.ask("empty", trained, small_sample)
    params = runs.open_run("heads").params
    changed = params | {"data": params["data"] | {"places": "0"}}
    shutil.copytree(runs.open_run("heads").dir, runs.open_run("heads").dir.parent / "moved")
    write_json(runs.open_run("moved").dir / "params.json", changed)
    with pytest.raises(KitError, match="moved: expected the data that it was trained on"):
        locate.ask("moved", trained, small_sample)
    assert replace(world).queries is None


def test_weights_outside_home_are_named_again(trained, small_sample, world, clip, monkeypatch):
    config = multiview.Config(encoder=clip, heads_epochs=1, finetune_epochs=0, places_per_cell=8)
    multiview.train(config, world, "clip", n_folds=2, only_folds=[0])
    monkeypatch.setenv("KITLIB_GIVEN", "{}")  # a new process, which was not told of any file
    with pytest.raises(KitError, match="encoder"):
        locate.ask("clip", trained, small_sample)
    assert len(locate.ask("clip", trained, small_sample, encoder=clip).guesses) == 20
