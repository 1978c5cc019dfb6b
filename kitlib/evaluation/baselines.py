"""The two baselines: the commonest states, and logistic regression on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.progress import Bar
from kitlib.data.folds import load_or_make
from kitlib.data.places import Places
from kitlib.evaluation.guesses import Guesses, stack
from kitlib.evaluation.metrics import Score, score_arrays
from kitlib.evaluation.runs import Run

# With more features than places, only strong regularisation generalises: on 395 real places with 1,280 features 0.01
# scored best in both kinds of folds, 0.001 to 0.1 nearly the same. The loss is a sum over places, so that the relative
# regularisation falls as their number grows.
C = 0.01


def state_points(places: Places, train_rows: ArrayLike | None = None) -> np.ndarray:
    """The geometric median (S, 2) of each state's training places, NaN for a state without any.

    `train_rows` (mask or row numbers) selects the training rows of a fold.
    """
    rows = slice(None) if train_rows is None else np.asarray(train_rows)
    return geo.group_medians(places.points("train")[rows], places.state_position("train")[rows], len(places.states))


def commonest(places: Places, train_rows: ArrayLike, sample_id: ArrayLike) -> Guesses:
    """The same guess for every `sample_id` (N,): the frequencies of states and the geometric median of all places.

    Both are those of the training places in `train_rows` (mask or row numbers).
    """
    rows, sample_id = np.asarray(train_rows), np.asarray(sample_id)
    count = np.bincount(places.state_position("train")[rows], minlength=len(places.states))
    point = geo.geometric_median(places.points("train")[rows])
    return constant(sample_id, places.states["state_idx"].to_numpy(), count / count.sum(), point, answered=True)


def constant(
    sample_id: np.ndarray, state_idx: np.ndarray, state_probs: np.ndarray, point: np.ndarray, answered: bool = False
) -> Guesses:
    """The same guess for every `sample_id` (N,): state_probs (S,), in the order of state_idx (S,), and point (2,)."""
    n = len(sample_id)
    probs, points = np.tile(state_probs, (n, 1)), np.tile(point, (n, 1, 1))
    return Guesses(sample_id, state_idx, probs, points, np.ones((n, 1)), np.full(n, answered))


def commonest_out_of_fold(places: Places, folds: ArrayLike) -> Guesses:
    """`commonest` for every training place, the guesses of each fold (N,) being made from the other folds."""
    folds, sample_id = _checked_folds(places, folds), places.sample_id("train")
    parts = [commonest(places, folds != fold, sample_id[folds == fold]) for fold in np.unique(folds)]
    return stack(parts).at(sample_id)


def beside(run: Run, places: Places, others: Sequence[Run] = ()) -> dict[str, Guesses]:
    """The out-of-fold guesses of a run, of the commonest states and of other runs, for the run's held-out places."""
    own = run.guesses("oof")
    fold = load_or_make(places, run.settings["n_folds"])[run.settings["folds_column"]]
    members = {"commonest": commonest_out_of_fold(places, fold)}
    members |= {other.name: other.guesses("oof") for other in [*others, run]}
    return {name: guesses.at(own.sample_id) for name, guesses in members.items()}


def chance(places: Places, sample_id: ArrayLike, seed: int = 0) -> Score:
    """The score of random guesses, states in random order and shuffled points, for the training places `sample_id`."""
    rng = np.random.default_rng(seed)
    rows = places.rows("train").set_index("sample_id").loc[np.asarray(sample_id)]
    ranked = rng.permuted(np.tile(places.states["state_idx"], (len(rows), 1)), axis=1)[:, :5]
    points = rows[["latitude", "longitude"]].to_numpy()
    return score_arrays(rows["state_idx"], points, ranked, rng.permutation(points))


@dataclass(frozen=True, eq=False)
class StateModel:
    """Logistic regression of P of S states, those with training places, on D standardised features."""

    state_idx: np.ndarray  # (S,) all states
    present: np.ndarray  # (P,) positions among them; the other states get probability 0
    points: np.ndarray  # (P, 2) geometric medians of their training places
    mean: np.ndarray  # (D,) of the training features
    scale: np.ndarray  # (D,)
    coef: np.ndarray  # (P, D)
    intercept: np.ndarray  # (P,)

    @classmethod
    def fit(cls, places: Places, features: np.ndarray, train: np.ndarray, c: float = C) -> StateModel:
        """The model of the training places in the mask `train` (N,), with features (N, D) of all."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits

        state = places.state_position("train")[train]
        present = np.unique(state)
        scaler = StandardScaler().fit(features[train])
        coef, intercept = np.zeros((1, features.shape[1])), np.zeros(1)
        if len(present) > 1:
            model = LogisticRegression(C=c, max_iter=300, tol=1e-3)
            # L-BFGS on matrices this small waits for its threads: 20 times slower with two
            with threadpool_limits(1), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few places a state
                model.fit(scaler.transform(features[train]), state)
            coef, intercept = model.coef_, model.intercept_
        if len(present) == 2:  # scikit-learn holds the difference of the two alone
            coef, intercept = np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])
        points, idx = state_points(places, train)[present], places.states["state_idx"].to_numpy()
        return cls(idx, present, points, scaler.mean_, scaler.scale_, coef, intercept)

    @classmethod
    def load(cls, path: Path) -> StateModel:
        """Read the file that `logistic` has kept."""
        arrays = storage.read_npz(path)
        with storage.reading(path):
            return cls(**arrays)

    def guess(self, features: np.ndarray, sample_id: np.ndarray) -> Guesses:
        """Guesses for features (N, D) of places (N,)."""
        logits = ((features - self.mean) / self.scale) @ self.coef.T + self.intercept
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs = np.zeros((len(features), len(self.state_idx)), np.float32)
        probs[:, self.present] = likely / likely.sum(axis=1, keepdims=True)
        points = np.tile(self.points, (len(features), 1, 1))
        weights = probs[:, self.present]
        return Guesses(sample_id, self.state_idx, probs, points, weights, np.ones(len(features), bool))


def logistic(
    places: Places, features: ArrayLike, folds: ArrayLike, test_features: ArrayLike | None = None, c: float = C,
    keep: Path | None = None,
) -> tuple[Guesses, Guesses | None]:  # fmt: skip
    """Multinomial logistic regression of the state on frozen features; returns (out-of-fold, test) guesses.

    The points are the geometric medians of the training states, weighted by the posterior. A fold's own data, including
    the mean and spread of its features, are not used to guess it.

    Args:
        places: provides training states and points.
        features: (N, D) of the training places, in the order of `places.rows("train")`.
        folds: (N,) fold of each.
        test_features: (M, D) of the test places; their guesses come from a model of all training places.
        c: inverse strength of the L2 penalty, as in scikit-learn.
        keep: where to save the model of all training places, for `StateModel.load`.

    Raises KitError if features or folds do not match the places, or are not finite.
    """
    folds, sample_id = _checked_folds(places, folds), places.sample_id("train")
    features = _checked_features(features, len(sample_id), "train")
    parts = []
    for fold in Bar(np.unique(folds), desc="logistic regression", unit="fold"):
        held_out = folds == fold
        parts.append(StateModel.fit(places, features, ~held_out, c).guess(features[held_out], sample_id[held_out]))
    oof = stack(parts).at(sample_id)
    if test_features is not None:
        test_features = _checked_features(test_features, len(places.rows("test")), "test")
    if test_features is None and keep is None:
        return oof, None
    model = StateModel.fit(places, features, np.ones(len(sample_id), bool), c)
    if keep is not None:
        storage.write_npz(keep, vars(model))
    return oof, None if test_features is None else model.guess(test_features, places.sample_id("test"))


def _checked_folds(places: Places, folds: ArrayLike) -> np.ndarray:
    folds, n = np.asarray(folds), len(places.rows("train"))
    if folds.shape != (n,) or len(np.unique(folds)) < 2:
        got = f"{len(np.unique(folds))} folds of shape {folds.shape}"
        raise KitError(f"folds: expected one of at least 2 folds for each of {n} training places; got {got}")
    return folds


def _checked_features(features: ArrayLike, n: int, split: str) -> np.ndarray:
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) != n:
        raise KitError(f"{split} features: expected shape ({n}, D); got {features.shape}")
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise KitError(f"{split} features: expected finite numbers; those of row {row} are not: embed that place again")
    return features
