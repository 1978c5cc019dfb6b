"""How retrieval sees places: frozen features standardised, projected by metric learning, or matched with coordinates.

Each of the three turns features (N, M, V, D) of places, M being plain and mirrored, into what `neighbours.search` takes
for queries, and for the gallery either the same of other places or, of the third, coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kitlib import metric, neighbours
from kitlib.core.errors import KitError
from kitlib.gpsnet import GpsMatch, embed_images
from kitlib.location import embed_points
from kitlib.metric import Projection
from kitlib.vision import weights

METHODS = ("knn", "metric", "gps")
ROWS = 4096  # places that are converted to float32 at once


class Frozen:
    """Features as they are, each standardised by the training places; `by` says how views are compared."""

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor, by: str) -> None:
        self.mean, self.scale, self.by = mean, scale, by

    @classmethod
    def fit(cls, features: torch.Tensor, by: str) -> Frozen:
        """Take mean and spread of each of the D features (N, M, V, D) of the training places."""
        check(features, features.shape[-1])
        flat, n = features.flatten(0, 2), features[..., 0].numel()
        mean = sum(part.double().sum(0) for part in flat.split(ROWS)) / n
        spread = (sum(((part - mean) ** 2).sum(0) for part in flat.split(ROWS)) / n).sqrt()
        return cls(mean.float(), (1 / (spread + 1e-3 * spread.mean() + 1e-12)).float(), by)

    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, E), or (N, V, E) of which the best counts when views are compared by rotation."""
        return neighbours.features_for(self._standard(features), self.by)

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, E) of places with features."""
        return neighbours.features_for(self._standard(features), "heading" if self.by == "rotation" else self.by)

    def save(self, folder: Path) -> None:
        """Write mean and spread."""
        weights.write(folder / "frozen.safetensors", {"mean": self.mean, "scale": self.scale}, {"by": self.by})

    def _standard(self, features: torch.Tensor) -> np.ndarray:
        """(N, V, D) float32, the mean over sides."""
        check(features, len(self.mean))
        out = np.empty((len(features), *features.shape[2:]), np.float32)
        for rows in _slices(len(features)):
            out[rows] = ((features[rows].float().mean(1) - self.mean) * self.scale).numpy()
        return out


class Projected:
    """Features through a `Projection`, which makes what is near on the globe alike."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection.eval().cpu()

    @torch.inference_mode()
    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, dim), the mean over sides."""
        n_features = self.projection.settings["n_features"]
        check(features, n_features)
        out = np.empty((len(features), self.projection.settings["dim"]), np.float32)
        for rows in _slices(len(features)):
            sides = features[rows].unbind(1)
            out[rows] = torch.stack([self.projection(metric.pool(side)) for side in sides]).mean(0).numpy()
        return out

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, dim) of places with features."""
        return self.queries(features)

    def save(self, folder: Path) -> None:
        """Write the projection."""
        self.projection.save(folder / "projection.safetensors")


class Matched:
    """Features through the image side of a `GpsMatch`, and coordinates through the other."""

    def __init__(self, match: GpsMatch) -> None:
        self.match = match.eval().cpu()

    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, dim), the mean over sides."""
        check(features, self.match.settings["n_features"])
        return embed_images(self.match, features.numpy())

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, dim) of points (M, 2); what the places look like does not matter."""
        return embed_points(self.match.location, points)

    def save(self, folder: Path) -> None:
        """Write the network."""
        self.match.save(folder / "match.safetensors")


Embedder = Frozen | Projected | Matched


def load(folder: Path, method: str, by: str) -> Embedder:
    """What an embedder's `save` wrote to `folder`."""
    if method == "knn":
        return Frozen(**weights.read(folder / "frozen.safetensors")[0], by=by)
    if method == "metric":
        return Projected(Projection.load(folder / "projection.safetensors"))
    return Matched(GpsMatch.load(folder / "match.safetensors"))


def check(features: torch.Tensor, n_features: int) -> None:
    """Raises KitError for features that are not (N, M, V, n_features), or not finite."""
    if features.ndim != 4 or features.shape[-1] != n_features:
        raise KitError(
            f"features of shape {tuple(features.shape)} for a gallery made of {n_features} features a picture: both "
            "must come from the same encoder"
        )
    for rows in _slices(len(features)):
        if not (fine := features[rows].isfinite().flatten(1).all(1)).all():
            first = (rows.start or 0) + int((~fine).nonzero()[0])
            raise KitError(f"features of place {first} of {len(features)} are not finite: embed it again")


def scales(sigmas: str) -> tuple[float, ...]:
    """The numbers in a text. Raises KitError where they are none.

    >>> scales("2,4,8")
    (2.0, 4.0, 8.0)
    """
    try:
        found = tuple(float(text) for text in sigmas.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < scale < math.inf for scale in found):
        raise KitError(f"sigmas={sigmas!r}: allowed are numbers above 0 with commas between, such as 2,4,8")
    return found


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, n, ROWS))
