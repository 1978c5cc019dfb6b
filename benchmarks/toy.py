"""A toy data set whose colours encode the place, so that a few minutes of training show whether a model learns.

Red grows with latitude, green with longitude, blue is noise; the states are the four quarters of the map. The result is
a folder with metadata.csv and one picture per place, for `readers.read`; benchmarks and tests use it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kitlib.core import storage
from kitlib.core.errors import KitError

STATES = ("Iowa", "Ohio", "Texas", "Utah")  # south-west, south-east, north-west, north-east
SOUTH_WEST, NORTH_EAST = (-40.0, -120.0), (60.0, 120.0)


def draw(folder: str | Path, n_train: int = 200, n_test: int = 20, size: int = 32, seed: int = 0) -> Path:
    """Draw the places into `folder` and return it; size: pixels of a picture. Equal settings give equal files.

    Raises KitError for a folder that is not empty, and for numbers below 1.
    """
    folder = Path(folder)
    if min(n_train, n_test, size) < 1:
        raise KitError(f"n_train, n_test, size: expected numbers from 1; got {n_train}, {n_test}, {size}")
    if folder.is_dir() and any(folder.iterdir()):
        raise KitError(f"{folder.name} is not empty: give an empty or a new folder")
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.0, 1.0, (n_train + n_test, 2))  # of the way north, of the way east
    points = np.array(SOUTH_WEST) + share * (np.array(NORTH_EAST) - np.array(SOUTH_WEST))
    quarter = 2 * (share[:, 0] > 0.5) + (share[:, 1] > 0.5)
    names = [f"{i:05d}.jpg" for i in range(len(points))]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, colour in zip(names, share, strict=True):
        picture = np.empty((size, size, 3))
        picture[..., :2] = 255 * colour
        picture[..., 2] = rng.uniform(100, 150, (size, size))
        Image.fromarray(picture.round().astype(np.uint8)).save(folder / "images" / name, quality=95)
    table = pd.DataFrame({"image": names, "latitude": points[:, 0], "longitude": points[:, 1]})
    table["state"] = np.array(STATES)[quarter]
    table["split"] = np.where(np.arange(len(points)) < n_train, "train", "test")
    with storage.atomic_write(folder / "metadata.csv") as beside:
        table.to_csv(beside, index=False)
    return folder
