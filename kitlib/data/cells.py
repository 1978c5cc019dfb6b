"""The geocells of a data set's training places, made once and saved with what was derived from it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib.core import storage
from kitlib.data.places import Places
from kitlib.geo.geocells import make

log = logging.getLogger(__name__)


def load_or_make(
    places: Places, places_per_cell: int = 50, min_places: int = 5, seed: int = 0, rows: ArrayLike | None = None
) -> pd.DataFrame:
    """The cells of the training places, made once and kept under `places.derived`.

    `rows` (mask or row numbers) restricts them to a fold's training rows; the file's name stands for what made it.
    """
    points, state = places.points("train"), places.state_position("train")
    if rows is not None:
        points, state = points[np.asarray(rows)], state[np.asarray(rows)]
    key = storage.digest(points, state, f"{places_per_cell} {min_places} {seed}")
    path: Path = places.derived / f"cells-{key}.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    cells = make(points, state, places_per_cell, min_places, seed)
    with storage.atomic_write(path) as beside:
        cells.to_parquet(beside, index=False)
    log.info("%d geocells of %d places: %s", len(cells), len(points), path.name)
    return cells
