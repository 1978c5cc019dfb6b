"""The task given to a vision-language model for one place: the dialogue, its rewards, and the target replies.

task = Task(prompts.COMPETITION, {"region": states}, options=TaskOptions(environment="telescoping"))
env = task.open(views, truth, step=10, n_steps=100)         # an environment, with the tau of that step
messages, reply = task.example(views, truth, seed=7)        # for fine-tuning: the dialogue so far, the target reply
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from kitlib import geo
from kitlib.core.checks import numbers, whole_numbers
from kitlib.core.errors import KitError, shown
from kitlib.core.settings import Names, Settings
from kitlib.geo import geohash
from kitlib.models.vlm.conversation.environments import Environment, Graded, Hierarchical, SingleTurn, Telescoping
from kitlib.models.vlm.conversation.geohash_env import GeohashTurns, read_geohash
from kitlib.models.vlm.conversation.prompts import FIELDS, Message, ReplyForm, assistant
from kitlib.models.vlm.conversation.replies import NAMES, RANKS, Reply
from kitlib.models.vlm.conversation.rewards import TAU_KM, Grader, Weights
from kitlib.models.vlm.conversation.schedules import SCHEDULES, forcing_at, lengths_at, tau_at
from kitlib.models.vlm.conversation.vocabulary import Labels

ENVIRONMENTS = ("single", "telescoping", "geohash", "hierarchical")
STEPS = 1000  # of a training whose last step is opened
LEVELS = ("country", "region", "city", "point")  # from coarse to fine


def geohash_lengths(text: str) -> list[int]:
    """Increasing numbers of characters with commas between. Raises KitError for anything else.

    >>> geohash_lengths("2, 4")
    [2, 4]
    """
    lengths: list[int] = []
    with contextlib.suppress(KitError):  # the sentence below says more
        lengths = whole_numbers("lengths", text, 1, geohash.LONGEST)
    if not lengths or lengths != sorted(lengths):
        raise KitError(f"lengths: expected increasing values from 1 to {geohash.LONGEST}; got {shown(text)}")
    return lengths


@dataclass(frozen=True)
class TaskOptions(Settings):
    """The conversation and its schedules over training."""

    environment: str = "single"  # single, telescoping, geohash, hierarchical
    radii_km: str = "2000,200,25"  # how close each turn of telescoping is asked to come
    lengths: str = "2,4,6"  # characters of each turn of geohash
    forcing: float = 0.5  # probability of teacher forcing in a geohash turn at the first step, falling to 0
    bonus: float = 1.0  # weight of improving in geohash
    reasoning: bool = False  # whether grpo invites the model to think before it answers
    tau_schedule: str = "geometric"  # of grpo: fixed, geometric, linear, stepped
    tau_first_km: float = 2000.0  # km at which a reward falls to 1/e, at the first step
    tau_last_km: float = TAU_KM  # at the last step, and in evaluations

    CHOICES: ClassVar = {"environment": ENVIRONMENTS, "tau_schedule": SCHEDULES}
    POSITIVE: ClassVar[Names] = ("tau_first_km", "tau_last_km")
    SHARES: ClassVar[Names] = ("forcing",)
    PARSERS: ClassVar = {"radii_km": partial(numbers, "radii_km"), "lengths": geohash_lengths}

    @property
    def turn_radii_km(self) -> tuple[float, ...]:
        """The radius in km of each turn of telescoping."""
        return tuple(numbers("radii_km", self.radii_km))

    @property
    def turn_lengths(self) -> tuple[int, ...]:
        """The number of characters of each turn of geohash."""
        return tuple(geohash_lengths(self.lengths))


@dataclass(frozen=True)
class Task:
    """One way to ask about places. form, labels, weights: as for `Grader`. listed: as for `Graded`."""

    form: ReplyForm
    labels: Mapping[str, Labels] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    options: TaskOptions = field(default_factory=TaskOptions)
    listed: Sequence[str] = ()

    def with_options(self, **changes: Any) -> Task:
        """The same task with some of its options changed."""
        return replace(self, options=replace(self.options, **changes))

    @property
    def multi_turn(self) -> bool:
        """Whether a dialogue has more than one reply."""
        return self.options.environment != "single"

    def tau_km(self, step: int, n_steps: int) -> float:
        """The tau in km at a training step."""
        options = self.options
        return tau_at(step, n_steps, options.tau_schedule, options.tau_first_km, options.tau_last_km)

    def open(self, views: Sequence[str], truth: Reply, step: int, n_steps: int, seed: int = 0) -> Environment:
        """The environment of a place at a training step, 0 to n_steps - 1.

        views: the views' names. seed: of geohash's teacher forcing. Raises KitError for a place that cannot be graded.
        """
        options, tau_km = self.options, self.tau_km(step, n_steps)
        if options.environment == "geohash":
            return GeohashTurns(
                views,
                truth,
                lengths=lengths_at(step, n_steps, options.turn_lengths),
                forcing=forcing_at(step, n_steps, options.forcing),
                bonus=options.bonus,
                tau_km=tau_km,
                seed=seed,
                reasoning=options.reasoning,
            )
        grader = Grader(self.form, self.labels, self.weights, tau_km)
        shared: dict[str, Any] = {"reasoning": options.reasoning, "listed": self.listed}
        if options.environment == "telescoping":
            return Telescoping(views, truth, grader, radii_km=options.turn_radii_km, **shared)
        if options.environment == "hierarchical":
            levels = [name for name in LEVELS if name in self.form.fields and getattr(truth, name) is not None]
            return Hierarchical(views, truth, grader, levels=levels, **shared)
        return SingleTurn(views, truth, grader, **shared)

    def open_final(self, views: Sequence[str], truth: Reply) -> Environment:
        """The environment at the end of training: no teacher forcing, all lengths, the last tau."""
        return self.open(views, truth, STEPS - 1, STEPS)

    def open_for_guess(self, views: Sequence[str], truth: Reply) -> Environment:
        """As `open_final`; a place without a known point gets a stand-in truth, and its rewards mean nothing."""
        return self.open_final(views, self.placeholder() if truth.point is None else truth)

    def placeholder(self) -> Reply:
        """A stand-in truth for places whose own is unknown; the prompts do not depend on it."""
        names = {name: self.labels[name].names[0] if name in self.labels else "?" for name in NAMES}
        return Reply(
            (0.0, 0.0), **names, states=self.labels["states"].names[:RANKS] if "states" in self.labels else ("?",)
        )

    def example(self, views: Sequence[str], truth: Reply, seed: int) -> tuple[list[Message], str]:
        """A dialogue up to a turn drawn by `seed`, with plausible but imperfect replies so far, and the target reply.

        Fields that are unknown of the place are left out. Raises KitError when none is known.
        """
        rng = np.random.default_rng(seed)
        known = self.form.known(truth)
        graded = {name: 1.0 for name in known.fields if name in NAMES} | {"distance": float("point" in known.fields)}
        graded["score"] = float("states" in known.fields)
        task = replace(self, form=known, weights=Weights(**({"form": 0.0, "distance": 0.0} | graded)))
        env, radii_km = task.open_final(views, truth), self.options.turn_radii_km
        messages = env.messages()
        for turn in range(rng.integers(env.turns)):
            reply = target_reply(env, perturbed(truth, radii_km[min(turn, len(radii_km) - 1)], rng))
            step = env.step(reply)
            assert step.message is not None  # the turn drawn is not the last
            messages += [assistant(reply), step.message]
        return messages, target_reply(env, truth)


def perturbed(truth: Reply, km: float, rng: np.random.Generator) -> Reply:
    """The same reply with its point moved by about `km` in a random direction."""
    if truth.point is None:
        return truth
    moved = geo.unit_vectors(truth.point) + rng.normal(0.0, km / (np.sqrt(2) * geo.EARTH_RADIUS_KM), 3)
    return replace(truth, point=tuple(geo.from_unit_vectors(moved).tolist()))


def target_reply(env: Environment, truth: Reply) -> str:
    """The text that states `truth` at the environment's current turn, in the lines that the prompt asks for."""
    if isinstance(env, GeohashTurns):
        assert truth.point is not None  # GeohashTurns refuses places without a point
        return f"Geohash: {geohash.encode(truth.point, env.lengths[env.turn])}"
    if isinstance(env, Hierarchical):
        return env.graders[env.turn].form.write(truth)
    assert isinstance(env, Graded)
    return env.grader.form.write(truth)


def parse_reply(env: Environment, turn: int, text: str) -> Reply:
    """The reply to turn `turn` as the environment reads it."""
    if isinstance(env, GeohashTurns):
        code = read_geohash(text, env.lengths[turn])
        return Reply() if code is None else Reply(tuple(geohash.decode(code).tolist()))
    assert isinstance(env, Graded)
    if isinstance(env, Hierarchical):
        level = env.levels[turn]
        return Reply(**{level: getattr(env.graders[turn].read(text), level)})
    return env.grader.read(text)


def final_reply(replies: Sequence[Reply]) -> Reply:
    """The result of a dialogue: for each field the last value that a reply gives.

    >>> final_reply([Reply((1.0, 2.0)), Reply(region="Ohio"), Reply()])
    Reply(point=(1.0, 2.0), city=None, region='Ohio', country=None, states=None)
    """
    result = Reply()
    for reply in replies:
        result = replace(result, **{name: value for name in FIELDS if (value := getattr(reply, name)) is not None})
    return result
