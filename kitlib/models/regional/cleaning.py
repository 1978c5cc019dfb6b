"""Clean the training places: drop a given list, outliers within a region, and places without others nearby.

cleaned = clean(sample_id, points, group, names, mad_threshold=3.5, eps_km=2.0, exclude=["img_0007.jpg"])
cleaned.kept       # (N,) bool
cleaned.dropped    # a table: which place, why, how far from its region's middle
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo.clustering import check_min_samples, check_places, dbscan
from kitlib.geo.sphere import Array

SMALLEST_GROUP = 5  # places; the spread of fewer says nothing
SAME_DEG = 1e-9  # 0.1 mm: a spread below it is rounding


@dataclass(frozen=True, eq=False)
class Cleaned:
    """Which of N places are kept, and why each of the others is not."""

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
    """Drop the excluded places, then outliers within their group, then what DBSCAN over all groups calls noise.

    A filter sees only what those before it left, and `dropped` lists every place that is not kept. Its `km` is the
    distance to the geometric median of what is kept of the group (of the whole group where nothing is).

    Args:
        sample_id: (N,), the places' own keys.
        points: (N, 2).
        group: (N,) int, the region of each place.
        names: (G,), the regions' names.
        mad_threshold: the largest modified z-score of latitude and of longitude within the group; 0 switches it off.
        eps_km: of `dbscan`; 0 switches it off.
        min_samples: of `dbscan`.
        exclude: sample_ids, or row numbers as ints. A text of digits is a sample_id if there is such a one, else a
            row number.

    Raises KitError for settings and shapes that make no sense, an entry of `exclude` that names no place, and a filter
    that would drop all places.
    """
    points, group, names, sample_id = check_places(points), np.asarray(group), np.asarray(names), np.asarray(sample_id)
    _check_group(group, len(points))
    if sample_id.shape != group.shape:
        raise KitError(f"{len(points)} places have sample_ids of shape {sample_id.shape}, wanted is one a place")
    if not len(points):
        raise KitError("places to clean: there are none")
    if not 0 <= group.min() <= group.max() < len(names):
        raise KitError(f"groups of places are {group.min()}..{group.max()}, but the names are of 0..{len(names) - 1}")
    for what, value in (("mad_threshold", mad_threshold), ("eps_km", eps_km)):
        if not 0 <= value < math.inf:
            raise KitError(f"{what}={value:g}: allowed are positive numbers, and 0, which switches the filter off")
    check_min_samples(min_samples)

    mask = np.ones(len(points), bool)
    dropped = []

    def drop(rows: np.ndarray, reason: str, detail: str | list[str], setting: str) -> None:
        if len(rows) == mask.sum():
            raise KitError(f"{setting} would drop all {len(rows)} places that are left; allowed is what keeps some")
        mask[rows] = False
        dropped.append(pd.DataFrame({"reason": reason, "detail": detail}, index=rows))

    drop(_named(exclude, sample_id), "excluded", "named in exclude", "exclude")
    if mad_threshold > 0:
        left = np.flatnonzero(mask)
        scores = _mad_scores(points[left], group[left])
        far = (scores > mad_threshold).any(axis=1)
        detail = [
            f"{('latitude', 'longitude')[score.argmax()]} {score.max():.1f} robust standard deviations from the median "
            f"of {name} (allowed {mad_threshold:g})"
            for score, name in zip(scores[far], names[group[left[far]]], strict=True)
        ]
        drop(left[far], "mad", detail, f"mad_threshold={mad_threshold:g}")
    if eps_km > 0:
        left = np.flatnonzero(mask)
        noise = dbscan(points[left], eps_km, min_samples) < 0
        why = f"no place within {eps_km:g} km, itself included, has {min_samples} places around it"
        drop(left[noise], "dbscan", why, f"eps_km={eps_km:g} with min_samples={min_samples}")

    reasons = pd.concat(dropped).sort_index()
    rows = reasons.index.to_numpy()
    columns = {
        "row": rows,
        "sample_id": sample_id[rows],
        "region": names[group[rows]],
        "latitude": points[rows, 0],
        "longitude": points[rows, 1],
        "reason": reasons["reason"].to_numpy(object),
        "detail": reasons["detail"].to_numpy(object),
        "km": _from_the_middle_km(points, group, mask, rows),
    }
    return Cleaned(mask, pd.DataFrame(columns))


def _check_group(group: np.ndarray, n: int) -> None:
    if group.shape != (n,):
        raise KitError(f"{n} places have groups of shape {group.shape}, wanted is one a place")
    if n and not np.issubdtype(group.dtype, np.integer):
        raise KitError(f"groups of places are {group.dtype}, wanted are whole numbers")


def _named(exclude: Iterable[str | int], sample_id: np.ndarray) -> np.ndarray:
    """The rows that the entries of `exclude` name, or a KitError that shows the first that names none."""
    if isinstance(exclude, str):
        raise KitError(f"exclude={exclude!r} is one text, wanted is a list of sample_ids or row numbers")
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
            raise KitError(f"exclude: {entry!r} names no place; allowed are sample_ids and rows 0..{n - 1}{hint}")
    return np.unique(rows)


def _mad_scores(points: Array, group: np.ndarray) -> Array:
    """Modified z-scores (N, 2) of latitudes and longitudes within groups; 0 where there is nothing to compare with.

    0.6745 |x - median| / MAD, MAD being the median absolute deviation; where that is 0, as more than half of the values
    are equal, 1.253314 times the mean absolute deviation stands in for MAD / 0.6745; where that is 0 too, so is the
    score (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers). Longitudes are those east of the group's
    circular mean, so that the date line is nowhere near. Groups of fewer than 5 places score 0.
    """
    _, group, count = np.unique(group, return_inverse=True, return_counts=True)
    lat, lon = points.T
    # Every place has one vote on the direction, so a few far ones cannot turn it to where the others would be cut.
    votes = [np.bincount(group, way) for way in (np.sin(np.radians(lon)), np.cos(np.radians(lon)))]
    east = _within_180(lon - np.degrees(np.arctan2(*votes))[group])
    scores = np.zeros(points.shape)
    for k, x in enumerate([lat, east]):
        away = np.abs(_within_180(x - _medians(x, group, count)[group]))  # two latitudes are never farther apart
        spread = _medians(away, group, count) / 0.6745
        mean = 1.253314 * np.bincount(group, away) / count
        spread = np.where(spread > SAME_DEG, spread, mean)
        judged = (spread > SAME_DEG) & (count >= SMALLEST_GROUP)
        scores[:, k] = np.where(judged, 1 / np.where(judged, spread, 1), 0)[group] * away
    return scores


def _within_180(degrees: Array) -> Array:
    return (degrees + 180) % 360 - 180


def _medians(values: Array, group: np.ndarray, count: np.ndarray) -> Array:
    """The median (G,) of each group's values (N,); every group has count (G,) >= 1 of them."""
    ordered = values[np.lexsort((values, group))]
    first = np.cumsum(count) - count
    return (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) / 2


def _from_the_middle_km(points: Array, group: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> Array:
    """Distances from the places in `rows` to their group's geometric median."""
    groups, position = np.unique(group[rows], return_inverse=True)
    middle = np.empty((len(groups), 2))
    for k, g in enumerate(groups):
        inside = group == g
        middle[k] = geo.geometric_median(points[inside & mask if (inside & mask).any() else inside])
    return geo.distance_km(points[rows], middle[position])
