"""Ridge regression in closed form, with the penalty chosen by leave-one-out error.

Features are standardised, each part (an encoder's last layer, the statistics of a stage) is scaled to length 1, and the
parts together as well: the kernel is then the mean of the parts' cosine similarities, and a part with many features
counts no more than one with few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PENALTIES = np.geomspace(1e-4, 1e2, 19)  # of the mean eigenvalue of the features' Gram matrix
JUDGED = 4096  # places, at most, whose leave-one-out error chooses the penalty


def scaled(features: np.ndarray, mean: np.ndarray, scale: np.ndarray, parts: Sequence[int]) -> np.ndarray:
    """Features (N, D) float32 standardised by mean and scale (D,), each part (of width `parts`) at the same length."""
    out = (features - mean) * scale
    start = 0
    for width in parts:
        part = out[:, start : start + width]
        part /= np.linalg.norm(part, axis=1, keepdims=True) * np.sqrt(len(parts)) + 1e-12
        start += width
    return out


def fit(features: np.ndarray, targets: np.ndarray, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (D, T), intercept (T,) and penalties (G,) of a ridge regression of targets (N, T) on features (N, D).

    groups: how many targets share a penalty each, T in all: states need another one than geocells. It is the one of
    `PENALTIES` with the least squared leave-one-out error. With fewer places than features the dual is solved, else the
    primal: both decompose the smaller matrix once.
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
    judged = np.random.default_rng(0).permutation(n)[:JUDGED]
    turned, own = u.T @ t, u[judged]  # (R, T), (J, R)
    tried = PENALTIES * values.sum() / n
    errors = np.empty((len(tried), t.shape[1]))
    for row, penalty in zip(errors, tried, strict=True):
        shrink = values / (values + penalty)
        residual = t[judged] - own @ (shrink[:, None] * turned)
        row[:] = ((residual / (1 - 1 / n - own**2 @ shrink).clip(1e-6)[:, None]) ** 2).mean(axis=0)
    ends = np.cumsum(groups)
    best = np.array(
        [errors[:, end - width : end].sum(axis=1).argmin() for width, end in zip(groups, ends, strict=True)]
    )
    penalty = np.repeat(tried[best], groups)  # (T,)
    if n <= d:
        weights = a.T @ (u @ (turned / (values[:, None] + penalty)))
    else:
        weights = v @ (turned * np.sqrt(values)[:, None] / (values[:, None] + penalty))
    return weights, intercept - centre @ weights, tried[best]
