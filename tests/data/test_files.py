from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files


@pytest.fixture(params=["folder", "zip", "zip in a folder"])
def files(request, tmp_path) -> Files:
    """The same few files in each of the forms that people have."""
    root = tmp_path / "data"
    for name in ("a.csv", "pictures/One.JPG", "pictures/two.jpg", "pictures/TWO.jpg", "deep/er/three.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "pictures/.DS_Store").write_bytes(b"junk")
    if request.param == "folder":
        return Files(root)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        prefix = "wrapped/" if "in" in request.param else ""
        archive.writestr("__MACOSX/._a.csv", b"junk")
        for path in root.rglob("*"):
            archive.write(path, prefix + path.relative_to(root).as_posix())
    return Files(tmp_path / "data.zip")


def test_names_and_bytes(files):
    assert files.names() == ["a.csv"]
    assert files.names("pictures") == ["One.JPG", "TWO.jpg", "two.jpg"]
    assert files.names("nowhere") == []
    assert files.read("deep/er/three.jpg") == b"deep/er/three.jpg"
    with pytest.raises(FileNotFoundError):
        files.read("pictures/four.jpg")
    one, none = files.stamps(["a.csv", "b.csv"])
    assert one and none == ""


def test_resolve_takes_the_fullest_folder_and_forgives_case(files):
    names = pd.Series(["one.jpg", "two.jpg", "TWO.jpg", "Two.jpg", "four.jpg", ""])
    paths, there = files.resolve(names, ["nowhere", "deep", "pictures", ""])
    assert there.tolist() == [True, True, True, True, False, False]
    assert paths[:3].tolist() == ["pictures/One.JPG", "pictures/two.jpg", "pictures/TWO.jpg"]
    assert paths[4:].tolist() == ["pictures/four.jpg", ""]
    paths, there = files.resolve(pd.Series(["er/three.jpg", "./er/three.jpg"]), ["", "deep"])
    assert there.all() and set(paths) == {"deep/er/three.jpg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a CSV table"), (b"a,b\n1,2,3\n4\n5,6,7,8\n", "not a CSV table"), (b"a,b\n1,2,3\n", "not a CSV table")],
)
def test_what_is_no_csv_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(KitError, match=message):
        Files(tmp_path).read_csv("t.csv")


def test_csv_is_text_whatever_wrote_it(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid , name\r\n007, NA\r\n\r\n08,\r\n")
    table, encoding = Files(tmp_path).read_csv("t.csv")
    assert table.to_dict("list") == {"id": ["007", "08"], "name": ["NA", ""]} and encoding == "utf-8"
    (tmp_path / "t.csv").write_text('id,name\n1, "a, b"\n3\n')
    table, _ = Files(tmp_path).read_csv("t.csv")
    assert table.to_dict("list") == {"id": ["1", "3"], "name": ["a, b", ""]}
    (tmp_path / "t.csv").write_bytes("name\nSão\n".encode("latin-1"))
    table, encoding = Files(tmp_path).read_csv("t.csv")
    assert table["name"][0] == "São" and encoding == "latin-1"


def test_neither_folder_nor_zip_is_refused(tmp_path):
    with pytest.raises(KitError, match=r"neither a folder nor a \.zip"):
        Files(tmp_path / "nothing")
    (tmp_path / "x.zip").write_bytes(b"PK no")
    with pytest.raises(KitError, match=r"x\.zip: not a readable \.zip .*download it again"):
        Files(Path(tmp_path / "x.zip"))


def test_shorten():
    assert shorten([]) == "nothing" and shorten(range(3)) == "0, 1, 2" and shorten(range(9), 2) == "0, 1 and 7 more"
