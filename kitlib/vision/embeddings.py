"""The embedding cache: every picture of a split through a frozen encoder once, and never again.

    embedded = embeddings.embed(pack, encoder, places.derived / "embeddings")
    embedded.features           # (N, V, D) float16, mapped from the disk

The folder's name stands for everything that made the numbers: weights, preprocessing, split, pictures, number type,
mirror. Work in progress lies in `<key>.partial` and goes on where it was killed.
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

logger = logging.getLogger(__name__)

BATCH_PICTURES = {"cuda": 256, "mps": 64, "cpu": 64}  # pictures a batch: enough to keep the device busy
SAVE_SECONDS = 5.0  # how much work a kill may cost
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of one split, in the order of its pack; made by `embed`."""

    features: np.ndarray  # (N, V, D) float16, read-only, mapped from the disk
    mirrored: np.ndarray | None  # the same of the places seen in a mirror, where asked for
    sample_id: np.ndarray  # (N,)
    key: str  # stands for everything that made the features
    pictures_per_second: float  # when they were made


def embed(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    mirror: bool = False,
    batch_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Embeddings:
    """Features of every picture in the pack, computed once and then read from `out_dir`/<key>/features.npy.

    mirror: also of the mirrored places, whose pictures are flipped and whose east is west (`views.mirror`).
    batch_size: places at once (default: by device). dtype: the number type to compute in (default: `views.best_dtype`).
    A run that was killed goes on; with the same batch size the result is the same to the bit. Raises KitError, naming
    the place, for features that are not finite.
    """
    device = device or vision_device.best_device()
    dtype = dtype or vision_device.best_dtype(device)
    batch_size = batch_size or max(1, BATCH_PICTURES[device.type] // len(pack.views))
    made_by = {
        "weights": encoder.weights_digest,
        "architecture": storage.digest(repr(encoder.backbone)),  # the same weights can be padded in two ways
        "preprocess": asdict(encoder.preprocess),
        "split": pack.split,
        "pictures": pack.checksum,
        "dtype": str(dtype),
    }
    folders = [_made(pack, encoder, out_dir, made_by | {"mirrored": False}, batch_size, device, dtype)]
    if mirror:
        folders.append(_made(pack, encoder, out_dir, made_by | {"mirrored": True}, batch_size, device, dtype))
    features = [np.load(folder / "features.npy", mmap_mode="r") for folder in folders]
    return Embeddings(
        features=features[0],
        mirrored=features[1] if mirror else None,
        sample_id=pack.sample_id,
        key=folders[0].name,
        pictures_per_second=json.loads((folders[0] / "meta.json").read_text())["pictures_per_second"],
    )


def _made(
    pack: Pack,
    encoder: Encoder,
    out_dir: Path,
    made_by: dict[str, Any],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Path:
    """The folder of the features that `made_by` stands for, after the work that there still is to do."""
    folder = out_dir / storage.digest(json.dumps(made_by, sort_keys=True))
    if (folder / "meta.json").is_file():
        return folder
    partial = folder.with_suffix(".partial")
    n_places, n_views = pack.offsets.shape[:2]
    features, progress = _open(partial, (n_places, n_views, encoder.dim))
    done, seconds = progress["places"], progress["seconds"]
    what = f"{pack.split}{' mirrored' if made_by['mirrored'] else ''}"
    todo = (n_places - done) * n_views
    logger.info(
        f"embedding {what} with {encoder.name} at {encoder.preprocess.size} px in {made_by['dtype']} on {device}: "
        f"{todo} pictures of {encoder.gflop:.3g} GFLOP, {todo * encoder.gflop / 1000:.3g} TFLOP in all"
        f"{f'; {done * n_views} more are there already' if done else ''}"
    )
    was_training = encoder.training
    encoder.eval().to(device)
    size = None if len(pack.sizes) == 1 else encoder.preprocess.resize
    began = saved = time.perf_counter()
    with tqdm(total=n_places * n_views, initial=done * n_views, desc=f"embedding {what}", unit=" pictures") as bar:
        for rows, batch in ViewBatches(pack, np.arange(done, n_places), batch_size, size):
            seen = augment.mirror(batch) if made_by["mirrored"] else batch
            features[rows] = _features(encoder, seen.to(device), dtype, pack.sample_id[rows])
            bar.update(len(rows) * n_views)
            now = time.perf_counter()
            progress = {"places": int(rows[-1]) + 1, "seconds": seconds + now - began}
            if now - saved > SAVE_SECONDS:
                features.flush()
                storage.write_json(partial / "progress.json", progress)
                if saved == began:
                    rate = (progress["places"] - done) * n_views / (now - began)
                    left = (n_places - progress["places"]) * n_views / rate
                    logger.info(f"{rate:.1f} pictures/s: about {left / 60:.1f} minutes left")
                saved = now
    encoder.train(was_training)
    features.flush()
    rate = n_places * n_views / max(progress["seconds"], 1e-9)
    meta = made_by | {"encoder": encoder.name, "shape": features.shape, "gflop_per_picture": encoder.gflop}
    storage.write_json(partial / "meta.json", meta | {"seconds": progress["seconds"], "pictures_per_second": rate})
    (partial / "progress.json").unlink(missing_ok=True)
    partial.rename(folder)
    logger.info(f"embedded {what}: {rate:.1f} pictures/s")
    return folder


def _open(partial: Path, shape: tuple[int, int, int]) -> tuple[np.memmap, dict[str, float]]:
    """The features array of unfinished work, and how far it is; both new where there is none that can be used."""
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
        if not features.isfinite().all():  # a float16 activation that overflowed: float32 has room
            features = encoder(pictures).float()
    features = features.view(*batch.shape[:2], -1)
    bad = np.flatnonzero(~features.isfinite().flatten(1).all(dim=1).cpu().numpy())
    if len(bad):
        raise KitError(
            f"{encoder.name} gives features that are not finite for sample_id {sample_id[bad[0]]}; "
            "its weights must be finite"
        )
    if (largest := features.abs().max()) > LARGEST:
        logger.warning(f"{encoder.name} gives features up to {largest:.3g}; stored as float16's {LARGEST:.3g}")
    return features.clamp(-LARGEST, LARGEST).half().cpu().numpy()
