"""The network that matches images and places: an image side on features, GeoCLIP's location encoder, a logit scale."""

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
from kitlib.models.retrieval.geoclip import (
    ImageProjection,
    LocationEncoder,
    load_geoclip,
    load_image_projection,
    load_logit_scale,
)
from kitlib.vision.fusion import Fusion, Standardised

IMAGES = ("mlp", "geoclip")
MAX_SCALE = 100.0  # of similarities, as in CLIP (Radford et al. 2021): beyond it training is unstable
SIGMAS = (1.0, 16.0, 256.0)  # GeoCLIP's


class GpsMatch(Standardised):
    """Images and places as embeddings of length 1, whose dot product says how well they go together.

    image: "mlp", a hidden layer on standardised features (`fit_scale`); or "geoclip", the published projection's form,
    for the 768 projected features of CLIP ViT-L/14 as they are. dim, sigmas, n_frequencies and location_hidden are
    those of `LocationEncoder`; the defaults fit the published weights (`load_published`).
    """

    def __init__(
        self,
        n_features: int,
        *,
        dim: int = 512,
        hidden: int = 512,
        dropout: float = 0.3,
        image: str = "mlp",
        sigmas: Sequence[float] = SIGMAS,
        n_frequencies: int = 256,
        location_hidden: int = 1024,
    ) -> None:
        super().__init__(n_features)
        if image not in IMAGES or min(n_features, hidden) < 1 or not 0 <= dropout < 1:
            raise KitError(
                f"image side {image!r} of {n_features} features, hidden {hidden}, dropout {dropout}: allowed are "
                f"{' or '.join(IMAGES)}, whole numbers from 1, and a dropout from 0 to below 1"
            )
        self.settings: dict[str, Any] = {"n_features": n_features, "dim": dim, "hidden": hidden, "dropout": dropout}
        self.settings |= {"image": image, "sigmas": [float(sigma) for sigma in sigmas]}
        self.settings |= {"n_frequencies": n_frequencies, "location_hidden": location_hidden}
        self.location = LocationEncoder(dim, sigmas, n_frequencies, location_hidden)
        self.fusion = Fusion("average", 1, n_features)  # of any number of views
        self.image: nn.Module = ImageProjection(n_features, dim)
        if image == "mlp":
            first, last = nn.Linear(n_features, hidden), nn.Linear(hidden, dim)
            self.image = nn.Sequential(nn.Dropout(dropout), first, nn.GELU(), nn.Dropout(dropout), last)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def fit_scale(self, features: torch.Tensor) -> None:
        """As `Standardised`, for an image side "mlp" only."""
        if self.settings["image"] != "mlp":
            raise KitError(f"scale of features: expected the image side 'mlp'; got {self.settings['image']!r}")
        super().fit_scale(features)

    def load_published(
        self, location: str | Path, image: str | Path | None = None, logit_scale: str | Path | None = None
    ) -> None:
        """Take GeoCLIP's published weights, from the files that `location`'s loaders read; image: if it is "geoclip".

        Raises KitError if this network is not made like the published one.
        """
        published, wanted = load_geoclip(location), {"dim": 512, "sigmas": list(SIGMAS), "n_frequencies": 256}
        wanted |= {"location_hidden": 1024} | ({"image": "geoclip", "n_features": 768} if image else {})
        if other := {name: self.settings[name] for name in wanted if self.settings[name] != wanted[name]}:
            raise KitError(f"GeoCLIP's published weights do not fit {other}: allowed are {wanted}")
        self.location.load_state_dict(published.state_dict())
        if image:
            self.image.load_state_dict(load_image_projection(image).state_dict())
        if logit_scale:
            with torch.no_grad():
                self.log_scale.fill_(math.log(load_logit_scale(logit_scale)))

    def images(self, features: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (B, dim) float32 of features (B, V, D), of the views that keep (B, V) bool says, at least one."""
        keep = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if keep is None else keep
        return F.normalize(self.image(self.standardise(self.fusion(features, keep))).float(), dim=1)

    def places(self, points: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) float32 of points (B, 2), under any autocast: bfloat16 would mix up neighbours."""
        with torch.autocast(points.device.type, enabled=False):
            return F.normalize(self.location(points), dim=1)

    def logits(self, images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) float32 of images (B, dim) and places (M, dim): similarity times the logit scale."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))  # in place: a clamp of its value would end its gradient
        with torch.autocast(images.device.type, enabled=False):
            return self.log_scale.exp() * (images @ places.T)


def embed_images(
    match: GpsMatch, features: np.ndarray, batch: int = 4096, device: torch.device | str | None = None
) -> np.ndarray:
    """Embeddings float32 (N, dim) of features (N, V, D), or (N, M, V, D): the mean over sides, plain and mirrored.

    In float32 and without dropout, `batch` places at once; device: where to, as for `location.embed_points`.
    """
    features = np.asarray(features)
    features = features[:, None] if features.ndim == 3 else features
    n_features = match.settings["n_features"]
    if features.ndim != 4 or features.shape[-1] != n_features or 0 in features.shape[1:] or batch < 1:
        raise KitError(
            f"features of shape {features.shape} in batches of {batch}: wanted are (N, V, {n_features}) or "
            f"(N, M, V, {n_features}), and at least 1"
        )
    match = match.to(device) if device is not None else match
    there, was_training = match.log_scale.device, match.training
    embeddings = np.empty((len(features), match.settings["dim"]), np.float32)
    match.eval()
    with torch.inference_mode(), torch.autocast(there.type, enabled=False):
        for start in range(0, len(features), batch):
            some = torch.from_numpy(np.array(features[start : start + batch])).to(there)
            sides = match.images(some.flatten(0, 1)).unflatten(0, some.shape[:2])
            embeddings[start : start + batch] = sides.mean(1).cpu().numpy()
    match.train(was_training)
    return embeddings
