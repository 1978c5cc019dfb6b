"""Conversations of a vision-language model as rows of `rollouts`, whichever trainer plays them, here or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kitlib import geo
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.dialogue import Talk
from kitlib.models.vlm.conversation.prompts import Message

if TYPE_CHECKING:
    pass


class Recorder:
    """Writes conversations as `rollouts` wants them; without a writer it drops them."""

    def __init__(self, writer: rollouts.Writer | None, environment: str) -> None:
        self.writer, self.environment = writer, environment

    def rows(
        self,
        step: int,
        phase: str,
        cases: Sequence[Row],
        talks: Sequence[Talk],
        tau_km: float,
        advantages: Sequence[float | None],
    ) -> list[dict[str, Any]]:
        """A row each, still without its number in the group; pictures are stored."""
        found = []
        for case, talk, advantage in zip(cases, talks, advantages, strict=True):
            points = [answer.point for answer in talk.answers]
            truth, last = case["truth"].point, points[-1]
            if truth is None or self.writer is None:
                continue
            row = {"step": step, "phase": phase, "sample_id": case["sample_id"], "environment": self.environment}
            row |= {"prompt": told(talk.env.messages()), "pictures": self._pictures(case), "replies": talk.replies}
            row |= {"points": [point and list(point) for point in points], "point": last and list(last)}
            row |= {"truth": list(truth), "rewards": talk.rewards, "reward": talk.reward, "advantage": advantage}
            row |= {"km": float(geo.distance_km(last, truth)) if last else None, "tau_km": tau_km}
            found.append(row)
        return found

    def write(self, step: int, rows: Sequence[dict[str, Any]], group: int) -> None:
        """Write the rows of a step, each group's one after the other."""
        if self.writer is not None and rows:
            self.writer.write(step, [row | {"rollout": i % group} for i, row in enumerate(rows)])

    def _pictures(self, case: Row) -> list[str]:
        assert self.writer is not None
        views = [np.asarray(image) for image in case["images"]]
        if len({view.shape for view in views}) == 1:
            return self.writer.picture(case["sample_id"], np.stack(views))
        return [name for v, view in enumerate(views) for name in self.writer.picture(f"{case['sample_id']}-{v}", view)]


class Book:
    """Writes rollouts that arrive group by group, a step at a time, as `rollouts.Writer` wants them.

    A step is written when its last group is there, and what there is of the steps before it. A group that comes later
    than that is left out.
    """

    def __init__(self, recorder: Recorder, groups: int) -> None:
        self.recorder, self.groups, self.last = recorder, groups, -1
        self.waiting: dict[int, list[list[dict[str, Any]]]] = {}

    def add(self, step: int, case: Row, talks: Sequence[Talk], tau_km: float, advantages: Sequence[float]) -> None:
        """Take a group of conversations about one place."""
        if step <= self.last:
            return
        rows = self.recorder.rows(step, "train", [case] * len(talks), talks, tau_km, advantages)
        self.waiting.setdefault(step, []).append([row | {"rollout": i} for i, row in enumerate(rows)])
        if len(self.waiting[step]) == self.groups:
            self.close(step)

    def close(self, step: int | None = None) -> None:
        """Write what there is up to a step, by default all."""
        for one in sorted(self.waiting):
            if step is None or one <= step:
                rows = [row for group in self.waiting.pop(one) for row in group]
                if rows and self.recorder.writer is not None:
                    self.recorder.writer.write(one, rows)
                self.last = one


def told(messages: Sequence[Message]) -> str:
    """All text of the first messages, up to the first reply."""
    parts = (part for message in messages for part in message["content"])
    return "\n".join("[picture]" if part["type"] == "image" else part["text"] for part in parts)


Row = dict[str, Any]
