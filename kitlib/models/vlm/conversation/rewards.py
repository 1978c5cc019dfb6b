"""What a reply earns: for its distance, for naming the place, for keeping to the form.

None is not 0: where the truth is unknown there is nothing to grade, and the term is None. A reply that does not say
where (unparsed) has no distance, which a report counts, and earns 0 for it: never more than the worst guess.
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
from kitlib.models.vlm.conversation.prompts import Form
from kitlib.models.vlm.conversation.replies import NAMES, Answer, read
from kitlib.models.vlm.conversation.vocabulary import Labels, normalised

TAU_KM = 25.0  # a city


def returns(rewards: ArrayLike) -> np.ndarray:
    """What each turn (..., T) and those after it earned together: the credit of a turn in a conversation.

    >>> returns([0.25, 0.5, -0.25]).tolist()
    [0.5, 0.25, -0.25]
    """
    return np.cumsum(np.asarray(rewards, float)[..., ::-1], axis=-1)[..., ::-1]


def turn_advantages(rewards: ArrayLike, scale: str = "group") -> np.ndarray:
    """How much better than its group each turn went (N, G, T), from what the turns of N groups of G talks earned.

    A turn's return less the group's mean of it, and less what was to be expected of it after what had been earned
    before: a line through all talks, as no word can change what came before it. Where the turns have nothing to do with
    each other that is nothing. It is divided by the deviation of the talks' totals within the "group" or the "batch",
    or left as it is ("none"), as TRL does, so that a first turn has the advantage of GRPO itself.
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
    form: float = 0.1  # exactly the lines that were asked for, all of them readable
    city: float = 0.0
    region: float = 0.0  # the state in the competition
    country: float = 0.0


@dataclass(frozen=True)
class Grade:
    """What one reply comes to: what was read, the distance in km if both ends are known, and every term.

    A term is from 0 to 1, None where the truth is unknown. An unparsed reply has no km and 0 for its distance.
    """

    answer: Answer
    km: float | None
    terms: Mapping[str, float | None]

    def total(self, weights: Weights) -> float | None:
        """The weighted sum of the terms that can be graded; None when of those that count none can be."""
        counted = [(getattr(weights, name), term) for name, term in self.terms.items() if term is not None]
        counted = [(weight, term) for weight, term in counted if weight > 0]
        return float(sum(weight * term for weight, term in counted)) if counted else None


@dataclass(frozen=True)
class Grader:
    """How replies to a form are read and what they earn.

    labels: vocabularies by field. `dataclasses.replace(grader, tau_km=tau_at(step, n_steps))` follows a schedule.
    """

    form: Form
    labels: Mapping[str, Labels] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    tau_km: float = TAU_KM

    def __post_init__(self) -> None:
        """Raises KitError for a vocabulary of no field, and for a term that counts but is not asked for."""
        if unknown := sorted(set(self.labels) - set(NAMES)):
            raise KitError(f"a vocabulary for {', '.join(unknown)}: allowed are {', '.join(NAMES)}")
        counting = [term.name for term in fields(self.weights) if getattr(self.weights, term.name) > 0]
        if lost := [name for name in counting if name not in self._asked]:
            raise KitError(
                f"{', '.join(lost)}: in the reward, but the form asks for {', '.join(self.form.fields)} only"
            )

    @property
    def _asked(self) -> set[str]:
        distances = {"distance", "geoscore"} if "point" in self.form.fields else set()
        return {*self.form.fields, "form"} | distances

    def only(self, name: str) -> Grader:
        """The same grader asking for one field alone, which earns from 0 to 1."""
        weights = Weights(**(dict.fromkeys(("distance", "form"), 0.0) | {"distance" if name == "point" else name: 1.0}))
        return replace(self, form=replace(self.form, fields=(name,)), weights=weights)

    def check(self, truth: Answer) -> None:
        """Raise KitError for a place of which nothing that counts is known, and for a true name that is no label."""
        terms = self.grade("", truth).terms
        if not any(
            getattr(self.weights, name) > 0 for name, term in terms.items() if name != "form" and term is not None
        ):
            counting = [name for name in terms if getattr(self.weights, name) > 0 and name != "form"]
            raise KitError(f"{truth} cannot be graded: the reward counts {', '.join(counting) or 'the form alone'}")

    def read(self, reply: str) -> Answer:
        """What a reply says, with the labels of the vocabularies."""
        bare = self.form.bare
        return read(reply, self.labels, bare if bare in self.labels else None)

    def grade(self, reply: str, truth: Answer) -> Grade:
        """The grade of a reply about a place. Raises KitError for a true name that its vocabulary does not have."""
        answer = self.read(reply)
        km = None
        terms: dict[str, float | None] = dict.fromkeys(("distance", "geoscore"))
        if truth.point is not None:
            terms |= {"distance": 0.0, "geoscore": 0.0}
            if answer.point is not None:
                km = float(geo.distance_km(answer.point, truth.point))
                terms["distance"] = float(np.exp(-km / self.tau_km))
                terms["geoscore"] = float(accuracy.geoscore(km) / accuracy.GEOSCORE_MOST)
        terms |= {name: self._match(name, getattr(answer, name), getattr(truth, name)) for name in NAMES}
        complete = all(getattr(answer, name) is not None for name in self.form.fields)
        terms["form"] = float(complete and self.form.fits(reply))
        return Grade(answer, km, terms)

    def reward(self, reply: str, truth: Answer) -> float | None:
        """The weighted total of a reply's grade; None where nothing that counts can be graded."""
        return self.grade(reply, truth).total(self.weights)

    def worth(self, grade: Grade) -> float:
        """The weighted total of a grade about a place that was checked."""
        return grade.total(self.weights) or 0.0

    def metrics(self, grade: Grade) -> dict[str, float]:
        """For the log: parsed (1 where all that was asked for could be read), km if there is one, the graded terms."""
        parsed = all(getattr(grade.answer, name) is not None for name in self.form.fields)
        graded = {name: term for name, term in grade.terms.items() if term is not None and name in self._asked}
        return {"parsed": float(parsed)} | ({} if grade.km is None else {"km": grade.km}) | graded

    def _match(self, name: str, answer: str | None, true: str | None) -> float | None:
        """1 for the true name, 0 for another or none, None where the truth is unknown."""
        if true is None:
            return None
        if name in self.labels:
            label = self.labels[name].find(true)
            if label is None:
                raise KitError(f"the true {name} {true!r} is not in the vocabulary of {len(self.labels[name])} names")
            return float(answer == label)
        return float(answer is not None and normalised(answer) == normalised(true))
