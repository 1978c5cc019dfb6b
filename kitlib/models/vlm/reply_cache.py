"""Cache of a fold's generated replies, written in parts so that an interrupted run does not generate them again.

A model of three billion weights takes hours for all places of a competition. Each part is a JSON file, written
atomically, with every reply as text; the dialogues are replayed from the replies.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kitlib.core import storage
from kitlib.core.errors import Damaged
from kitlib.core.progress import Bar
from kitlib.evaluation.crossval import Unfinished
from kitlib.models.vlm.conversation.dialogue import Dialogue
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import Cases

log = logging.getLogger(__name__)

PLACES = 64  # of a part: a few minutes' work of a real model


@dataclass(frozen=True)
class Generations:
    """The dialogues about each of N places, and the log-likelihood (N, S) of each state's name as the reply.

    The log-likelihood is up to a constant per place; None where it was not computed.
    """

    dialogues: list[list[Dialogue]]
    log_likelihood: np.ndarray | None


def cached(
    folder: Path,
    key: str,
    cases: Cases,
    task: Task,
    generate: Callable[[Cases, int], Generations],
    deadline: float = math.inf,
    desc: str = "guessing",
) -> Generations:
    """The generations for all cases: parts in `folder` are read, missing ones come from generate(cases, part's number).

    key: identifies the places, their pictures and the prompt; parts of other keys are ignored. deadline: in seconds of
    `time.monotonic()`. Raises Unfinished after it, when at least one more part is written.
    """
    parts = []
    with Bar(total=len(cases), desc=desc, unit=" places") as bar:
        for number, start in enumerate(range(0, len(cases), PLACES)):
            part = cases.slice(start, start + PLACES)
            path = folder / f"{key}-{number:05d}.json"
            known = _read(path, part, task)
            if known is None:
                _write(path, known := generate(part, number))
                last = start + PLACES >= len(cases)
                if time.monotonic() > deadline and not last:
                    raise Unfinished
            parts.append(known)
            bar.update(len(part))
    scores = [part.log_likelihood for part in parts if part.log_likelihood is not None]
    return Generations([row for part in parts for row in part.dialogues], np.concatenate(scores) if scores else None)


def _write(path: Path, generations: Generations) -> None:
    scores = None if generations.log_likelihood is None else generations.log_likelihood.tolist()
    replies = [[dialogue.replies for dialogue in row] for row in generations.dialogues]
    part = {"replies": replies, "log_likelihood": scores}
    storage.write_json(path, part | {"checksum": storage.digest(json.dumps(part))}, indent=None)


def _read(path: Path, cases: Cases, task: Task) -> Generations | None:
    """The replies of a part; None if it does not exist or is not as it was written."""
    try:
        part = storage.read_json(path, needed=("replies", "log_likelihood", "checksum"))
    except FileNotFoundError:
        return None
    except Damaged:
        part = {}
    if part.pop("checksum", "") != storage.digest(json.dumps(part)):
        log.warning("%s is damaged, or of an earlier kit: its replies are generated anew", storage.place(path))
        return None
    dialogues = [[_replayed(cases, i, task, replies) for replies in rows] for i, rows in enumerate(part["replies"])]
    scores = part["log_likelihood"]
    return Generations(dialogues, None if scores is None else np.array(scores))


def _replayed(cases: Cases, i: int, task: Task, replies: list[str]) -> Dialogue:
    dialogue = Dialogue(task.open_for_guess(cases.views, cases.truths[i]), [])
    for reply in replies:
        dialogue.add_reply(reply)
    return dialogue
