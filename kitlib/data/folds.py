"""Saved folds of the training places: stratified by state, like the leaderboard, or in spatial blocks, which is harder.

Near-duplicates, places some metres apart or a little further with similar pictures, are always in the same fold.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.data import pictures
from kitlib.data.places import Places
from kitlib.geo.grid import blocks

log = logging.getLogger(__name__)

KINDS = ("stratified", "spatial")


def near_duplicate_groups(
    points: np.ndarray,
    hashes: np.ndarray | None = None,
    within_km: float = 0.05,
    within_bits: int = 6,
    same_km: float = 0.02,
) -> np.ndarray:
    """Group ids (N,) 0…G-1 of points (N, 2): the connected components of near-duplicates.

    Two places within `same_km` are always near-duplicates (two drives past one corner differ in 14 bits and more). Two
    within `within_km` are near-duplicates if the perceptual `hashes` (N, V) of at least one view differ in at most
    `within_bits` of 64 bits, or if no view can be compared (a hash of 0, or no hashes).

    >>> near_duplicate_groups(np.array([[40.0, -75.0], [50.0, -75.0], [40.0001, -75.0]])).tolist()
    [0, 1, 0]
    """
    pairs = geo.pairs_within_km(points, within_km)
    if hashes is not None and len(pairs):
        a, b = hashes[pairs[:, 0]], hashes[pairs[:, 1]]  # (P, V)
        comparable = (a != 0) & (b != 0)
        alike = comparable & (np.bitwise_count(a ^ b) <= within_bits)
        same = geo.distance_km(points[pairs[:, 0]], points[pairs[:, 1]]) <= same_km
        pairs = pairs[alike.any(axis=1) | ~comparable.any(axis=1) | same]
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def make(
    places: Places, hashes: np.ndarray | None = None, n_folds: int = 5, block_km: float = 50.0, seed: int = 0
) -> pd.DataFrame:
    """Make folds of the training places: sample_id, group (of near-duplicates), stratified and spatial (0…n_folds-1).

    `hashes` (N, V) are those of the training pack. Stratified folds consist of whole groups, spatial folds of whole
    blocks; both balance every state as evenly as these pieces allow. Raises KitError for fewer pieces than folds.
    """
    if n_folds < 2 or block_km <= 0:
        raise KitError(f"folds: expected at least 2 folds and blocks of more than 0 km; got {n_folds} and {block_km}")
    points, states = places.points("train"), places.state_position("train")
    group = near_duplicate_groups(points, hashes)
    first = np.unique(group, return_index=True)[1]
    block = blocks(points, block_km)[first[group]]  # a group across a border goes to the block of its first place
    for pieces, kind in ((group, "groups of near-duplicates"), (block, f"blocks of {block_km:g} km")):
        if (count := len(np.unique(pieces))) < n_folds:
            raise KitError(f"{places.name}: the training places form only {count} {kind}, too few for {n_folds} folds")
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"sample_id": places.sample_id("train"), "group": group})
    return table.assign(stratified=_deal(group, states, n_folds, rng), spatial=_deal(block, states, n_folds, rng))


def _deal(piece: np.ndarray, state: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold (N,) of each row: whole pieces, largest first, each to the fold with the least of its states so far."""
    piece = np.unique(piece, return_inverse=True)[1]
    counts = coo_array((np.ones(len(piece)), (piece, state))).tocsr()  # (pieces, S)
    size, per_state = counts.sum(axis=1), counts.sum(axis=0)
    shuffled = rng.permutation(len(size))
    dealt, total = np.zeros((n_folds, len(per_state))), np.zeros(n_folds)
    fold = np.empty(len(size), np.int64)
    for p in shuffled[np.argsort(-size[shuffled], kind="stable")]:
        one = slice(counts.indptr[p], counts.indptr[p + 1])
        states, n = counts.indices[one], counts.data[one]
        # The states' shares decide first; among equal ones, the fold's size.
        f = fold[p] = np.argmin(dealt[:, states] @ (n / per_state[states]) + total * (size[p] / len(piece)))
        dealt[f, states] += n
        total[f] += size[p]
    return fold[piece]


def gap_km(points: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Kilometres (N,) from each of points (N, 2) to the nearest one outside its fold (N,).

    >>> gap_km(np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), np.array([0, 0, 1])).round().tolist()
    [334.0, 222.0, 222.0]
    """
    km = np.empty(len(points))
    for k in np.unique(fold):
        km[fold == k] = geo.nearest(points[fold == k], points[fold != k])[0][:, 0]
    return km


def load_or_make(places: Places, n_folds: int = 5, block_km: float = 50.0, seed: int = 0) -> pd.DataFrame:
    """Load the saved folds of these places; the first call makes them with the hashes of the training pictures.

    That call packs the pictures if necessary, so that every caller gets the same folds. Raises KitError if the file was
    changed since, or was made with other settings. If only folds.json cannot be read, it is made anew, provided that
    the folds in folds.csv are those that these places and settings give.
    """
    csv, meta = places.derived / "folds.csv", places.derived / "folds.json"
    settings = {"n_folds": n_folds, "block_km": float(block_km), "seed": seed}
    mend = f"delete {paths.relative(csv)} and .json to make new folds"
    with storage.lock(places.derived / ".folds.lock"):
        try:
            saved = storage.read_json(meta, needed=(*settings, "checksum"), mend=mend) if csv.is_file() else None
        except (Damaged, FileNotFoundError) as error:
            log.warning("%s: folds.json is made anew (%s)", places.name, error)
            saved = None
        if saved is None:
            table = make(places, pictures.pack(places, "train").hashes, n_folds, block_km, seed)
            content = table.to_csv(index=False, lineterminator="\n")
            if csv.is_file() and csv.read_bytes() != content.encode():
                raise KitError(f"{paths.relative(csv)}: expected the folds that {settings} give, as folds.json cannot "
                               f"be read; got others: {mend}")  # fmt: skip
            with storage.atomic_write(csv) as path:
                path.write_bytes(content.encode())
            storage.write_json(meta, {**settings, "hashes": True, "checksum": storage.digest(csv)})
            return table
    if saved["checksum"] != storage.digest(csv):
        raise KitError(f"{paths.relative(csv)} was changed since it was made (its checksum is in folds.json): {mend}")
    if other := {name: saved[name] for name in settings if saved[name] != settings[name]}:
        raise KitError(f"{paths.relative(csv)} was made with {other}; expected {settings}: {mend}")
    table = pd.read_csv(csv, dtype={"sample_id": str})
    ids = places.sample_id("train")
    return table.assign(sample_id=table["sample_id"].astype(ids.dtype))


def folds_checksum(places: Places) -> str:
    """The checksum of the saved folds of these places. Raises KitError if there are none yet."""
    try:
        return storage.read_json(places.derived / "folds.json", needed=("checksum",))["checksum"]
    except FileNotFoundError:
        raise KitError(f"{places.name} has no folds yet: data.load_folds(places, n_folds) makes them") from None
