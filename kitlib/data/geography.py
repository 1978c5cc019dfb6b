"""Geography learned from the training places: centres of states, their distances, geocells."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import Damaged
from kitlib.data.places import Places
from kitlib.geo.geocells import make

log = logging.getLogger(__name__)


def states_table(places: Places) -> pd.DataFrame:
    """The states with training places: number of places, centroid, geometric median, and mean km to both.

    latitude and longitude are the centroid's, the mean on the sphere; apart_km is its distance from the median.
    """
    points, position = places.points("train"), places.state_position("train")
    present, state = np.unique(position, return_inverse=True)
    sums = np.stack([np.bincount(state, axis) for axis in geo.unit_vectors(points).T], axis=1)
    centroid, median = geo.from_unit_vectors(sums), geo.group_medians(points, state, len(present))
    count = np.bincount(state)
    from_centroid, from_median = (geo.distance_km(points, middle[state]) for middle in (centroid, median))
    return places.states.iloc[present].assign(
        places=count,
        latitude=centroid[:, 0],
        longitude=centroid[:, 1],
        median_latitude=median[:, 0],
        median_longitude=median[:, 1],
        apart_km=geo.distance_km(centroid, median),
        mean_km_from_centroid=np.bincount(state, from_centroid) / count,
        mean_km_from_median=np.bincount(state, from_median) / count,
    )


def save(places: Places, states: pd.DataFrame, distance_km: np.ndarray, cells: pd.DataFrame) -> list[Path]:
    """Write centroids.csv, distance_km.npy and cells.parquet to `places.derived`; return their paths."""
    csv, matrix, parquet = (places.derived / name for name in ("centroids.csv", "distance_km.npy", "cells.parquet"))
    with storage.atomic_write(csv) as beside:
        states.to_csv(beside, index=False)
    with storage.atomic_write(matrix) as beside:
        np.save(beside, distance_km)
    with storage.atomic_write(parquet) as beside:
        cells.to_parquet(beside, index=False)
    return [csv, matrix, parquet]


def load_or_make_cells(
    places: Places, places_per_cell: int = 50, min_places: int = 5, seed: int = 0, rows: ArrayLike | None = None
) -> pd.DataFrame:
    """Load the geocells of the training places, or make and cache them under `places.derived`.

    `rows` (mask or row numbers) selects the training rows of a fold. The file's name is a checksum of all inputs.
    """
    points, state = places.points("train"), places.state_position("train")
    if rows is not None:
        points, state = points[np.asarray(rows)], state[np.asarray(rows)]
    key = storage.digest(points, state, f"{places_per_cell} {min_places} {seed}")
    path = places.derived / f"cells-{key}.parquet"
    if path.is_file():
        try:
            with storage.reading(path):
                return pd.read_parquet(path)
        except Damaged as error:
            log.warning("%s; it is made anew", str(error).partition(": expected")[0])
    cells = make(points, state, places_per_cell, min_places, seed)
    with storage.atomic_write(path) as beside:
        cells.to_parquet(beside, index=False)
    log.info("%d geocells of %d places: %s", len(cells), len(points), path.name)
    return cells
