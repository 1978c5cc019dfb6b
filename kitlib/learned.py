"""The embedders of retrieval that learn: a projection by metric learning, or images matched with coordinates.

Like multiview they learn on the frozen encoder's cached features first. With finetune_epochs the encoder then learns
with them from the pictures: its last blocks, or LoRA updates of its attention. A batch is learned from as a whole, so
that no gradients are gathered over several.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from kitlib import gpsmatch, metric
from kitlib.data.loader import Batches
from kitlib.embedders import Matched, Projected, check, scales
from kitlib.gpsmatch import MatchTraining
from kitlib.gpsnet import SIGMAS, GpsMatch
from kitlib.metric import MetricTraining, Projection
from kitlib.training import fit
from kitlib.training.learner import Batch, Learner
from kitlib.training.sphere import unit_vectors
from kitlib.vision.device import precision_of
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs

T = TypeVar("T", metric.Teaching, gpsmatch.Teaching)


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
            return inputs.look("train", encoder, r) | {name: label[r] for name, label in labels.items()}

        size, prefetch = min(batch, math.ceil(len(rows) / devices)), encoder is not None
        batches = Batches(rows, size, settings["seed"], load, prefetch=prefetch)
        if settings["method"] == "metric":
            batches = metric.near_batches(points, size, settings["seed"], load, rows=rows, prefetch=prefetch)
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
        projection.fit_scale(metric.pool(features[rows].flatten(0, 1)))
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
        return MetricTraining(network, encoder, _teaching(metric.Teaching, settings), steps, **rates)
    teaching = _teaching(gpsmatch.Teaching, settings)
    teaching = replace(teaching, queue=min(teaching.queue, len(points)))  # places that come twice teach nothing more
    return MatchTraining(network, encoder, teaching, steps, gallery_points=points, **rates)


def _teaching(kind: type[T], settings: Mapping[str, Any]) -> T:
    """What is taught, as the settings of the same names say."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in names})
