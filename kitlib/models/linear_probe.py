"""The baseline: logistic regression on the features of a frozen encoder, saved as a run.

run = linear_probe.logistic(places, "tiny")       # seconds; a finished run is only opened
run.metrics["oof"]["final"]
linear_probe.of_each(places, "tiny+timm:resnet18")  # one for each encoder, the best first
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from kitlib.core import paths, processes, storage
from kitlib.core.errors import KitError
from kitlib.data import folds, pictures
from kitlib.data.places import SPLITS, Places
from kitlib.evaluation import baselines, metrics, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run

if TYPE_CHECKING:  # torch takes seconds to import and is not needed to open a run
    from kitlib.vision.embeddings import Embeddings
    from kitlib.vision.encoders import Encoder

log = logging.getLogger(__name__)

MODEL = "logistic.npz"  # of all training places, in the run's folder


def load_encoder(places: Places, encoder: str = "", image_size: int = 0) -> Encoder:
    """An encoder by name, as `encoders.load`; "" is tiny for drawn places and StreetCLIP for photographs."""
    from kitlib.vision import encoders

    return encoders.load(encoder or ("tiny" if places.is_drawn else encoders.STREETCLIP), image_size or None)


def embed(
    places: Places, encoder: Encoder, devices: int = 1, name: str = "", image_size: int = 0
) -> dict[str, Embeddings]:
    """Features of all places by split, from the cache where possible.

    devices: GPUs that compute them together, 0 for all of this machine; each in a process of its own, which loads the
    encoder by name and image_size as given to `load_encoder`. Raises KitError if one of the processes fails.
    """
    from kitlib.vision import device, embeddings, encoders

    if (devices := devices or device.count()) > 1:
        name = name or ("tiny" if places.is_drawn else encoders.STREETCLIP)
        words = ["embed", str(places.folder), "--encoder", name, "--image-size", str(image_size)]
        if code := processes.run_on_devices(devices, words):
            raise KitError(f"embedding on {devices} devices ended with code {code}; see its log above")
    packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}
    return {split: embeddings.embed(pack, encoder, places.derived / "embeddings") for split, pack in packs.items()}


def embed_each(places: Places, encoder: str = "", devices: int = 1, image_size: int = 0) -> dict[str, Any]:
    """Features by encoder and split, as `embed`, of the last layer of each encoder that a name joins.

    An encoder of all stages comes first: one pass over the pictures gives its features and those of its last layer.
    """
    named = {name: load_encoder(places, name, image_size) for name in [*paths.joined(encoder), *single(encoder)]}
    made = {name: embed(places, network, devices, name, image_size) for name, network in named.items()}
    return {named[name].name: made[name] for name in single(encoder)}


def mean_features(embedded: Embeddings) -> np.ndarray:
    """The mean of each place's views (N, D), standardised over the places."""
    mean = embedded.features.mean(axis=1, dtype=np.float32)
    return (mean - mean.mean(axis=0)) / (mean.std(axis=0) + 1e-6)


def principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) on their first two principal components (N, 2), and the share of the variance of each."""
    values, vectors = np.linalg.eigh(features.T @ features / len(features))
    return features @ vectors[:, [-1, -2]], values[[-1, -2]] / values.sum()


def most_similar(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The rows (Q, k) of features (N, D) most similar (cosine) to each query row, without itself."""
    direction = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = direction[queries] @ direction.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-similarity, axis=1)[:, :k]


def typical_views(features: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row and the view of the most typical picture of each group, 0 to G - 1, each (G,).

    It is the one nearest (cosine) to the group's mean, both taken from the mean of all pictures. features (N, V, D),
    group (N,), of which none is empty.
    """
    middle = features.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    rows, views = [], []
    for g in range(int(group.max()) + 1):
        mine = np.flatnonzero(group == g)
        own = features[mine].astype(np.float32) - middle  # (n, V, D)
        likeness = own @ own.mean(axis=(0, 1)) / (np.linalg.norm(own, axis=2) + 1e-12)
        row, view = np.unravel_index(likeness.argmax(), likeness.shape)
        rows.append(mine[row])
        views.append(view)
    return np.array(rows), np.array(views)


def logistic(
    places: Places, encoder: str = "", image_size: int = 0, folds_column: str = "stratified", n_folds: int = 5
) -> Run:
    """Logistic regression on the views' mean features (`baselines.logistic`), out of fold and for the test places.

    The run is called <places>-logistic-<encoder>-<key>; the key is a checksum of all settings and data, so that no
    other call ever changes the run. A process waits for another that makes it. encoder, image_size: as for
    `load_encoder`.
    """
    from kitlib.vision import device

    network = load_encoder(places, encoder, image_size)
    embedded = embed(places, network)
    fold = folds.load_or_make(places, n_folds)[folds_column].to_numpy()
    settings = {"family": "logistic", "encoder": network.name, "image_size": network.preprocess.size}
    settings |= {"embeddings": {split: e.key for split, e in embedded.items()}, "c": baselines.C}
    settings["precision"] = device.precision_of(device.best_dtype(device.best_device()))
    settings |= {"folds_column": folds_column, "n_folds": n_folds}
    checksums = {"places": places.checksum, "folds": folds.folds_checksum(places)}
    key = storage.digest(json.dumps([settings, checksums], sort_keys=True))[:8]
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split("[:/]", network.name.partition("?")[0])[-1])
    name = f"{places.name.strip('_-')[:30]}-logistic-{short[:40]}-{key}"
    with runs.lock(name, busy=False):
        try:
            run = runs.start(name, settings, data=checksums, learned=origin.learned(places))
            if run.finished:
                _ = run.metrics, baselines.StateModel.load(run.dir / MODEL)
                _ = [run.guesses({"train": "oof"}.get(split, split)) for split in embedded]
                return run
        except (KitError, FileNotFoundError) as error:  # a file of it is damaged or missing
            log.warning("run %s is made anew: %s", name, error)
            run = runs.start(name, settings, data=checksums, overwrite=True, learned=origin.learned(places))
        mean = {split: e.features.mean(axis=1, dtype=np.float32) for split, e in embedded.items()}
        oof, test = baselines.logistic(places, mean["train"], fold, mean.get("test"), keep=run.dir / MODEL)
        run.save_guesses("oof", oof)
        if test is not None:
            run.save_guesses("test", test)
        score = metrics.score_guesses(oof, places)
        run.finish({"oof": score.as_dict()})
        log.info("run %s, out of fold: %s", run.name, score)
    return run


def single(encoder: str) -> list[str]:
    """The encoders of a name that joins several, each without its stages.

    >>> single("tiny#stages+timm:resnet18")
    ['tiny', 'timm:resnet18']
    """
    return list(dict.fromkeys(each.removesuffix(paths.STAGES) for each in paths.joined(encoder)))


def of_each(places: Places, encoder: str = "", *args: Any, **options: Any) -> list[Run]:
    """Logistic regression for each of the encoders that a name joins, the best first; the rest as for `logistic`."""
    runs = [logistic(places, each, *args, **options) for each in single(encoder)]
    return sorted(runs, key=lambda run: -run.metrics["oof"]["final"])


def predict(run_name: str, places: Places) -> Guesses:
    """Guesses of a logistic baseline for the test places, or the queries, by its model of all training places."""
    run = runs.open_run(run_name)
    model, settings = baselines.StateModel.load(run.dir / MODEL), run.settings
    embedded = embed(places, load_encoder(places, settings["encoder"], settings["image_size"]))["test"]
    return model.guess(embedded.features.mean(axis=1, dtype=np.float32), embedded.sample_id)
