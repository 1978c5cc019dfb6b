"""The checked table of places, the same for every source.

Faults that would make later results meaningless (a repeated id, coordinates off the globe, a picture named twice) raise
a KitError before work starts. Oddities (a missing picture, a place far from its state) are kept and recorded in
`Places.integrity`. Train and test reuse the same sample_ids and file names, so that everything derived from a place
names its split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files

pd.set_option("display.html.use_mathjax", False)  # a state called $x$ is no formula, in JupyterLab's tables either

SPLITS = ("train", "test")
POINT = ["latitude", "longitude"]
OUTSIDE = r"^/|^[A-Za-z]:|://|(?:^|/)\.\.(?:/|$)"  # a full path, a drive, an address, a folder above
DRAWN = "drawn sample, not photographs"
# A place counts as far from its state (of at least FEW_PLACES) if no other of the state is within LONELY_KM, or none is
# within STRANGE_KM and a place of another state is STRANGE_TIMES closer: this finds swapped signs and spares Perth.
FEW_PLACES, LONELY_KM, STRANGE_KM, STRANGE_TIMES = 5, 2000.0, 300.0, 4.0


@dataclass(frozen=True, eq=False)
class Places:
    """The places of one data set, made by `data.readers`.

    `table` has one row per place: split, sample_id, image_<view> (paths below `folder`, "" for none), state and
    state_idx (unknown: "" and -1), latitude, longitude (degrees, unknown: NaN). `states` has state_idx, state.
    `template` is the competition's sample submission. `integrity` lists findings as {"check", "where", "count",
    "examples", "action"}. `options` are those given to `readers.read`, for another process to read the data.
    """

    name: str
    folder: Path
    table: pd.DataFrame
    states: pd.DataFrame
    template: pd.DataFrame | None = None
    integrity: list[dict] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    queries: Places | None = None  # photographs (`data.photos`) that stand for the split "test"

    @property
    def image_columns(self) -> list[str]:
        """The picture columns, in the order of the views."""
        return [column for column in self.table.columns if column.startswith("image_")]

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views: ("north", "east", "south", "west"), or ("only",) for one picture per place."""
        return tuple(column.removeprefix("image_") for column in self.image_columns)

    @cached_property
    def checksum(self) -> str:
        """A checksum of the table, the states and the template, 16 hex characters."""
        tables = [self.table, self.states] + ([] if self.template is None else [self.template])
        return storage.digest(*(t.to_csv(index=False, lineterminator="\n") for t in tables))

    @property
    def key(self) -> str:
        """The name of the folder of derived files."""
        return f"{self.name}-{self.checksum[:8]}"

    @property
    def derived(self) -> Path:
        """The folder of all files derived from these places, or from the photographs alone without training places."""
        if self.queries is not None and not len(self.table):
            return self.queries.derived
        return paths.derived_dir(self.key)

    @property
    def is_drawn(self) -> bool:
        """Whether the pictures were drawn by `data.sample`."""
        return (self.folder.parent / "sample.json").is_file()

    @property
    def note(self) -> str:
        """The note at the bottom of figures of these places."""
        return DRAWN if self.is_drawn else ""

    @property
    def preset(self) -> str:
        """The preset of a Config that suits these places, "" for the defaults."""
        return "sample" if self.is_drawn else ""

    def _repr_html_(self) -> str:
        counts = " and ".join(f"{len(self.rows(split)):,} {split}" for split in SPLITS)
        about = (
            f"<b>{escape(self.name)}</b>: {counts} places in {len(self.states)} states, views {', '.join(self.views)}"
        )
        found = [
            f"<li>{escape(entry['check'])}: {entry['count']:,} ({escape(entry['action'])})" for entry in self.integrity
        ]
        return f"<p>{about}</p><ul>{''.join(found)}</ul>"

    def rows(self, split: str) -> pd.DataFrame:
        """The places of "train" or "test" in the order of their file, indexed from 0."""
        if split not in SPLITS:
            raise KitError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
        if split == "test" and self.queries is not None:
            return self.queries.table
        return self.table[self.table["split"] == split].reset_index(drop=True)

    def points(self, split: str) -> np.ndarray:
        """The points (N, 2) [lat, lon] in degrees, NaN where unknown."""
        return self.rows(split)[["latitude", "longitude"]].to_numpy(np.float64)

    def sample_id(self, split: str) -> np.ndarray:
        """The ids (N,) in the order of `rows`."""
        return self.rows(split)["sample_id"].to_numpy()

    def state_position(self, split: str) -> np.ndarray:
        """The row (N,) of each place's state in `states`, -1 where unknown."""
        position = pd.Series(np.arange(len(self.states)), index=self.states["state_idx"])
        return self.rows(split)["state_idx"].map(position).fillna(-1).to_numpy(np.int64)

    def save(self, extra: Iterable[dict] = ()) -> Path:
        """Write places.parquet and integrity.json to `derived`, and return that folder.

        `extra` findings, such as `Pack.problems()`, replace those with the same check and where.
        """
        with storage.atomic_write(self.derived / "places.parquet") as path:
            self.table.to_parquet(path, index=False)
        entries = {(entry["check"], entry["where"]): entry for entry in [*self.integrity, *extra]}
        storage.write_json(self.derived / "integrity.json", list(entries.values()))
        return self.derived


def finding(check: str, where: str, examples: Iterable, action: str) -> dict:
    """Make an entry of integrity.json: the check, where it failed, the count, a few examples, the action taken."""
    examples = list(examples)
    return {
        "check": check,
        "where": where,
        "count": len(examples),
        "examples": [e if isinstance(e, str) else int(e) for e in examples[:8]],
        "action": action,
    }


def refuse(bad: ArrayLike, rows: pd.DataFrame, message: str, show: Sequence[str] = ()) -> None:
    """If any row is `bad`, raise KitError with the message, the ids of the first, and their values to `show`."""
    first = rows.loc[np.asarray(bad, bool), ["sample_id", *show]].to_numpy()
    if len(first):
        values = [f"{row[0]} ({', '.join(map(str, row[1:]))})" if show else row[0] for row in first]
        raise KitError(f"{message}: sample_id {shorten(values, 5)}")


def checked(
    files: Files,
    table: pd.DataFrame,
    states: pd.DataFrame,
    findings: list[dict],
    where: dict[str, str],
    folders: dict[str, list[str]],
) -> Places:
    """Check the ids, coordinates, pictures and states of a table from any source, and convert their types.

    `table` holds text: split, sample_id, image_<view>, state, state_idx, latitude, longitude. `where` names the CSV of
    each split, `folders` the folders that may hold its pictures.
    """
    images = [column for column in table.columns if column.startswith("image_")]
    table = table.reset_index(drop=True)
    table["state"] = table["state"].fillna("")
    table["state_idx"] = pd.to_numeric(table["state_idx"]).fillna(-1).astype(np.int64)
    cells = table[POINT].fillna("")  # as they are in the file
    for column in POINT:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
    table[images] = table[images].apply(lambda column: column.str.replace("\\", "/"))

    for split in table["split"].unique():
        rows = table[table["split"] == split]
        refuse(rows["sample_id"] == "", rows, f"{where[split]}: an empty sample_id")
        refuse(rows["sample_id"].duplicated(keep=False), rows, f"{where[split]}: a repeated sample_id")
        bad = ~(rows["latitude"].between(-90, 90) & rows["longitude"].between(-180, 180))
        if split == "test" and (cells.loc[rows.index] == "").all(axis=None):
            bad[:] = False  # hidden in a competition
        message = f"{where[split]}: expected latitudes in [-90, 90] and longitudes in [-180, 180]{_mistake(rows)}; got"
        refuse(bad, rows.assign(**cells.loc[rows.index]), message, POINT)

        named = pd.Series(rows[images].to_numpy().ravel())  # (N * V,)
        outside = named.str.contains(OUTSIDE).to_numpy(bool).reshape(len(rows), -1).any(axis=1)
        refuse(outside, rows, f"{where[split]}: expected names of pictures below the data folder; got", images)
        found, exists = files.resolve(named, folders[split])
        twice = (found.duplicated(keep=False) & (found != "")).to_numpy().reshape(len(rows), -1).any(axis=1)
        refuse(twice, rows, f"{where[split]}: a picture named twice", images)
        if not exists.any():
            tried = f"{' or '.join(f'{f}/' for f in folders[split])} in {files.root}"
            links = "; links that lead outside the folder are not followed" if files.links else ""
            raise KitError(
                f"none of the {len(named)} pictures of {where[split]} is in {tried}: {shorten(named, 2)}{links}"
            )
        if not exists.all():
            row, view = np.divmod(np.flatnonzero(~exists), len(images))
            missing = rows["sample_id"].to_numpy()[row] + " " + np.array(images)[view]
            missing = [m.replace("image_", "") for m in missing]
            findings.append(
                finding("missing picture", f"{split} pictures", missing, "replaced by another view of the place")
            )
        table.loc[rows.index, images] = found.to_numpy().reshape(len(rows), -1)

    test = table["split"] == "test"
    shared = set(table.loc[test, images].to_numpy().ravel()) & set(table.loc[~test, images].to_numpy().ravel()) - {""}
    if shared:
        in_both = table.loc[test, images].isin(shared).any(axis=1)
        refuse(in_both, table[test], f"{where['train']}: a picture of the test split", images)

    numbers = table["sample_id"].str.fullmatch(r"0|[1-9]\d{0,17}").all()  # "007" stays text, or it could not be joined
    table["sample_id"] = table["sample_id"].astype(np.int64 if numbers else str)
    _refuse_swapped(table[~test], where["train"])
    findings += _state_findings(table[~test], states, where["train"])
    unlearned = test & (table["state"] != "") & ~table["state_idx"].isin(table.loc[~test, "state_idx"])
    if unlearned.any():
        check, action = "test place of a state without training places", "kept and scored; no model knows the state"
        findings.append(finding(check, where["test"], table["sample_id"][unlearned], action))
    columns = ["split", "sample_id", *images, "state", "state_idx", "latitude", "longitude"]
    return Places(paths.data_name(files.root), files.root, table[columns], states, None, findings)


def _mistake(rows: pd.DataFrame) -> str:
    """A likely reason for coordinates off the globe, for a message; "" for none."""
    latitude, longitude = rows["latitude"].dropna(), rows["longitude"].dropna()
    if longitude.between(0, 360).all() and (longitude > 180).any():
        return "; longitudes look like 0 to 360: subtract 360 from those above 180"
    if (latitude.abs() > 90).mean() > 0.1 and longitude.abs().le(90).all():
        return "; latitude and longitude look swapped"
    return ""


def _refuse_swapped(train: pd.DataFrame, where: str) -> None:
    """Raise KitError if most places lie in their US state only with latitude and longitude swapped."""
    points = train[POINT].to_numpy()
    if ((points[:, 0] < 0) & (points[:, 1] > 0)).mean() > 0.5:  # no state of the US is there
        fits = geo.outlines.state_of(points[:, ::-1]) == train["state"].to_numpy(object)
        if fits.mean() > 0.5:
            raise KitError(
                f"{where}: latitude and longitude look swapped: {fits.sum()} of {len(train)} places would lie in their "
                "state if they were"
            )


def _state_findings(train: pd.DataFrame, states: pd.DataFrame, where: str) -> list[dict]:
    """Find states without training places, and places far from the others of their state."""
    findings = []
    absent = states.loc[~states["state_idx"].isin(train["state_idx"]), "state"]
    if len(absent):
        findings.append(
            finding("state without training places", where, absent, "kept: it can be guessed, but not learned")
        )
    points = train[POINT].to_numpy()
    nearest_km = geo.nearest(points, points, k=2)[0][:, 1] if len(train) > 1 else np.zeros(len(train))
    own_km = np.zeros(len(train))  # to the nearest place of the same state
    for members in train.groupby("state_idx").indices.values():
        if len(members) >= FEW_PLACES:
            own_km[members] = geo.nearest(points[members], points[members], k=2)[0][:, 1]
    far = (own_km > LONELY_KM) | ((own_km > STRANGE_KM) & (own_km > STRANGE_TIMES * nearest_km))
    if far.any():
        rows = train[far].assign(km=own_km[far]).sort_values("km", ascending=False)
        examples = [f"{r.sample_id}: {r.state}, {r.km:.0f} km from its nearest other place" for r in rows.itertuples()]
        findings.append(finding("place far from its state", where, examples, "kept"))
    return findings
