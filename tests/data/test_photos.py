"""Photographs of strangers become places: by headings in their names, by tables, alone; and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from data_helper import competition
from picture_helper import encoded, scene

from kitlib.core.errors import KitError
from kitlib.data import photos, pictures, readers
from kitlib.data.readers import VIEWS

STATES = pd.DataFrame({"state_idx": [3, 7], "state": ["Ohio", "Utah"]})
ONE = encoded(scene(32))


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(ONE)
    return tmp_path / "in"


def grouped(places):
    rows = places.rows("test").set_index("sample_id")[places.image_columns]
    return {str(name): [cell for cell in row if cell] for name, row in zip(rows.index, rows.to_numpy(), strict=True)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_north.jpg", "a_east.jpg", "b_north.jpg", "b_W.JPG"], {"a": 2, "b": 2}),
        (["a-0.jpg", "a-90.jpg", "a-180.jpg", "a-270.jpg"], {"a": 4}),
        (["a_000.png", "a_090.png"], {"a": 2}),
        (["sunset_south.jpg", "dunes.jpg"], {"sunset_south": 1, "dunes": 1}),  # one heading is no group
        (["Norths.jpg", "Seen.jpg", "Row.jpg"], {"Norths": 1, "Seen": 1, "Row": 1}),
        (["7.jpg", "8.jpg"], {"7": 1, "8": 1}),
    ],
)
def test_names_that_end_in_a_heading_are_one_place(tmp_path, names, expected):
    places = photos.read(folder_of(tmp_path, *names), STATES, VIEWS)
    assert {name: len(files) for name, files in grouped(places).items()} == expected
    assert (places.rows("test")["state_idx"] == -1).all() and places.rows("train").empty


def test_headings_go_to_their_views_and_a_model_of_one_view_takes_pictures_one_by_one(tmp_path):
    folder = folder_of(tmp_path, "a_s.jpg", "a_e.jpg")
    [row] = photos.read(folder, STATES, VIEWS).rows("test").to_dict("records")
    assert (row["image_north"], row["image_east"], row["image_south"]) == ("", "a_e.jpg", "a_s.jpg")
    assert grouped(photos.read(folder, STATES, ("only",))) == {"a_e": ["a_e.jpg"], "a_s": ["a_s.jpg"]}


def test_a_picture_a_folder_of_images_and_what_is_none(tmp_path):
    folder = folder_of(tmp_path, "images/x.jpg", "images/y.jpg")
    (folder / "notes.txt").write_text("beside the folder of pictures")
    assert grouped(photos.read(folder, STATES, VIEWS)) == {"x": ["images/x.jpg"], "y": ["images/y.jpg"]}
    assert grouped(photos.read(folder / "images/x.jpg", STATES, VIEWS)) == {"x": ["x.jpg"]}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("x")
    with pytest.raises(KitError, match=r"expected pictures \(.*got notes.txt"):
        photos.read(tmp_path / "empty", STATES, VIEWS)


def test_metadata_may_lack_points_and_labels(tmp_path):
    folder = folder_of(tmp_path, "a.jpg", "b.jpg")
    table = folder / "metadata.csv"
    table.write_text("filename,lat,lon,state\na.jpg,40.5,-83,Ohio\nb.jpg,,,\n")
    rows = photos.read(folder, STATES, VIEWS).rows("test")
    assert rows["state_idx"].tolist() == [3, -1] and rows["sample_id"].tolist() == ["a.jpg", "b.jpg"]
    assert rows["latitude"].iloc[0] == 40.5 and np.isnan(rows["longitude"].iloc[1])
    table.write_text("filename\na.jpg\nb.jpg\n")
    assert photos.read(folder, STATES, VIEWS).points("test").shape == (2, 2)
    table.write_text("filename,country\na.jpg,France\nb.jpg,Peru\n")
    with pytest.raises(KitError, match="country: expected labels that the run learned, such as Ohio, Utah; got France"):
        photos.read(folder, STATES, VIEWS)
    table.write_text("name\na.jpg\n")
    with pytest.raises(KitError, match=r"metadata\.csv: expected image_north"):
        photos.read(folder, STATES, VIEWS)


def test_a_competition_without_training_part_has_a_template_and_the_same_state_idx(tmp_path):
    whole = competition(tmp_path / "us", n_train=8)
    states = readers.read(whole).states
    (whole / "train_ground_truth.csv").unlink()
    places = photos.read(whole, states, VIEWS)
    assert places.template is not None and places.template["sample_id"].tolist() == places.sample_id("test").tolist()
    other = states.assign(state_idx=states["state_idx"].to_numpy()[::-1])
    with pytest.raises(KitError, match=r"state_mapping\.csv: expected the states that the run learned"):
        photos.read(whole, other, VIEWS)


def test_queries_stand_for_the_test_split_and_change_no_key(home, tmp_path):
    places = readers.read(competition(tmp_path / "us", n_train=8))
    asked = type(places)(**{**vars(places), "queries": photos.read(folder_of(tmp_path, "a.jpg"), places.states, VIEWS)})
    assert asked.key == places.key and asked.sample_id("test").tolist() == ["a"]
    assert pictures.pack(asked, "test").usable.sum() == 1 and len(asked.rows("train")) == 8
