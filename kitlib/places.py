"""Every source of labelled places, read into one checked table.

A place is seen in V pictures (north, east, south, west in the competition), lies at a [lat, lon] and in a state. The
vocabulary of states comes from the data, never from here. What would make any later result meaningless (a missing
column, an id given twice, a state that contradicts its mapping) is refused with a KitError before work starts; what
only deserves a look (a missing picture, a place far from its state) is kept and noted in `Places.integrity`.

Train and test reuse the same sample_ids and file names: whatever is derived from a place names its split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo, paths
from kitlib.files import Files, shorten
from kitlib.paths import KitError

VIEWS = ("north", "east", "south", "west")
SPLITS = ("train", "test")
PREDICTED = [f"predicted_state_idx_{rank}" for rank in range(1, 6)] + ["predicted_latitude", "predicted_longitude"]
REGION_COLUMNS = ("state", "region", "country", "Region_ID")  # the order in which a label column is looked for
# A place looks far from its state (of a few places at least) when no other of the state is within LONELY_KM, or none
# within STRANGE_KM while a place of another state is several times closer: a swapped sign is far, Perth is not.
FEW_PLACES, LONELY_KM, STRANGE_KM, STRANGE_TIMES = 5, 2000.0, 300.0, 4.0


@dataclass(frozen=True, eq=False)
class Places:
    """The places of one data set; made by `read` and its kin.

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
        return paths.digest(*(t.to_csv(index=False, lineterminator="\n") for t in tables))

    @property
    def key(self) -> str:
        """The name under which everything derived from these places is kept."""
        return f"{self.name}-{self.checksum[:8]}"

    @property
    def derived(self) -> Path:
        """The folder of everything derived from these places."""
        return paths.derived_dir(self.key)

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
        with paths.atomic_write(self.derived / "places.parquet") as path:
            self.table.to_parquet(path, index=False)
        entries = {(entry["check"], entry["where"]): entry for entry in [*self.integrity, *extra]}
        with paths.atomic_write(self.derived / "integrity.json") as path:
            path.write_text(json.dumps(list(entries.values()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return self.derived


def read(data: str | Path, region_column: str | None = None) -> Places:
    """Read a data set, given its folder, its .zip or its name under data/raw, whichever of the kinds it is.

    A folder with train_ground_truth.csv is a competition, one with metadata.csv is described there, and one with
    a CSV of filename, latitude, longitude is a region table. `region_column` names the label column of the latter two.
    """
    root = paths.find_data(str(data))
    tables = [name for name in Files(root).names() if name.lower().endswith(".csv")]
    if "train_ground_truth.csv" in tables:
        if region_column:
            raise KitError(f"region_column={region_column!r}: the competition folder {root} has its states in `state`")
        return read_competition(root)
    if "metadata.csv" in tables:
        return read_metadata(root, region_column)
    if any(name.startswith("labels_") for name in tables):
        return read_region_table(root, region_column=region_column)
    raise KitError(
        f"{root} is no known data set: needed is train_ground_truth.csv (a competition), metadata.csv, or labels_*.csv "
        f"(a region table); CSV files found: {shorten(tables)}"
    )


def read_competition(folder_or_zip: str | Path) -> Places:
    """Read and check a competition folder, or its .zip as Kaggle serves it, without unpacking.

    Needs train_ground_truth.csv, sample_submission.csv, state_mapping.csv and the pictures in train_images/ and
    test_images/. Raises KitError, naming file and rows, where they are missing or contradict each other.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    images = [f"image_{view}" for view in VIEWS]
    needed = ["sample_id", *images, "state", "state_idx", "latitude", "longitude"]
    train = _csv(files, "train_ground_truth.csv", needed, findings)[needed]
    test = _csv(files, "sample_submission.csv", ["sample_id", *images, *PREDICTED], findings)
    states = _mapping(_csv(files, "state_mapping.csv", ["state_idx", "state"], findings), "state_mapping.csv")

    idx = pd.to_numeric(train["state_idx"], errors="coerce")
    state_of_idx = idx.map(states.set_index("state_idx")["state"])
    where = {"train": "train_ground_truth.csv", "test": "sample_submission.csv"}
    _refuse(state_of_idx.isna(), train, f"{where['train']}: state_idx absent from state_mapping.csv", ["state_idx"])
    wrong = state_of_idx != train["state"]
    _refuse(wrong, train, f"{where['train']}: state and state_idx disagree with state_mapping.csv", needed[5:7])

    table = pd.concat([train.assign(split="train"), test[["sample_id", *images]].assign(split="test")])
    places = _checked(files, table, states, findings, where, {"train": ["train_images"], "test": ["test_images"]})
    numbers = {column: pd.to_numeric(test[column], errors="coerce") for column in PREDICTED}
    return replace(places, template=test.assign(sample_id=places.sample_id("test"), **numbers))


def read_region_table(
    folder_or_zip: str | Path,
    train_csv: str | None = None,
    test_csv: str | None = None,
    region_column: str | None = None,
) -> Places:
    """Read CSVs of filename, latitude, longitude and Region_ID, one picture a place.

    The CSVs are labels_train.csv and labels_val.csv or labels_test.csv unless named; the rows of the second become the
    split "test" with their truth known. The pictures of labels_<x>.csv are in images_<x>/, possibly once more inside
    a folder of the same name. A place's sample_id is its file name.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    region_column = region_column or "Region_ID"
    there = files.names()
    train_csv = train_csv or "labels_train.csv"
    test_csv = test_csv or next((name for name in ("labels_val.csv", "labels_test.csv") if name in there), None)
    where = {"train": train_csv} | ({"test": test_csv} if test_csv else {})
    needed = ["filename", "latitude", "longitude", region_column]
    tables = [_csv(files, path, needed, findings)[needed].assign(split=split) for split, path in where.items()]
    table = pd.concat(tables).rename(columns={"filename": "image_only", region_column: "state"})
    folders = {}
    for split, path in where.items():
        word = Path(path).stem.rpartition("_")[2]
        folders[split] = [f"images_{word}/images_{word}", f"images_{word}", word, "images", ""]
    return _labelled(files, table.assign(sample_id=table["image_only"]), findings, where, folders)


def read_metadata(folder_or_zip: str | Path, region_column: str | None = None) -> Places:
    """Read a folder with metadata.csv: latitude, longitude, pictures and at least one column of labels.

    Pictures are in columns image_<view>, or one a place in file_name, filename or image; the files in images/ or beside
    the table. Labels are in `region_column`; by default the first of state, region, country and Region_ID that is
    filled in every row. Without sample_id rows are numbered from 0. A column `split` may hold train, test, val or
    validation (the last three become "test"); without it every place is for training.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    path = "metadata.csv"
    table = _csv(files, path, ["latitude", "longitude"], findings)
    columns = list(table.columns)
    images = [f"image_{view}" for view in VIEWS if f"image_{view}" in columns]
    images += [column for column in columns if column.startswith("image_") and column not in images]
    if not images:
        single = [column for column in ("file_name", "filename", "image") if column in table]
        if not single:
            allowed = "image_<view> columns, or one of file_name, filename, image"
            raise KitError(f"{path} in {files.root}: no pictures; allowed are {allowed}; found: {', '.join(columns)}")
        table, images = table.rename(columns={single[0]: "image_only"}), ["image_only"]
    filled = [column for column in REGION_COLUMNS if column in table and (table[column] != "").all()]
    labels = [column for column in table if column not in {"sample_id", "split", "latitude", "longitude", *images}]
    if region_column is None and filled:
        region_column = filled[0]
    if region_column not in labels:
        told = f"no label column {region_column!r}" if region_column else "no label column is filled in every row"
        raise KitError(f"{path} in {files.root}: {told}; region_column may be one of: {shorten(labels)}")
    table["state"] = table[region_column]
    if "sample_id" not in table:
        table["sample_id"] = [str(row) for row in range(len(table))]
    split = table["split"].str.lower() if "split" in table else pd.Series("train", index=table.index)
    table["split"] = split.replace({"val": "test", "validation": "test"})
    allowed = "train, test, val, validation"
    _refuse(~table["split"].isin(SPLITS), table, f"{path}: split may be {allowed}; it is not", ["split"])
    columns = ["split", "sample_id", *images, "latitude", "longitude", "state"]
    in_folders = {split: ["images", ""] for split in SPLITS}
    return _labelled(files, table[columns], findings, dict.fromkeys(SPLITS, path), in_folders)


def _labelled(
    files: Files, table: pd.DataFrame, findings: list[dict], where: dict[str, str], folders: dict[str, list[str]]
) -> Places:
    """Finish a source whose states are just names: numbered alphabetically; training rows without one are left out."""
    unlabelled = (table["state"] == "") & (table["split"] == "train")
    if unlabelled.any():
        ids = table.loc[unlabelled, "sample_id"]
        findings.append(finding("place without a label", where["train"], ids, "left out of training"))
    table = table[~unlabelled]
    names = sorted(set(table["state"]) - {""})
    states = pd.DataFrame({"state_idx": np.arange(len(names)), "state": names})
    table["state_idx"] = table["state"].map(dict(zip(names, range(len(names)), strict=True)))
    return _checked(files, table, states, findings, where, folders)


def _csv(files: Files, path: str, needed: list[str], findings: list[dict]) -> pd.DataFrame:
    """One CSV as text, with the columns that are needed and at least one row."""
    table, encoding = files.read_csv(path)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        found = f"columns found: {', '.join(table.columns)}; needed: {', '.join(needed)}"
        raise KitError(f"{path} in {files.root} lacks {', '.join(missing)}; {found}")
    if table.empty:
        raise KitError(f"{path} in {files.root} has no rows; at least one is needed")
    if encoding != "utf-8":
        findings.append(finding("not UTF-8", path, [encoding], "read as Latin-1: look at names with accents"))
    return table


def _mapping(table: pd.DataFrame, where: str) -> pd.DataFrame:
    idx = pd.to_numeric(table["state_idx"], errors="coerce")
    bad = ~(idx >= 0) | (idx % 1 != 0) | idx.duplicated() | (table["state"] == "") | table["state"].duplicated()
    if bad.any():
        lines = shorten(table.index[bad] + 2)
        raise KitError(
            f"{where} line {lines}: each state_idx must be a whole number from 0, each state named, both once"
        )
    states = pd.DataFrame({"state_idx": idx.astype(np.int64), "state": table["state"]})
    return states.sort_values("state_idx", ignore_index=True)


def _checked(
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
        _refuse(rows["sample_id"] == "", rows, f"{where[split]}: an empty sample_id")
        _refuse(rows["sample_id"].duplicated(keep=False), rows, f"{where[split]}: a sample_id given twice")
        bad = ~(rows["latitude"].between(-90, 90) & rows["longitude"].between(-180, 180))
        if split == "test":  # hidden in a competition
            bad &= rows[["latitude", "longitude"]].notna().any(axis=1)
        told = f"{where[split]}: latitude must be a number in [-90, 90] and longitude in [-180, 180]"
        _refuse(bad, rows, told, ["latitude", "longitude"])

        named = pd.Series(rows[images].to_numpy().ravel())  # (N * V,)
        twice = (named.duplicated(keep=False) & (named != "")).to_numpy().reshape(len(rows), -1).any(axis=1)
        _refuse(twice, rows, f"{where[split]}: a picture named twice", images)
        found, there, folder = files.resolve(named, folders[split])
        if not there.any():
            looked = f"{' or '.join(f'{f}/' for f in folders[split])} in {files.root}"
            raise KitError(f"none of the {len(named)} pictures of {where[split]} is in {looked}: {shorten(named, 2)}")
        if not there.all():
            row, view = np.divmod(np.flatnonzero(~there), len(images))
            missing = rows["sample_id"].to_numpy()[row] + " " + np.array(images)[view]
            missing = [m.replace("image_", "") for m in missing]
            findings.append(finding("missing picture", folder, missing, "another view of the place stands in"))
        table.loc[rows.index, images] = found.to_numpy().reshape(len(rows), -1)

    numbers = table["sample_id"].str.fullmatch(r"0|[1-9]\d{0,17}").all()  # "007" stays text, so that it can be joined
    table["sample_id"] = table["sample_id"].astype(np.int64 if numbers else str)
    findings += _state_findings(table[table["split"] == "train"], states, where["train"])
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


def finding(check: str, where: str, examples: Iterable, action: str, count: int | None = None) -> dict:
    """One entry of integrity.json: what was found, where, how often, a few examples, what was done about it."""
    examples = list(examples)
    return {
        "check": check,
        "where": where,
        "count": len(examples) if count is None else count,
        "examples": [e if isinstance(e, str) else int(e) for e in examples[:8]],
        "action": action,
    }


def _refuse(bad: ArrayLike, rows: pd.DataFrame, told: str, show: Sequence[str] = ()) -> None:
    """Raise KitError naming the rows where `bad`, with the values of the columns to `show`."""
    first = rows.loc[np.asarray(bad, bool), ["sample_id", *show]].to_numpy()
    if len(first):
        values = [f"{row[0]} ({', '.join(map(str, row[1:]))})" if show else row[0] for row in first]
        raise KitError(f"{told}: sample_id {shorten(values, 5)}")
