"""Which places to compare: pairs and triplets drawn with known chances, none of them within a group.

Most pairs of places are far apart; what is asked of an embedding happens where they are near. So half of the pairs are
drawn among neighbours, and weights make up for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from kitlib import geo
from kitlib.core.errors import KitError

NEAR = 128  # neighbours of a place that the near half of the pairs is drawn from


@dataclass(frozen=True, eq=False)
class Groups:
    """Places sorted by group, so that those outside a group are what stands before and after it."""

    code: np.ndarray  # (N,) 0…G-1
    order: np.ndarray  # (N,) rows
    start: np.ndarray  # (N,) where the place's group begins in order
    size: np.ndarray  # (N,) of the place's group

    @property
    def others(self) -> np.ndarray:
        """How many places (N,) are outside each place's group."""
        return len(self.code) - self.size

    def other(self, place: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The place (P,) that is the `number`-th outside the group of each place (P,)."""
        return self.order[number + np.where(number < self.start[place], 0, self.size[place])]


def groups_of(group: ArrayLike | None, n: int) -> Groups:
    """Groups of n places from integers (n,), each place one of its own where they are None or negative.

    Raises KitError for other arrays, and where all places are in one group.
    """
    code = np.arange(n) if group is None else np.asarray(group)
    if code.shape != (n,) or code.dtype.kind not in "iu":
        raise KitError(f"group has shape {code.shape}, {code.dtype}: wanted are {n} integers, one a place")
    code = code.astype(np.int64)
    code = np.unique(np.where(code < 0, code.max() + 1 + np.arange(n), code), return_inverse=True)[1]
    size = np.bincount(code)
    if len(size) < 2:
        raise KitError(f"all {n} places are in one group: there is no pair to compare")
    return Groups(code, np.argsort(code, kind="stable"), (np.cumsum(size) - size)[code], size[code])


def draw_pairs(
    points: np.ndarray, groups: Groups, n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows a and b of places at points (N, 2), and how many of all pairs each stands for, all (P,).

    Where there are at most n_pairs of them, all pairs come, each once. Otherwise half are drawn uniformly, half from
    the places' neighbours: a random place with its k-th nearest, up to the 128th, k with a probability proportional to
    1/k, which is uniform in log distance where places are spread over a surface. The weight of a pair is one over how
    often it was to be expected (the balance heuristic of Veach and Guibas 1995), so that weighted sums are unbiased for
    all pairs, and no weight is above twice the mean.
    """
    n, others = len(points), groups.others
    if n_pairs < 1:
        raise KitError(f"n_pairs={n_pairs} of places: allowed are whole numbers from 1")
    if n * (n - 1) // 2 <= n_pairs:
        a, b = np.triu_indices(n, 1)
        apart = groups.code[a] != groups.code[b]
        return a[apart], b[apart], np.ones(int(apart.sum()))

    _, index = geo.nearest(points, points, min(NEAR, n - 1) + 1)  # the place itself too: it is of its own group
    share = (groups.code[index] != groups.code[:, None]) / np.maximum(np.arange(index.shape[1]), 1)
    total = share.sum(1, keepdims=True)
    share = np.divide(share, total, out=share, where=total > 0) / max(1, np.count_nonzero(total))
    n_near = n_pairs // 2 if total.any() else 0

    a = rng.choice(n, n_pairs - n_near, p=others / others.sum())
    b = groups.other(a, rng.integers(others[a]))
    running = np.cumsum(share)
    flat = np.searchsorted(running, rng.random(n_near) * running[-1], side="right")
    a, b = np.append(a, flat // index.shape[1]), np.append(b, index.ravel()[flat])

    chance = csr_array((share.ravel(), index.ravel(), np.arange(0, index.size + 1, index.shape[1])), shape=(n, n))
    chance.sort_indices()
    expected = (n_pairs - n_near) * 2 / others.sum() + n_near * (chance[a, b] + chance[b, a])
    return a, b, 1 / expected


def draw_triplets(groups: Groups, n_triplets: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (n_triplets, 3) of a random place and two others outside its group, all of them different places.

    Raises KitError where no place has two others.
    """
    enough = np.flatnonzero(groups.others >= 2)
    if not len(enough):
        raise KitError("a triplet is a place and two others outside its group, and no place has so many")
    place = enough[rng.integers(len(enough), size=n_triplets)]
    one, two = rng.integers(groups.others[place]), rng.integers(groups.others[place] - 1)
    two += two >= one
    return np.stack([place, groups.other(place, one), groups.other(place, two)], axis=1)
