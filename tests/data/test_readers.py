from __future__ import annotations

import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_helper import SHARED, competition, edit, found, put

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.data.files import Files

IMAGES = [f"image_{view}" for view in readers.VIEWS]
REAL = SHARED / "real"


def test_competition_is_read_into_one_table(tmp_path, home):
    read = readers.read(competition(tmp_path / "tiny"))
    assert read.name == "tiny"
    assert read.views == readers.VIEWS
    assert list(read.table.columns) == ["split", "sample_id", *IMAGES, "state", "state_idx", "latitude", "longitude"]
    assert read.integrity == []
    train, test = read.rows("train"), read.rows("test")
    assert len(train) == 12 and len(test) == 3
    assert train["image_west"][11] == "train_images/img_000011_west.jpg"
    assert test["image_west"][2] == "test_images/img_000002_west.jpg"
    assert (test["state"] == "").all() and (test["state_idx"] == -1).all() and np.isnan(read.points("test")).all()
    assert read.state_position("train").tolist() == [0, 1, 2] * 4
    assert read.state_position("test").tolist() == [-1] * 3
    assert read.points("train")[1].tolist() == pytest.approx([34.9, -92.3])
    assert read.sample_id("test").dtype == np.int64
    assert list(read.template.columns) == list(pd.read_csv(read.folder / "sample_submission.csv").columns)
    assert (
        read.template["predicted_state_idx_1"].tolist() == [-1] * 3 and read.template["predicted_latitude"].isna().all()
    )
    with pytest.raises(KitError, match="split: expected one of train, test"):
        read.rows("valid")


@pytest.mark.parametrize("prefix", ["", "kaggle_dataset/"])
def test_zip_reads_like_the_folder(tmp_path, home, prefix):
    folder = competition(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"__MACOSX/{prefix}._state_mapping.csv", "junk")
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    zipped = readers.read(tmp_path / "a.zip")
    assert zipped.key == readers.read(folder).key
    image = zipped.rows("test")["image_east"][1]
    assert Files(zipped.folder).read(image) == (folder / image).read_bytes()
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-200])
    with pytest.raises(KitError, match=r"not a readable .zip"):
        readers.read(tmp_path / "cut.zip")


def test_data_under_raw_is_found_by_name(home):
    competition(paths.raw_dir() / "mine")
    assert readers.read("mine").name == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="state"),
            "expected columns sample_id.*; got sample_id, image.*missing: state$",
        ),
        (put(3, "sample_id", "0"), "repeated sample_id: sample_id 0, 0"),
        (put(3, "sample_id", " "), "an empty sample_id"),
        (put(3, "image_west", "img_000002_west.jpg"), r"picture named twice: sample_id 2 \(.*\), 3 \("),
        (put(3, "image_west", "img_000003_east.jpg"), r"picture named twice: sample_id 3 \("),
        (put(4, "latitude", "91"), r"expected latitudes in \[-90, 90\].*sample_id 4 \(91, -92.0\)"),
        (put(4, "longitude", "-190.5"), r"longitudes in \[-180, 180\].*sample_id 4"),
        (put(4, "longitude", ""), "sample_id 4"),
        (put(4, "latitude", "north"), "sample_id 4"),
        (put(5, "state_idx", "2"), r"state_idx absent from state_mapping.csv: sample_id 5 \(2\)"),
        (put(5, "state_idx", ""), "state_idx absent"),
        (put(5, "state_idx", "3"), r"disagree with state_mapping.csv: sample_id 5 \(Washington, 3\)"),
        (put(5, "state", "Texas"), r"disagree with state_mapping.csv: sample_id 5 \(Texas, 46\)"),
        (lambda t: t.iloc[:0], "expected at least one row"),
    ],
)
def test_broken_training_table_is_refused(tmp_path, home, change, message):
    folder = competition(tmp_path)
    edit(folder, change)
    with pytest.raises(KitError, match=f"train_ground_truth.csv.*{message}") as error:
        readers.read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sample_submission.csv", put(1, "sample_id", "0"), "repeated sample_id: sample_id 0, 0"),
        ("sample_submission.csv", lambda t: t.drop(columns=[*IMAGES]), "missing: image_north, image_east"),
        ("sample_submission.csv", lambda t: t.drop(columns="predicted_latitude"), "missing: predicted_latitude"),
        ("state_mapping.csv", put(1, "state_idx", "1"), "line 3: expected a unique whole state_idx"),
        ("state_mapping.csv", put(1, "state", "Alaska"), "line 3"),
        ("state_mapping.csv", put(2, "state_idx", "4.5"), "line 4"),
        ("state_mapping.csv", put(2, "state", ""), "line 4"),
    ],
)
def test_broken_template_or_mapping_is_refused(tmp_path, home, name, change, message):
    folder = competition(tmp_path)
    edit(folder, change, name)
    with pytest.raises(KitError, match=f"{name}.*{message}"):
        readers.read(folder)


@pytest.mark.parametrize("name", ["sample_submission.csv", "state_mapping.csv"])
def test_missing_file_is_named(tmp_path, home, name):
    folder = competition(tmp_path)
    (folder / name).unlink()
    with pytest.raises(KitError, match=f"{name} is missing in .*the folder holds .*train_ground_truth.csv"):
        readers.read(folder)


def test_missing_picture_folder_is_refused_and_a_missing_picture_noted(tmp_path, home):
    folder = competition(tmp_path)
    edit(folder, put(2, "image_east", ""))
    (folder / "train_images/img_000004_south.jpg").unlink()
    read = readers.read(folder)
    assert found(read, "missing picture") == {
        "check": "missing picture",
        "where": "train pictures",
        "count": 2,
        "examples": ["2 east", "4 south"],
        "action": "replaced by another view of the place",
    }
    assert read.rows("train")["image_east"][2] == ""
    shutil.rmtree(folder / "test_images")
    with pytest.raises(KitError, match=r"none of the 12 pictures of sample_submission.csv is in test_images/"):
        readers.read(folder)


def test_what_users_have_is_read_all_the_same(tmp_path, home):
    """A BOM, Windows line ends, spaces around cells, upper-case extensions, rows in another column order."""
    folder = competition(tmp_path)
    plain = readers.read(folder)
    text = (folder / "train_ground_truth.csv").read_text().replace(",", " , ").replace("\n", "\r\n")
    (folder / "train_ground_truth.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    edit(folder, lambda table: table[list(table)[::-1]], "sample_submission.csv")
    pd.testing.assert_frame_equal(readers.read(folder).table, plain.table)
    for path in (folder / "train_images").iterdir():
        path.rename(path.with_suffix(".JPG"))
    assert readers.read(folder).rows("train")["image_north"][0] == "train_images/img_000000_north.JPG"
    assert readers.read(folder).integrity == []


def test_names_of_tables_may_end_in_capitals(tmp_path, home):
    folder = competition(tmp_path / "a")
    for path in folder.glob("*.csv"):
        path.rename(path.with_suffix(".CSV"))
    assert len(readers.read(folder).rows("train")) == 12
    folder = region_table(tmp_path / "b")
    for path in folder.glob("*.csv"):
        path.rename(path.with_name(path.name.upper()))
    assert len(readers.read(folder).rows("test")) == 2


def test_latin_1_is_read_and_noted(tmp_path, home):
    folder = competition(tmp_path)
    for name in ("state_mapping.csv", "train_ground_truth.csv"):
        text = (folder / name).read_text().replace("Arkansas", "Québec")
        (folder / name).write_bytes(text.encode("latin-1"))
    read = readers.read(folder)
    assert read.states["state"].tolist() == ["Alaska", "Québec", "Washington"]
    assert [e["where"] for e in read.integrity] == ["train_ground_truth.csv", "state_mapping.csv"]


@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "/etc/hostname", "a/../../out.jpg", "..\\out.jpg", "C:\\out.jpg", "\\\\srv\\out.jpg", "file:///out"],
)
def test_pictures_are_below_the_data_folder(tmp_path, home, name):
    (tmp_path / "out.jpg").write_bytes(b"private")
    folder = competition(tmp_path)
    edit(folder, put(2, "image_east", name))
    message = r"train_ground_truth.csv: expected names of pictures below the data folder; got: sample_id 2 \(img_000002"
    with pytest.raises(KitError, match=message):
        readers.read(folder)
    folder = metadata(tmp_path / "described", state=["a"] * 4, image=["0.png", name, "2.png", "3.png"])
    with pytest.raises(KitError, match=r"metadata.csv: expected names of pictures below the data folder; got: .* 1 \("):
        readers.read(folder)


def test_paths_of_windows_lead_to_folders(tmp_path, home):
    folder = metadata(tmp_path, state=["a"] * 4, image=[f"images\\{i}.png" for i in range(4)])
    assert readers.read(folder).rows("train")["image_only"].tolist() == [f"images/{i}.png" for i in range(4)]


def test_a_picture_in_two_spellings_is_named_twice(tmp_path, home):
    folder = metadata(tmp_path, state=["a"] * 4, image=["0.png", "./0.png", "2.PNG", "2.png"])
    with pytest.raises(KitError, match=r"a picture named twice: sample_id 0 \(0.png\), 1 \(./0.png\), 2 \(2.PNG\), 3"):
        readers.read(folder)


def test_links_outside_are_named_where_no_picture_is_found(tmp_path, home):
    folder = metadata(tmp_path / "data", state=["a"] * 4)
    for path in (folder / "images").iterdir():
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with pytest.raises(
        KitError, match=r"none of the 4 pictures .*; links that lead outside the folder are not followed"
    ):
        readers.read(folder)


@pytest.mark.parametrize("name", ["sample_submission.csv", "state_mapping.csv"])
def test_a_table_that_is_a_folder_or_a_pipe_is_refused(tmp_path, home, name):
    folder = competition(tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(KitError, match=rf"{name} in .* cannot be read: expected a file; got a folder"):
        readers.read(folder)
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    with pytest.raises(KitError, match=rf"{name} in .* cannot be read: expected a file; got a pipe"):
        readers.read(folder)


@pytest.mark.parametrize(
    "cell", ["41°24'12\"N", "44,83", "39.96N", "\N{MINUS SIGN}39.96", "39960000", "nan", "inf", ""]
)
def test_a_coordinate_that_is_none_is_shown_as_it_is(tmp_path, home, cell):
    folder = competition(tmp_path)
    edit(folder, put(2, "latitude", cell))
    with pytest.raises(KitError) as error:
        readers.read(folder)
    assert f"sample_id 2 ({cell}, -120.8)" in str(error.value) and "look" not in str(error.value)


def test_likely_mistakes_in_coordinates_are_named(tmp_path, home):
    folder = competition(tmp_path)
    whole = (folder / "train_ground_truth.csv").read_text()

    def swapped(table):
        table[["latitude", "longitude"]] = table[["longitude", "latitude"]].to_numpy()

    edit(folder, lambda t: t.assign(longitude=t["longitude"].astype(float) % 360))
    with pytest.raises(KitError, match=r"; longitudes look like 0 to 360: subtract 360 from those above 180; got:"):
        readers.read(folder)
    (folder / "train_ground_truth.csv").write_text(whole)
    edit(folder, swapped)
    with pytest.raises(KitError, match=r"; latitude and longitude look swapped; got: sample_id 0 \(-150.0, 61.0\)"):
        readers.read(folder)
    (folder / "state_mapping.csv").write_text("state_idx,state\n0,Ohio\n")
    edit(folder, lambda t: t.assign(latitude=-82.8, longitude=40.3, state="Ohio", state_idx=0))  # a point on the globe
    with pytest.raises(KitError, match=r"look swapped: 12 of 12 places would lie in their state if they were"):
        readers.read(folder)


def test_labels_have_one_spelling(tmp_path, home):
    apart = unicodedata.normalize("NFD", "Perú")
    folder = metadata(tmp_path / "a", country=["Perú", apart, "New  York", "New York"])
    read = readers.read(folder)
    assert read.states["state"].tolist() == ["New York", "Perú"]
    assert found(read, "label in another spelling")["examples"] == [apart, "New  York"]
    folder = metadata(tmp_path / "b", country=["Peru", "peru", "Chile", "CHILE"])
    with pytest.raises(KitError, match=r"differ by more than case; got 'Peru' and 'peru', 'CHILE' and 'Chile'"):
        readers.read(folder)
    folder = competition(tmp_path / "c")
    edit(folder, lambda t: t.assign(state=t["state"].replace("Alaska", "Québec")), "state_mapping.csv")
    edit(folder, lambda t: t.assign(state=t["state"].replace("Alaska", unicodedata.normalize("NFD", "Québec"))))
    assert readers.read(folder).rows("train")["state"][0] == "Québec"
    folder = metadata(tmp_path / "d", country=["1", "2", "1", "9" * 5000])
    assert readers.read(folder).states["state"].tolist()[:2] == ["1", "2"]


def test_columns_that_begin_with_image_are_pictures_only_if_they_name_some(tmp_path, home):
    others = {"image_id": "mly1", "image_width": "640", "image_date": "2019-05", "image_url": "https://x/0.png"}
    folder = metadata(tmp_path / "one", state=["a"] * 4, **{name: [value] * 4 for name, value in others.items()})
    assert readers.read(folder).views == ("only",)
    views = {f"image_{view}": [f"{i}{view}.jpg" for i in range(4)] for view in readers.VIEWS}
    folder = metadata(tmp_path / "four", state=["a"] * 4, image_id=["mly1"] * 4, **views)
    (folder / "images/0.png").rename(folder / "images/0west.jpg")
    assert readers.read(folder).views == readers.VIEWS
    no_suffix = metadata(tmp_path / "bare", state=["a"] * 4, image_front=list("abcd"))
    (no_suffix / "images/0.png").rename(no_suffix / "images/a")
    assert readers.read(no_suffix).views == ("front",)


def test_a_data_set_in_folders_of_its_own_is_entered(tmp_path, home):
    metadata(tmp_path / "mine/outer/inner", state=["a"] * 4)
    read = readers.read(tmp_path / "mine")
    assert read.name == "mine" and read.rows("train")["image_only"][0] == "images/0.png"
    assert read.key == readers.read(read.folder).key
    region_table(tmp_path / "cities/all")
    assert len(readers.read(tmp_path / "cities", train_csv="all/labels_train.csv").rows("train")) == 4
    assert len(readers.read(tmp_path / "cities", train_images="images_train").rows("train")) == 4


def test_a_template_may_hold_labels_and_columns_of_its_own(tmp_path, home):
    folder = competition(tmp_path)
    edit(folder, lambda t: t.assign(predicted_state_idx_1="Ohio", note="x"), "sample_submission.csv")
    text = (folder / "sample_submission.csv").read_text()
    (folder / "sample_submission.csv").write_text(
        text.replace("\n", "\n" + "," * text.split("\n")[0].count(",") + "\n", 1)
    )
    read = readers.read(folder)
    assert read.template["predicted_state_idx_1"].isna().all() and read.template["note"].tolist() == ["x"] * 3
    assert read.template.index.tolist() == [0, 1, 2]


def test_unknown_folders_are_refused_with_what_is_known(tmp_path, home):
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KitError, match=r"train_ground_truth.csv.*metadata.csv.*; got labels.csv"):
        readers.read(tmp_path)


def region_table(root: Path) -> Path:
    """Two cities; pictures in doubled folders; the same file names in training and validation."""
    for word, n in (("train", 4), ("val", 2)):
        images = root / f"images_{word}/images_{word}"
        images.mkdir(parents=True)
        lines = ["filename,latitude,longitude,Region_ID"]
        for i in range(n):
            (images / f"img_{i}.jpg").write_bytes(f"{word} {i}".encode())
            lines.append(f"img_{i}.jpg,{10 + 0.01 * i},20,{['lima', 'bern'][i % 2]}")
        (root / f"labels_{word}.csv").write_text("\n".join(lines) + "\n")
    return root


def test_region_table(tmp_path, home):
    folder = region_table(tmp_path)
    read = readers.read(folder)
    assert read.views == ("only",) and read.template is None and read.integrity == []
    assert read.states.to_dict("list") == {"state_idx": [0, 1], "state": ["bern", "lima"]}
    assert read.sample_id("train").tolist() == [f"img_{i}.jpg" for i in range(4)]
    assert read.state_position("train").tolist() == [1, 0, 1, 0]
    test = read.rows("test")
    assert test["image_only"].tolist() == ["images_val/images_val/img_0.jpg", "images_val/images_val/img_1.jpg"]
    assert test["state"].tolist() == ["lima", "bern"] and test["latitude"].tolist() == [10, 10.01]  # known, and kept
    shutil.move(folder / "images_val/images_val", folder / "once")
    shutil.rmtree(folder / "images_val")
    shutil.move(folder / "once", folder / "images_val")
    assert readers.read(folder).rows("test")["image_only"][0] == "images_val/img_0.jpg"
    with pytest.raises(KitError, match=r"labels_train.csv .*: expected columns .*city; got filename.*missing: city"):
        readers.read(folder, region_column="city")


def test_coordinates_of_a_test_split_are_known_or_hidden_but_not_broken(tmp_path, home):
    folder = region_table(tmp_path)
    edit(folder, put(1, "latitude", "ten"), "labels_val.csv")
    with pytest.raises(KitError, match=r"labels_val.csv: expected latitudes .*img_1.jpg \(ten, 20\)"):
        readers.read(folder)
    edit(folder, lambda table: table.assign(latitude="", longitude=""), "labels_val.csv")
    assert np.isnan(readers.read(folder).points("test")).all()


def test_region_table_splits_that_reuse_file_names_are_not_mixed(tmp_path, home):
    folder = region_table(tmp_path)
    read = readers.read(folder)
    for split, word in (("train", "train"), ("test", "val")):
        rows = read.rows(split)
        contents = [Files(read.folder).read(image).decode() for image in rows["image_only"]]
        assert contents == [f"{word} {i}" for i in range(len(rows))]
    message = r"labels_train.csv: a picture of the test split: sample_id img_0.jpg \(images_train/images_train/"
    with pytest.raises(KitError, match=message):
        readers.read(folder, test_images="images_train")


def test_region_table_named_by_the_user(tmp_path, home):
    folder = region_table(tmp_path)
    (folder / "tables").mkdir()
    (folder / "labels_train.csv").rename(folder / "tables/mine.csv")
    (folder / "images_train/images_train").rename(folder / "photos")
    (folder / "images_val/images_val").rename(folder / "images_val/held out")
    (folder / "images_val").rename(folder / "held out")
    with pytest.raises(KitError, match=r"labels_train.csv is missing"):
        readers.read(folder)
    (folder / "labels_val.csv").rename(folder / "other.csv")
    with pytest.raises(KitError, match=r"expected train_ground_truth.csv .*may also be named by train_csv"):
        readers.read(folder)
    named = {"train_csv": "tables/mine.csv", "train_images": "./photos/"}
    alone = readers.read(folder, **named)
    assert alone.rows("train")["image_only"].tolist() == [f"photos/img_{i}.jpg" for i in range(4)]
    assert alone.rows("test").empty
    read = readers.read(folder, **named, test_csv="other.csv", test_images="held out")
    assert read.rows("test")["image_only"].tolist() == [
        "held out/held out/img_0.jpg",
        "held out/held out/img_1.jpg",
    ]
    read = readers.read(folder, **named, test_csv="other.csv", test_images="held out/held out")
    assert len(read.rows("test")) == 2 and read.integrity == []
    for i in range(4):
        (folder / f"photos/img_{i}.jpg").rename(folder / f"img_{i}.jpg")
    top = readers.read(folder, train_csv="tables/mine.csv", train_images=".")
    assert top.rows("train")["image_only"][3] == "img_3.jpg"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"train_csv": "labels_val.csv"}, "expected another table than train_csv; both are 'labels_val.csv'"),
        ({"train_csv": "gone.csv"}, "gone.csv is missing in .*the folder holds labels_train.csv, labels_val.csv"),
        ({"train_images": "gone"}, "none of the 4 pictures of labels_train.csv is in gone/ or gone/gone/ in"),
        ({"train_images": "/tmp"}, "'/tmp' is not inside the data folder"),
        ({"test_csv": "../labels_val.csv"}, "'../labels_val.csv' is not inside the data folder"),
    ],
)
def test_region_table_named_wrongly_is_refused(tmp_path, home, named, message):
    with pytest.raises(KitError, match=message):
        readers.read(region_table(tmp_path), **named)


def test_files_are_named_for_region_tables_alone(tmp_path, home):
    folder = region_table(tmp_path / "regions")
    (folder / "labels_val.csv").unlink()
    with pytest.raises(KitError, match=r"test_csv: expected the table of test_images 'images_val'; got .* labels_tr"):
        readers.read(folder, test_images="images_val")
    with pytest.raises(KitError, match=r"train_csv, test_images: expected a region table; .*has train_ground"):
        readers.read(competition(tmp_path / "a"), train_csv="a.csv", test_images="b")
    described = metadata(tmp_path / "described", state=["a"] * 4)
    with pytest.raises(KitError, match=r"train_images: expected a region table; .*has metadata.csv"):
        readers.read(described, train_images="images")
    assert len(readers.read(described, train_csv=None, train_images="").rows("train")) == 4  # "" names nothing


def test_numeric_regions_sort_as_numbers_whatever_pandas_made_of_them(tmp_path, home):
    folder = region_table(tmp_path)
    edit(folder, lambda table: table.assign(Region_ID=["10.0", "2.0", "", "1.0"]), "labels_train.csv")
    edit(folder, lambda table: table.assign(Region_ID=["2", "1"]), "labels_val.csv")
    read = readers.read(folder)
    assert read.states.to_dict("list") == {"state_idx": [0, 1, 2], "state": ["1", "2", "10"]}
    assert read.state_position("train").tolist() == [2, 1, 0] and read.state_position("test").tolist() == [1, 0]
    assert [entry["check"] for entry in read.integrity] == ["place without a label"]
    edit(folder, put(0, "Region_ID", "old town"), "labels_train.csv")  # one name makes them all names
    assert readers.read(folder).states["state"].tolist() == ["1", "1.0", "2", "2.0", "old town"]


def test_regions_that_only_the_test_table_has_are_told(tmp_path, home):
    folder = region_table(tmp_path)
    edit(folder, put(1, "Region_ID", "oslo"), "labels_val.csv")
    read = readers.read(folder)
    assert read.states["state"].tolist() == ["bern", "lima", "oslo"] and read.state_position("test").tolist() == [1, 2]
    assert found(read, "state without training places")["examples"] == ["oslo"]
    assert found(read, "test place of a state without training places") == {
        "check": "test place of a state without training places",
        "where": "labels_val.csv",
        "count": 1,
        "examples": ["img_1.jpg"],
        "action": "kept and scored; no model knows the state",
    }


def metadata(root: Path, **columns: list[str]) -> Path:
    """A folder with metadata.csv, four pictures and the columns given."""
    (root / "images").mkdir(parents=True)
    table = pd.DataFrame({"latitude": [1, 2, 3, 4], "longitude": [5, 6, 7, 8]})
    table["image"] = [f"{i}.png" for i in range(4)]
    for name in table["image"]:
        (root / "images" / name).write_bytes(b"png")
    table.assign(**columns).to_csv(root / "metadata.csv", index=False)
    return root


def test_metadata_labels_default_to_the_first_column_that_is_filled(tmp_path, home):
    folder = metadata(tmp_path, country=["Peru", "Chile", "NA", "Peru"], region=["a", "", "b", ""], colour=["x"] * 4)
    read = readers.read(folder)
    assert read.states["state"].tolist() == ["Chile", "NA", "Peru"]  # NA is a country's code, not a gap
    assert read.sample_id("train").tolist() == [0, 1, 2, 3] and read.rows("test").empty
    assert read.rows("train")["image_only"][3] == "images/3.png"
    by_region = readers.read(folder, region_column="region")
    assert by_region.sample_id("train").tolist() == [0, 2]
    assert found(by_region, "place without a label")["examples"] == ["1", "3"]
    with pytest.raises(
        KitError, match=r"region_column: expected one of country, region, colour in metadata.csv of .*; got 'county'"
    ):
        readers.read(folder, region_column="county")


def test_metadata_rows_without_a_label_are_left_out(tmp_path, home):
    folder = metadata(tmp_path, state=["a", "", "b", "c"], note=["x", "y", "z", "w"])
    read = readers.read(folder)
    assert read.sample_id("train").tolist() == [0, 2, 3]
    assert found(read, "place without a label")["examples"] == ["1"]
    edit(folder, lambda table: table.assign(state=""), "metadata.csv")
    with pytest.raises(KitError, match=r"region_column: expected one of state, note in .*; got none of state, .* with"):
        readers.read(folder)
    with pytest.raises(KitError, match=r"no row of metadata.csv is for training with a label"):
        readers.read(folder, region_column="state")
    edit(folder, lambda table: table.assign(state="a", split="test"), "metadata.csv")
    with pytest.raises(KitError, match=r"^no row of metadata.csv is for training$"):
        readers.read(folder)


def test_metadata_splits_ids_and_views(tmp_path, home):
    folder = metadata(
        tmp_path,
        sample_id=["a", "b", "c", "d"],
        split=["train", "val", "Test", "train"],
        state=["s", "t", "", "s"],
        image_west=["0.png", "1.png", "2.png", "3.png"],
        image_up=["", "", "up.jpg", ""],
        image_down=["", "", "", ""],
    )
    read = readers.read(folder)
    assert read.views == ("west", "up") and read.sample_id("test").tolist() == ["b", "c"]
    assert read.state_position("test").tolist() == [1, -1]
    assert found(read, "state without training places")["examples"] == ["t"]
    edit(folder, put(0, "split", "dev"), "metadata.csv")
    with pytest.raises(KitError, match=r"split: expected train, test, val or validation; got: sample_id a \(dev\)"):
        readers.read(folder, region_column="state")


def test_metadata_without_pictures_is_refused(tmp_path, home):
    folder = metadata(tmp_path, state=["a"] * 4)
    edit(folder, lambda table: table.drop(columns="image"), "metadata.csv")
    with pytest.raises(KitError, match=r"expected image_<view> columns.*; got latitude, longitude, state"):
        readers.read(folder)


def test_real_world_and_regions(home):
    if not REAL.is_dir():
        pytest.skip("the real photographs (shared/real) are not at hand")
    world = readers.read(REAL / "world")
    assert len(world.rows("train")) == 750 and len(world.states) == 57 and world.views == readers.VIEWS
    assert len(readers.read(REAL / "world", "region").rows("train")) == 8
    regions = readers.read(REAL / "regions")
    assert len(regions.rows("train")) == 405 and len(regions.rows("test")) == 100 and len(regions.states) == 6
    assert regions.integrity == []


def test_real_us(real_us, home):
    read = readers.read(real_us)
    assert len(read.rows("train")) == 395 and len(read.rows("test")) == 135 and len(read.states) == 31
    assert read.integrity == []
    assert (read.state_position("train") >= 0).all()
