"""Are places that are near on the globe near in the embedding? Pairs of places, their curve, and a summary in numbers.

    found = {name: affinity.pairs(points, x, group=group) for name, x in {"frozen": frozen, "trained": trained}.items()}
    affinity.curve(found["frozen"])                        # cosine similarity by distance
    affinity.table({name: affinity.summary(points, x, group=group) for name, x in ...})

Which places are compared depends on points, group and seed alone, so that all embeddings of the same places answer the
same questions. Features are (N, D), one row a place; `neighbours.features_for` makes them of views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError, shorten
from kitlib.data.places import Places
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.models.retrieval import pairing, retriever, search
from kitlib.models.retrieval.embedders import Frozen
from kitlib.models.retrieval.run import Session

QUERIES = 2000  # places whose nearest neighbour is looked for
BLOCK = 2**22  # numbers worked on at once
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
    entropy_dimension: float  # effective dimension: exp of the variances' entropy (Roy and Vetterli 2007)
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
    """Pairs of places at points (N, 2) and the cosine of their features (N, D), short distances well represented.

    All pairs where there are at most n_pairs; otherwise half of them uniform and half among neighbours, about uniform
    in log distance, with weights that make sums unbiased for all pairs (see `pairing.draw_pairs`).

    group: (N,) integers; no pair is within one (near-duplicates), a negative group is none. An embedding of zeros has
    cosine 0. Raises KitError for arrays that do not fit together, for what is not finite, and where no pair is left.
    """
    return _pairs(*_checked(points, features, group), n_pairs, seed)


def curve(pairs: Pairs, edges_km: Sequence[float] | None = None) -> pd.DataFrame:
    """Cosine similarity by distance, a row for each bin between edges_km that has pairs: mean and middle half.

    Columns: from_km and to_km, the edges, the upper one excluded; km, the median distance; count, of drawn pairs; mean,
    q25 and q75 of the cosine. All but count are weighted. Raises KitError for edges that do not ascend.
    """
    edges = np.asarray(EDGES_KM if edges_km is None else edges_km, float)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise KitError(f"edges_km {edges.tolist()}: allowed are two or more ascending distances")
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
    """What `Summary` says, of places at points (N, 2) with features (N, D); n_pairs, seed and group as for `pairs`.

    Spearman and the cosine's mean and spread are those of all pairs, estimated by the weighted ones. Violations are
    over n_pairs random triplets of a place and two others: the closer one is less alike; equally alike counts half.
    Most pairs are far apart, so both say little of an embedding that knows near from far and no more: `curve` and
    nearest_km do. The dimensions are of rows of length 1 about their mean, so a common direction does not count: that
    shows in cosine_mean. Nearest, random and best are over the same 2,000 random places, or all where there are fewer.
    A rank correlation with nothing that varies is 0, as are the dimensions then; the first component's share is 1.

    >>> around = np.column_stack([np.zeros(90), np.arange(90) * 4.0 - 180])
    >>> found = summary(around, geo.unit_vectors(around))
    >>> round(found.spearman, 3), round(found.violations, 3), round(found.participation, 3), round(found.nearest_km)
    (-1.0, 0.0, 2.0, 445)
    """
    points, unit, groups = _checked(points, features, group)
    violations = _violations(points, unit, groups, n_pairs, seed)
    found = _pairs(points, unit, groups, n_pairs, seed)
    mean = np.average(found.cosine, weights=found.weight)
    variances = spectrum(unit)
    nearest_km, random_km, best_km = _nearest_km(points, unit, groups, seed)
    return Summary(
        n=len(unit),
        dim=unit.shape[1],
        spearman=_spearman(found.km, found.cosine, found.weight),
        violations=violations,
        cosine_mean=float(mean),
        cosine_std=float(np.sqrt(np.average((found.cosine - mean) ** 2, weights=found.weight))),
        participation=participation(variances),
        entropy_dimension=entropy_dimension(variances),
        first_share=float(variances[0] / variances.sum()) if variances.any() else 1.0,
        nearest_km=nearest_km,
        random_km=random_km,
        best_km=best_km,
    )


def table(summaries: Mapping[str, Summary]) -> pd.DataFrame:
    """Summaries side by side, one column an embedding, rounded to what can be told apart."""
    digits = {"participation": 1, "entropy_dimension": 1, "nearest_km": 0, "random_km": 0, "best_km": 0}
    rounded = {name: {k: round(v, digits.get(k, 3)) for k, v in s.as_dict().items()} for name, s in summaries.items()}
    return pd.DataFrame({name: pd.Series(row, dtype=object) for name, row in rounded.items()})  # counts stay whole


def spectrum(features: ArrayLike, centre: bool = True) -> np.ndarray:
    """Variances (K,) along the principal components of features (N, D) made of length 1, largest first, K = min(N, D).

    They are eigenvalues of the covariance matrix; of the second moments where the mean is not subtracted, not centre.
    All zeros where the rows are all the same.
    """
    unit = _unit(np.asarray(features))
    if centre:
        unit = unit - unit.mean(0, dtype=np.float64).astype(np.float32)
    n, dim = unit.shape
    moments = np.zeros((min(n, dim),) * 2)
    wide = unit if dim <= n else unit.T  # the smaller of the two Gram matrices has the same eigenvalues
    rows = max(1, BLOCK // wide.shape[1])
    for start in range(0, len(wide), rows):
        part = wide[start : start + rows]
        moments += part.T @ part
    variances = np.maximum(np.linalg.eigvalsh(moments / n)[::-1], 0)
    return variances if variances.sum() > SAME else np.zeros_like(variances)


def participation(variances: ArrayLike) -> float:
    """Participation ratio of variances (K,): square of their sum over sum of their squares; 0 where all are 0.

    >>> participation([2.0, 2.0, 0.0])
    2.0
    """
    variances = np.asarray(variances, float)
    return float(variances.sum() ** 2 / (variances**2).sum()) if variances.any() else 0.0


def entropy_dimension(variances: ArrayLike) -> float:
    """Exp of the entropy of the shares of variances (K,), at least their participation ratio; 0 where all are 0.

    >>> round(entropy_dimension([2.0, 2.0, 0.0]), 9)
    2.0
    """
    variances = np.asarray(variances, float)
    share = variances[variances > 0] / variances.sum() if variances.any() else np.empty(0)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def quantiles(values: np.ndarray, weight: np.ndarray, *levels: float) -> np.ndarray:
    """The quantiles (Q,) of values (P,) with positive weights (P,), linear between the middles of the steps.

    >>> quantiles(np.array([3.0, 1.0, 2.0]), np.ones(3), 0.5).tolist()
    [2.0]
    """
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    return np.interp(levels, (total - weight[order] / 2) / total[-1], values[order])


def _checked(
    points: ArrayLike, features: ArrayLike, group: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, pairing.Groups]:
    """Points (N, 2), features of length 1 and groups, or a KitError that says what is wrong with them."""
    points, features = geo.check_points(points, "places"), np.asarray(features)
    if points.ndim != 2 or features.ndim != 2 or len(points) != len(features) or len(points) < 2:
        raise KitError(
            f"places {points.shape} and features {features.shape}: wanted are (N, 2) and (N, D), at least two places; "
            "neighbours.features_for makes them of views"
        )
    return points, _unit(features), pairing.groups_of(group, len(points))


def _pairs(points: np.ndarray, unit: np.ndarray, groups: pairing.Groups, n_pairs: int, seed: int) -> Pairs:
    a, b, weight = pairing.draw_pairs(points, groups, n_pairs, np.random.default_rng(seed))
    return Pairs(geo.distance_km(points[a], points[b]), _cosine(unit, a, b), a, b, weight)


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows (N, D) float32 of length 1, or 0 where all is 0."""
    if features.ndim != 2 or 0 in features.shape:
        raise KitError(f"features have shape {features.shape}: wanted is (N, D), neither of them 0")
    features = features.astype(np.float32)
    largest = np.abs(features).max(1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]))
    if len(bad):
        raise KitError(f"features of {len(bad)} of {len(features)} places are not finite, rows {shorten(bad)}")
    features /= np.where(largest > 0, largest, 1)  # so that no square overflows
    length = np.sqrt(np.einsum("nd,nd->n", features, features))[:, None]
    return np.divide(features, length, out=features, where=length > 0)


def _cosine(unit: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products (P,) float32 of rows a (P,) and b (P,), from -1 to 1."""
    out = np.empty(len(a), np.float32)
    step = max(1, BLOCK // unit.shape[1])
    for start in range(0, len(a), step):
        at = slice(start, start + step)
        np.einsum("pd,pd->p", unit[a[at]], unit[b[at]], out=out[at])
    return np.clip(out, -1, 1, out=out)


def _spearman(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Rank correlation of x and y (P,) with weights (P,); 0 where one of them does not vary."""
    ranks = []
    for values in (x, y):
        _, code = np.unique(values, return_inverse=True)
        mass = np.bincount(code, weight)
        rank = (np.cumsum(mass) - mass / 2)[code]  # equal values share the middle of their ranks
        ranks.append(rank - np.average(rank, weights=weight))
    spread = np.sqrt(np.prod([(weight * rank**2).sum() for rank in ranks]))
    both = (weight * ranks[0] * ranks[1]).sum()
    return float(both / spread) if x.min() < x.max() and y.min() < y.max() else 0.0


def _violations(points: np.ndarray, unit: np.ndarray, groups: pairing.Groups, n_triplets: int, seed: int) -> float:
    """The share of random triplets whose closer place is less alike; 0.5 where no two distances differ."""
    place, one, two = pairing.draw_triplets(groups, n_triplets, np.random.default_rng([seed, 1])).T
    km = geo.distance_km(points[place], points[one]) - geo.distance_km(points[place], points[two])
    cosine = _cosine(unit, place, one) - _cosine(unit, place, two)
    wrong = 0.5 + 0.5 * np.sign(km) * np.sign(cosine)  # farther and more alike, or closer and less
    ordered = np.abs(km) > SAME_KM
    return float(wrong[ordered].mean()) if ordered.any() else 0.5


def _nearest_km(points: np.ndarray, unit: np.ndarray, groups: pairing.Groups, seed: int) -> tuple[float, float, float]:
    """Median km, over up to QUERIES places, to the most alike place, to any, and to the nearest outside its group."""
    rng = np.random.default_rng([seed, 2])
    places = rng.permutation(len(points))[:QUERIES]  # each has others: there are two groups at least
    alike_km, nearest_km = np.empty(len(places)), np.empty(len(places))
    step = max(1, BLOCK // len(points))
    for start in range(0, len(places), step):
        rows = places[start : start + step]
        own = groups.code[rows, None] == groups.code
        cosine = unit[rows] @ unit.T
        cosine[own] = -np.inf
        km = geo.distance_matrix_km(points[rows], points)
        alike_km[start : start + step] = km[np.arange(len(rows)), cosine.argmax(1)]
        km[own] = np.inf
        nearest_km[start : start + step] = km.min(1)
    any_km = geo.distance_km(points[places], points[groups.other(places, rng.integers(groups.others[places]))])
    return float(np.median(alike_km)), float(np.median(any_km)), float(np.median(nearest_km))


def choices(run: Run) -> pd.DataFrame:
    """What each k and temperature came to in each done fold, on training places: fold, k, temperature, final, km."""
    files = {fold: crossval.folder(run, fold) / "choice.csv" for fold in crossval.done_folds(run)}
    return pd.concat([pd.read_csv(file).assign(fold=fold) for fold, file in files.items()], ignore_index=True)


def before_and_after(run: Run, places: Places, fold: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The places that a fold held out, as rows (N,) and as embeddings (N, E): frozen, and as the run embeds them."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    plain = session.features["train"]
    embeddings = {"frozen": Frozen.fit(plain[known.rows], "mean").queries(plain[seen])}
    if run.settings["method"] != "knn":
        embeddings[run.settings["method"]] = session.lookup(fold).embedder.queries(known.features[seen])
    return seen, embeddings


def most_alike(run: Run, places: Places, fold: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of places that a fold held out, at random, and rows (n, k) of the training places most like each."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    queries = np.random.default_rng(run.settings["seed"]).choice(seen, min(n, len(seen)), replace=False)
    embedder = session.lookup(fold).embedder
    gallery = retriever.looks(embedder, known.features[known.rows], known.points[known.rows])
    found = search.search(embedder.queries(known.features[queries]), gallery, k, device=session.device)[1]
    return queries, known.rows[found]


def by_gallery_size(run: Run, places: Places, fold: int, sizes: Sequence[int]) -> pd.DataFrame:
    """What galleries of training places earn with those that a fold held out, and what they could: `lookup.by_size`."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    return retriever.by_size(known, session.lookup(fold).embedder, sizes, known.features[seen], known.points[seen])
