"""Are places that are near on the globe near in the embedding? Pairs of places, their curve, and a summary in numbers.

    drawn = {name: pairs(points, x, group=group) for name, x in {"frozen": frozen, "trained": trained}.items()}
    curve(drawn["frozen"])                                 # cosine similarity by distance
    table({name: summary(points, x, group=group) for name, x in ...})

Which places are compared depends on points, group and seed alone, so that all embeddings of the same places answer the
same questions. Features are (N, D), one row a place; `search.features_for` makes them of views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from kitlib import geo
from kitlib.core.errors import KitError, shorten
from kitlib.data.places import Places
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.models.retrieval import retriever, search
from kitlib.models.retrieval.embedders import Frozen
from kitlib.models.retrieval.run import Session

QUERIES = 2000  # places whose nearest neighbour is looked for
BLOCK = 2**22  # numbers worked on at once
LEVELS = 7  # of neighbours' ranks, which double: 1, 2-3, 4-7, ... 64-127
EDGES_KM = (0.0, *(10 ** (step / 5) for step in range(22)), 20_016.0)  # five bins a factor of ten; half way round
SAME_KM = 1e-6  # distances that differ less, by a millimetre, are in no order
SAME = 1e-12  # variance of rows of length 1 below which they are all the same


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of different places, made by `pairs`."""

    km: np.ndarray  # (P,) float64, between the two on the globe
    cosine: np.ndarray  # (P,) float32, similarity of their embeddings
    a: np.ndarray  # (P,) rows of the one
    b: np.ndarray  # (P,) rows of the other
    weight: np.ndarray  # (P,) how many of all pairs this one stands for


@dataclass(frozen=True)
class Summary:
    """How well an embedding orders places as the globe does, and how it uses its dimensions; made by `summary`."""

    n: int  # places
    dim: int  # D
    spearman: float  # rank correlation of distance and similarity: -1 at best, 0 by chance
    violations: float  # share of triplets in the wrong order: 0 at best, 0.5 by chance
    cosine_mean: float  # between random places; near 1 all point one way: the cone effect (arXiv:2203.02053)
    cosine_std: float
    participation: float  # effective dimension: participation ratio of the variances
    first_share: float  # of the variance that is in one component; near 1 the embedding has collapsed to a line
    nearest_km: float  # median distance to the place that is most alike
    random_km: float  # median distance to any place: what chance gives
    best_km: float  # median distance to the nearest place: what is possible

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, as for metrics.json."""
        return asdict(self)


def pairs(
    points: ArrayLike, features: ArrayLike, n_pairs: int = 200_000, seed: int = 0, group: ArrayLike | None = None
) -> Pairs:
    """Pairs of places at points (N, 2) and the cosine of their features (N, D), with many at short distances.

    All pairs where there are at most n_pairs. Otherwise half of them are a random place with one of its 127 nearest,
    whose ranks are about uniform in their logarithm, and half are a random place with any other; a pair's weight is
    one over how often pairs of its rank were to be expected, so that weighted sums are unbiased for all pairs.

    group: (N,) integers; no pair is within one (near-duplicates), a negative group is none. An embedding of zeros has
    cosine 0. Raises KitError for arrays that do not fit together, for what is not finite, and where no pair is left.
    """
    points, unit, code = _checked(points, features, group, n_pairs)
    n, rng = len(points), np.random.default_rng(seed)
    if n * (n - 1) // 2 <= n_pairs:
        a, b = np.triu_indices(n, 1)
        weight = np.ones(len(a))
    else:
        levels = min(LEVELS, int(np.log2(n)))
        n_near = n_pairs // 2 // levels * levels
        width = 2 ** np.repeat(np.arange(levels), n_near // levels)  # ranks in the level
        _, index = geo.nearest(points, points, 2**levels)  # of rank 0 is the place itself
        a, b = rng.integers(n, size=(2, n_pairs))
        b[:n_near] = index[a[:n_near], width + rng.integers(width)]
        far = np.ones(n_pairs, bool)
        far[n_near:] = ~(index[a[n_near:]] == b[n_near:, None]).any(1)
        weight = width * n * levels / max(1, n_near)
        weight = np.append(weight, np.full(n_pairs - n_near, n * (n - 2**levels) / max(1, far[n_near:].sum())))
        a, b, weight = a[far], b[far], weight[far] / 2  # a pair has two orders
    apart = code[a] != code[b]
    a, b, weight = a[apart], b[apart], weight[apart]
    return Pairs(geo.distance_km(points[a], points[b]), _cosine(unit, a, b), a, b, weight)


def curve(pairs: Pairs, edges_km: Sequence[float] | None = None) -> pd.DataFrame:
    """Cosine similarity by distance, a row for each bin between edges_km that has pairs: mean and middle half.

    Columns: from_km and to_km, the edges, the upper one excluded; km, the median distance; count, of drawn pairs; mean,
    q25 and q75 of the cosine. All but count are weighted. Raises KitError for edges that do not ascend.
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

    Spearman, random_km and the cosine's mean and spread are over n_pairs random pairs, or all where there are fewer;
    violations are over n_pairs random triplets of a place and two others: the closer one is less alike; equally alike
    counts half. Most pairs are far apart, so both say little of an embedding that knows near from far and no more:
    `curve` and nearest_km do. The dimensions are of rows of length 1 about their mean, so a common direction does not
    count: that shows in cosine_mean. Nearest and best are over 2,000 random places, or all where there are fewer.
    Where nothing varies, the rank correlation and the dimensions are 0; the first component's share is 1.

    >>> around = np.column_stack([np.zeros(90), np.arange(90) * 4.0 - 180])
    >>> line = summary(around, geo.unit_vectors(around))
    >>> round(line.spearman, 3), round(line.violations, 3), round(line.participation, 3), round(line.nearest_km)
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
    """Summaries side by side, one column an embedding, rounded to what can be told apart."""
    digits = {"participation": 1, "nearest_km": 0, "random_km": 0, "best_km": 0}
    rounded = {name: {k: round(v, digits.get(k, 3)) for k, v in s.as_dict().items()} for name, s in summaries.items()}
    return pd.DataFrame({name: pd.Series(row, dtype=object) for name, row in rounded.items()})  # counts stay whole


def spectrum(features: ArrayLike) -> np.ndarray:
    """Variances (K,) along the principal components of features (N, D) made of length 1, largest first, K = min(N, D).

    All zeros where the rows are all the same.
    """
    unit = _unit(np.asarray(features))
    unit -= unit.mean(0, dtype=float).astype(np.float32)
    gram = unit.T @ unit if len(unit) >= unit.shape[1] else unit @ unit.T  # the smaller has the same eigenvalues
    variances = np.maximum(np.linalg.eigvalsh(gram.astype(float) / len(unit))[::-1], 0)
    return variances if variances.sum() > SAME else np.zeros_like(variances)


def participation(variances: ArrayLike) -> float:
    """Participation ratio of variances (K,): square of their sum over sum of their squares; 0 where all are 0.

    >>> participation([2.0, 2.0, 0.0])
    2.0
    """
    variances = np.asarray(variances, float)
    return float(variances.sum() ** 2 / (variances**2).sum()) if variances.any() else 0.0


def quantiles(values: np.ndarray, weight: np.ndarray, *levels: float) -> np.ndarray:
    """The quantiles (Q,) of values (P,) with positive weights (P,), each one of the values.

    >>> quantiles(np.array([3.0, 1.0, 2.0]), np.ones(3), 0.5).tolist()
    [2.0]
    """
    return np.quantile(values, levels, weights=weight, method="inverted_cdf")


def _checked(
    points: ArrayLike, features: ArrayLike, group: ArrayLike | None, n_pairs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 2), features of length 1, and groups (N,) of which each place without one is its own."""
    points, features = geo.check_points(points, "places"), np.asarray(features)
    if points.ndim != 2 or features.ndim != 2 or len(points) != len(features) or len(points) < 2:
        raise KitError(
            "expected places (N, 2) and features (N, D), as search.features_for makes them of views, with N at least "
            f"2; got {points.shape} and {features.shape}"
        )
    if n_pairs < 1:
        raise KitError(f"n_pairs: expected a whole number from 1; got {n_pairs}")
    n = len(points)
    code = np.arange(n) if group is None else np.asarray(group)
    if code.shape != (n,) or code.dtype.kind not in "iu":
        raise KitError(f"group: expected {n} integers, one a place; got shape {code.shape}, {code.dtype}")
    code = np.where(code < 0, code.max() + 1 + np.arange(n), code)
    if (code == code[0]).all():
        raise KitError(f"all {n} places are in one group: there is no pair to compare")
    return points, _unit(features), code


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows (N, D) float32 of length 1, or 0 where all is 0."""
    if features.ndim != 2 or 0 in features.shape:
        raise KitError(f"features: expected shape (N, D), neither of them 0; got {features.shape}")
    features = features.astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]))
    if len(bad):
        raise KitError(f"features of {len(bad)} of {len(features)} places are not finite, rows {shorten(bad)}")
    return features / np.where(length > 0, length, 1)


def _cosine(unit: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products (P,) float32 of rows a (P,) and b (P,), from -1 to 1."""
    parts = -(-len(a) * unit.shape[1] // BLOCK) or 1
    rows = zip(np.array_split(a, parts), np.array_split(b, parts), strict=True)
    return np.concatenate([np.einsum("pd,pd->p", unit[x], unit[y]) for x, y in rows]).clip(-1, 1)


def _violations(points: np.ndarray, unit: np.ndarray, code: np.ndarray, n_triplets: int, seed: int) -> float:
    """The share of random triplets whose closer place is less alike; 0.5 where no two distances differ."""
    place, one, two = np.random.default_rng([seed, 1]).integers(len(points), size=(3, n_triplets))
    km = geo.distance_km(points[place], points[one]) - geo.distance_km(points[place], points[two])
    cosine = _cosine(unit, place, one) - _cosine(unit, place, two)
    wrong = 0.5 + 0.5 * np.sign(km) * np.sign(cosine)  # farther and more alike, or closer and less
    ordered = (np.abs(km) > SAME_KM) & (code[place] != code[one]) & (code[place] != code[two])
    return float(wrong[ordered].mean()) if ordered.any() else 0.5


def _nearest_km(points: np.ndarray, unit: np.ndarray, code: np.ndarray, seed: int) -> tuple[float, float]:
    """Median km, over up to QUERIES places, to the most alike place and to the nearest, both outside its group."""
    places = np.random.default_rng([seed, 2]).permutation(len(points))[:QUERIES]
    alike_km, nearest_km = [], []
    for rows in np.array_split(places, -(-len(places) * len(points) // BLOCK)):
        apart = code[rows, None] != code
        km = geo.distance_matrix_km(points[rows], points)
        alike_km.append(km[np.arange(len(rows)), np.where(apart, unit[rows] @ unit.T, -np.inf).argmax(1)])
        nearest_km.append(np.where(apart, km, np.inf).min(1))
    return float(np.median(np.concatenate(alike_km))), float(np.median(np.concatenate(nearest_km)))


def choices(run: Run) -> pd.DataFrame:
    """The scores by which each finished fold chose k and temperature: fold, k, temperature, final, km."""
    files = {fold: crossval.folder(run, fold) / "choice.csv" for fold in crossval.done_folds(run)}
    return pd.concat([pd.read_csv(file).assign(fold=fold) for fold, file in files.items()], ignore_index=True)


def before_and_after(run: Run, places: Places, fold: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows (N,) of the places that a fold held out, and their embeddings (N, E): frozen, and by the run's embedder."""
    session = Session(run, places)
    known, held_out = session.asked(fold)
    plain = session.features["train"]
    embeddings = {"frozen": Frozen.fit(plain[known.rows], "mean").queries(plain[held_out])}
    if run.settings["method"] != "knn":
        embeddings[run.settings["method"]] = session.lookup(fold).embedder.queries(known.features[held_out])
    return held_out, embeddings


def most_alike(run: Run, places: Places, fold: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of random places that a fold held out, and rows (n, k) of the training places most similar to each."""
    session = Session(run, places)
    known, held_out = session.asked(fold)
    queries = np.random.default_rng(run.settings["seed"]).choice(held_out, min(n, len(held_out)), replace=False)
    embedder = session.lookup(fold).embedder
    gallery = retriever.looks(embedder, known.features[known.rows], known.points[known.rows])
    _, matches = search.search(embedder.queries(known.features[queries]), gallery, k, device=session.device)
    return queries, known.rows[matches]


def by_gallery_size(run: Run, places: Places, fold: int, sizes: Sequence[int]) -> pd.DataFrame:
    """The scores of galleries of some sizes on the places that a fold held out, with the best possible ones; see
    `retriever.by_size`."""
    session = Session(run, places)
    known, held_out = session.asked(fold)
    features, points = known.features[held_out], known.points[held_out]
    return retriever.by_size(known, session.lookup(fold).embedder, sizes, features, points)
