"""Great-circle maths on a sphere with the competition's radius, the only place where distances are computed.

Points are arrays (..., 2) of [latitude, longitude] in degrees, distances are kilometres. Everything works on
unit vectors, so that the date line and the poles need no special case, and on chords (differences of unit
vectors), which keep their precision at a metre where the arc cosine of a dot product loses it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from kitlib.core.errors import KitError

EARTH_RADIUS_KM = 6371.0
BLOCK = 2**17  # elements worked on at once: temporaries of 1 MB stay in the cache
SAME_PLACE_RAD = 1e-8  # 6 cm: closer points count as one, and a median that moves less has arrived
MEDIAN_STEPS = 200  # a bound; most medians take 4 steps, the worst seen took 40
MEDIAN_STARTS = 64  # input points tried as the start of a median, the heaviest

Array = NDArray[np.floating]


def unit_vectors(points: ArrayLike) -> Array:
    """Points (..., 2) as unit vectors (..., 3): x towards (0, 0), y towards (0, 90), z towards the north pole.

    >>> unit_vectors([90.0, 12.0]).round(9).tolist()
    [0.0, 0.0, 1.0]
    """
    lat_rad, lon_rad = np.moveaxis(np.radians(np.asarray(points, float)), -1, 0)
    across = np.cos(lat_rad)
    return np.stack([across * np.cos(lon_rad), across * np.sin(lon_rad), np.sin(lat_rad)], axis=-1)


def from_unit_vectors(vectors: ArrayLike) -> Array:
    """Vectors (..., 3) of any positive length as points (..., 2)."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=-1))


def check_points(points: ArrayLike, what: str) -> Array:
    """Points (..., 2) as float64, or a KitError that names the first that is no place on Earth; `what` says whose."""
    points = np.asarray(points, float)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise KitError(f"{what}: points have shape {points.shape}, wanted is (..., 2), [latitude, longitude]")
    bad = ~((np.abs(points[..., 0]) <= 90) & (np.abs(points[..., 1]) <= 180))  # NaN fails both
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        lat, lon = points[first]
        where = f" at {first[0] if len(first) == 1 else first}" if first else ""
        raise KitError(
            f"{what}: {int(bad.sum())} of {bad.size} points are not on Earth, first{where}: "
            f"latitude {lat:g}, longitude {lon:g}; allowed are -90..90 and -180..180"
        )
    return points


def distance_km(a: ArrayLike, b: ArrayLike) -> Array:
    """Great-circle distances (...) between points a and b (..., 2), broadcast; exact from millimetres to antipodes.

    >>> float(distance_km([36.12, -86.67], [33.94, -118.40]).round(2))
    2886.44
    """
    a, b = unit_vectors(a), unit_vectors(b)
    # 2 atan2(|a - b|, |a + b|): unlike asin and acos it is well-conditioned at both ends (Kahan).
    return 2 * EARTH_RADIUS_KM * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def distance_matrix_km(
    a: ArrayLike, b: ArrayLike | None = None, dtype: DTypeLike = np.float32, out: np.ndarray | None = None
) -> np.ndarray:
    """Great-circle distances (N, M) between points a (N, 2) and b (M, 2), or among a; needs little beyond the result.

    Args:
        a: points (N, 2).
        b: points (M, 2); a itself when None.
        dtype: of the result; the work is in float64, whose chord is off by at most 0.2 m, and only at the antipodes.
        out: an array (N, M) to write to, for instance a memory map; `dtype` is then not used.
    """
    vectors = unit_vectors(a)
    x, y, z = np.ascontiguousarray((vectors if b is None else unit_vectors(b)).T)
    if out is None:
        out = np.empty((len(vectors), len(x)), dtype)
    rows = max(1, BLOCK // max(1, len(x)))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        squared = (block[:, :1] - x) ** 2
        for axis, other in ((1, y), (2, z)):
            difference = block[:, axis : axis + 1] - other
            difference *= difference
            squared += difference
        half_chord = np.sqrt(squared, out=squared)
        half_chord *= 0.5
        angle_rad = np.arcsin(np.minimum(half_chord, 1, out=half_chord), out=half_chord)
        angle_rad *= 2 * EARTH_RADIUS_KM
        out[start : start + rows] = angle_rad
    return out


def mean_point(points: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """The mean (..., 2) of points (..., K, 2) with weights (..., K): the direction of their mean unit vector.

    Where the vectors cancel out, as for antipodes, there is no mean: the heaviest point stands in.
    """
    points, weights = _checked(points, weights)
    return from_unit_vectors(_mean_vector(unit_vectors(points), weights))


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


def nearest(points: ArrayLike, of: ArrayLike, k: int = 1) -> tuple[Array, NDArray[np.intp]]:
    """Distances (N, k) in km and indices (N, k) of the k nearest of `of` (M, 2) to points (N, 2), nearest first.

    >>> nearest([[0.0, 179.9]], [[0.0, 0.0], [0.0, -179.9]])[1].tolist()
    [[1]]
    """
    from scipy.spatial import cKDTree

    of = np.asarray(of, float)
    if not 1 <= k <= len(of):
        raise KitError(f"{k} nearest points asked of {len(of)}; allowed is 1..{len(of)}")
    chord, index = cKDTree(unit_vectors(of)).query(unit_vectors(points), k=range(1, k + 1))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1)), index


def pairs_within_km(points: ArrayLike, radius_km: float) -> NDArray[np.intp]:
    """Index pairs (P, 2), i < j, sorted, of the points (N, 2) that lie at most `radius_km` apart."""
    from scipy.spatial import cKDTree

    chord = 2 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2)
    pairs = cKDTree(unit_vectors(points)).query_pairs(chord, output_type="ndarray")
    return pairs[np.lexsort(pairs.T[::-1])]


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
