"""Readers of all kinds of data sets; each returns a checked table (`data.places.Places`).

    readers.read("us")                                          # a name under data/raw, a folder or a .zip of any kind
    readers.read("mine", train_csv="a.csv", train_images="a")   # a region table whose files have other names
    readers.read_hugging_face("owner/name", "train", "mine")    # streamed once to data/raw/mine

The vocabulary of states always comes from the data.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib.core import paths
from kitlib.core.errors import KitError, shorten, shown
from kitlib.data import huggingface
from kitlib.data.files import Files
from kitlib.data.places import SPLITS, Places, checked, finding, refuse

VIEWS = ("north", "east", "south", "west")
PREDICTED = [f"predicted_state_idx_{rank}" for rank in range(1, 6)] + ["predicted_latitude", "predicted_longitude"]
PICTURE = r"\.(?i:jpe?g|png|webp|avif|jp2|tiff?|bmp|gif|ppm|heic|img)$"  # how the names of pictures end
REGION_COLUMNS = ("state", "region", "country", "Region_ID")  # tried in this order as the label column


def load(data: str | Path, region_column: str | None = None, **tables: str | None) -> Places:
    """Read a data set as by `read`, after fetching it where it is missing.

    "sample" is drawn into data/raw/sample; "hf:OWNER/NAME", "hf:OWNER/NAME@SPLIT" or "hf:OWNER/NAME#ROWS", the first
    rows alone, is streamed once from Hugging Face into a folder of its own below data/raw, and kept there.
    """
    from kitlib.data.sample import competition  # it imports this module for the names of files and views

    if str(data).startswith("hf:"):
        found = re.fullmatch(r"hf:([^@#]+)(?:@([^@#]+))?(?:#([1-9][0-9]{0,8}))?", str(data))
        if not found:
            raise KitError(f"data set: expected hf:OWNER/NAME, perhaps with @SPLIT and #ROWS (a whole number from 1) "
                           f"behind it; got {shown(str(data))}")  # fmt: skip
        source, split, rows = found.groups()
        parts = [Path(source).name.lower(), split if split != "train" else None, rows]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts)))
        return read_hugging_face(source, split or "train", name, region_column, int(rows) if rows else None)
    return read(competition.ensure(str(data)), region_column, **{name: path for name, path in tables.items() if path})


def read(
    data: str | Path,
    region_column: str | None = None,
    *,
    train_csv: str | None = None,
    test_csv: str | None = None,
    train_images: str | None = None,
    test_images: str | None = None,
) -> Places:
    """Read a data set of any kind, given its folder, its .zip or its name under data/raw.

    A folder with train_ground_truth.csv is a competition; one with metadata.csv is described by it; one with CSVs of
    filename, latitude and longitude is a region table. `region_column` names the label column of the latter two; the
    other options name the files of a region table (see `read_region_table`).
    Raises KitError for an unknown kind, and for an option that the kind does not have.
    """
    options = {"train_csv": train_csv, "test_csv": test_csv, "train_images": train_images, "test_images": test_images}
    named = {option: path for option, path in options.items() if path}
    given = named | ({"region_column": region_column} if region_column else {})
    root = paths.find_data(str(data))
    tables = [name for name in map(str.lower, Files(root).names()) if name.endswith(".csv")]
    known = [name for name in ("train_ground_truth.csv", "metadata.csv") if name in tables]
    if known and named:
        raise KitError(f"{', '.join(named)}: expected a region table; {root} has {known[0]}, which names all files")
    if "train_ground_truth.csv" in tables:
        if region_column:
            raise KitError(
                f"region_column: expected none, as a competition has its states in state; got {region_column!r}"
            )
        return read_competition(root)
    if "metadata.csv" in tables:
        return replace(read_metadata(root, region_column), options=given)
    if named or any(name.startswith("labels_") for name in tables):
        return replace(read_region_table(root, region_column=region_column, **named), options=given)
    raise KitError(
        f"{root}: expected train_ground_truth.csv (a competition), metadata.csv, or labels_*.csv (a region table; its "
        f"tables may also be named by train_csv and test_csv); got {shorten(tables)}"
    )


def read_competition(folder_or_zip: str | Path) -> Places:
    """Read and check a competition folder, or its .zip as Kaggle serves it, without unpacking.

    Needs train_ground_truth.csv, sample_submission.csv, state_mapping.csv and the pictures in train_images/ and
    test_images/. Raises KitError, naming file and rows, if they are missing or contradict each other.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    images = [f"image_{view}" for view in VIEWS]
    needed = ["sample_id", *images, "state", "state_idx", "latitude", "longitude"]
    train = _csv(files, "train_ground_truth.csv", needed, findings)[needed]
    test = _csv(files, "sample_submission.csv", ["sample_id", *images, *PREDICTED], findings)
    states = _mapping(_csv(files, "state_mapping.csv", ["state_idx", "state"], findings), "state_mapping.csv")
    train["state"] = _unified(train["state"], "train_ground_truth.csv", findings)
    states["state"] = _unified(states["state"], "state_mapping.csv", findings)

    idx = pd.to_numeric(train["state_idx"], errors="coerce")
    state_of_idx = idx.map(states.set_index("state_idx")["state"])
    where = {"train": "train_ground_truth.csv", "test": "sample_submission.csv"}
    refuse(state_of_idx.isna(), train, f"{where['train']}: state_idx absent from state_mapping.csv", ["state_idx"])
    wrong = state_of_idx != train["state"]
    refuse(wrong, train, f"{where['train']}: state and state_idx disagree with state_mapping.csv", needed[5:7])

    table = pd.concat([train.assign(split="train"), test[["sample_id", *images]].assign(split="test")])
    places = checked(files, table, states, findings, where, {"train": ["train_images"], "test": ["test_images"]})
    numbers = {column: pd.to_numeric(test[column], errors="coerce") for column in PREDICTED}
    template = test.assign(sample_id=places.sample_id("test"), **numbers)
    return replace(places, template=template.reset_index(drop=True))


def read_region_table(
    folder_or_zip: str | Path,
    train_csv: str | None = None,
    test_csv: str | None = None,
    region_column: str | None = None,
    train_images: str | None = None,
    test_images: str | None = None,
) -> Places:
    """Read CSVs of filename, latitude, longitude and Region_ID (a name or a number), one picture per place.

    All paths are relative to the data folder. The default CSVs are labels_train.csv and labels_val.csv or
    labels_test.csv; the rows of the second become the split "test", with known truth. The default folder of the
    pictures of labels_<x>.csv is images_<x>/, or a folder of the same name inside it. The sample_id of a place is its
    file name; both splits may use the same one, if the pictures are in different folders.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    region_column = region_column or "Region_ID"
    names = [name.lower() for name in files.names()]
    usual = next((name for name in ("labels_val.csv", "labels_test.csv") if name in names), None)
    where = {"train": _inside(train_csv, files) or "labels_train.csv"}
    if test_csv or usual:
        where["test"] = _inside(test_csv, files) or str(usual)
    elif test_images:
        raise KitError(f"test_csv: expected the table of test_images {test_images!r}; got none of {shorten(names)}")
    if where["train"] == where.get("test"):
        raise KitError(f"test_csv: expected another table than train_csv; both are {where['train']!r}")
    needed = ["filename", "latitude", "longitude", region_column]
    tables = [_csv(files, path, needed, findings)[needed].assign(split=split) for split, path in where.items()]
    table = pd.concat(tables).rename(columns={"filename": "image_only", region_column: "state"})
    images = {"train": _inside(train_images, files), "test": _inside(test_images, files)}
    folders = {split: _picture_folders(path, images[split]) for split, path in where.items()}
    return _labelled(files, table.assign(sample_id=table["image_only"]), findings, where, folders)


def _inside(path: str | None, files: Files) -> str | None:
    """Normalise a path below the data folder ("" is the folder itself); None for none. Raises KitError for others."""
    if not path:
        return None
    plain = posixpath.normpath(str(path).replace("\\", "/"))
    if plain.startswith(("/", "..")) or ":" in plain:
        raise KitError(f"{path!r} is not inside the data folder: expected a path relative to it")
    return "" if plain == "." else f"{plain}/".removeprefix(files.wrapped)[:-1]


def _picture_folders(table: str, named: str | None) -> list[str]:
    """The folders that may hold the pictures of a region table."""
    if named is not None:
        return [named, posixpath.join(named, posixpath.basename(named))]
    word = Path(table).stem.rpartition("_")[2]
    return [f"images_{word}/images_{word}", f"images_{word}", word, "images", ""]


def read_metadata(folder_or_zip: str | Path, region_column: str | None = None) -> Places:
    """Read a folder with metadata.csv: latitude, longitude, pictures and at least one column of labels.

    Columns image_<view> name the pictures, or file_name, filename or image if there is one per place; the files are in
    images/ or beside the table. An image_<view> column whose cells name no picture, such as image_id, is left alone.
    Labels are in `region_column`, by default the one of state, region, country and Region_ID with values in most rows,
    the first of equals; rows for training without a label are left out. Without sample_id, rows are numbered from 0.
    The column `split` may hold train, test, val or validation (the last three become "test"); without it all places
    are for training.
    """
    files = Files(Path(folder_or_zip))
    findings: list[dict] = []
    path = "metadata.csv"
    table = _csv(files, path, ["latitude", "longitude"], findings)
    columns = list(table.columns)
    images = [f"image_{view}" for view in VIEWS if f"image_{view}" in columns]
    images += [column for column in columns if column.startswith("image_") and column not in images]
    images = [column for column in images if _names_pictures(files, table[column])]
    if not images:
        single = [column for column in ("file_name", "filename", "image") if column in table]
        if not single:
            pictures = "image_<view> columns that name pictures, or one of file_name, filename, image"
            raise KitError(f"{path} in {files.root}: expected {pictures}; got {', '.join(columns)}")
        table, images = table.rename(columns={single[0]: "image_only"}), ["image_only"]
    labels = [column for column in table if column not in {"sample_id", "split", "latitude", "longitude", *images}]
    filled = {column: int((table[column] != "").sum()) for column in REGION_COLUMNS if column in labels}
    if not region_column and any(filled.values()):
        region_column = max(filled, key=lambda column: filled[column])
    if region_column not in labels:
        got = repr(region_column) if region_column else f"none of {', '.join(REGION_COLUMNS)} with a value"
        raise KitError(f"region_column: expected one of {shorten(labels)} in {path} of {files.root}; got {got}")
    table["state"] = table[region_column]
    if "sample_id" not in table:
        table["sample_id"] = [str(row) for row in range(len(table))]
    split = table["split"].str.lower() if "split" in table else pd.Series("train", index=table.index)
    table["split"] = split.replace({"val": "test", "validation": "test"})
    message = f"{path}: split: expected train, test, val or validation; got"
    refuse(~table["split"].isin(SPLITS), table, message, ["split"])
    columns = ["split", "sample_id", *images, "latitude", "longitude", "state"]
    in_folders = {split: ["images", ""] for split in SPLITS}
    return _labelled(files, table[columns], findings, dict.fromkeys(SPLITS, path), in_folders)


def read_hugging_face(
    source: Any, split: str = "train", name: str = "", region_column: str | None = None, limit: int | None = None
) -> Places:
    """Stream a Hugging Face dataset once to data/raw/<name> by `huggingface.fetch`, and read it by `read_metadata`."""
    folder, without_point = huggingface.fetch(source, split, name, limit)
    places = read_metadata(folder, region_column)
    if without_point:
        rows = map(str, without_point)
        places.integrity.append(finding("row without coordinates", "metadata.csv", rows, "left out"))
    return places


def _labelled(
    files: Files, table: pd.DataFrame, findings: list[dict], where: dict[str, str], folders: dict[str, list[str]]
) -> Places:
    """Number the states, all names or all numbers, in their order, and check the table.

    Training rows without a state are left out.
    """
    unlabelled = (table["state"] == "") & (table["split"] == "train")
    if unlabelled.any():
        ids = table.loc[unlabelled, "sample_id"]
        findings.append(finding("place without a label", where["train"], ids, "left out of training"))
    table = table[~unlabelled].copy()
    if not (table["split"] == "train").any():
        raise KitError(f"no row of {where['train']} is for training{' with a label' if unlabelled.any() else ''}")
    table["state"] = _unified(table["state"], where["train"], findings)
    whole = table["state"].str.fullmatch(r"-?\d{1,18}(\.0*)?") | (table["state"] == "")
    if whole.all():
        table["state"] = table["state"].str.partition(".")[0]  # pandas writes a column with gaps as 1.0, else as 1
    names = sorted(set(table["state"]) - {""}, key=lambda name: (int(name) if whole.all() else 0, name))
    states = pd.DataFrame({"state_idx": np.arange(len(names)), "state": names})
    table["state_idx"] = table["state"].map(dict(zip(names, range(len(names)), strict=True)))
    return checked(files, table, states, findings, where, folders)


def _csv(files: Files, path: str, needed: list[str], findings: list[dict]) -> pd.DataFrame:
    """Read a CSV as text; record that it was read as Latin-1."""
    table, dialect = files.read_csv(path, needed)
    if dialect.startswith("latin-1"):
        findings.append(finding("not UTF-8", path, ["latin-1"], "read as Latin-1: check names with accents"))
    return table


def _names_pictures(files: Files, cells: pd.Series) -> bool:
    """Whether a column that begins with image_ names picture files, by their suffixes or because they exist."""
    cells = cells[(cells != "") & ~cells.str.contains("://")]
    return bool(cells.str.contains(PICTURE).any()) or bool(files.resolve(cells, ["images", ""])[1].any())


def _unified(labels: pd.Series, where: str, findings: list[dict]) -> pd.Series:
    """Bring labels to one form of Unicode and of blanks, with a finding.

    Raises KitError if two of them still differ by case alone.
    """
    names = {label: " ".join(unicodedata.normalize("NFC", label).split()) for label in labels.unique()}
    if changed := [label for label, name in names.items() if label != name]:
        findings.append(finding("label in another spelling", where, changed, "blanks and Unicode form made the same"))
    by_case: dict[str, set[str]] = {}
    for name in names.values():
        by_case.setdefault(name.casefold(), set()).add(name)
    if alike := [sorted(same) for same in by_case.values() if len(same) > 1]:
        pairs = shorten((" and ".join(map(repr, same)) for same in alike), 3)
        raise KitError(f"{where}: expected labels that differ by more than case; got {pairs}")
    return labels.map(names)


def _mapping(table: pd.DataFrame, where: str) -> pd.DataFrame:
    idx = pd.to_numeric(table["state_idx"], errors="coerce")
    bad = (
        ~idx.between(0, 2**31 - 1)
        | (idx % 1 != 0)
        | idx.duplicated()
        | (table["state"] == "")
        | table["state"].duplicated()
    )
    if bad.any():
        lines = shorten(table.index[bad] + 2)
        raise KitError(f"{where} line {lines}: expected a unique whole state_idx from 0 and a unique state name")
    states = pd.DataFrame({"state_idx": idx.astype(np.int64), "state": table["state"]})
    return states.sort_values("state_idx", ignore_index=True)
