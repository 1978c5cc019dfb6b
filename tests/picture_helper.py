"""Small pictures, for several test files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(size: int = 128, seed: int = 0, width: int | None = None) -> Image.Image:
    """A picture with large shapes and texture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (width or size, size), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 12, (size, width or size, 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
