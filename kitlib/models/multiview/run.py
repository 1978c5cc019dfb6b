"""Multiview: one vision encoder on all views of a place, fused; a state, a GPS and a geocell head.

Two phases, as in the published recipe: the heads learn on cached features of the frozen encoder, then the encoder's
last blocks (or all, or LoRA) are fine-tuned with them. The first costs minutes, the second is where the points are.

    run = train(Config(encoder="tiny", finetune_blocks=-1), places, "first")    # resumes when it was cut short
    run.metrics["oof"]["final"]

Each fold's checkpoints/fold_<k>/ holds heads.safetensors, encoder.safetensors (the trained weights only), and the
history of both fits under heads/ and finetune/. The last epoch is kept, so that the fold that is scored chose nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm.auto import tqdm

from kitlib.core.settings import Settings
from kitlib.data import folds as saved_folds
from kitlib.data.loader import Batches
from kitlib.data.places import Places
from kitlib.evaluation import crossval, guesses, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.multiview.heads import TIES, Classes, Heads
from kitlib.models.multiview.training import SOFT_LABELS, Geolocator, Teaching
from kitlib.training import fit
from kitlib.training.learner import Batch, encode
from kitlib.training.sphere import unit_vectors
from kitlib.training.start import start_run
from kitlib.vision import encoders, weights
from kitlib.vision.device import autocast, best_device, dtype_of, precision_of
from kitlib.vision.encoders import Encoder
from kitlib.vision.fusion import FUSIONS
from kitlib.vision.inputs import Inputs


@dataclass(frozen=True)
class Config(Settings):
    """What decides the result; travels with the run in params.json."""

    encoder: str = encoders.STREETCLIP  # see encoders.py
    image_size: int = 0  # px of the square that the encoder sees; 0: its own
    fusion: str = "average"  # of the views: average, concat, attention, learned
    hidden: int = 256  # units between the fused views and the heads
    dropout: float = 0.5  # share of features, and of hidden units, left out in training
    view_dropout: float = 0.3  # share of views left out in training
    mirror: bool = True  # learn from mirrored places too, and average over both when guessing
    vary: float = 1.0  # how far light and zoom of pictures vary in fine-tuning; 0: not at all
    soft_labels: str = "place"  # distances behind the state targets: from the place, the matrix of states, or none
    temperature_km: float = 75.0  # km at which a target's weight falls to 1/e, of states and of cells
    places_per_cell: int = 50  # training places in a geocell, on average; a state has at least one cell
    tie: str = "state"  # what the GPS head adds to: the middle of the likely states, of the cells, or none
    gps_share: float = 0.1  # weight of the GPS head's point among a guess's points; cells share the rest
    points: int = 24  # likeliest cells that become points of a guess
    weight_decay: float = 0.05  # of matrices; biases and norms have none
    warmup: float = 0.1  # share of the steps in which the rates rise; then they fall along a cosine
    heads_epochs: int = 60  # passes of the heads over cached features
    heads_batch: int = 1024  # places a step; fewer where a pass would have less than 8 steps
    heads_rate: float = 1e-3  # learning rate
    finetune_epochs: int = 3  # passes over the pictures; 0: heads only
    finetune_batch: int = 64  # places a step, gathered over devices and turns
    device_batch: int = 16  # places that fit on one device at once
    finetune_blocks: int = 6  # last blocks of the encoder that learn; -1: all of it
    lora_rank: int = 0  # rank of LoRA on the attention instead (hf: encoders); 0: without
    finetune_heads_rate: float = 2e-4  # learning rate of the heads
    finetune_rate: float = 2e-5  # learning rate of the encoder's top layer
    layer_decay: float = 0.9  # factor from each layer's rate to the one below it
    gradient_checkpointing: bool = False  # a tenth of the activations' memory for 23 % more work
    seed: int = 0  # of weights, order, dropout and augmentation

    CHOICES: ClassVar = {"fusion": FUSIONS, "soft_labels": SOFT_LABELS, "tie": TIES}
    POSITIVE: ClassVar = ("hidden", "temperature_km", "places_per_cell", "points", "heads_epochs", "heads_batch",
                          "finetune_batch", "device_batch")  # fmt: skip
    SHARES: ClassVar = ("dropout", "view_dropout", "gps_share", "warmup", "layer_decay")
    MINUS_ONE: ClassVar = ("finetune_blocks",)


def train(
    config: Config,
    places: Places,
    run_name: str,
    *,
    folds_column: str = "stratified",
    n_folds: int = 5,
    only_folds: Sequence[int] | None = None,
    devices: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a model for each fold and write what they guess; go on where an earlier call was cut short.

    only_folds: train these alone (one is enough for a submission, and is scored on its own held-out places).
    devices: more than one starts `torch.distributed.run` for each fold. max_hours: stop in time with everything
    saved; the run is then unfinished, and the same call goes on. Raises KitError for an unknown fold or column, and
    for a run of that name that was started otherwise.
    """
    todo = crossval.chosen(places, folds_column, n_folds, only_folds)
    run = start_run("multiview", config, places, run_name, folds_column, n_folds, overwrite)
    session = Session(run, places)

    def train_one(fold: int, left: float | None) -> None:
        if devices == 1:
            session.train_fold(fold, 1, left)
        else:
            _ = session.features  # computed once, here
            crossval.train_in_processes(run, fold, places.folder, devices, left)

    if crossval.train_folds(run, todo, train_one, max_hours):
        crossval.finish(run, places)
    return run


def train_fold(run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None) -> bool:
    """Train one fold of a run that `train` has started, in this process or as one of several; True when it is done.

    data: where the data set is now, when it is not where the run says.
    """
    run = runs.open_run(run_name)
    Session(run, crossval.reread(run, data)).train_fold(fold, devices, max_hours)
    return crossval.is_done(run, fold)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's models, averaged, guess of the places of `split`; all settings are the run's own."""
    session = Session(runs.open_run(run_name), places)
    return guesses.average([session.guess(fold, split) for fold in crossval.done(session.run)])


class Session(Inputs):
    """A run with its data at hand: what its folds share."""

    def __init__(self, run: Run, places: Places) -> None:
        self.run, self.config = run, Config.of_run(run.settings)
        dtype = dtype_of(run.settings, best_device())
        super().__init__(places, self.config.encoder, self.config.image_size, self.config.mirror, dtype)

    def train_fold(self, fold: int, devices: int = 1, max_hours: float | None = None) -> None:
        """Both phases of one fold, then its guesses; returns early when the hours are over."""
        began, config, folder = time.monotonic(), self.config, crossval.folder(self.run, fold)
        table = saved_folds.load_or_make(self.places, n_folds=self.run.settings["n_folds"])
        held_out = table[self.run.settings["folds_column"]].to_numpy() == fold
        usable = ~self.packs["train"].unusable_places
        rows, others = np.flatnonzero(~held_out & usable), np.flatnonzero(held_out & usable)
        features, classes = self.features["train"], Classes.of(self.places, rows, config.places_per_cell)
        labels = _labels(self.places, classes)
        torch.manual_seed(config.seed)
        V, D = features.shape[2:]
        heads = Heads(classes, V, D, config.fusion, config.hidden, config.dropout, config.tie)
        heads.fit_scale(features[rows])
        teaching = Teaching.of_run(asdict(config))

        def learn(phase: str, encoder: Encoder | None, batch: int, turns: int, epochs: int, **how: Any) -> bool:
            def load(r: np.ndarray) -> Batch:
                return self.look("train", encoder, r) | {name: label[r] for name, label in labels.items()}

            steps = fit.total_steps(len(rows), batch, turns, epochs, devices)
            return fit.fit(
                Geolocator(heads, encoder, teaching, steps, **how),
                Batches(rows, batch, config.seed, load, prefetch=encoder is not None),
                folder / phase,
                epochs=epochs,
                config=asdict(config),
                val_batches=Batches(others, batch, 0, load, shuffle=False, prefetch=True) if encoder else None,
                accumulate=turns,
                devices=devices,
                max_hours=max_hours and max_hours - (time.monotonic() - began) / 3600,
                precision=precision_of(self.dtype),
                seed=config.seed,
            ).finished

        batch = max(1, min(config.heads_batch, len(rows) // 8) // devices)
        if not learn("heads", None, batch, 1, config.heads_epochs, rate=config.heads_rate):
            return
        encoder = self.encoder() if config.finetune_epochs else None
        if encoder:
            if config.gradient_checkpointing:
                encoder.enable_checkpointing()
            batch = min(config.device_batch, math.ceil(config.finetune_batch / devices))
            turns = max(1, round(config.finetune_batch / (batch * devices)))
            how = {"rate": config.finetune_heads_rate, "encoder_rate": config.finetune_rate}
            how |= {"n_blocks": config.finetune_blocks, "lora_rank": config.lora_rank}
            if not learn("finetune", encoder, batch, turns, config.finetune_epochs, **how):
                return
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        heads.save(folder / "heads.safetensors")
        if encoder:
            weights.save_encoder(encoder, folder / "encoder.safetensors")
        test = self.guess(fold, "test") if "test" in self.packs else None
        crossval.keep(self.run, fold, self.guess(fold, "train", np.flatnonzero(held_out)), test)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's saved model guesses of the places in `rows` (of all when None)."""
        config, folder, pack = self.config, crossval.folder(self.run, fold), self.packs[split]
        heads, encoder = Heads.load(folder / "heads.safetensors").to(self.device), None
        if config.finetune_epochs:
            encoder = self.encoder()
            weights.load_encoder(encoder.to(self.device), folder / "encoder.safetensors")
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts = [heads.classes.commonest(pack.sample_id[rows[blind]])]

        def load(r: np.ndarray) -> dict[str, Any]:
            return self.look(split, encoder, r) | {"row": r}

        size = config.device_batch if encoder else config.heads_batch
        seen = Batches(rows[~blind], size, 0, load, shuffle=False, prefetch=True) if not blind.all() else ()
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for batch in tqdm(seen, desc=f"fold {fold}: guessing {split}", leave=False):
                sample_id = pack.sample_id[batch.pop("row")]
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                answers = [heads(encode(batch, encoder, mirrored)) for mirrored in (False, True)[: 1 + config.mirror]]
                parts.append(heads.guess(sample_id, answers, config.points, config.gps_share))
        return guesses.stack(parts).on_states(self.places.states["state_idx"].to_numpy()).at(pack.sample_id[rows])


def _labels(places: Places, classes: Classes) -> Batch:
    """What is taught of each training place (N,): its state and its cell among the classes, and where it is."""
    state, cell = classes.labels(places.points("train"), places.rows("train")["state_idx"].to_numpy())
    place = unit_vectors(places.points("train"))
    return {"state": torch.from_numpy(state), "cell": torch.from_numpy(cell), "place": place}
