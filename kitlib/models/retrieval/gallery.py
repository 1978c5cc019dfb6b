"""Build reference galleries: select places that represent the land, read points, compute the best possible score.

A random gallery holds cities a thousand times and deserts never. `choose` takes places in turn: from every cell of the
land, within a cell from every cluster of similar embeddings, within a cluster from every label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files
from kitlib.evaluation import metrics
from kitlib.geo import grid
from kitlib.geo.grid import land_grid, world_grid

LATITUDE, LONGITUDE = ("latitude", "lat"), ("longitude", "lon", "lng", "long")  # in the order they are looked for


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
    """The rows (budget,) of the places that represent all others, in the order in which they were chosen.

    Every turn takes one place of each cell that has any left: of its clusters the one whose turn it is, there of the
    labels the one whose turn it is, there first the place nearest to the cluster's centre, then any. Larger clusters
    and labels have their turn first, cells in random order.

    Args:
        points: (N, 2) [lat, lon].
        budget: how many to choose, at most N.
        embeddings: (N, D), what the places look like; they are normalised and clustered by k-means in every cell.
        labels: (N,), or (N, L) columns or a table, whose combinations are the labels.
        cell_km: height and width of a cell (`folds.blocks`).
        clusters: in a cell at most; no more than the cell gets turns.
        seed: of the clusters and of all that is left to chance.

    The idea is that of the gallery of the project Geosolver.
    """
    points = _points(points, "places for a gallery")
    n = len(points)
    _check_budget(n, budget, seed)
    if cell_km <= 0 or clusters < 1:
        raise KitError(f"expected cell_km above 0 and clusters from 1; got cell_km={cell_km:g}, clusters={clusters}")
    rng = np.random.default_rng(seed)
    cell = grid.blocks(points, cell_km)
    cluster, away = np.zeros(n, np.int64), np.zeros(n)
    if embeddings is not None:
        size = np.bincount(cell)
        turns = next(turns for turns in range(1, n + 1) if np.minimum(size, turns).sum() >= budget)
        cluster, away = _clusters(_checked_embeddings(embeddings, n), cell, min(clusters, turns), seed)
    cluster = _codes(cell, cluster)
    leaf = _codes(cluster, _label_codes(labels, n))

    # Only one stands for its cluster: all that come next to it would be alike.
    turn = _rank(leaf, _rank(leaf, away) > 0, rng.permutation(n))
    turn = _rank(cluster, turn, -np.bincount(leaf)[leaf], leaf)
    turn = _rank(cell, turn, -np.bincount(cluster)[cluster], cluster)
    return np.lexsort((rng.permutation(cell.max() + 1)[cell], turn))[:budget]


def uniformly(points: ArrayLike, budget: int, seed: int = 0, cell_km: float = 100.0) -> np.ndarray:
    """Rows (budget,) of points (N, 2) dealt in turn from cells of equal area, at random within each."""
    return choose(points, budget, cell_km=cell_km, seed=seed)


def at_random(n: int, budget: int, seed: int = 0) -> np.ndarray:
    """Rows (budget,) of n, each as likely as any other."""
    _check_budget(n, budget, seed)
    return np.random.default_rng(seed).choice(n, budget, replace=False)


def read_csv(path: str | Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Points (N, 2) of any CSV with columns latitude or lat, and longitude, lon, lng or long; and its other columns.

    Letters' case does not matter. The other columns are text, "" where empty, fit to be labels for `choose`. Raises
    KitError for a missing or doubtful column, and for coordinates that are no place on Earth, naming the line.
    """
    path = Path(path)
    table, _ = Files(path.parent).read_csv(path.name)
    columns = [_column(table, names, path.name) for names in (LATITUDE, LONGITUDE)]
    numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(np.isnan(numbers).any(axis=1))
    if len(bad):
        raise KitError(
            f"{path.name}: {len(bad)} of {len(table)} rows have no numbers in {' and '.join(columns)}, "
            f"first {table[columns].iloc[bad[0]].tolist()} in line {bad[0] + 2}"
        )
    if not len(table):
        raise KitError(f"{path.name} has no rows")
    return geo.check_points(numbers, f"{path.name} (row 0 is line 2)"), table.drop(columns=columns)


def named(name: str) -> np.ndarray:
    """The points (M, 2) of grid:KM (`land_grid`), world:KM (`world_grid`) or a CSV (`read_csv`)."""
    kind, _, km = name.partition(":")
    if kind not in ("grid", "world"):
        return read_csv(name)[0]
    try:
        spacing_km = float(km)
    except ValueError:
        raise KitError(f"gallery: expected {kind}:KM such as {kind}:50; got {name!r}") from None
    return land_grid(spacing_km) if kind == "grid" else world_grid(spacing_km)


def expected_scores(gallery_points: ArrayLike, truth_points: ArrayLike) -> dict[str, float]:
    """The best scores that retrieval can have with this gallery: `metrics.report` on distances to the nearest entry.

    gallery_points: (M, 2). truth_points: (N, 2), where the pictures that are asked about were taken.
    """
    gallery, truth = _points(gallery_points, "gallery"), _points(truth_points, "truth")
    return metrics.report(geo.nearest(truth, gallery)[0][:, 0]).as_dict()


def _points(points: ArrayLike, what: str) -> np.ndarray:
    points = geo.check_points(points, what)
    if points.ndim != 2 or len(points) == 0:
        raise KitError(f"{what}: expected points (N, 2) with N at least 1; got shape {points.shape}")
    return points


def _check_budget(n: int, budget: int, seed: int) -> None:
    if not 1 <= budget <= n or seed < 0:
        raise KitError(f"budget, seed: expected 1..{n} of {n} places and a seed from 0; got {budget}, {seed}")


def _checked_embeddings(embeddings: np.ndarray, n: int) -> np.ndarray:
    if embeddings.ndim != 2 or len(embeddings) != n:
        raise KitError(f"embeddings: expected shape ({n}, D), views averaged; got {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise KitError(f"embeddings for a gallery: row {bad[0]} is not finite")
    return embeddings


def _label_codes(labels: ArrayLike | pd.DataFrame | None, n: int) -> np.ndarray:
    """Each row's combination of labels as a number (N,)."""
    if labels is None:
        return np.zeros(n, np.int64)
    table = labels if isinstance(labels, pd.DataFrame) else pd.DataFrame(np.asarray(labels))
    if len(table) != n or table.shape[1] == 0:
        raise KitError(f"labels: expected shape ({n},) or ({n}, L); got {table.shape}")
    return table.groupby(list(table.columns), dropna=False).ngroup().to_numpy()


def _clusters(embeddings: np.ndarray, cell: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters (N,) of the normalised embeddings in each cell, from 0 in each, and distances (N,) to the centres."""
    from sklearn.cluster import KMeans

    cluster, away = np.zeros(len(cell), np.int64), np.zeros(len(cell))
    order = np.argsort(cell, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        looks = np.asarray(embeddings[rows], np.float32)
        looks = looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), np.float32(1e-30))
        k = min(most, len(np.unique(looks, axis=0)))
        centres = looks.mean(axis=0, keepdims=True)
        if k > 1:
            fitted = KMeans(k, n_init=1, random_state=seed).fit(looks)
            cluster[rows], centres = fitted.labels_, fitted.cluster_centers_
        away[rows] = np.linalg.norm(looks - centres[cluster[rows]], axis=1)
    return cluster, away


def _codes(group: np.ndarray, within: np.ndarray) -> np.ndarray:
    """One number (N,) for each pair of a group (N,) and what divides it (N,), both from 0."""
    return np.unique(group * (within.max() + 1) + within, return_inverse=True)[1].reshape(-1)


def _rank(group: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Each row's place (N,) from 0 within its group (N,), ordered by the first key, then the second, and so on."""
    order = np.lexsort(keys[::-1])
    rank = np.empty(len(order), np.int64)
    rank[order] = pd.Series(group[order]).groupby(group[order]).cumcount()
    return rank


def _column(table: pd.DataFrame, names: Sequence[str], file: str) -> str:
    """The one column with one of these names, whatever the letters' case; the first name counts most."""
    for name in names:
        matches = [column for column in table.columns if column.lower() == name]
        if len(matches) > 1:
            raise KitError(f"{file}: {' and '.join(matches)} are both {name}; leave only one of them")
        if matches:
            return matches[0]
    raise KitError(f"{file} has no column {' or '.join(names)}; its columns are {shorten(table.columns, 20)}")
