"""One fold of a regional run: regions and scalers from its training places, a regressor each, and their predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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

Rows = tuple[str, np.ndarray]  # a split, and row numbers in it


def failures(folder: Path) -> dict[str, str]:
    """Why which models of a fold could not be trained, by name."""
    files = sorted(folder.glob("failed_*.txt"))
    return {unquote(file.stem.removeprefix("failed_")): f"failed: {file.read_text().strip()}" for file in files}


class RegionalFold:
    """The regions of one fold, made from the training places in `rows`, and their regressors, saved in `folder`.

    config: a `regional.Config`. val: the places that stop an encoder's training and choose the penalties of heads.
    held: the held-out ones.
    """

    def __init__(self, inputs: Inputs, config: Any, folder: Path, rows: np.ndarray, val: Rows, held: Rows) -> None:
        self.inputs, self.config, self.folder, self.rows, self.held = inputs, config, folder, rows, held
        places = inputs.places
        if not len(rows):
            raise KitError(f"{folder.name} of {places.name}: no training place is left to learn from")
        self.regions = Regions.make(places, rows, config.regions, config.seed)
        splits = {"train", val[0], *inputs.packs}
        self.region = {s: self.regions.of(places.points(s), places.state_position(s)) for s in splits}
        points, region = places.points("train")[rows], self.region["train"][rows]
        self.scalers = [RegionScaler.fit(points[region == k], config.scaler) for k in range(len(self.regions))]
        pairs = zip(self.scalers, self.regions.medians, strict=True)
        self.medians = np.concatenate([scaler.transform(median[None]) for scaler, median in pairs])  # (R, 2) scaled
        self.frames = Frames(self.scalers)
        self.has_own = self.regions.count >= config.min_places
        self.val = val[0], val[1][self.region[val[0]][val[1]] >= 0]
        if not len(self.val[1]) and config.finetune:
            log.warning("%s: too few places to validate on: the training places stop the training", folder.name)
            self.val = "train", rows

    @property
    def models(self) -> list[str]:
        """The names of what is trained: the regions with a model of their own, and pooled where others share one."""
        return [*self.regions.names[self.has_own].tolist(), *([] if self.has_own.all() else [POOLED])]

    def save(self) -> None:
        """Write regions and scalers."""
        self.regions.save(self.folder / "regions.npz")
        for scaler, name in zip(self.scalers, self.regions.names, strict=True):
            scaler.save(self.folder, name)
        if small := self.regions.names[~self.has_own].tolist():
            message = "%s: %d regions with fewer than %d places share a pooled model: %s"
            log.info(message, self.folder.name, len(small), self.config.min_places, ", ".join(small))

    def labels(self, split: str) -> Batch:
        """The targets of each place (N,) of a split: its region, its scaled coordinates there, and its unit vector."""
        points, region = self.inputs.places.points(split), self.region[split]
        scaled = np.zeros_like(points)
        for k in np.unique(region[region >= 0]):
            scaled[region == k] = self.scalers[k].transform(points[region == k])
        place = geo.unit_vectors(np.where(region[:, None] >= 0, points, 0.0))
        tensors = {"scaled": torch.from_numpy(scaled).float(), "place": torch.from_numpy(place).float()}
        return tensors | {"region": torch.from_numpy(region)}

    def fit_heads(self) -> None:
        """Fit and save the ridge regressions of all regions on cached features."""
        split, val = self.val
        examples = self._examples("train", self.rows)
        heads = RidgeHeads.fit(*examples, self.has_own, self._examples(split, val) if len(val) else None)
        heads.save(self.folder / "heads.npz")

    def train_encoder(self, name: str, devices: int = 1, max_hours: float | None = None, logger: Any = None) -> bool:
        """A region's own encoder, or the pooled one, which learns from all places; whether it came to an end."""
        config, rows, val = self.config, self.rows, self.val[1]
        if name != POOLED:
            k = self._regions_of(name)
            own = val[self.region[self.val[0]][val] == k]
            rows, val = rows[self.region["train"][rows] == k], own if len(own) else val
        torch.manual_seed(config.seed)
        encoder = self.inputs.encoder()
        if config.gradient_checkpointing:
            encoder.enable_checkpointing()
        steps = fit.total_steps(len(rows), config.batch, 1, 1, devices)
        start = self.medians[self._regions_of(name)].mean(axis=0)
        module = EncoderTraining(encoder, self.frames, config, steps, start)
        validate = Batches(val, config.batch, 0, self._loader(self.val[0], encoder), shuffle=False, prefetch=True)
        return fit.fit(
            module,
            Batches(rows, config.batch, config.seed, self._loader("train", encoder), prefetch=True),
            self._model_folder(name),
            epochs=config.epochs,
            config=asdict(config),
            val_batches=validate,
            max_hours=max_hours,
            devices=devices,
            precision=device.precision_of(self.inputs.dtype),
            seed=config.seed,
            logger=logger,
            monitor="val_loss",
            patience=config.patience,
        ).finished

    def is_trained(self, name: str) -> bool:
        """Whether a model's training came to an end, good or bad."""
        return (self._model_folder(name) / "finished.ckpt").is_file() or self._failure(name).is_file()

    def note_failure(self, name: str, why: str) -> None:
        """Remember that a model could not be trained; its regions are guessed by their median points."""
        with storage.atomic_write(self._failure(name)) as beside:
            beside.write_text(why + "\n")

    def forget_failure(self, name: str) -> None:
        """Let a model be trained again."""
        self._failure(name).unlink(missing_ok=True)

    @property
    def model_of(self) -> list[str]:
        """What guesses in each of the R regions: own, pooled, or "failed: …" with the reason."""
        failed = failures(self.folder)
        named = zip(self.regions.names, self.has_own, strict=True)
        return [failed.get(name, "own") if own else failed.get(POOLED, POOLED) for name, own in named]

    def scaled(self, split: str, rows: np.ndarray, likely: np.ndarray) -> np.ndarray:
        """Scaled coordinates (B, R, 2) of places in their `likely` (B, R) regions; elsewhere the median point's.

        So are those of places without a usable picture, and of regions whose training failed.
        """
        scaled = np.tile(self.medians, (len(rows), 1, 1))
        failed = np.char.startswith(self.model_of, "failed")
        todo = likely & ~failed & ~self.inputs.packs[split].unusable_places[rows, None]
        if not self.config.finetune:
            some = np.flatnonzero(todo.any(axis=1))
            offsets = self.heads.predict(self._features(split, rows[some]))
            scaled[some] += np.where(todo[some, :, None], offsets, 0.0)
            return scaled
        for name in self.models:
            regions = self._regions_of(name)
            some = np.flatnonzero(todo[:, regions].any(axis=1))
            if len(some):
                module = EncoderTraining(self.inputs.encoder(), self.frames, self.config, 1, np.zeros(2))
                module.load_state_dict(checkpoints.final_weights(self._model_folder(name)))
                predicted = self._predict(split, rows[some], module.to(self.inputs.device).eval())
                for k in regions:
                    hit = todo[some, k]
                    scaled[some[hit], k] = predicted[hit]
        return scaled

    @cached_property
    def heads(self) -> RidgeHeads:
        """The saved heads."""
        return RidgeHeads.load(self.folder / "heads.npz")

    def points(self, scaled: np.ndarray) -> np.ndarray:
        """Points (B, R, 2) of scaled coordinates (B, R, 2)."""
        return np.stack([scaler.inverse(scaled[:, k]) for k, scaler in enumerate(self.scalers)], axis=1)

    def guess(
        self, split: str, rows: np.ndarray, states: np.ndarray, state_probs: np.ndarray, answered: np.ndarray
    ) -> Guesses:
        """Guesses of places (B,): the router's states (S,) and probabilities (B, S), and points in the likely regions.

        A region's point weighs what the router gives the region; the `routes` likeliest take part.
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

    def held_out(self) -> pd.DataFrame:
        """The prediction for each held-out place by the regressor of its true region, beside the truth.

        A place whose region has no training place gets the median of all, and no scaled coordinates.
        """
        split, rows = self.held
        places, region = self.inputs.places, self.region[split][rows]
        points, each, lost = places.points(split)[rows], np.arange(len(rows)), region < 0
        own = np.zeros((len(rows), len(self.regions)), bool)
        own[each[~lost], region[~lost]] = True
        scaled = self.scaled(split, rows, own)[each, region]
        predicted, median = np.empty((len(rows), 2)), self.regions.medians[region]
        for k in np.unique(region[~lost]):
            predicted[region == k] = self.scalers[k].inverse(scaled[region == k])
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
        """The numbers of the regions that a model is for."""
        return np.flatnonzero(~self.has_own if name == POOLED else self.regions.names == name)

    def _model_folder(self, name: str) -> Path:
        return self.folder / (POOLED if name == POOLED else f"region_{file_id(name)}")

    def _failure(self, name: str) -> Path:
        return self.folder / f"failed_{file_id(name)}.txt"

    def _loader(self, split: str, encoder: Encoder) -> Callable[[np.ndarray], Batch]:
        labels = self.labels(split)
        return lambda rows: self.inputs.inputs_for(split, encoder, rows) | {n: v[rows] for n, v in labels.items()}

    def _features(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The mean (B, D) over sides and views of the cached features of places."""
        features = self.inputs.features[split][rows].float()
        return features[:, : 1 + self.config.mirror].mean(dim=(1, 2)).numpy()

    def _examples(self, split: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (B, D), regions (B,) and scaled coordinates from the region's median (B, 2) of usable places."""
        rows = rows[~self.inputs.packs[split].unusable_places[rows]]
        region = self.region[split][rows]
        return self._features(split, rows), region, self.labels(split)["scaled"].numpy()[rows] - self.medians[region]

    def _predict(self, split: str, rows: np.ndarray, module: EncoderTraining) -> np.ndarray:
        """Scaled coordinates (B, 2) by one region's encoder, averaged over plain and mirrored pictures."""
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
