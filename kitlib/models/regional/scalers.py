"""Scaled coordinates of a region: kilometres from its geometric median, scaled by scikit-learn, and back to degrees.

    scaler = RegionScaler.fit(points, "robust")
    scaled = scaler.transform(points)             # (N, 2), the targets of a regressor
    scaler.inverse(scaled)                        # the points again, to within a centimetre

Both axes have the same unit, so that an error of 0.1 is the same distance to the east and to the north.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.geo import projection
from kitlib.geo.sphere import Array

KINDS = ("robust", "standard", "minmax")


@dataclass(frozen=True, eq=False)
class RegionScaler:
    """Converts points of a region to numbers around 0 (minmax: between 0 and 1) and back."""

    kind: str
    centre: np.ndarray  # (2,) [lat, lon], the geometric median of the region's places
    scaler: Any  # scikit-learn's, of [east, north] in km; its unit is the same for both

    @classmethod
    def fit(cls, points: ArrayLike, kind: str = "robust") -> RegionScaler:
        """A scaler for a region with places at points (N, 2), N at least 1.

        robust: median and interquartile range. standard: mean and standard deviation. minmax: the bounding box. The
        larger spread of the two axes is the unit of both; it is 1 km where all points are equal.
        """
        from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

        centre = geo.geometric_median(points)
        local = projection.to_local_km(points, centre)
        scaler = {"robust": RobustScaler, "standard": StandardScaler, "minmax": MinMaxScaler}[kind]().fit(local)
        if kind == "minmax":  # its scale_ multiplies, that of the others divides
            scaler.scale_ = np.full(2, scaler.scale_[scaler.data_range_ == scaler.data_range_.max()][0])
            scaler.min_ = -scaler.data_min_ * scaler.scale_
        else:
            quartiles = np.percentile(local, [25, 75], axis=0)
            spread = local.std(axis=0) if kind == "standard" else quartiles[1] - quartiles[0]
            # with most places in one spot the interquartile range is 0; scikit-learn would use 1 km
            unit = spread.max() if spread.max() > 1e-6 else local.std(axis=0).max()
            scaler.scale_ = np.full(2, unit if unit > 1e-6 else 1.0)
        return cls(kind, centre, scaler)

    @property
    def unit_km(self) -> float:
        """The length of the scaled unit in kilometres."""
        return float(np.ptp(self.scaler.inverse_transform([[0.0, 0.0], [1.0, 0.0]])[:, 0]))

    @property
    def offset_km(self) -> np.ndarray:
        """The scaled origin, [east, north] (2,) in km from `centre`."""
        return self.scaler.inverse_transform([[0.0, 0.0]])[0]

    def transform(self, points: ArrayLike) -> Array:
        """Scaled coordinates (N, 2), [east, north], of points (N, 2)."""
        return self.scaler.transform(projection.to_local_km(points, self.centre))

    def inverse(self, scaled: ArrayLike) -> Array:
        """Points (N, 2) of scaled coordinates (N, 2)."""
        return projection.from_local_km(self.scaler.inverse_transform(np.asarray(scaled, float)), self.centre)

    @classmethod
    def of_numbers(cls, kind: str, centre: np.ndarray, offset_km: np.ndarray, unit_km: float) -> RegionScaler:
        """The scaler with that `centre`, `offset_km` and `unit_km`, whatever places it was fitted to."""
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        scaler.mean_, scaler.scale_, scaler.n_features_in_ = offset_km, np.full(2, unit_km), 2
        return cls(kind, centre, scaler)

    def save(self, folder: Path, region: str) -> Path:
        """Write folder/scaler_region_<id>.joblib with the kind, the centre and scikit-learn's scaler, atomically.

        The file is for other programs. The kit never loads one, as joblib executes the code in a file: it has the same
        numbers in scalers.npz.
        """
        import joblib

        path = folder / f"scaler_region_{file_id(region)}.joblib"
        with storage.atomic_write(path) as beside:
            joblib.dump({"kind": self.kind, "centre": self.centre, "scaler": self.scaler}, beside)
        return path


def file_id(region: str) -> str:
    """A region's name as part of a file name: without separators, short enough, and different for different names.

    A name whose encoding is long, at six letters for one of another script, ends in a checksum.

    >>> file_id("New York"), file_id("a/b"), file_id("3")
    ('New York', 'a%2Fb', '3')
    """
    encoded = quote(region, safe=" ")
    return encoded if len(encoded) <= 120 else f"{encoded[:100]}~{storage.digest(region)}"
