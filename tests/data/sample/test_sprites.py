"""Stamps: every kind can be made at every size."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.data.sample import sprites


@pytest.mark.parametrize("kind", sprites.KINDS)
def test_every_kind_and_variant(kind):
    for variant in range(sprites.VARIANTS):
        planes = sprites.stamp(kind, variant, 60)
        assert planes.shape[0] == 3 and planes.dtype == np.uint8
        first, second, cover = planes.astype(int)
        assert abs(planes.shape[1] - 60) < 6
        assert (np.maximum(first, second) <= cover + 1).all(), "premultiplied: no tint where nothing is covered"
        assert 0.02 < cover.mean() / 255 <= 1


def test_sizes_follow_the_height_and_stop():
    heights = [sprites.stamp("conifer", 0, h).shape[1] for h in (1, 10, 100, 1000)]
    assert heights == sorted(heights)
    assert heights[0] >= 2 and heights[-1] <= 1.1 * sprites.TALLEST
    assert sprites.stamp("conifer", 0, 50) is sprites.stamp("conifer", 0, 50)


def test_lit_from_the_left():
    for kind in ("broadleaf", "conifer", "bush"):
        leaves, _, cover = sprites.stamp(kind, 1, 120).astype(float)
        half = leaves.shape[1] // 2
        left, right = (leaves[:, part].sum() / cover[:, part].sum() for part in (slice(0, half), slice(half, None)))
        assert left > 1.1 * right, kind
