"""Training and evaluation data of a vision-language model: pictures of places as PIL images, and the truth.

    cases = places_cases(places, pack, rows, max_side=448)      # the competition, or any folder that `data` reads
    table = table_of(cases)                                     # for a trainer; pictures are decoded on access
    stream = streamed("owner/name", split="train", max_side=448, buffer=1000, seed=0)

A row has sample_id, images (one a view, the longest side capped) and truth, a `Reply`. A streamed data set is read
shard by shard and shuffled in a buffer; it is never downloaded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import simplejpeg
from PIL import Image

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data import geography, huggingface, picture_checks
from kitlib.data.files import Files
from kitlib.data.pictures import GREY, Pack
from kitlib.data.places import Places
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.models.vlm.conversation.recorder import Row
from kitlib.models.vlm.conversation.replies import RANKS, Reply
from kitlib.models.vlm.conversation.tasks import Task

if TYPE_CHECKING:
    import datasets

NAME_COLUMNS = {"city": ("city",), "region": ("region", "state", "province"), "country": ("country",)}


@dataclass(frozen=True)
class Cases:
    """N places: sample_id (N,), truths (N,), and `show(i)`, the pictures of place i."""

    sample_id: list[str]
    truths: list[Reply]
    views: tuple[str, ...]
    show: Callable[[int], list[Image.Image]]

    def __len__(self) -> int:
        return len(self.sample_id)

    def slice(self, start: int, stop: int) -> Cases:
        """The places from `start` up to `stop`."""
        ids, truths = self.sample_id[start:stop], self.truths[start:stop]
        return Cases(ids, truths, self.views, lambda i: self.show(start + i))

    def row(self, i: int) -> Row:
        """Place i as a trainer's row."""
        return {"sample_id": self.sample_id[i], "images": self.show(i), "truth": self.truths[i]}


def places_cases(
    places: Places, pack: Pack, rows: np.ndarray, max_side: int, label: str = "region", ranked: bool = False
) -> Cases:
    """The places in `rows` (N,) of the split of `pack`.

    max_side: limit in pixels of a picture's longest side, 0 for none. label: the field of the data's states, region or
    country. ranked: whether truths rank the states, too.
    """
    truths = truths_of(places, pack.split, label)
    if ranked:
        near = nearest_states(places)
        truths = [replace(truth, states=near.get(getattr(truth, label) or "")) for truth in truths]

    def show(i: int) -> list[Image.Image]:
        return pictures_of(pack, int(rows[i]), max_side)

    ids = [str(name) for name in pack.sample_id[rows]]
    return Cases(ids, [truths[row] for row in rows], places.views, show)


def truths_of(places: Places, split: str, label: str = "region") -> list[Reply]:
    """The truth about each place of a split, in the order of its rows: the point, and the state as `label`.

    A metadata.csv may add cities, regions and countries.
    """
    table = places.rows(split)
    named = _described(places, table["sample_id"]) | {label: table["state"]}
    names = pd.DataFrame({name: column.to_numpy() for name, column in named.items()}).astype(str)
    points = places.points(split)
    known = ~np.isnan(points).any(axis=1)
    return [
        Reply(tuple(point.tolist()) if is_known else None, **{str(k): v or None for k, v in row.items()})
        for point, is_known, row in zip(points, known, names.to_dict("records"), strict=True)
    ]


def nearest_states(places: Places) -> dict[str, tuple[str, ...]]:
    """Each state with training places, followed by the four nearest others by the distances of their centroids."""
    if not len(places.rows("train")):
        return {}
    table = geography.states_table(places)
    names = table["state"].to_numpy()
    order = geo.distance_matrix_km(table[["latitude", "longitude"]].to_numpy()).argsort(axis=1, kind="stable")
    return {name: tuple(names[row[:RANKS]].tolist()) for name, row in zip(names, order, strict=True)}


def _described(places: Places, sample_id: pd.Series) -> dict[str, pd.Series]:
    """The columns of a metadata.csv that name cities, regions and countries, in the order of `sample_id`."""
    files = Files(places.folder)
    if places.queries is not None or "metadata.csv" not in files.names():
        return {}
    table, _ = files.read_csv("metadata.csv")
    key = table["sample_id"] if "sample_id" in table else pd.Series(np.arange(len(table)))
    table = table.fillna("").set_index(key.astype(str))
    named = {name: next((c for c in columns if c in table), None) for name, columns in NAME_COLUMNS.items()}
    table = table.reindex(sample_id.astype(str).to_numpy())
    return {name: table[column] for name, column in named.items() if column}


def pictures_of(pack: Pack, row: int, max_side: int) -> list[Image.Image]:
    """A place's pictures in the order of its views; unusable ones are grey, as in `Pack.decode`."""
    shown = []
    for view in pack.shown[row]:
        if view < 0:
            shown.append(Image.new("RGB", (64, 64), (GREY,) * 3))
        else:
            shown.append(capped(Image.fromarray(simplejpeg.decode_jpeg(pack.read(row, view), "RGB")), max_side))
    return shown


def capped(image: Image.Image, max_side: int) -> Image.Image:
    """An RGB picture whose longest side has at most `max_side` pixels; 0 is no limit.

    >>> capped(Image.new("L", (200, 100)), 50).size
    (50, 25)
    """
    image = image.convert("RGB")
    if max_side and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


def check_one_size(pack: Pack, max_side: int) -> None:
    """Raise KitError for a split whose pictures have several sizes when they are shown; max_side: as above."""
    sizes = {capped(Image.new("L", (width, height)), max_side).size for height, width in pack.sizes}
    if len(sizes) > 1:
        some = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        raise KitError(
            f"vllm: expected {pack.split} pictures of one size, as TRL and vLLM each count the tokens of a picture; "
            f"got {len(sizes)} sizes, {some}, …"
        )


def table_of(cases: Cases, extend: Callable[[Row], Row] = dict) -> datasets.Dataset:
    """Cases as a table for a trainer, each row passed through `extend` on access."""
    import datasets

    def load(batch: Mapping[str, Sequence[int]]) -> dict[str, list]:
        rows = [extend(cases.row(i)) for i in batch["case"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    return datasets.Dataset.from_dict({"case": list(range(len(cases)))}).with_transform(load)


def streamed(
    source: str,
    split: str = "train",
    *,
    max_side: int,
    buffer: int = 1000,
    seed: int = 0,
    extend: Callable[[Row], Row] = dict,
) -> datasets.IterableDataset:
    """An endless stream of rows of a Hugging Face data set or local folder, shuffled in a buffer.

    The data set needs an image column and latitude and longitude, or lat and lon; city, region (or state) and country
    are optional. Several image columns are several views. Rows without coordinates or pictures are skipped. Raises
    KitError, before anything is streamed, for a source that cannot be loaded and for missing columns.
    """
    import datasets

    data = huggingface.open_stream(source, split)
    columns = huggingface.find_columns(data.features, f"{Path(source).name} ({split})")
    names = {name: next((c for c in known if c in data.features), None) for name, known in NAME_COLUMNS.items()}
    for column in columns.views:  # decoded below, so that a broken picture only skips its row
        data = data.cast_column(column, datasets.Image(decode=False))

    def rows() -> Iterator[Row]:
        for epoch in range(10**6):
            usable = 0
            for number, row in enumerate(data.shuffle(seed=seed + epoch, buffer_size=max(1, buffer))):
                try:
                    point = float(row[columns.latitude]), float(row[columns.longitude])
                    shown = [_opened(row[column], max_side, source) for column in columns.views]
                except (TypeError, ValueError, OSError):
                    continue
                if not (-90 <= point[0] <= 90 and -180 <= point[1] <= 180):
                    continue
                named: dict[str, Any] = {}
                named |= {name: _named(row[c], columns.class_names.get(c)) for name, c in names.items() if c}
                usable += 1
                yield extend({"sample_id": f"{epoch}-{number}", "images": shown, "truth": Reply(point, **named)})
            if not usable:
                raise KitError(f"data set {Path(source).name} ({split}) has no row with coordinates and pictures")

    return datasets.IterableDataset.from_generator(rows)


@dataclass(frozen=True)
class TrainingSource:
    """The training data: cases, or the name of a stream, with the names of the views."""

    cases: Cases | None
    stream: str
    views: Sequence[str]

    def rows(self, settings: Mapping[str, Any], extend: Callable[[Row], Row]) -> Any:
        """A table or a stream of rows, each passed through `extend`."""
        if self.cases is not None:
            return table_of(self.cases, extend)
        return streamed(
            self.stream,
            settings["stream_split"],
            max_side=settings["max_side"],
            buffer=settings["shuffle_buffer"],
            seed=settings["seed"],
            extend=extend,
        )


def stream_views(source: str, split: str = "train") -> tuple[str, ...]:
    """The names of the views of a streamed data set: its image columns, or ("only",) for one."""
    features = huggingface.open_stream(source, split).features
    return tuple(huggingface.find_columns(features, f"{Path(source).name} ({split})").views.values())


def example(task: Task, views: Sequence[str], row: Row, seed: int) -> tuple[list[Message], str]:
    """The dialogue about a row's place up to the reply to learn, and that reply; the same in every pass."""
    drawn = np.random.SeedSequence([seed, *row["sample_id"].encode()]).generate_state(1)[0]
    return task.example(views, row["truth"], int(drawn))


def _opened(picture: dict | None, max_side: int, source: str) -> Image.Image:
    """Decode a picture of `datasets`. Raises OSError for a missing or broken one, KitError for one outside `source`."""
    data = huggingface.content(picture, source)
    try:
        return capped(picture_checks.upright(data)[0], max_side)
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise OSError(f"broken picture: {error}") from error


def _named(value: Any, names: list[str] | None) -> str | None:
    """A name, by its number where the column holds numbers; None for an empty one."""
    if names is not None:
        value = huggingface.class_name(value, names)
    return str(value).strip() or None if value is not None else None
