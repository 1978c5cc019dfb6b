"""Error of a regional run given the true region, i.e. without routing errors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.core import storage
from kitlib.evaluation import fold_files
from kitlib.evaluation.runs import Run
from kitlib.geo import projection
from kitlib.models.regional.heads import RidgeHeads
from kitlib.models.regional.regions import Regions


def held_out(run: Run) -> pd.DataFrame:
    """A row for each held-out place: truth, prediction by the regressor of its true region, and error in km."""
    parts = []
    for fold in fold_files.done_folds(run):
        with storage.reading(file := fold_files.folder(run, fold) / "held_out.parquet"):
            parts.append(pd.read_parquet(file))
    return pd.concat(parts, ignore_index=True)


def local_km(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Truth and prediction by region, from a table by `held_out`: (n, 2) km east and north of the region's median."""
    true, predicted = {}, {}
    for name, rows in table.groupby("region"):
        points = rows[["latitude", "longitude"]].to_numpy()
        median = geo.geometric_median(points)
        true[str(name)] = projection.to_local_km(points, median)
        guesses = rows[["guess_latitude", "guess_longitude"]].to_numpy()
        predicted[str(name)] = projection.to_local_km(guesses, median)
    return true, predicted


def evaluation(run: Run) -> pd.DataFrame:
    """Errors of the regressors within each true region (rows), and over all places.

    train: number of training places (mean over folds). model: own, pooled, or failed with the reason, all that occur
    in the folds. mse_scaled, mse_degrees: mean squared errors of scaled coordinates and of degrees (longitudes the
    short way round). median_point_km: the mean error of the region's median point, the baseline of a regressor.
    """
    table = held_out(run)
    errors = table[["guess_east", "guess_north"]].to_numpy() - table[["east", "north"]].to_numpy()
    table["mse_scaled"] = (errors**2).mean(axis=1)
    longitude = (table["guess_longitude"] - table["longitude"] + 180) % 360 - 180
    table["mse_degrees"] = ((table["guess_latitude"] - table["latitude"]) ** 2 + longitude**2) / 2
    columns = {
        "train": ("train", "mean"),
        "held_out": ("km", "size"),
        "model": ("model", lambda models: ", ".join(sorted(set(models)))),
    }
    columns |= {"mse_scaled": ("mse_scaled", "mean"), "mse_degrees": ("mse_degrees", "mean")}
    columns |= {"mean_km": ("km", "mean"), "median_km": ("km", "median")}
    columns |= {"median_point_km": ("median_point_km", "mean")}
    by_region = table.groupby("region").agg(**columns)
    total = table.assign(region="all").groupby("region").agg(**columns)
    return pd.concat([by_region, total.assign(train=by_region["train"].sum(), model="")])


def penalties(run: Run) -> pd.DataFrame:
    """The ridge penalty of each head (rows: its region, or pooled) in each fold (columns), on frozen features."""
    chosen = {}
    for fold in fold_files.done_folds(run):
        folder = fold_files.folder(run, fold)
        heads, names = RidgeHeads.load(folder / "heads.npz"), Regions.load(folder / "regions.npz").names
        shared = np.bincount(heads.slot)[heads.slot] > 1
        each = pd.Series(heads.alphas[heads.slot], np.where(shared, "pooled", names))
        chosen[f"fold {fold}"] = each[~each.index.duplicated()]
    return pd.DataFrame(chosen).round(0).astype("Int64").sort_index()
