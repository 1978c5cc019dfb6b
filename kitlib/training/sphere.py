"""Torch geometry on the sphere: unit vectors, distances and steps, with gradients."""

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


def unit_vectors(points: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Points (..., 2) as unit vectors (..., 3): float32 of an array, with dtype and device of a tensor."""
    if isinstance(points, np.ndarray):
        return torch.from_numpy(geo.unit_vectors(points)).float()
    lat_rad, lon_rad = torch.deg2rad(points).unbind(-1)
    across = lat_rad.cos()
    return torch.stack([across * lon_rad.cos(), across * lon_rad.sin(), lat_rad.sin()], dim=-1)


def moved(points: torch.Tensor, step_km: torch.Tensor) -> torch.Tensor:
    """Points (..., 2) in degrees, moved by steps (..., 2) of kilometres to the east and to the north.

    A step in the tangent plane, wrapped onto the sphere: kilometres are kilometres at every latitude, and a step over a
    pole or the date line comes out on the other side.

    >>> moved(torch.tensor([0.0, 180.0]), torch.tensor([111.195, 0.0])).round().tolist()
    [0.0, -179.0]
    """
    lat_rad, lon_rad = torch.deg2rad(points).unbind(-1)
    up, zero = unit_vectors(points), torch.zeros_like(lat_rad)
    east = torch.stack([-lon_rad.sin(), lon_rad.cos(), zero], dim=-1)
    north = torch.stack([-lat_rad.sin() * lon_rad.cos(), -lat_rad.sin() * lon_rad.sin(), lat_rad.cos()], dim=-1)
    step = step_km / EARTH_RADIUS_KM  # radians
    angle_rad = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    along = step[..., :1] * east + step[..., 1:] * north
    x, y, z = (up * angle_rad.cos() + along * torch.sinc(angle_rad / torch.pi)).unbind(-1)
    return torch.rad2deg(torch.stack([torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)], dim=-1))
