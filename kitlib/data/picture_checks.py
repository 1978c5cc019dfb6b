"""Checks of picture files: damage, format, blank and blurred pictures, perceptual hashes, and copies at far places."""

from __future__ import annotations

import io
from functools import cache
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from kitlib import geo

BLURRED = 45.0  # sharpness below which people recognise nothing: 9 of 5,625 real street views
BLANK = 4.0  # grey levels of standard deviation below which a picture is one colour
QUALITY = 95  # of re-encoded pictures
PIXELS = 100_000_000  # a picture may have, judged before it is decoded
# PIL knows more formats; some of them start other programs (EPS), none of them is a photograph's.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
ORIENTATION = 0x0112  # of EXIF: how to turn a picture for showing it; 1 is upright
TURNS = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
TURNED = "picture turned by its EXIF orientation"
# The first bytes of a file that cannot be decoded, and what it is.
BEGINNINGS = (
    (b"\xff\xd8", "unreadable JPEG"),
    (b"\x89PNG", "unreadable PNG"),
    (b"GIF8", "unreadable GIF"),
    (b"BM", "unreadable BMP"),
    (b"II*\0", "unreadable TIFF"),
    (b"MM\0*", "unreadable TIFF"),
    (b"RIFF", "unreadable WebP"),
    (b"version https://git-lfs", "Git LFS pointer instead of the picture: run git lfs pull"),
    (b"<!doctype html", "web page"),
    (b"<html", "web page"),
    (b"<svg", "SVG drawing"),
    (b"<?xml", "XML text"),
    (b"%pdf", "PDF document"),
    (b"pk\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
)
COSINES = np.cos(np.pi / 64 * np.arange(8)[:, None] * (2 * np.arange(32) + 1))  # (8, 32) of the DCT-II


class Picture(NamedTuple):
    """The result of examining one picture."""

    data: bytes = b""  # RGB JPEG; empty where it cannot be used
    height: int = 0  # pixels
    width: int = 0
    blank: bool = False  # one colour
    blurred: bool = False  # to nothing
    sharpness: float = 0.0
    hash: int = 0  # 64 bits; 0 for an unusable, blank or blurred picture
    found: tuple[tuple[str, str], ...] = ()  # (check, detail) of each fault of the file


def examine(data: bytes, size: tuple[int, int] | None = None) -> Picture:
    """Decode a picture file completely, check it, and resize it to `size` (height, width) if given.

    A truncated, corrupt or foreign file, or one of more than PIXELS, results in a Picture without data. Other formats
    are converted to RGB JPEG, and pictures that EXIF says to turn are turned.
    """
    try:
        jpeg, found = _as_rgb_jpeg(data, size)
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        # Strict, so that a truncated file fails. Large pictures are reduced to about the competition's 256 px.
        grey = simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=256, min_width=256)[..., 0]
    except Exception as error:  # a decoder may raise anything on broken bytes
        return Picture(found=(("damaged picture", f": {_fault(data, error)}"),))
    small = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.BOX))
    sharp = sharpness(grey)
    blank = sharp < BLURRED and float(small.std()) < BLANK
    blurred = sharp < BLURRED and not blank
    own_hash = 0 if blank or blurred else int(perceptual_hash(small))
    return Picture(jpeg, height, width, blank, blurred, sharp, own_hash, found)


def shape(data: bytes) -> tuple[int, int]:
    """The (height, width) of a picture file as it is shown, from its header. Raises any error for a broken one."""
    with _open(data) as image:
        width, height = image.size
        lies = _orientation(image) >= 5 and image.format != "TIFF"  # whose size PIL gives as it is shown
        return (width, height) if lies else (height, width)


def _as_rgb_jpeg(data: bytes, size: tuple[int, int] | None) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Convert `data` to an upright RGB JPEG, of `size` if given; return it with the (check, detail) of each change."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        height, width, colours = 0, 0, ""  # no JPEG, or one that only PIL can read
    _check_pixels(height, width)
    if colours == "YCbCr" and size in (None, (height, width)) and (b"Exif\0\0" not in data or _is_upright(data)):
        return data, ()
    if colours:
        simplejpeg.decode_jpeg(data)  # strict where PIL is lenient
    picture, found = upright(data)
    if size and picture.size != size[::-1]:
        found += (("picture of another size", f": {picture.width}x{picture.height}"),)
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(picture), QUALITY, colorsubsampling="444"), found


def upright(data: bytes) -> tuple[Image.Image, tuple[tuple[str, str], ...]]:
    """Decode a picture file to RGB as it is shown, with the (check, detail) of each change. Raises any error."""
    found: tuple[tuple[str, str], ...] = ()
    with _open(data) as image:
        _check_pixels(*image.size)
        if image.mode != "RGB" or image.format not in ("JPEG", "MPO"):
            found += (("picture not an RGB JPEG", f": {image.format} {image.mode}"),)
        picture = _rgb(image)
        if (orientation := _orientation(image)) != 1:  # only now, as PIL itself turns a TIFF when it is decoded
            found += ((TURNED, f": {orientation}"),)
            picture = picture.transpose(TURNS[orientation])
    return picture, found


def _is_upright(data: bytes) -> bool:
    with _open(data) as image:
        return _orientation(image) == 1


def _open(data: bytes) -> Image.Image:
    """Open a picture of one of FORMATS; its pixels are not decoded yet."""
    return Image.open(io.BytesIO(data), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS without those that this PIL was built without."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_pixels(height: int, width: int) -> None:
    if height * width > PIXELS:
        raise Image.DecompressionBombError


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or EXIF is broken."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # PIL raises anything on broken EXIF; the picture may still be sound
        return 1
    return orientation if orientation in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB: more than 8 bits are scaled, what is transparent shows white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image, np.float64)
        tops = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535)
        top = next((top for top in tops if grey.max() <= top), 0)
        if not top or not grey.min() >= 0:
            raise ValueError(f"numbers from {grey.min():g} to {grey.max():g}; expected 0 to 1, 255 or 65535")
        image = Image.fromarray((grey * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _fault(data: bytes, error: Exception) -> str:
    """What a file that cannot be decoded is, by its first bytes, and why it cannot be, if the decoder says so."""
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {PIXELS // 10**6} million pixels"
    if data[4:8] == b"ftyp":
        is_heic = data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
        kind = "HEIC picture of a phone: convert it to JPEG" if is_heic else "unreadable AVIF or video"
    elif named := next((kind for begin, kind in BEGINNINGS if start.startswith(begin.lower())), ""):
        kind = named
    else:
        text = start.isascii() and start.replace(b"\n", b"").replace(b"\r", b"").replace(b"\t", b"")
        kind = "text" if text and bytes(text).decode().isprintable() else "no picture of a known format"
    return kind if isinstance(error, UnidentifiedImageError) else f"{kind} ({error})"


def sharpness(grey: np.ndarray) -> float:
    """The sharpness of a grey picture (H, W) uint8 in squared grey levels; 0 is flat.

    It is the 80th percentile, over a grid of about 8 x 8 blocks, of the mean squared Laplacian: neither a smooth sky
    nor a sharp watermark in the bottom rows decides it. Street views at 256 px have 60 to 15,000.
    """
    if min(grey.shape) < 3:
        return 0.0
    g = grey.astype(np.int16)
    laplacian = g[1:-1, 1:-1] << 2
    for neighbour in (g[:-2, 1:-1], g[2:, 1:-1], g[1:-1, :-2], g[1:-1, 2:]):
        laplacian -= neighbour
    block = max(1, min(laplacian.shape) // 8)
    H, W = laplacian.shape[0] // block, laplacian.shape[1] // block
    energy = laplacian[: H * block, : W * block].astype(np.float32)
    energy *= energy
    blocks = energy.reshape(H, block, W * block).sum(axis=1).reshape(H, W, block).sum(axis=2)
    return float(np.percentile(blocks, 80)) / block**2


def perceptual_hash(small: np.ndarray) -> np.ndarray:
    """64-bit hashes (...) of grey pictures (..., 32, 32): a bit per low frequency above the median.

    Similar pictures differ in few bits: np.bitwise_count(a ^ b). This is the pHash of Zauner 2010,
    "Implementation and Benchmarking of Perceptual Image Hash Functions".
    """
    low = (COSINES @ small @ COSINES.T).reshape(*small.shape[:-2], 64)
    bits = low > np.median(low, axis=-1, keepdims=True)
    return np.packbits(bits, axis=-1).view(np.uint64)[..., 0]


def far_twins(points: np.ndarray, hashes: np.ndarray, apart_km: float = 1.0) -> np.ndarray:
    """Row pairs (P, 2) of places more than `apart_km` apart that share a picture, i.e. one of their hashes (N, V).

    Each place is paired with the first that has its picture; hashes of 0 and places at NaN are ignored.
    """
    row, view = np.nonzero((hashes != 0) & ~np.isnan(points).any(axis=1)[:, None])
    _, first, same = np.unique(hashes[row, view], return_index=True, return_inverse=True)
    pairs = np.stack([row[first[same]], row], axis=1)
    return np.unique(pairs[geo.distance_km(points[pairs[:, 0]], points[pairs[:, 1]]) > apart_km], axis=0)
