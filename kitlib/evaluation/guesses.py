"""Guesses, the common output of all families.

For each of N places they hold the probability of each of S states, and K weighted points. The GPS guess is derived from
the points: their weighted geometric median minimises the expected distance, which the competition scores. The five
state guesses are the five most probable states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import Damaged, KitError

TOLERANCE = 1e-3  # of the sum of a row's probabilities: float32 sums over a few hundred entries


@dataclass(frozen=True)
class Guesses:
    """Guesses for N places, keyed by `sample_id` in any order.

    sample_id (N,); state_idx (S,) the order of the classes; state_probs (N, S) float32; points (N, K, 2) [lat, lon]
    degrees; weights (N, K) float32; answered (N,) bool, False where the family failed and a fallback replaces it.
    Rows of state_probs and of weights sum to 1. Raises KitError naming a field that violates this.
    """

    sample_id: np.ndarray
    state_idx: np.ndarray
    state_probs: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    answered: np.ndarray

    def __post_init__(self) -> None:
        dtypes = {"state_probs": np.float32, "points": np.float64, "weights": np.float32, "answered": bool}
        for field in fields(self):
            array = _plain(getattr(self, field.name))
            object.__setattr__(self, field.name, array.astype(dtypes.get(field.name, array.dtype), copy=False))
        n, s = self.state_probs.shape
        k = self.points.shape[1]
        shapes = {"sample_id": (n,), "state_idx": (s,), "points": (n, k, 2), "weights": (n, k), "answered": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise KitError(f"guesses: {name}: expected shape {shape}; got {getattr(self, name).shape}")
        for name, values in {"sample_id": self.sample_id, "state_idx": self.state_idx}.items():
            if len(np.unique(values)) != len(values):
                raise KitError(f"guesses: {name}: expected different values; got one twice")
        for name in ("state_probs", "weights"):
            values = getattr(self, name)
            wrong = ~(np.isfinite(values).all(1) & (values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= TOLERANCE))
            if wrong.any():
                first = f"sample_id {self.sample_id[wrong][0]} (and {wrong.sum() - 1} more)"
                raise KitError(f"guesses: {name}: expected numbers from 0 that sum to 1; those of {first} do not")
        geo.check_points(self.points, "guesses: points")

    def _repr_html_(self) -> str:
        k, own = self.points.shape[1], int(self.answered.sum())
        return (
            f"<p>guesses for {len(self):,} places ({own:,} answered): probabilities of {len(self.state_idx)} states, "
            f"{k} weighted points each</p>"
        )

    def __len__(self) -> int:
        return len(self.sample_id)

    def point(self) -> np.ndarray:
        """The GPS guess (N, 2) [lat, lon]: the weighted geometric median of each row's points."""
        return geo.geometric_median(self.points, self.weights)

    def top_states(self, k: int = 5) -> np.ndarray:
        """The `k` most probable states (N, min(k, S)) as state_idx, the most probable first."""
        order = np.argsort(-self.state_probs, axis=1, kind="stable")[:, :k]
        return self.state_idx[order]

    def at(self, sample_id: np.ndarray) -> Guesses:
        """Select the guesses for `sample_id`, in that order. Raises KitError naming the first id without a guess."""
        sample_id = _plain(sample_id)
        order = np.argsort(self.sample_id)
        slot = np.searchsorted(self.sample_id, sample_id, sorter=order).clip(max=len(self) - 1)
        rows = order[slot] if len(self) else np.zeros(0, int)
        if len(rows) != len(sample_id) or (self.sample_id[rows] != sample_id).any():
            missing = np.setdiff1d(sample_id, self.sample_id)
            raise KitError(f"no guess for sample_id {missing[0]} (and {len(missing) - 1} more of {len(sample_id)})")
        return self.take(rows)

    def take(self, rows: np.ndarray) -> Guesses:
        """Select guesses by row numbers or by a mask (N,)."""
        names = ("sample_id", "state_probs", "points", "weights", "answered")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def on_states(self, state_idx: np.ndarray) -> Guesses:
        """Reorder the classes to `state_idx`; new classes get probability 0.

        Raises KitError if `state_idx` lacks one of the present classes.
        """
        missing = np.setdiff1d(self.state_idx, state_idx)
        if len(missing):
            raise KitError(f"state_idx {missing[0]} of the guesses is missing from {np.asarray(state_idx).tolist()}")
        probs = np.zeros((len(self), len(state_idx)), np.float32)
        probs[:, [np.flatnonzero(state_idx == s)[0] for s in self.state_idx]] = self.state_probs
        return replace(self, state_idx=np.asarray(state_idx), state_probs=probs)

    def save(self, path: str | Path) -> None:
        """Write all fields to an .npz file."""
        storage.write_npz(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Guesses:
        """Read a file written by `save`. Raises KitError if it is missing, Damaged if it holds anything else."""
        names = tuple(field.name for field in fields(cls))
        try:
            arrays = storage.read_npz(path, names)
            with storage.reading(path, "guesses as the kit writes them"):
                return cls(**{name: arrays[name] for name in names})
        except FileNotFoundError:
            raise KitError(f"{storage.place(path)}: expected guesses; there is no such file") from None
        except Damaged:
            raise
        except KitError as error:  # of a field, without the file's name
            raise Damaged(f"{storage.place(path)} is not a guesses file: {error}: {storage.MEND}") from error


def _plain(values: np.ndarray) -> np.ndarray:
    """Convert objects to text, as names come from pandas as objects and a file would need pickling."""
    array = np.asarray(values)
    return array.astype(str) if array.dtype == object else array


def _same_k(members: Sequence[Guesses]) -> list[Guesses]:
    """Pad members with points of weight 0 to the same K."""
    k = max(m.points.shape[1] for m in members)
    return [
        replace(
            m,
            points=np.concatenate([m.points, np.repeat(m.points[:, :1], k - m.points.shape[1], 1)], 1),
            weights=np.pad(m.weights, ((0, 0), (0, k - m.weights.shape[1]))),
        )
        for m in members
    ]


def _same_states(members: Sequence[Guesses]) -> list[Guesses]:
    """Extend members to the union of their classes, in ascending order of state_idx."""
    union = np.unique(np.concatenate([m.state_idx for m in members]))
    return [m.on_states(union) for m in members]


def stack(parts: Sequence[Guesses]) -> Guesses:
    """Join guesses for different places, such as the folds of one run, in the given order."""
    parts = _same_k(_same_states(parts))
    names = ("sample_id", "state_probs", "points", "weights", "answered")
    return Guesses(state_idx=parts[0].state_idx, **{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def average(members: Sequence[Guesses], weights: ArrayLike | None = None) -> Guesses:
    """Average the guesses of several members for the same places: probabilities averaged, points concatenated.

    `weights` (M,) are normalised, equal when None. A row counts as answered if any member of positive weight answered
    it; members that did not answer it are then left out of that row. Rows are in the order of the first member. Raises
    KitError if a member lacks a place of the first.
    """
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, float)
    if len(shares) != len(members) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise KitError(f"weights: expected {len(members)} finite numbers from 0, not all 0; got {shares.tolist()}")
    joined = _same_states([m.at(members[0].sample_id) for m in members])
    answered = np.stack([m.answered for m in joined], 1) & (shares > 0)  # (N, M)
    row_shares = np.where(answered | ~answered.any(1, keepdims=True), shares, 0.0)
    row_shares /= row_shares.sum(1, keepdims=True)
    return replace(
        joined[0],
        state_probs=sum(r[:, None] * m.state_probs for r, m in zip(row_shares.T, joined, strict=True)),
        points=np.concatenate([m.points for m in joined], 1),
        weights=np.concatenate([r[:, None] * m.weights for r, m in zip(row_shares.T, joined, strict=True)], 1),
        answered=np.asarray(answered.any(1)),
    )
