"""What every family hands over: guesses are points on the globe.

For N places: the probability of each of S states, and K weighted points where the place might be. The single GPS
guess is derived, never stored: the weighted geometric median of the points minimises the expected distance, which is
what the competition pays for. The five state guesses are the five most probable states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError

TOLERANCE = 1e-3  # how far a row's probabilities may be from summing to 1: float32 sums over a few hundred entries


@dataclass(frozen=True)
class Guesses:
    """Guesses for N places; rows are keyed by `sample_id`, and nothing relies on their order.

    sample_id (N,); state_idx (S,) the order of the classes; state_probs (N, S) float32; points (N, K, 2) [lat, lon]
    degrees; weights (N, K) float32; answered (N,) bool, False where the family failed and a fallback stands in.
    Rows of state_probs and of weights sum to 1. Raises KitError naming the field that breaks this.
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
                raise KitError(f"guesses: {name} has shape {getattr(self, name).shape}, expected {shape}")
        for name, values in {"sample_id": self.sample_id, "state_idx": self.state_idx}.items():
            if len(np.unique(values)) != len(values):
                raise KitError(f"guesses: {name} holds a value twice; each may stand once")
        for name in ("state_probs", "weights"):
            values = getattr(self, name)
            wrong = ~(np.isfinite(values).all(1) & (values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= TOLERANCE))
            if wrong.any():
                raise KitError(
                    f"guesses: {name} of sample_id {self.sample_id[wrong][0]} (and {wrong.sum() - 1} more) "
                    "must be non-negative and sum to 1"
                )
        geo.check_points(self.points, "guesses: points")

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
        """The guesses for `sample_id`, in that order. Raises KitError naming the first id without a guess."""
        sample_id = _plain(sample_id)
        order = np.argsort(self.sample_id)
        slot = np.searchsorted(self.sample_id, sample_id, sorter=order).clip(max=len(self) - 1)
        rows = order[slot] if len(self) else np.zeros(0, int)
        if len(rows) != len(sample_id) or (self.sample_id[rows] != sample_id).any():
            missing = np.setdiff1d(sample_id, self.sample_id)
            raise KitError(f"no guess for sample_id {missing[0]} (and {len(missing) - 1} more of {len(sample_id)})")
        return self.take(rows)

    def take(self, rows: np.ndarray) -> Guesses:
        """The guesses at row numbers, or where a mask (N,) is true."""
        names = ("sample_id", "state_probs", "points", "weights", "answered")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def on_states(self, state_idx: np.ndarray) -> Guesses:
        """The same guesses with the classes in the order of `state_idx`; classes new to them get probability 0.

        Raises KitError when a class that they hold is missing from `state_idx`.
        """
        missing = np.setdiff1d(self.state_idx, state_idx)
        if len(missing):
            raise KitError(f"guesses know state_idx {missing[0]}, which is not among {np.asarray(state_idx).tolist()}")
        probs = np.zeros((len(self), len(state_idx)), np.float32)
        probs[:, [np.flatnonzero(state_idx == s)[0] for s in self.state_idx]] = self.state_probs
        return replace(self, state_idx=np.asarray(state_idx), state_probs=probs)

    def save(self, path: str | Path) -> None:
        """Write all fields to an .npz file, atomically."""
        storage.write_npz(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Guesses:
        """Read what `save` wrote. Raises KitError when the file is not there or holds other fields."""
        path = Path(path)
        names = [field.name for field in fields(cls)]
        try:
            arrays = storage.read_npz(path)
            return cls(**{name: arrays[name] for name in names})
        except (OSError, KeyError, ValueError) as error:
            raise KitError(
                f"{path.name} in {path.parent.name} is not a guesses file with {', '.join(names)}: {error}"
            ) from error


def _plain(values: np.ndarray) -> np.ndarray:
    """An array that a file can hold without pickling: names come from pandas as objects."""
    array = np.asarray(values)
    return array.astype(str) if array.dtype == object else array


def _same_k(members: Sequence[Guesses]) -> list[Guesses]:
    """Members padded with points of weight 0 to the same K."""
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
    """Members on the union of their classes, in ascending order of state_idx."""
    union = np.unique(np.concatenate([m.state_idx for m in members]))
    return [m.on_states(union) for m in members]


def stack(parts: Sequence[Guesses]) -> Guesses:
    """Guesses for different places (the folds of one run) as one, rows in the order given."""
    parts = _same_k(_same_states(parts))
    names = ("sample_id", "state_probs", "points", "weights", "answered")
    return Guesses(state_idx=parts[0].state_idx, **{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def average(members: Sequence[Guesses], weights: ArrayLike | None = None) -> Guesses:
    """One guess from several for the same places: probabilities averaged, points concatenated.

    `weights` (M,) are the members' shares (equal when None); they are normalised. A row counts as answered when any
    member with a share answered it, and members that did not answer it are left out of that row as long as one did.
    Rows follow the first member. Raises KitError when a member lacks a place that the first one has.
    """
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, float)
    if len(shares) != len(members) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise KitError(f"weights {shares.tolist()} for {len(members)} members: one non-negative share each, not all 0")
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
