"""The instant baseline as a run: each picture once through a frozen encoder, then logistic regression on the features.

run = frozen.logistic(places, "tiny")       # seconds; the second time it is only opened
run.metrics["oof"]["final"]
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from kitlib import baselines, competition, folds, pictures, runs
from kitlib.paths import KitError
from kitlib.runs import Run
from kitlib.tables import SPLITS, Places

if TYPE_CHECKING:
    from kitlib.embeddings import Embeddings

log = logging.getLogger(__name__)


def embed(places: Places, encoder: str, image_size: int = 0, mirror: bool = False) -> dict[str, Embeddings]:
    """Features of all places by split, from the cache where they are there; `encoder` as for `encoders.load`."""
    from kitlib import embeddings, encoders  # torch takes seconds to import, and who has a run may never need it

    network = encoders.load(encoder, image_size or None)
    out_dir = places.derived / "embeddings"
    packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}
    return {split: embeddings.embed(pack, network, out_dir, mirror) for split, pack in packs.items()}


def logistic(
    places: Places, encoder: str, image_size: int = 0, folds_column: str = "stratified", n_folds: int = 5
) -> Run:
    """The run <places>-logistic-<encoder>: `baselines.logistic` on the views' mean features, out of fold and for test.

    A run of that name that was made from anything else is made anew, as it costs so little.
    """
    embedded = embed(places, encoder, image_size)
    hashes = pictures.pack(places, "train").hashes
    fold = folds.load_or_make(places, hashes, n_folds)[folds_column].to_numpy()
    settings = {"family": "logistic", "encoder": encoder, "image_size": image_size, "folds_column": folds_column}
    settings |= {"n_folds": n_folds, "c": baselines.C, "embeddings": {split: e.key for split, e in embedded.items()}}
    checksums = {"places": places.checksum, "folds": folds.folds_checksum(places)}
    name = f"{places.name}-logistic-{encoder.split(':')[-1].split('@')[0].split('/')[-1].split('?')[0]}"
    try:
        run = runs.start(name, settings, data=checksums)
    except KitError:
        run = runs.start(name, settings, data=checksums, overwrite=True)
    if not run.finished:
        mean = {split: e.features.mean(axis=1, dtype=np.float32) for split, e in embedded.items()}
        oof, test = baselines.logistic(places, mean["train"], fold, mean.get("test"))
        run.save_guesses("oof", oof)
        if test is not None:
            run.save_guesses("test", test)
        run.finish({"oof": asdict(competition.score_guesses(oof, places))})
        log.info("run %s, out of fold: %s", run.name, competition.score_guesses(oof, places))
    return run
