"""Read Hugging Face datasets: find their columns, and stream one into a folder of pictures with a metadata.csv.

Pictures are written undecoded. rows.jsonl records each row that has arrived, so that an interrupted stream resumes
there; metadata.csv is written after the last row. Of the files that rows name, only those of the data set are opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError, shorten

if TYPE_CHECKING:
    import datasets

SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
COORDINATES = {"latitude": ("latitude", "lat"), "longitude": ("longitude", "lon", "lng")}


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset: the view of each image column, the two coordinates, the names of class labels."""

    views: dict[str, str]
    latitude: str
    longitude: str
    class_names: dict[str, list[str]]


def open_stream(source: str | Path, split: str) -> datasets.IterableDataset:
    """Open a Hugging Face dataset, or a local folder of its files, for streaming. Raises KitError if it cannot be."""
    import datasets

    try:
        return datasets.load_dataset(str(source), split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise KitError(
            f"dataset {Path(source).name} ({split}) cannot be streamed: {reason}; "
            "expected a Hugging Face dataset or a folder of its files"
        ) from error


def find_columns(features: Mapping[str, Any] | None, name: str) -> Columns:
    """Find the columns in a dataset's features. Raises KitError naming the dataset when one is missing."""
    import datasets

    features = features or {}
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    points = [next((c for c in names if c in features), None) for names in COORDINATES.values()]
    if not images or points[0] is None or points[1] is None:
        raise KitError(
            f"dataset {name}: expected an Image column, latitude or lat, and longitude or lon; "
            f"got {shorten(features, 20)}"
        )
    views = {column: column.removeprefix("image_") for column in images} if len(images) > 1 else {images[0]: "only"}
    classes = {c: feature.names for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return Columns(views, points[0], points[1], classes)


def fetch(source: Any, split: str = "train", name: str = "", limit: int | None = None) -> tuple[Path, list[int]]:
    """Write a dataset to data/raw/<name>; return that folder and the numbers of the rows without coordinates.

    `source` is a repository ("owner/name"), a local folder that `datasets` can load, or a loaded Dataset or
    IterableDataset, which needs a `name`. Its Image columns become the views; the coordinates are the columns latitude
    and longitude, or lat and lon; other plain columns are kept as possible labels. `limit` stops after that many rows;
    a later call with a larger limit continues there, and a complete folder is not streamed again.
    """
    named = isinstance(source, str | Path)
    name = name or (Path(source).name.lower() if named else "")
    if not name:
        raise KitError("name: expected the folder below data/raw, as a loaded dataset has no name; got none")
    paths.file_name(name, "name of the folder below data/raw")
    folder = paths.raw_dir() / name
    note, journal, table = folder / "source.json", folder / "rows.jsonl", folder / "metadata.csv"
    origin = {"source": paths.portable("source", str(source)) if named else name, "split": split}
    if named and Path(source).is_dir():  # which its name alone does not tell from another
        origin["folder"] = storage.digest(str(Path(source).resolve()))
    fresh = {**origin, "complete": False}
    known = storage.read_json(note, needed=("source", "split", "complete")) if note.exists() else fresh
    if {key: known.get(key) for key in origin} != origin:
        raise KitError(
            f"{paths.relative(folder)} holds {known['source']} ({known['split']}), not {origin['source']} ({split}): "
            "choose another name"
        )
    rows = _read_journal(journal)
    if not known["complete"] and (limit is None or len(rows) < limit or not table.exists()):
        stream = _rows(source, split, folder, len(rows), limit)
        storage.write_json(note, known)
        for row in stream:
            rows.append(row)
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not any(rows):
            raise KitError(f"{origin['source']} ({split}) has no row with latitude and longitude among {len(rows)}")
        with storage.atomic_write(table) as path:
            lines = pd.DataFrame([row for row in rows if row]).map(_one_line)
            lines.to_csv(path, index=False)
        storage.write_json(note, {**known, "complete": limit is None or len(rows) < limit})
    return folder, [number for number, row in enumerate(rows) if not row]


def _read_journal(journal: Path) -> list[dict]:
    """Read the rows that have arrived, {} for one without coordinates; cut off an unfinished last line."""
    if not journal.exists():
        return []
    whole = journal.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with journal.open("r+b") as file:
        file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise Damaged(f"{journal.name} in {journal.parent.name}: expected a line of JSON a row; delete it") from error


def _one_line(cell: Any) -> Any:
    """A text without line breaks and NULs, which a table refuses."""
    return " ".join(cell.replace("\0", "").split()) if isinstance(cell, str) else cell


def _rows(source: Any, split: str, folder: Path, start: int, limit: int | None) -> Iterator[dict]:
    """Check the columns at once; then write pictures and yield the rows of metadata.csv from row `start` on."""
    import datasets

    loaded = isinstance(source, datasets.Dataset | datasets.IterableDataset)
    data = source if loaded else open_stream(source, split)
    columns = find_columns(data.features, f"{folder.name} ({split})")
    # metadata.csv would take a plain column with such a name for one of pictures
    kinds = (datasets.Value, datasets.ClassLabel)
    taken = {"latitude", "longitude", columns.latitude, columns.longitude}
    labels = [c for c, f in data.features.items() if isinstance(f, kinds) and not c.startswith(("image", "file"))]
    labels = [column for column in labels if column not in taken]
    for column in columns.views:
        data = data.cast_column(column, datasets.Image(decode=False))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    stop = None if limit is None else max(0, limit - start)
    origin = None if loaded else str(source)
    return _write_rows(islice(data.skip(start), stop), columns, labels, folder / "images", start, stop, origin)


def _write_rows(
    data: Iterator[dict],
    columns: Columns,
    labels: list[str],
    folder: Path,
    start: int,
    total: int | None,
    source: str | None,
) -> Iterator[dict]:
    for number, row in enumerate(tqdm(data, "streaming", total, unit=" places"), start):
        point = {"latitude": row[columns.latitude], "longitude": row[columns.longitude]}
        if None in point.values():
            yield {}
            continue
        entry: dict[str, Any] = {"sample_id": number}
        for column, view in columns.views.items():
            picture = content(row[column], source, f"row {number}")
            suffix = next((suffix for magic, suffix in SUFFIXES.items() if picture.startswith(magic)), ".img")
            file = f"{number:07d}_{re.sub(r'[^A-Za-z0-9_-]', '-', view)}{suffix}"
            entry[f"image_{view}"] = file if picture else ""
            if picture:
                (folder / file).write_bytes(picture)
        entry |= point
        for column in labels:
            names = columns.class_names.get(column)
            entry[column] = row[column] if names is None else class_name(row[column], names)
        yield entry


def class_name(number: int | None, names: list[str]) -> str:
    """The name of a class label, "" for a missing one."""
    return names[number] if number is not None and number >= 0 else ""


def content(picture: dict | None, source: str | None, where: str = "a row") -> bytes:
    """The bytes of an undecoded picture, from its row or from the file that the row names.

    Raises KitError, beginning with `where`, for a file outside the data set `source`, a repository or a local folder;
    None trusts the rows, as those of a dataset that the caller loaded.
    """
    import fsspec

    if picture is None:
        return b""
    if picture["bytes"] is None and picture["path"]:
        if source is not None and not _is_inside(picture["path"], source):
            raise KitError(f"{where}: expected a picture of the data set {Path(source).name}; got {picture['path']!r}")
        with fsspec.open(picture["path"]) as file:
            return file.read()
    return picture["bytes"] or b""


def _is_inside(path: str, source: str) -> bool:
    """Whether a file, perhaps one in an archive (zip://in/it::archive), belongs to a repository or a local folder."""
    *within, file = path.split("::")
    if not all(part.startswith(("zip://", "tar://", "gzip://")) for part in within):
        return False  # another part, such as file://, would lead elsewhere
    if Path(source).exists():
        folder = Path(source).resolve()
        return "://" not in file and Path(file).is_file() and Path(file).resolve().is_relative_to(folder)
    return file.startswith((f"hf://datasets/{source}@", f"hf://datasets/{source}/")) and ".." not in file.split("/")
