"""One fold of a regional run: regions and scalers from its training places, a regressor each, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields
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
from kitlib.models.regional.heads import Frames, RegionHeads
from kitlib.models.regional.regions import Regions
from kitlib.models.regional.scalers import RegionScaler, file_id
from kitlib.models.regional.training import EncoderTraining, HeadsTraining, Teaching
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


class Part:
    """The regions of one fold, made from the training places in `rows`, and their regressors, kept in `folder`.

    config: a `regional.Config`. val: the places that tell when to stop. held: those that are guessed.
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
        if not len(self.val[1]):
            log.warning(
                "%s: too few places to keep any back; those that are learned from tell when to stop", folder.name
            )
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
            told = f"{len(small)} regions with fewer than {self.config.min_places} places share a pooled model"
            log.info("%s: %s: %s", self.folder.name, told, ", ".join(small))

    def labels(self, split: str) -> Batch:
        """What is taught of each place (N,) of a split: its region, its scaled coordinates there, and where it is."""
        points, region = self.inputs.places.points(split), self.region[split]
        scaled = np.zeros_like(points)
        for k in np.unique(region[region >= 0]):
            scaled[region == k] = self.scalers[k].transform(points[region == k])
        place = geo.unit_vectors(np.where(region[:, None] >= 0, points, 0.0))
        tensors = {"scaled": torch.from_numpy(scaled).float(), "place": torch.from_numpy(place).float()}
        return tensors | {"region": torch.from_numpy(region)}

    def train_heads(self, max_hours: float | None = None, logger: Any = None) -> bool:
        """The heads of all regions at once, on cached features; whether they came to an end."""
        config, features = self.config, self.inputs.features["train"]
        torch.manual_seed(config.seed)
        heads = RegionHeads(self.has_own.tolist(), features.shape[-1], config.hidden, config.dropout)
        heads.begin(features[self.rows], self.medians)
        batch = max(1, min(config.heads_batch, len(self.rows) // 8))
        steps = fit.total_steps(len(self.rows), batch, 1, 1)
        module = HeadsTraining(heads, self.frames, self._teaching(), config.heads_rate, steps, config.patience)
        module.start(self._loader(self.val[0], None)(self.val[1]))
        # clipping the norm of all gradients together would tie the heads to each other
        how = {"max_hours": max_hours, "logger": logger, "gradient_clip": 0.0, "precision": "float32"}
        if not self._fit(module, self.rows, self.val[1], batch, self.folder / "heads", None, **how):
            return False
        module.best.save(self.folder / "heads.safetensors")
        for name, broken in zip(self.models, module.broken.tolist(), strict=True):
            self.forget_failure(name)
            if broken:
                self.note_failure(name, "its gradients were not finite; a lower heads_rate may help")
        return True

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
        module = EncoderTraining(encoder, self.frames, self._teaching(), config.rate, steps, start)
        how = {
            "max_hours": max_hours,
            "logger": logger,
            "devices": devices,
            "precision": device.precision_of(self.inputs.dtype),
        }
        how |= {"monitor": "val_loss", "patience": config.patience}
        return self._fit(module, rows, val, config.batch, self._model_folder(name), encoder, **how)

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

    def scaled(self, split: str, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Scaled coordinates (B, R, 2) of places in the regions that are `wanted` (B, R); elsewhere the median point's.

        So are those of places without a usable picture, and of regions whose training failed.
        """
        said = np.tile(self.medians, (len(rows), 1, 1))
        failed = np.char.startswith(self.model_of, "failed")
        wanted = wanted & ~failed & ~self.inputs.packs[split].unusable_places[rows, None]
        if not self.config.finetune:
            heads = RegionHeads.load(self.folder / "heads.safetensors").to(self.inputs.device)
            todo = np.flatnonzero(wanted.any(axis=1))
            all_regions = self._see(split, rows[todo], None, lambda features: heads(heads.fuse(features)))
            said[todo] = np.where(wanted[todo, :, None], all_regions, said[todo])
            return said
        for name in self.models:
            regions = self._regions_of(name)
            todo = np.flatnonzero(wanted[:, regions].any(axis=1))
            if len(todo):
                encoder = self.inputs.encoder()
                module = EncoderTraining(encoder, self.frames, self._teaching(), 0.0, 1, np.zeros(2))
                module.load_state_dict(checkpoints.final_weights(self._model_folder(name)))
                one = self._see(split, rows[todo], encoder, module.to(self.inputs.device).eval())
                for k in regions:
                    hit = wanted[todo, k]
                    said[todo[hit], k] = one[hit]
        return said

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
        wanted = np.zeros(likely.shape, bool)
        np.put_along_axis(wanted, top, weights > 0, axis=1)
        points = self.points(self.scaled(split, rows, wanted))
        return Guesses(
            sample_id=self.inputs.places.sample_id(split)[rows],
            state_idx=states,
            state_probs=state_probs,
            points=np.take_along_axis(points, top[..., None], axis=1),
            weights=weights / weights.sum(axis=1, keepdims=True),
            answered=answered & ~self.inputs.packs[split].unusable_places[rows],
        )

    def held_out(self) -> pd.DataFrame:
        """Each held-out place as the regressor of its true region says it, beside the truth.

        Of a place whose region has no training place the median of all is said, and no scaled coordinates are known.
        """
        split, rows = self.held
        places, region = self.inputs.places, self.region[split][rows]
        points, each, lost = places.points(split)[rows], np.arange(len(rows)), region < 0
        own = np.zeros((len(rows), len(self.regions)), bool)
        own[each[~lost], region[~lost]] = True
        scaled = self.scaled(split, rows, own)[each, region]
        said, median = np.empty((len(rows), 2)), self.regions.medians[region]
        for k in np.unique(region[~lost]):
            said[region == k] = self.scalers[k].inverse(scaled[region == k])
        true = self.labels(split)["scaled"].numpy()[rows]
        said[lost] = median[lost] = geo.geometric_median(self.regions.medians, self.regions.count)
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
                "said_latitude": said[:, 0],
                "said_longitude": said[:, 1],
                "east": true[:, 0],
                "north": true[:, 1],
                "said_east": scaled[:, 0],
                "said_north": scaled[:, 1],
                "km": geo.distance_km(said, points),
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

    def _teaching(self) -> Teaching:
        return Teaching(**{field.name: getattr(self.config, field.name) for field in fields(Teaching)})

    def _loader(self, split: str, encoder: Encoder | None) -> Callable[[np.ndarray], Batch]:
        labels = self.labels(split)
        return lambda rows: self.inputs.look(split, encoder, rows) | {n: v[rows] for n, v in labels.items()}

    def _fit(
        self,
        module: Any,
        rows: np.ndarray,
        val: np.ndarray,
        batch: int,
        folder: Path,
        encoder: Encoder | None,
        **how: Any,
    ) -> bool:
        """Train a module on `rows` of the training split until `val` says to stop; whether it came to an end."""
        config, ahead = self.config, encoder is not None
        validate = Batches(val, batch, 0, self._loader(self.val[0], encoder), shuffle=False, prefetch=ahead)
        return fit.fit(
            module,
            Batches(rows, batch, config.seed, self._loader("train", encoder), prefetch=ahead),
            folder,
            epochs=config.epochs,
            config=asdict(config),
            val_batches=validate,
            seed=config.seed,
            **how,
        ).finished

    def _see(
        self, split: str, rows: np.ndarray, encoder: Encoder | None, say: Callable[[torch.Tensor], torch.Tensor]
    ) -> np.ndarray:
        """What `say` makes of places, of their features or pictures, averaged over plain and mirrored ones."""
        config, inputs, parts = self.config, self.inputs, []
        size = config.batch if encoder else config.heads_batch
        seen = Batches(rows, size, 0, lambda r: inputs.look(split, encoder, r), shuffle=False, prefetch=True)
        with torch.inference_mode(), device.autocast(inputs.device, inputs.dtype) if encoder else nullcontext():
            for batch in seen:
                one = next(iter(batch.values())).to(inputs.device)
                sides = [one, augment.mirror(one)] if encoder else list(one.unbind(1))
                sides = sides[: 1 + config.mirror]
                parts.append(torch.stack([say(side).float() for side in sides]).mean(0).cpu().numpy())
        return np.concatenate(parts)
