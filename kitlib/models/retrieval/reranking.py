"""A second look at the candidates of retrieval: which of the entries most similar to a place are also near to it?

    crowded = crowding(embeddings, entries.points)
    reranker, scores, index = Reranker.fit(similarity, index, entries, crowded, points, group)   # on other places
    scores, index = reranker.rerank(*search.search(queries, embeddings, CANDIDATES), entries)

A candidate is the likelier near the more candidates lie around it or vote for its state, the denser the gallery is
there, and the less it resembles everything. These features are weighted by a listwise regression (ListNet, Cao et al.
2007): the softmax over a place's candidates is fitted to targets that decay with a candidate's distance to the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from kitlib import geo
from kitlib.models.retrieval import search
from kitlib.models.retrieval.voting import KS, Entries

CANDIDATES = max(KS)  # entries a place that are looked at again
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5)  # of the fitted scores, which are logits
TARGET_KM = 200.0  # km at which a candidate's target falls to 1/e
AROUND_KM = (50.0, 200.0, 600.0, 2000.0)  # at which a candidate counts 1/e for another one
NEIGHBOURS = (5, 20)  # to which the distance tells how dense the gallery is
ALIKE = 10  # entries that an entry resembles most
PENALTY = 5.0  # of squared weights of standardised features; the losses of places are summed
INNER_FOLDS = 5
ROWS = 256  # places at once: K * K distances each


def crowding(embeddings: np.ndarray, points: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """How crowded it is around each of M entries (M, 3) with embeddings (M, E) at points (M, 2).

    The columns are the mean similarity to the `ALIKE` most similar other entries, and the logarithms of the km to the
    `NEIGHBOURS`-th nearest ones.
    """
    own = np.arange(len(points))
    alike, _ = search.search(embeddings, embeddings, ALIKE, query_group=own, gallery_group=own, device=device)
    km = geo.nearest(points, points, min(NEIGHBOURS[-1] + 1, len(points)))[0]
    nth = km[:, [min(n, len(points) - 1) for n in NEIGHBOURS]]
    return np.column_stack([np.where(np.isfinite(alike), alike, 0).mean(1), np.log(nth + 1)])


def describe(similarity: np.ndarray, index: np.ndarray, entries: Entries, crowded: np.ndarray) -> np.ndarray:
    """Features (N, K, F) of the candidates of N places, from a search's similarities and rows (N, K) of entries.

    Similarity, the same standardised over the place's candidates, its distance to the best one, and the logarithm of
    the rank; how much of the others' weight lies around, at each of `AROUND_KM`, and is for the same state; and
    `crowded` (M, 3). Features of missing candidates, of similarity -inf, are without meaning.
    """
    parts = []
    for start in range(0, len(index), ROWS):
        s, rows = similarity[start : start + ROWS].astype(float), index[start : start + ROWS].clip(min=0)
        known = np.isfinite(s)
        s, count = np.where(known, s, 0.0), known.sum(axis=1, keepdims=True).clip(min=1)
        z = (s - s.sum(axis=1, keepdims=True) / count) * known
        z /= np.sqrt((z**2).sum(axis=1, keepdims=True) / count) + 1e-9
        weights = np.exp(z) * known
        weights /= weights.sum(axis=1, keepdims=True) + 1e-9
        points, states = entries.points[rows], entries.states[rows]
        km = geo.distance_km(points[:, :, None], points[:, None])  # (n, K, K)
        around = [(np.exp(-km / scale) @ weights[..., None])[..., 0] - weights for scale in AROUND_KM]
        votes = np.einsum("nks,ns->nk", states, np.einsum("nk,nks->ns", weights, states))
        votes -= weights * (states**2).sum(2)
        shares = [np.log(share.clip(0) + 1e-3) for share in (*around, votes)]
        rank = np.broadcast_to(np.log1p(np.arange(s.shape[1])), s.shape)
        columns = [s, z, z[:, :1] - z, rank, *shares]
        parts.append(np.concatenate([np.stack(columns, axis=2), crowded[rows]], axis=2))
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Reranker:
    """Scores candidates by weights (F,) of their features, standardised by mean and scale (F,).

    crowded (M, 3): `crowding` of the gallery.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    crowded: np.ndarray

    @classmethod
    def fit(
        cls,
        similarity: np.ndarray,
        index: np.ndarray,
        entries: Entries,
        crowded: np.ndarray,
        points: np.ndarray,
        group: np.ndarray,
    ) -> tuple[Reranker, np.ndarray, np.ndarray]:
        """Fit to the candidates (N, K) of places at points (N, 2); also returns the candidates in their new order.

        For that order each place is scored by weights that were fitted to places of other groups (N,).
        """
        features, known = describe(similarity, index, entries, crowded), np.isfinite(similarity)
        km = geo.distance_km(points[:, None], entries.points[index.clip(min=0)])
        inner = np.unique(group, return_inverse=True)[1] % INNER_FOLDS
        scores = np.zeros(similarity.shape)
        for fold in np.unique(inner):
            rows = inner == fold
            if known[~rows].any():
                fitted = cls(*_fitted(features[~rows], known[~rows], km[~rows]), crowded)
                scores[rows] = fitted._scores(features[rows])
        return cls(*_fitted(features, known, km), crowded), *_reordered(scores, known, index)

    def rerank(self, similarity: np.ndarray, index: np.ndarray, entries: Entries) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows (N, K) of the candidates that a search has found, best first, as a search returns them."""
        scores = self._scores(describe(similarity, index, entries, self.crowded))
        return _reordered(scores, np.isfinite(similarity), index)

    def _scores(self, features: np.ndarray) -> np.ndarray:
        """Logits (N, K) of features (N, K, F)."""
        return ((features - self.mean) / self.scale) @ self.weights


def _fitted(features: np.ndarray, known: np.ndarray, km: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, scale and weights (F,) that minimise the cross-entropy of the softmax over a place's known candidates.

    The targets of features (N, K, F) are proportional to exp(-km / TARGET_KM).
    """
    features, known, km = (array[known.any(axis=1)] for array in (features, known, km))
    mean, scale = features[known].mean(axis=0), features[known].std(axis=0) + 1e-6
    x = np.where(known[..., None], (features - mean) / scale, 0.0)
    targets = softmax(np.where(known, -km / TARGET_KM, -np.inf), axis=1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_share = log_softmax(np.where(known, x @ weights, -1e9), axis=1)
        excess = np.exp(log_share) - targets
        value = PENALTY * (weights**2).sum() - (targets * log_share).sum()
        return value, np.einsum("nk,nkf->f", excess, x) + 2 * PENALTY * weights

    return mean, scale, minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B").x


def _reordered(scores: np.ndarray, known: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows (N, K), best first; missing candidates come last, with score -inf and row -1."""
    scores = np.where(known, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(index, order, 1)
