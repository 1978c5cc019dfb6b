"""What a vision-language model is set to do with a place: which conversation, what it earns, what the right replies.

    task = Task(form=prompts.COMPETITION, labels={"region": states})
    env = task.open(views, truth, step=10, n_steps=100)         # an environment, with the tau of that step
    messages, reply = task.lesson(views, truth, seed=7)         # what fine-tuning shows: the talk so far, what to say

The four conversations are those of `environments` and `curriculum`: single, telescoping, geohash, hierarchical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import geohash
from kitlib.models.vlm.conversation.environments import Environment, Graded, Hierarchical, SingleTurn, Telescoping
from kitlib.models.vlm.conversation.geohash_env import GeohashTurns, read_geohash
from kitlib.models.vlm.conversation.prompts import FIELDS, Form, Message, assistant
from kitlib.models.vlm.conversation.replies import Answer
from kitlib.models.vlm.conversation.rewards import Grader, Weights
from kitlib.models.vlm.conversation.schedules import forcing_at, lengths_at, tau_at
from kitlib.models.vlm.conversation.vocabulary import Labels

ENVIRONMENTS = ("single", "telescoping", "geohash", "hierarchical")
STEPS = 1000  # of a training whose last step is asked for
LEVELS = ("country", "region", "city", "point")  # from coarse to fine


@dataclass(frozen=True)
class Task:
    """One way to ask about places.

    environment: one of ENVIRONMENTS. form, labels, weights: as for `Grader`. reasoning, listed: as for `Graded`.
    radii_km: of telescoping's turns. lengths: of geohash's. forcing, bonus: as for `GeohashTurns`, forcing at the first
    step. tau_schedule, tau_first_km, tau_last_km: as for `rewards.tau_at`. Raises KitError for an unknown environment.
    """

    form: Form
    labels: Mapping[str, Labels] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    environment: str = "single"
    reasoning: bool = False
    listed: Sequence[str] = ()
    radii_km: Sequence[float] = (2000.0, 200.0, 25.0)
    lengths: Sequence[int] = (2, 4, 6)
    forcing: float = 0.5
    bonus: float = 1.0
    tau_schedule: str = "geometric"
    tau_first_km: float = 2000.0
    tau_last_km: float = 25.0

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise KitError(f"environment {self.environment!r}: allowed are {', '.join(ENVIRONMENTS)}")

    @property
    def multi_turn(self) -> bool:
        """Whether a conversation has more than one reply."""
        return self.environment != "single"

    def tau_km(self, step: int, n_steps: int) -> float:
        """The tau in km at a training step."""
        return tau_at(step, n_steps, self.tau_schedule, self.tau_first_km, self.tau_last_km)

    def open(self, views: Sequence[str], truth: Answer, step: int, n_steps: int, seed: int = 0) -> Environment:
        """A conversation about a place as at a training step, 0 to n_steps - 1.

        views: the views' names. seed: of what the geohash teacher does. Raises KitError for a place that cannot be
        graded.
        """
        tau_km = self.tau_km(step, n_steps)
        if self.environment == "geohash":
            lengths, forcing = lengths_at(step, n_steps, self.lengths), forcing_at(step, n_steps, self.forcing)
            more = {"forcing": forcing, "bonus": self.bonus, "tau_km": tau_km, "seed": seed}
            return GeohashTurns(views, truth, lengths=lengths, reasoning=self.reasoning, **more)  # type: ignore[arg-type]
        grader = Grader(self.form, self.labels, self.weights, tau_km)
        if self.environment == "telescoping":
            return Telescoping(
                views, truth, grader, radii_km=self.radii_km, reasoning=self.reasoning, listed=self.listed
            )
        if self.environment == "hierarchical":
            levels = [name for name in LEVELS if name in self.form.fields and getattr(truth, name) is not None]
            return Hierarchical(views, truth, grader, levels=levels, reasoning=self.reasoning, listed=self.listed)
        return SingleTurn(views, truth, grader, reasoning=self.reasoning, listed=self.listed)

    def last(self, views: Sequence[str], truth: Answer) -> Environment:
        """A conversation as at the end of a long training: no teacher, all lengths, the last tau."""
        return self.open(views, truth, STEPS - 1, STEPS)

    def about(self, views: Sequence[str], truth: Answer) -> Environment:
        """The same about a place of which nothing may be known; then nothing is earned that means anything."""
        return self.last(views, self.blank() if truth.point is None else truth)

    def blank(self) -> Answer:
        """A truth for conversations about places whose own is unknown: what is asked does not depend on it."""
        names = {name: self.labels[name].names[0] if name in self.labels else "?" for name in FIELDS if name != "point"}
        return Answer((0.0, 0.0), **names)

    def lesson(self, views: Sequence[str], truth: Answer, seed: int) -> tuple[list[Message], str]:
        """A conversation up to a turn drawn by `seed`, with fair but imperfect replies so far, and the right next one.

        What is not known of the place is neither asked nor said. Raises KitError when nothing is known.
        """
        rng = np.random.default_rng(seed)
        known = self.form.known(truth)
        graded = {name: 1.0 for name in known.fields if name != "point"} | {"distance": float("point" in known.fields)}
        task = replace(self, form=known, weights=Weights(**({"form": 0.0, "distance": 0.0} | graded)), forcing=0.0)
        env = task.last(views, truth)
        messages = env.messages()
        for turn in range(rng.integers(env.turns)):
            reply = right_reply(env, near(truth, self.radii_km[min(turn, len(self.radii_km) - 1)], rng))
            step = env.step(reply)
            assert step.message is not None  # the turn drawn is not the last
            messages += [assistant(reply), step.message]
        return messages, right_reply(env, truth)


def near(truth: Answer, km: float, rng: np.random.Generator) -> Answer:
    """The same answer with its point moved by about `km` in any direction."""
    if truth.point is None:
        return truth
    moved = geo.unit_vectors(truth.point) + rng.normal(0.0, km / (np.sqrt(2) * geo.EARTH_RADIUS_KM), 3)
    return replace(truth, point=tuple(geo.from_unit_vectors(moved).tolist()))


def right_reply(env: Environment, answer: Answer) -> str:
    """What says `answer` at the turn that the conversation has come to, in the lines that are asked for."""
    if isinstance(env, GeohashTurns):
        assert answer.point is not None  # or there would be no such environment
        return f"Geohash: {geohash.encode(answer.point, env.lengths[env.turn])}"
    if isinstance(env, Hierarchical):
        return env.graders[env.turn].form.write(answer)
    assert isinstance(env, Graded)
    return env.grader.form.write(answer)


def said(env: Environment, turn: int, reply: str) -> Answer:
    """What the reply to turn `turn` says, as the environment reads it."""
    if isinstance(env, GeohashTurns):
        code = read_geohash(reply, env.lengths[turn])
        return Answer() if code is None else Answer(tuple(geohash.decode(code).tolist()))
    assert isinstance(env, Graded)
    if isinstance(env, Hierarchical):
        level = env.levels[turn]
        return Answer(**{level: getattr(env.graders[turn].read(reply), level)})
    return env.grader.read(reply)


def concluded(answers: Sequence[Answer]) -> Answer:
    """What a conversation comes to: of every field the last that was said.

    >>> concluded([Answer((1.0, 2.0)), Answer(region="Ohio"), Answer()])
    Answer(point=(1.0, 2.0), city=None, region='Ohio', country=None)
    """
    last = Answer()
    for answer in answers:
        last = replace(last, **{name: value for name in FIELDS if (value := getattr(answer, name)) is not None})
    return last
