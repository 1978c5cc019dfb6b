from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from picture_helper import encoded, scene
from PIL import Image, ImageFilter

from kitlib.data.picture_checks import BLURRED, examine, far_twins, perceptual_hash, sharpness
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
