"""Build reference galleries: select a representative subset of places, read points, compute the best possible score.

A random gallery holds cities a thousand times and deserts never. `choose` takes places in turn from every cell of the
land, within a cell from every cluster of similar embeddings, and within a cluster from every label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError, shorten, shown
from kitlib.data.files import Files
from kitlib.evaluation import metrics
from kitlib.geo import grid
from kitlib.geo.grid import land_grid, world_grid

PLACES = "places:"  # before the name of a data set
COARSEST_KM = 1000.0  # between the points of a grid
LATITUDE, LONGITUDE = ("latitude", "lat"), ("longitude", "lon", "lng", "long")  # in order of preference


def choose(
    points: ArrayLike,
    budget: int,
    *,
    embeddings: np.ndarray | None = None,
    labels: ArrayLike | pd.DataFrame | None = None,
    cell_km: float = 100.0,
    clusters: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """Rows (budget,) of a representative subset of places, in the order of their selection.

    Every round takes one place from each cell that has any left, in random order of cells. Within a cell the clusters
    take turns, and within a cluster the labels, larger ones first; a label's first place is the one nearest to the
    cluster's centre, the others are random. The idea is that of the gallery of the project Geosolver.

    Args:
        points: (N, 2) [lat, lon].
        budget: number of places to select, at most N.
        embeddings: (N, D) of the places' appearance; they are normalised and clustered by k-means in every cell.
        labels: (N,), or (N, L) columns or a table, whose combinations are the labels.
        cell_km: height and width of a cell (`grid.blocks`).
        clusters: maximum in a cell; at most one for each of the cell's rounds.
        seed: of the clusters and the random order.
    """
    points = _points(points, "places for a gallery")
    n = len(points)
    _check_budget(n, budget, seed)
    if cell_km <= 0 or clusters < 1:
        raise KitError(f"cell_km, clusters: expected cell_km above 0 and clusters from 1; got {cell_km:g}, {clusters}")
    rng = np.random.default_rng(seed)
    cell = grid.blocks(points, cell_km)
    cluster, away = np.zeros(n, np.int64), np.zeros(n)
    if embeddings is not None:
        if embeddings.ndim != 2 or len(embeddings) != n:
            raise KitError(f"embeddings: expected shape ({n}, D), views averaged; got {embeddings.shape}")
        size = np.bincount(cell)
        rounds = next(rounds for rounds in range(1, n + 1) if np.minimum(size, rounds).sum() >= budget)
        cluster, away = _clusters(embeddings, cell, min(clusters, rounds), seed)
    cluster = _codes(cell, cluster)
    leaf = _codes(cluster, _label_codes(labels, n))

    # Only the most central place goes first: those next to it would look the same.
    turn = _rank(leaf, _rank(leaf, away) > 0, rng.permutation(n))
    turn = _rank(cluster, turn, -np.bincount(leaf)[leaf], leaf)
    turn = _rank(cell, turn, -np.bincount(cluster)[cluster], cluster)
    return np.lexsort((rng.permutation(cell.max() + 1)[cell], turn))[:budget]


def at_random(n: int, budget: int, seed: int = 0) -> np.ndarray:
    """Random rows (budget,) of n, all equally likely."""
    _check_budget(n, budget, seed)
    return np.random.default_rng(seed).choice(n, budget, replace=False)


def read_csv(path: str | Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Points (N, 2) of a CSV with columns latitude or lat, and longitude, lon, lng or long; and its other columns.

    The case of the names does not matter. The other columns are text, "" where empty, and may be labels for `choose`.
    Raises KitError for a missing or ambiguous column, and for coordinates that are not on Earth, with the line.
    """
    path = Path(path)
    table = Files(path.parent).read_csv(path.name)[0].reset_index(drop=True)
    columns = [_column(table, names, path.name) for names in (LATITUDE, LONGITUDE)]
    numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(np.isnan(numbers).any(axis=1))
    if len(bad):
        raise KitError(
            f"{path.name}: expected numbers in {' and '.join(columns)}; got {len(bad)} of {len(table)} rows without, "
            f"first {table[columns].iloc[bad[0]].tolist()} in line {bad[0] + 2}"
        )
    if not len(table):
        raise KitError(f"{path.name}: expected at least one row; got none")
    return geo.check_points(numbers, f"{path.name} (row 0 is line 2)"), table.drop(columns=columns)


def named(name: str) -> np.ndarray:
    """The points (M, 2) of grid:KM (`land_grid`), world:KM (`world_grid`) or a CSV (`read_csv`)."""
    if (km := spacing_km(name)) is None:
        return read_csv(name)[0]
    return land_grid(km) if name.startswith("grid:") else world_grid(km)


def spacing_km(name: str) -> float | None:
    """The KM of grid:KM or world:KM, None for other names. Raises KitError for an impossible one, and for no name.

    >>> spacing_km("grid:50"), spacing_km("train")
    (50.0, None)
    """
    kind, _, km = name.partition(":")
    least = {"grid": grid.GRID_KM, "world": grid.WORLD_KM}.get(kind)
    if not name.removeprefix(PLACES):
        raise KitError(f"gallery: expected train, {PLACES}DATA, grid:KM, world:KM or a CSV; got {shown(name)}")
    if least is None:
        return None
    try:
        value = float(km)
    except ValueError:
        value = 0.0
    if not least <= value <= COARSEST_KM:
        raise KitError(f"gallery: expected {kind}:KM with {least:g} to {COARSEST_KM:g} km; got {shown(name)}")
    return value


def expected_scores(gallery_points: ArrayLike, truth_points: ArrayLike) -> dict[str, float]:
    """The best possible scores with gallery points (M, 2) for queries at truth points (N, 2).

    They are `metrics.report` on the distances to the nearest entry.
    """
    gallery, truth = _points(gallery_points, "gallery"), _points(truth_points, "truth")
    return metrics.report(geo.nearest(truth, gallery)[0][:, 0]).as_dict()


def _points(points: ArrayLike, name: str) -> np.ndarray:
    points = geo.check_points(points, name)
    if points.ndim != 2 or len(points) == 0:
        raise KitError(f"{name}: expected points (N, 2) with N at least 1; got shape {points.shape}")
    return points


def _check_budget(n: int, budget: int, seed: int) -> None:
    if not 1 <= budget <= n or seed < 0:
        raise KitError(f"budget, seed: expected 1..{n} of {n} places and a seed from 0; got {budget}, {seed}")


def _label_codes(labels: ArrayLike | pd.DataFrame | None, n: int) -> np.ndarray:
    """A number (N,) for each combination of labels."""
    if labels is None:
        return np.zeros(n, np.int64)
    table = labels if isinstance(labels, pd.DataFrame) else pd.DataFrame(np.asarray(labels))
    if len(table) != n or table.shape[1] == 0:
        raise KitError(f"labels: expected shape ({n},) or ({n}, L); got {table.shape}")
    return table.groupby(list(table.columns), dropna=False).ngroup().to_numpy()


def _clusters(embeddings: np.ndarray, cell: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters (N,) of the normalised embeddings in each cell, from 0 in each, and distances (N,) to the centres."""
    from sklearn.cluster import KMeans

    cluster, away = np.zeros(len(cell), np.int64), np.zeros(len(cell))
    order = np.argsort(cell, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        unit = np.asarray(embeddings[rows], np.float32)
        unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.float32(1e-30))
        k = min(limit, len(np.unique(unit, axis=0)))
        centres = unit.mean(axis=0, keepdims=True)
        if k > 1:
            fitted = KMeans(k, n_init=1, random_state=seed).fit(unit)
            cluster[rows], centres = fitted.labels_, fitted.cluster_centers_
        away[rows] = np.linalg.norm(unit - centres[cluster[rows]], axis=1)
    return cluster, away


def _codes(group: np.ndarray, subgroup: np.ndarray) -> np.ndarray:
    """A number (N,) for each pair of a group (N,) and a subgroup (N,), both from 0."""
    return np.unique(group * (subgroup.max() + 1) + subgroup, return_inverse=True)[1].reshape(-1)


def _rank(group: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """The rank (N,) from 0 of each row within its group (N,), by the first key, then the second, and so on."""
    order = np.lexsort(keys[::-1])
    rank = np.empty(len(order), np.int64)
    rank[order] = pd.Series(group[order]).groupby(group[order]).cumcount()
    return rank


def _column(table: pd.DataFrame, names: Sequence[str], file: str) -> str:
    """The column with one of these names in any case; earlier names are preferred."""
    for name in names:
        matches = [column for column in table.columns if column.lower() == name]
        if len(matches) > 1:
            raise KitError(f"{file}: expected one column {name}; got {' and '.join(matches)}")
        if matches:
            return matches[0]
    raise KitError(f"{file}: expected a column {' or '.join(names)}; got {shorten(table.columns, 20)}")
