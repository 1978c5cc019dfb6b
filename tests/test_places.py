from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kitlib import paths, places
from kitlib.files import Files
from kitlib.paths import KitError

IMAGES = [f"image_{view}" for view in places.VIEWS]
REAL = Path(__file__).parents[2] / "shared/real"


def competition(root: Path, n_train: int = 12, n_test: int = 3) -> Path:
    """A correct little competition of three states, to be broken by the tests."""
    folder = root / "kaggle_dataset"
    picture = root / "picture.jpg"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (90, 120, 60)).save(picture)
    states = pd.DataFrame({"state_idx": [1, 3, 46], "state": ["Alaska", "Arkansas", "Washington"]})
    states.to_csv(folder / "state_mapping.csv", index=False)
    centres = np.array([[61.0, -150.0], [34.8, -92.4], [47.5, -121.0]])
    rows = {"train": n_train, "test": n_test}
    tables = {}
    for split, n in rows.items():
        tables[split] = pd.DataFrame({"sample_id": range(n)})
        (folder / f"{split}_images").mkdir()
        for view in places.VIEWS:
            tables[split][f"image_{view}"] = [f"img_{i:06d}_{view}.jpg" for i in range(n)]
            for name in tables[split][f"image_{view}"]:
                shutil.copy(picture, folder / f"{split}_images" / name)
    picture.unlink()
    position = np.arange(n_train) % 3
    points = centres[position] + np.arange(n_train)[:, None] * 0.1
    train = tables["train"].assign(state=states["state"].to_numpy()[position])
    train["state_idx"] = states["state_idx"].to_numpy()[position]
    train["latitude"], train["longitude"] = points.T
    train.to_csv(folder / "train_ground_truth.csv", index=False)
    test = tables["test"].assign(**dict.fromkeys(places.PREDICTED[:5], -1), **dict.fromkeys(places.PREDICTED[5:], ""))
    test.to_csv(folder / "sample_submission.csv", index=False)
    return folder


def edit(folder: Path, change, name: str = "train_ground_truth.csv") -> None:
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(folder / name, index=False)


def put(row: int, column: str, value: str):
    return lambda table: table.__setitem__(column, table[column].where(table.index != row, value))


def found(table: places.Places, check: str) -> dict:
    return next(entry for entry in table.integrity if entry["check"] == check)


def test_competition_is_read_into_one_table(tmp_path, home):
    read = places.read(competition(tmp_path / "tiny"))
    assert read.name == "tiny"
    assert read.views == places.VIEWS
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
    with pytest.raises(KitError, match="allowed are train, test"):
        read.rows("valid")


def test_checksum_and_key_follow_the_table(tmp_path, home):
    folder = competition(tmp_path / "a")
    first, again = places.read(folder), places.read(folder)
    assert first.checksum == again.checksum and len(first.checksum) == 16
    assert first.key == f"a-{first.checksum[:8]}" and first.derived == paths.derived_dir(first.key)
    edit(folder, put(0, "latitude", "61.0000001"))
    assert places.read(folder).checksum != first.checksum


@pytest.mark.parametrize("prefix", ["", "kaggle_dataset/"])
def test_zip_reads_like_the_folder(tmp_path, home, prefix):
    folder = competition(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"__MACOSX/{prefix}._state_mapping.csv", "junk")
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    zipped = places.read(tmp_path / "a.zip")
    assert zipped.key == places.read(folder).key
    image = zipped.rows("test")["image_east"][1]
    assert Files(zipped.folder).read(image) == (folder / image).read_bytes()
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-200])
    with pytest.raises(KitError, match=r"not a readable .zip"):
        places.read(tmp_path / "cut.zip")


def test_data_under_raw_is_found_by_name(home):
    competition(paths.raw_dir() / "mine")
    assert places.read("mine").name == "mine"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.drop(columns="state"), "lacks state; columns found: sample_id, image_north.*needed: sample_id"),
        (put(3, "sample_id", "0"), "sample_id given twice: sample_id 0, 0"),
        (put(3, "sample_id", " "), "an empty sample_id"),
        (put(3, "image_west", "img_000002_west.jpg"), r"picture named twice: sample_id 2 \(.*\), 3 \("),
        (put(3, "image_west", "img_000003_east.jpg"), r"picture named twice: sample_id 3 \("),
        (put(4, "latitude", "91"), r"latitude must be a number in \[-90, 90\].*sample_id 4 \(91.0, -92.0\)"),
        (put(4, "longitude", "-190.5"), r"longitude in \[-180, 180\].*sample_id 4"),
        (put(4, "longitude", ""), "sample_id 4"),
        (put(4, "latitude", "north"), "sample_id 4"),
        (put(5, "state_idx", "2"), r"state_idx absent from state_mapping.csv: sample_id 5 \(2\)"),
        (put(5, "state_idx", ""), "state_idx absent"),
        (put(5, "state_idx", "3"), r"disagree with state_mapping.csv: sample_id 5 \(Washington, 3\)"),
        (put(5, "state", "Texas"), r"disagree with state_mapping.csv: sample_id 5 \(Texas, 46\)"),
        (lambda t: t.iloc[:0], "has no rows"),
    ],
)
def test_broken_training_table_is_refused(tmp_path, home, change, told):
    folder = competition(tmp_path)
    edit(folder, change)
    with pytest.raises(KitError, match=f"train_ground_truth.csv.*{told}") as error:
        places.read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("sample_submission.csv", put(1, "sample_id", "0"), "sample_id given twice: sample_id 0, 0"),
        ("sample_submission.csv", lambda t: t.drop(columns=[*IMAGES]), "lacks image_north, image_east"),
        ("sample_submission.csv", lambda t: t.drop(columns="predicted_latitude"), "lacks predicted_latitude"),
        ("state_mapping.csv", put(1, "state_idx", "1"), "line 3: each state_idx must be"),
        ("state_mapping.csv", put(1, "state", "Alaska"), "line 3"),
        ("state_mapping.csv", put(2, "state_idx", "4.5"), "line 4"),
        ("state_mapping.csv", put(2, "state", ""), "line 4"),
    ],
)
def test_broken_template_or_mapping_is_refused(tmp_path, home, name, change, told):
    folder = competition(tmp_path)
    edit(folder, change, name)
    with pytest.raises(KitError, match=f"{name}.*{told}"):
        places.read(folder)


@pytest.mark.parametrize("name", ["sample_submission.csv", "state_mapping.csv"])
def test_missing_file_is_named(tmp_path, home, name):
    folder = competition(tmp_path)
    (folder / name).unlink()
    with pytest.raises(KitError, match=f"{name} is missing in .*found there: .*train_ground_truth.csv"):
        places.read(folder)


def test_missing_picture_folder_is_refused_and_a_missing_picture_noted(tmp_path, home):
    folder = competition(tmp_path)
    edit(folder, put(2, "image_east", ""))
    (folder / "train_images/img_000004_south.jpg").unlink()
    read = places.read(folder)
    assert found(read, "missing picture") == {
        "check": "missing picture",
        "where": "train pictures",
        "count": 2,
        "examples": ["2 east", "4 south"],
        "action": "another view of the place stands in",
    }
    assert read.rows("train")["image_east"][2] == ""
    shutil.rmtree(folder / "test_images")
    with pytest.raises(KitError, match=r"none of the 12 pictures of sample_submission.csv is in test_images/"):
        places.read(folder)


def test_what_users_have_is_read_all_the_same(tmp_path, home):
    """A BOM, Windows line ends, spaces around cells, upper-case extensions, rows in another column order."""
    folder = competition(tmp_path)
    plain = places.read(folder)
    text = (folder / "train_ground_truth.csv").read_text().replace(",", " , ").replace("\n", "\r\n")
    (folder / "train_ground_truth.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    edit(folder, lambda table: table[list(table)[::-1]], "sample_submission.csv")
    pd.testing.assert_frame_equal(places.read(folder).table, plain.table)
    for path in (folder / "train_images").iterdir():
        path.rename(path.with_suffix(".JPG"))
    assert places.read(folder).rows("train")["image_north"][0] == "train_images/img_000000_north.JPG"
    assert places.read(folder).integrity == []


def test_latin_1_is_read_and_noted(tmp_path, home):
    folder = competition(tmp_path)
    for name in ("state_mapping.csv", "train_ground_truth.csv"):
        text = (folder / name).read_text().replace("Arkansas", "Québec")
        (folder / name).write_bytes(text.encode("latin-1"))
    read = places.read(folder)
    assert read.states["state"].tolist() == ["Alaska", "Québec", "Washington"]
    assert [e["where"] for e in read.integrity] == ["train_ground_truth.csv", "state_mapping.csv"]


def test_states_without_places_and_strange_places_are_noted(tmp_path, home):
    folder = competition(tmp_path, n_train=30)
    edit(folder, lambda t: pd.concat([t, pd.DataFrame([{"state_idx": "9", "state": "Guam"}])]), "state_mapping.csv")
    edit(folder, put(1, "longitude", "92.3"))  # a lost minus sign
    edit(folder, lambda t: t.assign(latitude=t["latitude"].mask(t.index == 2, "34.8")))
    edit(folder, lambda t: t.assign(longitude=t["longitude"].mask(t.index == 2, "-92.4")))  # Washington in Arkansas
    read = places.read(folder)
    assert found(read, "state without training places")["examples"] == ["Guam"]
    far = found(read, "place far from its state")
    assert far["count"] == 2
    assert far["examples"][0].startswith("1: Arkansas") and far["examples"][1].startswith("2: Washington")
    assert read.states["state_idx"].tolist() == [1, 3, 9, 46]
    assert read.state_position("train")[:3].tolist() == [0, 1, 3]


def test_text_ids_stay_text(tmp_path, home):
    folder = competition(tmp_path)
    edit(folder, lambda table: table.assign(sample_id=table["sample_id"].str.zfill(3)))
    read = places.read(folder)
    assert read.sample_id("train")[7] == "007"
    assert read.template["sample_id"].tolist() == ["0", "1", "2"]


def test_save_writes_the_table_and_the_findings(tmp_path, home):
    folder = competition(tmp_path)
    (folder / "train_images/img_000004_south.jpg").unlink()
    read = places.read(folder)
    seen = places.finding("missing picture", "train pictures", ["4 south", "5 south"], "from the pack")
    derived = read.save([seen, places.finding("blank picture", "test pictures", ["0 east"], "kept")])
    assert derived == read.derived
    pd.testing.assert_frame_equal(pd.read_parquet(derived / "places.parquet"), read.table, check_dtype=False)
    entries = json.loads((derived / "integrity.json").read_text())
    assert [(e["check"], e["count"]) for e in entries] == [("missing picture", 2), ("blank picture", 1)]
    assert sorted(p.name for p in derived.iterdir()) == ["integrity.json", "places.parquet"]


def test_unknown_folders_are_refused_with_what_is_known(tmp_path, home):
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KitError, match=r"train_ground_truth.csv.*metadata.csv.*CSV files found: labels.csv"):
        places.read(tmp_path)


def test_real_us(real_us, home):
    read = places.read(real_us)
    assert len(read.rows("train")) == 395 and len(read.rows("test")) == 135 and len(read.states) == 31
    assert read.integrity == []
    assert (read.state_position("train") >= 0).all()
