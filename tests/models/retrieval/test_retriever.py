"""Retrievers: the members of a gallery, the calibration split, and the scores of galleries of several sizes."""

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
from kitlib.models.retrieval.reranking import Reranker
from kitlib.models.retrieval.retriever import Retriever, RetrieverBuilder

N, ROWS = 120, np.arange(90)


@pytest.fixture(scope="module")
def builder() -> RetrieverBuilder:
    """Places whose features are their unit vectors with a little noise: the most similar place is the nearest one."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(30, 48, N), rng.uniform(-120, -80, N)])
    features = geo.unit_vectors(points)[:, None, None] + rng.normal(0, 1e-3, (N, 1, 2, 3))
    state = (points[:, 1] > -100).astype(int)
    fold = np.arange(N) % 3
    return RetrieverBuilder(
        torch.from_numpy(features).float(),
        points,
        state,
        np.array([4, 7]),
        ROWS,
        ROWS,
        [fold],
        embedder_is_trained=False,
    )


@pytest.fixture(scope="module")
def frozen(builder) -> Frozen:
    return Frozen.fit(builder.features[ROWS], "mean")


def held_out(builder: RetrieverBuilder) -> slice:
    return slice(len(ROWS), len(builder.points))


def test_neighbours_tell_state_and_place(builder, frozen):
    made, tried = builder.build(frozen)
    rest = held_out(builder)
    guesses = made.guess(np.arange(30).astype(str), builder.features[rest])
    assert (guesses.state_idx[guesses.state_probs.argmax(1)] == builder.state_idx[builder.state[rest]]).mean() > 0.85
    assert np.median(geo.distance_km(builder.points[rest], guesses.point())) < 400
    assert set(tried) == {"k", "temperature", "final", "mean_km", "median_km"}


def test_it_goes_to_a_folder_and_back(builder, frozen, tmp_path):
    made, _ = builder.build(frozen)
    made.save(tmp_path)
    again = Retriever.load(tmp_path, "knn", "mean")
    assert again.vote == made.vote
    assert np.array_equal(again.embeddings, made.embeddings.astype(np.float16))


@pytest.mark.parametrize("sign", [1, -1], ids=["nearest first", "farthest first"])
def test_a_second_look_is_taken_where_it_helps(builder, frozen, monkeypatch, tmp_path, sign):
    noise = torch.randn(N, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    poor = replace(builder, features=builder.features + 0.5 * noise, rerank=True)
    fitted = Reranker.fit

    def by_truth(similarity, index, entries, crowded, points, group):
        reranker, _, index = fitted(similarity, index, entries, crowded, points, group)
        km = geo.distance_km(points[:, None], entries.points[index]) * sign
        order = np.argsort(km, axis=1)
        return reranker, -np.take_along_axis(km, order, 1) / 100, np.take_along_axis(index, order, 1)

    monkeypatch.setattr(Reranker, "fit", by_truth)
    made, _ = poor.build(frozen)
    assert (made.reranker is not None) == (sign == 1)
    made.save(tmp_path)
    again, sample_id = Retriever.load(tmp_path, "knn", "mean"), np.arange(30).astype(str)
    one, two = (each.guess(sample_id, poor.features[held_out(poor)]) for each in (made, again))
    assert (again.reranker is not None) == (sign == 1) and np.allclose(one.weights, two.weights, atol=0.02)


def calibration_search(builder, frozen, monkeypatch) -> dict[str, Any]:
    """The arguments of the calibration search: numbers of queries and entries, and the exclusion groups."""
    arguments = {}
    real = retriever.search.search

    def search(queries, gallery, k, **options):
        arguments.update(options, queries=len(queries), entries=len(gallery))
        return real(queries, gallery, k, **options)

    monkeypatch.setattr(retriever.search, "search", search)
    builder.build(frozen)
    return arguments


def test_a_calibration_query_never_matches_its_own_fold(builder, frozen, monkeypatch):
    arguments = calibration_search(builder, frozen, monkeypatch)
    assert arguments["queries"] == arguments["entries"] == len(ROWS)
    assert (
        arguments["query_group"][0].tolist()
        == arguments["gallery_group"][0].tolist()
        == builder.exclusion_groups[0][ROWS].tolist()
    )


def test_a_trained_embedder_is_calibrated_on_places_it_was_not_trained_on(builder, frozen, monkeypatch):
    queries = ROWS[::5]
    arguments = calibration_search(
        replace(builder, calibration_rows=queries, embedder_is_trained=True), frozen, monkeypatch
    )
    assert arguments["queries"] == len(queries) and arguments["entries"] == len(ROWS) - len(queries)
    retriever_of_all, _ = replace(builder, calibration_rows=queries, embedder_is_trained=True).build(frozen)
    assert len(retriever_of_all.entries.points) == len(ROWS)


@pytest.mark.parametrize("strategy", retriever.STRATEGIES)
def test_a_gallery_of_a_size(builder, frozen, strategy):
    members = builder.select_members(frozen, 25, strategy)
    assert len(set(members)) == 25 and set(members) <= set(ROWS)
    assert np.array_equal(members, builder.select_members(frozen, 25, strategy))
    assert np.array_equal(builder.select_members(frozen, 10**6, strategy), ROWS)


def test_an_unknown_strategy_is_refused(builder, frozen):
    with pytest.raises(KitError, match="expected one of land, uniformly, at random; got 'by heart'"):
        builder.select_members(frozen, 25, "by heart")


def test_a_gallery_of_points_knows_the_states_around_them(builder, frozen):
    class Everywhere(Frozen):
        """Points embedded as the places' features were made."""

        def entries(self, features, points):
            return self._standard(torch.from_numpy(geo.unit_vectors(points)).float()[:, None, None])[:, 0]

    grid = np.stack(np.meshgrid([32.0, 40, 46], [-118.0, -110, -90, -82], indexing="ij"), -1).reshape(-1, 2)
    made, _ = builder.build(Everywhere(frozen.mean, frozen.scale, "mean"), grid)
    assert np.array_equal(made.entries.points, grid)
    assert (made.entries.states.argmax(1) == (grid[:, 1] > -100)).all()


def test_larger_galleries_are_not_worse_at_best(builder, frozen):
    rest = held_out(builder)
    table = retriever.by_size(builder, frozen, [10, 40, 500], builder.features[rest], builder.points[rest])
    assert table["chosen"].tolist() == ["land"] * 2 + ["uniformly"] * 2 + ["at random"] * 2 + ["all"]
    assert table["size"].tolist() == [10, 40, 10, 40, 10, 40, 90]
    assert (table["mean_km"] >= table["possible_mean_km"]).all()
    whole = table.iloc[-1]
    assert (table["possible_mean_km"] >= whole["possible_mean_km"]).all()
    assert whole["geoscore"] <= whole["possible_geoscore"]
