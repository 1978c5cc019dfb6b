"""Conversations about one place, as reinforcement learning needs them: text in, reward and next message out.

    env = Telescoping(("north", "east", "south", "west"), truth, grader)
    env.messages()               # the prompt, with a place for every picture
    env.step("40, -83")          # Step(reward, done, message, metrics); the message is text only

No model, no torch, no chance but for a seed. An environment lasts one episode, as in tinker-cookbook (whose
`initial_observation` renders `messages()` and whose `step` decodes tokens first) and in a rollout function of TRL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.prompts import FIELDS, Form, Message, ask, user
from kitlib.models.vlm.conversation.replies import Answer
from kitlib.models.vlm.conversation.rewards import Grader
from kitlib.models.vlm.conversation.vocabulary import Labels


class Step(NamedTuple):
    """What a reply led to: its reward, whether the episode is over, what the model is told next (None at the end)."""

    reward: float
    done: bool
    message: Message | None
    metrics: dict[str, float]


class Environment(ABC):
    """One episode of at most `turns` replies."""

    turns: int

    def __init__(self) -> None:
        self.turn = 0  # replies so far

    @abstractmethod
    def messages(self) -> list[Message]:
        """The prompt."""

    @abstractmethod
    def _judge(self, reply: str) -> tuple[float, dict[str, float]]:
        """The reward and the metrics of the reply to turn `self.turn`."""

    def _next(self) -> str:
        """What is asked at turn `self.turn`, after the first."""
        raise NotImplementedError

    def step(self, reply: str) -> Step:
        """Take a reply. Raises KitError when the episode is over."""
        if self.turn >= self.turns:
            raise KitError(f"the episode is over after {self.turns} replies; make a new environment for another one")
        reward, metrics = self._judge(reply)
        self.turn += 1
        done = self.turn == self.turns
        return Step(reward, done, None if done else user(self._next()), metrics)


class Graded(Environment):
    """An environment whose replies a grader reads.

    views: the pictures of the place. reasoning: whether the prompt invites it. listed: fields whose vocabulary the
    prompt shows. Raises KitError when nothing that counts is known of the place, and for a listed field without a
    vocabulary.
    """

    def __init__(
        self,
        views: Sequence[str],
        truth: Answer,
        grader: Grader,
        *,
        reasoning: bool = False,
        listed: Sequence[str] = (),
    ):
        super().__init__()
        if lost := [name for name in listed if name not in grader.labels]:
            raise KitError(f"no vocabulary for {', '.join(lost)}, which the prompt should list")
        self.views, self.truth, self.grader, self.reasoning, self.listed = views, truth, grader, reasoning, listed
        grader.check(truth)

    def _listed(self, form: Form) -> dict[str, Labels]:
        return {name: self.grader.labels[name] for name in self.listed if name in form.fields}

    def _ask(self, form: Form) -> list[Message]:
        return ask(form, self.views, self._listed(form), self.reasoning)


class SingleTurn(Graded):
    """One question, one reply, all that the grader counts."""

    turns = 1

    def messages(self) -> list[Message]:
        """The grader's form as a question."""
        return self._ask(self.grader.form)

    def _judge(self, reply: str) -> tuple[float, dict[str, float]]:
        grade = self.grader.grade(reply, self.truth)
        return self.grader.worth(grade), self.grader.metrics(grade)


class Telescoping(Graded):
    """A coarse guess that is refined turn by turn; every reply is a whole answer, and only the last one counts in sum.

    A turn earns what its reply is worth less what the one before was worth, so that the rewards sum to the worth of
    the last reply (potential-based shaping: Ng, Harada and Russell 1999): credit for every step towards the place, and
    nothing to gain by starting badly on purpose. A reply that cannot be read is worth 0, as if nothing had been said:
    that takes back what was earned, and the next turn can earn it again.

    radii_km: how close each turn is asked to come. The worth is the grader's total; with a small tau the first turns
    hardly differ, Weights(geoscore=1.0, distance=0.0) sees them all. Raises KitError for no turns, and for a form
    without a point.
    """

    def __init__(
        self,
        views: Sequence[str],
        truth: Answer,
        grader: Grader,
        *,
        radii_km: Sequence[float] = (2000.0, 200.0, 25.0),
        reasoning: bool = False,
        listed: Sequence[str] = (),
    ):
        super().__init__(views, truth, grader, reasoning=reasoning, listed=listed)
        if not radii_km or "point" not in grader.form.fields:
            raise KitError("telescoping needs at least one radius, and a form that asks for the point")
        self.radii_km, self.turns, self.worth, self.said = radii_km, len(radii_km), 0.0, Answer()

    def messages(self) -> list[Message]:
        """The form as a question, and how close the first guess shall come."""
        prompt = self._ask(self.grader.form)
        prompt[-1]["content"][-1]["text"] += f"\nA first guess is enough, within {self.radii_km[0]:,.0f} km."
        return prompt

    def _judge(self, reply: str) -> tuple[float, dict[str, float]]:
        grade = self.grader.grade(reply, self.truth)
        before, self.worth, self.said = self.worth, self.grader.worth(grade), grade.answer
        return self.worth - before, self.grader.metrics(grade)

    def _next(self) -> str:
        message = "Your reply did not say where."
        if self.said.point is not None:
            message = "You said {:.4f}, {:.4f}.".format(*self.said.point)
        return f"{message} Look again and refine it, within {self.radii_km[self.turn]:,.0f} km, in the same lines."


class Hierarchical(Graded):
    """Country, region, city, coordinates, or some of these, one question each; every level earns an equal share of 1.

    A name earns its share when it is the true one, the point exp(-km / tau) of its share. A level is asked by itself:
    what a reply says of another one earns nothing. Of the grader, the vocabularies, the region's name and tau count.
    Raises KitError for levels that are unknown, doubled, none, or not known of the place.
    """

    def __init__(
        self,
        views: Sequence[str],
        truth: Answer,
        grader: Grader,
        *,
        levels: Sequence[str] = ("country", "region", "city", "point"),
        reasoning: bool = False,
        listed: Sequence[str] = (),
    ):
        if not levels or not set(levels) <= set(FIELDS) or len(set(levels)) < len(levels):
            raise KitError(f"levels {tuple(levels)}: allowed are some of country, region, city, point, each once")
        super().__init__(views, truth, grader.only(levels[0]), reasoning=reasoning, listed=listed)
        self.levels, self.turns, self.said = tuple(levels), len(levels), Answer()
        self.graders = [grader.only(level) for level in levels]
        for one in self.graders:
            one.check(truth)

    def messages(self) -> list[Message]:
        """The pictures and the question of the first level."""
        return self._ask(self.graders[0].form)

    def _judge(self, reply: str) -> tuple[float, dict[str, float]]:
        grader, level = self.graders[self.turn], self.levels[self.turn]
        grade = grader.grade(reply, self.truth)
        self.said = replace(self.said, **{level: getattr(grade.answer, level)})
        return grader.worth(grade) / self.turns, grader.metrics(grade)

    def _next(self) -> str:
        form = self.graders[self.turn].form
        names = [getattr(self.said, level) or "nothing clear" for level in self.levels[: self.turn] if level != "point"]
        replied = f"You said {', '.join(names)}. " if names else ""
        return replied + form.question(self._listed(form))
