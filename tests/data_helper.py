"""Small data sets on disk, in every format that the readers know, for several test files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kitlib.data import places, readers

SHARED = Path(__file__).parents[2] / "shared"  # real photographs, where they are at hand


def competition(root: Path, n_train: int = 12, n_test: int = 3) -> Path:
    """A correct little competition of three states, to be broken by the tests."""
    folder = root / "kaggle_dataset"
    picture = root / "picture.jpg"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (90, 120, 60)).save(picture)
    states = pd.DataFrame({"state_idx": [1, 3, 46], "state": ["Alaska", "Arkansas", "Washington"]})
    states.to_csv(folder / "state_mapping.csv", index=False)
    centres = np.array([[61.0, -150.0], [34.8, -92.4], [47.5, -121.0]])
    rows = {"train": n_train, "test": n_test}
    tables = {}
    for split, n in rows.items():
        tables[split] = pd.DataFrame({"sample_id": range(n)})
        (folder / f"{split}_images").mkdir()
        for view in readers.VIEWS:
            tables[split][f"image_{view}"] = [f"img_{i:06d}_{view}.jpg" for i in range(n)]
            for name in tables[split][f"image_{view}"]:
                shutil.copy(picture, folder / f"{split}_images" / name)
    picture.unlink()
    position = np.arange(n_train) % 3
    points = centres[position] + np.arange(n_train)[:, None] * 0.1
    train = tables["train"].assign(state=states["state"].to_numpy()[position])
    train["state_idx"] = states["state_idx"].to_numpy()[position]
    train["latitude"], train["longitude"] = points.T
    train.to_csv(folder / "train_ground_truth.csv", index=False)
    test = tables["test"].assign(**dict.fromkeys(readers.PREDICTED[:5], -1), **dict.fromkeys(readers.PREDICTED[5:], ""))
    test.to_csv(folder / "sample_submission.csv", index=False)
    return folder


def edit(folder: Path, change, name: str = "train_ground_truth.csv") -> None:
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(folder / name, index=False)


def put(row: int, column: str, value: str):
    return lambda table: table.__setitem__(column, table[column].where(table.index != row, value))


def found(table: places.Places, check: str) -> dict:
    return next(entry for entry in table.integrity if entry["check"] == check)
