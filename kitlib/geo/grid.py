"""Blocks of about equal size on the globe."""

from __future__ import annotations

import numpy as np

from kitlib.geo import sphere

KM_PER_DEGREE = float(np.radians(1.0)) * sphere.EARTH_RADIUS_KM


def blocks(points: np.ndarray, block_km: float) -> np.ndarray:
    """Block ids (N,) 0…B-1 of points (N, 2): rows of latitude `block_km` high, cut into pieces about as wide."""
    row = np.floor((points[:, 0] + 90) * KM_PER_DEGREE / block_km).astype(np.int64)
    middle_rad = np.radians((row + 0.5) * block_km / KM_PER_DEGREE - 90)
    pieces = np.maximum(1, np.round(360 * KM_PER_DEGREE * np.cos(middle_rad) / block_km)).astype(np.int64)
    piece = np.floor((points[:, 1] + 180) / 360 * pieces).astype(np.int64) % pieces
    return np.unique(np.stack([row, piece], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
