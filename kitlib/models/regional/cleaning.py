"""Clean the training places: drop listed ones, outliers within a region, and places without others nearby.

cleaned = clean(sample_id, points, group, names, mad_threshold=3.5, eps_km=2.0, exclude=["img_0007.jpg"])
cleaned.kept       # (N,) bool
cleaned.dropped    # a table of the dropped places with reasons and distances to their region's median
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo.clustering import check_places, dbscan
from kitlib.geo.sphere import Array

SMALLEST_GROUP = 5  # places; fewer have no meaningful spread
SAME_DEG = 1e-9  # 0.1 mm: a spread below it is rounding


@dataclass(frozen=True, eq=False)
class Cleaned:
    """The kept places among N, and a table of the dropped ones."""

    kept: np.ndarray  # (N,) bool
    dropped: pd.DataFrame  # row, sample_id, region, latitude, longitude, reason (excluded, mad, dbscan), detail, km


def clean(
    sample_id: ArrayLike,
    points: ArrayLike,
    group: ArrayLike,
    names: ArrayLike,
    *,
    mad_threshold: float = 3.5,
    eps_km: float = 0.0,
    min_samples: int = 5,
    exclude: Iterable[str | int] = (),
) -> Cleaned:
    """Drop the excluded places, then outliers within their group, then the noise of DBSCAN over all groups.

    Each filter runs on the places that those before it kept. `km` in the table is the distance to the geometric median
    of the group's kept places, or of the whole group where none is kept.

    Args:
        sample_id: (N,), the places' keys.
        points: (N, 2).
        group: (N,) int, the region of each place.
        names: (G,), the regions' names.
        mad_threshold: the largest modified z-score of latitude and of longitude within the group; 0 switches it off.
        eps_km: of `dbscan`; 0 switches it off.
        min_samples: of `dbscan`.
        exclude: sample_ids, or row numbers as ints. A text of digits is a sample_id if one is equal, else a row number.

    Raises KitError for an entry of `exclude` that matches no place, and a filter that would drop all places.
    """
    points, group, names, sample_id = check_places(points), np.asarray(group), np.asarray(names), np.asarray(sample_id)
    if not len(points):
        raise KitError("places: expected at least one to clean; got none")
    kept, tables = np.ones(len(points), bool), []

    def drop(rows: np.ndarray, reason: str, detail: str | list[str], setting: str) -> None:
        if len(rows) == kept.sum():
            raise KitError(f"{setting} would drop all {len(rows)} places that are left; expected one that keeps some")
        kept[rows] = False
        tables.append(pd.DataFrame({"reason": reason, "detail": detail}, index=rows))

    drop(_excluded_rows(exclude, sample_id), "excluded", "named in exclude", "exclude")
    if mad_threshold > 0:
        rows = np.flatnonzero(kept)
        scores = _mad_scores(points[rows], group[rows])
        far = (scores > mad_threshold).any(axis=1)
        detail = [
            f"{('latitude', 'longitude')[score.argmax()]} {score.max():.1f} robust standard deviations from the median "
            f"of {name} (allowed {mad_threshold:g})"
            for score, name in zip(scores[far], names[group[rows[far]]], strict=True)
        ]
        drop(rows[far], "mad", detail, f"mad_threshold={mad_threshold:g}")
    if eps_km > 0:
        rows = np.flatnonzero(kept)
        noise = dbscan(points[rows], eps_km, min_samples) < 0
        reason = f"no place within {eps_km:g} km, itself included, has {min_samples} places around it"
        drop(rows[noise], "dbscan", reason, f"eps_km={eps_km:g} with min_samples={min_samples}")

    reasons = pd.concat(tables).sort_index()
    rows = reasons.index.to_numpy()
    columns = {
        "row": rows,
        "sample_id": sample_id[rows],
        "region": names[group[rows]],
        "latitude": points[rows, 0],
        "longitude": points[rows, 1],
        "reason": reasons["reason"].to_numpy(object),
        "detail": reasons["detail"].to_numpy(object),
        "km": _km_to_median(points, group, kept, rows),
    }
    return Cleaned(kept, pd.DataFrame(columns))


def _excluded_rows(exclude: Iterable[str | int], sample_id: np.ndarray) -> np.ndarray:
    """The rows of the entries of `exclude`. Raises KitError for the first that matches no place."""
    if isinstance(exclude, str):
        raise KitError(f"exclude: expected a list of sample_ids or row numbers; got one text, {exclude!r}")
    exclude, n = list(exclude), len(sample_id)
    if not exclude:
        return np.empty(0, int)
    keys = pd.Series(np.arange(n), index=sample_id.astype(str))
    known, rows = set(keys.index), []
    for entry in exclude:
        is_number = isinstance(entry, (int, np.integer)) and not isinstance(entry, bool)
        if isinstance(entry, str) and entry in known:
            rows += np.atleast_1d(keys.loc[entry]).tolist()
        elif (is_number or (isinstance(entry, str) and entry.isdecimal())) and 0 <= int(entry) < n:
            rows.append(int(entry))
        else:
            close = difflib.get_close_matches(str(entry), keys.index, n=3)
            hint = f"; close are {', '.join(close)}" if close else ""
            raise KitError(f"exclude: expected sample_ids and rows 0..{n - 1}; got {entry!r}{hint}")
    return np.unique(rows)


def _mad_scores(points: Array, group: np.ndarray) -> Array:
    """Modified z-scores (N, 2) of latitudes and longitudes within groups.

    A score is 0.6745 |x - median| / MAD, where MAD is the median absolute deviation. Where MAD is 0, because more than
    half of the values are equal, 1.253314 times the mean absolute deviation replaces MAD / 0.6745; where that is 0 too,
    the score is 0 (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers). Longitudes are measured from the
    group's circular mean, far from the date line. Groups of fewer than 5 places score 0.
    """
    _, group, count = np.unique(group, return_inverse=True, return_counts=True)
    lat, lon = points.T
    # Every place has one vote on the direction, so that a few far ones cannot turn it to the other side.
    votes = [np.bincount(group, way) for way in (np.sin(np.radians(lon)), np.cos(np.radians(lon)))]
    east = _within_180(lon - np.degrees(np.arctan2(*votes))[group])
    scores = np.zeros(points.shape)
    for k, x in enumerate([lat, east]):
        away = np.abs(_within_180(x - _medians(x, group, count)[group]))  # latitudes never wrap
        spread = _medians(away, group, count) / 0.6745
        mean = 1.253314 * np.bincount(group, away) / count
        spread = np.where(spread > SAME_DEG, spread, mean)
        judged = (spread > SAME_DEG) & (count >= SMALLEST_GROUP)
        scores[:, k] = np.where(judged, 1 / np.where(judged, spread, 1), 0)[group] * away
    return scores


def _within_180(degrees: Array) -> Array:
    return (degrees + 180) % 360 - 180


def _medians(values: Array, group: np.ndarray, count: np.ndarray) -> Array:
    """The median (G,) of the values (N,) of each group, which has count (G,) >= 1 of them."""
    ordered = values[np.lexsort((values, group))]
    first = np.cumsum(count) - count
    return (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) / 2


def _km_to_median(points: Array, group: np.ndarray, kept: np.ndarray, rows: np.ndarray) -> Array:
    """Distances of the places in `rows` to the geometric median of their group's kept places."""
    groups, position = np.unique(group[rows], return_inverse=True)
    medians = np.empty((len(groups), 2))
    for k, g in enumerate(groups):
        mask = group == g
        medians[k] = geo.geometric_median(points[mask & kept if (mask & kept).any() else mask])
    return geo.distance_km(points[rows], medians[position])
