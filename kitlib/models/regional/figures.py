"""Figures of regional training: dropped places, the choice of eps, errors by region, gain over the median point.

Functions take arrays and return a Figure; none reads a file. As in `figures`, `note` is printed small below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.figures.atlas import Map
from kitlib.figures.style import (
    GREY,
    INK,
    LIGHT,
    PALETTE,
    Figure,
    finish,
    house,
    join_notes,
    legend_columns,
    new,
    plain,
    plain_numbers,
)
from kitlib.geo import projection

FAR_TIMES = 3.0  # a place this many times farther out than the kept ones needs a second map
LOG_TIMES = 30.0  # ratio of distances that needs a logarithmic axis


@house
def dropped(points: ArrayLike, reason: ArrayLike, title: str = "", note: str = "") -> Figure:
    """A map of the dropped places (N, 2), coloured by reason (N,), over the kept ones (reason "") in grey.

    Where dropped places lie far outside the kept ones there are two maps: all places, and around the kept ones.
    Raises KitError for no places, or not one reason a place.
    """
    points, words = np.asarray(points, float).reshape(-1, 2), np.asarray(reason, dtype=str).reshape(-1)
    if not len(points) or len(points) != len(words):
        raise KitError(f"points, reason: expected one reason a place, at least one; got {len(points)} and {len(words)}")
    colours = {"": GREY} | {word: PALETTE[(i + 1) % len(PALETTE)] for i, word in enumerate(sorted(set(words) - {""}))}
    kept = words == ""
    centre = geo.geometric_median(points[kept if kept.any() else slice(None)])
    km = geo.distance_km(points, centre)
    reach_km = max(float(km[kept].max(initial=0)), 1.0)
    near = km <= FAR_TIMES * reach_km
    if near.all() or not kept.any():
        canvas = Map(points)
        _places(canvas, points, words, colours)
        _legend(canvas.figure, words, colours)
        return canvas.finish(title, note)
    figure = new(4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    whole, zoom = Map(points, axes=left), Map(points[near], axes=right)
    _places(whole, points, words, colours)
    _places(zoom, points[near], words[near], colours)
    _circle(whole, centre, max(FAR_TIMES * reach_km, 0.03 * km.max()))
    left.set_title(f"all {len(points):,} places")
    right.set_title(f"the {near.sum():,} in the circle")
    _legend(figure, words, colours)
    return finish(figure, title, note)


def _places(canvas: Map, points: np.ndarray, words: np.ndarray, colours: Mapping[str, str]) -> None:
    size = float(np.clip(12_000 / len(points), 1.5, 16))
    for word, colour in colours.items():
        style = {"s": max(2 * size, 14), "lw": 0.4, "edgecolor": "white", "zorder": 3} if word else {"s": size}
        canvas.scatter(points[words == word], c=colour, alpha=0.85 if word else 0.45, **style)


def _legend(figure: Figure, words: np.ndarray, colours: Mapping[str, str]) -> None:
    handles = [
        Line2D(
            [], [], ls="", marker="o", color=colour, label=f"{plain(word, 30) or 'kept'} ({(words == word).sum():,})"
        )
        for word, colour in colours.items()
    ]
    columns = legend_columns(plain(word, 30) for word in colours)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, handletextpad=0.2)


def _circle(canvas: Map, centre: np.ndarray, radius_km: float) -> None:
    """Draw a circle on the globe and make room for it."""
    turn = np.linspace(0, 2 * np.pi, 121)
    ring = projection.from_local_km(radius_km * np.column_stack([np.cos(turn), np.sin(turn)]), centre)
    lines, _ = canvas.lines(ring[:-1], ring[1:])
    canvas.axes.add_collection(LineCollection(list(lines), color=INK, lw=1.2, zorder=4), autolim=False)
    low, high = lines.min((0, 1)), lines.max((0, 1))
    (left, right), (bottom, top) = canvas.axes.get_xlim(), canvas.axes.get_ylim()
    pad = 0.01 * (right - left)
    canvas.axes.set(xlim=(min(left, low[0] - pad), max(right, high[0] + pad)),
                    ylim=(min(bottom, low[1] - pad), max(top, high[1] + pad)))  # fmt: skip


@house
def neighbour_curve(km: ArrayLike, eps_km: float, k: int, title: str = "", note: str = "") -> Figure:
    """The sorted distances (N,) of places to their k-th neighbour, with DBSCAN's eps and the share of places above.

    A good eps lies where the curve turns upwards (Ester et al. 1996, section 4.2). A distance of 0 is drawn at the
    bottom of the logarithmic axis; places without a k-th neighbour (NaN or infinite) count as above and are not drawn.
    Raises KitError for no places and for an eps that is not positive.
    """
    distance = np.sort(np.asarray(km, float).reshape(-1))
    if not len(distance) or not eps_km > 0:
        raise KitError(f"km, eps_km: expected at least one place and an eps above 0; got {len(distance)}, {eps_km}")
    finite = distance[np.isfinite(distance)]
    above = len(distance) - int((finite <= eps_km).sum())
    floor = float(np.min(finite, where=finite > 0, initial=eps_km)) / 2
    shown = np.maximum(finite, floor)
    rank = np.arange(1, len(finite) + 1)
    figure = new(3.8)
    axes = figure.subplots()
    axes.plot(rank, shown, color=PALETTE[0], marker="o" if len(finite) < 60 else None, ms=3)
    axes.fill_between(rank, eps_km, shown, where=shown > eps_km, color=PALETTE[1], alpha=0.2, lw=0)
    axes.axhline(eps_km, color=PALETTE[1], lw=1.4)
    label = f"eps {eps_km:.4g} km: {above / len(distance):.1%} of the places ({above:,}) lie above"
    axes.annotate(label, (0, eps_km), (6, 5), xycoords=("axes fraction", "data"), textcoords="offset points",
                  color=PALETTE[1], fontweight="bold")  # fmt: skip
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_numbers(axes.xaxis)
    axes.set(xlabel="places, sorted", ylabel=f"km to neighbour {k}", xlim=(0, len(distance) + 1))
    zero, missing = int((finite == 0).sum()), len(distance) - len(finite)
    zero_note = f"at distance 0, drawn at the bottom: {zero:,}" if zero else ""
    missing_note = f"without a neighbour {k}: {missing:,}" if missing else ""
    return finish(figure, title, join_notes(zero_note, missing_note, note))


@house
def region_errors(
    local_true: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    local_guess: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    names: Sequence[str],
    most: int = 12,
    title: str = "",
    note: str = "",
) -> Figure:
    """A panel for each region, with a line from each true place, a dot, to its guess; a cross is the region's centre.

    Truth and guess are arrays (n, 2) of km east and north of the region's centre, as by `projection.to_local_km`, by
    name or in the order of `names`. The `most` largest regions are drawn, each at its own scale, with the mean distance
    in km in the title. Raises KitError where truths and guesses differ in number, or there are none.
    """
    pairs = []
    for i, name in enumerate(names):
        true, guess = (
            np.asarray(local[name] if isinstance(local, Mapping) else local[i], float).reshape(-1, 2)
            for local in (local_true, local_guess)
        )
        if len(true) != len(guess):
            raise KitError(f"region {name}: expected a guess for each of {len(true)} places; got {len(guess)}")
        if len(true):
            pairs.append((str(name), true, guess))
    if not pairs:
        raise KitError(f"regions: expected at least one with places; got none of {len(names)}")
    pairs.sort(key=lambda pair: -len(pair[1]))
    pairs, rest = pairs[:most], pairs[most:]
    columns = min(len(pairs), 4 if len(pairs) > 6 else 3)
    rows = -(-len(pairs) // columns)
    width = 9.0 if columns > 1 else 6.5  # the note needs as much
    figure = new(rows * (width / columns + 0.6) + 0.3 * bool(title) + 0.3, width)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    cut = sum(_region(axes, *pair) for axes, pair in zip(grid, pairs, strict=False))
    for axes in grid[len(pairs) :]:
        axes.set_visible(False)
    small = f"smaller regions not drawn: {len(rest)} ({sum(len(true) for _, true, _ in rest):,} places)" if rest else ""
    outside = f"guesses outside their panel: {cut:,}" if cut else ""
    legend = "dot: the truth, line: to the guess, cross: the centre"
    return finish(figure, title, join_notes(legend, small, outside, note))


def _region(axes: Axes, name: str, true: np.ndarray, guess: np.ndarray) -> int:
    """Draw one region; returns the number of guesses outside its panel."""
    half = 1.1 * max(np.abs(true).max(), float(np.quantile(np.abs(guess).max(1), 0.95)), 1e-3)
    alpha = float(np.clip(60 / len(true), 0.12, 0.8))
    axes.add_collection(LineCollection(list(np.stack([true, guess], 1)), color=PALETTE[1], lw=0.8, alpha=alpha))
    size = float(np.clip(1500 / len(true), 2, 16))
    axes.scatter(true[:, 0], true[:, 1], s=size, c=PALETTE[0], lw=0, zorder=3, rasterized=True)
    axes.plot(0, 0, "+", color=INK, ms=9, mew=1.5, zorder=4)
    # the distance is the same around any centre
    km = geo.distance_km(*(projection.from_local_km(local, (0.0, 0.0)) for local in (true, guess)))
    axes.set_title(f"{plain(name, 28)}\n{km.mean():,.3g} km, {len(true):,} {'place' if len(true) == 1 else 'places'}")
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=LIGHT)
    bar = _round_number(0.6 * half)
    axes.plot([-half, bar - half], [-half, -half], color=INK, lw=3, solid_capstyle="butt", clip_on=False, zorder=5)
    axes.set_xlabel(f"{bar:,g} km", loc="left", fontsize=9)
    return int((np.abs(guess).max(1) > half).sum())


def _round_number(value: float) -> float:
    """The largest of …, 0.5, 1, 2, 5, 10, … that is not above a positive value."""
    steps = np.outer(10.0 ** np.arange(-4, 6), (1, 2, 5)).ravel()
    return float(steps[steps <= value].max(initial=steps[0]))


@house
def against_median(
    names: Sequence[str],
    model_km: ArrayLike,
    median_km: ArrayLike,
    counts: ArrayLike,
    pooled: ArrayLike | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """Mean km of the model against the region's median point as guess, a row a region, the largest gain on top.

    All arrays are (R,); `counts` are the numbers of places, `pooled` (bool) marks regions that share the pooled model.
    The note counts regions without places. Raises KitError where lengths differ or no region has places.
    """
    labels, shared = np.asarray(names, dtype=str), np.zeros(len(names), bool)
    shared = shared if pooled is None else np.asarray(pooled, bool)
    model, median, count = (np.asarray(array, float) for array in (model_km, median_km, counts))
    if len({len(labels), len(model), len(median), len(count), len(shared)}) > 1:
        raise KitError("names, model_km, median_km, counts, pooled: expected one value a region; got different lengths")
    rows = np.flatnonzero((count > 0) & np.isfinite(model) & np.isfinite(median))
    if not len(rows):
        raise KitError(f"regions: expected at least one with places and distances; got none of {len(labels)}")
    order = rows[np.argsort(model[rows] - median[rows], kind="stable")]
    model, median, count, shared = model[order], median[order], count[order], shared[order]
    figure = new(1.5 + 0.2 * len(order))
    axes = figure.subplots()
    row = np.arange(len(order))
    gain = np.where(model <= median, PALETTE[2], PALETTE[1])
    axes.hlines(row, model, median, color=gain, lw=2.5, alpha=0.7, zorder=2)
    axes.scatter(median, row, s=26, c=GREY, zorder=3)
    axes.scatter(model, row, s=34, c=np.where(shared, "white", PALETTE[0]), edgecolor=PALETTE[0], lw=1.5, zorder=4)
    axes.set_yticks(row, [plain(label) for label in labels[order]])
    axes.set(xlabel="mean distance (km)", ylim=(len(order) - 0.4, -0.6))
    if max(model.max(), median.max()) > LOG_TIMES * max(min(model.min(), median.min()), 1e-9):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    else:
        axes.set_xlim(0)
    axes.tick_params(axis="y", length=0)
    for i, n in enumerate(count):
        axes.text(1.06, i, f"{n:,.0f}", transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9)
    axes.text(1.06, -0.75, "places", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    overall = [float(np.average(km, weights=count)) for km in (model, median)]
    dot: Any = {"ls": "", "marker": "o", "ms": 6}
    handles = [
        Line2D([], [], color=PALETTE[0], label=f"model, {overall[0]:,.3g} km overall", **dot),
        Line2D([], [], color=GREY, label=f"median point of the region, {overall[1]:,.3g} km overall", **dot),
    ]
    if shared.any():
        handles.insert(1, Line2D([], [], color=PALETTE[0], mfc="white", mew=1.5, label="pooled model", **dot))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.2, borderaxespad=0.2)
    empty = f"regions without places: {len(labels) - len(order)}" if len(order) < len(labels) else ""
    return finish(figure, title, join_notes(empty, note))
