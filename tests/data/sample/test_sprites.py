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
        cover = planes[2].astype(int)
        assert abs(planes.shape[1] - 60) < 6
        assert 0.02 < cover.mean() / 255 <= 1


def test_sizes_follow_the_height_and_stop():
    heights = [sprites.stamp("conifer", 0, h).shape[1] for h in (1, 10, 100, 1000)]
    assert heights == sorted(heights)
    assert heights[0] >= 2 and heights[-1] <= 1.1 * sprites.TALLEST
