"""The inputs of networks for places: cached features of a frozen encoder, or the pictures themselves."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kitlib.core import paths
from kitlib.data import pictures
from kitlib.data.places import SPLITS, Places
from kitlib.vision import embeddings, encoders
from kitlib.vision.device import best_device, best_dtype
from kitlib.vision.encoders import Encoder
from kitlib.vision.preprocess import to_tensor


class Inputs:
    """The packed pictures of both splits, and their features, computed when first used.

    encoder: as for `encoders.load`, or several joined by +, whose features stand side by side. image_size: px, 0 being
    each encoder's own. mirror: also features of mirrored places. learns: they are those of the encoder once it has
    learned; as it is, it gives plain ones, since mirrored ones gain nothing before and take as long again. dtype: the
    number type to compute in, `device.best_dtype` when None. The attribute `crop` names the part of the pictures, of
    `augment.CROPS`, whose features these are; "" the whole.
    """

    def __init__(
        self,
        places: Places,
        encoder: str,
        image_size: int = 0,
        mirror: bool = False,
        dtype: torch.dtype | None = None,
        learns: bool = False,
    ) -> None:
        self.places, self.device = places, best_device()
        self.dtype = dtype or best_dtype(self.device)
        self._specs, self._size, self._mirror = paths.joined(encoder), image_size or None, mirror
        self._learns, self.crop = learns, ""
        self._by_crop: dict[str, dict[str, torch.Tensor]] = {}
        self.packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}

    def encoder(self) -> Encoder:
        """Load the encoder with its published weights. Raises KitError for one that only gives frozen features."""
        encoders.check_trainable("+".join(self._specs))
        return encoders.load(self._specs[0], self._size)

    @property
    def features(self) -> dict[str, torch.Tensor]:
        """Cached features (N, M, V, D) float16 of each split, M being plain and mirrored."""
        if self.crop not in self._by_crop:
            self._by_crop[self.crop] = self._compute()
        return self._by_crop[self.crop]

    def _compute(self) -> dict[str, torch.Tensor]:
        folder = self.places.derived / "embeddings"
        mirror = self._mirror and not self._learns
        by_encoder = [self._embed(encoder, folder, mirror) for encoder in self._encoders]
        return {
            split: torch.cat([features[split] for features in by_encoder], -1) if len(by_encoder) > 1 else first
            for split, first in by_encoder[0].items()
        }

    @property
    def parts(self) -> list[int]:
        """The widths, summing to D, of the features that stand side by side: of several encoders, of their stages."""
        return [width for encoder in self._encoders for width in encoder.parts]

    @cached_property
    def _encoders(self) -> list[Encoder]:
        return [encoders.load(spec, self._size) for spec in self._specs]

    def embed(self, encoder: Encoder, out_dir: Path) -> dict[str, torch.Tensor]:
        """The features by an encoder with other weights, cached in `out_dir`."""
        return self._embed(encoder, out_dir, self._mirror)

    def _embed(self, encoder: Encoder, out_dir: Path, mirror: bool) -> dict[str, torch.Tensor]:
        embedded = {
            split: embeddings.embed(
                pack, encoder, out_dir, mirror, device=self.device, dtype=self.dtype, crop=self.crop
            )
            for split, pack in self.packs.items()
        }
        sides = {s: [e.features] if e.mirrored is None else [e.features, e.mirrored] for s, e in embedded.items()}
        return {split: torch.from_numpy(np.stack(arrays, axis=1)) for split, arrays in sides.items()}

    def inputs_for(self, split: str, encoder: Encoder | None, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """A batch of the places in `rows`: `features` (B, M, V, D), or uint8 `views` (B, V, 3, H, W) for an encoder."""
        if encoder is None:
            return {"features": self.features[split][rows]}
        pack = self.packs[split]
        return {"views": to_tensor(pack.decode(rows, None if len(pack.sizes) == 1 else encoder.preprocess.resize))}
