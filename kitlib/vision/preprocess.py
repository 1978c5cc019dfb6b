"""The V pictures of a place as one uint8 tensor (V, 3, H, W), and what happens to it on the device.

Pictures stay uint8 until the device: a quarter of the bytes to move, and resizing uint8 on a CPU is fast.

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
    """What an encoder expects of a picture; calling it turns uint8 (B, 3, H, W) into float32 (B, 3, size, size).

    The steps and their rounding are those of torchvision and the CLIP image processor: the shortest edge (or, with
    `squash`, both) resized to `resize` with antialiasing, a centre crop of `size`, then (x / 255 - mean) / std.
    """

    size: int  # px, the square that the encoder sees
    resize: int  # px, what the shortest edge becomes before the centre crop
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"  # or bilinear
    squash: bool = False  # resize both edges, whatever the aspect ratio

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear"):
            raise KitError(f"interpolation {self.interpolation!r}: allowed are bicubic and bilinear")
        if not 0 < self.size <= self.resize:
            raise KitError(f"a crop of {self.size} px does not fit into pictures resized to {self.resize} px")

    @property
    def digest(self) -> str:
        """16 hex characters that stand for every setting."""
        return storage.digest(repr(sorted(asdict(self).items())))

    def at(self, size: int) -> Preprocess:
        """The same for another input size, with the crop in proportion."""
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
        """Resize uint8 (..., 3, H, W) as by a call if that makes them smaller, so that `augment` has less to do."""
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
    """Antialiased resize of uint8 (B, 3, H, W), as PIL does it; CUDA cannot resize uint8, and MPS not antialiased."""
    if pictures.device.type == "cuda":
        return _resize_float(pictures, target, interpolation)
    return F.interpolate(pictures.cpu(), target, mode=interpolation, antialias=True).to(pictures.device)


def _resize_float(pictures: torch.Tensor, target: list[int], interpolation: str) -> torch.Tensor:
    """The same in float32: width, then height, each rounded to grey levels, or bright edges differ by many levels."""
    resized = pictures.float()
    for size in ([pictures.shape[-2], target[1]], target):
        resized = F.interpolate(resized, size, mode=interpolation, antialias=True).round_().clamp_(0, 255)
    return resized.to(torch.uint8)


def to_tensor(decoded: np.ndarray) -> torch.Tensor:
    """uint8 (B, V, H, W, 3) as decoded becomes (B, V, 3, H, W), a view on the same memory (channels last)."""
    return torch.from_numpy(decoded).permute(0, 1, 4, 2, 3)


class ViewBatches:
    """Iterate over (rows (B,), uint8 views (B, V, 3, H, W)) of a pack, decoding one batch ahead in a thread.

    rows: which places and in which order, as positions in the pack; shuffle and slice them before.
    size: decode to squares of this many px (default: as stored, which then must be the same for all).
    """

    def __init__(self, pack: Pack, rows: np.ndarray, batch_size: int, size: int | None = None) -> None:
        if batch_size < 1:
            raise KitError(f"batch_size={batch_size}: allowed is a whole number from 1")
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
