"""Submission files: read them, and check them as Kaggle does and beyond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files
from kitlib.data.readers import PREDICTED

RANKS, POINT = PREDICTED[:5], PREDICTED[5:]
LARGEST_STATE_IDX = 49  # of the competition; a mapping or truth with more states extends it
ANY_STATE_IDX = 2**31 - 1
AROUND_US = np.array([[15.0, 75.0], [-180.0, -60.0]])  # ranges of latitude and longitude that hold all places


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
    template, mapping = read_rules(template, mapping)
    table = read(submission_csv, list(template.columns))
    return check(table, Path(submission_csv).name, template, mapping, allow_unknown_states)


def read_rules(
    template: str | Path | pd.DataFrame, mapping: str | Path | pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The tables of the template and of the mapping, read if they are files."""
    if not isinstance(template, pd.DataFrame):
        template = read(template, ["sample_id", *PREDICTED])
    if mapping is not None and not isinstance(mapping, pd.DataFrame):
        mapping = read(mapping, ["state_idx", "state"])
    return template, mapping


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


def largest_state(state_idx: ArrayLike) -> int:
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
        possible, largest = min(possible, len(mapping)), largest_state(mapped)
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
