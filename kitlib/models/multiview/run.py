"""Multiview: one vision encoder on all views of a place, fused, with a state, a GPS and a geocell head.

Training has two phases, as in the published recipe: the heads are trained on cached features of the frozen encoder,
then the encoder's last blocks (or all, or LoRA) are fine-tuned with them. The first phase takes minutes; the second
gains most.

    run = train(Config(encoder="tiny", finetune_blocks=-1), places, "first")    # a run that was cut short is resumed
    run.metrics["oof"]["final"]

Each fold's checkpoints/fold_<k>/ holds heads.safetensors, encoder.safetensors (the trained weights only), and the
history of both fits under heads/ and finetune/. The last epoch is kept: the held-out fold selects nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitlib.core.processes import is_first_process
from kitlib.core.progress import Bar
from kitlib.data.loader import Batches
from kitlib.data.places import Places
from kitlib.evaluation import guesses
from kitlib.evaluation.crossval import Unfinished
from kitlib.evaluation.guesses import Guesses
from kitlib.models.multiview.config import Config
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.multiview.training import Geolocator
from kitlib.training import fit
from kitlib.training.learner import Batch, encode
from kitlib.training.session import EncoderSession
from kitlib.training.sphere import unit_vectors
from kitlib.vision import weights
from kitlib.vision.device import autocast, precision_of
from kitlib.vision.encoders import Encoder


class Session(EncoderSession[Config]):
    """Trains, saves and queries the encoder and heads of each fold."""

    family = "multiview"
    config_type = Config

    def fit_fold(self, fold: int) -> None:
        """Train the heads on cached features, then encoder and heads on pictures."""
        config, folder = self.config, self.folder(fold)
        held_out, usable = self.held_out(fold), ~self.packs["train"].unusable_places
        rows, val = np.flatnonzero(~held_out & usable), np.flatnonzero(held_out & usable)
        features, classes = self.features["train"], Classes.from_places(self.places, rows, config.places_per_cell)
        labels, (more, guess) = _labels(self.places, classes), self.pseudo_labels(fold)
        torch.manual_seed(config.seed)
        V, D = features.shape[2:]
        heads = Heads(classes, V, D, config.fusion, config.hidden, config.dropout, config.tie)
        heads.fit_scale(features[rows])
        n = len(held_out)
        if len(more):  # the rows of test places come after those of training places
            rows, labels = np.append(rows, n + more), _with_guesses(labels, classes, more, guess)

        def train_phase(phase: str, encoder: Encoder | None, batch: int, turns: int, epochs: int, **rates: Any) -> None:
            def load_batch(r: np.ndarray) -> Batch:
                split = {"train": r[r < n], "test": r[r >= n] - n}
                parts = [self.inputs_for(name, encoder, some) for name, some in split.items() if len(some)]
                inputs = parts[0]
                if len(parts) > 1:
                    inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                    r = np.concatenate([r[r < n], r[r >= n]])
                return inputs | {name: label[r] for name, label in labels.items()}

            steps = fit.total_steps(len(rows), batch, turns, epochs, self.devices)
            fitted = fit.fit(
                Geolocator(heads, encoder, config, steps, **rates),
                Batches(rows, batch, config.seed, load_batch, prefetch=encoder is not None),
                folder / phase,
                epochs=epochs,
                config=asdict(config),
                val_batches=Batches(val, batch, 0, load_batch, shuffle=False, prefetch=True)
                if encoder and len(val)
                else None,
                accumulate=turns,
                devices=self.devices,
                max_hours=self.hours_left,
                precision=precision_of(self.dtype),
                seed=config.seed,
                average=config.average,
            )
            if not fitted.finished:
                raise Unfinished

        batch = max(1, min(config.heads_batch, len(rows) // 8) // self.devices)
        train_phase("heads", None, batch, 1, config.heads_epochs, rate=config.heads_rate)
        encoder = self.encoder() if config.finetune_epochs else None
        if encoder:
            if config.gradient_checkpointing:
                encoder.enable_checkpointing()
            batch = min(config.device_batch, math.ceil(config.finetune_batch / self.devices))
            turns = max(1, round(config.finetune_batch / (batch * self.devices)))
            rates = {"rate": config.finetune_heads_rate, "encoder_rate": config.finetune_rate}
            rates |= {"n_blocks": config.finetune_blocks, "lora_rank": config.lora_rank}
            train_phase("finetune", encoder, batch, turns, config.finetune_epochs, **rates)
        if is_first_process():
            heads.save(folder / "heads.safetensors")
            if encoder:
                weights.save_encoder(encoder, folder / "encoder.safetensors")

    def load_heads(self, path: Path) -> Any:
        """The heads of a fold, the kit's own or published ones (`published`)."""
        from kitlib.models.multiview import published

        return published.load_heads(path)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """Guesses of a fold's saved model for the places in `rows`, for all when None."""
        config, folder, pack = self.config, self.folder(fold), self.packs[split]
        heads, encoder = self.load_heads(folder / "heads.safetensors").to(self.device), None
        if config.finetune_epochs:
            encoder = self.encoder()
            weights.load_encoder(encoder.to(self.device), folder / "encoder.safetensors")
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts = [heads.classes.fallback(pack.sample_id[rows[blind]])]

        def load_batch(r: np.ndarray) -> dict[str, Any]:
            return self.inputs_for(split, encoder, r) | {"row": r}

        size = config.device_batch if encoder else config.heads_batch
        batches = Batches(rows[~blind], size, 0, load_batch, shuffle=False, prefetch=True) if not blind.all() else ()
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for batch in Bar(batches, desc=f"fold {fold}: guessing {split}", leave=False):
                row = batch.pop("row")
                # a view without a usable picture is left out, as views are in training, if they are there
                keep = torch.from_numpy(pack.usable[row] | (not config.view_dropout)).to(self.device)
                turned = keep[:, [-i % keep.shape[1] for i in range(keep.shape[1])]]  # as by augment.mirror
                sides = [(False, keep), (True, turned)][: 1 + config.mirror]
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                outputs = [heads(encode(batch, encoder, mirrored), kept) for mirrored, kept in sides]
                parts.append(heads.guess(pack.sample_id[row], outputs, config.points, config.gps_share))
        return guesses.stack(parts).on_states(self.places.states["state_idx"].to_numpy()).at(pack.sample_id[rows])


train, train_fold, predict = Session.train, Session.train_fold, Session.predict


def _labels(places: Places, classes: Classes) -> Batch:
    """Targets of all training places (N,): state and cell among the classes, and unit vector."""
    state, cell = classes.labels(places.points("train"), places.rows("train")["state_idx"].to_numpy())
    place = unit_vectors(places.points("train"))
    return {"state": torch.from_numpy(state), "cell": torch.from_numpy(cell), "place": place}


def _with_guesses(labels: Batch, classes: Classes, rows: np.ndarray, guess: Guesses) -> Batch:
    """The targets (N,) of training places, followed by those of the test places up to the last of `rows` (P,).

    Theirs are the guesses: the likeliest state, the point, its cell, and `guessed`, the states' probabilities.
    """
    likely, point = guess.state_probs[:, np.searchsorted(guess.state_idx, classes.state_idx)], guess.point()
    state, cell = classes.labels(point, classes.state_idx[likely.argmax(axis=1)])
    n, n_states = len(labels["state"]), likely.shape[1]
    guessed = {"state": torch.from_numpy(state), "cell": torch.from_numpy(cell), "place": unit_vectors(point)}
    guessed["guessed"] = torch.from_numpy(likely / likely.sum(axis=1, keepdims=True))
    labels, end = labels | {"guessed": torch.full((n, n_states), torch.nan)}, int(rows.max()) + 1
    longer = {name: torch.cat([label, label.new_zeros(end, *label.shape[1:])]) for name, label in labels.items()}
    for name, label in longer.items():
        label[n + rows] = guessed[name]
    return longer
