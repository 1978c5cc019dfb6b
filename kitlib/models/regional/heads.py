"""Linear heads on a frozen encoder's features: a ridge regression for each region, in closed form.

Heads predict scaled coordinates relative to the region's median point, so that a head with a high penalty predicts that
point. The penalty of each region has the lowest squared error on places that the head was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kitlib.core import storage

ALPHAS = np.logspace(0, 7, 29)  # the penalties to choose from
ALL = -1  # the region of the pooled head, which is fitted to all places


@dataclass(frozen=True, eq=False)
class RidgeHeads:
    """Heads of R regions on D features; regions without a head of their own share the last one."""

    mean: np.ndarray  # (D,) of the training places' features
    scale: np.ndarray  # (D,) their standard deviations
    slot: np.ndarray  # (R,) the head of each region
    centres: np.ndarray  # (H, D) mean of each head's standardised training features
    weights: np.ndarray  # (H, D, 2)
    alphas: np.ndarray  # (H,) the chosen penalties

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        region: np.ndarray,
        offsets: np.ndarray,
        has_own: Sequence[bool],
        val: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> RidgeHeads:
        """Fit the heads of all regions.

        features (N, D), region (N,) and offsets (N, 2), scaled coordinates from the region's median point, of training
        places. has_own (R,): the regions with a head of their own. val: the same three arrays of places on which to
        choose penalties; a region without any uses leave-one-out cross-validation on its training places.
        """
        from sklearn.linear_model import Ridge, RidgeCV

        own = np.asarray(has_own, bool)
        mean, spread = features.mean(axis=0), features.std(axis=0)
        scale = spread + 1e-3 * spread.mean() + 1e-12
        regions = [*np.flatnonzero(own).tolist(), *([] if own.all() else [ALL])]
        centres, weights, alphas = [], [], []
        for k in regions:
            rows = slice(None) if k == ALL else region == k
            x, y = (features[rows] - mean) / scale, offsets[rows]
            centre = x.mean(axis=0)
            val_rows = slice(None) if k == ALL else (val[1] == k if val else slice(0))
            if val and len(val[0][val_rows]):
                val_x, target = (val[0][val_rows] - mean) / scale - centre, val[2][val_rows]
                fitted = [Ridge(alpha=alpha, fit_intercept=False).fit(x - centre, y) for alpha in ALPHAS]
                best = min(fitted, key=lambda ridge: float(((ridge.predict(val_x) - target) ** 2).mean()))
                alphas.append(best.alpha)
            else:
                best = RidgeCV(ALPHAS, fit_intercept=False).fit(x - centre, y)
                alphas.append(best.alpha_)
            centres.append(centre)
            weights.append(best.coef_.T)
        slot = np.where(own, np.cumsum(own) - 1, len(regions) - 1)
        return cls(mean, scale, slot, np.stack(centres), np.stack(weights), np.array(alphas))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scaled coordinates (N, R, 2) of features (N, D) in every region, relative to its median point."""
        x = (features - self.mean) / self.scale
        each = np.einsum("nd,hdk->nhk", x, self.weights) - np.einsum("hd,hdk->hk", self.centres, self.weights)
        return each[:, self.slot]

    def save(self, path: Path) -> None:
        """Write all fields to an .npz file, atomically."""
        storage.write_npz(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> RidgeHeads:
        """Read what `save` wrote."""
        arrays = storage.read_npz(path)
        with storage.reading(path):
            return cls(**arrays)
