"""Batches of the V pictures of each place as uint8 tensors, and their preprocessing for an encoder on the device.

Pictures stay uint8 up to the device: a quarter of the bytes to copy, and resizing uint8 on a CPU is fast.

    for rows, views in ViewBatches(pack, np.arange(len(pack.sample_id)), batch_size=32):
        views = augment(encoder.preprocess.shrink(views.to(best_device())), generator)
        pixels = encoder.preprocess(views.flatten(0, 1))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from kitlib.core import storage
from kitlib.core.errors import KitError

if TYPE_CHECKING:
    from kitlib.data.pictures import Pack


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of an encoder: a call converts uint8 (B, 3, H, W) to float32 (B, 3, size, size).

    The steps and their rounding are those of torchvision and the CLIP image processor: resize the shortest edge (or,
    with `squash`, both) to `resize` with antialiasing, crop the centre to `size`, compute (x / 255 - mean) / std.
    """

    size: int  # px of the encoder's square input
    resize: int  # px of the shortest edge before the centre crop
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"  # or bilinear
    squash: bool = False  # resize both edges, whatever the aspect ratio

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear"):
            raise KitError(f"interpolation: expected bicubic or bilinear; got {self.interpolation!r}")
        if not 0 < self.size <= self.resize:
            raise KitError(f"size: expected 1 to {self.resize} px, the resized pictures; got {self.size}")

    @property
    def digest(self) -> str:
        """A checksum of all settings, 16 hex characters."""
        return storage.digest(repr(sorted(asdict(self).items())))

    def at(self, size: int) -> Preprocess:
        """The same preprocessing for another input size, with the crop in proportion."""
        return Preprocess(**asdict(self) | {"size": size, "resize": round(size * self.resize / self.size)})

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Resize, crop and normalise uint8 (B, 3, H, W) to float32 (B, 3, size, size) on the pictures' device."""
        target = self._target(pictures)
        if target != list(pictures.shape[-2:]):
            pictures = _resize(pictures, target, self.interpolation)
        top, left = (round((edge - self.size) / 2) for edge in target)
        pictures = pictures[..., top : top + self.size, left : left + self.size]
        # In place on long rows of interleaved channels: four times as fast as channel by channel.
        rows = pictures.permute(0, 2, 3, 1).flatten(2).float()
        std = torch.tensor(self.std, device=rows.device).repeat(self.size)
        mean = torch.tensor(self.mean, device=rows.device).repeat(self.size)
        return rows.mul_(1 / (255 * std)).sub_(mean / std).unflatten(2, (self.size, 3)).permute(0, 3, 1, 2)

    def shrink(self, pictures: torch.Tensor) -> torch.Tensor:
        """Resize uint8 (..., 3, H, W) as a call does, if that makes them smaller: `augment` is then faster."""
        target = self._target(pictures)
        if target[0] * target[1] >= pictures.shape[-2] * pictures.shape[-1]:
            return pictures
        return _resize(pictures.flatten(0, -4), target, self.interpolation).unflatten(0, pictures.shape[:-3])

    def _target(self, pictures: torch.Tensor) -> list[int]:
        """Height and width before the crop."""
        height, width = pictures.shape[-2:]
        if self.squash:
            return [self.resize, self.resize]
        return [self.resize * edge // min(height, width) for edge in (height, width)]


def _resize(pictures: torch.Tensor, target: list[int], interpolation: str) -> torch.Tensor:
    """Resize uint8 (B, 3, H, W) with antialiasing, like PIL; CUDA cannot resize uint8, MPS not with antialiasing."""
    if pictures.device.type == "cuda":
        return _resize_float(pictures, target, interpolation)
    return F.interpolate(pictures.cpu(), target, mode=interpolation, antialias=True).to(pictures.device)


def _resize_float(pictures: torch.Tensor, target: list[int], interpolation: str) -> torch.Tensor:
    """Resize in float32, first the width, then the height, each rounded to grey levels, or bright edges differ."""
    resized = pictures.float()
    for size in ([pictures.shape[-2], target[1]], target):
        resized = F.interpolate(resized, size, mode=interpolation, antialias=True).round_().clamp_(0, 255)
    return resized.to(torch.uint8)


def to_tensor(decoded: np.ndarray) -> torch.Tensor:
    """View decoded uint8 pictures (B, V, H, W, 3) as (B, V, 3, H, W) in the same memory (channels last)."""
    return torch.from_numpy(decoded).permute(0, 1, 4, 2, 3)


class ViewBatches:
    """Iterate over (rows (B,), uint8 views (B, V, 3, H, W)) of a pack, decoding one batch ahead in a thread.

    rows: the places in the order of iteration, as positions in the pack. size: decode to squares of this many px
    (default: the stored size, which must then be the same for all).
    """

    def __init__(self, pack: Pack, rows: np.ndarray, batch_size: int, size: int | None = None) -> None:
        if batch_size < 1:
            raise KitError(f"batch_size: expected a whole number from 1; got {batch_size}")
        self.pack, self.rows, self.batch_size, self.size = pack, np.asarray(rows), batch_size, size

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        batches = [self.rows[start : start + self.batch_size] for start in range(0, len(self.rows), self.batch_size)]
        with ThreadPoolExecutor(max_workers=1) as thread:
            ahead = [thread.submit(self.pack.decode, rows, self.size) for rows in batches[:1]]
            for i, rows in enumerate(batches):
                decoded = ahead.pop().result()
                if i + 1 < len(batches):
                    ahead.append(thread.submit(self.pack.decode, batches[i + 1], self.size))
                yield rows, to_tensor(decoded)
