"""Geometric medians on the sphere: the point with the least mean distance to a set of points, or to each of many."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.geo import sphere
from kitlib.geo.sphere import Array

SAME_PLACE_RAD = 1e-8  # 6 cm: closer points count as one, and a median that moves less has arrived
MEDIAN_STEPS = 200  # a bound; most medians take 4 steps, the worst seen took 40
MEDIAN_STARTS = 64  # the heaviest input points are tried as starts


def geometric_median(points: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """The points (..., 2) with the least weighted sum of distances to points (..., K, 2) with weights (..., K).

    The competition scores the mean distance, so the median is the best single guess for a cloud of likely places. The
    search starts at the best of the mean and the 64 heaviest input points. It takes Newton's steps in the tangent
    plane, or Weiszfeld's (Fletcher et al. 2009, doi:10.1016/j.neuroimage.2008.10.052), or at input points Vardi and
    Zhang's (2000, doi:10.1073/pnas.97.4.1423), until they are below 6 cm; every step lowers the sum. For points spread
    over half the globe the result may be a local minimum, better than every start. Points of zero weight, even NaN, are
    ignored. Raises KitError for weights that are negative, not finite, or all zero.

    >>> geometric_median([[10.0, 20.0], [50.0, 60.0], [0.0, 0.0]], [3.0, 1.0, 0.0]).round(6).tolist()
    [10.0, 20.0]
    """
    points, weights = _checked(points, weights)
    shape, n_points = points.shape[:-2], points.shape[-2]
    points, weights = points.reshape(-1, n_points, 2), weights.reshape(-1, n_points)
    rows = max(1, sphere.BLOCK // n_points)
    vectors = np.empty((len(points), 3))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        vectors[block] = _median_vectors(sphere.unit_vectors(points[block]), weights[block])
    return sphere.from_unit_vectors(vectors).reshape(*shape, 2)


def group_medians(points: ArrayLike, group: ArrayLike, n_groups: int) -> Array:
    """The geometric median (G, 2) of the points (N, 2) of each group (N,) in 0..G-1, NaN for an empty one.

    >>> group_medians([[0, 1], [5, 5], [0, 1]], [0, 2, 0], 3).round(6).tolist()
    [[0.0, 1.0], [nan, nan], [5.0, 5.0]]
    """
    points, group = np.asarray(points, float), np.asarray(group)
    count = np.bincount(group, minlength=n_groups)
    order, first = np.argsort(group, kind="stable"), np.cumsum(count) - count
    medians = np.full((n_groups, 2), np.nan)
    # Groups of similar size are padded to the same power of two and computed together.
    width = 2 ** np.ceil(np.log2(np.maximum(count, 1))).astype(int)
    for k in np.unique(width[count > 0]):
        members = np.flatnonzero((width == k) & (count > 0))
        is_member = np.arange(k) < count[members, None]
        rows = order[np.minimum(first[members, None] + np.arange(k), len(order) - 1)]
        medians[members] = geometric_median(points[rows], is_member)
    return medians


def _normalised(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _median_vectors(vectors: Array, weights: Array) -> Array:
    """The geometric medians (n, 3) of unit vectors (n, K, 3) with weights (n, K) that sum to 1."""
    columns = np.ascontiguousarray(np.swapaxes(vectors, 1, 2))  # (n, 3, K)
    median = _best_start(vectors, columns, weights)
    rows = np.arange(len(median))  # those that still move
    trial = frame = _frames(median)
    least, share, is_safe = np.full(len(rows), np.inf), np.ones(len(rows)), np.zeros(len(rows), bool)
    weiszfeld = newton = np.zeros((len(rows), 2))
    for _ in range(MEDIAN_STEPS):
        total, *steps = _median_steps(trial @ columns, weights)
        better = total < least * (1 - 1e-15)
        stuck = is_safe & ~better  # even Weiszfeld's step no longer helps
        least, frame = np.where(better, total, least), np.where(better[:, None, None], trial, frame)
        weiszfeld, newton = (
            np.where(better[:, None], new, old) for new, old in zip(steps, (weiszfeld, newton), strict=True)
        )
        # Newton's step is shortened while it overshoots, until Weiszfeld's, which never does, is longer.
        share = np.where(better, 1.0, share / 8)
        safe_rad, newton_rad = np.linalg.norm(weiszfeld, axis=1), share * np.linalg.norm(newton, axis=1)
        is_safe = newton_rad <= safe_rad
        median[rows] = frame[:, 2]
        moves = ~stuck & (np.maximum(safe_rad, newton_rad) > SAME_PLACE_RAD)
        if not moves.any():
            break
        if not moves.all():
            rows, columns, weights, least, frame = (a[moves] for a in (rows, columns, weights, least, frame))
            weiszfeld, newton, share, is_safe = (a[moves] for a in (weiszfeld, newton, share, is_safe))
        trial = _frames(_step(frame, np.where(is_safe[:, None], weiszfeld, newton * share[:, None])))
    return median


def _best_start(vectors: Array, columns: Array, weights: Array) -> Array:
    """The vector (n, 3) with the least sum of distances among the mean and the MEDIAN_STARTS heaviest points."""
    best, least = _normalised(_mean_vector(vectors, weights)), np.full(len(vectors), np.inf)
    heaviest = np.argsort(-weights, axis=1, kind="stable")[:, :MEDIAN_STARTS]
    for start in [best.copy(), *(vectors[np.arange(len(vectors)), k] for k in heaviest.T)]:
        angle_rad = np.arccos(np.clip(np.einsum("nd,ndk->nk", start, columns), -1, 1))
        total = np.einsum("nk,nk->n", weights, angle_rad)
        best[total < least] = start[total < least]
        least = np.minimum(least, total)
    return best


def _frames(vectors: Array) -> Array:
    """Orthonormal axes (n, 3, 3) at unit vectors (n, 3): two in the tangent plane, then the vector itself.

    Duff et al. 2017, Building an orthonormal basis, revisited.
    """
    x, y, z = vectors.T
    sign = np.where(z < 0, -1.0, 1.0)
    a = -1 / (sign + z)
    b = x * y * a
    axes = [[1 + sign * x * x * a, sign * b, -sign * x], [b, sign + y * y * a, -y], [x, y, z]]
    return np.ascontiguousarray(np.moveaxis(np.array(axes), -1, 0))


def _step(frame: Array, tangent: Array) -> Array:
    """The vectors (n, 3) reached along `tangent` (n, 2), in radians, from the vectors of `frame` (n, 3, 3)."""
    length = np.linalg.norm(tangent, axis=1, keepdims=True)
    local = np.concatenate([tangent * np.sinc(length / np.pi), np.cos(length)], axis=1)
    return _normalised(np.einsum("na,nad->nd", local, frame))


def _median_steps(local: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The sum of distances (n,) from the origin of local coordinates (n, 3, K), and two steps (n, 2) that reduce it.

    Weiszfeld's step always reduces the sum, but converges slowly. Newton's converges in a few steps where the sum is
    smooth and convex, and is replaced by Weiszfeld's elsewhere.
    """
    a, b, c = local[:, 0], local[:, 1], local[:, 2]
    sine = np.sqrt(a * a + b * b)
    angle_rad = np.arctan2(sine, c)
    total = np.einsum("nk,nk->n", weights, angle_rad)
    at_point = angle_rad < SAME_PLACE_RAD
    held = np.einsum("nk,nk->n", weights, at_point)

    stiffness = np.divide(weights, angle_rad, out=np.zeros_like(sine), where=~at_point).sum(axis=1)
    pull = np.divide(weights, sine, out=np.zeros_like(sine), where=sine >= SAME_PLACE_RAD)  # none from the antipode
    slope = np.stack([np.einsum("nk,nk->n", pull, a), np.einsum("nk,nk->n", pull, b)], axis=1)
    steep = np.linalg.norm(slope, axis=1)
    # A point right here holds the median with its weight (Vardi and Zhang).
    scale = np.maximum(steep - held, 0) / np.where(steep > 0, steep, 1) / np.where(stiffness > 0, stiffness, 1)
    weiszfeld = slope * scale[:, None]

    # The Hessian of a distance is cot(angle) across its direction and nothing along it.
    across = np.einsum("nk,nk->n", pull, c)
    bend = np.divide(pull * c, sine * sine, out=np.zeros_like(sine), where=pull > 0)
    aa = across - np.einsum("nk,nk,nk->n", bend, a, a)
    bb = across - np.einsum("nk,nk,nk->n", bend, b, b)
    ab = -np.einsum("nk,nk,nk->n", bend, a, b)
    curvature, axes = np.linalg.eigh(np.stack([aa, ab, ab, bb], axis=1).reshape(-1, 2, 2))
    along = np.einsum("nd,nde->ne", slope, axes) / np.maximum(np.abs(curvature), 1e-12)
    newton = np.einsum("ne,nde->nd", along, axes)
    newton /= np.maximum(np.linalg.norm(newton, axis=1, keepdims=True), 1)
    return total, weiszfeld, np.where((held > 0)[:, None], weiszfeld, newton)


def _checked(points: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Check points (..., K, 2) and weights (..., K); normalise the weights and zero the points that have none."""
    points = np.asarray(points, float)
    if points.ndim < 2 or points.shape[-2] == 0:
        raise KitError(f"points: expected shape (..., K, 2) with K at least 1; got {points.shape}")
    weights = np.ones(points.shape[:-1]) if weights is None else np.asarray(weights, float)
    weights = np.broadcast_to(weights, points.shape[:-1])
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        raise KitError("weights: expected finite numbers from 0")
    total = weights.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise KitError(f"weights: expected at least one above 0; all of row {int(np.argmin(total))} are 0")
    return sphere.check_points(np.where(weights[..., None] > 0, points, 0.0), "points"), weights / total


def _mean_vector(vectors: Array, weights: Array) -> Array:
    """The mean (..., 3), not normalised, of unit vectors (..., K, 3); the heaviest vector where they cancel out."""
    mean = np.einsum("...k,...kd->...d", weights, vectors)
    heaviest = np.take_along_axis(vectors, weights.argmax(-1)[..., None, None], axis=-2)[..., 0, :]
    return np.where(np.linalg.norm(mean, axis=-1, keepdims=True) > 1e-12, mean, heaviest)
