"""One fold of a regional run: its regions and scalers, a regressor for each region, and their predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.evaluation.guesses import Guesses
from kitlib.models.regional.heads import RidgeHeads
from kitlib.models.regional.regions import Regions
from kitlib.models.regional.scalers import RegionScaler, file_id
from kitlib.models.regional.training import EncoderTraining, Frames
from kitlib.training import checkpoints, fit
from kitlib.training.learner import Batch
from kitlib.vision import augment, device
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs

log = logging.getLogger(__name__)

POOLED = "pooled"
SCALERS = "scalers.npz"

Rows = tuple[str, np.ndarray]  # a split, and rows of it


def failures(folder: Path, regions: Iterable[str]) -> dict[str, str]:
    """The reasons why models of a fold's regions, and the pooled one, could not be trained, by name."""
    files = {name: _failure(folder, name) for name in (*regions, POOLED)}
    return {name: f"failed: {file.read_text().strip()}" for name, file in files.items() if file.is_file()}


def _failure(folder: Path, name: str) -> Path:
    return folder / f"failed_{file_id(name)}.txt"


class RegionalFold:
    """The regions of one fold, made from the training places in `rows`, and their regressors, saved in `folder`.

    config: a `regional.Config`. val: the places on which the training of an encoder stops early and the penalties of
    heads are chosen. held_out: the places to evaluate on.
    """

    def __init__(self, inputs: Inputs, config: Any, folder: Path, rows: np.ndarray, val: Rows, held_out: Rows) -> None:
        self.rows, self.held_out, places = rows, held_out, inputs.places
        if not len(rows):
            raise KitError(f"{folder.name} of {places.name}: expected at least one training place; got none")
        regions = Regions.make(places, rows, config.regions, config.seed)
        splits = {"train", val[0], *inputs.packs}
        self.region = {s: regions.assign(places.points(s), places.state_position(s)) for s in splits}
        points, region = places.points("train")[rows], self.region["train"][rows]
        scalers = [RegionScaler.fit(points[region == k], config.scaler) for k in range(len(regions))]
        self._set(inputs, config, folder, regions, scalers)
        self.val = val[0], val[1][self.region[val[0]][val[1]] >= 0]
        if not len(self.val[1]) and config.finetune:
            log.warning("%s: too few places to validate on: training stops early on the training places", folder.name)
            self.val = "train", rows

    @classmethod
    def load(cls, inputs: Inputs, config: Any, folder: Path) -> RegionalFold:
        """What `save` and the training wrote, without the training places: enough to guess."""
        fold, numbers = cls.__new__(cls), storage.read_npz(folder / SCALERS, ("centre", "offset_km", "unit_km"))
        rows = zip(numbers["centre"], numbers["offset_km"], numbers["unit_km"], strict=True)
        scalers = [RegionScaler.of_numbers(config.scaler, *row) for row in rows]
        fold._set(inputs, config, folder, Regions.load(folder / "regions.npz"), scalers)
        return fold

    def _set(
        self, inputs: Inputs, config: Any, folder: Path, regions: Regions, scalers: Sequence[RegionScaler]
    ) -> None:
        """Set what training and guessing share."""
        self.inputs, self.config, self.folder, self.regions, self.scalers = inputs, config, folder, regions, scalers
        pairs = zip(scalers, regions.medians, strict=True)
        self.medians = np.concatenate([scaler.transform(median[None]) for scaler, median in pairs])  # (R, 2) scaled
        self.frames = Frames(scalers)
        self.has_own = regions.count >= config.min_places

    @property
    def models(self) -> list[str]:
        """The names of the models: regions with a model of their own, and pooled if others share one."""
        return [*self.regions.names[self.has_own].tolist(), *([] if self.has_own.all() else [POOLED])]

    def save(self) -> None:
        """Write regions and scalers."""
        self.regions.save(self.folder / "regions.npz")
        for scaler, name in zip(self.scalers, self.regions.names, strict=True):
            scaler.save(self.folder, name)
        numbers = {name: [getattr(s, name) for s in self.scalers] for name in ("centre", "offset_km", "unit_km")}
        storage.write_npz(self.folder / SCALERS, numbers)
        if small := self.regions.names[~self.has_own].tolist():
            message = "%s: %d regions with fewer than %d places share a pooled model: %s"
            log.info(message, self.folder.name, len(small), self.config.min_places, ", ".join(small))

    def labels(self, split: str) -> Batch:
        """Targets of the places (N,) of a split: region, scaled coordinates in it, and unit vector."""
        points, region = self.inputs.places.points(split), self.region[split]
        scaled = np.zeros_like(points)
        for k in np.unique(region[region >= 0]):
            scaled[region == k] = self.scalers[k].transform(points[region == k])
        place = geo.unit_vectors(np.where(region[:, None] >= 0, points, 0.0))
        tensors = {"scaled": torch.from_numpy(scaled).float(), "place": torch.from_numpy(place).float()}
        return tensors | {"region": torch.from_numpy(region)}

    def fit_heads(self) -> None:
        """Fit and save the ridge regressions of all regions on cached features."""
        val = self._examples(*self.val) if len(self.val[1]) else None
        RidgeHeads.fit(*self._examples("train", self.rows), self.has_own, val).save(self.folder / "heads.npz")

    def train_encoder(self, name: str, devices: int = 1, max_hours: float | None = None, epochs: int = 0) -> bool:
        """Train a region's own encoder, or the pooled one, on all places; returns whether the training is finished.

        epochs: so many, without validation; 0: until validation does not improve any more.
        """
        config, rows, val = self.config, self.rows, self.val[1]
        if name != POOLED:
            k = self._regions_of(name)
            inside = val[self.region[self.val[0]][val] == k]
            rows, val = rows[self.region["train"][rows] == k], inside if len(inside) else val
        torch.manual_seed(config.seed)
        encoder = self.inputs.encoder()
        if config.gradient_checkpointing:
            encoder.enable_checkpointing()
        steps = fit.total_steps(len(rows), config.batch, 1, 1, devices)
        start = self.medians[self._regions_of(name)].mean(axis=0)
        module = EncoderTraining(encoder, self.frames, config, steps, start)
        validate = Batches(val, config.batch, 0, self._loader(self.val[0], encoder), shuffle=False, prefetch=True)
        stop = {} if epochs else {"val_batches": validate, "monitor": "val_loss", "patience": config.patience}
        return fit.fit(
            module,
            Batches(rows, config.batch, config.seed, self._loader("train", encoder), prefetch=True),
            self._model_folder(name),
            epochs=epochs or config.epochs,
            config=asdict(config),
            max_hours=max_hours,
            devices=devices,
            precision=device.precision_of(self.inputs.dtype),
            seed=config.seed,
            **stop,
        ).finished

    def best_epoch(self, name: str) -> int | None:
        """The epoch whose weights a model kept, None for one that this fold has not or failed to train."""
        file = self._model_folder(name) / "fit.json"
        return storage.read_json(file).get("finished", {}).get("best_epoch") if file.is_file() else None

    def is_trained(self, name: str) -> bool:
        """Whether the training of a model is finished or has failed."""
        return (self._model_folder(name) / "finished.ckpt").is_file() or _failure(self.folder, name).is_file()

    def record_failure(self, name: str, reason: str) -> None:
        """Record that a model could not be trained; the guesses of its regions are their median points."""
        with storage.atomic_write(_failure(self.folder, name)) as beside:
            beside.write_text(reason + "\n")

    def clear_failure(self, name: str) -> None:
        """Delete the record of a failure, so that the model is trained again."""
        _failure(self.folder, name).unlink(missing_ok=True)

    @property
    def model_of(self) -> list[str]:
        """The model of each of the R regions: own, pooled, or "failed: …" with the reason."""
        failed = failures(self.folder, self.regions.names)
        named = zip(self.regions.names, self.has_own, strict=True)
        return [failed.get(name, "own") if own else failed.get(POOLED, POOLED) for name, own in named]

    def scaled(self, split: str, rows: np.ndarray, likely: np.ndarray) -> np.ndarray:
        """Scaled coordinates (B, R, 2) predicted for places in their `likely` (B, R) regions.

        Elsewhere, without a usable picture, and in regions whose training failed they are those of the median point.
        """
        scaled = np.tile(self.medians, (len(rows), 1, 1))
        failed = np.char.startswith(self.model_of, "failed")
        mask = likely & ~failed & ~self.inputs.packs[split].unusable_places[rows, None]
        if not self.config.finetune:
            selected = np.flatnonzero(mask.any(axis=1))
            offsets = RidgeHeads.load(self.folder / "heads.npz").predict(self._features(split, rows[selected]))
            scaled[selected] += np.where(mask[selected, :, None], offsets, 0.0)
            return scaled
        for name in self.models:
            regions = self._regions_of(name)
            selected = np.flatnonzero(mask[:, regions].any(axis=1))
            if len(selected):
                module = EncoderTraining(self.inputs.encoder(), self.frames, self.config, 1, np.zeros(2))
                module.load_state_dict(checkpoints.final_weights(self._model_folder(name)))
                predicted = self._predict(split, rows[selected], module.to(self.inputs.device).eval())
                scaled[np.ix_(selected, regions)] = np.where(
                    mask[np.ix_(selected, regions)][..., None], predicted[:, None], self.medians[regions]
                )
        return scaled

    def points(self, scaled: np.ndarray) -> np.ndarray:
        """Points (B, R, 2) of scaled coordinates (B, R, 2)."""
        return np.stack([scaler.inverse_transform(scaled[:, k]) for k, scaler in enumerate(self.scalers)], axis=1)

    def guess(
        self, split: str, rows: np.ndarray, states: np.ndarray, state_probs: np.ndarray, answered: np.ndarray
    ) -> Guesses:
        """Guesses for places (B,) from a router's states (S,) and probabilities (B, S): a point in each likely region.

        The weight of a region's point is the probability of the region; the `routes` likeliest regions are used.
        """
        likely = self.regions.probabilities(state_probs)
        top = np.argsort(-likely, axis=1, kind="stable")[:, : self.config.routes]
        weights = np.take_along_axis(likely, top, axis=1)
        routes = np.zeros(likely.shape, bool)
        np.put_along_axis(routes, top, weights > 0, axis=1)
        points = self.points(self.scaled(split, rows, routes))
        return Guesses(
            sample_id=self.inputs.places.sample_id(split)[rows],
            state_idx=states,
            state_probs=state_probs,
            points=np.take_along_axis(points, top[..., None], axis=1),
            weights=weights / weights.sum(axis=1, keepdims=True),
            answered=answered & ~self.inputs.packs[split].unusable_places[rows],
        )

    def evaluate(self) -> pd.DataFrame:
        """Truth and prediction of each held-out place, the latter by the regressor of its true region.

        A place whose region has no training place gets the median point of all, and no scaled coordinates.
        """
        split, rows = self.held_out
        places, region = self.inputs.places, self.region[split][rows]
        points, lost = places.points(split)[rows], region < 0
        scaled = self.scaled(split, rows, region[:, None] == np.arange(len(self.regions)))
        predicted, scaled = (array[np.arange(len(rows)), region] for array in (self.points(scaled), scaled))
        median = self.regions.medians[region]
        true = self.labels(split)["scaled"].numpy()[rows]
        predicted[lost] = median[lost] = geo.geometric_median(self.regions.medians, self.regions.count)
        scaled[lost] = true[lost] = np.nan
        names = np.where(lost, places.rows(split)["state"].to_numpy(str)[rows], self.regions.names[region])
        return pd.DataFrame(
            {
                "sample_id": places.sample_id(split)[rows],
                "region": names,
                "model": np.where(lost, "failed: no training place is left", np.array(self.model_of)[region]),
                "train": np.where(lost, 0, self.regions.count[region]),
                "unit_km": np.where(lost, np.nan, np.array([scaler.unit_km for scaler in self.scalers])[region]),
                "latitude": points[:, 0],
                "longitude": points[:, 1],
                "guess_latitude": predicted[:, 0],
                "guess_longitude": predicted[:, 1],
                "east": true[:, 0],
                "north": true[:, 1],
                "guess_east": scaled[:, 0],
                "guess_north": scaled[:, 1],
                "km": geo.distance_km(predicted, points),
                "median_point_km": geo.distance_km(median, points),
            }
        )

    def _regions_of(self, name: str) -> np.ndarray:
        """The numbers of the regions of a model."""
        return np.flatnonzero(~self.has_own if name == POOLED else self.regions.names == name)

    def _model_folder(self, name: str) -> Path:
        return self.folder / (POOLED if name == POOLED else f"region_{file_id(name)}")

    def _loader(self, split: str, encoder: Encoder) -> Callable[[np.ndarray], Batch]:
        labels = self.labels(split)
        return lambda rows: self.inputs.inputs_for(split, encoder, rows) | {n: v[rows] for n, v in labels.items()}

    def _features(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Cached features (B, D) of places, the mean over sides and views."""
        features = self.inputs.features[split][rows].float()
        return features[:, : 1 + self.config.mirror].mean(dim=(1, 2)).numpy()

    def _examples(self, split: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (B, D), regions (B,), and scaled offsets (B, 2) from the region's median, of usable places."""
        rows = rows[~self.inputs.packs[split].unusable_places[rows]]
        region = self.region[split][rows]
        return self._features(split, rows), region, self.labels(split)["scaled"].numpy()[rows] - self.medians[region]

    def _predict(self, split: str, rows: np.ndarray, module: EncoderTraining) -> np.ndarray:
        """Scaled coordinates (B, 2) by the encoder of a region, averaged over plain and mirrored pictures."""
        inputs, parts, encoder = self.inputs, [], module.encoder
        batches = Batches(
            rows, self.config.batch, 0, lambda r: inputs.inputs_for(split, encoder, r), shuffle=False, prefetch=True
        )
        with torch.inference_mode(), device.autocast(inputs.device, inputs.dtype):
            for batch in batches:
                views = batch["views"].to(inputs.device)
                sides = [views, augment.mirror(views)] if self.config.mirror else [views]
                parts.append(torch.stack([module(side).float() for side in sides]).mean(0).cpu().numpy())
        return np.concatenate(parts)
