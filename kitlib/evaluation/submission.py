"""Submission files: read, check, score, write and compare them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError, shorten
from kitlib.data.files import Files
from kitlib.data.places import Places
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.metrics import TRUTH, Score, score_arrays

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
    largest = _largest(numbers[TRUTH[0]])
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
    with storage.lock(path.with_name(f".{path.stem}.lock")), storage.atomic_write(path) as csv_file:
        table.to_csv(csv_file, index=False, lineterminator="\n")
        written = read(csv_file, list(template.columns))
        for warning in check(written, path.name, template, mapping):
            log.warning("%s: %s", path.name, warning)
        if not overwrite and path.is_file() and path.read_bytes() != csv_file.read_bytes():
            raise KitError(f"{path.name} holds other guesses: expected another NAME, or OVERWRITE to replace them")
        about = {"public_score": _public_score(path, csv_file), **meta, "checksum": storage.digest(csv_file)}
        about |= _handed_in(path)
        about |= {"true_score": score_files(truth, csv_file).final} if truth else {}
        storage.write_json(path.with_suffix(".json"), about, indent=1)
    return path


def _public_score(path: Path, written: Path) -> Any:
    """The public score of the submission at `path`, None without one or if `written`, which replaces it, differs."""
    try:
        score: Any = storage.read_json(path.with_suffix(".json")).get("public_score")
    except (FileNotFoundError, Damaged):
        return None
    if score is not None and not (path.is_file() and path.read_bytes() == written.read_bytes()):
        log.warning("%s: its public_score %s is dropped, as the rows have changed", path.name, score)
        return None
    return score


def _handed_in(path: Path) -> dict[str, Any]:
    """The records of what was handed in under a submission's name, each with the checksum of its rows."""
    try:
        return {"submitted": storage.read_json(path.with_suffix(".json"), needed=("submitted",))["submitted"]}
    except (FileNotFoundError, Damaged):
        return {}


def validate(
    submission_csv: str | Path,
    template: str | Path | pd.DataFrame,
    mapping: str | Path | pd.DataFrame | None = None,
    allow_unknown_states: bool = False,
) -> list[str]:
    """Check a submission and return warnings, one sentence each, about suspicious content.

    Raises KitError, naming the first rows, for faults that Kaggle would refuse or that would score badly unnoticed:
    missing, extra or repeated ids and columns, values that are no numbers or out of range, no first state, and, unless
    `allow_unknown_states`, states that are not in `mapping` (state_idx, state). `template` is sample_submission.csv.
    """
    if not isinstance(template, pd.DataFrame):
        template = read(template, ["sample_id", *PREDICTED])
    if mapping is not None and not isinstance(mapping, pd.DataFrame):
        mapping = read(mapping, ["state_idx", "state"])
    table = read(submission_csv, list(template.columns))
    return check(table, Path(submission_csv).name, template, mapping, allow_unknown_states)


@dataclass(frozen=True)
class Difference:
    """The differences of two submissions over their `n` rows.

    first_differs: share of rows with different first states. top5_overlap: mean share of common states. mean_km,
    median_km: between the points. rows: sample_id, first_a, first_b, overlap, km; the most different first.
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
    table = table.iloc[np.lexsort((-km, overlap, ~differs))].reset_index(drop=True)
    return Difference(
        n=len(table),
        first_differs=float(differs.mean()),
        top5_overlap=float(overlap.mean()),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        rows=table,
    )


RANKS, POINT = PREDICTED[:5], PREDICTED[5:]
LARGEST_STATE_IDX = 49  # of the competition; a mapping or truth with more states extends it
ANY_STATE_IDX = 2**31 - 1
AROUND_US = np.array([[15.0, 75.0], [-180.0, -60.0]])  # ranges of latitude and longitude that hold all places


def read(path: str | Path, needed: list[str]) -> pd.DataFrame:
    """Read a CSV as text, indexed by line number. Raises KitError if it is no table or lacks `needed` columns."""
    path = Path(path)
    table, dialect = Files(path.parent).read_csv(
        path.name, [column for column in needed if not column.startswith("image_")]
    )
    if missing := [column for column in needed if column not in table]:
        raise KitError(
            f"{path.name} lacks the columns {', '.join(missing)}: copy them from the template, joined on sample_id; "
            "they are not scored, but Kaggle requires them"
        )
    table.index = (table.index + 2).rename("line")
    table.attrs["dialect"] = dialect
    return table


def _largest(state_idx: ArrayLike) -> int:
    """The largest state_idx that a submission may name, given those that its mapping or truth names."""
    return max(LARGEST_STATE_IDX, int(min(np.max(state_idx), ANY_STATE_IDX)))


def predictions(
    table: pd.DataFrame, name: str, target_id: pd.Series, target: str, largest: int = LARGEST_STATE_IDX
) -> tuple[np.ndarray, np.ndarray]:
    """Ranked states (N, 5) up to `largest`, -1 for none, and points (N, 2) of a table by `read`, in its own order.

    Raises KitError naming the file `name` if its ids are not exactly `target_id`, those of the file `target`, or if
    Kaggle would refuse a value.
    """
    ids, target_id = table["sample_id"], target_id.astype(str)
    refuse(table, ids.duplicated(), name, "sample_id", "is repeated")
    refuse(table, ~ids.isin(target_id), name, "sample_id", f"is not in {target}")
    missing = target_id[~target_id.isin(ids)]
    if len(missing):
        raise KitError(
            f"{name} has {len(table)} of {len(target_id)} rows of {target}; missing: sample_id {shorten(missing)}"
        )
    ranked = np.full((len(table), len(RANKS)), -1)
    for rank, column in enumerate(RANKS):
        empty = (table[column] == "") & (rank > 0)
        value = pd.to_numeric(table[column].mask(empty, "-1"), errors="coerce").to_numpy(float)
        allowed = f"0 to {largest}" + (", -1 or empty" if rank else ", neither -1 nor empty")
        out_of_range = (value < (-1 if rank else 0)) | (value > largest)
        refuse(table, value != np.floor(value), name, column, "is not a whole number", allowed)
        refuse(table, out_of_range, name, column, "is no state", allowed)
        ranked[:, rank] = value
    points = table[POINT].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    for axis, (column, bound) in enumerate(zip(POINT, (90, 180), strict=True)):
        allowed = f"a number from -{bound} to {bound}{_swapped(points)}"
        refuse(table, ~np.isfinite(points[:, axis]), name, column, "is not a finite number", allowed)
        refuse(table, np.abs(points[:, axis]) > bound, name, column, "is out of range", allowed)
    return ranked, points


def check(
    table: pd.DataFrame,
    name: str,
    template: pd.DataFrame,
    mapping: pd.DataFrame | None = None,
    allow_unknown_states: bool = False,
) -> list[str]:
    """Check a table by `read` as `validate` does; `name` is its file."""
    extra = [str(column) for column in table if column not in template]
    if extra:
        raise KitError(f"{name}: expected columns {', '.join(map(str, template))}; got also {', '.join(extra)}")
    warnings = []
    if (dialect := table.attrs.get("dialect", "utf-8")) != "utf-8":
        warnings.append(f"the table is in {dialect}: Kaggle expects UTF-8 and commas")
    possible, largest = len(RANKS), LARGEST_STATE_IDX
    if mapping is not None:
        mapped = pd.to_numeric(mapping["state_idx"], errors="coerce").to_numpy(float)
        if not np.isfinite(mapped).all():
            raise KitError(f"the mapping: expected numbers in state_idx; got {shorten(mapping['state_idx'], 3)}")
        possible, largest = min(possible, len(mapping)), _largest(mapped)
    ranked, points = predictions(table, name, template["sample_id"], "the template", largest)
    if mapping is not None:
        unknown = (ranked >= 0) & ~np.isin(ranked, mapped)
        for rank in np.flatnonzero(unknown.any(axis=0)):
            fault = f"is not in the mapping of {len(mapping)} states"
            if not allow_unknown_states:
                refuse(table, unknown[:, rank], name, RANKS[rank], fault)
            warnings.append(f"{RANKS[rank]} {fault} in {_rows(table, unknown[:, rank], RANKS[rank])}")
    images = [column for column in template if str(column).startswith("image_")]
    expected = template.set_index(template["sample_id"].astype(str)).loc[table["sample_id"], images]
    suspicious = {
        "a state is repeated (only the first counts)": repeated(ranked).any(axis=1),
        f"fewer than {possible} states are given, which never helps,": (ranked[:, :possible] < 0).any(axis=1),
        f"the point is far from the US{_swapped(points)}": ~_in_us(points),
        "the picture names are not the template's": (expected.to_numpy() != table[images].to_numpy()).any(axis=1),
    }
    warnings += [f"{what} in {_rows(table, mask)}" for what, mask in suspicious.items() if mask.any()]
    if len(table) > 1 and (ranked[:, 0] == ranked[0, 0]).all():
        warnings.append(f"all {len(table)} rows name the same first state {ranked[0, 0]}")
    if len(table) > 1 and (points == points[0]).all():
        warnings.append(f"all {len(table)} rows have the same point {points[0].tolist()}")
    return warnings


def repeated(ranked: np.ndarray) -> np.ndarray:
    """The mask (N, 5) of ranked states (N, 5) that repeat an earlier one of their row.

    >>> repeated(np.array([[7, 7, 3, 7, -1, -1]])).tolist()
    [[False, True, False, True, False, False]]
    """
    same = ranked[:, :, None] == ranked[:, None, :]  # (N, later, earlier)
    return np.tril(same, k=-1).any(axis=2) & (ranked >= 0)


def refuse(table: pd.DataFrame, bad: ArrayLike, name: str, column: str, fault: str, expected: str = "") -> None:
    """If any row of a table by `read` is `bad`, raise KitError naming the first ones."""
    bad = np.asarray(bad, bool)
    if bad.any():
        raise KitError(
            f"{name}: {column} {fault} in {_rows(table, bad, column)}{expected and f'; expected {expected}'}"
        )


def _rows(table: pd.DataFrame, mask: np.ndarray, column: str = "sample_id") -> str:
    """The number of rows in `mask` (N,), and the first three with their values of `column`."""
    first = table.loc[mask, ["sample_id", column]].iloc[:3]
    examples = [
        f"line {line} (sample_id {sample_id}{'' if column == 'sample_id' else f': {value!r}'})"
        for line, sample_id, value in zip(first.index, first.iloc[:, 0], first.iloc[:, 1], strict=True)
    ]
    count = int(mask.sum())
    return f"{count} row{'s' * (count > 1)}: {', '.join(examples)}{', …' * (count > len(examples))}"


def _in_us(points: np.ndarray) -> np.ndarray:
    return np.asarray(((points >= AROUND_US[:, 0]) & (points <= AROUND_US[:, 1])).all(axis=1))


def _swapped(points: np.ndarray) -> str:
    """A hint for a message, "" unless most points seem to have latitude and longitude swapped."""
    return "; latitude and longitude look swapped" if _in_us(points[:, ::-1]).mean() > 0.5 else ""
