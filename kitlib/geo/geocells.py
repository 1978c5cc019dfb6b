"""Geocells: each state is divided into cells with about equally many training places.

The cells of a state are k-means clusters of unit vectors, because its places are unevenly spread and its centroid often
lies far from all of them. The centre of a cell is the geometric median of its places.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.geo import median, sphere


def make(
    points: ArrayLike, state_position: ArrayLike, places_per_cell: int = 50, min_places: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Divide training places into cells within states.

    Args:
        points: (N, 2) [lat, lon].
        state_position: (N,) row of each place's state in the table of states.
        places_per_cell: average number of places in a cell; a state has at least one cell.
        min_places: a smaller cell is merged into its neighbours, unless it is the largest of its state.
        seed: of k-means.

    Returns the columns cell (0..C-1), latitude, longitude, state_position, count (places nearest to the cell) and
    radius_km (the distance within which 90 % of them lie).
    """
    points, state = sphere.check_points(points, "places for geocells"), np.asarray(state_position)
    if len(points) == 0 or (state < 0).any():
        raise KitError(f"geocells: expected places of known states; got {len(points)}, {(state < 0).sum()} of none")
    if places_per_cell < 1:
        raise KitError(f"places_per_cell: expected a number from 1; got {places_per_cell}")
    label = np.empty(len(points), np.int64)
    n_cells = 0
    for members in _members(state):
        label[members] = n_cells + _clusters(points[members], places_per_cell, seed)
        n_cells = label[members].max() + 1
    cells = _table(points, state, label)
    # All small cells are removed at once: their places move to cells that only grow.
    largest = cells.groupby("state_position")["count"].transform("max")
    large = cells[(cells["count"] >= min_places) | (cells["count"] == largest)]
    return _table(points, state, assign(points, large.reset_index(drop=True), state))


def assign(points: ArrayLike, cells: pd.DataFrame, state_position: ArrayLike | None = None) -> np.ndarray:
    """The row (N,) in `cells` of the cell nearest to each of points (N, 2).

    With `state_position` (N,), the cell is one of the place's own state if that state has cells.
    """
    points, centres = np.asarray(points, float), cells[["latitude", "longitude"]].to_numpy()
    nearest = sphere.nearest(points, centres)[1][:, 0]
    if state_position is not None:
        state = np.asarray(state_position)
        for members in _members(state):
            own = np.flatnonzero(cells["state_position"] == state[members[0]])
            if len(own):
                nearest[members] = own[sphere.nearest(points[members], centres[own])[1][:, 0]]
    return nearest


def _members(group: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each group, in ascending order of the groups."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _clusters(points: np.ndarray, places_per_cell: int, seed: int) -> np.ndarray:
    """k-means labels (n,) of the points (n, 2) of one state."""
    from sklearn.cluster import KMeans

    vectors = sphere.unit_vectors(points)
    n_clusters = min(max(1, round(len(points) / places_per_cell)), len(np.unique(vectors, axis=0)))
    if n_clusters == 1:
        return np.zeros(len(points), np.int64)
    return KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(vectors)


def _table(points: np.ndarray, state: np.ndarray, label: np.ndarray) -> pd.DataFrame:
    """The cells of places with labels (N,): medians, then the count and radius of the places nearest to each."""
    label = np.unique(label, return_inverse=True)[1]
    centres = median.group_medians(points, label, label.max() + 1)
    first = np.unique(label, return_index=True)[1]
    cells = pd.DataFrame(centres, columns=["latitude", "longitude"])
    cells.insert(0, "cell", np.arange(len(centres)))
    cells["state_position"] = state[first]
    nearest = assign(points, cells, state)
    km = sphere.distance_km(points, centres[nearest])
    cells["count"] = np.bincount(nearest, minlength=len(cells))
    cells["radius_km"] = pd.Series(km).groupby(nearest).quantile(0.9).reindex(cells["cell"]).to_numpy()
    return cells
