"""How retrieval sees places: frozen features standardised, projected by metric learning, or matched with coordinates.

Each of the three turns features (N, M, V, D) of places, M being plain and mirrored, into what `search` takes
for queries, and for the gallery either the same of other places or, of the third, coordinates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.data.places import Places
from kitlib.models.retrieval import gps_training, metric_learning, search
from kitlib.models.retrieval.geoclip import embed_points
from kitlib.models.retrieval.gps_network import SIGMAS, GpsMatch, embed_images
from kitlib.models.retrieval.gps_training import MatchTraining
from kitlib.models.retrieval.metric_learning import MetricTraining, Projection
from kitlib.training import fit
from kitlib.training.learner import Batch, Learner
from kitlib.training.sphere import unit_vectors
from kitlib.vision import weights
from kitlib.vision.device import precision_of
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs

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
        return search.features_for(self._standard(features), self.by)

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, E) of places with features."""
        return search.features_for(self._standard(features), "heading" if self.by == "rotation" else self.by)

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
            out[rows] = torch.stack([self.projection(metric_learning.pool(side)) for side in sides]).mean(0).numpy()
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


def frozen_embedding(places: Places, encoder: str, image_size: int = 0) -> np.ndarray:
    """The training places (N, E) as a frozen encoder embeds them, standardised, the mean of their views."""
    features = Inputs(places, encoder, image_size).features["train"]
    return Frozen.fit(features, "mean").queries(features)


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
        numbers = tuple(float(text) for text in sigmas.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < scale < math.inf for scale in numbers):
        raise KitError(f"sigmas={sigmas!r}: allowed are numbers above 0 with commas between, such as 2,4,8")
    return numbers


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, n, ROWS))


T = TypeVar("T", metric_learning.MetricOptions, gps_training.MatchOptions)


def learn(
    settings: Mapping[str, Any],
    inputs: Inputs,
    group: np.ndarray,
    rows: np.ndarray,
    val: np.ndarray,
    folder: Path,
    devices: int = 1,
    max_hours: float | None = None,
) -> tuple[Projected | Matched, Encoder | None] | None:
    """Train the embedder of settings["method"], metric or gps; with it the encoder, where that learned too.

    settings: those of `retrieval.Config`. group (N,): of near-duplicates. rows: the training places that are learned
    from; val: those that the fit is validated on, which decides nothing. folder: of the fits, which go on there. None
    when max_hours are over.
    """
    began, features, points = time.monotonic(), inputs.features["train"], inputs.places.points("train")
    check(features[rows], features.shape[-1])
    torch.manual_seed(settings["seed"])
    labels = {"place": unit_vectors(points), "group": torch.tensor(group), "point": torch.tensor(points)}
    network = _network(settings, features, rows)

    def phase(name: str, encoder: Encoder | None, batch: int, epochs: int, **rates: Any) -> bool:
        def load(r: np.ndarray) -> Batch:
            return inputs.inputs_for("train", encoder, r) | {name: label[r] for name, label in labels.items()}

        size, prefetch = min(batch, math.ceil(len(rows) / devices)), encoder is not None
        batches = Batches(rows, size, settings["seed"], load, prefetch=prefetch)
        if settings["method"] == "metric":
            batches = metric_learning.near_batches(points, size, settings["seed"], load, rows=rows, prefetch=prefetch)
        steps = fit.total_steps(len(rows), size, 1, epochs, devices)
        return fit.fit(
            _training(network, encoder, settings, steps, points[rows], rates),
            batches,
            folder / name,
            epochs=epochs,
            config=dict(settings),
            val_batches=Batches(val, size, 0, load, shuffle=False, prefetch=prefetch),
            devices=devices,
            max_hours=max_hours and max_hours - (time.monotonic() - began) / 3600,
            precision=precision_of(inputs.dtype),
            seed=settings["seed"],
        ).finished

    if not phase(settings["method"], None, settings["batch"], settings["epochs"], rate=settings["rate"]):
        return None
    encoder = inputs.encoder() if settings["finetune_epochs"] else None
    if encoder:
        if settings["gradient_checkpointing"]:
            encoder.enable_checkpointing()
        rates = {"rate": settings["rate"], "encoder_rate": settings["finetune_rate"]}
        rates |= {"n_blocks": settings["finetune_blocks"], "lora_rank": settings["lora_rank"]}
        if not phase("finetune", encoder, settings["finetune_batch"], settings["finetune_epochs"], **rates):
            return None
    return (Projected(network) if isinstance(network, Projection) else Matched(network)), encoder


def _network(settings: Mapping[str, Any], features: torch.Tensor, rows: np.ndarray) -> Projection | GpsMatch:
    """The network before it learns, with the scale of the features (N, M, V, D) in `rows`."""
    n_features, dim, hidden, dropout = features.shape[-1], settings["dim"], settings["hidden"], settings["dropout"]
    if settings["method"] == "metric":
        projection = Projection(n_features, min(dim, n_features), dropout=dropout)
        projection.fit_scale(metric_learning.pool(features[rows].flatten(0, 1)))
        return projection
    if settings["geoclip"]:
        match = GpsMatch(n_features, hidden=hidden, dropout=dropout, sigmas=SIGMAS)
        match.load_published(settings["geoclip"])
    else:
        sigmas = scales(settings["sigmas"])
        sizes = {"dim": dim, "hidden": hidden, "location_hidden": hidden}
        match = GpsMatch(n_features, dropout=dropout, sigmas=sigmas, **sizes)
    match.fit_scale(features[rows].float().mean(2))
    return match


def _training(
    network: Projection | GpsMatch,
    encoder: Encoder | None,
    settings: Mapping[str, Any],
    steps: int,
    points: np.ndarray,
    rates: Mapping[str, Any],
) -> Learner:
    """The network with its losses and optimizer; points (R, 2) are where the places are that it learns from."""
    if isinstance(network, Projection):
        return MetricTraining(network, encoder, _options(metric_learning.MetricOptions, settings), steps, **rates)
    options = _options(gps_training.MatchOptions, settings)
    options = replace(options, queue=min(options.queue, len(points)))  # places that come twice teach nothing more
    return MatchTraining(network, encoder, options, steps, gallery_points=points, **rates)


def _options(kind: type[T], settings: Mapping[str, Any]) -> T:
    """The options among the settings of a run."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in names})
