"""Rollouts of a vision-language model in training, written to disk step by step for the dashboard and for replays.

    rollouts/steps/00000012-train.parquet    one file a step and phase; these are the record
    rollouts/rollouts.jsonl                  the same rows as text, one a line, for grep and jq
    rollouts/pictures/<place>-<view>.jpg     the pictures of the prompts, small, once a place

    writer = Writer(run.dir / "rollouts")
    names = writer.picture("id7", views)                  # (V, H, W, 3) uint8
    writer.write(step, [{"step": step, "phase": "train", "sample_id": "id7", "pictures": names, ...}, ...])

Only one process may write; any number may read at the same time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
        "points": pa.list_(POINT),  # None where a reply gives none
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
SUMMED = ("step", "phase", "sample_id", "truth", "reward", "km", "tau_km")  # columns that `summary` needs


class Writer:
    """Writes the rollouts of one run into `folder`, step by step, and can continue after an interrupted writer."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._in_step = False  # whether the text is known to match the record

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write the rollouts of one step and phase, all keys of SCHEMA in each row, and return their file.

        It replaces an earlier file of that step and phase and deletes those of later steps, which a training that
        continues from an earlier checkpoint repeats. Raises KitError for wrong keys and values out of range.
        """
        table = _table(rows, step)
        phases = set(table["phase"].to_pylist())
        if len(phases) != 1:
            raise KitError(f"step {step}: expected rows of one phase; got {len(rows)} rows of {len(phases)} phases")
        path = self.folder / "steps" / f"{step:08d}-{phases.pop()}.parquet"
        stale = [file for file in step_files(self.folder, after=step - 1) if file == path or _step(file) > step]
        for file in stale:
            if file != path:
                file.unlink()
        with storage.atomic_write(path) as beside:
            pq.write_table(table, beside, compression="zstd")
        if stale or not self._in_step:
            self._rewrite_text()
        else:
            with self._text.open("a", encoding="utf-8", newline="\n") as out:
                out.write(_lines(table.to_pylist()))
        self._in_step = True
        return path

    @property
    def _text(self) -> Path:
        return self.folder / "rollouts.jsonl"

    def _rewrite_text(self) -> None:
        """Write the whole text again: after a kill it may lack a step or end in half a line."""
        with storage.atomic_write(self._text) as beside, beside.open("w", encoding="utf-8", newline="\n") as out:
            for file in step_files(self.folder):
                out.write(_lines(pq.read_table(file).to_pylist()))

    def picture(self, sample_id: str, pictures: np.ndarray) -> list[str]:
        """Store a place's pictures (H, W, 3) or (V, H, W, 3) uint8 once, as small JPEGs, and return their names."""
        views = np.asarray(pictures)
        views = views[None] if views.ndim == 3 else views
        if views.dtype != np.uint8 or views.ndim != 4 or views.shape[-1] != 3 or not views.size:
            raise KitError(
                f"pictures of {sample_id}: expected uint8 of shape (H, W, 3) or (V, H, W, 3); got {views.dtype} of "
                f"shape {np.shape(pictures)}"
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
    """The files of the steps after `after`, in the order of training: the evaluation of a step, then its training."""
    files = [file for file in (Path(folder) / "steps").glob("*.parquet") if re.match(r"\d+-(train|eval)$", file.stem)]
    return sorted((file for file in files if _step(file) > after), key=lambda file: (_step(file), file.stem))


def read(
    folder: str | Path, after: int = -1, until: int | None = None, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rollouts of the steps after `after` up to `until`, a row each, with the columns of SCHEMA.

    A point is a list [lat, lon] or None; a missing km or advantage is NaN. Empty while nothing is written yet; raises
    KitError where there is no such folder. A file that is deleted during the reading is left out.
    """
    if not Path(folder).is_dir():
        raise KitError(f"no rollouts in {paths.relative(Path(folder))}: a run that trains with GRPO writes them")
    files = [file for file in step_files(folder, after) if until is None or _step(file) <= until]
    return frame_of([read_table(file, columns) for file in files])


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a step's file, without rows if the file was just deleted."""
    names = list(columns or SCHEMA.names)
    try:
        with pq.ParquetFile(file) as parquet:  # half the time of read_table
            return parquet.read(names).select(names).cast(pa.schema([SCHEMA.field(name) for name in names]))
    except FileNotFoundError:
        return pa.schema([SCHEMA.field(name) for name in names]).empty_table()
    except (pa.ArrowException, KeyError, OSError):  # OSError: a page that cannot be unpacked
        raise KitError(f"{file.name}: expected a Parquet file with the columns {', '.join(names)}") from None


def frame_of(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Tables with the same columns as one frame, in which a point is a list or None."""
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    frame = table.drop_columns(nested).to_pandas()
    for name in nested:
        frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
    return frame[table.column_names]


def summary(frame: pd.DataFrame, middle: ArrayLike | None = None) -> pd.DataFrame:
    """One row per step and phase: rollouts, places, reward, km, median_km, parsed, tau_km.

    Rewards and km are means over all rollouts. A rollout without a point counts as a fallback guess: its km is the
    distance from the truth to `middle` [lat, lon], by default the geometric median of all true places in the frame.
    `parsed` is the share of rollouts with a point. Raises KitError for a frame without the columns SUMMED.
    """
    if lost := [name for name in SUMMED if name not in frame.columns]:
        raise KitError(f"rollouts: expected the columns {', '.join(SUMMED)}; {', '.join(lost)} missing")
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


def _table(rows: Sequence[Mapping[str, Any]], step: int) -> pa.Table:
    """The rows of one step as a table with SCHEMA. Raises KitError for wrong keys, types and ranges."""
    for row in rows:
        if wrong := sorted(map(str, set(SCHEMA.names) ^ set(row))):
            raise KitError(
                f"a rollout of step {step}: expected {', '.join(SCHEMA.names)}; missing or unknown: {', '.join(wrong)}"
            )
    table = pa.table([_column(field, [row[field.name] for row in rows], step) for field in SCHEMA], schema=SCHEMA)
    for i, row in enumerate(table.to_pylist()):
        turns = [len(row[name]) for name in ("replies", "points", "rewards")]
        safe = [re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) for name in row["pictures"]]
        wants = {
            f"step {step}": row["step"] == step >= 0,
            "a rollout from 0": row["rollout"] >= 0,
            f"a phase of {', '.join(PHASES)}": row["phase"] in PHASES,
            "a reply, a point and a reward for each turn": len(set(turns)) == 1 and turns[0] > 0,
            "km where there is a point and only there": (row["km"] is None) == (row["point"] is None),
            "km of at least 0 and tau_km above 0": (row["km"] or 0) >= 0 and row["tau_km"] > 0,
            "pictures with file names of Writer.picture": all(safe),
        }
        if broken := [want for want, fulfilled in wants.items() if not fulfilled]:
            raise KitError(f"row {i} of step {step}: expected {broken[0]}; got {row}")
    return table


def _column(field: pa.Field, values: list[Any], step: int) -> pa.Array:
    """One column for pyarrow. Raises KitError for wrong types, infinite numbers, points off Earth, missing values."""
    where = f"{field.name} of step {step}"
    try:
        column = pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise KitError(f"{where}: expected {field.type}; {error}") from None
    items = column.flatten() if pa.types.is_list(field.type) else column
    nulls = column.null_count + (items.null_count if items.type != POINT else 0)
    if nulls and field.name not in OPTIONAL:
        raise KitError(f"{where}: expected a value; only {', '.join(sorted(OPTIONAL))} and a turn's point may be None")
    if items.type == POINT:
        geo.check_points(items.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2), where)
    elif pa.types.is_floating(items.type) and not np.isfinite(items.drop_null().to_numpy()).all():
        raise KitError(f"{where}: expected finite numbers; got {values}")
    return column
