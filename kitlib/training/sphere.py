"""Torch geometry on the sphere: unit vectors and distances with gradients."""

from __future__ import annotations

import numpy as np
import torch

from kitlib import geo
from kitlib.geo import EARTH_RADIUS_KM


def haversine_km(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Great-circle distances (...) between unit vectors a and b (..., 3), broadcast; always computed in float32.

    2 atan2(|a - b|, |a + b|) has a finite gradient everywhere, at equal and at opposite points too.

    >>> haversine_km(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])).round().item()
    10008.0
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        apart, along = torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1)
        return 2 * EARTH_RADIUS_KM * torch.atan2(apart, along)


def unit_vectors(points: np.ndarray) -> torch.Tensor:
    """Points (..., 2) as float32 unit vectors (..., 3)."""
    return torch.from_numpy(geo.unit_vectors(points)).float()
