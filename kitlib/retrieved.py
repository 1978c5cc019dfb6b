"""What a finished run of retrieval shows: what was chosen, its embedding before and after, who is found, gallery sizes.

Everything is of one fold where embeddings are compared, as each fold has an embedding of its own, and of the places
that this fold held out, which nothing has learned from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kitlib import lookup, neighbours
from kitlib.data.places import Places
from kitlib.embedders import Frozen
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.retrieval import Session


def choices(run: Run) -> pd.DataFrame:
    """What each k and temperature came to in each done fold, on training places: fold, k, temperature, final, km."""
    files = {fold: crossval.folder(run, fold) / "choice.csv" for fold in crossval.done(run)}
    return pd.concat([pd.read_csv(file).assign(fold=fold) for fold, file in files.items()], ignore_index=True)


def before_and_after(run: Run, places: Places, fold: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The places that a fold held out, as rows (N,) and as embeddings (N, E): frozen, and as the run embeds them."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    plain = session.features["train"]
    embeddings = {"frozen": Frozen.fit(plain[known.rows], "mean").queries(plain[seen])}
    if run.settings["method"] != "knn":
        embeddings[run.settings["method"]] = session.lookup(fold).embedder.queries(known.features[seen])
    return seen, embeddings


def most_alike(run: Run, places: Places, fold: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of places that a fold held out, at random, and rows (n, k) of the training places most like each."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    queries = np.random.default_rng(run.settings["seed"]).choice(seen, min(n, len(seen)), replace=False)
    embedder = session.lookup(fold).embedder
    gallery = lookup.looks(embedder, known.features[known.rows], known.points[known.rows])
    found = neighbours.search(embedder.queries(known.features[queries]), gallery, k, device=session.device)[1]
    return queries, known.rows[found]


def by_gallery_size(run: Run, places: Places, fold: int, sizes: Sequence[int]) -> pd.DataFrame:
    """What galleries of training places earn with those that a fold held out, and what they could: `lookup.by_size`."""
    session = Session(run, places)
    known, seen = session.asked(fold)
    return lookup.by_size(known, session.lookup(fold).embedder, sizes, known.features[seen], known.points[seen])
