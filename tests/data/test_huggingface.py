from __future__ import annotations

import pytest
from picture_helper import encoded, scene

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import huggingface, pictures, places, readers

datasets = pytest.importorskip("datasets")


def rows(n: int = 7, seed: int = 0) -> dict[str, list]:
    return {
        "image": [{"bytes": encoded(scene(48, seed + i)), "path": None} for i in range(n)],
        "latitude": [10.0 + i for i in range(n)],
        "longitude": [20.0 - i for i in range(n)],
        "country": ["Pérou", "Chile"] * (n // 2) + ["Chile"] * (n % 2),
        "image_score": [0.5] * n,
    }


def dataset(n: int = 7, **other):
    features = datasets.Features(
        image=datasets.Image(),
        latitude=datasets.Value("float64"),
        longitude=datasets.Value("float64"),
        country=datasets.Value("string"),
        image_score=datasets.Value("float32"),
    )
    return datasets.Dataset.from_dict(rows(n) | other, features=features)


def test_a_loaded_dataset_becomes_places(home):
    data = dataset()
    read = readers.read_hugging_face(data, name="peru")
    assert read.name == "peru" and read.views == ("only",) and read.integrity == []
    assert read.states["state"].tolist() == ["Chile", "Pérou"]
    train = read.rows("train")
    assert train["sample_id"].tolist() == list(range(7)) and train["latitude"].tolist() == [10 + i for i in range(7)]
    for i, image in enumerate(train["image_only"]):
        assert (read.folder / image).read_bytes() == rows()["image"][i]["bytes"]
    assert sorted(p.name for p in read.folder.iterdir()) == ["images", "metadata.csv", "rows.jsonl", "source.json"]
    assert readers.read("peru").key == read.key
    assert pictures.pack(read, "train").usable.all()


def test_short_names_of_coordinates_are_known(home):
    short = dataset().rename_columns({"latitude": "lat", "longitude": "lon"})
    assert readers.read_hugging_face(short, name="a").points("train").tolist() == [[10 + i, 20 - i] for i in range(7)]


def test_a_local_parquet_folder_is_streamed_once(home, tmp_path, monkeypatch):
    (tmp_path / "hub/data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    read = readers.read_hugging_face(tmp_path / "hub", "train", "mine")
    assert len(read.rows("train")) == 7
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert readers.read_hugging_face(tmp_path / "hub", "train", "mine").key == read.key
    assert "hub" in (read.folder / "source.json").read_text()
    assert tmp_path.name not in (read.folder / "source.json").read_text()
    (tmp_path / "other/hub").mkdir(parents=True)
    with pytest.raises(KitError, match=r"holds .*hub \(train\), not .*hub \(train\): choose another name"):
        readers.read_hugging_face(tmp_path / "other/hub", "train", "mine")
    with pytest.raises(KitError, match=r"holds .*hub \(train\), not .*hub \(test\): choose another name"):
        readers.read_hugging_face(tmp_path / "hub", "test", "mine")


def test_a_data_set_of_hugging_face_is_named_where_a_folder_is(home, tmp_path):
    (tmp_path / "elsewhere/hub/data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "elsewhere/hub/data/train-00000-of-00001.parquet")
    for name in (f"hf:{tmp_path / 'elsewhere/hub'}", f"hf:{tmp_path / 'elsewhere/hub'}@train"):
        places = readers.load(name)
        assert len(places.rows("train")) == 7 and places.folder == home / "data/raw/hub"


def test_the_first_rows_alone_are_named_behind_a_hash_and_have_a_folder_of_their_own(home, tmp_path, monkeypatch):
    (tmp_path / "hub/data").mkdir(parents=True)
    gaps = dataset(latitude=[10.0, None, 12.0, 13.0, 14.0, 15.0, 16.0]).rename_columns(
        {"latitude": "lat", "longitude": "lng"}
    )
    gaps.to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    few, some = (readers.load(f"hf:{tmp_path / 'hub'}{limit}") for limit in ("#3", "@train#5"))
    assert few.rows("train")["sample_id"].tolist() == [0, 2] and len(some.rows("train")) == 4
    assert [entry["count"] for entry in few.integrity if entry["check"] == "row without coordinates"] == [1]
    assert few.folder == home / "data/raw/hub-3" and some.folder == home / "data/raw/hub-5"
    monkeypatch.setattr(datasets, "load_dataset", None)  # kept: nothing is streamed again
    assert readers.load(f"hf:{tmp_path / 'hub'}#3").checksum == few.checksum
    for wrong in ("#0", "#-1", "#many", "#3@train", "@"):
        with pytest.raises(KitError, match=r"data set: expected hf:OWNER/NAME, perhaps with @SPLIT and #ROWS"):
            readers.load(f"hf:a/b{wrong}")


@pytest.mark.parametrize("streamed", [False, True])
def test_limit_and_going_on_from_there(home, streamed):
    data = dataset().to_iterable_dataset() if streamed else dataset()
    assert len(readers.read_hugging_face(data, name="a", limit=3).rows("train")) == 3
    images = paths.raw_dir() / "a/images"
    (images / "0000001_only.jpg").write_bytes(b"as it was")
    assert len(readers.read_hugging_face(data, name="a", limit=5).rows("train")) == 5
    assert (images / "0000001_only.jpg").read_bytes() == b"as it was"  # not written again
    whole = readers.read_hugging_face(data, name="a")
    assert whole.rows("train")["sample_id"].tolist() == list(range(7))


def test_a_killed_stream_goes_on(home):
    folder = paths.raw_dir() / "a"

    class Dropped(Exception):
        pass

    def broken():
        for i, (lat, picture) in enumerate(zip(range(7), rows()["image"], strict=True)):
            if i == 4:
                raise Dropped
            yield {"latitude": float(lat), "longitude": 0.0, "country": "A", "image": picture}

    features = datasets.Features({k: v for k, v in dataset().features.items() if k != "image_score"})
    with pytest.raises(Dropped):
        huggingface.fetch(datasets.IterableDataset.from_generator(broken, features=features), name="a")
    assert not (folder / "metadata.csv").exists()
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"sample_id": 4, "imag')  # killed in the middle of a line
    huggingface.fetch(dataset(), name="a")
    table = readers.read("a").rows("train")
    assert table["sample_id"].tolist() == list(range(7))
    assert table["state"].tolist()[:5] == ["A", "A", "A", "A", "Pérou"]


def test_rows_without_coordinates_are_left_out_and_noted(home):
    read = readers.read_hugging_face(dataset(latitude=[1.0, None, 3.0, 4.0, 5.0, 6.0, 7.0]), name="a")
    assert read.sample_id("train").tolist() == [0, 2, 3, 4, 5, 6]
    assert read.integrity == [places.finding("row without coordinates", "metadata.csv", ["1"], "left out")]
    with pytest.raises(KitError, match="has no row with latitude and longitude among 7"):
        readers.read_hugging_face(dataset(latitude=[None] * 7), name="b")


def test_views_class_labels_and_files(home, tmp_path):
    picture = tmp_path / "view.png"
    scene(48).save(picture)
    columns = {f"image_{view}": [str(picture)] * 2 for view in reversed(readers.VIEWS)}
    data = datasets.Dataset.from_dict(
        {**columns, "latitude": [1.0, 2.0], "longitude": [1.0, 2.0], "state": [1, 0]},
        features=datasets.Features(
            **{column: datasets.Image() for column in columns},
            latitude=datasets.Value("float32"),
            longitude=datasets.Value("float32"),
            state=datasets.ClassLabel(names=["Utah", "Iowa"]),
        ),
    )
    read = readers.read_hugging_face(data, name="views")
    assert read.views == readers.VIEWS and read.rows("train")["state"].tolist() == ["Iowa", "Utah"]
    assert read.rows("train")["image_east"].tolist() == ["images/0000000_east.png", "images/0000001_east.png"]
    assert (read.folder / "images/0000001_west.png").read_bytes() == picture.read_bytes()


def test_rows_open_no_file_outside_the_data_set(home, tmp_path):
    (tmp_path / "private.jpg").write_bytes(encoded(scene(48)))
    hub = tmp_path / "hub"
    (hub / "train").mkdir(parents=True)
    (hub / "train/own.jpg").write_bytes(encoded(scene(48, 1)))
    (hub / "link.jpg").symlink_to(tmp_path / "private.jpg")

    def picture(path: str, source: str = str(hub)) -> bytes:
        return huggingface.content({"bytes": None, "path": path}, source, "row 7")

    own = (hub / "train/own.jpg").read_bytes()
    assert picture(str(hub / "train/own.jpg")) == own
    for path in (
        str(tmp_path / "private.jpg"),
        str(hub / "../private.jpg"),
        str(hub / "link.jpg"),
        f"file://{hub}/train/own.jpg",
        f"zip://own.jpg::{tmp_path}/private.zip",
        "https://example.org/x.jpg",
        "hf://datasets/other/private/x.jpg",
        "/dev/zero",
    ):
        with pytest.raises(KitError, match=r"^row 7: expected a picture of the data set hub; got"):
            picture(path)
    chained = f"file://{tmp_path}/private.jpg::hf://datasets/owner/name@main/x.jpg"
    for path in (
        chained,
        "hf://datasets/other/x.jpg",
        "hf://datasets/owner/name@main/../../x.jpg",
        str(hub / "train/own.jpg"),
    ):
        with pytest.raises(KitError, match=r"^row 7: expected a picture of the data set name; got"):
            picture(path, "owner/name")
    assert huggingface._is_inside("zip://a.jpg::hf://datasets/owner/name@main/a.zip", "owner/name")


def test_a_parquet_that_names_a_file_of_this_machine_is_refused(home, tmp_path):
    (tmp_path / "private.jpg").write_bytes(encoded(scene(48)))
    (tmp_path / "hub/data").mkdir(parents=True)
    named = dataset().cast_column("image", datasets.Image(decode=False))
    table = named.to_pandas()
    table["image"] = [{"bytes": None, "path": str(tmp_path / "private.jpg")}] * 7
    datasets.Dataset.from_pandas(table, features=dataset().features).to_parquet(
        tmp_path / "hub/data/train-00000-of-00001.parquet"
    )
    with pytest.raises(KitError, match=r"row 0: expected a picture of the data set hub; got '.*private.jpg'"):
        readers.read_hugging_face(tmp_path / "hub", "train", "a")


def test_a_folder_of_pictures_is_streamed(home, tmp_path):
    (tmp_path / "hub/train").mkdir(parents=True)
    lines = ["file_name,latitude,longitude,country"]
    for i in range(3):
        (tmp_path / f"hub/train/{i}.jpg").write_bytes(encoded(scene(48, i)))
        lines.append(f"{i}.jpg,{i},{i},Chile")
    (tmp_path / "hub/train/metadata.csv").write_text("\n".join(lines))
    read = readers.read_hugging_face(tmp_path / "hub", "train", "a")
    assert (read.folder / "images/0000002_only.jpg").read_bytes() == (tmp_path / "hub/train/2.jpg").read_bytes()


def test_texts_of_several_lines_and_names_of_columns_do_no_harm(home):
    data = dataset(country=["Chile\nor so\0"] * 7).rename_column("image", "image_../../evil")
    data = data.add_column("image_b", [None] * 7, feature=datasets.Image())
    read = readers.read_hugging_face(data, name="a", region_column="country")
    assert read.states["state"].tolist() == ["Chile or so"]
    assert read.rows("train")["image_../../evil"][0] == "images/0000000_------evil.jpg"
    for name in ("..", "a/b", "x" * 300):
        with pytest.raises(KitError, match="name of the folder below data/raw: expected"):
            huggingface.fetch(data, name=name)
    (read.folder / "source.json").write_text("[]")
    with pytest.raises(KitError, match=r"source.json in a: expected a JSON dict"):
        huggingface.fetch(data, name="a")


def test_what_cannot_be_used_is_refused_before_anything_is_written(home):
    with pytest.raises(KitError, match="name: expected the folder"):
        huggingface.fetch(dataset())
    with pytest.raises(KitError, match=r"expected an Image column, latitude or lat.*got image, y, longitude, country"):
        huggingface.fetch(dataset().rename_column("latitude", "y"), name="a")
    with pytest.raises(KitError, match=r"expected an Image column.*got latitude"):
        huggingface.fetch(dataset().remove_columns("image"), name="a")
    assert not paths.raw_dir().exists()
