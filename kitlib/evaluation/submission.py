"""Submissions: written from guesses, scored against the truth, and compared with each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import ledger, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.metrics import TRUTH, Score, score_arrays
from kitlib.evaluation.submission_files import (
    ANY_STATE_IDX,
    POINT,
    RANKS,
    check,
    largest_state,
    predictions,
    read,
    refuse,
    repeated,
    validate,
)

log = logging.getLogger(__name__)


def score_files(truth_csv: str | Path, submission_csv: str | Path) -> Score:
    """The score of a submission against a file of sample_id, state_idx, latitude and longitude.

    The submission must hold exactly the ids of the truth. Raises KitError as `validate`, but not for picture columns.
    """
    name, truth = Path(truth_csv).name, read(truth_csv, ["sample_id", *TRUTH])
    refuse(truth, truth["sample_id"].duplicated(), name, "sample_id", "is repeated")
    numbers = truth[TRUTH].apply(pd.to_numeric, errors="coerce")
    for column in TRUTH:
        refuse(truth, ~np.isfinite(numbers[column]), name, column, "is not a number")
    submission = read(submission_csv, ["sample_id", *PREDICTED])
    largest = largest_state(numbers[TRUTH[0]])
    ranked, points = predictions(submission, Path(submission_csv).name, truth["sample_id"], name, largest)
    rows = pd.Index(submission["sample_id"]).get_indexer(truth["sample_id"])
    return score_arrays(numbers[TRUTH[0]], numbers[TRUTH[1:]], ranked[rows], points[rows])


def check_template(places: Places) -> pd.DataFrame:
    """Return the template of a submission. Raises KitError for a data set without one."""
    if places.template is None:
        raise KitError(f"{places.name} has no sample_submission.csv to fill in; use 20_error_maps to score runs")
    return places.template


def save(
    name: str,
    guesses: Guesses,
    places: Places,
    meta: Mapping[str, Any],
    truth: Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, list[str]]:
    """Write submissions/<name>.csv by `write_submission`; return its path and the warnings of `validate`.

    The .json gets the date, the commit, a checksum of the .csv and, with a `truth`, the true score. Raises KitError if
    the name is in use with other rows, unless `overwrite`.
    """
    template, path = check_template(places), paths.submissions_dir() / f"{paths.file_name(name, 'submission name')}.csv"
    about = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "commit": runs.git_commit()}
    write_submission(path, guesses, template, about | dict(meta), places.states, truth, overwrite)
    return path, validate(path, template, places.states)


def write_submission(
    path: str | Path,
    guesses: Guesses,
    template: pd.DataFrame,
    meta: Mapping[str, Any],
    mapping: pd.DataFrame | None = None,
    truth: Path | None = None,
    overwrite: bool = True,
) -> Path:
    """Write guesses as a submission, and `meta` (members, weights, scores) as .json beside it; return the path.

    Rows and picture columns are the template's, joined on sample_id; fewer than five states are padded with -1. The
    public_score that a person added to the .json stays as long as the rows are the same. truth: a CSV, for the true
    score in the .json. Raises KitError, and writes neither file, if a place has no guess, if `validate` refuses the
    result, and without `overwrite` if the file exists with other rows.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise KitError(f"submission: expected a name <name>.csv; got {path.name!r}")
    guesses = guesses.at(template["sample_id"].to_numpy())
    ranked = guesses.top_states(len(RANKS))
    table = template.astype(dict.fromkeys(PREDICTED, object))
    table[RANKS] = np.pad(ranked, ((0, 0), (0, len(RANKS) - ranked.shape[1])), constant_values=-1)
    table[POINT] = guesses.point().round(6)  # 6 decimals are 11 cm
    with ledger.lock(path), storage.atomic_write(path) as csv_file:
        table.to_csv(csv_file, index=False, lineterminator="\n")
        written = read(csv_file, list(template.columns))
        for warning in check(written, path.name, template, mapping):
            log.warning("%s: %s", path.name, warning)
        if not overwrite and path.is_file() and path.read_bytes() != csv_file.read_bytes():
            raise KitError(f"{path.name} holds other guesses: expected another NAME, or OVERWRITE to replace them")
        about = ledger.kept(path, csv_file) | dict(meta) | {"checksum": storage.digest(csv_file)}
        about |= {"true_score": score_files(truth, csv_file).final} if truth else {}
        storage.write_json(path.with_suffix(".json"), about, indent=1)
    return path


@dataclass(frozen=True)
class Difference:
    """The differences of two submissions over their `n` rows.

    first_differs: share of rows with different first states. top5_overlap: mean share of common states. mean_km,
    median_km: between the points. rows: sample_id, first_a, first_b, overlap, km; the most different first. points_a,
    points_b (N, 2): the points of these rows.
    """

    n: int
    first_differs: float
    top5_overlap: float
    mean_km: float
    median_km: float
    rows: pd.DataFrame
    points_a: np.ndarray
    points_b: np.ndarray

    def __str__(self) -> str:
        return (
            f"first state differs in {self.first_differs:.1%} of {self.n:,} rows, {self.top5_overlap:.1%} of the "
            f"states are common, points are {self.mean_km:,.1f} km apart on average, median {self.median_km:,.1f} km"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.rows.head(10).to_html(index=False, border=0, float_format="{:,.2f}".format)


def diff(a_csv: str | Path, b_csv: str | Path) -> Difference:
    """Compare two submissions, joined on sample_id. Raises KitError if one of them lacks an id."""
    a, b = (read(path, ["sample_id", *PREDICTED]) for path in (a_csv, b_csv))
    name_a, name_b = Path(a_csv).name, Path(b_csv).name
    ranked_a, points_a = predictions(a, name_a, a["sample_id"], name_a, ANY_STATE_IDX)
    ranked_b, points_b = predictions(b, name_b, a["sample_id"], name_a, ANY_STATE_IDX)
    rows = pd.Index(b["sample_id"]).get_indexer(a["sample_id"])
    ranked_b, points_b = ranked_b[rows], points_b[rows]
    named_a, named_b = (np.where(repeated(ranked), -1, ranked) for ranked in (ranked_a, ranked_b))
    common = ((named_a[:, :, None] == named_b[:, None, :]) & (named_a >= 0)[:, :, None]).sum(axis=(1, 2))
    overlap = common / np.maximum((named_a >= 0).sum(axis=1), (named_b >= 0).sum(axis=1))
    km = geo.distance_km(points_a, points_b)
    table = a[["sample_id"]].assign(first_a=ranked_a[:, 0], first_b=ranked_b[:, 0], overlap=overlap, km=km)
    differs = ranked_a[:, 0] != ranked_b[:, 0]
    order = np.lexsort((-km, overlap, ~differs))
    return Difference(
        n=len(table),
        first_differs=float(differs.mean()),
        top5_overlap=float(overlap.mean()),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        rows=table.iloc[order].reset_index(drop=True),
        points_a=points_a[order],
        points_b=points_b[order],
    )
