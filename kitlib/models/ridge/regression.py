"""Ridge regression in closed form, with the penalty chosen by leave-one-out error.

Features are standardised, each part (an encoder's last layer, the statistics of a stage) is scaled to length 1, and the
parts together as well: the kernel is then the mean of the parts' cosine similarities, and a part with many features
counts no more than one with few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PENALTIES = np.geomspace(1e-4, 1e2, 19)  # of the mean eigenvalue of the features' Gram matrix


def scaled(features: np.ndarray, mean: np.ndarray, scale: np.ndarray, parts: Sequence[int]) -> np.ndarray:
    """Features (N, D) float32 standardised by mean and scale (D,), each part (of width `parts`) at the same length."""
    out = (features - mean) * scale
    start = 0
    for width in parts:
        part = out[:, start : start + width]
        part /= np.linalg.norm(part, axis=1, keepdims=True) * np.sqrt(len(parts)) + 1e-12
        start += width
    return out


def fit(features: np.ndarray, targets: np.ndarray, judged: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights (D, T), intercept (T,) and penalty of a ridge regression of targets (N, T) on features (N, D).

    The penalty is the one of `PENALTIES` with the least squared leave-one-out error of the first `judged` targets. With
    fewer places than features the dual is solved, else the primal: both decompose the smaller matrix once.
    """
    centre, intercept = features.mean(axis=0), targets.mean(axis=0)
    a, t = features - centre, targets - intercept
    n, d = a.shape
    if n <= d:
        values, u = np.linalg.eigh(a @ a.T)  # (N,), (N, N)
    else:
        values, v = np.linalg.eigh(a.T @ a)
        values = values.clip(1e-12)
        u = a @ v / np.sqrt(values)
    values = values.clip(0)
    turned, squares = u.T @ t, u**2  # (R, T), (N, R)
    best, penalty = np.inf, 0.0
    for candidate in PENALTIES * values.sum() / n:
        shrink = values / (values + candidate)
        residual = t[:, :judged] - u @ (shrink[:, None] * turned[:, :judged])
        error = float(((residual / (1 - 1 / n - squares @ shrink).clip(1e-6)[:, None]) ** 2).mean())
        if error < best:
            best, penalty = error, float(candidate)
    if n <= d:
        weights = a.T @ (u @ (turned / (values + penalty)[:, None]))
    else:
        weights = v @ (turned * (np.sqrt(values) / (values + penalty))[:, None])
    return weights, intercept - centre @ weights, penalty
