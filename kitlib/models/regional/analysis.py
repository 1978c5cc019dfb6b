"""Error of a regional run given the true region, i.e. without routing errors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.geo import projection
from kitlib.models.regional.heads import RidgeHeads
from kitlib.models.regional.regions import Regions


def held_out(run: Run) -> pd.DataFrame:
    """A row for each held-out place: the truth, the prediction of its true region's regressor, and the error in km."""
    files = [crossval.folder(run, fold) / "held_out.parquet" for fold in crossval.done_folds(run)]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def local_km(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Truth and prediction by region, of a table as by `held_out`: (n, 2) km east and north of the region's middle."""
    true, guess = {}, {}
    for name, rows in table.groupby("region"):
        points = rows[["latitude", "longitude"]].to_numpy()
        middle = geo.geometric_median(points)
        true[str(name)] = projection.to_local_km(points, middle)
        guess[str(name)] = projection.to_local_km(rows[["guess_latitude", "guess_longitude"]].to_numpy(), middle)
    return true, guess


def evaluation(run: Run) -> pd.DataFrame:
    """How good the regressors are within each region (rows), given the true one, and over all places.

    train: places learned from (mean over folds). model: own, pooled, or why it failed; all that occur in the folds.
    mse_scaled, mse_degrees: mean squared errors of scaled coordinates and of degrees (longitudes the short way round).
    median_point_km: the mean error of the region's median point for every place, which a regressor has to beat.
    """
    table = held_out(run)
    table["mse_scaled"] = ((table[["east", "north"]].to_numpy() - table[["guess_east", "guess_north"]]) ** 2).mean(
        axis=1
    )
    turned = (table["guess_longitude"] - table["longitude"] + 180) % 360 - 180
    table["mse_degrees"] = ((table["guess_latitude"] - table["latitude"]) ** 2 + turned**2) / 2
    columns = {"train": ("train", "mean"), "held_out": ("km", "size"), "model": ("model", _kinds)}
    columns |= {"mse_scaled": ("mse_scaled", "mean"), "mse_degrees": ("mse_degrees", "mean")}
    columns |= {"mean_km": ("km", "mean"), "median_km": ("km", "median")}
    columns |= {"median_point_km": ("median_point_km", "mean")}
    each = table.groupby("region").agg(**columns)
    whole = table.assign(region="all").groupby("region").agg(**columns)
    return pd.concat([each, whole.assign(train=each["train"].sum(), model="")])


def penalties(run: Run) -> pd.DataFrame:
    """The ridge penalty that each fold (columns) chose for each region (rows) with heads on frozen features."""
    chosen = {}
    for fold in crossval.done_folds(run):
        folder = crossval.folder(run, fold)
        heads, names = RidgeHeads.load(folder / "heads.npz"), Regions.load(folder / "regions.npz").names
        chosen[f"fold {fold}"] = pd.Series(heads.alphas[heads.slot], names)
    return pd.DataFrame(chosen).round(0)


def _kinds(models: pd.Series) -> str:
    return ", ".join(sorted(set(models)))
