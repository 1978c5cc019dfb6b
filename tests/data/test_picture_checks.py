from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from picture_helper import encoded, scene
from PIL import Image, ImageFilter, ImageOps

from kitlib.data import picture_checks
from kitlib.data.picture_checks import BLURRED, TURNED, examine, far_twins, perceptual_hash, shape, sharpness
from kitlib.geo import EARTH_RADIUS_KM

KM = 1 / (np.radians(1.0) * EARTH_RADIUS_KM)  # degrees of latitude


def checks(picture) -> list[str]:
    return [check for check, _ in picture.found]


def test_a_sound_jpeg_is_kept_byte_for_byte():
    data = encoded(scene(128, width=160))
    picture = examine(data)
    assert picture.data == data and (picture.height, picture.width) == (128, 160)
    assert picture.found == () and not picture.blank and not picture.blurred and picture.hash != 0


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["plain", "progressive", "444"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98, -2])
def test_truncated_jpeg_is_damaged(options, share):
    data = encoded(scene(), quality=90, **options)
    cut = data[: int(len(data) * share)] if share > 0 else data[:share]
    picture = examine(cut)
    assert checks(picture) == ["damaged picture"] and picture.data == b"" and picture.hash == 0


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_large_jpeg_is_damaged_though_judged_at_a_smaller_scale(share):
    data = encoded(scene(1100))
    assert examine(data).found == ()
    assert checks(examine(data[: int(len(data) * share)])) == ["damaged picture"]


def test_corrupt_empty_and_foreign_files_are_damaged():
    data = bytearray(encoded(scene(), quality=90))
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    for broken in (bytes(data), b"", b"<html>404 not found</html>", encoded(scene(), "PNG")[:-300]):
        picture = examine(broken)
        assert checks(picture) == ["damaged picture"] and not picture.data
    assert examine(b"").found[0][1] == ": empty file"


@pytest.mark.parametrize(
    ("kind", "mode", "told"),
    [
        ("JPEG", "L", "JPEG L"),
        ("JPEG", "CMYK", "JPEG CMYK"),
        ("PNG", "RGB", "PNG RGB"),
        ("PNG", "RGBA", "PNG RGBA"),
        ("PNG", "P", "PNG P"),
        ("PNG", "1", "PNG 1"),
        ("WEBP", "RGB", "WEBP RGB"),
        ("BMP", "RGB", "BMP RGB"),
    ],
)
def test_other_kinds_become_rgb_jpegs_that_look_the_same(kind, mode, told):
    data = encoded(scene().convert(mode), kind)
    picture = examine(data)
    assert picture.found == (("picture not an RGB JPEG", f": {told}"),)
    assert simplejpeg.decode_jpeg_header(picture.data)[2] == "YCbCr"
    shown = simplejpeg.decode_jpeg(picture.data).astype(int)
    assert np.abs(shown - np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)).mean() < 6


def off(picture, wanted: Image.Image) -> float:
    """Mean difference in grey levels of an examined picture from what it should show; inf for another size."""
    shown = simplejpeg.decode_jpeg(picture.data).astype(int)
    return np.abs(shown - np.asarray(wanted)).mean() if shown.shape[1::-1] == wanted.size else np.inf


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(96, width=128), kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))
    picture, upright = examine(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert off(picture, upright) < 3 and shape(data) == (upright.height, upright.width)
    if orientation == 1:
        assert TURNED not in checks(picture) and (kind != "JPEG" or picture.data == data)
    elif kind != "TIFF":  # which PIL turns by itself
        assert (TURNED, f": {orientation}") in picture.found
    sized = examine(data, (64, 64))
    assert (sized.height, sized.width) == (64, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored():
    data = encoded(scene(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20))
    assert examine(data).data == data


def png(pixels: np.ndarray, colour: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits a channel, by hand, as PIL writes none; `size` (width, height) may lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *(size or pixels.shape[1::-1]), 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_more_than_8_bits_are_scaled():
    colour = scene(96, width=128)
    grey = colour.convert("L")
    wide = {"L": np.asarray(grey, np.uint16) * 257, "RGB": np.asarray(colour, np.uint16) * 257}
    opaque = np.full((96, 128, 1), 65535, np.uint16)
    floats = np.asarray(grey, np.float32)
    for data, wanted in (
        (png(wide["L"], 0), grey),
        (png(wide["RGB"], 2), colour),
        (png(np.concatenate([wide["RGB"], opaque], 2), 6), colour),
        (encoded(Image.fromarray(wide["L"]), "TIFF"), grey),
        (encoded(Image.fromarray(wide["L"].astype(np.int32)), "TIFF"), grey),
        (encoded(Image.fromarray(floats / 255), "TIFF"), grey),
        (encoded(Image.fromarray(floats), "TIFF"), grey),
    ):
        assert off(examine(data), wanted.convert("RGB")) < 3
    for numbers in (floats - 500, floats * np.nan, floats * 1e6):
        (fault,) = examine(encoded(Image.fromarray(numbers), "TIFF")).found
        assert fault[0] == "damaged picture" and "expected 0 to 1, 255 or 65535" in fault[1]


def test_transparent_pixels_show_white():
    picture = scene(96)
    half = Image.new("L", picture.size, 255)
    half.paste(0, (0, 0, 96, 48))
    white = picture.copy()
    white.paste("white", (0, 0, 96, 48))
    see_through = picture.copy()
    see_through.putalpha(half)
    assert off(examine(encoded(see_through, "PNG")), white) < 4
    assert off(examine(encoded(see_through, "WEBP", lossless=True)), white) < 4
    palette = Image.new("P", (96, 96), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.paste(0, (0, 0, 96, 48))
    shown = simplejpeg.decode_jpeg(examine(encoded(palette, "PNG", transparency=0)).data)
    assert (shown[:40] > 250).all() and np.abs(shown[60:] - np.array([200.0, 100, 50])).max() < 4


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC picture of a phone: convert it to JPEG"),
        (b"\r\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"<HTML><body>404 Not Found</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer instead .* git lfs pull"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML text"),
        (b"%PDF-1.4", "PDF document"),
        (b"PK\3\4zipped", "zip archive"),
        (b"not found\n", "text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "text"),  # PIL would start Ghostscript
        (bytes(100), "no picture of a known format"),
        (b"\xff\xd8\xff", "unreadable JPEG"),
        (encoded(scene())[:900], r"unreadable JPEG \(Premature end of JPEG file\)"),
        (encoded(scene(), "PNG")[:900], r"unreadable PNG \(image file is truncated.*\)"),
    ],
)
def test_what_a_damaged_file_is_by_its_first_bytes(data, kind):
    (fault,) = examine(data).found
    assert fault[0] == "damaged picture"
    assert fault == examine(data).found[0]  # no memory address, which differs each time
    assert re.fullmatch(f": {kind}", fault[1])


def test_pixels_are_limited_before_they_are_decoded(monkeypatch):
    jpeg = bytearray(encoded(scene()))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    for data in (bytes(jpeg), png(np.zeros((8, 8)), 0, (50_000, 50_000))):
        assert examine(data).found == (("damaged picture", ": more than 100 million pixels"),)
    monkeypatch.setattr(picture_checks, "PIXELS", 128 * 127)
    for kind in ("JPEG", "PNG"):
        assert checks(examine(encoded(scene(), kind))) == ["damaged picture"]


def test_garbage_after_a_jpeg_is_harmless():
    data = encoded(scene()) + b"garbage" * 50
    assert examine(data).data == data


def test_another_size_is_resized_only_when_one_is_asked_for():
    data = encoded(scene(100, width=150))
    assert examine(data).data == data
    picture = examine(data, (128, 128))
    assert (picture.height, picture.width) == (128, 128)
    assert picture.found == (("picture of another size", ": 150x100"),)


def test_blank_and_blurred_are_told_apart_and_from_sharp_ones():
    blank = examine(encoded(Image.new("RGB", (128, 128), (90, 91, 92))))
    assert blank.blank and not blank.blurred and blank.hash == 0 and blank.data
    blurred = examine(encoded(scene().filter(ImageFilter.GaussianBlur(6))))
    assert blurred.blurred and not blurred.blank and blurred.hash == 0 and blurred.data
    noise = np.random.default_rng(0).integers(100, 140, (128, 128, 3), np.uint8)
    carpet = examine(encoded(Image.fromarray(noise)))  # even, but not smooth
    assert not carpet.blank and not carpet.blurred


def test_a_sharp_watermark_saves_no_blurred_picture():
    picture = scene().filter(ImageFilter.GaussianBlur(6))
    picture.paste(Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 128, 3), np.uint8)), (0, 118))
    assert sharpness(np.asarray(picture.convert("L"))) < BLURRED
    assert sharpness(np.zeros((2, 2), np.uint8)) == 0
    assert sharpness(np.zeros((5, 7), np.uint8)) == 0


def test_perceptual_hash_survives_compression_and_scale_not_another_scene():
    def small(image):
        return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX))

    scenes = [scene(seed=seed) for seed in range(12)]
    hashes = perceptual_hash(np.stack([small(s) for s in scenes]))
    assert hashes.dtype == np.uint64 and hashes.shape == (12,)
    again = [
        Image.open(io.BytesIO(encoded(s.resize((90, 90)), quality=40))).point(lambda x: 0.9 * x + 5) for s in scenes
    ]
    near = np.bitwise_count(hashes ^ perceptual_hash(np.stack([small(s) for s in again])))
    far = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(12, 1)]
    assert near.max() <= 6 and far.min() > 12
    assert np.bitwise_count(hashes).tolist() == [32] * 12  # by the median


def test_far_twins_are_the_same_picture_in_two_places():
    points = np.array([[40, -75], [41, -75], [40 + 0.3 * KM, -75], [42, -75], [np.nan, np.nan]])
    hashes = np.array([[5, 6], [9, 7], [5, 8], [0, 0], [5, 5]], np.uint64)
    assert far_twins(points, hashes).tolist() == []
    hashes[1, 1] = 5  # in whichever view
    assert far_twins(points, hashes).tolist() == [[0, 1]]
    assert far_twins(points * np.nan, hashes).tolist() == []
