"""Photographs to be located: pictures that belong to no data set, grouped into places.

    photos = read("holiday", states, views=("north", "east", "south", "west"))

The result is a `Places` whose places are all in the split "test": their true points and states are known only where a
metadata.csv holds them.
"""

from __future__ import annotations

import io
import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shorten
from kitlib.data.files import Files
from kitlib.data.places import Places, finding
from kitlib.data.readers import PREDICTED, REGION_COLUMNS, VIEWS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
HEADINGS = {
    "n": "north",
    "e": "east",
    "s": "south",
    "w": "west",
    "0": "north",
    "90": "east",
    "180": "south",
    "270": "west",
}
SINGLE = ("file_name", "filename", "image")
POINT = {"lat": "latitude", "lon": "longitude", "lng": "longitude"}


def read(photos: str | Path, states: pd.DataFrame, views: Sequence[str]) -> Places:
    """Read a picture, a folder or a .zip of pictures as places of a model's `views`, with its `states`.

    A folder with metadata.csv has a row a place: image_<view> columns, or one of file_name, filename, image; points and
    labels may be there or not. One with sample_submission.csv has the competition's places. Otherwise pictures whose
    names differ only in a heading at their end (a_north.jpg, a_e.jpg, a-180.jpg) are one place, others a place each. A
    place has no picture of its other views. Raises KitError without pictures, and for labels of other states.
    """
    path = Path(photos).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        root, names = path.parent.resolve(), [path.name]
        return _places(root, _by_heading(names, views), states, views)
    root = paths.find_data(path)
    files = Files(root)
    names = files.names()
    if "sample_submission.csv" in names:
        return _competition(files, states, views)
    if "metadata.csv" in names:
        return _metadata(files, states, views)
    pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
    folder = ""
    if not pictures:
        folder, pictures = "images", [n for n in files.names("images") if n.lower().endswith(SUFFIXES)]
    if not pictures:
        kinds = ", ".join(SUFFIXES)
        raise KitError(
            f"{root}: expected pictures ({kinds}), metadata.csv or sample_submission.csv; got {shorten(names)}"
        )
    return _places(root, _by_heading(pictures, views, folder), states, views)


def examples(places: Places, n: int = 6) -> Path:
    """A folder of photographs to try things on: the pictures of the first `n` test places, or else training places."""
    split = "test" if len(places.rows("test")) else "train"
    rows, files = places.rows(split).head(n), Files(places.folder)
    folder = places.derived / "examples"
    for row in rows.to_dict("records"):
        for view in places.views:
            if name := row[f"image_{view}"]:
                ending = f"_{view}" if view in VIEWS else ""
                with storage.atomic_write(folder / f"{row['sample_id']}{ending}{Path(name).suffix}") as beside:
                    beside.write_bytes(files.read(name))
    return folder


def exif_points(photos: Places) -> tuple[np.ndarray, int]:
    """The points (N, 2) that the EXIF of each place's pictures holds, the first one found, NaN where there is none.

    The number says how many pictures have a GPS entry that cannot be read, or is no point of the globe.
    """
    files, names = Files(photos.folder), photos.rows("test")[photos.image_columns].to_numpy(str)
    points, broken = np.full((len(names), 2), np.nan), 0
    for row, name in ((row, name) for row, place in enumerate(names) for name in place if name):
        if np.isnan(points[row, 0]):
            try:
                points[row] = _exif_point(files.read(name)) or (np.nan, np.nan)
            except Exception:  # broken bytes may raise anything
                broken += 1
    return points, broken


def _exif_point(picture: bytes) -> tuple[float, float] | None:
    """The latitude and longitude in a picture's EXIF. Raises any error for a GPS entry that is no point."""
    try:
        image = Image.open(io.BytesIO(picture))
    except Exception:  # no picture: `pictures.pack` reports it
        return None
    gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    keys = ExifTags.GPS
    if not gps.keys() & {keys.GPSLatitude, keys.GPSLongitude}:
        return None
    point = []
    for value, side, ends, limit in ((keys.GPSLatitude, keys.GPSLatitudeRef, "NS", 90),
                                     (keys.GPSLongitude, keys.GPSLongitudeRef, "EW", 180)):  # fmt: skip
        degrees = sum(float(part) / 60**power for power, part in enumerate(gps[value]))
        point.append((1 - 2 * ends.index(str(gps[side])[0].upper())) * degrees)
        if not math.isfinite(degrees) or not 0 <= degrees <= limit:
            raise ValueError(degrees)
    if point == [0, 0]:  # where cameras without a fix are
        raise ValueError(point)
    return point[0], point[1]


def _by_heading(names: Sequence[str], views: Sequence[str], folder: str = "") -> pd.DataFrame:
    """A table of sample_id and image_<view> of pictures, those of one place together."""
    rows: dict[str, dict[str, str]] = {}
    several = set(VIEWS) <= set(views)
    headed: dict[str, dict[str, str]] = {}
    for name in names:
        stem = posixpath.splitext(name)[0]
        match = re.fullmatch(r"(.+?)[ _.-]?(north|east|south|west|(?<=[ _.-])(?:[nesw]|0+|0?90|180|270))", stem, re.I)
        if several and match:
            view = match[2].lower()
            view = HEADINGS.get(view.lstrip("0") or "0", view)
            place = headed.setdefault(match[1], {})
            if view in place:  # two pictures of one heading are no views of one place
                rows[stem] = {f"image_{views[0]}": name}
            else:
                place[view] = name
        else:
            rows[stem] = {f"image_{views[0]}": name}
    for prefix, place in headed.items():
        if len(place) > 1:
            rows[prefix] = {f"image_{view}": name for view, name in place.items()}
        else:  # an ending that happens to be a heading
            [name] = place.values()
            rows[posixpath.splitext(name)[0]] = {f"image_{views[0]}": name}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=[f"image_{view}" for view in views])
    table = table.fillna("").sort_index().rename_axis("sample_id").reset_index()
    images = table.columns[1:]
    table[images] = table[images].map(lambda name: posixpath.join(folder, name) if name else "")
    return table


def _competition(files: Files, states: pd.DataFrame, views: Sequence[str]) -> Places:
    """The test places of a competition folder, with its template."""
    images = [f"image_{view}" for view in views]
    template, _ = files.read_csv("sample_submission.csv", ["sample_id", *images, *PREDICTED])
    if "state_mapping.csv" in files.names():
        _same_states(files.read_csv("state_mapping.csv", ["state_idx", "state"])[0], states)
    table = template[["sample_id", *images]].copy()
    places = _places(files.root, table, states, views, files, ["test_images", ""])
    numbers = {column: pd.to_numeric(template[column], errors="coerce") for column in PREDICTED}
    return replace(places, template=template.assign(sample_id=places.sample_id("test"), **numbers))


def _same_states(mapping: pd.DataFrame, states: pd.DataFrame) -> None:
    """Raise KitError unless a mapping gives the states the numbers that the model learned."""
    own = dict(zip(states["state"], states["state_idx"], strict=True))
    numbers = pd.to_numeric(mapping["state_idx"], errors="coerce")
    other = [name for name, idx in zip(mapping["state"], numbers, strict=True) if name in own and own[name] != idx]
    absent = [name for name in own if name not in set(mapping["state"])]
    if other or absent:
        what = f"another state_idx for {shorten(other, 3)}" if other else f"no {shorten(absent, 3)}"
        raise KitError(f"state_mapping.csv: expected the states that the run learned; got {what}")


def _metadata(files: Files, states: pd.DataFrame, views: Sequence[str]) -> Places:
    """The rows of a metadata.csv; points and labels are taken where they are."""
    table, _ = files.read_csv("metadata.csv")
    table = table.rename(columns=lambda name: POINT.get(str(name).lower(), name))
    images = [f"image_{view}" for view in views if f"image_{view}" in table]
    single = [column for column in SINGLE if column in table]
    if not images and not single:
        columns = f"{', '.join(f'image_{view}' for view in views)} or one of {', '.join(SINGLE)}"
        raise KitError(f"metadata.csv: expected {columns}; got {shorten(table)}")
    result = pd.DataFrame({f"image_{view}": table.get(f"image_{view}", "") for view in views}, index=table.index)
    if not images:
        result[f"image_{views[0]}"] = table[single[0]]
    result.insert(0, "sample_id", table["sample_id"] if "sample_id" in table else result.iloc[:, 0])
    for column in ("latitude", "longitude"):
        result[column] = pd.to_numeric(table[column], errors="coerce") if column in table else np.nan
    findings: list[dict] = []
    label = next((column for column in REGION_COLUMNS if column in table), None)
    if label:
        unknown = sorted(set(table[label]) - set(states["state"]) - {""})
        if len(unknown) == table.loc[table[label] != "", label].nunique() and unknown:
            raise KitError(
                f"metadata.csv: {label}: expected labels that the run learned, such as {shorten(states['state'], 3)}; "
                f"got {shorten(unknown, 3)}"
            )
        result["state"] = table[label]
        if unknown:
            rows = result.loc[table[label].isin(unknown), "sample_id"].astype(str)
            findings.append(finding("label that the run has not learned", "metadata.csv", rows, "taken as unknown"))
    return _places(files.root, result, states, views, files, ["images", ""], findings)


def _places(
    root: Path,
    table: pd.DataFrame,
    states: pd.DataFrame,
    views: Sequence[str],
    files: Files | None = None,
    folders: Sequence[str] = ("",),
    findings: Sequence[dict] = (),
) -> Places:
    """The checked table of places in the split "test"."""
    images, findings = [f"image_{view}" for view in views], list(findings)
    if table["sample_id"].duplicated().any() or (table["sample_id"] == "").any():
        twice = table.loc[table["sample_id"].duplicated() | (table["sample_id"] == ""), "sample_id"]
        raise KitError(f"photographs: expected different ids that are not empty; got {shorten(twice, 3)!r} twice")
    if files is not None:
        named = pd.Series(table[images].to_numpy().ravel())
        found, exists = files.resolve(named, folders)
        if not exists.any():
            raise KitError(f"photographs: none of the pictures of the table is in {files.root}")
        lost = named[(named != "") & ~exists]
        if len(lost):
            findings.append(finding("picture that is not there", "photographs", lost, "taken as not given"))
        table[images] = np.where(exists, found, "").reshape(len(table), -1)
    missing = table.loc[(table[images] == "").any(axis=1), "sample_id"]
    if len(missing):
        given = int((table[images] != "").to_numpy().sum())
        what = f"{table[images].size - given:,} of {table[images].size:,} views are not there"
        findings.append(finding(what, "photographs", missing.astype(str), "the others are used"))
    numbers = table["sample_id"].astype(str).str.fullmatch(r"0|[1-9]\d{0,17}").all()
    state = table["state"] if "state" in table else pd.Series("", index=table.index)
    idx = state.map(dict(zip(states["state"], states["state_idx"], strict=True)))
    points = {name: table.get(name, np.nan) for name in ("latitude", "longitude")}
    places = table[["sample_id", *images]].assign(
        sample_id=table["sample_id"].astype(np.int64 if numbers else str),
        split="test",
        state=state.where(idx.notna(), ""),
        state_idx=idx.fillna(-1).astype(np.int64),
        **points,
    )
    columns = ["split", "sample_id", *images, "state", "state_idx", "latitude", "longitude"]
    name = f"photos-{paths.data_name(root)}"
    return Places(name, root, places[columns].reset_index(drop=True), states, None, findings)
