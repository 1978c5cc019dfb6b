"""Exact nearest neighbours in embedding space: the k gallery entries most similar to each query, by cosine.

    similarity, index = search(queries, gallery, 10, query_group=fold, gallery_group=fold)

Queries meet the gallery chunk by chunk, so that neither has to fit into memory. The work is in float32: candidates that
bfloat16 finds are not certain to hold the nearest, and a CPU without AVX512-BF16 is slower with it.

Places with several views (N, V, D) become what `search` takes by `features_for`:

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
from kitlib.vision.device import best_device

BY = ("mean", "heading", "rotation")
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
        queries: (N, D) of any length, float16 or float32, a memory map too; or (N, R, D), R versions of each query, of
            which for each entry the most similar counts.
        gallery: (M, D), likewise.
        k: number of entries a query; where fewer are left, the rest have similarity -inf and row -1.
        query_group: (N,) integers, or several such, with as many `gallery_group` (M,): a query never meets an entry of
            its own group in any of them (its fold, its near-duplicates, itself); a negative group is none.
        gallery_group: see query_group.
        device: where to multiply (default: `best_device()`).

    Similarity is the cosine; an embedding of zeros has 0 with everything. Raises KitError for an empty gallery, arrays
    that do not fit together, and embeddings that are not finite.

    >>> [a.tolist() for a in search(np.eye(2), np.array([[0, 3], [1, 1]]), 1)]
    [[[0.7071067690849304], [1.0]], [[1], [0]]]
    """
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    queries = queries[:, None] if queries.ndim == 2 else queries
    _check(queries, gallery, k)
    device = best_device() if device is None else torch.device(device)
    own, theirs = _groups(query_group, gallery_group, len(queries), len(gallery), device)
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
                cosine.masked_fill_((own[:, rows, None] == theirs[:, None, part]).any(0), -torch.inf)
                value, column = cosine.topk(min(k, len(entries)))
                similarity[rows], order = torch.cat([similarity[rows], value], 1).topk(k)
                index[rows] = torch.cat([index[rows], column + part.start], 1).gather(1, order)
    index[similarity == -torch.inf] = -1
    return similarity.cpu().numpy(), index.cpu().numpy()


def features_for(features: np.ndarray, by: str) -> np.ndarray:
    """What `search` takes to compare places by their views: float32 arrays, made of features (N, V, D).

    "mean": (N, D), the mean of the normalised views. "heading": (N, V*D), the normalised views in a row, so that the
    similarity of two places is the mean cosine of views of the same heading. "rotation": (N, V, V*D), the V cyclic
    turns of the same, for queries only, where the camera's heading is unknown; a read-only view of twice the memory of
    "heading". A view of zeros (a missing picture) counts for nothing.

    >>> features_for(np.array([[[2.0], [-3.0]]]), "rotation").tolist()
    [[[1.0, -1.0], [-1.0, 1.0]]]
    """
    features = np.asarray(features)
    if features.ndim != 3 or 0 in features.shape[1:]:
        raise KitError(f"features of views: expected shape (N, V, D), places, views, features; got {features.shape}")
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
            f"expected queries (N, D) or (N, R, D) and a gallery (M, D), as features_for makes them; "
            f"got {queries.shape} and {gallery.shape}"
        )
    if 0 in gallery.shape:
        raise KitError(f"the gallery is empty, shape {gallery.shape}")
    if queries.shape[-1] != gallery.shape[1]:
        raise KitError(
            f"queries have {queries.shape[-1]} features and the gallery has {gallery.shape[1]}: both must come from "
            "the same encoder, with views compared in the same way"
        )
    if k < 1:
        raise KitError(f"k: expected a whole number from 1; got {k}")


def _groups(
    query_group: ArrayLike | None, gallery_group: ArrayLike | None, n: int, m: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups (G, N) of queries and (G, M) of entries, G = 0 without any; equal ones must not meet."""
    if (query_group is None) != (gallery_group is None):
        raise KitError("query_group and gallery_group go together: only one of them was given")
    own = np.empty((0, n), int) if query_group is None else np.atleast_2d(np.asarray(query_group))
    theirs = np.empty((0, m), int) if gallery_group is None else np.atleast_2d(np.asarray(gallery_group))
    if own.shape[1:] != (n,) or theirs.shape[1:] != (m,) or len(own) != len(theirs):
        raise KitError(f"groups: expected as many of ({n},) as of ({m},); got {own.shape} and {theirs.shape}")
    if {own.dtype.kind, theirs.dtype.kind} - set("iu"):
        raise KitError(f"groups: expected integers; got {own.dtype} and {theirs.dtype}")
    own, theirs = np.where(own < 0, -1, own).astype(np.int64), np.where(theirs < 0, -2, theirs).astype(np.int64)
    return torch.from_numpy(own).to(device), torch.from_numpy(theirs).to(device)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _unit(array: np.ndarray, what: str, device: torch.device) -> torch.Tensor:
    """Embeddings (..., D) on the device, float32, each of length 1 or all zeros; KitError where not finite."""
    unit = F.normalize(torch.from_numpy(np.array(array, order="C")).to(device, torch.float32), dim=-1)
    if unit.isnan().any():
        raise KitError(f"{what}: expected finite embeddings; got NaN or infinity in {int(unit.isnan().any(-1).sum())}")
    return unit


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in float32 whatever was set for training: TF32 and bfloat16 would mix up close neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
