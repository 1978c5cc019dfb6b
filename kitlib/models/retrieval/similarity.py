"""Compare similarity in an embedding with distance on the globe: pairs of places, a curve, and summary numbers.

    sampled = {name: pairs(points, x, group=group) for name, x in {"frozen": frozen, "trained": trained}.items()}
    curve(sampled["frozen"])                                 # cosine similarity by distance
    table({name: summary(points, x, group=group) for name, x in ...})

The sampled pairs depend on points, group and seed alone, so that embeddings of the same places are compared on the same
pairs. Features are (N, D), one row a place; `search.features_for` makes them of views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from kitlib import geo
from kitlib.core.errors import KitError

QUERIES = 2000  # places whose nearest neighbour is searched
BLOCK = 2**22  # numbers in one block of a computation
LEVELS = 7  # of neighbours' ranks, which double: 1, 2-3, 4-7, ... 64-127
EDGES_KM = (0.0, *(10 ** (step / 5) for step in range(22)), 20_016.0)  # five bins a factor of ten; half way round
SAME_KM = 1e-6  # distances that differ less, by a millimetre, count as equal
SAME = 1e-12  # variance below which rows of length 1 count as equal


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of different places, sampled by `pairs`."""

    km: np.ndarray  # (P,) float64, distance on the globe
    cosine: np.ndarray  # (P,) float32, similarity of their embeddings
    a: np.ndarray  # (P,) rows of the first places
    b: np.ndarray  # (P,) rows of the second places
    weight: np.ndarray  # (P,) how many of all pairs each represents


@dataclass(frozen=True)
class Summary:
    """How well similarity follows distance, and how many dimensions the embedding uses; made by `summary`."""

    n: int  # places
    dim: int  # D
    spearman: float  # rank correlation of distance and similarity: -1 at best, 0 by chance
    violations: float  # share of triplets in the wrong order: 0 at best, 0.5 by chance
    cosine_mean: float  # of random pairs; near 1 all point one way: the cone effect (arXiv:2203.02053)
    cosine_std: float
    participation: float  # effective dimension: participation ratio of the variances
    first_share: float  # share of the variance in the first component; near 1 the embedding is a line
    nearest_km: float  # median distance to the most similar place
    random_km: float  # median distance of random pairs: chance level
    best_km: float  # median distance to the nearest place: the optimum


def pairs(
    points: ArrayLike, features: ArrayLike, n_pairs: int = 200_000, seed: int = 0, group: ArrayLike | None = None
) -> Pairs:
    """Pairs of places at points (N, 2) and the cosine of their features (N, D), with many at short distances.

    All pairs where there are at most n_pairs. Otherwise half of them join a random place with one of its 127 nearest,
    whose ranks are about uniform in their logarithm, and half join a random place with any other. The weight of a pair
    is one over the expected number of pairs of its rank, so that weighted sums are unbiased for all pairs.

    group: (N,) integers, of near-duplicates; no pair is within a group, and a negative number is no group. An embedding
    of zeros has cosine 0. Raises KitError for arrays of other shapes, and where no pair is left.
    """
    points, unit, code = _checked(points, features, group, n_pairs)
    n, rng = len(points), np.random.default_rng(seed)
    if n * (n - 1) // 2 <= n_pairs:
        a, b = np.triu_indices(n, 1)
        weight = np.ones(len(a))
    else:
        levels = min(LEVELS, int(np.log2(n)))
        n_near = n_pairs // 2 // levels * levels
        width = 2 ** np.repeat(np.arange(levels), n_near // levels)  # of ranks in the level
        _, index = geo.nearest(points, points, 2**levels)  # rank 0 is the place itself
        a, b = rng.integers(n, size=(2, n_pairs))
        b[:n_near] = index[a[:n_near], width + rng.integers(width)]
        far = np.ones(n_pairs, bool)
        far[n_near:] = ~(index[a[n_near:]] == b[n_near:, None]).any(1)
        weight = width * n * levels / max(1, n_near)
        weight = np.append(weight, np.full(n_pairs - n_near, n * (n - 2**levels) / max(1, far[n_near:].sum())))
        a, b, weight = a[far], b[far], weight[far] / 2  # a pair has two orders
    mask = code[a] != code[b]
    a, b, weight = a[mask], b[mask], weight[mask]
    return Pairs(geo.distance_km(points[a], points[b]), _cosine(unit, a, b), a, b, weight)


def curve(pairs: Pairs, edges_km: Sequence[float] | None = None) -> pd.DataFrame:
    """Cosine similarity by distance: a row for each bin between edges_km that has pairs.

    Columns: from_km and to_km, the edges, the upper one excluded; km, the median distance; count, of sampled pairs;
    mean, q25 and q75 of the cosine. All but count are weighted. Raises KitError for edges that do not ascend.
    """
    edges = np.asarray(EDGES_KM if edges_km is None else edges_km, float)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise KitError(f"edges_km: expected two or more ascending distances; got {edges.tolist()}")
    bin_of = np.searchsorted(edges, pairs.km, side="right") - 1
    rows = []
    for i in range(len(edges) - 1):
        inside = bin_of == i
        if inside.any():
            cosine, weight = pairs.cosine[inside].astype(float), pairs.weight[inside]
            middle, low, high = (*quantiles(pairs.km[inside], weight, 0.5), *quantiles(cosine, weight, 0.25, 0.75))
            mean = np.average(cosine, weights=weight)
            rows.append((edges[i], edges[i + 1], middle, int(inside.sum()), mean, low, high))
    return pd.DataFrame(rows, columns=["from_km", "to_km", "km", "count", "mean", "q25", "q75"])


def summary(
    points: ArrayLike, features: ArrayLike, n_pairs: int = 200_000, seed: int = 0, group: ArrayLike | None = None
) -> Summary:
    """The `Summary` of places at points (N, 2) with features (N, D); seed and group as for `pairs`.

    Spearman, random_km and the mean and spread of the cosine are over n_pairs random pairs, or all where there are
    fewer. A violation is a random triplet of a place and two others whose closer one is less similar; equally similar
    counts half. Most pairs are far apart, so both hardly measure whether near places are told from very near ones:
    `curve` and nearest_km do. The dimensions are of rows of length 1 about their mean; a common direction shows in
    cosine_mean instead. nearest_km and best_km are over 2,000 random places, or all where there are fewer. Where
    nothing varies, the rank correlation and the dimensions are 0, and the first component's share is 1.

    >>> around = np.column_stack([np.zeros(90), np.arange(90) * 4.0 - 180])
    >>> circle = summary(around, geo.unit_vectors(around))
    >>> round(circle.spearman, 3), round(circle.violations, 3), round(circle.participation, 3), round(circle.nearest_km)
    (-1.0, 0.0, 2.0, 445)
    """
    points, unit, code = _checked(points, features, group, n_pairs)
    n = len(unit)
    a, b = np.random.default_rng(seed).integers(n, size=(2, n_pairs))
    a, b = (a, b) if n * (n - 1) // 2 > n_pairs else np.triu_indices(n, 1)
    a, b = a[code[a] != code[b]], b[code[a] != code[b]]
    km, cosine = geo.distance_km(points[a], points[b]), _cosine(unit, a, b)
    varies = km.min() < km.max() and cosine.min() < cosine.max()
    variances = spectrum(unit)
    nearest_km, best_km = _nearest_km(points, unit, code, seed)
    return Summary(
        n=n,
        dim=unit.shape[1],
        spearman=float(stats.spearmanr(km, cosine).statistic) if varies else 0.0,
        violations=_violations(points, unit, code, n_pairs, seed),
        cosine_mean=float(cosine.mean(dtype=float)),
        cosine_std=float(cosine.std(dtype=float)),
        participation=participation(variances),
        first_share=float(variances[0] / variances.sum()) if variances.any() else 1.0,
        nearest_km=nearest_km,
        random_km=float(np.median(km)),
        best_km=best_km,
    )


def table(summaries: Mapping[str, Summary]) -> pd.DataFrame:
    """Summaries side by side, rounded, one column an embedding."""
    digits = {"participation": 1, "nearest_km": 0, "random_km": 0, "best_km": 0}
    rounded = {name: {k: round(v, digits.get(k, 3)) for k, v in asdict(s).items()} for name, s in summaries.items()}
    return pd.DataFrame({name: pd.Series(row, dtype=object) for name, row in rounded.items()})  # counts stay whole


def spectrum(features: ArrayLike) -> np.ndarray:
    """Variances (K,) along the principal components of features (N, D) normalised to length 1, largest first.

    K is min(N, D). All are 0 where the rows are equal.
    """
    unit = _unit(np.asarray(features))
    unit -= unit.mean(0, dtype=float).astype(np.float32)
    gram = unit.T @ unit if len(unit) >= unit.shape[1] else unit @ unit.T  # the smaller has the same eigenvalues
    variances = np.maximum(np.linalg.eigvalsh(gram.astype(float) / len(unit))[::-1], 0)
    return variances if variances.sum() > SAME else np.zeros_like(variances)


def participation(variances: ArrayLike) -> float:
    """Participation ratio of variances (K,): the squared sum over the sum of squares, 0 where all are 0.

    >>> participation([2.0, 2.0, 0.0])
    2.0
    """
    variances = np.asarray(variances, float)
    return float(variances.sum() ** 2 / (variances**2).sum()) if variances.any() else 0.0


def quantiles(values: np.ndarray, weight: np.ndarray, *levels: float) -> np.ndarray:
    """Quantiles (Q,) of values (P,) with positive weights (P,); each is one of the values.

    >>> quantiles(np.array([3.0, 1.0, 2.0]), np.ones(3), 0.5).tolist()
    [2.0]
    """
    return np.quantile(values, levels, weights=weight, method="inverted_cdf")


def _checked(
    points: ArrayLike, features: ArrayLike, group: ArrayLike | None, n_pairs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 2), features normalised to length 1, and groups (N,), with a new one for each place without."""
    points, features = geo.check_points(points, "places"), np.asarray(features)
    if points.ndim != 2 or features.ndim != 2 or len(points) != len(features) or len(points) < 2:
        raise KitError(
            "points, features: expected shapes (N, 2) and (N, D), N at least 2, as search.features_for makes them of "
            f"views; got {points.shape} and {features.shape}"
        )
    if n_pairs < 1:
        raise KitError(f"n_pairs: expected a whole number from 1; got {n_pairs}")
    n = len(points)
    code = np.arange(n) if group is None else np.asarray(group)
    if code.shape != (n,) or code.dtype.kind not in "iu":
        raise KitError(f"group: expected {n} integers, one a place; got shape {code.shape}, {code.dtype}")
    code = np.where(code < 0, code.max() + 1 + np.arange(n), code)
    if (code == code[0]).all():
        raise KitError(f"group: expected places of different groups; got {n} of the same")
    return points, _unit(features), code


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows (N, D) float32 of length 1; a row of zeros stays."""
    if features.ndim != 2 or 0 in features.shape:
        raise KitError(f"features: expected shape (N, D), neither of them 0; got {features.shape}")
    features = features.astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def _cosine(unit: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products (P,) float32 of rows a (P,) and b (P,), from -1 to 1."""
    parts = -(-len(a) * unit.shape[1] // BLOCK) or 1
    rows = zip(np.array_split(a, parts), np.array_split(b, parts), strict=True)
    return np.concatenate([np.einsum("pd,pd->p", unit[x], unit[y]) for x, y in rows]).clip(-1, 1)


def _violations(points: np.ndarray, unit: np.ndarray, code: np.ndarray, n_triplets: int, seed: int) -> float:
    """The share of random triplets whose closer place is less similar; 0.5 where no two distances differ."""
    place, one, two = np.random.default_rng([seed, 1]).integers(len(points), size=(3, n_triplets))
    km = geo.distance_km(points[place], points[one]) - geo.distance_km(points[place], points[two])
    cosine = _cosine(unit, place, one) - _cosine(unit, place, two)
    wrong = 0.5 + 0.5 * np.sign(km) * np.sign(cosine)  # farther and more similar, or closer and less
    ordered = (np.abs(km) > SAME_KM) & (code[place] != code[one]) & (code[place] != code[two])
    return float(wrong[ordered].mean()) if ordered.any() else 0.5


def _nearest_km(points: np.ndarray, unit: np.ndarray, code: np.ndarray, seed: int) -> tuple[float, float]:
    """Median km of up to QUERIES places to the most similar place and to the nearest, both outside the own group."""
    places = np.random.default_rng([seed, 2]).permutation(len(points))[:QUERIES]
    similar_km, nearest_km = [], []
    for rows in np.array_split(places, -(-len(places) * len(points) // BLOCK)):
        mask = code[rows, None] != code
        km = geo.distance_matrix_km(points[rows], points)
        similar_km.append(km[np.arange(len(rows)), np.where(mask, unit[rows] @ unit.T, -np.inf).argmax(1)])
        nearest_km.append(np.where(mask, km, np.inf).min(1))
    return float(np.median(np.concatenate(similar_km))), float(np.median(np.concatenate(nearest_km)))
