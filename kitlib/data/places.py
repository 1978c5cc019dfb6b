"""The checked table of places, whatever the source: what makes it unsound is refused, what is odd is noted.

What would make any later result meaningless (an id given twice, coordinates off the globe, a picture named twice)
raises a KitError before work starts; what only deserves a look (a missing picture, a place far from its state) is kept
and noted in `Places.integrity`. Train and test reuse the same sample_ids and file names: whatever is derived from a
place names its split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files

SPLITS = ("train", "test")
DRAWN = "drawn sample, not photographs"
# A place looks far from its state (of a few places at least) when no other of the state is within LONELY_KM, or none
# within STRANGE_KM while a place of another state is several times closer: a swapped sign is far, Perth is not.
FEW_PLACES, LONELY_KM, STRANGE_KM, STRANGE_TIMES = 5, 2000.0, 300.0, 4.0


@dataclass(frozen=True, eq=False)
class Places:
    """The places of one data set; made by the readers in `places`.

    `options` are those that `places.read` was given, so that another process can read the same again.
    `table` has one row a place: split, sample_id, image_<view> (paths below `folder`, "" where none is named), state
    ("" unknown), state_idx (-1 unknown), latitude, longitude (degrees, NaN unknown). `states` has state_idx and state,
    sorted. `integrity` lists findings as {"check", "where", "count", "examples", "action"}.
    """

    name: str
    folder: Path
    table: pd.DataFrame
    states: pd.DataFrame
    template: pd.DataFrame | None = None
    integrity: list[dict] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def image_columns(self) -> list[str]:
        """The picture columns, in the order of the views."""
        return [column for column in self.table.columns if column.startswith("image_")]

    @property
    def views(self) -> tuple[str, ...]:
        """The views' names: ("north", "east", "south", "west"), or ("only",) for one picture a place."""
        return tuple(column.removeprefix("image_") for column in self.image_columns)

    @cached_property
    def checksum(self) -> str:
        """16 hex characters that stand for the table, the states and the template."""
        tables = [self.table, self.states] + ([] if self.template is None else [self.template])
        return storage.digest(*(t.to_csv(index=False, lineterminator="\n") for t in tables))

    @property
    def key(self) -> str:
        """The name under which everything derived from these places is kept."""
        return f"{self.name}-{self.checksum[:8]}"

    @property
    def derived(self) -> Path:
        """The folder of everything derived from these places."""
        return paths.derived_dir(self.key)

    @property
    def is_drawn(self) -> bool:
        """Whether the pictures are drawn by `data.sample`, not photographed."""
        return (self.folder.parent / "sample.json").is_file()

    @property
    def note(self) -> str:
        """What figures of these places say at their bottom."""
        return DRAWN if self.is_drawn else ""

    @property
    def preset(self) -> str:
        """The preset of a Config that fits these places, "" for the defaults."""
        return "sample" if self.is_drawn else ""

    def rows(self, split: str) -> pd.DataFrame:
        """The places of "train" or "test", numbered from 0 in the order of their file."""
        if split not in SPLITS:
            raise KitError(f"split {split!r}: allowed are {', '.join(SPLITS)}")
        return self.table[self.table["split"] == split].reset_index(drop=True)

    def points(self, split: str) -> np.ndarray:
        """(N, 2) [lat, lon] in degrees, NaN where unknown."""
        return self.rows(split)[["latitude", "longitude"]].to_numpy(np.float64)

    def sample_id(self, split: str) -> np.ndarray:
        """(N,) ids in the order of `rows`."""
        return self.rows(split)["sample_id"].to_numpy()

    def state_position(self, split: str) -> np.ndarray:
        """(N,) each place's row 0…S-1 in `states`, -1 where unknown."""
        position = pd.Series(np.arange(len(self.states)), index=self.states["state_idx"])
        return self.rows(split)["state_idx"].map(position).fillna(-1).to_numpy(np.int64)

    def save(self, extra: Iterable[dict] = ()) -> Path:
        """Write places.parquet and integrity.json to `derived` and return that folder.

        `extra` are further findings, as from `Pack.problems()`; one about the same check and place replaces ours.
        """
        with storage.atomic_write(self.derived / "places.parquet") as path:
            self.table.to_parquet(path, index=False)
        entries = {(entry["check"], entry["where"]): entry for entry in [*self.integrity, *extra]}
        storage.write_json(self.derived / "integrity.json", list(entries.values()))
        return self.derived


def finding(check: str, where: str, examples: Iterable, action: str) -> dict:
    """One entry of integrity.json: what was found, where, how often, a few examples, what was done about it."""
    examples = list(examples)
    return {
        "check": check,
        "where": where,
        "count": len(examples),
        "examples": [e if isinstance(e, str) else int(e) for e in examples[:8]],
        "action": action,
    }


def refuse(bad: ArrayLike, rows: pd.DataFrame, told: str, show: Sequence[str] = ()) -> None:
    """Raise KitError naming the rows where `bad`, with the values of the columns to `show`."""
    first = rows.loc[np.asarray(bad, bool), ["sample_id", *show]].to_numpy()
    if len(first):
        values = [f"{row[0]} ({', '.join(map(str, row[1:]))})" if show else row[0] for row in first]
        raise KitError(f"{told}: sample_id {shorten(values, 5)}")


def checked(
    files: Files,
    table: pd.DataFrame,
    states: pd.DataFrame,
    findings: list[dict],
    where: dict[str, str],
    folders: dict[str, list[str]],
) -> Places:
    """What all sources share: ids, coordinates, pictures, types, and what there is to say about the states.

    `table` is text with split, sample_id, image_<view>, state, state_idx, latitude, longitude; `where` names each
    split's CSV, `folders` where its pictures may be.
    """
    images = [column for column in table.columns if column.startswith("image_")]
    table = table.reset_index(drop=True)
    table["state"] = table["state"].fillna("")
    table["state_idx"] = pd.to_numeric(table["state_idx"]).fillna(-1).astype(np.int64)
    for column in ("latitude", "longitude"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(np.float64)

    for split in table["split"].unique():
        rows = table[table["split"] == split]
        refuse(rows["sample_id"] == "", rows, f"{where[split]}: an empty sample_id")
        refuse(rows["sample_id"].duplicated(keep=False), rows, f"{where[split]}: a sample_id given twice")
        bad = ~(rows["latitude"].between(-90, 90) & rows["longitude"].between(-180, 180))
        if split == "test" and rows[["latitude", "longitude"]].isna().all(axis=None):
            bad[:] = False  # hidden in a competition
        told = f"{where[split]}: latitude must be a number in [-90, 90] and longitude in [-180, 180]"
        refuse(bad, rows, told, ["latitude", "longitude"])

        named = pd.Series(rows[images].to_numpy().ravel())  # (N * V,)
        twice = (named.duplicated(keep=False) & (named != "")).to_numpy().reshape(len(rows), -1).any(axis=1)
        refuse(twice, rows, f"{where[split]}: a picture named twice", images)
        found, there = files.resolve(named, folders[split])
        if not there.any():
            looked = f"{' or '.join(f'{f}/' for f in folders[split])} in {files.root}"
            raise KitError(f"none of the {len(named)} pictures of {where[split]} is in {looked}: {shorten(named, 2)}")
        if not there.all():
            row, view = np.divmod(np.flatnonzero(~there), len(images))
            missing = rows["sample_id"].to_numpy()[row] + " " + np.array(images)[view]
            missing = [m.replace("image_", "") for m in missing]
            findings.append(
                finding("missing picture", f"{split} pictures", missing, "another view of the place stands in")
            )
        table.loc[rows.index, images] = found.to_numpy().reshape(len(rows), -1)

    test = table["split"] == "test"
    shared = set(table.loc[test, images].to_numpy().ravel()) & set(table.loc[~test, images].to_numpy().ravel()) - {""}
    if shared:
        in_both = table.loc[test, images].isin(shared).any(axis=1)
        refuse(in_both, table[test], f"{where['train']}: a picture that is in the test split too", images)

    numbers = table["sample_id"].str.fullmatch(r"0|[1-9]\d{0,17}").all()  # "007" stays text, so that it can be joined
    table["sample_id"] = table["sample_id"].astype(np.int64 if numbers else str)
    findings += _state_findings(table[~test], states, where["train"])
    unlearned = test & (table["state"] != "") & ~table["state_idx"].isin(table.loc[~test, "state_idx"])
    if unlearned.any():
        told = "kept and scored: nothing is learned of their states"
        findings.append(
            finding("test place of a state without training places", where["test"], table["sample_id"][unlearned], told)
        )
    columns = ["split", "sample_id", *images, "state", "state_idx", "latitude", "longitude"]
    return Places(paths.data_name(files.root), files.root, table[columns], states, None, findings)


def _state_findings(train: pd.DataFrame, states: pd.DataFrame, where: str) -> list[dict]:
    """States without training places, and places far away from the others of their state."""
    findings = []
    absent = states.loc[~states["state_idx"].isin(train["state_idx"]), "state"]
    if len(absent):
        findings.append(finding("state without training places", where, absent, "kept: it can be guessed, not learned"))
    points = train[["latitude", "longitude"]].to_numpy()
    nearest_km = geo.nearest(points, points, k=2)[0][:, 1] if len(train) > 1 else np.zeros(len(train))
    own_km = np.zeros(len(train))  # to the nearest place of the same state
    for members in train.groupby("state_idx").indices.values():
        if len(members) >= FEW_PLACES:
            own_km[members] = geo.nearest(points[members], points[members], k=2)[0][:, 1]
    far = (own_km > LONELY_KM) | ((own_km > STRANGE_KM) & (own_km > STRANGE_TIMES * nearest_km))
    if far.any():
        rows = train[far].assign(km=own_km[far]).sort_values("km", ascending=False)
        examples = [
            f"{row.sample_id}: {row.state}, nearest other place there {row.km:.0f} km" for row in rows.itertuples()
        ]
        findings.append(finding("place far from its state", where, examples, "kept"))
    return findings
