"""Cross-validation for all families: train each fold, save its guesses, join them at the end.

A model trained without fold k guesses the places of fold k (together the out-of-fold guesses, which are scored) and the
test places (averaged over the folds). A refit, a further model of all training places, guesses the test places alone.
A family defines a Config and a `Session`, which provides `train`, `train_fold` and `predict`:

    train, train_fold, predict = Session.train, Session.train_fold, Session.predict

The face of a family offers this module's `train`, which says what will be trained before it imports the family's `run`,
and with it torch; the Config, in the family's `config`, does without.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.core import checks, paths, processes, progress, storage
from kitlib.core.errors import Damaged, Interrupted, KitError, shorten
from kitlib.core.processes import is_first_process, launched
from kitlib.core.settings import Settings
from kitlib.data import folds
from kitlib.data.places import Places
from kitlib.evaluation import baselines, comparison, fold_files, guesses, metrics, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run

log = logging.getLogger(__name__)

C = TypeVar("C", bound=Settings)

SAVED = (".ckpt", ".npz", ".safetensors", ".csv", ".jsonl")  # files that hold work, in the folder of checkpoints


class Unfinished(Exception):
    """Stops the training of a fold before its end, with everything saved: time is up, or other processes continue."""


class Session(ABC, Generic[C]):
    """A run of a family together with its data; subclasses define what is family-specific.

    devices: number of GPUs, or of processes on a CPU. max_hours: from now on; 0 or None for no limit. options: those
    that OPTIONS lists.
    """

    family: ClassVar[str]
    config_type: ClassVar[type[Settings]]
    FOLDS: ClassVar[tuple[str, ...]] = folds.KINDS  # the allowed values of folds_column
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # further arguments of `train` that do not change the result
    ONE_FOLD: ClassVar[bool] = False  # whether only the first fold is trained by default

    def __init__(
        self, run: Run, places: Places, devices: int = 1, max_hours: float | None = None, **options: Any
    ) -> None:
        self.run, self.places, self.devices, self.options = run, places, devices, options
        self.ask: Callable[[str, Places], Guesses] = _cannot_ask
        self.config: C = self.config_type.from_run(run.settings)  # type: ignore[assignment]
        origin.check_files(run, self.config)
        self.deadline = time.monotonic() + min(max_hours or math.inf, paths.hours_left()) * 3600

    @classmethod
    def open(cls, run: Run, places: Places, *args: Any, **options: Any) -> Session[C]:
        """Make the session of a run."""
        return cls(run, places, *args, **options)

    @classmethod
    def check_model(cls, config: C) -> None:
        """Raise KitError for a model that cannot be loaded or trained as the config says, before pictures are read."""

    @classmethod
    def check(
        cls,
        config: C,
        places: Places,
        folds_column: str,
        todo: Sequence[int],
        recorded: Mapping[str, Any] | None,
        **options: Any,
    ) -> dict[str, str]:
        """Raise KitError for inputs that cannot work; return checksums of inputs that decide the result.

        todo: the folds to train. recorded: the settings of the run if it was started before.
        """
        return {}

    @classmethod
    def resolve(cls, config: C, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """Further settings of the run, such as the value of an "auto" on this machine."""
        return {}

    @property
    def spawns(self) -> bool:
        """Whether this process starts one process per device to train a fold."""
        return self.devices > 1 and not launched()

    @abstractmethod
    def fit_fold(self, fold: int) -> None:
        """Train the models of one fold, or resume their training. Raises Unfinished if it stops before the end."""

    @abstractmethod
    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """The guesses of a fold's trained models for the places of `split`, or for those in `rows`."""

    def guess_held_out(self, fold: int) -> Guesses:
        """The guesses of a fold's models for its held-out places, none of the refit."""
        held_out = self.held_out(fold)
        if not held_out.any():
            return baselines.commonest(self.places, ~held_out, self.places.sample_id("train")[held_out])
        return self.guess_together(fold, "train", np.flatnonzero(held_out))

    def guess_test(self, fold: int) -> Guesses | None:
        """The guesses of a fold's models for the test places, None without test places."""
        rows = np.arange(len(self.places.rows("test")))
        return self.guess_together(fold, "test", rows) if len(rows) else None

    def guess_together(self, fold: int, split: str, rows: np.ndarray) -> Guesses:
        """As `guess`; of several processes each may make a share, and all return the whole."""
        return self.guess(fold, split, rows)

    def metrics(self) -> dict[str, Any]:
        """Further entries of metrics.json besides the scores."""
        return {}

    @property
    def hours_left(self) -> float | None:
        """Hours until the deadline, None without one."""
        return None if math.isinf(self.deadline) else (self.deadline - time.monotonic()) / 3600

    def held_out(self, fold: int) -> np.ndarray:
        """The mask (N,) of the training places that a fold holds out; the refit holds out none."""
        return self.fold_table[self.run.settings["folds_column"]].to_numpy() == fold

    @cached_property
    def fold_table(self) -> pd.DataFrame:
        """The table of saved folds, with the groups of near-duplicates."""
        return folds.load_or_make(self.places, self.run.settings["n_folds"])

    def folder(self, fold: int) -> Path:
        """The folder of a fold's weights and guesses."""
        return fold_files.folder(self.run, fold)

    @classmethod
    def train(
        cls,
        config: C,
        places: Places,
        run_name: str,
        *,
        folds_column: str = "stratified",
        n_folds: int = 5,
        only_folds: Sequence[int] | str | None = None,
        devices: int = 1,
        max_hours: float | None = None,
        overwrite: bool = False,
        start_only: bool = False,
        **options: Any,
    ) -> Run:
        """As `crossval.train`, for this family."""
        if unknown := sorted(set(options) - set(cls.OPTIONS)):
            raise KitError(f"{cls.family}: unknown option {', '.join(unknown)}; expected: {', '.join(cls.OPTIONS)}")
        paths.file_name(run_name, "run name")
        checks.number("devices", devices, 0)
        devices = devices or cls.devices_here()
        checks.number("max_hours", max_hours or 0, 0, kind=float)
        if folds_column not in cls.FOLDS:
            raise KitError(f"folds_column: expected one of {', '.join(cls.FOLDS)}; got {folds_column!r}")
        began = time.monotonic()
        settings = origin.portable(config) | {"family": cls.family, "folds_column": folds_column, "n_folds": n_folds}
        todo = cls.select_folds(places, folds_column, fold_files.count(settings), only_folds)
        with runs.lock(run_name, busy=False):
            if overwrite and runs.is_being_trained(run_name):
                raise KitError(f"run {run_name} is being trained by another process; wait for it to end, "
                               "or take another run name")  # fmt: skip
            begun = run_name in runs.list_runs() and not overwrite
            earlier = runs.open_run(run_name).params if begun else None
            recorded = earlier["settings"] if earlier else None
            if recorded is None:
                cls.check_model(config)
            settings |= cls.resolve(config, recorded) | origin.data_reference(places)
            checksums = {"places": places.checksum} | origin.file_checksums(config)
            checksums |= cls.check(config, places, folds_column, todo, recorded, **options)
            if earlier:
                runs.refuse_changes(runs.open_run(run_name), settings, earlier["data"] | checksums)
            checksums |= origin.data_checksums(places, folds_column, n_folds) | origin.picture_checksums(places)
            run = runs.start(run_name, settings, data=checksums, overwrite=overwrite, learned=origin.learned(places))
            hours = max_hours - (time.monotonic() - began) / 3600 if max_hours else None
            try:
                session = cls.open(run, places, devices, hours, **options)
                todo = sorted({*todo, *fold_files.discard_damaged(run)})
                _refit_last(run, todo)
            except KitError:
                cls.discard_unless_saved(run)
                raise
        if start_only:
            return run
        for fold in todo:
            with runs.lock(run_name, part=session.part(fold)):
                try:
                    if not fold_files.is_done(run, fold):
                        session.complete_fold(fold)
                except KitError:
                    cls.discard_unless_saved(run, session.part(fold))
                    raise
            if not fold_files.is_done(run, fold):
                log.warning("run %s: fold %d is not done yet; the same call continues", run.name, fold)
                return run
        with runs.lock(run_name, busy=False):
            session.finish()
        return run

    @staticmethod
    def devices_here() -> int:
        """The devices that stand for 0."""
        return 1

    @classmethod
    def discard_unless_saved(cls, run: Run, part: str = "") -> None:
        """Delete a run that has saved nothing, if no other process trains a part but `part`: it can start otherwise."""
        saved = any(path.suffix in SAVED for path in run.checkpoints.rglob("*"))
        if not saved and not runs.is_being_trained(run.name, part):
            shutil.rmtree(run.dir)

    def part(self, fold: int) -> str:
        """The name of what one process trains at a time."""
        return f"fold {fold}"

    @classmethod
    def train_fold(cls, run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None,
                   **options: Any) -> bool:  # fmt: skip
        """Train one fold of a started run, in this process or as one of several; return whether it is done.

        data: the present location of the data set, if it is not the one that the run recorded. devices: of a process
        that torchrun has started, all that it has started on all machines count.
        """
        devices = processes.count() if launched() else devices
        run = runs.open_run(run_name)
        # for a launched process, the one that started it holds the lock
        with contextlib.nullcontext() if launched() else runs.lock(run_name, part=f"fold {fold}"):
            places, settings, recorded = origin.reload_places(run, data), run.settings, run.params["data"]
            if not launched():
                column, n_folds = settings["folds_column"], settings["n_folds"]
                if fold not in cls.select_folds(places, column, fold_files.count(settings), [fold]):
                    raise KitError(f"fold: expected 0 with folds_column {column!r}; got {fold}")
                _refit_last(run, [fold])
                now = origin.data_checksums(places, column, n_folds) | origin.picture_checksums(places)
                runs.refuse_changes(run, settings, recorded | {k: v for k, v in now.items() if k in recorded})
            cls.open(run, places, devices, max_hours, **options).complete_fold(fold)
        return fold_files.is_done(run, fold)

    @classmethod
    def predict(
        cls, run_name: str, places: Places, split: str = "test", ask: Callable[[str, Places], Guesses] | None = None,
        only_folds: Sequence[int] = (),
    ) -> Guesses:  # fmt: skip
        """The guesses of the run's models for the places of `split`: the refit's, else the average of the folds.

        ask: answers for another run, such as a router, when the places have queries, which may then be without training
        places (`origin.learned_places`). only_folds: the models of these alone.
        """
        session = cls.open(runs.open_run(run_name), places)
        chosen = list(only_folds) or fold_files.answering(session.run)
        for fold in chosen:
            fold_files.check_fold(session.run, fold)
        if ask:
            session.ask = ask
        rows = np.arange(len(places.rows(split)))
        return guesses.average([session.guess_together(fold, split, rows) for fold in chosen])

    @classmethod
    def select_folds(
        cls, places: Places, folds_column: str, n_folds: int, only_folds: Sequence[int] | str | None
    ) -> list[int]:
        """The folds to train. Raises KitError for an unknown fold."""
        only = checks.whole_numbers("folds", only_folds) if isinstance(only_folds, str) else only_folds
        todo = list(only or ([0] if cls.ONE_FOLD else range(n_folds)))
        if not set(todo) <= set(range(n_folds)):
            raise KitError(f"folds: expected numbers from 0 to {n_folds - 1}; got {', '.join(map(str, todo))}")
        return todo

    def complete_fold(self, fold: int) -> None:
        """Train a fold and write its guesses, which marks it as done; return early if it stays unfinished.

        Each call gets on by one step at least, however small max_hours is, unless the machine's session is over.
        """
        if paths.hours_left() <= 0:
            return
        try:
            if self.spawns:
                self.launch(fold)
                return
            self.fit_fold(fold)
            held_out, test = self.guess_held_out(fold), self.guess_test(fold)
            if is_first_process():
                fold_files.save_fold(self.run, fold, held_out, test)
        except Unfinished:
            return

    def launch(self, fold: int, *more: str) -> None:
        """Run `kitlib train-fold` with one process per device.

        more: further options of the command. Raises KitError if a process fails.
        """
        words = ["train-fold", self.run.name, str(fold), "--data", str(self.places.folder), *more]
        words += ["--max-hours", str(self.hours_left)] if self.hours_left else []
        if code := processes.run_on_devices(self.devices, words):
            raise KitError(f"fold {fold} of run {self.run.name} ended with code {code}; see its log above")

    def _refuse_foreign(self, fold: int, guess: Guesses) -> None:
        """Raise Damaged if guesses are not those for the held-out places of a fold."""
        expected = self.places.sample_id("train")[self.held_out(fold)]
        if not np.array_equal(np.sort(expected), np.sort(guess.sample_id)):
            file = fold_files.folder(self.run, fold) / "oof.npz"
            raise Damaged(f"{storage.place(file)}: expected the {len(expected)} held-out places of fold {fold}; "
                          f"got {len(guess)} others: {storage.MEND}")  # fmt: skip

    def finish(self) -> None:
        """Join the guesses of the done folds into oof.npz, test.npz and metrics.json, which finishes the run."""
        run, places, finished = self.run, self.places, fold_files.done_folds(self.run)
        held_out = [Guesses.load(fold_files.folder(run, fold) / "oof.npz") for fold in finished]
        for fold, guess in zip(finished, held_out, strict=True):
            self._refuse_foreign(fold, guess)
        oof = guesses.stack(held_out)
        run.save_guesses("oof", oof)
        tests = [fold_files.folder(run, fold) / "test.npz" for fold in fold_files.answering(run)]
        if all(path.is_file() for path in tests):
            run.save_guesses("test", guesses.average([Guesses.load(path) for path in tests]))
        score = metrics.score_guesses(oof, places)
        by_fold = {str(k): metrics.score_guesses(g, places).as_dict() for k, g in zip(finished, held_out, strict=True)}
        truth = places.rows("train").set_index("sample_id").loc[oof.sample_id, ["latitude", "longitude"]].to_numpy()
        accuracy = metrics.report(geo.distance_km(truth, oof.point())).as_dict()
        result = {"oof": score.as_dict(), "half_width": comparison.score_half_width(oof, places), "folds": by_fold}
        result |= {"accuracy": accuracy}
        run.finish(result | {"unanswered": int(np.sum(~oof.answered))} | self.metrics())
        log.info("run %s, folds %s, out of fold: %s", run.name, finished, score)


def train(
    config: Settings,
    places: Places,
    run_name: str,
    *,
    folds_column: str = "stratified",
    n_folds: int = 5,
    only_folds: Sequence[int] | str | None = None,
    devices: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
    start_only: bool = False,
    **options: Any,
) -> Run:
    """Train the models of each fold and write their guesses; resume a run that was interrupted.

    folds_column: stratified, spatial, or another of the family's FOLDS. only_folds: train these alone, also as text
    such as "0,1" (one is enough for a submission, and is scored on its own held-out places); the refit, number n_folds,
    needs all folds before it. devices: more than one
    starts `torch.distributed.run` for each fold. max_hours: stop after that time with everything saved; the same
    call then continues the run. start_only: write params.json and pack the pictures, for `train_fold` elsewhere.
    devices: GPUs, or processes on a CPU; 0: all GPUs of this machine.
    options: those of the family's OPTIONS. Other processes may train other folds of the run at the same time.
    Raises KitError for an unknown fold or column, if the run was started with other settings or data, or while
    another process trains one of the folds; all that needs no pictures is checked before these are packed. A run
    that is refused before it has saved anything is removed, so that it can be started with other settings.
    """
    began = time.monotonic()
    progress.show_log()
    family = type(config).__module__.rpartition(".")[0]  # its `run` imports torch, which takes a while
    log.info(
        "run %s: %s", run_name, _plan(family.rpartition(".")[2], config, places, folds_column, only_folds or n_folds)
    )
    try:
        with processes.interrupts_held():
            session = importlib.import_module(f"{family}.run").Session
        run = session.train(
            config, places, run_name, folds_column=folds_column, n_folds=n_folds, only_folds=only_folds,
            devices=devices, max_hours=max_hours, overwrite=overwrite, start_only=start_only, **options,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        text = str(stop) or f"stopped run {run_name}; what is finished is saved: the same call goes on from there"
        progress.end(text)
        raise Interrupted(text) from None
    done = ", ".join(map(str, fold_files.done(run))) or "none"
    progress.end(f"run {run_name}: folds done: {done}, after {time.monotonic() - began:.0f} s")
    return run


def _refit_last(run: Run, todo: Sequence[int]) -> None:
    """Raise KitError for a refit without its folds, done or before it in `todo`: it takes what they have chosen."""
    n_folds = run.settings["n_folds"]
    if n_folds in todo and (missing := sorted(set(range(n_folds)) - {*todo, *fold_files.done(run)})):
        raise KitError(f"folds: expected all {n_folds} before {n_folds}, the refit; got none of {shorten(missing)}")


def _plan(family: str, config: Settings, places: Places, column: str, folds: Sequence[int] | str | int) -> str:
    """What will be trained, in one line."""
    values = {name: getattr(config, name) for name in config.defaults()}
    frozen = values.get("method") == "knn" or values.get("finetune") is False
    work = {k: v for k, v in values.items() if (k.endswith("epochs") or k == "steps") and v and not frozen}
    shown = {k: values[k] for k in ("method", "encoder", "model", "finetune") if k in values} | work
    which = (
        f"{folds}-fold split" if isinstance(folds, int) else f"folds {folds if isinstance(folds, str) else list(folds)}"
    )
    which = "the second table held out" if column == "given" else f"{which} ({column})"
    what = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{family} on {len(places.rows('train')):,} places of {places.name}, {which}, {what}"


def _cannot_ask(run_name: str, places: Places) -> Guesses:
    raise KitError(f"{run_name}: expected `models.locate` to ask this run about new places")
