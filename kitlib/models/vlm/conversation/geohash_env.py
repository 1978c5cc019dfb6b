"""A curriculum of geohashes: the first 2 characters of where it is, then 4, then 6.

A short prefix is easy to get right by chance and by sight, and each longer one begins with it. Over training the
lengths grow (`lengths_at`) while a teacher, who now and then gives the true prefix to go on from, retires
(`forcing_at`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.geo import geohash
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import REASONING, Message, chat
from kitlib.models.vlm.conversation.replies import MOST, Answer, visible
from kitlib.models.vlm.conversation.rewards import TAU_KM
from kitlib.models.vlm.conversation.schedules import LENGTHS


def read_geohash(reply: str, length: int) -> str | None:
    """The geohash of exactly `length` characters that a reply consists of, or names behind "Geohash:"; else None.

    >>> read_geohash("**Geohash: DP**", 2), read_geohash("dp or dq", 2), read_geohash("dph", 2)
    ('dp', None, None)
    """
    text = re.sub(r"[*_`\"'{}]", "", visible(reply))
    if len(text) > MOST:
        return None
    named = re.findall(r"\bgeohash\b[ \t]*[:=](.*)", text, re.IGNORECASE)
    said = {one.strip(" \t\r\n.,;").lower() for one in named or [text]}
    only = said.pop() if len(said) == 1 else ""
    return only if len(only) == length and geohash.is_geohash(only) else None


class GeohashTurns(Environment):
    """One reply for each length; a turn earns its level's share, and a bonus for what it improved.

    The share is exp(-km / r) / turns, km being from the centre of the cell that was named to the place, and r the
    radius of a cell of that length, or tau where that is larger. The bonus is S - S', with S = exp(-km / tau) of the
    cell named now, 0 for none, and S' that of the cell one went on from. A bonus for improvement alone would pay for a
    bad start; signed, it sums to the last turn's S. When the teacher gives the true prefix, S' is the prefix's own S:
    no credit for what was told.
    """

    def __init__(
        self,
        views: Sequence[str],
        truth: Answer,
        *,
        lengths: Sequence[int] = LENGTHS,
        forcing: float = 0.0,
        bonus: float = 1.0,
        tau_km: float = TAU_KM,
        seed: int = 0,
        reasoning: bool = False,
    ):
        """Raises KitError for lengths that do not grow, a place without a point, and numbers out of range."""
        super().__init__()
        if (
            not lengths
            or list(lengths) != sorted(set(lengths))
            or not 1 <= lengths[0] <= lengths[-1] <= geohash.LONGEST
        ):
            raise KitError(f"lengths {tuple(lengths)}: allowed are growing ones from 1 to {geohash.LONGEST}")
        if not 0 <= forcing <= 1 or not bonus >= 0 or not tau_km > 0:
            raise KitError(
                f"forcing {forcing}, bonus {bonus}, tau {tau_km} km: allowed are 0 to 1, at least 0, more than 0"
            )
        if truth.point is None:
            raise KitError("a geohash curriculum needs to know where the place is; it has no point")
        self.views, self.lengths, self.bonus, self.tau_km, self.reasoning = views, lengths, bonus, tau_km, reasoning
        self.point, self.turns = truth.point, len(lengths)
        # Drawn at once, so that no reply can change what the teacher does.
        self.forced = np.random.default_rng(seed).random(self.turns) < forcing
        self.prefix, self.score = "", 0.0

    def messages(self) -> list[Message]:
        """The pictures and the question of the first length."""
        lines = f"Reply with one line and nothing else:\n{self._line(0)}"
        lines += f"\n{REASONING}" if self.reasoning else ""
        return chat(self.views, f"Where was this taken? {lines}")

    def _line(self, turn: int) -> str:
        return f"Geohash: <the first {self.lengths[turn]} characters>"

    def _judge(self, reply: str) -> tuple[float, dict[str, float]]:
        length = self.lengths[self.turn]
        said = read_geohash(reply, length)
        share, score, metrics = 0.0, 0.0, {"parsed": float(said is not None)}
        if said is not None:
            km = self._km(said)
            share = float(np.exp(-km / max(geohash.radius_km(length), self.tau_km)))
            score = float(np.exp(-km / self.tau_km))
            metrics |= {"km": km, "right": float(said == str(geohash.encode(self.point, length)))}
            self.prefix = said
        reward = share / self.turns + self.bonus * (score - self.score)
        self.score = score
        if self.turn + 1 < self.turns and self.forced[self.turn]:
            self.prefix = str(geohash.encode(self.point, length))
            self.score = float(np.exp(-self._km(self.prefix) / self.tau_km))
        return reward, metrics

    def _km(self, prefix: str) -> float:
        return float(geo.distance_km(geohash.decode(prefix), self.point))

    def _next(self) -> str:
        told = f"Go on from {self.prefix}, or correct it." if self.prefix else "Your reply named no geohash."
        return f"{told} One line and nothing else:\n{self._line(self.turn)}"
