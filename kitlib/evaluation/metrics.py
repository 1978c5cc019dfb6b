"""Metrics: the competition's score, the Geoscore, and shares of guesses within radii."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError, shorten
from kitlib.data.places import Places
from kitlib.evaluation.guesses import Guesses

RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street, city, region, country, continent (Hays and Efros 2008)
GEOSCORE_MOST, GEOSCORE_KM = 5000.0, 1492.7


def geoscore(km: ArrayLike) -> np.ndarray:
    """The points of the game GeoGuessr (...) for distances (...) in km: 5000 exp(-km / 1492.7).

    Source: Haas et al. 2024 (PIGEON), Astruc et al. 2024 (OpenStreetView-5M).

    >>> geoscore([0.0, 1492.7, np.inf]).round().tolist()
    [5000.0, 1839.0, 0.0]
    """
    return GEOSCORE_MOST * np.exp(-np.asarray(km, float) / GEOSCORE_KM)


def _html_table(cells: Mapping[str, str]) -> str:
    """An HTML table of one row of cells below their names."""
    rows = ("".join(f"<{tag}>{text}</{tag}>" for text in row) for tag, row in (("th", cells), ("td", cells.values())))
    return f"<table><tr>{'</tr><tr>'.join(rows)}</tr></table>"


@dataclass(frozen=True)
class Report:
    """Statistics of `n` distances: mean_km, median_km, mean geoscore, and the shares within (R,) of radii_km (R,)."""

    n: int
    mean_km: float
    median_km: float
    geoscore: float
    radii_km: tuple[float, ...]
    within: tuple[float, ...]

    def as_dict(self) -> dict[str, float]:
        """The numbers by name for metrics.json: n, mean_km, median_km, geoscore, within_1_km and so on."""
        numbers = {name: getattr(self, name) for name in ("n", "mean_km", "median_km", "geoscore")}
        return numbers | {f"within_{km:g}_km": share for km, share in zip(self.radii_km, self.within, strict=True)}

    def __str__(self) -> str:
        shares = ", ".join(
            f"{share:.1%} within {km:g} km" for km, share in zip(self.radii_km, self.within, strict=True)
        )
        return (
            f"Geoscore {self.geoscore:,.0f}, mean {self.mean_km:,.1f} km, median {self.median_km:,.1f} km, {shares} "
            f"({self.n:,} places)"
        )

    def _repr_html_(self) -> str:
        shares = {f"{km:g} km": f"{share:.1%}" for km, share in zip(self.radii_km, self.within, strict=True)}
        return _html_table({
            "Geoscore": f"<b>{self.geoscore:,.0f}</b>",
            "mean km": f"{self.mean_km:,.1f}",
            "median km": f"{self.median_km:,.1f}",
            **shares,
            "places": f"{self.n:,}",
        })  # fmt: skip


def report(km: ArrayLike, radii_km: tuple[float, ...] = RADII_KM) -> Report:
    """The report of distances (N,) in km between guesses and truth; a distance equal to a radius is within it.

    Raises KitError for no distances, and for one that is negative, infinite or NaN.

    >>> report([0.5, 30.0, 100.0]).as_dict()["within_25_km"]
    0.3333333333333333
    """
    km = np.asarray(km, float)
    if km.ndim != 1 or len(km) == 0:
        raise KitError(f"distances: expected shape (N,) with N at least 1; got {km.shape}")
    bad = ~((km >= 0) & (km < np.inf))  # NaN fails both
    if bad.any():
        first = int(np.argmax(bad))
        raise KitError(
            f"distances: expected finite numbers from 0; {int(bad.sum())} of {len(km)} are not, "
            f"first at row {first}: {km[first]:g} km"
        )
    return Report(
        n=len(km),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        geoscore=float(geoscore(km).mean()),
        radii_km=tuple(float(radius) for radius in radii_km),
        within=tuple(float((km <= radius).mean()) for radius in radii_km),
    )


WEIGHTS = (1.00, 0.60, 0.40, 0.25, 0.15)
STATE_SHARE, GPS_SHARE, ZERO_AT_KM = 0.70, 0.30, 5000.0
Z = 1.96  # standard errors of a normal distribution that hold 95 %
TRUTH = ["state_idx", "latitude", "longitude"]


@dataclass(frozen=True)
class Score:
    """The competition's score: `final` is 0.70 `state` + 0.30 `gps`, each from 0 to 1 and over all `n` rows.

    top1, top5: share of rows with the right state first or among the five. mean_km, median_km: of the distances.
    """

    final: float
    state: float
    gps: float
    top1: float
    top5: float
    mean_km: float
    median_km: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """The numbers by name for metrics.json."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.final:.4f} = {STATE_SHARE:.2f} * state {self.state:.4f} + {GPS_SHARE:.2f} * GPS {self.gps:.4f} "
            f"(top-1 {self.top1:.1%}, top-5 {self.top5:.1%}, mean {self.mean_km:,.0f} km, "
            f"median {self.median_km:,.0f} km, {self.n:,} places)"
        )

    def _repr_html_(self) -> str:
        return _html_table({
            "final": f"<b>{self.final:.4f}</b>",
            "state": f"{self.state:.4f}",
            "GPS": f"{self.gps:.4f}",
            "top-1": f"{self.top1:.1%}",
            "top-5": f"{self.top5:.1%}",
            "mean km": f"{self.mean_km:,.0f}",
            "median km": f"{self.median_km:,.0f}",
            "places": f"{self.n:,}",
        })  # fmt: skip


def score_arrays(true_state: ArrayLike, true_points: ArrayLike, ranked_states: ArrayLike, points: ArrayLike) -> Score:
    """The score of N guesses; if a row repeats a state, only its first rank counts.

    Args:
        true_state: (N,) state_idx.
        true_points: (N, 2) [lat, lon].
        ranked_states: (N, 1 to 5) state_idx, the most probable first, -1 for none.
        points: (N, 2) [lat, lon].

    >>> score_arrays([3, 4], [[0, 0], [0, 0]], [[3, 4], [3, 4]], [[0, 0], [0, 0]]).state
    0.8
    """
    true_state, ranked = np.asarray(true_state), np.asarray(ranked_states)
    n = len(true_state)
    if n == 0 or ranked.ndim != 2 or len(ranked) != n or not 1 <= ranked.shape[1] <= len(WEIGHTS):
        raise KitError(f"ranked states: expected shape ({n}, 1 to 5) with at least 1 place; got {ranked.shape}")
    if (true_state < 0).any():
        raise KitError(f"true states: expected known ones; that of place {int(np.argmax(true_state < 0))} is unknown")
    shapes = {np.shape(true_points), np.shape(points)}
    if shapes != {(n, 2)}:
        raise KitError(f"points: expected shape ({n}, 2) of truth and guesses; got {sorted(shapes)}")
    km = geo.distance_km(geo.check_points(true_points, "truth"), geo.check_points(points, "guesses"))
    hit = ranked == true_state[:, None]
    state, gps = float(_earned(hit).mean()), max(0.0, 1 - float(km.mean()) / ZERO_AT_KM)
    return Score(
        final=STATE_SHARE * state + GPS_SHARE * gps,
        state=state,
        gps=gps,
        top1=float(hit[:, 0].mean()),
        top5=float(hit.any(axis=1).mean()),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        n=n,
    )


def error_table(guesses: Guesses, places: Places) -> pd.DataFrame:
    """A table of guesses for training places beside the truth, in the order of the guesses.

    Columns: sample_id; row (number among the training places); state and guess (true and most probable state);
    probability of the guess; right (whether the state is); latitude, longitude, guess_latitude, guess_longitude; km.
    Raises KitError for a guess that belongs to no training place.
    """
    truth, point = _truth(guesses, places), guesses.point()
    guess = places.states.set_index("state_idx")["state"].loc[guesses.top_states(1)[:, 0]].to_numpy()
    table = truth[["sample_id", "state", "latitude", "longitude", "row"]].assign(guess=guess)
    return table.assign(
        probability=guesses.state_probs.max(axis=1),
        right=truth["state"].to_numpy() == guess,
        guess_latitude=point[:, 0],
        guess_longitude=point[:, 1],
        km=geo.distance_km(truth[["latitude", "longitude"]].to_numpy(), point),
    )


def score_guesses(guesses: Guesses, places: Places) -> Score:
    """The score of guesses for training places; every guessed row counts, answered or not.

    Raises KitError for a guess that belongs to no training place.
    """
    truth = _truth(guesses, places)
    return score_arrays(truth[TRUTH[0]], truth[TRUTH[1:]], guesses.top_states(len(WEIGHTS)), guesses.point())


def place_scores(guesses: Guesses, places: Places) -> np.ndarray:
    """The part (N,) of the score that each guess earns; their mean is the score while the mean error is below 5000 km.

    Raises KitError for a guess that belongs to no training place.
    """
    truth = _truth(guesses, places)
    earned = _earned(guesses.top_states(len(WEIGHTS)) == truth["state_idx"].to_numpy()[:, None])
    km = geo.distance_km(truth[TRUTH[1:]].to_numpy(), guesses.point())
    return STATE_SHARE * earned + GPS_SHARE * (1 - km / ZERO_AT_KM)


def _earned(hit: np.ndarray) -> np.ndarray:
    """The state score (N,) of the ranks (N, 1 to 5) that are right."""
    return np.where(hit.any(axis=1), np.asarray(WEIGHTS)[hit.argmax(axis=1)], 0.0)


def _truth(guesses: Guesses, places: Places) -> pd.DataFrame:
    """The training places of guesses, in their order, with the row of each among all training places."""
    train = places.rows("train")
    row = pd.Index(train["sample_id"]).get_indexer(pd.Index(guesses.sample_id))
    if (row < 0).any():
        raise KitError(f"guesses: expected sample_ids of training places; got {shorten(guesses.sample_id[row < 0])}")
    return train.iloc[row].reset_index(drop=True).assign(row=row)


def half_width(values: ArrayLike, group: ArrayLike) -> float:
    """Half of the 95 % interval of the mean of values (N,), whose members of one group (N,) are not independent.

    The cluster-robust standard error of a mean (Cameron and Miller 2015), times 1.96; NaN for a single group.

    >>> round(half_width([0.0, 1.0, 0.0, 1.0], [0, 1, 2, 3]), 3)
    0.566
    >>> round(half_width([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]), 3)
    0.98
    """
    values = np.asarray(values, float)
    labels, member = np.unique(np.asarray(group), return_inverse=True)
    if len(labels) < 2:
        return float("nan")
    sums = np.bincount(member, values - values.mean())
    few = len(labels) / (len(labels) - 1)
    return Z * float(np.sqrt(few * (sums**2).sum()) / len(values))


def score_members(members: Mapping[str, Guesses], places: Places) -> dict[str, Score]:
    """The score of each member by name."""
    return {name: score_guesses(guesses, places) for name, guesses in members.items()}
