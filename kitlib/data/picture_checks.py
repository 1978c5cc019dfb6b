"""Checks of picture files: damage, format, blank and blurred pictures, perceptual hashes, and copies at far places."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from kitlib import geo

BLURRED = 45.0  # sharpness below which people recognise nothing: 9 of 5,625 real street views
BLANK = 4.0  # grey levels of standard deviation below which a picture is one colour
QUALITY = 95  # of re-encoded pictures
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

    A truncated, corrupt or foreign file results in a Picture without data. Other formats are converted to RGB JPEG.
    """
    try:
        jpeg, found = _as_rgb_jpeg(data, size)
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        # Strict, so that a truncated file fails. Large pictures are reduced to about the competition's 256 px.
        grey = simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=256, min_width=256)[..., 0]
    except Exception as error:  # a decoder may raise anything on broken bytes
        return Picture(found=(("damaged picture", f": {error}" if data else ": empty file"),))
    small = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.BOX))
    sharp = sharpness(grey)
    blank = sharp < BLURRED and float(small.std()) < BLANK
    blurred = sharp < BLURRED and not blank
    own_hash = 0 if blank or blurred else int(perceptual_hash(small))
    return Picture(jpeg, height, width, blank, blurred, sharp, own_hash, found)


def _as_rgb_jpeg(data: bytes, size: tuple[int, int] | None) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Convert `data` to an RGB JPEG, of `size` if given; return it with the (check, detail) of each change."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        height, width, colours = 0, 0, ""  # no JPEG, or one that only PIL can read
    if colours == "YCbCr" and size in (None, (height, width)):
        return data, ()
    if colours:
        simplejpeg.decode_jpeg(data)  # strict where PIL is lenient
    found = []
    with Image.open(io.BytesIO(data)) as image:
        if colours != "YCbCr":
            found.append(("picture not an RGB JPEG", f": {image.format} {image.mode}"))
        picture = image.convert("RGB")
    if size and picture.size != size[::-1]:
        found.append(("picture of another size", f": {picture.width}x{picture.height}"))
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(picture), QUALITY, colorsubsampling="444"), tuple(found)


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
