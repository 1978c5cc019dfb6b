from __future__ import annotations

import os
import struct
import unicodedata
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from kitlib.core.errors import KitError, shorten
from kitlib.data import tables
from kitlib.data.files import Files


@pytest.fixture(params=["folder", "folder in folders", "zip", "zip in folders", "zip of Windows"])
def files(request, tmp_path) -> Files:
    """The same few files in each of the forms that people have."""
    root = top = tmp_path / "data"
    if request.param == "folder in folders":
        root = top / "a/b"
        (top / "__MACOSX").mkdir(parents=True)
    for name in ("a.csv", "pictures/One.JPG", "pictures/two.jpg", "pictures/TWO.jpg", "deep/er/three.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "pictures/.DS_Store").write_bytes(b"junk")
    if request.param.startswith("folder"):
        return Files(top)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        prefix = "wrapped/twice/" if "in folders" in request.param else ""
        archive.writestr("__MACOSX/._a.csv", b"junk")
        for path in root.rglob("*.*"):
            info = zipfile.ZipInfo(prefix + path.relative_to(root).as_posix())
            if request.param == "zip of Windows":
                info.filename = info.filename.replace("/", "\\")
            archive.writestr(info, path.read_bytes())
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


def test_either_unicode_form_of_files_and_folders_is_found(tmp_path):
    apart = unicodedata.normalize("NFD", "Zürich")
    (tmp_path / apart).mkdir()
    (tmp_path / apart / f"{apart}.JPG").write_bytes(b"x")
    (tmp_path / "a.csv").write_bytes(b"")
    paths, there = Files(tmp_path).resolve(pd.Series(["zürich/Zürich.jpg", f"{apart}/{apart}.jpg"]), [""])
    assert there.all() and set(paths) == {f"{apart}/{apart}.JPG"}


def test_only_regular_files_exist_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    (tmp_path / "good.csv").write_text("a\n1\n")
    files = Files(tmp_path)
    assert files.names() == ["good.csv"]
    odd = ["pipe.csv", "folder.csv", "device.csv", "circle.csv"]
    assert files.stamps(odd) == [""] * 4
    assert not files.resolve(pd.Series(odd), [""])[1].any()
    for name, kind in zip(
        odd, ("a pipe", "a folder", "a pipe, socket or device", "the link leads to itself"), strict=True
    ):
        with pytest.raises(KitError, match=f"{name} in .* cannot be read: .*{kind}"):
            files.read_csv(name)
    with pytest.raises(FileNotFoundError):
        files.read("x" * 20 + "/none.jpg")
    assert files.resolve(pd.Series(["x" * 300 + ".jpg", "x" * 300 + "/a.jpg"]), [""])[1].tolist() == [False, False]


def test_links_to_folders_are_followed_and_pictures_outside_are_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").write_bytes(b"mine")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "private.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    (data / "2.jpg").write_bytes(b"two")
    (data / "inside.jpg").symlink_to("2.jpg")
    paths, there = Files(data).resolve(pd.Series(["linked/1.jpg", "private.jpg", "inside.jpg"]), [""])
    assert paths.tolist() == ["linked/1.jpg", "", "inside.jpg"] and there.tolist() == [True, False, True]


def archive_with(tmp_path: Path, flag: int = 0, method: int = 0, flip: bool = False, size: int | None = None) -> Files:
    """A zip of one stored table that has a flag, a method, a wrong byte or a size that lies."""
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", "a,b\n1,2\n")
    raw = bytearray(path.read_bytes())
    for start in (raw.index(b"PK\3\4") + 6, raw.index(b"PK\1\2") + 8):
        raw[start] |= flag
        raw[start + 2] |= method
        if size is not None:
            raw[start + 16 : start + 20] = struct.pack("<I", size)
    if flip:
        raw[raw.index(b"1,2")] ^= 1
    path.write_bytes(raw)
    return Files(path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"flag": 1}, "encrypted: unpack the archive with its password"),
        ({"method": 9}, "packed by a method that Python cannot unpack: unpack the archive by other means"),
        ({"flip": True}, r"damaged \(Bad CRC-32 .*\): download the archive again"),
        ({"size": 4}, r"damaged \(Bad CRC-32 .*\): download the archive again"),  # no more than it says is unpacked
        ({"size": 1 << 31}, r"expected at most 512 MiB; got 2,048"),
    ],
)
def test_a_zip_that_cannot_be_read_is_one_sentence(tmp_path, fault, message):
    with pytest.raises(KitError, match=rf"^t.csv in .*t.zip cannot be read: {message}$"):
        archive_with(tmp_path, **fault).read_csv("t.csv")


def test_nothing_outside_is_found(tmp_path):
    (tmp_path / "private.jpg").write_bytes(b"x")
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/1.jpg").write_bytes(b"x")
    names = ["../private.jpg", f"{tmp_path}/private.jpg", "../../private.jpg", "images/../1.jpg"]
    assert Files(tmp_path / "data").resolve(pd.Series(names), [""])[1].tolist() == [False, False, False, True]


def test_limit_of_bytes(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"a\n" + b"1\n" * (1 << 20))
    monkeypatch.setattr(tables, "BYTES", 1 << 20)
    with pytest.raises(KitError, match=r"t.csv in .* cannot be read: expected at most 1 MiB; got 2"):
        Files(tmp_path).read_csv("t.csv")
    with pytest.raises(OSError, match="expected at most 1 MiB"):
        Files(tmp_path).read("t.csv", 1 << 20)


def test_shorten():
    assert shorten([]) == "nothing" and shorten(range(3)) == "0, 1, 2" and shorten(range(9), 2) == "0, 1 and 7 more"
