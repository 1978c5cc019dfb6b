"""What a run of the vision-language family shows: what is asked and taught, what was said, how looks at it went."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib.data import pictures
from kitlib.data.places import Places
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.models.vlm import dataset, session
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.conversation import rollouts


def lessons(config: Config, places: Places, n: int) -> pd.DataFrame:
    """What fine-tuning shows of the first n training places in the saved order: row, question, right reply.

    Of a conversation of several turns it is one turn, drawn anew for each place.
    """
    task, rows = session.task_of(config, places), np.arange(min(n, len(places.rows("train"))))
    cases = dataset.places_cases(places, pictures.pack(places, "train"), rows, config.max_side, config.label)
    taught = [task.lesson(places.views, truth, seed) for seed, truth in enumerate(cases.truths)]
    words = [[part["text"] for message in talk for part in message["content"] if "text" in part] for talk, _ in taught]
    return pd.DataFrame(
        {"row": rows, "question": ["\n".join(w) for w in words], "reply": [reply for _, reply in taught]}
    )


def looks(run: Run) -> pd.DataFrame:
    """What held-out places came to at each look of each done fold: reward, share parsed, score, km; with the step."""
    history = crossval.history(run)
    seen = [str(name) for name in history if str(name).startswith("eval_")]
    found = history[["fold", "phase", "step", *seen]].dropna(subset=seen, how="all").reset_index(drop=True)
    return found.set_axis([str(name).removeprefix("eval_") for name in found], axis=1)


def said(run: Run, n: int) -> pd.DataFrame:
    """The first reply to each of n held-out places at the first look and at the last: text, reward and km.

    Lines are parted by dots, turns by arrows.
    """
    frame = rollouts.read(run.dir / "rollouts")
    first = frame[(frame["phase"] == "eval") & (frame["rollout"] == 0)]
    ends = first[first["step"].isin([first["step"].min(), first["step"].max()])]
    shown = ends[ends["sample_id"].isin(ends["sample_id"].unique()[:n])].sort_values(["sample_id", "step"])
    text = [" → ".join(" · ".join(reply.split("\n")) for reply in replies) for replies in shown["replies"]]
    told = shown.assign(reply=text)[["sample_id", "step", "reply", "reward", "km"]]
    return told.set_index(["sample_id", "step"]).round({"reward": 3, "km": 0})
