"""Environments for reinforcement learning about one place: text in, reward and next message out.

    env = Telescoping(("north", "east", "south", "west"), truth, grader, radii_km=(2000, 200, 25))
    env.messages()               # the prompt, with a part for every picture
    env.step("40, -83")          # Step(reward, done, message, metrics); the message is text only

They need no model and no torch, and only a seed makes anything random. An environment lasts one episode, as in
tinker-cookbook (whose `initial_observation` renders `messages()` and whose `step` decodes tokens first) and in a
rollout function of TRL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.prompts import Message, ReplyForm, ask, user
from kitlib.models.vlm.conversation.replies import NAMES, Reply
from kitlib.models.vlm.conversation.rewards import Grader
from kitlib.models.vlm.conversation.vocabulary import Labels


class Step(NamedTuple):
    """The result of a reply: its reward, whether the episode is over, the next message (None at the end), metrics."""

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
    def _grade(self, reply: str) -> tuple[float, dict[str, float]]:
        """The reward and the metrics of the reply to turn `self.turn`."""

    def _question(self) -> str:
        """The text of the message that opens turn `self.turn`, from the second turn on."""
        raise NotImplementedError

    def step(self, reply: str) -> Step:
        """Grade a reply and go to the next turn. Raises KitError when the episode is over."""
        if self.turn >= self.turns:
            raise KitError(f"the episode is over after {self.turns} replies; make a new environment for another one")
        reward, metrics = self._grade(reply)
        self.turn += 1
        done = self.turn == self.turns
        return Step(reward, done, None if done else user(self._question()), metrics)


class Graded(Environment):
    """An environment whose replies a grader reads.

    views: the views' names. reasoning: whether the prompt invites it. listed: fields whose vocabulary the prompt lists.
    Raises KitError for a place that cannot be graded, and for a listed field without a vocabulary.
    """

    def __init__(
        self, views: Sequence[str], truth: Reply, grader: Grader, *, reasoning: bool = False, listed: Sequence[str] = ()
    ):
        super().__init__()
        if missing := [name for name in listed if name not in grader.labels]:
            raise KitError(f"listed: expected fields with a vocabulary; got {', '.join(missing)}")
        self.views, self.truth, self.grader, self.reasoning, self.listed = views, truth, grader, reasoning, listed
        grader.check(truth)

    def _vocabularies(self, form: ReplyForm) -> dict[str, Labels]:
        return {name: self.grader.labels[name] for name in self.listed if name in form.fields}

    def messages(self) -> list[Message]:
        """The pictures and the grader's form as a question."""
        form = self.grader.form
        return ask(form, self.views, self._vocabularies(form), self.reasoning)


class SingleTurn(Graded):
    """One question and one reply, which earns its graded value."""

    turns = 1

    def _grade(self, reply: str) -> tuple[float, dict[str, float]]:
        grade = self.grader.grade(reply, self.truth)
        return self.grader.value(grade), self.grader.metrics(grade)


class Telescoping(Graded):
    """A coarse guess, refined turn by turn; every reply is a complete one.

    A turn earns the value of its reply less that of the reply before, so that the rewards sum to the value of the last
    reply (potential-based shaping: Ng, Harada and Russell 1999). Every step towards the place earns credit, and a bad
    start on purpose gains nothing. A reply that cannot be parsed has the value 0: it loses what was earned, and the
    next turn can earn it again.

    radii_km: how close each turn is asked to come. options: as for `Graded`. The value is the grader's total; with a
    small tau the first turns hardly differ, Weights(geoscore=1.0, distance=0.0) tells all of them apart. Raises
    KitError for a form without a point.
    """

    def __init__(
        self, views: Sequence[str], truth: Reply, grader: Grader, *, radii_km: Sequence[float], **options: Any
    ):
        super().__init__(views, truth, grader, **options)
        if "point" not in grader.form.fields:
            raise KitError(f"telescoping: expected a form with the point; got {', '.join(grader.form.fields)}")
        self.radii_km, self.turns, self.value, self.last = radii_km, len(radii_km), 0.0, Reply()

    def messages(self) -> list[Message]:
        """The form as a question, with the radius of the first guess."""
        prompt = super().messages()
        prompt[-1]["content"][-1]["text"] += f"\nA first guess is enough, within {self.radii_km[0]:,.0f} km."
        return prompt

    def _grade(self, reply: str) -> tuple[float, dict[str, float]]:
        grade = self.grader.grade(reply, self.truth)
        before, self.value, self.last = self.value, self.grader.value(grade), grade.reply
        return self.value - before, self.grader.metrics(grade)

    def _question(self) -> str:
        point = self.last.point
        recap = "Your reply did not say where." if point is None else "You said {:.4f}, {:.4f}.".format(*point)
        return f"{recap} Look again and refine it, within {self.radii_km[self.turn]:,.0f} km, in the same lines."


class Hierarchical(Graded):
    """One question each for some of country, region, city and point; every level earns an equal share of 1.

    The right name earns its level's share, the point exp(-km / tau) of it. A reply earns nothing for other levels than
    the one it was asked about. Only the grader's vocabularies, its name for regions and its tau are used. options: as
    for `Graded`. Raises KitError for levels that are unknown, doubled, none, or not known of the place.
    """

    def __init__(self, views: Sequence[str], truth: Reply, grader: Grader, *, levels: Sequence[str], **options: Any):
        if not levels or not set(levels) <= {*NAMES, "point"} or len(set(levels)) < len(levels):
            raise KitError(f"levels: expected some of country, region, city, point, each once; got {tuple(levels)}")
        super().__init__(views, truth, grader.only(levels[0]), **options)
        self.levels, self.turns, self.last = tuple(levels), len(levels), Reply()
        self.graders = [grader.only(level) for level in levels]
        for one in self.graders:
            one.check(truth)

    def _grade(self, reply: str) -> tuple[float, dict[str, float]]:
        grader, level = self.graders[self.turn], self.levels[self.turn]
        grade = grader.grade(reply, self.truth)
        self.last = replace(self.last, **{level: getattr(grade.reply, level)})
        return grader.value(grade) / self.turns, grader.metrics(grade)

    def _question(self) -> str:
        form = self.graders[self.turn].form
        names = [getattr(self.last, level) or "nothing clear" for level in self.levels[: self.turn] if level != "point"]
        recap = f"You said {', '.join(names)}. " if names else ""
        return recap + form.question(self._vocabularies(form))
