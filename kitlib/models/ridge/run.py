"""Ridge: states and geocells by ridge regression on frozen features, in closed form and in seconds.

The targets are soft: a state and a cell count the less the further a place lies from them. The fit needs no epochs and
no rates, so that it is an honest baseline for every encoder, and a member that errs elsewhere than trained heads.

    run = train(Config(encoder="tiny#stages"), places, "ridge")
    run.metrics["oof"]["final"]

Each fold's checkpoints/fold_<k>/ holds ridge.safetensors: the scale of the features, the weights, states and cells.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitlib import geo
from kitlib.evaluation import baselines, guesses, metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.geo import geocells
from kitlib.models.ridge import regression
from kitlib.models.ridge.config import Config
from kitlib.training.session import EncoderSession
from kitlib.vision import weights

log = logging.getLogger(__name__)

FLOOR = 1e-4  # of a state's score and of a cell's, as a regression can be negative
ROWS = 4096  # places that are converted to float32 at once


class Session(EncoderSession[Config]):
    """Fits, saves and queries the regression of each fold."""

    family = "ridge"
    config_type = Config

    def fit_fold(self, fold: int) -> None:
        """Fit the regression on the cached features of the fold's training places."""
        config, places = self.config, self.places
        rows = np.flatnonzero(~self.held_out(fold) & ~self.packs["train"].unusable_places)
        points, position = places.points("train")[rows], places.state_position("train")[rows]
        present, state, count = np.unique(position, return_inverse=True, return_counts=True)
        centres = geo.group_medians(points, state, len(present))
        cells = geocells.make(points, state, config.places_per_cell, max(1, config.places_per_cell // 10), config.seed)
        middles = cells[["latitude", "longitude"]].to_numpy()
        cell = geocells.assign(points, cells, state)
        targets = [_soft(points, centres, state, config.soft_km), _soft(points, middles, cell, config.soft_km)]
        pooled = _pooled(self.features["train"], rows)
        more, guess = self.pseudo_labels(fold)
        mean, spread = pooled.mean(axis=0), pooled.std(axis=0)
        scale = 1 / (spread + 1e-3 * spread.mean() + 1e-12)
        if len(more):
            likely = guess.state_probs[:, present]
            cell = geocells.assign(guess.point(), cells, likely.argmax(axis=1))
            guessed = [likely / likely.sum(axis=1, keepdims=True), _soft(guess.point(), middles, cell, config.soft_km)]
            targets = [np.vstack(pair) for pair in zip(targets, guessed, strict=True)]
            pooled = np.vstack([pooled, _pooled(self.features["test"], more)])
        scaled = regression.scaled(pooled, mean, scale, self.parts)
        km = geo.distance_km(points[:, None], middles[None])
        judges = [
            functools.partial(_lost, state),
            functools.partial(_km, km, geo.distance_km(middles[:, None], middles)),
        ]
        fitted, intercept, penalties = regression.fit(scaled, targets, judges, len(rows))
        log.info("fold %d: %d places, %d features, penalties %.3g and %.3g", fold, *scaled.shape, *penalties)
        arrays = {"mean": mean, "scale": scale, "weights": fitted, "intercept": intercept, "cells": middles}
        arrays |= {"state_idx": places.states["state_idx"].to_numpy()[present], "count": count, "centres": centres}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        weights.write(self._file(fold), tensors, {"parts": self.parts})

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """Guesses of a fold's regression for the places in `rows`, for all when None."""
        tensors, settings = weights.read(self._file(fold))
        model: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        pack = self.packs[split]
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        frequency, middle = (
            model["count"] / model["count"].sum(),
            geo.geometric_median(model["centres"], model["count"]),
        )
        parts = [baselines.constant(pack.sample_id[rows[blind]], model["state_idx"], frequency, middle)]
        for batch in np.array_split(rows[~blind], max(1, len(rows) // ROWS)):
            pooled = _pooled(self.features[split], batch)
            scaled = regression.scaled(pooled, model["mean"], model["scale"], settings["parts"])
            scores = (scaled @ model["weights"] + model["intercept"]).clip(FLOOR)
            parts.append(
                _guesses(pack.sample_id[batch], scores, model["state_idx"], model["cells"], self.config.points)
            )
        return guesses.stack(parts).on_states(self.places.states["state_idx"].to_numpy()).at(pack.sample_id[rows])

    def _file(self, fold: int) -> Path:
        return self.folder(fold) / "ridge.safetensors"


train, train_fold, predict = Session.train, Session.train_fold, Session.predict


def _pooled(features: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """The mean (R, D) float32 over sides and views of the features (N, M, V, D) of some places."""
    out = np.empty((len(rows), features.shape[-1]), np.float32)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        out[start : start + ROWS] = features[part].float().mean((1, 2)).numpy()
    return out


def _soft(points: np.ndarray, centres: np.ndarray, true: np.ndarray, soft_km: float) -> np.ndarray:
    """Targets (N, C) float32 of places (N, 2) with true classes (N,): none weighs more than the true one."""
    km = geo.distance_km(points[:, None], centres[None])
    beyond = (km - np.take_along_axis(km, true[:, None], 1)).clip(0)
    share = np.exp(-beyond / soft_km)
    return (share / share.sum(axis=1, keepdims=True)).astype(np.float32)


def _lost(state: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    """The mean part of the state score that predictions (J, S) for some rows with true states (N,) do not earn."""
    own = np.take_along_axis(scores, state[rows, None], 1)
    earned = np.array([*metrics.WEIGHTS, *[0.0] * scores.shape[1]])
    return 1 - float(earned[(scores > own).sum(axis=1)].mean())


def _km(km: np.ndarray, between: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    """The mean km (N, C) to the cell of least expected distance by predictions (J, C), cells being `between` apart."""
    chosen = (scores.clip(FLOOR) @ between).argmin(axis=1)
    return float(km[rows, chosen].mean())


def _guesses(
    sample_id: np.ndarray, scores: np.ndarray, state_idx: np.ndarray, cells: np.ndarray, n_points: int
) -> Guesses:
    """Guesses from the scores (N, S + C) of states and cells."""
    states, by_cell = scores[:, : len(state_idx)], scores[:, len(state_idx) :]
    top = np.argsort(-by_cell, axis=1)[:, :n_points]
    share = np.take_along_axis(by_cell, top, 1)
    return Guesses(
        sample_id=sample_id,
        state_idx=state_idx,
        state_probs=states / states.sum(axis=1, keepdims=True),
        points=cells[top],
        weights=share / share.sum(axis=1, keepdims=True),
        answered=np.ones(len(sample_id), bool),
    )
