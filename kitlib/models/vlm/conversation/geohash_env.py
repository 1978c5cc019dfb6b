"""A curriculum of geohashes: the first 2 characters of the place's geohash, then 4, then 6.

A short prefix is easy to guess, and each longer one begins with it. Over training the lengths grow (`lengths_at`) while
teacher forcing, which replaces the model's prefix by the true one, fades out (`forcing_at`).
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
from kitlib.models.vlm.conversation.replies import MAX_LENGTH, Reply, visible


def read_geohash(reply: str, length: int) -> str | None:
    """The one geohash of exactly `length` characters that is the reply, or follows "Geohash:" in it; else None.

    >>> read_geohash("**Geohash: DP**", 2), read_geohash("dp or dq", 2), read_geohash("dph", 2)
    ('dp', None, None)
    """
    text = re.sub(r"[*_`\"'{}]", "", visible(reply))
    if len(text) > MAX_LENGTH:
        return None
    matches = re.findall(r"\bgeohash\b[ \t]*[:=](.*)", text, re.IGNORECASE)
    codes = {match.strip(" \t\r\n.,;").lower() for match in matches or [text]}
    code = codes.pop() if len(codes) == 1 else ""
    return code if len(code) == length and geohash.is_geohash(code) else None


class GeohashTurns(Environment):
    """One reply for each length; a turn earns its level's share, and a bonus for what it improved.

    The share is exp(-km / r) / turns, where km is the distance from the centre of the named cell to the place, and r
    the radius of a cell of that length, or tau where that is larger. The bonus is S - S', where S = exp(-km / tau) of
    the cell named now, 0 for none, and S' that of the cell before. A bonus for improvement alone would pay for a bad
    start; signed, it sums to the last turn's S. After teacher forcing S' is that of the true prefix, so that the model
    gets no credit for it. Raises KitError for a place without a point.
    """

    def __init__(
        self,
        views: Sequence[str],
        truth: Reply,
        *,
        lengths: Sequence[int],
        forcing: float,
        bonus: float,
        tau_km: float,
        seed: int = 0,
        reasoning: bool = False,
    ):
        super().__init__()
        if truth.point is None:
            raise KitError("geohash: expected a place with a known point; it has no point")
        self.views, self.lengths, self.bonus, self.tau_km, self.reasoning = views, lengths, bonus, tau_km, reasoning
        self.point, self.turns = truth.point, len(lengths)
        # Drawn in advance, so that no reply can change the teacher forcing.
        self.forced = np.random.default_rng(seed).random(self.turns) < forcing
        self.prefix, self.score = "", 0.0

    def messages(self) -> list[Message]:
        """The pictures and the question of the first length."""
        lines = f"Reply with one line and nothing else:\n{self._line(0)}"
        lines += f"\n{REASONING}" if self.reasoning else ""
        return chat(self.views, f"Where was this taken? {lines}")

    def _line(self, turn: int) -> str:
        return f"Geohash: <the first {self.lengths[turn]} characters>"

    def _grade(self, reply: str) -> tuple[float, dict[str, float]]:
        length = self.lengths[self.turn]
        code, target = read_geohash(reply, length), str(geohash.encode(self.point, length))
        share, score, metrics = 0.0, 0.0, {"parsed": float(code is not None)}
        if code is not None:
            km = self._km(code)
            share = float(np.exp(-km / max(geohash.radius_km(length), self.tau_km)))
            score = float(np.exp(-km / self.tau_km))
            metrics |= {"km": km, "right": float(code == target)}
            self.prefix = code
        reward = share / self.turns + self.bonus * (score - self.score)
        self.score = score
        if self.turn + 1 < self.turns and self.forced[self.turn]:
            self.prefix, self.score = target, float(np.exp(-self._km(target) / self.tau_km))
        return reward, metrics

    def _km(self, prefix: str) -> float:
        return float(geo.distance_km(geohash.decode(prefix), self.point))

    def _question(self) -> str:
        recap = f"Go on from {self.prefix}, or correct it." if self.prefix else "Your reply named no geohash."
        return f"{recap} One line and nothing else:\n{self._line(self.turn)}"
