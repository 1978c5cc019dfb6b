"""lookup: what a gallery is made of, what may choose k and temperature, and what galleries of some sizes earn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval import retriever
from kitlib.models.retrieval.embedders import Frozen
from kitlib.models.retrieval.retriever import Known, Lookup

N, ROWS = 120, np.arange(90)


@pytest.fixture(scope="module")
def known() -> Known:
    """Places whose features are their unit vectors with a little noise: the most similar place is the nearest one."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(30, 48, N), rng.uniform(-120, -80, N)])
    features = geo.unit_vectors(points)[:, None, None] + rng.normal(0, 1e-3, (N, 1, 2, 3))
    state = (points[:, 1] > -100).astype(int)
    fold = np.arange(N) % 3
    return Known(torch.from_numpy(features).float(), points, state, np.array([4, 7]), ROWS, ROWS, [fold], learned=False)


@pytest.fixture(scope="module")
def frozen(known) -> Frozen:
    return Frozen.fit(known.features[ROWS], "mean")


def held_out(known: Known) -> slice:
    return slice(len(ROWS), len(known.points))


def test_neighbours_tell_state_and_place(known, frozen):
    made, tried = known.lookup(frozen)
    rest = held_out(known)
    guesses = made.guess(np.arange(30).astype(str), known.features[rest])
    assert (guesses.state_idx[guesses.state_probs.argmax(1)] == known.state_idx[known.state[rest]]).mean() > 0.85
    assert np.median(geo.distance_km(known.points[rest], guesses.point())) < 400
    assert set(tried) == {"k", "temperature", "final", "mean_km", "median_km"}


def test_it_goes_to_a_folder_and_back(known, frozen, tmp_path):
    made, _ = known.lookup(frozen)
    made.save(tmp_path)
    again = Lookup.load(tmp_path, "knn", "mean")
    assert again.vote == made.vote
    assert np.array_equal(again.embeddings, made.embeddings.astype(np.float16))


def asked_and_met(known, frozen, monkeypatch) -> dict[str, Any]:
    """What `search` was told: how many ask among how many entries, and the groups that keep them apart."""
    seen = {}
    real = retriever.search.search

    def search(queries, gallery, k, **options):
        seen.update(options, asks=len(queries), entries=len(gallery))
        return real(queries, gallery, k, **options)

    monkeypatch.setattr(retriever.search, "search", search)
    known.lookup(frozen)
    return seen


def test_an_asking_place_is_kept_apart_from_its_fold(known, frozen, monkeypatch):
    seen = asked_and_met(known, frozen, monkeypatch)
    assert seen["asks"] == seen["entries"] == len(ROWS)
    assert seen["query_group"][0].tolist() == seen["gallery_group"][0].tolist() == known.apart[0][ROWS].tolist()


def test_what_learned_is_asked_by_places_it_has_not_seen(known, frozen, monkeypatch):
    asking = ROWS[::5]
    seen = asked_and_met(replace(known, asking=asking, learned=True), frozen, monkeypatch)
    assert seen["asks"] == len(asking) and seen["entries"] == len(ROWS) - len(asking)
    lookup_of_all, _ = replace(known, asking=asking, learned=True).lookup(frozen)
    assert len(lookup_of_all.entries.points) == len(ROWS)


@pytest.mark.parametrize("how", retriever.CHOSEN)
def test_a_gallery_of_a_size(known, frozen, how):
    members = known.members(frozen, 25, how)
    assert len(set(members)) == 25 and set(members) <= set(ROWS)
    assert np.array_equal(members, known.members(frozen, 25, how))
    assert np.array_equal(known.members(frozen, 10**6, how), ROWS)


def test_ways_to_choose_are_listed(known, frozen):
    with pytest.raises(KitError, match="allowed are land, uniformly, at random"):
        known.members(frozen, 25, "by heart")


def test_a_gallery_of_points_knows_the_states_around_them(known, frozen):
    class Everywhere(Frozen):
        """Points embedded as the places' features were made."""

        def entries(self, features, points):
            return self._standard(torch.from_numpy(geo.unit_vectors(points)).float()[:, None, None])[:, 0]

    grid = np.stack(np.meshgrid([32.0, 40, 46], [-118.0, -110, -90, -82], indexing="ij"), -1).reshape(-1, 2)
    made, _ = known.lookup(Everywhere(frozen.mean, frozen.scale, "mean"), grid)
    assert np.array_equal(made.entries.points, grid)
    assert (made.entries.states.argmax(1) == (grid[:, 1] > -100)).all()


def test_larger_galleries_are_not_worse_at_best(known, frozen):
    rest = held_out(known)
    table = retriever.by_size(known, frozen, [10, 40, 500], known.features[rest], known.points[rest])
    assert table["chosen"].tolist() == ["land"] * 2 + ["uniformly"] * 2 + ["at random"] * 2 + ["all"]
    assert table["size"].tolist() == [10, 40, 10, 40, 10, 40, 90]
    assert (table["mean_km"] >= table["possible_mean_km"]).all()
    whole = table.iloc[-1]
    assert (table["possible_mean_km"] >= whole["possible_mean_km"]).all()
    assert whole["geoscore"] <= whole["possible_geoscore"]
