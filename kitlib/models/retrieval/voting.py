"""Turn the k nearest gallery entries into state probabilities and weighted points; choose k and temperature.

similarity, index = search.search(...)
vote, scores = choose(similarity, index, entries, state_idx, points)   # on the calibration split
guesses = vote.guess(sample_id, similarity, index, entries)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.evaluation import baselines, metrics
from kitlib.evaluation.guesses import Guesses

KS = (5, 10, 20, 40, 80)
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
MAX_QUERIES = 5000  # on which k and temperature are chosen: more cost minutes and change nothing
KERNEL_KM = 100.0  # km at which a labelled place counts 1/e for the states of an entry without a label
KERNEL_PLACES = 16  # nearest labelled places that give an entry its states


@dataclass(frozen=True)
class Entries:
    """The M entries of a gallery: their locations and states, and the fallback for places without a picture.

    points (M, 2) [lat, lon]; states (M, S), the state probabilities of each entry; state_idx (S,), the order of the
    states; common (S,), the frequency of each state among the training places, above 0; middle (2,), their geometric
    median.
    """

    points: np.ndarray
    states: np.ndarray
    state_idx: np.ndarray
    common: np.ndarray
    middle: np.ndarray

    def take(self, rows: np.ndarray) -> Entries:
        """The entries at row numbers or under a mask (M,)."""
        return replace(self, points=self.points[rows], states=self.states[rows])

    def joined(self, points: np.ndarray, states: np.ndarray) -> Entries:
        """These entries, followed by others at points (B, 2) with states (B, S)."""
        points, states = np.concatenate([self.points, points]), np.concatenate([self.states, states])
        return replace(self, points=points, states=states)

    def fallback(self, sample_id: np.ndarray) -> Guesses:
        """Guesses for places (N,) without a usable picture: the states' frequencies and one constant point."""
        return baselines.constant(sample_id, self.state_idx, self.common, self.middle)

    def save(self, path: Path, embeddings: np.ndarray) -> None:
        """Write the entries and their embeddings (M, E), as float16, to an .npz file, atomically."""
        storage.write_npz(path, vars(self) | {"embeddings": embeddings.astype(np.float16)})

    @classmethod
    def load(cls, path: Path) -> tuple[Entries, np.ndarray]:
        """Read the entries and their embeddings that `save` wrote."""
        arrays = storage.read_npz(path, ("embeddings",))
        embeddings = arrays.pop("embeddings")
        with storage.reading(path):
            return cls(**arrays), embeddings


@dataclass(frozen=True)
class Vote:
    """The voting rule: the k most similar entries vote with weights softmax(similarity / temperature).

    smoothing: the share of the state probabilities that follows the states' frequencies instead.
    """

    k: int
    temperature: float
    smoothing: float = 0.02

    def weights(self, similarity: np.ndarray) -> np.ndarray:
        """Weights (N, min(k, K)) of the best of similarities (N, K), sorted; rows sum to 1, and -inf gets 0.

        >>> Vote(2, 1.0).weights(np.array([[0.5, 0.5, 0.5], [0.5, -np.inf, -np.inf]])).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
        """
        best = similarity[:, : self.k].astype(np.float64)
        if not np.isfinite(best[:, :1]).all():
            row = int(np.argmin(np.isfinite(best[:, 0])))
            raise KitError(f"gallery: expected an entry for each place; got none for place {row} of {len(best)}")
        weights = np.exp((best - best[:, :1]) / self.temperature)
        return weights / weights.sum(axis=1, keepdims=True)

    def guess(self, sample_id: np.ndarray, similarity: np.ndarray, index: np.ndarray, entries: Entries) -> Guesses:
        """Guesses for places (N,) from the results of `search`: similarities and rows (N, K) of entries."""
        weights, index = self.weights(similarity), index[:, : self.k].clip(min=0)
        probs = self.state_probs(weights, index, entries)
        points, answered = entries.points[index], np.ones(len(index), bool)
        return Guesses(sample_id, entries.state_idx, probs, points, weights, answered)

    def state_probs(self, weights: np.ndarray, index: np.ndarray, entries: Entries) -> np.ndarray:
        """State probabilities (N, S), all above 0, from weights and rows (N, k) of entries."""
        n, k = index.shape
        votes = csr_array((weights.ravel(), index.ravel(), np.arange(n + 1) * k), shape=(n, len(entries.points)))
        return (1 - self.smoothing) * (votes @ entries.states) + self.smoothing * entries.common


def choose(
    similarity: np.ndarray,
    index: np.ndarray,
    entries: Entries,
    state_idx: np.ndarray,
    points: np.ndarray,
    *,
    ks: tuple[int, ...] = KS,
    temperatures: tuple[float, ...] = TEMPERATURES,
    smoothing: float = 0.02,
    seed: int = 0,
) -> tuple[Vote, pd.DataFrame]:
    """The vote with the highest final score on places of true state_idx (N,) and points (N, 2), and all scores.

    similarity, index: (N, K), the results of a search with the largest of `ks`. Places without a match are left out,
    and at most MAX_QUERIES random ones are used. A k above K is not tried. The table has a row for each pair: k,
    temperature, final, mean_km, median_km. Of equal scores the first wins, with the smaller k.
    """
    rows = np.flatnonzero(np.isfinite(similarity[:, 0]))
    if not len(rows):
        raise KitError(
            "calibration places: expected a match outside their own fold and near-duplicates; "
            f"got none for all {len(similarity)}, so k and temperature cannot be chosen"
        )
    if len(rows) > MAX_QUERIES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_QUERIES, replace=False))
    similarity, index, state_idx, points = similarity[rows], index[rows], state_idx[rows], points[rows]
    scores = []
    for k in [k for k in ks if k <= similarity.shape[1]] or [similarity.shape[1]]:
        nearest = index[:, :k].clip(min=0)
        for temperature in temperatures:
            vote = Vote(k, temperature, smoothing)
            weights = vote.weights(similarity)
            top = np.argsort(-vote.state_probs(weights, nearest, entries), axis=1, kind="stable")[:, :5]
            predicted = geo.geometric_median(entries.points[nearest], weights)
            score = metrics.score_arrays(state_idx, points, entries.state_idx[top], predicted)
            scores.append((k, temperature, score.final, score.mean_km, score.median_km))
    table = pd.DataFrame(scores, columns=["k", "temperature", "final", "mean_km", "median_km"])
    return best(table, smoothing), table


def best(scores: pd.DataFrame, smoothing: float) -> Vote:
    """The vote with the highest final score of a table by `choose`; of equal ones the first."""
    first = scores.iloc[int(scores["final"].argmax())]
    return Vote(int(first["k"]), float(first["temperature"]), smoothing)


def state_frequencies(state_position: np.ndarray, n_states: int) -> np.ndarray:
    """Frequency (S,) of each state among places (N,), with one place added to each so that none is 0."""
    count = np.bincount(state_position, minlength=n_states) + 1.0
    return count / count.sum()


def states_nearby(points: np.ndarray, labelled: np.ndarray, state_position: np.ndarray, n_states: int) -> np.ndarray:
    """State probabilities (M, S) at unlabelled points (M, 2), from labelled ones (N, 2) with states (N,) around them.

    The KERNEL_PLACES nearest count exp(-km / KERNEL_KM) each: on the border of two states both are likely.
    """
    km, index = geo.nearest(points, labelled, min(KERNEL_PLACES, len(labelled)))
    weights = np.exp((km[:, :1] - km) / KERNEL_KM)
    weights /= weights.sum(axis=1, keepdims=True)
    probs = np.zeros((len(points), n_states), np.float32)
    np.add.at(probs, (np.arange(len(points))[:, None], state_position[index]), weights)
    return probs
