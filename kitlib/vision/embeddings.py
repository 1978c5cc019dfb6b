"""The embedding cache: a frozen encoder computes the features of a split's pictures once.

    embedded = embeddings.embed(pack, encoder, places.derived / "embeddings")
    embedded.features           # (N, V, D) float16, mapped from the disk

The name of the cache folder is a checksum of all inputs: weights, preprocessing, split, pictures, number type, mirror.
Unfinished work is in `<key>.partial`, and is resumed after an interruption. Both hold a checksum of the features, which
is compared when they are opened; damaged ones are made anew.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from kitlib.core import storage
from kitlib.core.errors import Damaged, KitError
from kitlib.data.pictures import Pack
from kitlib.vision import augment
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
) -> Embeddings:
    """Compute the features of every picture in the pack, or read them from `out_dir`/<key>/features.npy.

    mirror: also of the mirrored places (`augment.mirror`). batch_size: places per batch (default: by device). dtype:
    the number type to compute in (default: `device.best_dtype`). An interrupted computation resumes; with the same
    batch size the result is bit-identical. Raises KitError, naming the place, for features that are not finite.
    """
    device = device or vision_device.best_device()
    dtype = dtype or vision_device.best_dtype(device)
    batch_size = batch_size or max(1, BATCH_PICTURES[device.type] // len(pack.views))
    made_by = _inputs(pack, encoder, dtype)
    folders = [
        _compute(pack, encoder, out_dir, made_by | {"mirrored": mirrored}, batch_size, device, dtype)
        for mirrored in (False, True)[: 1 + mirror]
    ]
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


def _compute(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    made_by: dict[str, Any],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Path:
    """Compute the features with the inputs `made_by`, unless they are cached; return their folder.

    Of several processes that need the same features one computes them, and the others wait.
    """
    folder = out_dir / storage.digest(json.dumps(made_by, sort_keys=True))
    shape = (*pack.offsets.shape[:2], encoder.dim)
    with storage.lock(out_dir / f".{folder.name}.lock"):
        if folder.is_dir():
            if _is_whole(folder, shape):
                return folder
            log.warning("the features in %s are damaged, or of an earlier kit: they are made anew", folder.name)
            shutil.rmtree(folder)
        _fill(pack, encoder, folder, made_by, shape, batch_size, device, dtype)
    return folder


def _fill(
    pack: Pack,
    encoder: Encoder,
    folder: Path,
    made_by: dict[str, Any],
    shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Compute the features of `shape` in <folder>.partial, then rename it to `folder`."""
    partial = folder.with_suffix(".partial")
    n_places, n_views, _ = shape
    features, progress = _open(partial, shape)
    done, seconds, checksum = progress["places"], progress["seconds"], progress["checksum"]
    what = f"{pack.split}{' mirrored' if made_by['mirrored'] else ''}"
    todo = (n_places - done) * n_views
    log.info(
        f"embedding {what} with {encoder.name} at {encoder.preprocess.size} px in {made_by['dtype']} on {device}: "
        f"{todo} pictures of {encoder.gflop:.3g} GFLOP, {todo * encoder.gflop / 1000:.3g} TFLOP in all"
        f"{f'; {done * n_views} are done already' if done else ''}"
    )
    was_training = encoder.training
    encoder.eval().to(device)
    size = None if len(pack.sizes) == 1 else encoder.preprocess.resize
    began = saved = time.perf_counter()
    with tqdm(total=n_places * n_views, initial=done * n_views, desc=f"embedding {what}", unit=" pictures") as bar:
        for rows, batch in ViewBatches(pack, np.arange(done, n_places), batch_size, size):
            views = augment.mirror(batch) if made_by["mirrored"] else batch
            features[rows] = batch_features = _features(encoder, views.to(device), dtype, pack.sample_id[rows])
            checksum = zlib.crc32(batch_features.data, checksum)
            bar.update(len(rows) * n_views)
            now = time.perf_counter()
            progress = {"places": int(rows[-1]) + 1, "seconds": seconds + now - began, "checksum": checksum}
            if now - saved > SAVE_SECONDS:
                features.flush()
                storage.write_json(partial / "progress.json", progress)
                if saved == began:
                    rate = (progress["places"] - done) * n_views / (now - began)
                    left = (n_places - progress["places"]) * n_views / rate
                    log.info(f"{rate:.1f} pictures/s: about {left / 60:.1f} minutes left")
                saved = now
    encoder.train(was_training)
    features.flush()
    rate = n_places * n_views / max(progress["seconds"], 1e-9)
    meta = made_by | {"encoder": encoder.name, "shape": features.shape, "gflop_per_picture": encoder.gflop}
    meta["checksum"] = checksum
    storage.write_json(partial / "meta.json", meta | {"seconds": progress["seconds"], "pictures_per_second": rate})
    (partial / "progress.json").unlink(missing_ok=True)
    partial.rename(folder)
    log.info(f"embedded {what}: {rate:.1f} pictures/s")


def _open(partial: Path, shape: tuple[int, int, int]) -> tuple[np.memmap, dict[str, Any]]:
    """Open the features array and the progress of unfinished work, or make new ones.

    Raises OSError if the disk has no room for all features.
    """
    file = partial / "features.npy"
    try:
        progress = storage.read_json(partial / "progress.json", needed=("places", "seconds", "checksum"))
        with storage.reading(file):
            features = np.lib.format.open_memmap(file, mode="r+")
            if features.shape == shape and _checksum(features[: progress["places"]]) == progress["checksum"]:
                return features, progress
    except (Damaged, FileNotFoundError):
        pass
    partial.mkdir(parents=True, exist_ok=True)
    features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    storage.reserve(file, file.stat().st_size)
    return features, {"places": 0, "seconds": 0.0, "checksum": 0}


def _is_whole(folder: Path, shape: tuple[int, int, int]) -> bool:
    """Whether the features in `folder` are as they were written."""
    try:
        meta = storage.read_json(folder / "meta.json", needed=("checksum", "pictures_per_second"))
        with storage.reading(folder / "features.npy"):
            features = np.load(folder / "features.npy", mmap_mode="r")
            return features.shape == shape and _checksum(features) == meta["checksum"]
    except (Damaged, FileNotFoundError):
        return False


def _checksum(features: np.ndarray) -> int:
    """CRC-32 of features (N, V, D), part by part: they may be larger than the memory."""
    checksum = 0
    for start in range(0, len(features), 1024):
        checksum = zlib.crc32(features[start : start + 1024].data, checksum)
    return checksum


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
