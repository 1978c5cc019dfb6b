"""Tables for the notebooks: example prompts and targets, sampled replies, held-out evaluations over training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib.data import pictures
from kitlib.data.places import Places
from kitlib.evaluation import fold_files
from kitlib.evaluation.runs import Run
from kitlib.models.vlm import dataset, session
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.conversation import rollouts


def examples(config: Config, places: Places, n: int) -> pd.DataFrame:
    """Fine-tuning examples of the first n training places: row, question, target reply.

    A task of several turns gives one turn per place, drawn at random.
    """
    task, rows = session.task_of(config, places), np.arange(min(n, len(places.rows("train"))))
    cases = dataset.places_cases(
        places, pictures.pack(places, "train"), rows, config.max_side, config.label, config.ranked
    )
    pairs = [task.example(places.views, truth, seed) for seed, truth in enumerate(cases.truths)]
    words = [
        [part["text"] for message in messages for part in message["content"] if "text" in part] for messages, _ in pairs
    ]
    return pd.DataFrame(
        {"row": rows, "question": ["\n".join(w) for w in words], "reply": [reply for _, reply in pairs]}
    )


def evaluations(run: Run) -> pd.DataFrame:
    """The evaluations on held-out places, by fold and step: share of parsed replies, reward, score, km."""
    history = fold_files.history(run)
    columns = [str(name) for name in history if str(name).startswith("eval_")]
    table = history[["fold", "step", *columns]].dropna(subset=columns, how="all")
    table.columns = [str(name).removeprefix("eval_") for name in table]
    return table.set_index(["fold", "step"])[["parsed", "answered", "reward", "final", "mean_km"]].round(3)


def state_choices(run: Run) -> pd.DataFrame:
    """For each fold the score of both sources of state probabilities, and which was chosen."""
    choices = {fold: c["state_scores"] | {"chosen": c["chosen"]} for fold, c in run.metrics["states_by"].items()}
    return pd.DataFrame(choices).T.rename_axis("fold")


def replies(run: Run, n: int) -> pd.DataFrame:
    """The first reply to each of n held-out places at the first and the last evaluation: text, reward and km.

    Dots separate lines, arrows separate turns.
    """
    frame = rollouts.read(run.dir / "rollouts")
    first = frame[(frame["phase"] == "eval") & (frame["rollout"] == 0)]
    ends = first[first["step"].isin([first["step"].min(), first["step"].max()])]
    shown = ends[ends["sample_id"].isin(ends["sample_id"].unique()[:n])].sort_values(["sample_id", "step"])
    text = [" → ".join(" · ".join(reply.split("\n")) for reply in turns) for turns in shown["replies"]]
    table = shown.assign(reply=text)[["sample_id", "step", "reply", "reward", "km"]]
    return table.set_index(["sample_id", "step"]).round({"reward": 3, "km": 0})
