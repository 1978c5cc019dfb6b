"""The competition's rules: the score, the submission file and what is wrong with one, the difference of two.

    final = 0.70 * mean over rows of w(first position whose state is right) + 0.30 * max(0, 1 - mean_km / 5000)

with w = 1.00, 0.60, 0.40, 0.25, 0.15 for positions 1 to 5, else 0. Everything joins on `sample_id`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo, submissions
from kitlib.core.errors import KitError, shorten
from kitlib.core.storage import atomic_write
from kitlib.data.places import Places
from kitlib.data.readers import PREDICTED
from kitlib.guesses import Guesses
from kitlib.submissions import POINT, RANKS

log = logging.getLogger(__name__)

WEIGHTS = (1.00, 0.60, 0.40, 0.25, 0.15)
STATE_SHARE, GPS_SHARE, ZERO_AT_KM = 0.70, 0.30, 5000.0
TRUTH = ["state_idx", "latitude", "longitude"]


@dataclass(frozen=True)
class Score:
    """What guesses earn: `final` is 0.70 `state` + 0.30 `gps`, each in 0..1 and over all `n` rows.

    top1, top5: share of rows with the right state first, or among the five. mean_km, median_km: of the distances.
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
        """The numbers by name, as for metrics.json."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.final:.4f} = {STATE_SHARE:.2f} * state {self.state:.4f} + {GPS_SHARE:.2f} * GPS {self.gps:.4f} "
            f"(top-1 {self.top1:.1%}, top-5 {self.top5:.1%}, mean {self.mean_km:,.0f} km, "
            f"median {self.median_km:,.0f} km, {self.n:,} places)"
        )

    def _repr_html_(self) -> str:
        cells = {
            "final": f"<b>{self.final:.4f}</b>",
            "state": f"{self.state:.4f}",
            "GPS": f"{self.gps:.4f}",
            "top-1": f"{self.top1:.1%}",
            "top-5": f"{self.top5:.1%}",
            "mean km": f"{self.mean_km:,.0f}",
            "median km": f"{self.median_km:,.0f}",
            "places": f"{self.n:,}",
        }
        head = "".join(f"<th>{name}</th>" for name in cells)
        return f"<table><tr>{head}</tr><tr>{''.join(f'<td>{cell}</td>' for cell in cells.values())}</tr></table>"


def score_arrays(true_state: ArrayLike, true_points: ArrayLike, ranked_states: ArrayLike, points: ArrayLike) -> Score:
    """The score of N guesses; of a state given twice in a row only the first counts.

    Args:
        true_state: (N,) state_idx.
        true_points: (N, 2) [lat, lon].
        ranked_states: (N, 1 to 5) state_idx, the best guess first, -1 for none.
        points: (N, 2) [lat, lon].

    >>> score_arrays([3, 4], [[0, 0], [0, 0]], [[3, 4], [3, 4]], [[0, 0], [0, 0]]).state
    0.8
    """
    true_state, ranked = np.asarray(true_state), np.asarray(ranked_states)
    n = len(true_state)
    if n == 0 or ranked.ndim != 2 or len(ranked) != n or not 1 <= ranked.shape[1] <= len(WEIGHTS):
        raise KitError(f"ranked states of shape {ranked.shape} for {n} places; wanted is (N, 1 to 5) with N at least 1")
    if (true_state < 0).any():
        raise KitError(f"the true state of place {int(np.argmax(true_state < 0))} is unknown: it cannot be scored")
    shapes = {np.shape(true_points), np.shape(points)}
    if shapes != {(n, 2)}:
        raise KitError(f"points of shapes {sorted(shapes)} for {n} places; wanted is ({n}, 2) for truth and guesses")
    km = geo.distance_km(geo.check_points(true_points, "truth"), geo.check_points(points, "guesses"))
    hit = ranked == true_state[:, None]
    earned = np.where(hit.any(axis=1), np.asarray(WEIGHTS)[hit.argmax(axis=1)], 0.0)
    state, gps = float(earned.mean()), max(0.0, 1 - float(km.mean()) / ZERO_AT_KM)
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


def score_guesses(guesses: Guesses, places: Places) -> Score:
    """The score of guesses for training places, as out-of-fold ones are; every guessed row counts, answered or not.

    Raises KitError for a guess whose sample_id is no training place.
    """
    truth = places.rows("train").set_index("sample_id")
    strange = ~np.isin(guesses.sample_id, truth.index)
    if strange.any():
        raise KitError(f"guesses to score: sample_id {shorten(guesses.sample_id[strange])} are no training places")
    truth = truth.loc[guesses.sample_id, TRUTH]
    return score_arrays(truth[TRUTH[0]], truth[TRUTH[1:]], guesses.top_states(len(WEIGHTS)), guesses.point())


def score_files(truth_csv: str | Path, submission_csv: str | Path) -> Score:
    """The score of a submission against a file with sample_id, state_idx, latitude and longitude.

    The submission must hold exactly the truth's ids; its picture columns do not matter. KitError as from `validate`.
    """
    name, truth = Path(truth_csv).name, submissions.read(truth_csv, ["sample_id", *TRUTH])
    submissions.refuse(truth, truth["sample_id"].duplicated(), name, "sample_id", "stands there before")
    numbers = truth[TRUTH].apply(pd.to_numeric, errors="coerce")
    for column in TRUTH:
        submissions.refuse(truth, ~np.isfinite(numbers[column]), name, column, "is not a number")
    submission = submissions.read(submission_csv, ["sample_id", *PREDICTED])
    ranked, points = submissions.predictions(submission, Path(submission_csv).name, truth["sample_id"], name)
    rows = pd.Index(submission["sample_id"]).get_indexer(truth["sample_id"])
    return score_arrays(numbers[TRUTH[0]], numbers[TRUTH[1:]], ranked[rows], points[rows])


def write_submission(
    path: str | Path,
    guesses: Guesses,
    template: pd.DataFrame,
    meta: Mapping[str, Any],
    mapping: pd.DataFrame | None = None,
) -> Path:
    """Write guesses as a submission, and `meta` (members, weights, scores) as .json beside it; returns the path.

    Rows and picture columns are the template's, joined on sample_id; fewer than five states are followed by -1. Both
    files appear only when `validate` accepts the result. Raises KitError where it does not, or a place has no guess.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise KitError(f"a submission must be named <name>.csv, not {path.name!r}")
    guesses = guesses.at(template["sample_id"].to_numpy())
    ranked = guesses.top_states(len(RANKS))
    table = template.astype(dict.fromkeys(PREDICTED, object))
    table[RANKS] = np.pad(ranked, ((0, 0), (0, len(RANKS) - ranked.shape[1])), constant_values=-1)
    table[POINT] = guesses.point().round(6)  # 6 decimals are 11 cm
    with atomic_write(path) as csv_file, atomic_write(path.with_suffix(".json")) as json_file:
        table.to_csv(csv_file, index=False, lineterminator="\n")
        json_file.write_text(json.dumps({"public_score": None, **meta}, indent=1) + "\n")
        written = submissions.read(csv_file, list(template.columns))
        for warning in submissions.check(written, path.name, template, mapping):
            log.warning("%s: %s", path.name, warning)
    return path


def validate(
    submission_csv: str | Path,
    template: str | Path | pd.DataFrame,
    mapping: str | Path | pd.DataFrame | None = None,
    allow_unknown_states: bool = False,
) -> list[str]:
    """What looks wrong with a submission (warnings, one sentence each); empty when nothing does.

    Raises KitError, naming the first rows, for all that Kaggle would refuse or that would silently score badly:
    missing, extra or repeated ids and columns, values that are no numbers or out of range, no first state, and, unless
    `allow_unknown_states`, states that are not in `mapping` (state_idx, state). `template` is sample_submission.csv.
    """
    if not isinstance(template, pd.DataFrame):
        template = submissions.read(template, ["sample_id", *PREDICTED])
    if mapping is not None and not isinstance(mapping, pd.DataFrame):
        mapping = submissions.read(mapping, ["state_idx", "state"])
    table = submissions.read(submission_csv, list(template.columns))
    return submissions.check(table, Path(submission_csv).name, template, mapping, allow_unknown_states)


@dataclass(frozen=True)
class Difference:
    """How two submissions differ over their `n` rows.

    first_differs: share of rows with another first state. top5_overlap: mean share of states that both name.
    mean_km, median_km: between the points. rows: sample_id, first_a, first_b, overlap, km; the most different first.
    """

    n: int
    first_differs: float
    top5_overlap: float
    mean_km: float
    median_km: float
    rows: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"first state differs in {self.first_differs:.1%} of {self.n:,} rows, {self.top5_overlap:.1%} of the "
            f"states are common, points are {self.mean_km:,.1f} km apart on average, median {self.median_km:,.1f} km"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.rows.head(10).to_html(index=False, float_format="{:,.2f}".format)


def diff(a_csv: str | Path, b_csv: str | Path) -> Difference:
    """How submission `b_csv` differs from `a_csv`, joined on sample_id; KitError where one of them lacks an id."""
    a, b = (submissions.read(path, ["sample_id", *PREDICTED]) for path in (a_csv, b_csv))
    ranked_a, points_a = submissions.predictions(a, Path(a_csv).name, a["sample_id"], Path(a_csv).name)
    ranked_b, points_b = submissions.predictions(b, Path(b_csv).name, a["sample_id"], Path(a_csv).name)
    rows = pd.Index(b["sample_id"]).get_indexer(a["sample_id"])
    ranked_b, points_b = ranked_b[rows], points_b[rows]
    named_a, named_b = (np.where(submissions.repeated(ranked), -1, ranked) for ranked in (ranked_a, ranked_b))
    common = ((named_a[:, :, None] == named_b[:, None, :]) & (named_a >= 0)[:, :, None]).sum(axis=(1, 2))
    overlap = common / np.maximum((named_a >= 0).sum(axis=1), (named_b >= 0).sum(axis=1))
    km = geo.distance_km(points_a, points_b)
    table = pd.DataFrame(
        {
            "sample_id": a["sample_id"],
            "first_a": ranked_a[:, 0],
            "first_b": ranked_b[:, 0],
            "overlap": overlap,
            "km": km,
        }
    )
    differs = ranked_a[:, 0] != ranked_b[:, 0]
    table = table.iloc[np.lexsort((-km, overlap, ~differs))].reset_index(drop=True)
    return Difference(
        n=len(table),
        first_differs=float(differs.mean()),
        top5_overlap=float(overlap.mean()),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        rows=table,
    )
