"""Record dialogues as rows of `rollouts`, for every trainer, on this machine or at Tinker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kitlib import geo
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.dialogue import Dialogue
from kitlib.models.vlm.conversation.prompts import Message

Row = dict[str, Any]  # a place as a trainer gets it: sample_id, images, truth


class Recorder:
    """Converts dialogues to rows of `rollouts` and writes them; without a writer it drops them."""

    def __init__(self, writer: rollouts.Writer | None, environment: str) -> None:
        self.writer, self.environment = writer, environment

    def rows(
        self,
        step: int,
        phase: str,
        cases: Sequence[Row],
        dialogues: Sequence[Dialogue],
        tau_km: float,
        advantages: Sequence[float | None],
    ) -> list[dict[str, Any]]:
        """One row per dialogue, without its number in the group; stores the pictures."""
        rows = []
        for case, dialogue, advantage in zip(cases, dialogues, advantages, strict=True):
            points = [reply.point for reply in dialogue.parsed]
            truth, last = case["truth"].point, points[-1]
            if truth is None or self.writer is None:
                continue
            row = {"step": step, "phase": phase, "sample_id": case["sample_id"], "environment": self.environment}
            row |= {"prompt": prompt_text(dialogue.env.messages()), "pictures": self._pictures(case)}
            row |= {"points": [point and list(point) for point in points], "point": last and list(last)}
            row |= {"replies": dialogue.replies, "rewards": dialogue.rewards, "reward": dialogue.reward}
            row |= {"truth": list(truth), "advantage": advantage, "tau_km": tau_km}
            row |= {"km": float(geo.distance_km(last, truth)) if last else None}
            rows.append(row)
        return rows

    def write(self, step: int, rows: Sequence[dict[str, Any]], group: int) -> None:
        """Write the rows of a step, ordered by groups of `group` rows."""
        if self.writer is not None and rows:
            self.writer.write(step, [row | {"rollout": i % group} for i, row in enumerate(rows)])

    def _pictures(self, case: Row) -> list[str]:
        assert self.writer is not None
        views = [np.asarray(image) for image in case["images"]]
        if len({view.shape for view in views}) == 1:
            return self.writer.picture(case["sample_id"], np.stack(views))
        return [name for v, view in enumerate(views) for name in self.writer.picture(f"{case['sample_id']}-{v}", view)]


class StepBuffer:
    """Collects rollouts that arrive group by group and writes them step by step.

    The last of a step's groups writes that step, and what has arrived of earlier steps. Groups that arrive after their
    step was written are dropped.
    """

    def __init__(self, recorder: Recorder, groups: int) -> None:
        self.recorder, self.groups, self.last = recorder, groups, -1
        self.waiting: dict[int, list[list[dict[str, Any]]]] = {}

    def add(
        self, step: int, case: Row, dialogues: Sequence[Dialogue], tau_km: float, advantages: Sequence[float]
    ) -> None:
        """Add one group: the dialogues about one place."""
        if step <= self.last:
            return
        rows = self.recorder.rows(step, "train", [case] * len(dialogues), dialogues, tau_km, advantages)
        self.waiting.setdefault(step, []).append(rows)
        if len(self.waiting[step]) == self.groups:
            self.close(step)

    def close(self, step: int | None = None) -> None:
        """Write all waiting rows of the steps up to `step`, of all steps when None."""
        for one in sorted(self.waiting):
            if step is None or one <= step:
                groups = self.waiting.pop(one)
                rows = [row | {"rollout": i} for group in groups for i, row in enumerate(group)]
                if rows and self.recorder.writer is not None:
                    self.recorder.writer.write(one, rows)
                self.last = one


def prompt_text(messages: Sequence[Message]) -> str:
    """The text of messages, with [picture] for each picture."""
    parts = (part for message in messages for part in message["content"])
    return "\n".join("[picture]" if part["type"] == "image" else part["text"] for part in parts)
