from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_helper import competition
from picture_helper import encoded, scene
from PIL import Image, ImageFilter

from kitlib.core import paths
from kitlib.core.errors import Damaged, KitError
from kitlib.data import picture_checks, pictures, readers


@pytest.fixture
def folder(tmp_path, home) -> Path:
    """A correct competition of 12 and 3 places with a scene of its own in every picture, 64 px."""
    root = competition(tmp_path / "tiny")
    for seed, path in enumerate(sorted(root.glob("*_images/*.jpg"))):
        path.write_bytes(encoded(scene(64, seed)))
    return root


def image(folder: Path, i: int, view: str, split: str = "train") -> Path:
    return folder / f"{split}_images/img_{i:06d}_{view}.jpg"


def files_of(folder: Path, split: str) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if split in p.name and p.suffix != ".lock")


def told(pack: pictures.Pack) -> dict[str, list[str]]:
    for entry in pack.problems():
        assert set(entry) == {"check", "where", "count", "examples", "action"}
        assert entry["where"] == f"{pack.split} pictures" and entry["count"] >= len(entry["examples"]) > 0
    return {entry["check"]: entry["examples"] for entry in pack.problems()}


def test_pack_holds_the_very_bytes_in_the_order_of_the_rows(folder):
    read = readers.read(folder)
    for split, n in (("train", 12), ("test", 3)):
        pack = pictures.pack(read, split)
        assert pack.usable.shape == (n, 4) and pack.usable.all() and pack.problems() == []
        assert pack.sample_id.tolist() == list(range(n)) and pack.views == readers.VIEWS
        for i in range(n):
            for v, view in enumerate(readers.VIEWS):
                assert pack.read(i, v) == image(folder, i, view, split).read_bytes()
        assert files_of(pack.blob.parent, split) == [f"{split}.bin", f"{split}.npz"]
    assert pictures.pack(read, "train").checksum != pictures.pack(read, "test").checksum


def test_decode_is_what_pil_shows(folder):
    pack = pictures.pack(readers.read(folder), "train")
    rows = np.array([7, 0, 7])
    shown = pack.decode(rows)
    assert shown.shape == (3, 4, 64, 64, 3) and shown.dtype == np.uint8
    for b, i in enumerate(rows):
        for v, view in enumerate(readers.VIEWS):
            assert np.array_equal(shown[b, v], np.asarray(Image.open(image(folder, i, view))))
    assert pack.decode(np.array([], int)).shape == (0, 4, 64, 64, 3)
    assert pack.decode(rows, size=32).shape == (3, 4, 32, 32, 3)
    assert pack.decode(rows, size=80).shape == (3, 4, 80, 80, 3)
    assert np.array_equal(pack.decode(rows, size=64), shown)


def test_broken_pictures_are_named_and_another_view_stands_in(folder):
    north, east = image(folder, 2, "north"), image(folder, 5, "east")
    north.write_bytes(north.read_bytes()[:900])
    east.unlink()
    image(folder, 5, "south").write_bytes(b"")
    for view in readers.VIEWS:
        image(folder, 9, view).write_bytes(b"no picture")
    pack = pictures.pack(readers.read(folder), "train")
    assert np.argwhere(~pack.usable).tolist() == [[2, 0], [5, 1], [5, 2], [9, 0], [9, 1], [9, 2], [9, 3]]
    found = told(pack)
    assert set(found) == {"missing picture", "damaged picture", "place without a usable picture"}
    assert found["missing picture"] == ["5 east"]
    assert found["damaged picture"][0].startswith("2 north: ") and found["damaged picture"][1] == "5 south: empty file"
    assert found["place without a usable picture"] == ["9"]
    assert np.flatnonzero(pack.unusable_places).tolist() == [9]
    shown = pack.decode(np.array([2, 5, 9]))
    views = {view: np.asarray(Image.open(image(folder, 2, view))) for view in readers.VIEWS[1:]}
    assert np.array_equal(shown[0, 0], views["east"]) and np.array_equal(shown[0, 1], views["east"])
    west = np.asarray(Image.open(image(folder, 5, "west")))
    assert all(np.array_equal(shown[1, v], west) for v in (1, 2, 3))
    assert (shown[2] == pictures.GREY).all()
    assert pack.read(2, 0) == b"" and (pack.hashes[~pack.usable] == 0).all()


def test_odd_pictures_are_converted_kept_and_reported(folder):
    image(folder, 0, "north").write_bytes(encoded(scene(64, 500).convert("L")))
    image(folder, 1, "north").write_bytes(encoded(scene(64, 501).convert("CMYK")))
    image(folder, 2, "north").write_bytes(encoded(scene(64, 502).convert("RGBA"), "PNG"))
    image(folder, 3, "north").write_bytes(encoded(scene(90, 503, width=120)))
    image(folder, 4, "north").write_bytes(encoded(Image.new("RGB", (64, 64), (20, 20, 20))))
    image(folder, 5, "north").write_bytes(encoded(scene(64, 505).filter(ImageFilter.GaussianBlur(4))))
    image(folder, 11, "west").write_bytes(image(folder, 0, "east").read_bytes())
    pack = pictures.pack(readers.read(folder), "train")
    assert pack.usable.all() and pack.sizes == [(64, 64)]
    assert told(pack) == {
        "picture not an RGB JPEG": ["0 north: JPEG L", "1 north: JPEG CMYK", "2 north: PNG RGBA"],
        "picture of another size": ["3 north: 120x90"],
        "blank picture": ["4 north"],
        "picture blurred to nothing": ["5 north"],
        "same picture at places far apart": ["0 and 11"],
    }
    assert pack.blank[4, 0] and pack.blurred[5, 0] and pack.hashes[4, 0] == pack.hashes[5, 0] == 0
    read = readers.read(folder)
    assert "PNG RGBA" in (read.save(pack.problems()) / "integrity.json").read_text()


def test_zip_packs_like_the_folder(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, f"kaggle_dataset/{path.relative_to(folder).as_posix()}")
    zipped = pictures.pack(readers.read(tmp_path / "tiny.zip"), "train", tmp_path / "from_zip")
    loose = pictures.pack(readers.read(folder), "train", tmp_path / "from_folder")
    assert zipped.checksum == loose.checksum
    assert np.array_equal(zipped.decode(np.arange(12)), loose.decode(np.arange(12)))
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        at = archive.getinfo("kaggle_dataset/train_images/img_000000_north.jpg").header_offset + 800
    broken = bytearray((tmp_path / "tiny.zip").read_bytes())
    broken[at] ^= 255
    (tmp_path / "tiny.zip").write_bytes(bytes(broken))
    pack = pictures.pack(readers.read(tmp_path / "tiny.zip"), "train", tmp_path / "from_broken_zip")
    assert (~pack.usable).sum() == 1 and "damaged picture" in told(pack)


def test_cached_until_a_picture_changes(folder, monkeypatch):
    read = readers.read(folder)
    first = pictures.pack(read, "train")
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "examine", None)  # nothing is looked at again
        assert pictures.pack(read, "train").checksum == first.checksum
    touched = image(folder, 3, "east")
    os.utime(touched, ns=(1, 1))
    assert pictures.pack(read, "train").checksum == first.checksum  # packed again, the same content
    touched.write_bytes(encoded(scene(64, 777)))
    changed = pictures.pack(read, "train")
    assert changed.checksum != first.checksum and changed.read(3, 1) == touched.read_bytes()
    changed.blob.write_bytes(changed.blob.read_bytes()[:-5])
    assert pictures.pack(read, "train").read(11, 3) == image(folder, 11, "west").read_bytes()


def spoil(pack: pictures.Pack, i: int, v: int) -> None:
    """Change a byte in the middle of a packed picture."""
    start, length = pack.offsets[i, v]
    with pack.blob.open("r+b") as file:
        file.seek(start + length // 2)
        byte = file.read(1)[0]
        file.seek(start + length // 2)
        file.write(bytes([byte ^ 255]))


def test_a_packed_picture_that_is_damaged_is_read_again_from_its_file(folder, caplog):
    image(folder, 3, "north").write_bytes(encoded(scene(80)))  # of another size: stored as it was converted
    read = readers.read(folder)
    pack = pictures.pack(read, "train")
    whole, shown = pack.blob.read_bytes(), pack.decode(np.arange(12))
    for place in ((7, 2), (3, 0)):
        spoil(pack, *place)
    assert np.array_equal(pictures.pack(read, "train").decode(np.arange(12)), shown)
    assert caplog.text.count("it is read again from its file") == 2 and "picture of 7 south is damaged" in caplog.text
    assert pack.blob.read_bytes() == whole
    spoil(pack, 7, 2)
    image(folder, 7, "south").write_bytes(encoded(scene(64, 99)))
    with pytest.raises(
        Damaged, match=r"train\.bin in pictures: the picture of 7 south is damaged, and its file is not"
    ):
        pack.decode(np.array([7]))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_table_of_a_pack_is_made_anew(folder, damage, caplog):
    read = readers.read(folder)
    pack = pictures.pack(read, "train")
    table = pack.blob.with_suffix(".npz")
    whole = table.read_bytes()
    at = whole.index(pack.content[5, 1].tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    table.write_bytes({"cut": whole[:-50], "flipped": flipped, "empty": b"", "other": b"[]"}[damage])
    again = pictures.pack(read, "train")
    assert again.checksum == pack.checksum and table.read_bytes() == whole
    assert "train.npz in pictures; it is made anew" in caplog.text


def test_a_killed_pass_goes_on_where_it_was(folder, monkeypatch):
    read = readers.read(folder)
    whole = pictures.pack(read, "train", paths.home() / "whole")
    looked: list[bytes] = []
    again: list[bytes] = []  # threads of the killed pass may add some that the next one looks at too

    def killed(data, size=None):
        looked.append(data)
        if len(looked) > 30:
            raise KeyboardInterrupt
        return real(data, size)

    real = picture_checks.examine
    monkeypatch.setattr(pictures, "SHARD", 3)
    monkeypatch.setattr(pictures, "examine", killed)
    out = paths.home() / "killed"
    with pytest.raises(KeyboardInterrupt):
        pictures.pack(read, "train", out)
    assert not (out / "train.bin").exists() and not (out / "train.npz").exists()
    monkeypatch.setattr(pictures, "examine", lambda data, size=None: again.append(data) or real(data, size))
    resumed = pictures.pack(read, "train", out)
    assert 0 < len(set(again)) <= 24  # of 48: two shards of 12 pictures were safe
    assert resumed.checksum == whole.checksum and resumed.blob.read_bytes() == whole.blob.read_bytes()
    assert files_of(out, "train") == ["train.bin", "train.npz"]


def test_two_processes_make_one_pack(folder):
    out = paths.home() / "shared"
    code = f"""
from pathlib import Path
from kitlib.data import pictures
from kitlib.data import readers as places
pictures.pack(places.read({str(folder)!r}), "train", Path({str(out)!r}))
"""
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    pack = pictures.pack(readers.read(folder), "train", out)
    assert pack.read(11, 3) == image(folder, 11, "west").read_bytes() and files_of(out, "train") == [
        "train.bin",
        "train.npz",
    ]


def test_a_split_without_places_is_an_empty_pack(tmp_path, home):
    (tmp_path / "0.jpg").write_bytes(encoded(scene()))
    (tmp_path / "metadata.csv").write_text("file_name,latitude,longitude,country\n0.jpg,1,1,A\n")
    pack = pictures.pack(readers.read(tmp_path), "test")
    assert pack.usable.shape == (0, 1) and pack.problems() == []
    assert pack.decode(np.array([], int), size=8).shape == (0, 1, 8, 8, 3)
    with pytest.raises(KitError, match="none is usable"):
        pack.decode(np.array([], int))


def test_other_sources_keep_their_sizes_and_decode_to_one(tmp_path, home):
    (tmp_path / "images").mkdir()
    rows = ["file_name,latitude,longitude,country"]
    for i, (height, width) in enumerate([(80, 120), (200, 64), (600, 900)]):
        (tmp_path / f"images/{i}.jpg").write_bytes(encoded(scene(height, i, width=width), quality=95))
        rows.append(f"{i}.jpg,{i},{i},A")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    pack = pictures.pack(readers.read(tmp_path), "train")
    assert pack.sizes == [(80, 120), (200, 64), (600, 900)] and pack.problems() == []
    with pytest.raises(KitError, match=r"no common size \(120x80 to 900x600\).*size="):
        pack.decode(np.arange(3))
    shown = pack.decode(np.arange(3), size=64)
    assert shown.shape == (3, 1, 64, 64, 3)
    for i in range(3):
        picture = Image.open(tmp_path / f"images/{i}.jpg")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        middle = picture.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(shown[i, 0].astype(int) - np.asarray(middle, int)).mean() < 4


def test_what_is_lost_is_logged_once(folder, caplog):
    image(folder, 3, "south").write_bytes(b"")
    image(folder, 4, "north").write_bytes(b"<html>")
    image(folder, 5, "east").unlink()
    read = readers.read(folder)
    for _ in range(2):
        pictures.pack(read, "train")
    (line,) = [record.message for record in caplog.records]
    lost = "1 x missing picture (e.g. 5 east), 2 x damaged picture (e.g. 3 south: empty file)"
    assert line == f"train pictures, 48 in all: {lost}"


def test_nothing_to_learn_from_is_refused_however_often(folder):
    for path in (folder / "train_images").iterdir():
        path.write_bytes(b"")
    image(folder, 11, "west").unlink()
    read = readers.read(folder)
    message = (
        r"^no training place has a usable picture \(1 of 48 are missing, e.g. 11 west; "
        r"47 of 48 are damaged, e.g. 0 north: empty file\)$"
    )
    for _ in range(2):
        with pytest.raises(KitError, match=message):
            pictures.pack(read, "train")
    assert pictures.pack(read, "test").usable.all()


def test_turned_pictures_are_turned_before_the_commonest_size_is_looked_for(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for seed, path in enumerate(sorted((folder / "train_images").iterdir())):
        path.write_bytes(encoded(scene(64, seed, width=48), exif=exif))
    pack = pictures.pack(readers.read(folder), "train")
    assert pack.sizes == [(48, 64)]
    assert set(told(pack)) == {"picture turned by its EXIF orientation"}


def test_pictures_that_lose_their_sides_are_told(tmp_path, home, caplog):
    rows = ["file_name,latitude,longitude,country"]
    for i, width in enumerate((159, 160, 400)):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(scene(64, i, width=width)))
        rows.append(f"{i}.jpg,{i},{i},A")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    pack = pictures.pack(readers.read(tmp_path), "train")
    assert told(pack) == {"picture much wider than high": ["1 only: 160x64", "2 only: 400x64"]}
    assert "2 x picture much wider than high (e.g. 1 only: 160x64)" in caplog.text


def test_what_is_no_file_is_named_and_never_waited_for(folder):
    read = readers.read(folder)
    image(folder, 0, "north").unlink()
    os.mkfifo(image(folder, 0, "north"))
    image(folder, 1, "north").unlink()
    image(folder, 1, "north").mkdir()
    assert told(pictures.pack(read, "train"))["damaged picture"] == [
        "0 north: expected a file; got a pipe, socket or device",
        "1 north: expected a file; got a folder",
    ]


def test_real_us_flags_what_a_person_flags(real_us, home):
    pack = pictures.pack(readers.read(real_us), "train")
    i, _ = np.nonzero(pack.blurred)
    assert sorted(set(pack.sample_id[i].tolist())) == [262, 273] and len(i) == 8  # looked at: a thumb, a lens flare
    assert pack.usable.all() and not pack.blank.any() and pack.sizes == [(256, 256)]
    assert [entry["check"] for entry in pack.problems()] == ["picture blurred to nothing"]
