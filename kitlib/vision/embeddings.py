"""The embedding cache: a frozen encoder computes the features of a split's pictures once.

    embedded = embeddings.embed(pack, encoder, places.derived / "embeddings")
    embedded.features           # (N, V, D) float16, mapped from the disk

The name of the cache folder is a checksum of all inputs: weights, preprocessing, split, pictures, number type, mirror.
Unfinished work is in `<key>.partial`, and is resumed after an interruption.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from kitlib.core import storage
from kitlib.core.errors import KitError
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
    made_by = {
        "weights": encoder.weights_digest,
        "architecture": storage.digest(repr(encoder.backbone)),  # which may differ in padding for the same weights
        "preprocess": asdict(encoder.preprocess),
        "split": pack.split,
        "pictures": pack.checksum,
        "dtype": str(dtype),
    }
    folders = [
        _compute(pack, encoder, out_dir, made_by | {"mirrored": mirrored}, batch_size, device, dtype)
        for mirrored in (False, True)[: 1 + mirror]
    ]
    features = [np.load(folder / "features.npy", mmap_mode="r") for folder in folders]
    return Embeddings(
        features=features[0],
        mirrored=features[1] if mirror else None,
        sample_id=pack.sample_id,
        key=folders[0].name,
        pictures_per_second=json.loads((folders[0] / "meta.json").read_text())["pictures_per_second"],
    )


def _compute(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    made_by: dict[str, Any],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Path:
    """Compute the features with the inputs `made_by`, unless they are cached; return their folder."""
    folder = out_dir / storage.digest(json.dumps(made_by, sort_keys=True))
    if (folder / "meta.json").is_file():
        return folder
    partial = folder.with_suffix(".partial")
    n_places, n_views = pack.offsets.shape[:2]
    features, progress = _open(partial, (n_places, n_views, encoder.dim))
    done, seconds = progress["places"], progress["seconds"]
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
            features[rows] = _features(encoder, views.to(device), dtype, pack.sample_id[rows])
            bar.update(len(rows) * n_views)
            now = time.perf_counter()
            progress = {"places": int(rows[-1]) + 1, "seconds": seconds + now - began}
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
    storage.write_json(partial / "meta.json", meta | {"seconds": progress["seconds"], "pictures_per_second": rate})
    (partial / "progress.json").unlink(missing_ok=True)
    partial.rename(folder)
    log.info(f"embedded {what}: {rate:.1f} pictures/s")
    return folder


def _open(partial: Path, shape: tuple[int, int, int]) -> tuple[np.memmap, dict[str, float]]:
    """Open the features array and the progress of unfinished work, or make new ones."""
    file = partial / "features.npy"
    try:
        progress = json.loads((partial / "progress.json").read_text())
        features = np.lib.format.open_memmap(file, mode="r+")
    except (OSError, ValueError):
        partial.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape), {"places": 0, "seconds": 0.0}
    return features, progress


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
