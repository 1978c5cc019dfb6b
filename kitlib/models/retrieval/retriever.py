"""The trained retriever of one fold: embedder, gallery and voting rule.

    retriever, scores = builder.build(embedder)           # builder: a RetrieverBuilder of the fold's training places
    guesses = retriever.guess(sample_id, features)        # of other places

A gallery entry that is a training place has the state of that place. Of an entry from a grid or a file only the point
is known, so it has the states of the training places around it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.models.retrieval import embedders, gallery, reranking, search
from kitlib.models.retrieval.bank import Bank
from kitlib.models.retrieval.embedders import Embedder, Matched
from kitlib.models.retrieval.reranking import CANDIDATES, Reranker, crowding
from kitlib.models.retrieval.voting import MAX_QUERIES, Entries, Vote, best, choose, state_frequencies, states_nearby

log = logging.getLogger(__name__)

METRICS = ("geoscore", "mean_km", "within_200_km")  # of each gallery in `by_size`
RERANKER = "reranker.npz"
ELSEWHERE = -1  # the row of an entry that is no place of the data set, and its group: none
STRATEGIES = ("land", "uniformly", "at random")  # of `RetrieverBuilder.select_members`


@dataclass(frozen=True, eq=False)
class Retriever:
    """Embeds a place, finds the most similar of M gallery entries, and lets them vote.

    A reranker, if there is one, replaces their similarity by scores of its own first.
    """

    embedder: Embedder
    entries: Entries
    embeddings: np.ndarray  # (M, E)
    vote: Vote
    reranker: Reranker | None = None

    def guess(self, sample_id: np.ndarray, features: torch.Tensor, device: torch.device | None = None) -> Guesses:
        """Guesses for places (N,) with features (N, M, V, D)."""
        queries, k = self.embedder.queries(features), CANDIDATES if self.reranker else self.vote.k
        matches = search.search(queries, self.embeddings, min(k, len(self.embeddings)), device=device)
        if self.reranker:
            matches = self.reranker.rerank(*matches, self.entries)
        return self.vote.guess(sample_id, *matches, self.entries)

    def save(self, folder: Path) -> None:
        """Write embedder, gallery.npz, vote.json, and reranker.npz if there is one."""
        self.embedder.save(folder)
        self.entries.save(folder / "gallery.npz", self.embeddings)
        if self.reranker:
            storage.write_npz(folder / RERANKER, vars(self.reranker))
        storage.write_json(folder / "vote.json", asdict(self.vote))

    @classmethod
    def load(cls, folder: Path, method: str, by: str) -> Retriever:
        """Read what `save` wrote."""
        values = storage.read_json(folder / "vote.json")
        with storage.reading(folder / "vote.json"):
            vote = Vote(**values)
        reranker = None
        if (folder / RERANKER).is_file():
            with storage.reading(folder / RERANKER):
                reranker = Reranker(**storage.read_npz(folder / RERANKER))
        return cls(embedders.load(folder, method, by), *Entries.load(folder / "gallery.npz"), vote, reranker)


@dataclass(frozen=True, eq=False)
class RetrieverBuilder:
    """Builds retrievers from the training places of one fold.

    features (N, M, V, D), points (N, 2), state (N,), which are positions in state_idx (S,), and the arrays (N,) in
    exclusion_groups cover all places of the data set. rows: the fold's training places. calibration_rows: those of them
    on which k and temperature are chosen; a calibration query never matches an entry of its own group in any of
    exclusion_groups. embedder_is_trained: calibration queries were excluded from the embedder's training, and only the
    places it was trained on serve as gallery during calibration. rerank: whether the calibration places also fit a
    `Reranker`, which is kept if it scores higher there than similarity alone, each place by weights fitted to others.
    bank: places of another data set that join every gallery of places.
    """

    features: torch.Tensor
    points: np.ndarray
    state: np.ndarray
    state_idx: np.ndarray
    rows: np.ndarray
    calibration_rows: np.ndarray
    exclusion_groups: Sequence[np.ndarray]
    embedder_is_trained: bool
    smoothing: float = 0.02
    rerank: bool = False
    bank: Bank | None = None
    seed: int = 0
    device: torch.device | None = None

    def build(
        self,
        embedder: Embedder,
        points: np.ndarray | None = None,
        size: int = 0,
        strategy: str = "land",
        scores: pd.DataFrame | None = None,
    ) -> tuple[Retriever, pd.DataFrame]:
        """A retriever on a gallery of training places, or of points (M, 2), and the score of each k and temperature.

        size and strategy are passed to `select_members`. scores: such as other folds have found, to choose by instead
        of calibration places. Raises KitError if the calibration split leaves the gallery empty.
        """
        members = np.empty(0, np.int64) if points is not None else self.select_members(embedder, size, strategy)
        entries = self._entries(points, members, self.rows)
        embeddings = embedder.entries(self.features[members], entries.points)
        if self.bank and points is None:
            members = np.append(members, np.full(len(self.bank.points), ELSEWHERE))
            entries = entries.joined(self.bank.points, self.bank.states)
            embeddings = np.concatenate([embeddings, embedder.entries(self.bank.features, self.bank.points)])
        if scores is not None:
            return Retriever(embedder, entries, embeddings, best(scores, self.smoothing)), scores
        mask: slice | np.ndarray = slice(None)  # of the entries that serve during calibration
        calibration_entries = entries
        if self.embedder_is_trained and points is not None:
            calibration_entries = self._entries(points, members, np.setdiff1d(self.rows, self.calibration_rows))
        elif self.embedder_is_trained:
            mask = ~np.isin(members, self.calibration_rows)
            if not mask.any():
                raise KitError(f"gallery: expected places outside the calibration split; got none of {len(members)}")
            calibration_entries = entries.take(mask)
        queries = self.calibration_rows
        if self.rerank and len(queries) > MAX_QUERIES:  # their candidates' features would fill the memory
            queries = np.sort(np.random.default_rng(self.seed).choice(queries, MAX_QUERIES, replace=False))
        groups = [] if points is not None else self.exclusion_groups
        similarity, index = search.search(
            embedder.queries(self.features[queries]),
            embeddings[mask],
            min(CANDIDATES, len(calibration_entries.points)),
            query_group=[group[queries] for group in groups] or None,
            gallery_group=[np.where(members < 0, ELSEWHERE, group[members])[mask] for group in groups] or None,
            device=self.device,
        )
        truth = self.state_idx[self.state[queries]], self.points[queries]
        options: dict[str, Any] = {"smoothing": self.smoothing, "seed": self.seed}
        vote, scores = choose(similarity, index, calibration_entries, *truth, **options)
        reranker = None
        if self.rerank:
            crowded = crowding(embeddings[mask], calibration_entries.points, self.device)
            inner = self.exclusion_groups[-1][queries]
            fitted, again, index = Reranker.fit(similarity, index, calibration_entries, crowded, truth[1], inner)
            options["temperatures"] = reranking.TEMPERATURES
            vote_again, scores_again = choose(again, index, calibration_entries, *truth, **options)
            before, after = (float(table["final"].max()) for table in (scores, scores_again))
            log.info("a second look scores %.4f on calibration places, similarity alone %.4f", after, before)
            if after > before:
                reranker = replace(fitted, crowded=crowding(embeddings, entries.points, self.device))
                vote, scores = vote_again, scores_again
        return Retriever(embedder, entries, embeddings, vote, reranker), scores

    def select_members(self, embedder: Embedder, size: int = 0, strategy: str = "land") -> np.ndarray:
        """The training places in the gallery: `size` of them, or all for 0.

        strategy: land (`gallery.choose` by cell, then by clusters of embeddings and by state), uniformly (by cell
        alone) or at random.
        """
        if not 0 < size < len(self.rows):
            return self.rows
        if strategy not in STRATEGIES:
            raise KitError(f"strategy: expected one of {', '.join(STRATEGIES)}; got {strategy!r}")
        points, features = self.points[self.rows], self.features[self.rows]
        if strategy == "land":
            embeddings, labels = appearance(embedder, features, points), self.state[self.rows]
            chosen = gallery.choose(points, size, embeddings=embeddings, labels=labels, seed=self.seed)
        elif strategy == "uniformly":
            chosen = gallery.choose(points, size, seed=self.seed)
        else:
            chosen = gallery.at_random(len(points), size, self.seed)
        return self.rows[np.sort(chosen)]

    def _entries(self, points: np.ndarray | None, members: np.ndarray, labelled: np.ndarray) -> Entries:
        """Entries at the members, or at points with the states of the places in `labelled` around them."""
        n_states = len(self.state_idx)
        if points is None:
            states = np.eye(n_states, dtype=np.float32)[self.state[members]]
        else:
            states = states_nearby(points, self.points[labelled], self.state[labelled], n_states)
        return Entries(
            self.points[members] if points is None else points,
            states,
            self.state_idx,
            state_frequencies(self.state[self.rows], n_states),
            geo.geometric_median(self.points[self.rows]),
        )


def by_size(
    builder: RetrieverBuilder, embedder: Embedder, sizes: Sequence[int], features: torch.Tensor, truth: np.ndarray
) -> pd.DataFrame:
    """Scores of galleries of several sizes on places with features (N, M, V, D) at truth (N, 2).

    One row for each of `STRATEGIES` and each size below the number of training places, and one for all of these. The
    columns are chosen (the strategy), size, and each of `METRICS` for the retriever and, as possible_…, for a perfect
    one that always finds the nearest entry.
    """
    galleries = [(name, size) for name in STRATEGIES for size in sizes if 0 < size < len(builder.rows)]
    rows = []
    for strategy, size in [*galleries, ("all", 0)]:
        retriever, _ = builder.build(embedder, size=size, strategy=strategy)
        guesses = retriever.guess(np.arange(len(truth)).astype(str), features, builder.device)
        scores = metrics.report(geo.distance_km(truth, guesses.point())).as_dict()
        possible = gallery.expected_scores(retriever.entries.points, truth)
        row = {"chosen": strategy, "size": len(retriever.entries.points)}
        for name in METRICS:
            row |= {name: scores[name], f"possible_{name}": possible[name]}
        rows.append(row)
    return pd.DataFrame(rows)


def appearance(embedder: Embedder, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """Embeddings (N, E) of what places look like; the entries of a `Matched` embedder only encode where they are."""
    return embedder.queries(features) if isinstance(embedder, Matched) else embedder.entries(features, points)
