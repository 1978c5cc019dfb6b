"""Ridge regression in closed form, with penalties chosen by leave-one-out predictions.

Features are standardised, each part (an encoder's last layer, the statistics of a stage) is scaled to length 1, and the
parts together as well: the kernel is then the mean of the parts' cosine similarities, and a part with many features
counts no more than one with few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

PENALTIES = np.geomspace(1e-3, 1e2, 21)  # of the mean eigenvalue of the features' Gram matrix
JUDGED = 4096  # places, at most, whose leave-one-out predictions choose the penalty

Judge = Callable[[np.ndarray, np.ndarray], float]


def scaled(features: np.ndarray, mean: np.ndarray, scale: np.ndarray, parts: Sequence[int]) -> np.ndarray:
    """Features (N, D) float32 standardised by mean and scale (D,), each part (of width `parts`) at the same length."""
    out = (features - mean) * scale
    start = 0
    for width in parts:
        part = out[:, start : start + width]
        part /= np.linalg.norm(part, axis=1, keepdims=True) * np.sqrt(len(parts)) + 1e-12
        start += width
    return out


def fit(
    features: np.ndarray, targets: Sequence[np.ndarray], judges: Sequence[Judge], judged: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Weights (D, T), intercept (T,) and penalties of a ridge regression of targets (N, T), side by side, on (N, D).

    Each of the targets has a penalty of its own, the one of `PENALTIES` with the least error: its judge
    gets leave-one-out predictions (J, T) and the rows (J,) that they belong to, and returns an error. It can be that of
    the score; the squared error would shrink far too much. Errors are smoothed over three penalties, as few places make
    them uneven. With fewer places than features the dual is solved, else the primal: both decompose the smaller matrix
    once. judged: the first so many rows alone are judged, all when None.
    """
    centre = features.mean(axis=0)
    a = features - centre
    n, d = a.shape
    if n <= d:
        values, u = np.linalg.eigh(a @ a.T)  # (N,), (N, N)
    else:
        values, v = np.linalg.eigh(a.T @ a)
        values = values.clip(1e-12)
        u = a @ v / np.sqrt(values)
    values = values.clip(0)
    rows = np.random.default_rng(0).permutation(judged or n)[:JUDGED]
    tried, own = PENALTIES * values.sum() / n, u[rows]  # (J, R)
    weights, intercepts, penalties = [], [], []
    for target, judge in zip(targets, judges, strict=True):
        mean = target.mean(axis=0)
        t = target - mean
        turned, errors = u.T @ t, []
        for penalty in tried:
            shrink = values / (values + penalty)
            leverage = (1 / n + own**2 @ shrink).clip(max=1 - 1e-6)[:, None]
            left_out = t[rows] - (t[rows] - own @ (shrink[:, None] * turned)) / (1 - leverage)
            errors.append(judge(left_out + mean, rows))
        smooth = np.convolve(np.pad(errors, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
        penalty = float(tried[smooth.argmin()])
        turned /= (values + penalty)[:, None]
        weights.append(a.T @ (u @ turned) if n <= d else v @ (turned * np.sqrt(values)[:, None]))
        intercepts.append(mean - centre @ weights[-1])
        penalties.append(penalty)
    return np.hstack(weights), np.hstack(intercepts), penalties
