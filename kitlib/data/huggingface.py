"""A Hugging Face dataset, streamed once into a folder of pictures with a metadata.csv.

Nothing is decoded: pictures are written as the bytes they are. rows.jsonl keeps what has arrived, row by row, so that
a killed stream goes on where it was; metadata.csv appears when the last row is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shorten

SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}


def fetch(source: Any, split: str = "train", name: str = "", limit: int | None = None) -> tuple[Path, list[int]]:
    """Write a dataset to data/raw/<name>; returns that folder and the rows left out for want of coordinates.

    `source` is a repository ("owner/name"), a local folder that `datasets` can load, or a loaded Dataset or
    IterableDataset, for which `name` is needed. Its Image columns become the views; latitude and longitude must be
    among its columns (rename_columns helps); other plain columns are kept as possible labels. `limit` stops after that
    many rows, and a larger one later goes on from there; a complete folder is not streamed again.
    """
    named = isinstance(source, str | Path)
    name = name or (Path(source).name.lower() if named else "")
    if not name:
        raise KitError("a loaded dataset has no name of its own: say name=, its folder below data/raw")
    folder = paths.raw_dir() / name
    note, journal, table = folder / "source.json", folder / "rows.jsonl", folder / "metadata.csv"
    origin = {"source": str(source) if named else name, "split": split}
    known = json.loads(note.read_text()) if note.exists() else {**origin, "complete": False}
    if {key: known[key] for key in origin} != origin:
        told = f"{known['source']} ({known['split']}), not {origin['source']} ({split})"
        raise KitError(f"{paths.relative(folder)} holds {told}: choose another name")
    rows = _arrived(journal)
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
            pd.DataFrame([row for row in rows if row]).to_csv(path, index=False)
        storage.write_json(note, {**known, "complete": limit is None or len(rows) < limit})
    return folder, [number for number, row in enumerate(rows) if not row]


def _arrived(journal: Path) -> list[dict]:
    """The rows that are there, {} for one left out; what a killed stream wrote of its last one is cut off."""
    if not journal.exists():
        return []
    whole = journal.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with journal.open("r+b") as file:
        file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _rows(source: Any, split: str, folder: Path, start: int, limit: int | None) -> Iterator[dict]:
    """Check the columns now; then write pictures and yield the rows of metadata.csv one by one, from row `start` on."""
    import datasets

    loaded = isinstance(source, datasets.Dataset | datasets.IterableDataset)
    data = source if loaded else datasets.load_dataset(str(source), split=split, streaming=True)
    features = data.features or {}
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images or not {"latitude", "longitude"} <= set(features):
        told = f"columns found: {shorten(features, 20)}; needed: latitude, longitude and an Image column at least"
        raise KitError(f"dataset {folder.name} ({split}): {told}")
    views = {column: column.removeprefix("image_") for column in images} if len(images) > 1 else {images[0]: "only"}
    # A plain column named like one of pictures would be taken for one in metadata.csv.
    plain = {  # with the names of its classes
        column: feature.names if isinstance(feature, datasets.ClassLabel) else None
        for column, feature in features.items()
        if isinstance(feature, datasets.Value | datasets.ClassLabel) and not column.startswith(("image", "file"))
    }
    for column in images:
        data = data.cast_column(column, datasets.Image(decode=False))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    stop = None if limit is None else max(0, limit - start)
    return _written(islice(data.skip(start), stop), views, plain, folder / "images", start, stop)


def _written(
    data: Iterator[dict], views: dict[str, str], plain: dict[str, Any], folder: Path, start: int, total: int | None
) -> Iterator[dict]:
    for number, row in enumerate(tqdm(data, "streaming", total, unit=" places"), start):
        if row["latitude"] is None or row["longitude"] is None:
            yield {}
            continue
        entry: dict[str, Any] = {"sample_id": number}
        for column, view in views.items():
            read = content(row[column])
            suffix = next((suffix for magic, suffix in SUFFIXES.items() if read.startswith(magic)), ".img")
            entry[f"image_{view}"] = f"{number:07d}_{view}{suffix}" if read else ""
            if read:
                (folder / entry[f"image_{view}"]).write_bytes(read)
        for column, names in plain.items():
            value = row[column]
            entry[column] = value if names is None else names[value] if value is not None and value >= 0 else ""
        yield entry


def content(picture: dict | None) -> bytes:
    """The bytes of a picture that `datasets` did not decode: in its row, or in the file it names."""
    import fsspec

    if picture is None:
        return b""
    if picture["bytes"] is None and picture["path"]:
        with fsspec.open(picture["path"]) as file:
            return file.read()
    return picture["bytes"] or b""
