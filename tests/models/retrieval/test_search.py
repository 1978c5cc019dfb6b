"""Search against brute force and scikit-learn, with ties, exclusions, several chunks, and views."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from kitlib.core.errors import KitError
from kitlib.models.retrieval import search


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("KITLIB_DEVICE", "cpu")


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 entries and 16 queries."""
    monkeypatch.setattr(search, "ENTRIES", 64)
    monkeypatch.setattr(search, "QUERIES", 16)


def drawn(n: int, m: int, d: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 3, (n, d)).astype(np.float32), rng.normal(1, 3, (m, d)).astype(np.float32)


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    def unit(x: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.where(length > 0, length, 1)

    return unit(queries.astype(float)) @ unit(gallery.astype(float)).T


def ranked(cosine: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row by sorting all of them."""
    index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, index, axis=1), index


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 7, 200])
def test_the_same_as_sorting_everything_and_as_scikit_learn(small_chunks, dtype, k):
    queries, gallery = (x.astype(dtype) for x in drawn(50, 333))
    similarity, index = search.search(queries, gallery, k)
    assert similarity.dtype == np.float32 and index.dtype == np.int64
    expected, rows = ranked(cosines(queries, gallery), k)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    away, rows = NearestNeighbors(metric="cosine", algorithm="brute").fit(gallery.astype(float)).kneighbors(queries, k)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(similarity, 1 - away, atol=1e-6)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17])
def test_every_chunk_is_searched(small_chunks, n, m):
    queries, gallery = drawn(n, m, 8)
    similarity, index = search.search(queries, gallery, 3)
    expected, rows = ranked(cosines(queries, gallery), 3)
    np.testing.assert_array_equal(index[:, : min(3, m)], rows)
    np.testing.assert_allclose(similarity[:, : min(3, m)], expected, atol=1e-6)
    assert (index[:, m:] == -1).all() and (similarity[:, m:] == -np.inf).all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_ties_exclusions_and_zeros_as_by_sorting(small_chunks, data):
    """Embeddings along the axes have cosines of exactly -1, 0 and 1: ties everywhere."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 150))
    k, n_exclusions = data.draw(st.integers(1, 160)), data.draw(st.integers(0, 2))

    def axes(n: int) -> np.ndarray:
        return np.eye(3)[rng.integers(0, 3, n)] * rng.choice([-1, 0, 0.5, 2, 3], (n, 1))

    queries, gallery = axes(n), axes(m)
    own, theirs = rng.integers(-1, 4, (n_exclusions, n)), rng.integers(-1, 4, (n_exclusions, m))
    groups = {"query_group": own, "gallery_group": theirs} if n_exclusions else {}
    cosine = cosines(queries, gallery)
    for a, b in zip(own, theirs, strict=True):
        cosine[(a[:, None] == b) & (a >= 0)[:, None]] = -np.inf
    expected, _ = ranked(cosine, k)
    similarity, index = search.search(queries, gallery, k, **groups)
    n_found = min(k, m)
    np.testing.assert_array_equal(similarity[:, :n_found], expected)
    np.testing.assert_array_equal(index == -1, similarity == -np.inf)
    for row, values, cosine_of in zip(index, similarity, cosine, strict=True):
        entries = row[row >= 0]
        assert len(set(entries)) == len(entries)
        np.testing.assert_array_equal(cosine_of[entries], values[row >= 0])


def test_a_place_meets_neither_its_fold_nor_its_near_duplicates():
    features, _ = drawn(90, 1, 16)
    features[1] = features[0]
    fold, twin = np.arange(90) % 3, np.where(np.arange(90) < 2, 7, -1)
    _, index = search.search(features, features, 40, query_group=fold, gallery_group=fold)
    assert (fold[index] != fold[:, None]).all() and index[0, 0] == 1
    _, index = search.search(features, features, 40, query_group=[fold, twin], gallery_group=[fold, twin])
    assert (fold[index] != fold[:, None]).all() and 1 not in index[0] and 0 not in index[1]
    assert (index >= 0).all()
    alone, rows = search.search(features[:2], features[:2], 2, query_group=[0, 1], gallery_group=[0, 0])
    assert rows.tolist() == [[-1, -1], [0, 1]] and (alone[0] == -np.inf).all()


def test_maps_on_the_disk_give_the_same(tmp_path):
    queries, gallery = (x.astype(np.float16) for x in drawn(300, 5000, 100))
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    expected, mapped = search.search(queries, gallery, 5), search.search(queries, mapped, 5)
    np.testing.assert_array_equal(mapped[1], expected[1])
    np.testing.assert_array_equal(mapped[0], expected[0])


def test_precision_is_full_whatever_training_had_set():
    queries, gallery = drawn(20, 500)
    expected = search.search(queries, gallery, 5)
    torch.set_float32_matmul_precision("medium")
    try:
        similarity, _ = search.search(queries, gallery, 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(similarity, expected[0])


def grown_mb(work: Callable[[], object]) -> float:
    """How much more of the memory this process takes at most while it works."""

    def status(name: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_memory_stays_within_a_chunk():
    """The gallery in float32 takes 195 MB, all similarities 380 MB: what is measured sees them."""
    gallery = np.random.default_rng(0).integers(-99, 99, (100_000, 512), np.int8).astype(np.float16)
    queries = gallery[::100]
    assert grown_mb(lambda: search.search(queries, gallery, 5)) < 120
    assert grown_mb(lambda: torch.from_numpy(queries).float() @ torch.from_numpy(gallery).float().T) > 400


def brute_views(queries: np.ndarray, gallery: np.ndarray, by: str) -> np.ndarray:
    """Similarities (N, M) of views (N, V, D) and (M, V, D), written as they are defined."""
    queries, gallery = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (queries, gallery))
    if by == "mean":
        return cosines(queries.mean(axis=1), gallery.mean(axis=1))
    n_views = queries.shape[1]
    turns = range(n_views) if by == "rotation" else [0]
    per_turn = [np.einsum("nvd,mvd->nm", np.roll(queries, -t, axis=1), gallery) / n_views for t in turns]
    return np.max(per_turn, axis=0)


@pytest.mark.parametrize("by", search.BY)
@pytest.mark.parametrize("n_views", [1, 4])
def test_views_are_matched_as_defined(small_chunks, by, n_views):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(0.3, 1, (40, n_views, 12)), rng.normal(0.3, 1, (150, n_views, 12))
    own = search.features_for(queries, by)
    theirs = search.features_for(gallery, "heading" if by == "rotation" else by)
    assert own.dtype == np.float32
    similarity, index = search.search(own, theirs, 6)
    expected, rows = ranked(brute_views(queries, gallery, by), 6)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_a_turned_camera_is_found_by_rotation_alone():
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(60, 4, 16)).astype(np.float16)
    turned = np.roll(gallery, 1, axis=1)
    entries = search.features_for(gallery, "heading")
    similarity, index = search.search(search.features_for(turned, "rotation"), entries, 1)
    assert index[:, 0].tolist() == list(range(60))
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    _, straight = search.search(search.features_for(turned, "heading"), entries, 1)
    assert (straight[:, 0] == np.arange(60)).mean() < 0.3


def test_a_missing_view_counts_for_nothing():
    rng = np.random.default_rng(2)
    gallery = rng.normal(size=(30, 4, 16))
    queries = gallery.copy()
    queries[:, 2] = 0
    for by in search.BY:
        own = search.features_for(queries, by)
        assert np.isfinite(own).all()
        theirs = search.features_for(gallery, "heading" if by == "rotation" else by)
        assert search.search(own, theirs, 1)[1][:, 0].tolist() == list(range(30))


def bad_row(value: float) -> np.ndarray:
    features = np.ones((5, 4), np.float32)
    features[3, 1] = value
    return features


ONES = np.ones((5, 4), np.float32)


@pytest.mark.parametrize(
    "queries, gallery, k, message",
    [
        (ONES, ONES[:0], 1, "gallery: expected at least one entry"),
        (ONES, ONES[:, :3], 1, "queries: expected 3 features as in the gallery.*got 4"),
        (ONES, ONES, 0, "k: expected a whole number from 1; got 0"),
        (bad_row(np.nan), ONES, 1, "queries: expected finite embeddings; got NaN or infinity in 1"),
        (ONES, bad_row(np.inf), 1, "gallery: expected finite embeddings; got NaN or infinity in 1"),
        (ONES[0], ONES, 1, "queries, gallery: expected shapes"),
        (ONES, np.ones((5, 4, 4)), 1, "features_for"),
    ],
)
def test_what_cannot_be_searched_is_refused(queries, gallery, k, message):
    with pytest.raises(KitError, match=message):
        search.search(queries, gallery, k)


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"query_group": np.zeros(5, int)}, "expected both or neither"),
        ({"query_group": np.zeros(5, int), "gallery_group": np.zeros(4, int)}, r"expected as many of \(5,\)"),
        ({"query_group": np.zeros((2, 5), int), "gallery_group": np.zeros(5, int)}, "expected as many"),
        ({"query_group": np.zeros(5), "gallery_group": np.zeros(5, int)}, "expected integers"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(KitError, match=message):
        search.search(ONES, ONES, 1, **groups)


def test_views_that_cannot_be_compared_are_refused():
    with pytest.raises(KitError, match="expected mean, heading, rotation; got 'best'"):
        search.features_for(np.ones((2, 4, 3)), "best")
    with pytest.raises(KitError, match=r"expected shape \(N, V, D\).*got \(2, 3\)"):
        search.features_for(np.ones((2, 3)), "mean")
    broken = np.ones((2, 4, 3))
    broken[1, 2, 0] = np.nan
    with pytest.raises(KitError, match="features: expected finite"):
        search.features_for(broken, "heading")
