"""How good a run of regional is within its regions, the true one being known: what is left when nobody has to route."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.geo import projection


def held_out(run: Run) -> pd.DataFrame:
    """Each held-out place by the regressor of its true region: where it is, what was said, and the error in km."""
    files = [crossval.folder(run, fold) / "held_out.parquet" for fold in crossval.done(run)]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def local_km(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Truth and what was said, of each region in a table as by `held_out`: (n, 2) km east and north of its middle."""
    true, said = {}, {}
    for name, rows in table.groupby("region"):
        points = rows[["latitude", "longitude"]].to_numpy()
        middle = geo.geometric_median(points)
        true[str(name)] = projection.to_local_km(points, middle)
        said[str(name)] = projection.to_local_km(rows[["said_latitude", "said_longitude"]].to_numpy(), middle)
    return true, said


def evaluation(run: Run) -> pd.DataFrame:
    """How good the regressors are within each region (rows), the true one being known, and over all places.

    train: places learned from (mean over folds). model: own, pooled, or why it failed; all that occur in the folds.
    mse_scaled, mse_degrees: mean squared errors of scaled coordinates and of degrees (longitudes the short way round).
    median_point_km: the mean error of saying the region's median point for every place, which a regressor has to beat.
    """
    table = held_out(run)
    table["mse_scaled"] = ((table[["east", "north"]].to_numpy() - table[["said_east", "said_north"]]) ** 2).mean(axis=1)
    turned = (table["said_longitude"] - table["longitude"] + 180) % 360 - 180
    table["mse_degrees"] = ((table["said_latitude"] - table["latitude"]) ** 2 + turned**2) / 2
    columns = {"train": ("train", "mean"), "held_out": ("km", "size"), "model": ("model", _kinds)}
    columns |= {"mse_scaled": ("mse_scaled", "mean"), "mse_degrees": ("mse_degrees", "mean")}
    columns |= {"mean_km": ("km", "mean"), "median_km": ("km", "median")}
    columns |= {"median_point_km": ("median_point_km", "mean")}
    each = table.groupby("region").agg(**columns)
    whole = table.assign(region="all").groupby("region").agg(**columns)
    return pd.concat([each, whole.assign(train=each["train"].sum(), model="")])


def _kinds(models: pd.Series) -> str:
    return ", ".join(sorted(set(models)))
