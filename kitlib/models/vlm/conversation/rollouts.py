"""What a vision-language model said while it learned: every step's rollouts on disk, to watch live and to replay.

    rollouts/steps/00000012-train.parquet    one file a step and phase; these are the record
    rollouts/rollouts.jsonl                  the same rows as text, one a line, for grep and jq
    rollouts/pictures/<place>-<view>.jpg     what was asked about, small, once a place

    writer = Writer(run.dir / "rollouts")
    names = writer.picture("id7", views)                  # (V, H, W, 3) uint8
    writer.write(step, [{"step": step, "phase": "train", "sample_id": "id7", "pictures": names, ...}, ...])

Of several processes one writes. Any number of others may read meanwhile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from PIL import Image

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import KitError

PHASES = ("train", "eval")
LONGEST_SIDE = 512  # pixels of a stored picture
POINT = pa.list_(pa.float64(), 2)  # [lat, lon]
SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "phase": pa.string(),  # one of PHASES
        "sample_id": pa.string(),
        "rollout": pa.int64(),  # 0..G-1 within the group of its place
        "environment": pa.string(),
        "prompt": pa.string(),  # all text of the first message
        "pictures": pa.list_(pa.string()),  # file names under pictures/
        "replies": pa.list_(pa.string()),  # one a turn, as the rewards and the points
        "points": pa.list_(POINT),  # None where a reply says no place
        "point": POINT,  # the last
        "truth": POINT,
        "rewards": pa.list_(pa.float64()),
        "reward": pa.float64(),
        "advantage": pa.float64(),  # None where there is none, as in an evaluation
        "km": pa.float64(),  # from the last point to the truth, None without a point
        "tau_km": pa.float64(),
    }
)
OPTIONAL = {"point", "advantage", "km"}
SUMMED = ("step", "phase", "sample_id", "truth", "reward", "km", "tau_km")  # all that `summary` needs


class Writer:
    """Writes the rollouts of one run into `folder`, step by step; also where an earlier, cut-off writer stopped."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._in_step = False  # whether the text is known to hold what the record holds

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Keep the rollouts of one step and phase, all keys of SCHEMA in each row, and give back their file.

        The same step and phase again replaces what was there, and steps after it are dropped: a training that goes on
        from an earlier checkpoint takes them back. Raises KitError for missing or unknown keys and values out of range.
        """
        checked = [_row(row, f"row {i} of step {step}", step) for i, row in enumerate(rows)]
        phases = {row["phase"] for row in checked}
        if len(phases) != 1:
            raise KitError(f"step {step}: {len(rows)} rows of {len(phases)} phases; wanted are rows of one phase")
        path = self.folder / "steps" / f"{step:08d}-{phases.pop()}.parquet"
        stale = [file for file in step_files(self.folder, after=step - 1) if file == path or _step(file) > step]
        for file in stale:
            if file != path:
                file.unlink()
        with storage.atomic_write(path) as beside:
            pq.write_table(pa.Table.from_pylist(checked, SCHEMA), beside, compression="zstd")
        if stale or not self._in_step:
            self._rewrite_text()
        else:
            with self._text.open("a", encoding="utf-8", newline="\n") as out:
                out.write(_lines(checked))
        self._in_step = True
        return path

    @property
    def _text(self) -> Path:
        return self.folder / "rollouts.jsonl"

    def _rewrite_text(self) -> None:
        """The record as text, from the beginning: after a kill the text may lack a step or end in half a line."""
        with storage.atomic_write(self._text) as beside, beside.open("w", encoding="utf-8", newline="\n") as out:
            for file in step_files(self.folder):
                out.write(_lines(pq.read_table(file).to_pylist()))

    def picture(self, sample_id: str, pictures: np.ndarray) -> list[str]:
        """Store a place's pictures (H, W, 3) or (V, H, W, 3) uint8 as small JPEGs, once, and give back their names."""
        views = np.asarray(pictures)
        views = views[None] if views.ndim == 3 else views
        if views.dtype != np.uint8 or views.ndim != 4 or views.shape[-1] != 3 or not views.size:
            raise KitError(
                f"pictures of {sample_id}: {views.dtype} of shape {np.shape(pictures)}; wanted are uint8 of shape "
                "(H, W, 3) or (V, H, W, 3)"
            )
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", sample_id)[:80]
        stem = stem if stem == sample_id else f"{stem}-{storage.digest(sample_id)}"
        names = [f"{stem}-{view}.jpg" for view in range(len(views))]
        for name, view in zip(names, views, strict=True):
            path = self.folder / "pictures" / name
            if not path.exists():
                image = Image.fromarray(view)
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
                with storage.atomic_write(path) as beside:
                    image.save(beside, quality=85)
        return names


def step_files(folder: str | Path, after: int = -1) -> list[Path]:
    """The files of the steps after `after`, in the order of training; an evaluation stands before the training step."""
    files = [file for file in (Path(folder) / "steps").glob("*.parquet") if re.match(r"\d+-(train|eval)$", file.stem)]
    return sorted((file for file in files if _step(file) > after), key=lambda file: (_step(file), file.stem))


def read(
    folder: str | Path, after: int = -1, until: int | None = None, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rollouts of the steps after `after` up to `until`, a row each, with the columns of SCHEMA.

    A point is a list [lat, lon] or None; a missing km or advantage is NaN. Empty while nothing is written yet; raises
    KitError where there is no such folder. A step that is taken back while this reads is left out.
    """
    if not Path(folder).is_dir():
        raise KitError(f"no rollouts in {paths.relative(Path(folder))}: a run that trains with GRPO writes them")
    files = [file for file in step_files(folder, after) if until is None or _step(file) <= until]
    return frame_of([read_table(file, columns) for file in files])


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One of `step_files` as it is, without rows where it was taken back this moment; `frame_of` makes it a frame."""
    names = list(columns or SCHEMA.names)
    try:
        with pq.ParquetFile(file) as parquet:  # half the time of read_table
            return parquet.read(names).select(names)
    except FileNotFoundError:
        return pa.schema([SCHEMA.field(name) for name in names]).empty_table()


def frame_of(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Tables with the same columns as one frame; a point is a list or None, a missing km or advantage NaN."""
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    frame = table.drop_columns(nested).to_pandas()
    for name in nested:
        frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
    return frame[table.column_names]


def summary(frame: pd.DataFrame, middle: ArrayLike | None = None) -> pd.DataFrame:
    """How far each step and phase came: rollouts, places, reward, km, median_km, parsed, tau_km, one row each.

    Rewards and km are means over all rollouts. A rollout without a point is counted with what a fallback guess would
    cost its place: the distance from the truth to `middle` [lat, lon], by default the geometric median of all true
    places in the frame. `parsed` is the share that needed none. Raises KitError for a frame without the columns SUMMED.
    """
    if lost := [name for name in SUMMED if name not in frame.columns]:
        raise KitError(f"rollouts without {', '.join(lost)}: wanted are the columns {', '.join(SUMMED)}")
    km = frame["km"].to_numpy(float)
    parsed = np.isfinite(km)
    if not parsed.all():
        truth = np.array(frame["truth"].tolist(), float)
        stand_in = geo.geometric_median(np.unique(truth, axis=0)) if middle is None else middle
        km = np.where(parsed, km, geo.distance_km(truth, geo.check_points(stand_in, "the fallback")))
    groups = frame.assign(km=km, parsed=parsed.astype(float)).groupby(["step", "phase"], as_index=False)
    return groups.agg(
        rollouts=("reward", "size"),
        places=("sample_id", "nunique"),
        reward=("reward", "mean"),
        km=("km", "mean"),
        median_km=("km", "median"),
        parsed=("parsed", "mean"),
        tau_km=("tau_km", "mean"),
    )


def _step(file: Path) -> int:
    return int(file.stem.split("-")[0])


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _row(row: Mapping[str, Any], where: str, step: int) -> dict[str, Any]:
    """A rollout's row as plain Python values; KitError for anything that is not as SCHEMA says."""
    if set(row) != set(SCHEMA.names):
        lost, unknown = sorted(set(SCHEMA.names) - set(row)), sorted(map(str, set(row) - set(SCHEMA.names)))
        told = [f"{what} {', '.join(names)}" for what, names in (("lacks", lost), ("has unknown", unknown)) if names]
        raise KitError(f"{where} {' and '.join(told)}; wanted are {', '.join(SCHEMA.names)}")
    plain = {field.name: _value(field.type, row[field.name], f"{field.name} of {where}") for field in SCHEMA}
    if lost := [name for name, value in plain.items() if value is None and name not in OPTIONAL]:
        raise KitError(f"{where} has no {', '.join(lost)}; only {', '.join(sorted(OPTIONAL))} may be None")
    if plain["step"] != step or step < 0 or plain["rollout"] < 0:
        raise KitError(f"{where}: step {plain['step']}, rollout {plain['rollout']}; allowed are {step}, and 0 or more")
    if plain["phase"] not in PHASES:
        raise KitError(f"{where}: phase {plain['phase']!r}; allowed are {', '.join(PHASES)}")
    turns = [len(plain[name]) for name in ("replies", "points", "rewards")]
    if len(set(turns)) > 1 or not turns[0]:
        raise KitError("{}: {} replies, {} points, {} rewards; wanted is one of each a turn".format(where, *turns))
    if (plain["km"] is None) != (plain["point"] is None) or (plain["km"] or 0) < 0 or plain["tau_km"] <= 0:
        raise KitError(
            f"{where}: point {plain['point']}, {plain['km']} km, tau {plain['tau_km']} km; wanted are km of at least 0 "
            "where there is a point and only there, and a tau above 0"
        )
    if unsafe := [name for name in plain["pictures"] if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name)]:
        raise KitError(f"{where}: picture {unsafe[0]!r} is no file name as Writer.picture gives it")
    return plain


def _value(kind: pa.DataType, value: Any, what: str) -> Any:
    """One value of a row as SCHEMA's type has it, in plain Python."""
    if value is None:
        return None
    if kind == POINT:
        return _point(value, what)
    if pa.types.is_list(kind):
        return _list(kind.value_type, value, what)
    if pa.types.is_string(kind) and isinstance(value, str):
        return value.encode(errors="replace").decode()  # half a surrogate pair has no UTF-8
    if pa.types.is_int64(kind) and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if pa.types.is_float64(kind) and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    wanted = {pa.string(): "text", pa.int64(): "a whole number"}.get(kind, "a finite number")
    raise KitError(f"{what}: {value!r}; wanted is {wanted}")


def _list(kind: pa.DataType, value: Any, what: str) -> list:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise KitError(f"{what}: {value!r}; wanted is a list")
    plain = [_value(kind, one, what) for one in value]
    if None in plain and kind != POINT:
        raise KitError(f"{what}: number {plain.index(None)} of {len(plain)} is None; only a point may be")
    return plain


def _point(value: Any, what: str) -> list[float]:
    try:
        point = np.asarray(value, float)
    except (TypeError, ValueError):
        point = np.empty(0)
    if point.shape != (2,):
        raise KitError(f"{what}: {value!r}; wanted is [latitude, longitude]")
    return geo.check_points(point, what).tolist()
