"""Regions of the world, each with its own regressor: the data's labels, census divisions or clusters.

regions = Regions.make(places, rows, "cluster:12")
regions.assign(points, state_position)          # (N,) the region of each place from the truth
regions.probabilities(state_probs)            # (N, R) from predicted state probabilities
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError, shorten, shown
from kitlib.data.places import Places

SCHEMES = "state (the data's own labels), division (of the US Census Bureau), cluster:N (k-means)"


@dataclass(frozen=True, eq=False)
class Regions:
    """R regions with at least one training place each."""

    names: np.ndarray  # (R,) str
    count: np.ndarray  # (R,) training places
    medians: np.ndarray  # (R, 2) geometric median of the training places, the best constant guess
    by_state: np.ndarray  # (S, R) share of a state's training places in each region; 0 for a state without any
    centres: np.ndarray  # (R, 2) of clusters; a place belongs to the nearest one; empty for other regions

    @classmethod
    def make(cls, places: Places, rows: np.ndarray, scheme: str = "state", seed: int = 0) -> Regions:
        """The regions of the training places in `rows` alone. Raises KitError for an unknown scheme."""
        points, position = places.points("train")[rows], places.state_position("train")[rows]
        names = places.states["state"].to_numpy().astype(str)
        centres = np.empty((0, 2))
        if scheme == "state":
            label = position
        elif scheme == "division":
            names, label = _divisions(names, position)
        else:
            centres = _cluster_centres(points, scheme, seed)
            label = geo.nearest(points, centres)[1][:, 0]
            names = np.array([f"cluster {k:0{len(str(len(centres)))}}" for k in range(1, len(centres) + 1)])
        present, region, count = np.unique(label, return_inverse=True, return_counts=True)
        pairs = np.zeros((len(places.states), len(present)))
        np.add.at(pairs, (position, region), 1)
        by_state = pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
        medians = geo.group_medians(points, region, len(present))
        return cls(names[present], count, medians, by_state, centres[present] if len(centres) else centres)

    def __len__(self) -> int:
        return len(self.names)

    def assign(self, points: np.ndarray, state_position: ArrayLike) -> np.ndarray:
        """The region (N,) of places at points (N, 2), NaN if unknown, in states (N,); -1 for places in none."""
        if len(self.centres):
            known, region = ~np.isnan(points).any(axis=1), np.full(len(points), -1)
            region[known] = geo.nearest(points[known], self.centres)[1][:, 0]
            return region
        position = np.asarray(state_position)
        known = (position >= 0) & (self.by_state.sum(axis=1) > 0)[position]
        return np.where(known, self.by_state.argmax(axis=1)[position], -1)

    def probabilities(self, state_probs: ArrayLike) -> np.ndarray:
        """P(region) (N, R) from P(state) (N, S); by number of places where all likely states have no region."""
        routed = np.asarray(state_probs, float) @ self.by_state
        total = routed.sum(axis=1, keepdims=True)
        return np.where(total > 1e-9, routed / np.maximum(total, 1e-9), self.count / self.count.sum())

    def save(self, path: Path) -> None:
        """Write all fields to an .npz file, atomically."""
        storage.write_npz(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> Regions:
        """Read what `save` wrote."""
        arrays = storage.read_npz(path)
        with storage.reading(path):
            return cls(**arrays)


def n_clusters_of(scheme: str) -> int:
    """The N of cluster:N, 0 for the other schemes. Raises KitError for an unknown scheme.

    >>> n_clusters_of("cluster:12")
    12
    """
    if scheme in ("state", "division"):
        return 0
    if not re.fullmatch("cluster:0*[1-9][0-9]{0,4}", scheme):
        raise KitError(f"regions: expected {SCHEMES}; got {shown(scheme)}")
    return int(scheme.removeprefix("cluster:"))


def _divisions(states: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The names of the divisions, and the number of each place's division."""
    table = pd.read_csv(Path(__file__).parent / "divisions.csv", index_col="state")["division"]
    if missing := sorted(set(states[np.unique(position)]) - set(table.index)):
        raise KitError(f"regions: expected {SCHEMES}; got 'division', but {shorten(missing)} is in no census division")
    names, code = np.unique(table.to_numpy(str), return_inverse=True)
    return names, pd.Series(code, index=table.index).reindex(states).fillna(-1).to_numpy(int)[position]


def _cluster_centres(points: np.ndarray, scheme: str, seed: int) -> np.ndarray:
    """The centres (C, 2) of C clusters of points (N, 2), fewer where there are fewer distinct points."""
    from sklearn.cluster import KMeans

    vectors = geo.unit_vectors(points)
    n_clusters = min(n_clusters_of(scheme), len(np.unique(vectors, axis=0)))
    return geo.from_unit_vectors(KMeans(n_clusters, n_init=3, random_state=seed).fit(vectors).cluster_centers_)
