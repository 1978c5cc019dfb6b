"""Places of another data set that stand in the gallery beside the training places: more of the land is then covered.

A place of the data set that is guessed must not find itself, so that near-duplicates are left out: places next to a
training place, with a picture of any place of the data set, or that look the same as one. So are places whose state is
neither named like one of the data set nor told by a training place in reach.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.models.retrieval import search
from kitlib.models.retrieval.embedders import Frozen
from kitlib.models.retrieval.voting import states_nearby
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs

log = logging.getLogger(__name__)

NEXT_KM = 0.05  # to a training place, as for near-duplicates within a data set (data/folds.py)
SAME = 0.95  # cosine of standardised features; different places of shared/real stay below 0.8, copies are near 1


REACH_KM = 300.0  # to the nearest training place, which tells the state of a place with another name


@dataclass(frozen=True, eq=False)
class Bank:
    """B places with features (B, M, V, D), points (B, 2) and state probabilities (B, S)."""

    features: torch.Tensor
    points: np.ndarray
    states: np.ndarray


def load(own: Inputs, other: Inputs, tuned: Encoder | None, folder: Path, labelled: np.ndarray) -> Bank:
    """The training places of `other` with a state of `own`, without near-duplicates of its places.

    tuned: a fine-tuned encoder, whose features are cached in `folder`. labelled: the training places of `own` around
    which a place gets its state, unless its state has the name of one of theirs. Raises KitError if none is left.
    """
    places, points = own.places, other.places.points("train")
    twins, states = near_duplicates(own, other), states_of(other.places, places, labelled)
    strange = states.sum(axis=1) == 0
    rows = np.flatnonzero(~other.packs["train"].unusable_places & ~twins & ~strange)
    log.info("gallery: %d places of %s join; left out are %d near-duplicates and %d of unknown states",
             len(rows), other.places.name, twins.sum(), strange.sum())  # fmt: skip
    if not len(rows):
        raise KitError(f"gallery: expected places of {other.places.name} in states of {places.name} that are not in "
                       "it; got none")  # fmt: skip
    features = other.embed(tuned, folder)["train"] if tuned else other.features["train"]
    return Bank(features[rows], points[rows], states[rows])


def near_duplicates(own: Inputs, other: Inputs) -> np.ndarray:
    """Mask (B,) of the training places of `other` that are near-duplicates of a place of `own`, of any split."""
    hashes = np.concatenate([pack.hashes.ravel() for pack in own.packs.values()])
    twins = np.isin(other.packs["train"].hashes, hashes[hashes != 0]).any(axis=1)
    frozen = Frozen.fit(own.features["train"], "mean")
    looks = np.concatenate([frozen.queries(features) for features in own.features.values()])
    twins |= search.search(frozen.queries(other.features["train"]), looks, 1, device=own.device)[0][:, 0] > SAME
    known = np.concatenate([own.places.points(split) for split in own.packs])
    known = known[~np.isnan(known).any(axis=1)]
    return twins | (geo.nearest(other.places.points("train"), known)[0][:, 0] < NEXT_KM)


def states_of(other: Places, places: Places, labelled: np.ndarray) -> np.ndarray:
    """State probabilities (B, S) of the training places of `other`, in the order of the states of `places`.

    A state with the name of one of `places` is certain; else those of the `labelled` training places around count, and
    all are 0 if there is none within `REACH_KM`.
    """
    names, own, points = places.states["state"].tolist(), other.rows("train")["state"], other.points("train")
    around, position = places.points("train")[labelled], places.state_position("train")[labelled]
    states = states_nearby(points, around, position, len(names))
    states[geo.nearest(points, around)[0][:, 0] > REACH_KM] = 0
    same = own.isin(names).to_numpy()
    states[same] = np.eye(len(names), dtype=np.float32)[[names.index(name) for name in own[same]]]
    return states
