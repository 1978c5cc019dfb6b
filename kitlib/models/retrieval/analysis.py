"""Analyse a finished run of retrieval: chosen settings, embeddings before and after training, gallery sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kitlib.data.places import Places
from kitlib.evaluation.runs import Run
from kitlib.models.retrieval import retriever, search
from kitlib.models.retrieval.embedders import Frozen
from kitlib.models.retrieval.retriever import RetrieverBuilder
from kitlib.models.retrieval.run import Session
from kitlib.models.retrieval.run import choices as choices


def before_and_after(run: Run, places: Places, fold: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows (N,) of the held-out places of a fold, and their embeddings (N, E): frozen, and by the run's embedder."""
    session, builder, held_out = _open(run, places, fold)
    frozen = session.features["train"]
    embeddings = {"frozen": Frozen.fit(frozen[builder.rows], "mean").queries(frozen[held_out])}
    if session.config.method != "knn":
        embeddings[session.config.method] = session.retriever(fold).embedder.queries(builder.features[held_out])
    return held_out, embeddings


def most_alike(run: Run, places: Places, fold: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of random held-out places of a fold, and rows (n, k) of the training places most similar to each."""
    session, builder, held_out = _open(run, places, fold)
    queries = np.random.default_rng(session.config.seed).choice(held_out, min(n, len(held_out)), replace=False)
    embedder = session.retriever(fold).embedder
    gallery = retriever.appearance(embedder, builder.features[builder.rows], builder.points[builder.rows])
    _, matches = search.search(embedder.queries(builder.features[queries]), gallery, k, device=session.device)
    return queries, builder.rows[matches]


def by_gallery_size(run: Run, places: Places, fold: int, sizes: Sequence[int]) -> pd.DataFrame:
    """`retriever.by_size` on the held-out places of a fold."""
    session, builder, held_out = _open(run, places, fold)
    features, points = builder.features[held_out], builder.points[held_out]
    return retriever.by_size(builder, session.retriever(fold).embedder, sizes, features, points)


def _open(run: Run, places: Places, fold: int) -> tuple[Session, RetrieverBuilder, np.ndarray]:
    """The session of a run, the builder of a fold's retriever, and the rows that the fold holds out."""
    session = Session(run, places)
    builder = session.builder(fold, session.fold_features(fold)["train"])
    return session, builder, session.held_out_rows(fold)
