"""The sessions of families that compute in torch: the number type of a run, and the inputs of its networks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from torch import distributed

from kitlib.core import paths, processes
from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.data.places import Places
from kitlib.evaluation import baselines, crossval, fold_files, guesses
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.training import options, tracking
from kitlib.training.options import learns
from kitlib.vision import drop_path, encoders, lora
from kitlib.vision.device import best_device, best_dtype, count, dtype_of, precision_of
from kitlib.vision.inputs import Inputs

log = logging.getLogger(__name__)

C = TypeVar("C", bound=Settings)
T = TypeVar("T")

LONGEST_WAIT = timedelta(days=1)  # of a process for the others


class TorchSession(crossval.Session[C]):
    """A session that computes in the number type that its run began with."""

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        super().__init__(run, places, *args, **options)
        self.device = best_device()
        self.dtype = dtype_of(run.settings, self.device)
        self._together: Any = None  # the group of the processes that guess together

    @staticmethod
    def devices_here() -> int:
        """All GPUs of this machine."""
        return count()

    def guess_together(self, fold: int, split: str, rows: np.ndarray) -> Guesses:
        """As `guess`; each of several processes, on its own device, makes a share, and all return the whole."""
        shares = self.shares(lambda own: self.guess(fold, split, own), rows)
        return guesses.stack(shares).at(self.places.sample_id(split)[rows])

    def shares(self, make: Callable[[np.ndarray], T], rows: np.ndarray) -> list[T]:
        """What each process makes of its share of the rows: all of them, in all processes.

        When the first process comes here, it has saved the models. Raises Unfinished in all if one has no time.
        """
        if not processes.launched():
            return [make(rows)]
        if self._together is None:  # gloo, as guesses are no tensors
            distributed.is_initialized() or distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
            self._together = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        distributed.barrier(self._together)
        own, share = rows[processes.rank() :: processes.count()], None
        with contextlib.suppress(crossval.Unfinished):
            share = [make(own)] if len(own) else []
        made: list[Any] = [None] * processes.count()
        distributed.all_gather_object(made, share, self._together)
        if None in made:
            raise crossval.Unfinished
        return [one for share in made for one in share]

    @classmethod
    def resolve(cls, config: C, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """The number type: the one that the run was started in, else `device.best_dtype`.

        A type named by KITLIB_PRECISION counts in any case; a run started in another is then refused by `runs.start`.
        Raises KitError for a tracker that cannot be used.
        """
        tracking.check()
        device = best_device()
        keeps = recorded is not None and paths.precision_name() == "auto"
        return {"precision": precision_of(dtype_of(recorded, device) if keeps and recorded else best_dtype(device))}


class EncoderSession(TorchSession[C], Inputs):
    """A session on the views of one encoder, whose Config has encoder, image_size and mirror."""

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        TorchSession.__init__(self, run, places, *args, **options)
        config: Any = self.config
        own = config.encoder, config.image_size, config.mirror, self.dtype
        Inputs.__init__(self, places, *own, learns=learns(asdict(config)))

    def guess_together(self, fold: int, split: str, rows: np.ndarray) -> Guesses:
        """As for all families; the average over the whole pictures and `crops` of them."""
        config: Any = self.config
        parts = []
        for self.crop in ("", *options.crop_names(config.crops)):
            parts.append(super().guess_together(fold, split, rows))
        self.crop = ""
        return guesses.average(parts) if len(parts) > 1 else parts[0]

    def pseudo_labels(self, fold: int) -> tuple[np.ndarray, Guesses]:
        """Rows (P,) of the test places that a model learns too, and the folds' averaged guesses of them.

        They are those of which the folds' first state has at least the probability `pseudo`, for the refit alone.
        """
        threshold = asdict(self.config).get("pseudo", 0.0)  # type: ignore[call-overload]
        ids = self.places.sample_id("test")
        if not (threshold and len(ids) and fold_files.is_refit(self.run.settings, fold)):
            states = self.places.states["state_idx"].to_numpy()
            return np.empty(0, np.int64), baselines.constant(ids[:0], states, np.ones(len(states)), np.zeros(2))
        sizes = [set(pack.sizes) for pack in self.packs.values()]
        if learns(self.run.settings) and len(set.union(*sizes)) > 1:
            raise KitError("pseudo: expected all pictures of one size where the encoder learns; got several")
        files = [self.folder(k) / "test.npz" for k in fold_files.done_folds(self.run)]
        guess = guesses.average([Guesses.load(file) for file in files]).at(ids)
        rows = np.flatnonzero((guess.state_probs.max(axis=1) >= threshold) & guess.answered)
        log.info("fold %d, the refit, learns %d of %d test places too", fold, len(rows), len(ids))
        return rows, guess.take(rows)

    @classmethod
    def check_model(cls, config: C) -> None:
        """Refuse an encoder that cannot be loaded, or not be trained as the config says."""
        settings = asdict(config)  # type: ignore[call-overload]
        if settings.get("pseudo") and not settings["refit"]:
            raise KitError(f"pseudo: expected 0 without refit, the model that learns so; got {settings['pseudo']}")
        names = paths.joined(settings["encoder"])
        encoder, *_ = [encoders.load(name, settings["image_size"] or None) for name in names]
        if learns(settings):
            if settings["crops"]:
                raise KitError(
                    f"crops: expected '' where the encoder learns, on whole pictures; got {settings['crops']}"
                )
            encoders.check_trainable(settings["encoder"])
            if settings.get("lora_rank"):
                lora.targets(encoder, settings["lora_rank"])
            if settings.get("drop_path"):
                drop_path.branches(encoder)
            if settings["gradient_checkpointing"]:
                encoder.enable_checkpointing()
        elif unused := [name for name in ("drop_path", "erase") if settings.get(name)]:
            log.warning("%s: no effect, as the encoder stays frozen", ", ".join(unused))
