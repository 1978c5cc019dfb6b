"""The embedding cache: a frozen encoder computes the features of a split's pictures once.

    embedded = embeddings.embed(pack, encoder, places.derived / "embeddings")
    embedded.features           # (N, V, D) float16, mapped from the disk

The name of the cache folder is a checksum of all inputs: weights, preprocessing, split, pictures, number type, mirror.
Unfinished work is in `<key>.partial`, and is resumed after an interruption. Both hold a checksum of the features, which
is compared when they are opened; damaged ones are made anew.

Several processes, on one machine or on many that share the folder, compute a part each: all write to the one file of
the features, each its own rows, from the start of a page of memory on. So there is nothing to be merged; whoever
finishes the last part only renames the folder. Whoever needs all features waits for, or resumes, the others' parts.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
import zlib
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitlib.core import processes, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.core.progress import Bar
from kitlib.data.pictures import Pack
from kitlib.vision import augment, feature_file
from kitlib.vision import device as vision_device
from kitlib.vision.encoders import Encoder
from kitlib.vision.preprocess import ViewBatches

log = logging.getLogger(__name__)

BATCH_PICTURES = {"cuda": 256, "mps": 64, "cpu": 64}  # per batch: enough to keep the device busy
SAVE_SECONDS = 5.0  # of work at most that an interruption loses
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of one split, in the order of its pack; made by `embed`."""

    features: np.ndarray  # (N, V, D) float16, read-only, memory-mapped
    mirrored: np.ndarray | None  # the same of the mirrored places, if requested
    sample_id: np.ndarray  # (N,)
    key: str  # checksum of all inputs
    pictures_per_second: float  # of their computation


def embed(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    mirror: bool = False,
    batch_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    crop: str = "",
) -> Embeddings:
    """Compute the features of every picture in the pack, or read them from `out_dir`/<key>/features.npy.

    mirror: also of the mirrored places (`augment.mirror`). batch_size: places per batch (default: by device). dtype:
    the number type to compute in (default: `device.best_dtype`). An interrupted computation resumes; with the same
    batch size the result is bit-identical. The features of all stages begin with those of the last layer, which are
    saved for the encoder of that alone. crop: one of `augment.CROPS` instead of the whole pictures. Of processes
    that torchrun has started each begins with a part of its own.
    Raises KitError, naming the place, for features that are not finite.
    """
    jobs = _jobs(pack, encoder, out_dir, mirror, batch_size, device, dtype, crop)
    folders = [job.compute() for job in jobs]
    if last_layer := encoder.last_layer:
        for job in jobs:
            job.keep_last_layer(last_layer)
    features = [np.load(folder / "features.npy", mmap_mode="r") for folder in folders]
    meta = storage.read_json(folders[0] / "meta.json", needed=("pictures_per_second",))
    return Embeddings(
        features=features[0],
        mirrored=features[1] if mirror else None,
        sample_id=pack.sample_id,
        key=folders[0].name,
        pictures_per_second=meta["pictures_per_second"],
    )


def are_cached(pack: Pack, encoder: Encoder, out_dir: Path, dtype: torch.dtype) -> bool:
    """Whether `embed` would find the features of the plain pictures."""
    made_by = _inputs(pack, encoder, dtype) | {"mirrored": False}
    return (out_dir / storage.digest(json.dumps(made_by, sort_keys=True))).is_dir()


def _inputs(pack: Pack, encoder: Encoder, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "weights": encoder.weights_digest,
        "architecture": storage.digest(repr(encoder.backbone)),  # which may differ in padding for the same weights
        "preprocess": asdict(encoder.preprocess),
        "split": pack.split,
        "pictures": pack.checksum,
        "dtype": str(dtype),
    }


def embed_shard(pack: Pack, encoder: Encoder, out_dir: Path, shard: int, shards: int, mirror: bool = False) -> int:
    """Compute the parts of one of several shards, counted from 0; return how many parts are missing then.

    An unfinished computation keeps the number of parts that it was begun with; these are dealt out to the shards.
    """
    return sum(job.compute_shard(shard, shards) for job in _jobs(pack, encoder, out_dir, mirror))


def _jobs(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    mirror: bool,
    batch_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    crop: str = "",
) -> list[_Job]:
    device = device or vision_device.best_device()
    dtype = dtype or vision_device.best_dtype(device)
    batch_size = batch_size or max(1, BATCH_PICTURES[device.type] // len(pack.views))
    made_by = _inputs(pack, encoder, dtype) | ({"crop": augment.CROPS[crop]} if crop else {})
    sides = (False, True)[: 1 + mirror]
    return [_Job(pack, encoder, out_dir, made_by | {"mirrored": m}, batch_size, device, dtype, crop) for m in sides]


@dataclass(frozen=True, eq=False)
class _Job:
    """The computation of the features with the inputs `made_by`, in parts."""

    pack: Pack
    encoder: Encoder
    out_dir: Path
    made_by: dict[str, Any]
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    crop: str = ""

    def __post_init__(self) -> None:
        folder = self.out_dir / storage.digest(json.dumps(self.made_by, sort_keys=True))
        shape = (*self.pack.offsets.shape[:2], self.encoder.dim)
        for name, value in {"folder": folder, "partial": folder.with_suffix(".partial"), "shape": shape}.items():
            object.__setattr__(self, name, value)

    folder: Path = field(init=False)
    partial: Path = field(init=False)
    shape: tuple[int, int, int] = field(init=False)

    def compute(self) -> Path:
        """Compute all parts that nobody computes, wait for the others, and return the folder."""
        while parts := self._begin(processes.count()):
            first = range(parts)[processes.rank() :: processes.count()]
            for part in [*first, *sorted(set(range(parts)) - set(first))]:
                self._complete(part, parts)
            self._finish(parts)
        return self.folder

    def compute_shard(self, shard: int, shards: int) -> int:
        """Compute the parts of a shard; return how many parts are missing then."""
        if not (parts := self._begin(shards)):
            return 0
        for part in range(parts)[shard::shards]:
            self._complete(part, parts)
        return self._finish(parts)

    def keep_last_layer(self, encoder: Encoder) -> None:
        """Save the first of the finished features as those of `encoder`, where they are missing."""
        made_by = self.made_by | _inputs(self.pack, encoder, self.dtype)
        job = replace(self, encoder=encoder, made_by=made_by)
        if job.folder.is_dir():
            return
        whole = np.load(self.folder / "features.npy", mmap_mode="r")
        seconds = storage.read_json(self.folder / "meta.json", needed=("seconds",))["seconds"]
        while parts := job._begin(1):
            for part in range(parts):
                with job._lock(f"-{part}"):
                    rows = feature_file.rows_of(job.shape, part, parts)
                    if job.folder.is_dir() or not rows:
                        continue
                    features = np.load(job.partial / "features.npy", mmap_mode="r+")
                    features[rows.start : rows.stop] = whole[rows.start : rows.stop, :, : encoder.dim]
                    features.flush()
                    progress = {"places": len(rows), "seconds": seconds * len(rows) / len(whole)}
                    progress["checksum"] = feature_file.checksum(features[rows.start : rows.stop])
                    storage.write_json(job.partial / f"part-{part}.json", progress)
            job._finish(parts)

    def _begin(self, parts: int) -> int:
        """The number of parts of the unfinished work, which is begun with `parts`; 0 if the features are whole.

        Raises OSError if the disk has no room for all features.
        """
        with self._lock():
            if self.folder.is_dir():
                if feature_file.is_whole(self.folder, self.shape):
                    return 0
                log.warning("the features in %s are damaged, or of an earlier kit: they are made anew",
                            self.folder.name)  # fmt: skip
                shutil.rmtree(self.folder)
            file = self.partial / "features.npy"
            try:
                with storage.reading(file):
                    if np.load(file, mmap_mode="r").shape == self.shape:
                        known = storage.read_json(self.partial / "parts.json", needed=("parts",))
                        return int(known["parts"])
            except (Damaged, FileNotFoundError):
                pass
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            feature_file.allocate(file, self.shape)
            storage.write_json(self.partial / "parts.json", {"parts": parts})
            return parts

    def _lock(self, part: str = "") -> AbstractContextManager[None]:
        return storage.lock(self.out_dir / f".{self.folder.name}{part}.lock")

    def _progress(self, part: int) -> dict[str, Any] | None:
        """What is done of a part: places, seconds and checksum; None if nothing is, or all features are finished."""
        try:
            return storage.read_json(self.partial / f"part-{part}.json", needed=("places", "seconds", "checksum"))
        except (Damaged, FileNotFoundError):
            return None

    def _complete(self, part: int, parts: int) -> None:
        """Compute a part, or what is missing of it; another process that computes it is waited for."""
        with self._lock(f"-{part}"):
            rows, start = feature_file.rows_of(self.shape, part, parts), {"places": 0, "seconds": 0.0, "checksum": 0}
            with self._lock():
                if self.folder.is_dir():
                    return
                progress = self._progress(part) or start
                features = np.load(self.partial / "features.npy", mmap_mode="r+")
            if progress["places"] < len(rows):
                if (
                    feature_file.checksum(features[rows.start : rows.start + progress["places"]])
                    != progress["checksum"]
                ):
                    progress = start
                self._fill(features, part, rows, progress)

    def _fill(self, features: np.ndarray, part: int, rows: range, progress: dict[str, Any]) -> None:
        """Compute the features of the rows of a part that are not done."""
        encoder, pack, n_views = self.encoder, self.pack, self.shape[1]
        done, seconds, checksum = progress["places"], progress["seconds"], progress["checksum"]
        what = " ".join(filter(None, [pack.split, self.crop, "mirrored" if self.made_by["mirrored"] else ""]))
        todo = (len(rows) - done) * n_views
        log.info(
            f"embedding {what} with {encoder.name} at {encoder.preprocess.size} px in {self.dtype} on {self.device}: "
            f"{todo} pictures of {encoder.gflop:.3g} GFLOP, {todo * encoder.gflop / 1000:.3g} TFLOP in all"
            f"{f'; {done * n_views} are done already' if done else ''}"
        )
        was_training = encoder.training
        encoder.eval().to(self.device)
        size = None if len(pack.sizes) == 1 else encoder.preprocess.resize
        began = saved = time.perf_counter()
        todo_rows = np.arange(rows.start + done, rows.stop)
        bar = Bar(total=len(rows) * n_views, initial=done * n_views, desc=f"embedding {what}", unit=" pictures")
        with bar:
            for batch_rows, batch in ViewBatches(pack, todo_rows, self.batch_size, size):
                views = augment.crop(batch, self.crop) if self.crop else batch
                views = augment.mirror(views) if self.made_by["mirrored"] else views
                batch_features = _features(encoder, views.to(self.device), self.dtype, pack.sample_id[batch_rows])
                features[batch_rows] = batch_features
                checksum = zlib.crc32(batch_features.data, checksum)
                bar.update(len(batch_rows) * n_views)
                now, places = time.perf_counter(), int(batch_rows[-1]) + 1 - rows.start
                progress = {"places": places, "seconds": seconds + now - began, "checksum": checksum}
                if now - saved > SAVE_SECONDS or places == len(rows):
                    features.flush()  # type: ignore[attr-defined]
                    storage.write_json(self.partial / f"part-{part}.json", progress)
                    if saved == began and places < len(rows):
                        rate = (places - done) * n_views / (now - began)
                        log.info(f"{rate:.1f} pictures/s: about {(len(rows) - places) * n_views / rate / 60:.1f} "
                                 "minutes left")  # fmt: skip
                    saved = now
        encoder.train(was_training)
        log.info(f"embedded {what}: {len(rows) * n_views / max(progress['seconds'], 1e-9):.1f} pictures/s")

    def _finish(self, parts: int) -> int:
        """Name the folder as finished if all parts are; return how many are missing."""
        with self._lock():
            if self.folder.is_dir():
                return 0
            rows, done = [feature_file.rows_of(self.shape, part, parts) for part in range(parts)], []
            for part in range(parts):
                progress = self._progress(part) or {"places": 0}
                if progress["places"] == len(rows[part]) and len(rows[part]):
                    done.append(progress)
            if missing := sum(map(bool, rows)) - len(done):
                return missing
            seconds = sum(progress["seconds"] for progress in done)
            meta = self.made_by | {"encoder": self.encoder.name, "shape": self.shape}
            meta |= {"gflop_per_picture": self.encoder.gflop, "seconds": seconds}
            meta |= {"pictures_per_second": math.prod(self.shape[:2]) / max(seconds, 1e-9)}
            meta |= {"parts": [part.stop for part in rows if part]}
            meta |= {"checksum": [progress["checksum"] for progress in done]}
            storage.write_json(self.partial / "meta.json", meta)
            for file in self.partial.glob("part*.json"):
                file.unlink()
            self.partial.rename(self.folder)
            return 0


def _features(encoder: Encoder, batch: torch.Tensor, dtype: torch.dtype, sample_id: np.ndarray) -> np.ndarray:
    """Features (B, V, D) float16 of uint8 places (B, V, 3, H, W)."""
    pictures = batch.flatten(0, 1)
    with torch.inference_mode():
        with vision_device.autocast(batch.device, dtype):
            features = encoder(pictures).float()
        if not features.isfinite().all():  # a float16 activation overflowed
            features = encoder(pictures).float()
    features = features.view(*batch.shape[:2], -1)
    bad = np.flatnonzero(~features.isfinite().flatten(1).all(dim=1).cpu().numpy())
    if len(bad):
        raise KitError(
            f"{encoder.name}: expected finite features; those of sample_id {sample_id[bad[0]]} are not: "
            "check the encoder's weights"
        )
    if (largest := features.abs().max()) > LARGEST:
        log.warning(f"{encoder.name} gives features up to {largest:.3g}; stored as float16's {LARGEST:.3g}")
    return features.clamp(-LARGEST, LARGEST).half().cpu().numpy()
