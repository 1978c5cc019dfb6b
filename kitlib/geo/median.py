"""Geometric medians on the sphere: the point of least mean distance, of one set of points or of many groups at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.geo.sphere import BLOCK, Array, check_points, from_unit_vectors, unit_vectors

SAME_PLACE_RAD = 1e-8  # 6 cm: closer points count as one, and a median that moves less has arrived
MEDIAN_STEPS = 200  # a bound; most medians take 4 steps, the worst seen took 40
MEDIAN_STARTS = 64  # input points tried as the start of a median, the heaviest


def geometric_median(points: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """The points (..., 2) whose weighted sum of distances to points (..., K, 2) with weights (..., K) is least.

    The competition pays for the mean distance, so this is the best single guess for a cloud of likely places. From
    the best of the mean and the 64 heaviest input points it goes to within 6 cm by Newton's steps in the tangent plane,
    or by Weiszfeld's (Fletcher et al. 2009, doi:10.1016/j.neuroimage.2008.10.052), with Vardi and Zhang's at input
    points (2000, doi:10.1073/pnas.97.4.1423); the sum falls with every step. Points spread over half the globe may have
    several minima: then it finds one that beats every start. Points of zero weight, even NaN, are ignored.
    KitError for weights that are negative, not finite, or all zero.

    >>> geometric_median([[10.0, 20.0], [50.0, 60.0], [0.0, 0.0]], [3.0, 1.0, 0.0]).round(6).tolist()
    [10.0, 20.0]
    """
    points, weights = _checked(points, weights)
    shape, n_points = points.shape[:-2], points.shape[-2]
    points, weights = points.reshape(-1, n_points, 2), weights.reshape(-1, n_points)
    rows = max(1, BLOCK // n_points)
    vectors = np.empty((len(points), 3))
    for start in range(0, len(points), rows):
        at = slice(start, start + rows)
        vectors[at] = _median_vectors(unit_vectors(points[at]), weights[at])
    return from_unit_vectors(vectors).reshape(*shape, 2)


def group_medians(points: ArrayLike, group: ArrayLike, n_groups: int) -> Array:
    """The geometric median (G, 2) of each group's points; points (N, 2), group (N,) in 0..G-1, NaN for an empty one.

    >>> group_medians([[0, 1], [5, 5], [0, 1]], [0, 2, 0], 3).round(6).tolist()
    [[0.0, 1.0], [nan, nan], [5.0, 5.0]]
    """
    points, group = np.asarray(points, float), np.asarray(group)
    count = np.bincount(group, minlength=n_groups)
    order, first = np.argsort(group, kind="stable"), np.cumsum(count) - count
    medians = np.full((n_groups, 2), np.nan)
    width = 2 ** np.ceil(np.log2(np.maximum(count, 1))).astype(
        int
    )  # groups of like size go together, little is padding
    for k in np.unique(width[count > 0]):
        members = np.flatnonzero((width == k) & (count > 0))
        inside = np.arange(k) < count[members, None]
        rows = order[np.minimum(first[members, None] + np.arange(k), len(order) - 1)]
        medians[members] = geometric_median(points[rows], inside)
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
        stuck = is_safe & ~better  # not even Weiszfeld's step helps any more
        least, frame = np.where(better, total, least), np.where(better[:, None, None], trial, frame)
        weiszfeld, newton = (
            np.where(better[:, None], new, old) for new, old in zip(steps, (weiszfeld, newton), strict=True)
        )
        # Newton's step is shortened while it goes too far, until Weiszfeld's, which never does, is longer.
        share = np.where(better, 1.0, share / 8)
        safe_rad, newton_rad = np.linalg.norm(weiszfeld, axis=1), share * np.linalg.norm(newton, axis=1)
        is_safe = newton_rad <= safe_rad
        median[rows] = frame[:, 2]
        keep = ~stuck & (np.maximum(safe_rad, newton_rad) > SAME_PLACE_RAD)
        if not keep.any():
            break
        if not keep.all():
            rows, columns, weights, least, frame = rows[keep], columns[keep], weights[keep], least[keep], frame[keep]
            weiszfeld, newton, share, is_safe = weiszfeld[keep], newton[keep], share[keep], is_safe[keep]
        trial = _frames(_step(frame, np.where(is_safe[:, None], weiszfeld, newton * share[:, None])))
    return median


def _best_start(vectors: Array, columns: Array, weights: Array) -> Array:
    """Of the mean and the MEDIAN_STARTS heaviest points, the vector (n, 3) with the least sum of distances."""
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
    """Where one comes (n, 3) by going along `tangent` (n, 2), in radians, from the vectors of `frame` (n, 3, 3)."""
    length = np.linalg.norm(tangent, axis=1, keepdims=True)
    local = np.concatenate([tangent * np.sinc(length / np.pi), np.cos(length)], axis=1)
    return _normalised(np.einsum("na,nad->nd", local, frame))


def _median_steps(local: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The sum of distances (n,) seen from the origin of local coordinates (n, 3, K), and two ways to lessen it.

    Weiszfeld's step (n, 2) always does, but converges slowly; Newton's (n, 2) converges in a few steps where the
    sum is smooth and convex, and is replaced by Weiszfeld's where it is not.
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
    """Points (..., K, 2) and weights (..., K) that sum to 1, with a harmless point where the weight is zero."""
    points = np.asarray(points, float)
    if points.ndim < 2 or points.shape[-2] == 0:
        raise KitError(f"points have shape {points.shape}, wanted is (..., K, 2) with K at least 1")
    weights = np.ones(points.shape[:-1]) if weights is None else np.asarray(weights, float)
    weights = np.broadcast_to(weights, points.shape[:-1])
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        raise KitError("weights of points must be finite and not negative")
    total = weights.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise KitError(f"all weights of row {int(np.argmin(total))} are zero; at least one point needs a weight")
    return check_points(np.where(weights[..., None] > 0, points, 0.0), "points"), weights / total


def _mean_vector(vectors: Array, weights: Array) -> Array:
    """Mean vectors (..., 3), not normalised, of unit vectors (..., K, 3); the heaviest where they cancel out."""
    mean = np.einsum("...k,...kd->...d", weights, vectors)
    heaviest = np.take_along_axis(vectors, weights.argmax(-1)[..., None, None], axis=-2)[..., 0, :]
    return np.where(np.linalg.norm(mean, axis=-1, keepdims=True) > 1e-12, mean, heaviest)
