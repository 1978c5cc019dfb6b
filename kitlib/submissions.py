"""A submission file, read and checked: what Kaggle would refuse is an error, what only scores badly a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files
from kitlib.data.readers import PREDICTED

RANKS, POINT = PREDICTED[:5], PREDICTED[5:]
LARGEST_STATE_IDX = 49
AROUND_US = np.array(
    [[15.0, 75.0], [-180.0, -60.0]]
)  # latitudes and longitudes; no place of the competition is outside


def read(path: str | Path, needed: list[str]) -> pd.DataFrame:
    """A CSV as text, its index the line numbers. Raises KitError where it is no table or lacks `needed` columns."""
    path = Path(path)
    table, _ = Files(path.parent).read_csv(path.name)
    missing = [column for column in needed if column not in table]
    if missing:
        mend = ""
        if all(column.startswith("image_") for column in missing):
            mend = "; copy them from the template, joined on sample_id: they are not scored, but Kaggle wants them"
        found = ", ".join(map(str, table))
        raise KitError(f"{path.name} lacks the columns {', '.join(missing)}; found: {found}{mend}")
    table.index = pd.RangeIndex(2, len(table) + 2, name="line")
    return table


def predictions(table: pd.DataFrame, name: str, wanted_id: pd.Series, wanted_in: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranked states (N, 5), -1 for none, and points (N, 2) of what `read` returned, in its own order.

    Raises KitError, which calls the file `name`, where its ids are not exactly `wanted_id`, those of the file
    `wanted_in`, or a value is not one that Kaggle takes.
    """
    ids, wanted_id = table["sample_id"], wanted_id.astype(str)
    refuse(table, ids.duplicated(), name, "sample_id", "stands there before")
    refuse(table, ~ids.isin(wanted_id), name, "sample_id", f"is not in {wanted_in}")
    missing = wanted_id[~wanted_id.isin(ids)]
    if len(missing):
        raise KitError(
            f"{name} has {len(table)} of {len(wanted_id)} rows of {wanted_in}; missing are sample_id {shorten(missing)}"
        )
    ranked = np.full((len(table), len(RANKS)), -1)
    for rank, column in enumerate(RANKS):
        empty = (table[column] == "") & (rank > 0)
        value = pd.to_numeric(table[column].mask(empty, "-1"), errors="coerce").to_numpy(float)
        allowed = f"0 to {LARGEST_STATE_IDX}" + (", -1 or empty" if rank else ", neither -1 nor empty")
        out_of_range = (value < (-1 if rank else 0)) | (value > LARGEST_STATE_IDX)
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
    """Warnings about what `read` returned, which may yet score badly; KitError where Kaggle would refuse it."""
    extra = [str(column) for column in table if column not in template]
    if extra:
        allowed = ", ".join(map(str, template))
        raise KitError(f"{name} has unknown columns {', '.join(extra)}; allowed are {allowed}")
    ranked, points = predictions(table, name, template["sample_id"], "the template")
    warnings = []
    possible = len(RANKS)
    if mapping is not None:
        possible = min(possible, len(mapping))
        unknown = (ranked >= 0) & ~np.isin(ranked, pd.to_numeric(mapping["state_idx"]).to_numpy())
        for rank in np.flatnonzero(unknown.any(axis=0)):
            told = f"is not in the mapping of {len(mapping)} states"
            if not allow_unknown_states:
                refuse(table, unknown[:, rank], name, RANKS[rank], told)
            warnings.append(f"{RANKS[rank]} {told} in {_rows(table, unknown[:, rank], RANKS[rank])}")
    images = [column for column in template if str(column).startswith("image_")]
    expected = template.set_index(template["sample_id"].astype(str)).loc[table["sample_id"], images]
    looks = {
        "a state is repeated (only the first counts)": repeated(ranked).any(axis=1),
        f"fewer than {possible} states are given, which never helps,": (ranked[:, :possible] < 0).any(axis=1),
        f"the point is far from the US{_swapped(points)}": ~_in_us(points),
        "the picture names are not the template's": (expected.to_numpy() != table[images].to_numpy()).any(axis=1),
    }
    warnings += [f"{what} in {_rows(table, where)}" for what, where in looks.items() if where.any()]
    if len(table) > 1 and (ranked[:, 0] == ranked[0, 0]).all():
        warnings.append(f"all {len(table)} rows name the same first state {ranked[0, 0]}")
    if len(table) > 1 and (points == points[0]).all():
        warnings.append(f"all {len(table)} rows have the same point {points[0].tolist()}")
    return warnings


def repeated(ranked: np.ndarray) -> np.ndarray:
    """Where in ranked states (N, 5) a state stands that its row names before.

    >>> repeated(np.array([[7, 7, 3, 7, -1, -1]])).tolist()
    [[False, True, False, True, False, False]]
    """
    same = ranked[:, :, None] == ranked[:, None, :]  # (N, later, earlier)
    return np.tril(same, k=-1).any(axis=2) & (ranked >= 0)


def refuse(table: pd.DataFrame, bad: ArrayLike, name: str, column: str, told: str, allowed: str = "") -> None:
    """Raise KitError if any of `bad` (N,), naming the first such rows of what `read` returned."""
    bad = np.asarray(bad, bool)
    if bad.any():
        raise KitError(f"{name}: {column} {told} in {_rows(table, bad, column)}{allowed and f'; allowed is {allowed}'}")


def _rows(table: pd.DataFrame, where: np.ndarray, column: str = "sample_id") -> str:
    """How many rows are in `where` (N,), and the first three with the value of `column`."""
    first = table.loc[where, ["sample_id", column]].iloc[:3]
    told = [
        f"line {line} (sample_id {sample_id}{'' if column == 'sample_id' else f': {value!r}'})"
        for line, sample_id, value in zip(first.index, first.iloc[:, 0], first.iloc[:, 1], strict=True)
    ]
    count = int(where.sum())
    return f"{count} row{'s' * (count > 1)}: {', '.join(told)}{', …' * (count > len(told))}"


def _in_us(points: np.ndarray) -> np.ndarray:
    return np.asarray(((points >= AROUND_US[:, 0]) & (points <= AROUND_US[:, 1])).all(axis=1))


def _swapped(points: np.ndarray) -> str:
    """A suspicion to append to a message."""
    return "; latitude and longitude look swapped" if _in_us(points[:, ::-1]).mean() > 0.5 else ""
