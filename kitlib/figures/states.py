"""Places by state: colours that no two neighbours share, and a map that shows who lies outside their state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely
from matplotlib.collections import PathCollection
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.figures.atlas import Map, state_rings
from kitlib.figures.style import INK, PALETTE, Figure, house, join_notes
from kitlib.geo import outlines

TOUCH_DEG = 0.02  # states nearer than this are neighbours
NEAR = 6  # places around each place whose states are its neighbours, where there are no outlines
OUTSIDE_DEG = 0.05  # distance from its state at which a place lies outside; outlines are good to a hundredth


def neighbour_colours(names: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """A colour for each name, another one for both of each of `pairs` of rows; five colours do for most maps.

    Greedy colouring in the order of saturation (DSATUR, Brelaz 1979), the rarest of the allowed colours first. Where
    eight colours are too few, neighbours share the colour that the fewest of them have.

    >>> len(set(neighbour_colours(["a", "b", "c", "d"], [(0, 1), (1, 2), (2, 0)])[:3]))
    3
    """
    adjacent: list[set[int]] = [set() for _ in names]
    for a, b in pairs:
        adjacent[a].add(b)
        adjacent[b].add(a)
    chosen = np.full(len(names), -1)
    for _ in names:
        around = [[chosen[b] for b in adjacent[a] if chosen[b] >= 0] for a in range(len(names))]
        row = max(np.flatnonzero(chosen < 0), key=lambda a: (len(set(around[a])), len(adjacent[a])))
        used = np.bincount(chosen[chosen >= 0], minlength=len(PALETTE))
        taken = np.bincount(around[row], minlength=len(PALETTE))
        few = 5 if (taken[:5] == 0).any() else len(PALETTE)
        chosen[row] = np.lexsort((used[:few], taken[:few]))[0]
    return [PALETTE[k] for k in chosen]


def touching(names: Sequence[str], points: np.ndarray, code: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of rows of `names` that are neighbours: by outlines, or by places (N, 2) of code (N,) near each other.

    US states have outlines; all others are neighbours where one of the nearest places of a place has the other name.
    """
    shapes = outlines.state_shapes()
    known = [i for i, name in enumerate(names) if name in shapes]
    drawn = [shapes[names[i]].simplify(TOUCH_DEG / 2) for i in known]
    left, right = shapely.STRtree(drawn).query(drawn, "dwithin", TOUCH_DEG) if drawn else (np.empty(0, int),) * 2
    pairs = {(known[a], known[b]) for a, b in zip(left.tolist(), right.tolist(), strict=True) if a < b}
    if len(known) < len(names) and len(points) > 1:
        _, near = geo.nearest(points, points, k=min(NEAR, len(points)))
        found = {(int(code[i]), int(code[j])) for i, row in enumerate(near) for j in row}
        pairs |= {(a, b) for a, b in found if a < b} | {(b, a) for a, b in found if a > b}
    return pairs


def outside(points: ArrayLike, states: ArrayLike) -> np.ndarray:
    """Whether each of points (N, 2) lies outside the outline of its state (N,); False for states without an outline."""
    points, shapes = np.asarray(points, float), outlines.state_shapes()
    found = np.zeros(len(points), bool)
    for name in set(np.asarray(states).tolist()) & set(shapes):
        rows = np.flatnonzero(np.asarray(states) == name)
        found[rows] = shapely.distance(shapes[name], shapely.points(points[rows, ::-1])) > OUTSIDE_DEG
    return found


@house
def places(points: ArrayLike, states: ArrayLike, title: str = "", note: str = "") -> Figure:
    """Map of places (N, 2) by state (N,): states tinted, neighbours never alike, rings around places outside theirs."""
    points = np.asarray(points, float)
    names, code = np.unique(np.asarray(states).astype(str), return_inverse=True)
    colours = neighbour_colours(names.tolist(), touching(names.tolist(), points, code))
    canvas = Map(points)
    if canvas.is_us:
        for name, colour in zip(names, colours, strict=True):
            paths = [Outline(canvas.xy(ring), closed=True) for ring in state_rings().get(name, [])]
            if paths:
                shade = PathCollection([Outline.make_compound_path(*paths)], facecolor=colour, alpha=0.22, zorder=1)
                canvas.axes.add_collection(shade, autolim=False)
    shuffled = np.random.default_rng(0).permutation(len(points))  # so that no state hides another
    size = float(np.clip(12_000 / max(len(points), 1), 1.5, 22))
    canvas.scatter(points[shuffled], c=np.array(colours)[code[shuffled]], s=size)
    odd = outside(points, names[code])
    rare = odd.mean() < 0.1 if len(odd) else False  # of guesses many may be outside, and rings would hide the map
    style = {"s": 42, "lw": 1.4} if rare else {"s": size, "lw": 0.6}
    canvas.scatter(points[odd], c=np.array(colours)[code[odd]], edgecolor=INK, zorder=3, **style)
    rings = f"ring: outside the outline of its state ({odd.sum():,})" if odd.any() else ""
    return canvas.finish(title, join_notes("neighbours never share a colour", rings, note))
