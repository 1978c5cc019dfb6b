"""The network of image-to-GPS matching: an image side on features, GeoCLIP's location encoder, and a logit scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kitlib.core.errors import KitError
from kitlib.models.retrieval.geoclip import LocationEncoder, load_geoclip
from kitlib.vision.fusion import Fusion, Standardised

MAX_SCALE = 100.0  # of similarities, as in CLIP (Radford et al. 2021): beyond it training is unstable
SIGMAS = (1.0, 16.0, 256.0)  # GeoCLIP's


class GpsMatch(Standardised):
    """Embeddings of images and places of length 1, whose dot product is their similarity.

    The image side has one hidden layer on standardised features (`fit_scale`). dim, sigmas, n_frequencies and
    location_hidden are passed to `LocationEncoder`; the defaults fit the published weights (`load_published`).
    """

    def __init__(
        self,
        n_features: int,
        *,
        dim: int = 512,
        hidden: int = 512,
        dropout: float = 0.3,
        sigmas: Sequence[float] = SIGMAS,
        n_frequencies: int = 256,
        location_hidden: int = 1024,
    ) -> None:
        super().__init__(n_features)
        self.settings: dict[str, Any] = {"n_features": n_features, "dim": dim, "hidden": hidden, "dropout": dropout}
        self.settings |= {"sigmas": [float(sigma) for sigma in sigmas], "n_frequencies": n_frequencies}
        self.settings |= {"location_hidden": location_hidden}
        self.location = LocationEncoder(dim, sigmas, n_frequencies, location_hidden)
        self.fusion = Fusion("average", 1, n_features)  # of any number of views
        first, last = nn.Linear(n_features, hidden), nn.Linear(hidden, dim)
        self.image = nn.Sequential(nn.Dropout(dropout), first, nn.GELU(), nn.Dropout(dropout), last)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def built(cls, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> GpsMatch:
        """Build the network of a file; earlier ones also name the image side, which has always been this one."""
        return cls(**{name: value for name, value in settings.items() if name != "image"})

    def load_published(self, location: str | Path) -> None:
        """Load GeoCLIP's published location encoder (`load_geoclip`).

        Raises KitError if this network has other settings than the published one.
        """
        published, expected = load_geoclip(location), {"dim": 512, "sigmas": list(SIGMAS), "n_frequencies": 256}
        expected |= {"location_hidden": 1024}
        if other := {name: self.settings[name] for name in expected if self.settings[name] != expected[name]}:
            raise KitError(f"GeoCLIP's published weights: expected {expected}; got {other}")
        self.location.load_state_dict(published.state_dict())

    def images(self, features: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (B, dim) float32 of features (B, V, D), of the views in keep (B, V) bool, at least one a row."""
        keep = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if keep is None else keep
        return F.normalize(self.image(self.standardise(self.fusion(features, keep))).float(), dim=1)

    def places(self, points: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of points (B, 2), float32 under any autocast: bfloat16 would mix up neighbours."""
        with torch.autocast(points.device.type, enabled=False):
            return F.normalize(self.location(points), dim=1)

    def logits(self, images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) float32 of images (B, dim) and places (M, dim): their similarity times the logit scale."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))  # in place: a clamp of its value would end its gradient
        with torch.autocast(images.device.type, enabled=False):
            return self.log_scale.exp() * (images @ places.T)


def embed_images(
    match: GpsMatch, features: np.ndarray, batch: int = 4096, device: torch.device | str | None = None
) -> np.ndarray:
    """Embeddings (N, dim) float32 of features (N, V, D), or (N, M, V, D): the mean over sides, plain and mirrored.

    They are computed in float32 without dropout, `batch` places at once; device as for `geoclip.embed_points`.
    """
    features = np.asarray(features)
    features = features[:, None] if features.ndim == 3 else features
    n_features = match.settings["n_features"]
    if features.ndim != 4 or features.shape[-1] != n_features or 0 in features.shape[1:] or batch < 1:
        raise KitError(
            f"features, batch: expected shape (N, V, {n_features}) or (N, M, V, {n_features}) and a batch from 1; "
            f"got {features.shape}, {batch}"
        )
    match = match.to(device) if device is not None else match
    device, was_training = match.log_scale.device, match.training
    embeddings = np.empty((len(features), match.settings["dim"]), np.float32)
    match.eval()
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(features), batch):
            part = torch.from_numpy(np.array(features[start : start + batch])).to(device)
            sides = match.images(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            embeddings[start : start + batch] = sides.mean(1).cpu().numpy()
    match.train(was_training)
    return embeddings
