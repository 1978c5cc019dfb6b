"""One fold of retrieval: an embedder, a gallery and a vote; how they are made of training places, kept, and asked.

    lookup, tried = known.lookup(embedder)                    # `known`: the fold's training places
    lookup.guess(sample_id, features)                         # of places that are not among them

An entry that is a training place has its own state. One of a grid or a file has those of the training places around it,
as its point is all that is known of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.models.retrieval import embedders, gallery, search
from kitlib.models.retrieval.embedders import Embedder, Matched
from kitlib.models.retrieval.voting import KS, Entries, Vote, choose, commonness, states_nearby

TOLD = ("geoscore", "mean_km", "within_200_km")  # of each gallery, see `by_size`
CHOSEN = ("land", "uniformly", "at random")  # how entries are chosen, see `Known.members`


@dataclass(frozen=True, eq=False)
class Lookup:
    """What a fold's model is: a place is embedded, the most similar entries (M) are found, and these vote."""

    embedder: Embedder
    entries: Entries
    embeddings: np.ndarray  # (M, E)
    vote: Vote

    def guess(self, sample_id: np.ndarray, features: torch.Tensor, device: torch.device | None = None) -> Guesses:
        """Guesses for places (N,) with features (N, M, V, D)."""
        queries = self.embedder.queries(features)
        found = search.search(queries, self.embeddings, self.vote.k, device=device)
        return self.vote.guess(sample_id, *found, self.entries)

    def save(self, folder: Path) -> None:
        """Write embedder, gallery.npz and vote.json."""
        self.embedder.save(folder)
        self.entries.save(folder / "gallery.npz", self.embeddings)
        storage.write_json(folder / "vote.json", asdict(self.vote))

    @classmethod
    def load(cls, folder: Path, method: str, by: str) -> Lookup:
        """What `save` wrote."""
        vote = Vote(**json.loads((folder / "vote.json").read_text()))
        return cls(embedders.load(folder, method, by), *Entries.load(folder / "gallery.npz"), vote)


@dataclass(frozen=True, eq=False)
class Known:
    """The training places of a fold, which a gallery is made of, and by which k and temperature are chosen.

    features (N, M, V, D), points (N, 2), state (N,) as positions in state_idx (S,): of all places of the data set, as
    are the arrays (N,) in `apart`: an asking place meets no entry with an equal number in any of them. rows: the fold's
    training places; asking: those of them that choose. learned: nothing was learned from those that ask, but from the
    others, so that only these are the gallery while k and temperature are chosen.
    """

    features: torch.Tensor
    points: np.ndarray
    state: np.ndarray
    state_idx: np.ndarray
    rows: np.ndarray
    asking: np.ndarray
    apart: Sequence[np.ndarray]
    learned: bool
    smoothing: float = 0.02
    seed: int = 0
    device: torch.device | None = None

    def lookup(
        self, embedder: Embedder, points: np.ndarray | None = None, size: int = 0, how: str = "land"
    ) -> tuple[Lookup, pd.DataFrame]:
        """A gallery of training places, or of points (M, 2), with its vote; and what each k and temperature came to.

        size, how: as for `members`. Raises KitError when no entry is left to choose by.
        """
        members = np.empty(0, np.int64) if points is not None else self.members(embedder, size, how)
        entries, embeddings = self._entries(embedder, points, members, self.rows)
        asked, compared, at = entries, embeddings, members
        if self.learned and points is not None:
            asked, _ = self._entries(embedder, points, members, np.setdiff1d(self.rows, self.asking), embeddings)
        elif self.learned:
            kept = ~np.isin(members, self.asking)
            if not kept.any():
                raise KitError(f"a gallery of {len(members)} places leaves no entry to choose k and temperature by")
            asked, compared, at = entries.take(kept), embeddings[kept], members[kept]
        apart = [] if points is not None else self.apart
        similarity, index = search.search(
            embedder.queries(self.features[self.asking]),
            compared,
            min(max(KS), len(compared)),
            query_group=[of[self.asking] for of in apart] or None,
            gallery_group=[of[at] for of in apart] or None,
            device=self.device,
        )
        truth = self.state_idx[self.state[self.asking]], self.points[self.asking]
        vote, tried = choose(similarity, index, asked, *truth, smoothing=self.smoothing, seed=self.seed)
        return Lookup(embedder, entries, embeddings, vote), tried

    def members(self, embedder: Embedder, size: int = 0, how: str = "land") -> np.ndarray:
        """The training places that make a gallery: all of them, or `size` chosen so that they represent the land.

        how: land (`gallery.choose`: by cell, then by clusters of embeddings and by state), uniformly (by cell alone) or
        at random.
        """
        if not 0 < size < len(self.rows):
            return self.rows
        points, features = self.points[self.rows], self.features[self.rows]
        ways: dict[str, Callable[[], np.ndarray]] = {
            "land": lambda: gallery.choose(
                points, size, embeddings=looks(embedder, features, points), labels=self.state[self.rows],
                seed=self.seed,
            ),
            "uniformly": lambda: gallery.uniformly(points, size, self.seed),
            "at random": lambda: gallery.at_random(len(points), size, self.seed),
        }  # fmt: skip
        if how not in ways:
            raise KitError(f"entries chosen {how!r}: allowed are {', '.join(ways)}")
        return self.rows[np.sort(ways[how]())]

    def _entries(
        self,
        embedder: Embedder,
        points: np.ndarray | None,
        members: np.ndarray,
        labelled: np.ndarray,
        embeddings: np.ndarray | None = None,
    ) -> tuple[Entries, np.ndarray]:
        """Entries and their embeddings, of members, or of points that have the states of the places `labelled`."""
        n_states = len(self.state_idx)
        common = commonness(self.state[self.rows], n_states)
        middle = geo.geometric_median(self.points[self.rows])
        if points is None:
            states = np.eye(n_states, dtype=np.float32)[self.state[members]]
        else:
            states = states_nearby(points, self.points[labelled], self.state[labelled], n_states)
        entries = Entries(self.points[members] if points is None else points, states, self.state_idx, common, middle)
        return entries, embedder.entries(self.features[members], entries.points) if embeddings is None else embeddings


def by_size(
    known: Known,
    embedder: Embedder,
    sizes: Sequence[int],
    features: torch.Tensor,
    truth: np.ndarray,
) -> pd.DataFrame:
    """What galleries of some sizes earn with places (N,) at `truth` (N, 2), chosen in each way, and what they could.

    One row for each way of `CHOSEN` and size below that of all training places, and one for all of these: chosen, size,
    and what is in `TOLD` of the model, and of a perfect one that always finds the nearest entry (possible_…).
    features (N, M, V, D).
    """
    asked = [(how, size) for how in CHOSEN for size in sizes if 0 < size < len(known.rows)] + [("all", 0)]
    lines = []
    for how, size in asked:
        lookup, _ = known.lookup(embedder, size=size, how=how)
        said = lookup.guess(np.arange(len(truth)).astype(str), features, known.device).point()
        found = metrics.report(geo.distance_km(truth, said)).as_dict()
        possible = gallery.expected_scores(lookup.entries.points, truth)
        line = {"chosen": how, "size": len(lookup.entries.points)}
        for name in TOLD:
            line |= {name: found[name], f"possible_{name}": possible[name]}
        lines.append(line)
    return pd.DataFrame(lines)


def looks(embedder: Embedder, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """What places look like (N, E), as a gallery; a `Matched` embedder's entries only tell where they are."""
    return embedder.queries(features) if isinstance(embedder, Matched) else embedder.entries(features, points)
