"""A vision-language model as the judge of another run's guesses: how far is a place from each of its candidates?

    found = Candidates.of(guess, gallery, group, allowed, n=8)        # places beside their candidates
    messages = scale.ask(views, form, candidate)                      # the question about one of them
    again = found.reweighted(guess, gallery, scale.closeness(log_likelihood))

A candidate is the training place at a point of a guess, shown with its pictures, its state and its coordinates. The
model replies with the number of a band of distances (`Scale`), and is taught the true one. Its probabilities multiply
the candidate's weight. Like GeoRanker (Jia et al. 2025) it looks at one candidate at a time, so that their order and
number do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data.pictures import Pack
from kitlib.data.places import Places
from kitlib.evaluation import fold_files, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm.conversation.prompts import Message, ReplyForm, user
from kitlib.models.vlm.conversation.recorder import Row
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.dataset import Cases, pictures_of

TRIED = 4  # nearest training places of a point, of which the first that is no near-duplicate is its candidate


def check(name: str, places: Places, folds_column: str) -> str:
    """A checksum of the guesses of the run to judge. Raises KitError for a run that is not of all of these folds."""
    run = runs.open_run(name)
    n_folds = run.settings.get("n_folds", 5)
    same = origin.data_checksums(places, folds_column, n_folds).items() <= run.params["data"].items()
    whole = run.finished and len(fold_files.done_folds(run)) == n_folds
    if not whole or not same or run.settings.get("folds_column") != folds_column:
        raise KitError(f"candidates: expected a finished run of all folds ({folds_column}) of the same places, whose "
                       f"guesses are out of fold; got {name!r}")  # fmt: skip
    return storage.digest(*sorted(run.dir.glob("*.npz")))


@dataclass(frozen=True)
class Scale:
    """The distances that the replies 1, 2, … stand for: ends_km are their upper ends, and the last reply is farther."""

    ends_km: tuple[float, ...]

    @property
    def replies(self) -> list[str]:
        """The possible replies."""
        return [str(i + 1) for i in range(len(self.ends_km) + 1)]

    def reply(self, km: float) -> str:
        """The true reply about a distance.

        >>> Scale((50.0, 200.0)).reply(200.0), Scale((50.0, 200.0)).reply(9000.0)
        ('2', '3')
        """
        return self.replies[int(np.searchsorted(self.ends_km, km))]

    def ask(self, views: Sequence[str], form: ReplyForm, candidate: Reply) -> list[Message]:
        """The question how far a place is from a candidate: the place's pictures, the candidate's, and its lines.

        form: of the lines that say where the candidate is, as fine-tuning teaches them.
        """
        shown = [part for view in views for part in (f"Facing {view}:", None)] if len(views) > 1 else [None]
        ends = [f"{i}: within {km:g}" for i, km in zip(self.replies, self.ends_km, strict=False)]
        lines = [form.known(candidate).write(candidate), "How many km is the first place from this one?"]
        return [user(*shown, *shown, "\n".join([*lines, ", ".join([*ends, f"{self.replies[-1]}: farther"])]))]

    def closeness(self, log_likelihood: np.ndarray) -> np.ndarray:
        """The expected 1 / (1 + km / ends_km[0]) (P,) by the log-likelihoods (P, A) of the replies."""
        ends = np.array(self.ends_km)
        typical = np.array([ends[0] / 2, *np.sqrt(ends[1:] * ends[:-1]), 2 * ends[-1]])
        shares = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True) @ (1 / (1 + typical / ends[0]))


@dataclass(frozen=True)
class Gallery:
    """The M training places with a usable picture: points (M, 2), position of the state (M,), group (M,), row (M,)."""

    points: np.ndarray
    state: np.ndarray
    group: np.ndarray
    row: np.ndarray

    def at(self, points: np.ndarray, group: np.ndarray) -> np.ndarray:
        """The entry (N, K) nearest to points (N, K, 2) outside the place's own group (N,), -1 if `TRIED` are in it."""
        _, near = geo.nearest(points.reshape(-1, 2), self.points, tried := min(TRIED, len(self.points)))
        near = near.reshape(*points.shape[:2], tried)
        other = self.group[near] != group[:, None, None]
        first = np.take_along_axis(near, other.argmax(axis=2)[..., None], axis=2)[..., 0]
        return np.where(other.any(axis=2), first, -1)


@dataclass(frozen=True)
class Candidates:
    """The P candidates of N guesses: place (P,), 0 to N - 1 in order, and entry (P,) of the gallery.

    at (N, K): the entry at each point of the guesses, -1 for none.
    """

    place: np.ndarray
    entry: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, guess: Guesses, gallery: Gallery, group: np.ndarray, allowed: np.ndarray, n: int) -> Candidates:
        """The `n` entries of most weight for each guess, of those that are allowed (M,).

        group (N,): of near-duplicates, which are no candidates of a place.
        """
        at = np.where(guess.weights > 0, gallery.at(guess.points, group), -1)
        found = []
        for i, row in enumerate(at):
            shown = (row >= 0) & allowed[row]
            entries, slot = np.unique(row[shown], return_inverse=True)
            weights = np.bincount(slot, guess.weights[i, shown], len(entries))
            found.append(entries[np.argsort(-weights, kind="stable")[:n]])
        place = np.repeat(np.arange(len(found)), [len(entries) for entries in found])
        return cls(place, np.concatenate([*found, np.zeros(0, int)]).astype(int), at)

    def reweighted(self, guess: Guesses, gallery: Gallery, factor: np.ndarray) -> Guesses:
        """The guesses with the weights of the candidates multiplied by a factor (P,) above 0.

        The candidates of a place keep their weight in sum, and other points theirs. A state's probability changes as
        the weight of the points in it. A place without candidates keeps its guess.
        """
        factors = np.ones(self.at.shape)
        starts = np.searchsorted(self.place, np.arange(len(guess) + 1))
        for i, (start, stop) in enumerate(pairwise(starts)):
            slots = self.at[i][:, None] == self.entry[start:stop]  # (K, candidates)
            own = slots.any(axis=1)
            factors[i, own] = (slots @ factor[start:stop])[own]
            if own.any():
                factors[i, own] *= guess.weights[i, own].sum() / (guess.weights[i, own] @ factors[i, own])
        weights = guess.weights * factors
        voter, slot = np.nonzero(self.at >= 0)
        before, after = np.zeros(guess.state_probs.shape), np.zeros(guess.state_probs.shape)
        for votes, voting in ((before, guess.weights), (after, weights)):
            np.add.at(votes, (voter, gallery.state[self.at[voter, slot]]), voting[voter, slot])
        probs = guess.state_probs * np.divide(after, before, out=np.ones_like(after), where=before > 0)
        total = probs.sum(axis=1, keepdims=True)
        return replace(guess, weights=weights / weights.sum(axis=1, keepdims=True), state_probs=probs / total)


@dataclass(frozen=True)
class Pairs(Cases):
    """P places, each beside a candidate: km (P,) between them, NaN where unknown; a truth is that of the candidate."""

    km: np.ndarray

    def row(self, i: int) -> Row:
        """Pair i as a trainer's row."""
        return super().row(i) | {"km": float(self.km[i])}


def pairs_of(
    candidates: Candidates, gallery: Gallery, own: tuple[Pack, np.ndarray, np.ndarray], pack: Pack,
    truths: Sequence[Reply], max_side: int,
) -> Pairs:  # fmt: skip
    """The pictures of places and candidates.

    own: pack, rows (N,) and points (N, 2) of the places. pack, truths: of the training places, which the gallery is of.
    """
    own_pack, rows, points = own
    left, right = rows[candidates.place], gallery.row[candidates.entry]

    def show(i: int) -> list:
        return pictures_of(own_pack, int(left[i]), max_side) + pictures_of(pack, int(right[i]), max_side)

    ids = [f"{a} {b}" for a, b in zip(own_pack.sample_id[left], pack.sample_id[right], strict=True)]
    km = geo.distance_km(points[candidates.place], gallery.points[candidates.entry])
    return Pairs(ids, [truths[row] for row in right], pack.views, show, km)


def agreement(judged: np.ndarray, km: np.ndarray, place: np.ndarray) -> dict[str, np.ndarray]:
    """How well a judgment (P,) orders the candidates of each place (P,) by km (P,); higher is judged nearer.

    For every place with several candidates, nearest: whether the nearest is judged the nearest, by_chance: how often a
    random choice would be it, order: the share of its pairs of candidates in the right order, by chance a half.
    """
    rows = []
    for i in np.unique(place):
        own, far = judged[place == i], km[place == i]
        if len(own) > 1:
            a, b = np.triu_indices(len(own), 1)
            right = np.sign(own[a] - own[b]) * np.sign(far[b] - far[a])
            rows.append((far[own.argmax()] == far.min(), np.mean(far == far.min()), np.mean((right + 1) / 2)))
    return dict(zip(("nearest", "by_chance", "order"), np.array(rows, float).reshape(-1, 3).T, strict=True))
