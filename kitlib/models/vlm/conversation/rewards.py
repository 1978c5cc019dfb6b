"""Grade replies: terms for the distance, the names and the layout, and their weighted sum.

None is not 0: a term whose truth is unknown cannot be graded and is None. A reply without a point (unparsed) has no
distance and earns 0 for it, never more than the worst guess; reports count it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.evaluation import metrics as accuracy
from kitlib.models.vlm.conversation.prompts import ReplyForm
from kitlib.models.vlm.conversation.replies import NAMES, Reply, read
from kitlib.models.vlm.conversation.vocabulary import Labels, normalised

TAU_KM = 25.0  # a city


def returns(rewards: ArrayLike) -> np.ndarray:
    """The return of each turn (..., T): its reward and those of the turns after it.

    >>> returns([0.25, 0.5, -0.25]).tolist()
    [0.5, 0.25, -0.25]
    """
    return np.cumsum(np.asarray(rewards, float)[..., ::-1], axis=-1)[..., ::-1]


def turn_advantages(rewards: ArrayLike, scale: str = "group") -> np.ndarray:
    """The advantage of each turn (N, G, T), from the rewards of the turns of N groups of G dialogues.

    It is the turn's return less the group's mean, and less what the rewards of earlier turns predict of it by a linear
    fit over all dialogues: a turn cannot change what came before it. The result is divided by the deviation of the
    dialogues' totals within the "group" or the "batch", or not at all ("none"), as in TRL, so that the first turn has
    the advantage of plain GRPO.
    """
    rewards = np.asarray(rewards, float)
    credit = returns(rewards)
    totals = credit[..., :1]
    above, before = (values - values.mean(axis=1, keepdims=True) for values in (credit, totals - credit))
    spread = (before**2).sum(axis=(0, 1))
    slope = (before * above).sum(axis=(0, 1)) / np.where(spread > 1e-9, spread, np.inf)
    above = above - slope * before
    if scale == "none":
        return above
    return above / (totals.std(axis=1 if scale == "group" else None, ddof=1, keepdims=True) + 1e-4)


@dataclass(frozen=True)
class Weights(Settings):
    """How much each term of a reward counts; each term is from 0 to 1."""

    distance: float = 1.0  # exp(-km / tau)
    geoscore: float = 0.0  # the game's points, as a share of 5000
    form: float = 0.1  # exactly the lines of the form, all of them readable
    city: float = 0.0
    region: float = 0.0  # the state in the competition
    country: float = 0.0
    score: float = 0.0  # the competition's score of the reply: 0.70 * weighted top 5 of the states + 0.30 * GPS


@dataclass(frozen=True)
class Grade:
    """The grade of one reply: the parsed reply, the distance in km if both ends are known, and every term.

    A term is from 0 to 1, None where the truth is unknown. An unparsed reply has no km and 0 for its distance.
    """

    reply: Reply
    km: float | None
    terms: Mapping[str, float | None]

    def total(self, weights: Weights) -> float | None:
        """The weighted sum of the graded terms; None when none of those with a weight is graded."""
        counted = [(getattr(weights, name), term) for name, term in self.terms.items() if term is not None]
        counted = [(weight, term) for weight, term in counted if weight > 0]
        return float(sum(weight * term for weight, term in counted)) if counted else None


@dataclass(frozen=True)
class Grader:
    """How replies to a form are read and what they earn. labels: vocabularies by field."""

    form: ReplyForm
    labels: Mapping[str, Labels] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    tau_km: float = TAU_KM

    def __post_init__(self) -> None:
        """Check that each vocabulary has a field, and each weighted term a line in the form. Raises KitError."""
        if unknown := sorted(set(self.labels) - {*NAMES, "states"}):
            raise KitError(f"labels: expected vocabularies for {', '.join(NAMES)}, states; got {', '.join(unknown)}")
        counting = [term.name for term in fields(self.weights) if getattr(self.weights, term.name) > 0]
        if lost := [name for name in counting if name not in self._gradable]:
            raise KitError(f"reward: expected terms of the form's {', '.join(self.form.fields)}; got {', '.join(lost)}")

    @property
    def _gradable(self) -> set[str]:
        distances = {"distance", "geoscore"} if "point" in self.form.fields else set()
        ranked = {"score"} if {"states", "region", "country"} & set(self.form.fields) else set()
        return {*self.form.fields, "form"} | distances | ranked

    def only(self, name: str) -> Grader:
        """The same grader for one field alone, which earns from 0 to 1."""
        weights = Weights(**(dict.fromkeys(("distance", "form"), 0.0) | {"distance" if name == "point" else name: 1.0}))
        return replace(self, form=replace(self.form, fields=(name,)), weights=weights)

    def check(self, truth: Reply) -> None:
        """Raise KitError for a place that no weighted term can grade, and for a true name outside its vocabulary."""
        terms = self.grade("", truth).terms
        weighted = [name for name in terms if getattr(self.weights, name) > 0 and name != "form"]
        if all(terms[name] is None for name in weighted):
            raise KitError(f"{truth} cannot be graded: the reward counts {', '.join(weighted) or 'the form alone'}")

    def read(self, reply: str) -> Reply:
        """The parsed reply, its names as labels of the vocabularies."""
        bare = self.form.bare
        return read(reply, self.labels, bare if bare in self.labels else None)

    def grade(self, reply: str, truth: Reply) -> Grade:
        """The grade of a reply about a place. Raises KitError for a true name that its vocabulary does not have."""
        parsed = self.read(reply)
        km = None
        terms: dict[str, float | None] = dict.fromkeys(("distance", "geoscore"))
        if truth.point is not None:
            terms |= {"distance": 0.0, "geoscore": 0.0}
            if parsed.point is not None:
                km = float(geo.distance_km(parsed.point, truth.point))
                terms["distance"] = float(np.exp(-km / self.tau_km))
                terms["geoscore"] = float(accuracy.geoscore(km) / accuracy.GEOSCORE_MOST)
        terms |= {name: self._match(name, getattr(parsed, name), getattr(truth, name)) for name in NAMES}
        terms["score"] = self._score(parsed, truth, km)
        complete = all(getattr(parsed, name) is not None for name in self.form.fields)
        terms["form"] = float(complete and self.form.fits(reply))
        return Grade(parsed, km, terms)

    def _score(self, parsed: Reply, truth: Reply, km: float | None) -> float | None:
        """The competition's score of one reply, a single name being the first rank; None for an unknown state."""
        field = next((name for name in ("states", "region", "country") if name in self.form.fields), "")
        true = getattr(truth, field, None)
        if true is None:
            return None
        given = getattr(parsed, field) or ()
        earned = [
            weight * (self._match(field, name, true if isinstance(true, str) else true[0]) or 0.0)
            for weight, name in zip(accuracy.WEIGHTS, (given,) if isinstance(given, str) else given, strict=False)
        ]
        gps = 0.0 if km is None else max(0.0, 1.0 - km / accuracy.ZERO_AT_KM)
        return accuracy.STATE_SHARE * max(earned, default=0.0) + accuracy.GPS_SHARE * gps

    def value(self, grade: Grade) -> float:
        """The weighted total of a grade; the place was checked."""
        return grade.total(self.weights) or 0.0

    def metrics(self, grade: Grade) -> dict[str, float]:
        """For the log: parsed (1 where all fields of the form could be read), km if there is one, the graded terms."""
        parsed = all(getattr(grade.reply, name) is not None for name in self.form.fields)
        graded = {name: term for name, term in grade.terms.items() if term is not None and name in self._gradable}
        return {"parsed": float(parsed)} | ({} if grade.km is None else {"km": grade.km}) | graded

    def _match(self, name: str, given: str | None, true: str | None) -> float | None:
        """1 for the true name, 0 for another or none, None where the truth is unknown."""
        if true is None:
            return None
        if name in self.labels:
            label = self.labels[name].find(true)
            if label is None:
                raise KitError(
                    f"{name}: expected a truth among the {len(self.labels[name])} names of its vocabulary; got {true!r}"
                )
            return float(given == label)
        return float(given is not None and normalised(given) == normalised(true))
