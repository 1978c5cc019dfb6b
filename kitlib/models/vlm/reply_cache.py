"""What a fold's model said of places, kept part by part: what was said is not asked for again.

A model of three billion weights talks for hours about all places of a competition. Each part of them is a JSON file
that appears when it is whole, with every reply as text; conversations are played again from the replies.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from kitlib.core import storage
from kitlib.evaluation.crossval import Unfinished
from kitlib.models.vlm.conversation.dialogue import Talk
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import Cases

PLACES = 64  # of a part: a few minutes' work of a real model


@dataclass(frozen=True)
class Said:
    """What a model said of N places.

    talks: of each place its conversations, as at the end of training. log_likelihood (N, S): of each state's name as
    the answer, up to a constant a place; None where it was not asked for.
    """

    talks: list[list[Talk]]
    log_likelihood: np.ndarray | None


def kept(
    folder: Path,
    key: str,
    cases: Cases,
    task: Task,
    ask: Callable[[Cases, int], Said],
    deadline: float = math.inf,
    desc: str = "guessing",
) -> Said:
    """What ask(cases, part's number) says of all cases, read from `folder` where a part is there already.

    key: what stands for the places, their pictures and the question; parts of another key are not looked at.
    deadline: in `time.monotonic()`'s seconds. Raises Unfinished after it, with at least one part more than before.
    """
    parts = []
    with tqdm(total=len(cases), desc=desc, unit=" places") as bar:
        for number, start in enumerate(range(0, len(cases), PLACES)):
            part = cases.part(start, start + PLACES)
            path = folder / f"{key}-{number:05d}.json"
            if not path.is_file():
                _write(path, ask(part, number))
                last = start + PLACES >= len(cases)
                if time.monotonic() > deadline and not last:
                    raise Unfinished
            parts.append(_read(path, part, task))
            bar.update(len(part))
    scores = [part.log_likelihood for part in parts if part.log_likelihood is not None]
    return Said([row for part in parts for row in part.talks], np.concatenate(scores) if scores else None)


def _write(path: Path, said: Said) -> None:
    scores = None if said.log_likelihood is None else said.log_likelihood.tolist()
    replies = [[talk.replies for talk in row] for row in said.talks]
    storage.write_json(path, {"replies": replies, "log_likelihood": scores}, indent=None)


def _read(path: Path, cases: Cases, task: Task) -> Said:
    found = json.loads(path.read_text())
    talks = [[_replayed(cases, i, task, replies) for replies in samples] for i, samples in enumerate(found["replies"])]
    scores = found["log_likelihood"]
    return Said(talks, None if scores is None else np.array(scores))


def _replayed(cases: Cases, i: int, task: Task, replies: list[str]) -> Talk:
    talk = Talk(task.about(cases.views, cases.truths[i]), [])
    for reply in replies:
        talk.hear(reply)
    return talk
