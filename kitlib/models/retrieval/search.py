"""Exact nearest neighbours in embedding space: the k gallery entries most similar to each query, by cosine.

    similarity, index = search(queries, gallery, 10, query_group=fold, gallery_group=fold)

Queries are compared with the gallery chunk by chunk, so that neither has to fit into memory. All is in float32: the
candidates of bfloat16 may miss the nearest entry, and a CPU without AVX512-BF16 is slower with it.

`features_for` prepares places with several views (N, V, D) for `search`:

    search(features_for(a, "mean"), features_for(b, "mean"), k)         # the mean of the views
    search(features_for(a, "heading"), features_for(b, "heading"), k)   # north with north, east with east, ...
    search(features_for(a, "rotation"), features_for(b, "heading"), k)  # the best of the V turns of the query
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.models.retrieval.config import BY
from kitlib.vision.device import best_device

QUERIES, ENTRIES = 1024, 4096  # in a chunk: more leave a CPU's cache and take half as long again


def search(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    query_group: ArrayLike | None = None,
    gallery_group: ArrayLike | None = None,
    device: torch.device | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The similarities (N, k) float32 and rows (N, k) int64 of the gallery entries most like each query, best first.

    Args:
        queries: (N, D) of any length, float16 or float32, or a memory map; or (N, R, D), R versions of each query, of
            which the most similar counts for each entry.
        gallery: (M, D), likewise.
        k: number of entries a query; where fewer are left, the rest have similarity -inf and row -1.
        query_group: (N,) integers, or several such: a query never matches an entry of its own group in any of them (its
            fold, its near-duplicates, itself); a negative number is no group.
        gallery_group: (M,) integers, or as many such as query_group.
        device: where to multiply (default: `best_device()`).

    Similarity is the cosine; an embedding of zeros has similarity 0. Raises KitError for an empty gallery, arrays of
    other shapes, and embeddings that are not finite.

    >>> [a.tolist() for a in search(np.eye(2), np.array([[0, 3], [1, 1]]), 1)]
    [[[0.7071067690849304], [1.0]], [[1], [0]]]
    """
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    queries = queries[:, None] if queries.ndim == 2 else queries
    _check(queries, gallery, k)
    device = best_device() if device is None else torch.device(device)
    query_groups, gallery_groups = _groups(query_group, gallery_group, len(queries), len(gallery), device)
    similarity = torch.full((len(queries), k), -torch.inf, device=device)
    index = torch.full((len(queries), k), -1, device=device)
    with torch.inference_mode(), _full_precision():
        for part in _chunks(len(gallery), ENTRIES):
            entries = _unit(gallery[part], "gallery", device)
            for rows in _chunks(len(queries), QUERIES):
                versions = _unit(queries[rows], "queries", device).unbind(1)
                cosine = versions[0] @ entries.T
                for version in versions[1:]:
                    torch.maximum(cosine, version @ entries.T, out=cosine)
                cosine.masked_fill_((query_groups[:, rows, None] == gallery_groups[:, None, part]).any(0), -torch.inf)
                value, column = cosine.topk(min(k, len(entries)))
                similarity[rows], order = torch.cat([similarity[rows], value], 1).topk(k)
                index[rows] = torch.cat([index[rows], column + part.start], 1).gather(1, order)
    index[similarity == -torch.inf] = -1
    return similarity.cpu().numpy(), index.cpu().numpy()


def features_for(features: np.ndarray, by: str) -> np.ndarray:
    """Embeddings for `search`, float32, of features (N, V, D); `by` is how views are compared.

    mean: (N, D), the mean of the normalised views. heading: (N, V*D), the normalised views in a row, so that the
    similarity of two places is the mean cosine of views of the same heading. rotation: (N, V, V*D), the V cyclic turns
    of the same, for queries whose heading is unknown; a read-only view of twice the memory of heading. A view of zeros
    (a missing picture) adds nothing.

    >>> features_for(np.array([[[2.0], [-3.0]]]), "rotation").tolist()
    [[[1.0, -1.0], [-1.0, 1.0]]]
    """
    features = np.asarray(features)
    if features.ndim != 3 or 0 in features.shape[1:]:
        raise KitError(f"features: expected shape (N, V, D), places, views, features; got {features.shape}")
    if by not in BY:
        raise KitError(f"by: expected {', '.join(BY)}; got {by!r}")
    n, n_views, n_features = features.shape
    views = {"mean": 1, "heading": n_views, "rotation": 2 * n_views - 1}[by]
    out = np.empty((n, views * n_features), np.float32)
    for rows in _chunks(n, QUERIES):
        unit = _unit(features[rows], "features", torch.device("cpu")).numpy()
        unit = unit.mean(axis=1, keepdims=True) if by == "mean" else np.concatenate([unit, unit], axis=1)
        out[rows] = unit[:, :views].reshape(len(unit), -1)
    if by != "rotation":
        return out
    return np.lib.stride_tricks.sliding_window_view(out, n_views * n_features, axis=1)[:, ::n_features]


def _check(queries: np.ndarray, gallery: np.ndarray, k: int) -> None:
    if queries.ndim != 3 or queries.shape[1] == 0 or gallery.ndim != 2:
        raise KitError(
            "queries, gallery: expected shapes (N, D) or (N, R, D), and (M, D), as features_for makes them; "
            f"got {queries.shape} and {gallery.shape}"
        )
    if 0 in gallery.shape:
        raise KitError(f"gallery: expected at least one entry; got shape {gallery.shape}")
    if queries.shape[-1] != gallery.shape[1]:
        raise KitError(
            f"queries: expected {gallery.shape[1]} features as in the gallery, from the same encoder and with views "
            f"compared in the same way; got {queries.shape[-1]}"
        )
    if k < 1:
        raise KitError(f"k: expected a whole number from 1; got {k}")


def _groups(
    query_group: ArrayLike | None, gallery_group: ArrayLike | None, n: int, m: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups (G, N) of queries and (G, M) of entries, G = 0 without any; equal numbers exclude a match."""
    if (query_group is None) != (gallery_group is None):
        raise KitError("query_group, gallery_group: expected both or neither; got one")
    a = np.empty((0, n), int) if query_group is None else np.atleast_2d(np.asarray(query_group))
    b = np.empty((0, m), int) if gallery_group is None else np.atleast_2d(np.asarray(gallery_group))
    if a.shape[1:] != (n,) or b.shape[1:] != (m,) or len(a) != len(b):
        raise KitError(f"groups: expected as many of ({n},) as of ({m},); got {a.shape} and {b.shape}")
    if {a.dtype.kind, b.dtype.kind} - set("iu"):
        raise KitError(f"groups: expected integers; got {a.dtype} and {b.dtype}")
    a, b = np.where(a < 0, -1, a).astype(np.int64), np.where(b < 0, -2, b).astype(np.int64)
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _unit(array: np.ndarray, name: str, device: torch.device) -> torch.Tensor:
    """Embeddings (..., D) float32 on the device, each of length 1 or all zeros. Raises KitError if not finite."""
    unit = F.normalize(torch.from_numpy(np.array(array, order="C")).to(device, torch.float32), dim=-1)
    if unit.isnan().any():
        raise KitError(f"{name}: expected finite embeddings; got NaN or infinity in {int(unit.isnan().any(-1).sum())}")
    return unit


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply in float32, whatever training has set: TF32 and bfloat16 mix up close neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
