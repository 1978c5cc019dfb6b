"""Exact nearest neighbours in embedding space: the k entries of a gallery that are most like each query, by cosine.

    similarity, index = neighbours.search(queries, gallery, 10, query_group=fold, gallery_group=fold)

Queries meet the gallery block by block, so that neither has to fit into memory. The work is in float32: candidates that
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
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError, shorten
from kitlib.vision.device import best_device

BY = ("mean", "heading", "rotation")
COLUMNS = 4096  # gallery entries in a block
CPU_ROWS = 1024  # queries in a block on a CPU: larger ones leave its cache and take up to 1.5 times as long
EVEN = 64  # blocks are padded to a multiple of it: at odd widths equal entries may differ in the last bit
READ_MB = 2  # read at once while lengths are measured: larger pieces leave the cache


def search(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    query_group: ArrayLike | None = None,
    gallery_group: ArrayLike | None = None,
    device: torch.device | str | None = None,
    block_mb: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The similarities (N, k) float32 and rows (N, k) int64 of the gallery entries most like each query, best first.

    Args:
        queries: (N, D) of any length, float16 or float32, a memory map too; or (N, R, D), R versions of each query, of
            which for each entry the most similar counts.
        gallery: (M, D), likewise.
        k: how many; where fewer are left, the rest have similarity -inf and row -1.
        query_group: (N,) integers, or several such, with as many `gallery_group` (M,): a query never meets an entry of
            its own group in any of them (its fold, its near-duplicates, itself); a negative group is none.
        gallery_group: see query_group.
        device: where to multiply (default: `views.best_device()`).
        block_mb: bounds the working memory, apart from inputs, results, 4 bytes for each row of the inputs, and what
            the library of matrix products takes for itself (some 20 MB).

    Similarity is the cosine; an embedding of zeros has 0 with everything. Of equal ones the lower row comes first.
    Raises KitError before any search for an empty gallery, arrays that do not fit together, and embeddings that are
    not finite.

    >>> [a.tolist() for a in search(np.eye(2), np.array([[0, 3], [2, 0], [0, 1]]), 2)]
    [[[1.0, 0.0], [1.0, 1.0]], [[1, 0], [0, 2]]]
    """
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    queries = queries[:, None] if queries.ndim == 2 else queries
    _check(queries, gallery, k, block_mb)
    device = best_device() if device is None else torch.device(device)
    exclusions = _exclusions(query_group, gallery_group, len(queries), len(gallery), device)
    lengths, of_entries = _lengths(queries, "queries"), _lengths(gallery, "gallery")

    n, versions, n_features = queries.shape
    rows, columns = _block(n, len(gallery), versions, n_features, block_mb, device)
    buffers = torch.empty(min(2, versions), rows * columns, device=device)
    similarity = torch.full((n, k), -torch.inf, device=device)
    index = torch.full((n, k), -1, device=device)
    with torch.inference_mode(), _full_precision():
        for start in range(0, len(gallery), columns):
            part = slice(start, min(start + columns, len(gallery)))
            entries = _unit(gallery, of_entries, part, device)
            padded = torch.nn.functional.pad(entries, (0, 0, 0, -len(entries) % EVEN))
            for first in range(0, n, rows):
                block = slice(first, min(first + rows, n))
                found = _cosines(_unit(queries, lengths, block, device), padded, buffers)[:, : len(entries)]
                for own, theirs in exclusions:
                    found.masked_fill_(own[block, None] == theirs[part], -torch.inf)
                value, column = _best(found, k)
                # Rows that are there already are lower and stand first: a stable sort keeps them first among equals.
                value, order = torch.cat([similarity[block], value], 1).sort(dim=1, descending=True, stable=True)
                similarity[block] = value[:, :k]
                index[block] = torch.cat([index[block], column + start], 1).gather(1, order[:, :k])
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
        raise KitError(f"features of views have shape {features.shape}, wanted is (N, V, D): places, views, features")
    if by not in BY:
        raise KitError(f"views compared by {by!r}: allowed are {', '.join(BY)}")
    n, n_views, n_features = features.shape
    lengths = _lengths(features, "features")
    turns = {"mean": n_views, "heading": n_views, "rotation": 2 * n_views - 1}[by]
    out = np.empty((n, n_features if by == "mean" else turns * n_features), np.float32)
    for block in _reads(features):
        unit = _unit(features, lengths, block, torch.device("cpu")).numpy()
        if by == "mean":
            out[block] = unit.mean(axis=1)
        else:
            out[block] = np.concatenate([unit, unit[:, : turns - n_views]], axis=1).reshape(len(unit), -1)
    if by != "rotation":
        return out
    width = n_views * n_features
    if n == 0:
        return np.empty((0, n_views, width), np.float32)
    return np.lib.stride_tricks.sliding_window_view(out, width, axis=1)[:, ::n_features]


def _check(queries: np.ndarray, gallery: np.ndarray, k: int, block_mb: int) -> None:
    if queries.ndim != 3 or queries.shape[1] == 0 or gallery.ndim != 2:
        shape = queries.shape if queries.ndim != 3 else (len(queries), *queries.shape[1:])
        raise KitError(
            f"queries {shape} and gallery {gallery.shape}: wanted are (N, D) or (N, R, D), and (M, D); "
            "features_for makes them of views"
        )
    if 0 in gallery.shape:
        raise KitError(f"the gallery is empty, shape {gallery.shape}: there is nothing to find")
    if queries.shape[-1] != gallery.shape[1]:
        raise KitError(
            f"queries have {queries.shape[-1]} features and the gallery has {gallery.shape[1]}: both must come from "
            "the same encoder, with views compared in the same way"
        )
    if k < 1 or block_mb < 1:
        raise KitError(f"k={k}, block_mb={block_mb}: allowed are whole numbers from 1")


def _exclusions(
    query_group: ArrayLike | None, gallery_group: ArrayLike | None, n: int, m: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of groups (N,) and (M,), where no group of the one is that of the other unless they must not meet."""
    if query_group is None and gallery_group is None:
        return []
    if query_group is None or gallery_group is None:
        raise KitError("query_group and gallery_group go together: only one of them was given")
    own, theirs = np.atleast_2d(np.asarray(query_group)), np.atleast_2d(np.asarray(gallery_group))
    if own.shape[1:] != (n,) or theirs.shape[1:] != (m,) or len(own) != len(theirs):
        raise KitError(
            f"query_group {own.shape} and gallery_group {theirs.shape} for {n} queries and {m} entries: "
            f"wanted are as many of ({n},) as of ({m},)"
        )
    if {own.dtype.kind, theirs.dtype.kind} - set("iu"):
        raise KitError(f"groups are {own.dtype} and {theirs.dtype}: allowed are integers")
    own, theirs = np.where(own < 0, -1, own).astype(np.int64), np.where(theirs < 0, -2, theirs).astype(np.int64)
    return [(torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)) for a, b in zip(own, theirs, strict=True)]


def _reads(array: np.ndarray) -> Iterator[slice]:
    """Slices of rows that are about READ_MB in float32."""
    step = max(1, READ_MB * 2**20 // (4 * int(np.prod(array.shape[1:]))))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _lengths(array: np.ndarray, what: str) -> np.ndarray:
    """Euclidean lengths (...) float32 of embeddings (..., D), 1 for those of zeros; KitError where not finite."""
    lengths = np.empty(array.shape[:-1], np.float32)
    for block in _reads(array):
        # torch makes float32 of float16 ten times as fast as numpy does
        part = torch.from_numpy(np.array(array[block], order="C")).float()
        lengths[block] = torch.linalg.vector_norm(part, dim=-1).numpy()
    bad = ~np.isfinite(lengths)
    if bad.any():
        rows = np.unique(np.nonzero(bad)[0])
        raise KitError(f"{what}: embeddings of {len(rows)} of {len(array)} rows are not finite, rows {shorten(rows)}")
    lengths[lengths == 0] = 1
    return lengths


def _block(n: int, m: int, versions: int, n_features: int, block_mb: int, device: torch.device) -> tuple[int, int]:
    """How many queries and gallery entries to multiply at once within block_mb, at least 1 and EVEN."""
    # A block of either is held twice while it is converted; a similarity once for each buffer, with a mask's byte and
    # what a sort of ties takes (values and rows) for some.
    budget = block_mb * 2**20
    columns = min(COLUMNS, m + -m % EVEN, budget // 4 // (8 * n_features))
    columns = max(EVEN, columns // EVEN * EVEN)
    a_query = 4 * columns * min(2, versions) + columns + 8 * versions * n_features
    rows = max(1, (budget - 8 * columns * n_features) // a_query)
    return max(1, min(rows, n, CPU_ROWS if device.type == "cpu" else n)), columns


def _unit(array: np.ndarray, lengths: np.ndarray, rows: slice, device: torch.device) -> torch.Tensor:
    """Some rows of an array on the device, float32, each embedding of length 1."""
    part = torch.from_numpy(np.array(array[rows], order="C")).to(device, torch.float32)
    return part.div_(torch.from_numpy(lengths[rows]).to(device)[..., None])


def _cosines(queries: torch.Tensor, entries: torch.Tensor, buffers: torch.Tensor) -> torch.Tensor:
    """The largest similarity (n, m) over the versions of each query, written to the first of the buffers."""
    shape = len(queries), len(entries)
    best, other = (buffer[: shape[0] * shape[1]].view(shape) for buffer in (buffers[0], buffers[-1]))
    torch.mm(queries[:, 0], entries.T, out=best)
    for version in queries.unbind(1)[1:]:
        torch.maximum(best, torch.mm(version, entries.T, out=other), out=best)
    return best


def _best(similarity: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of (n, m) and their columns (n, at most k), of equal ones the first; columns ascend."""
    m = similarity.shape[1]
    value, column = similarity.topk(min(k + 1, m), dim=1)
    if m > k:
        # topk takes any of those that are equal
        tied = (value[:, k - 1] == value[:, k]) & (value[:, k] > -torch.inf)
        value, column = value[:, :k], column[:, :k]
        for rows in tied.nonzero()[:, 0].split(64):
            ordered = similarity[rows].sort(dim=1, descending=True, stable=True)
            value[rows], column[rows] = ordered.values[:, :k], ordered.indices[:, :k]
    column, order = column.sort(dim=1)
    return value.gather(1, order), column


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in float32 whatever was set for training: TF32 and bfloat16 would mix up close neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
