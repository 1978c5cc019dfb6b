"""Maps of places, density, values per state, geocells, errors and embeddings, from arrays.

Points are [lat, lon] in degrees. Every function takes `note`, printed small at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_rgb
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.figures.atlas import Map, state_rings
from kitlib.figures.place import COLOURS as RUN_COLOURS
from kitlib.figures.style import (
    GREY,
    INK,
    PALETTE,
    Figure,
    finish,
    house,
    join_notes,
    legend_columns,
    new,
    plain,
)

ERROR_COLOURS = "plasma_r"
NEAR_KM, WORST_KM = 25, 2500  # the errors of the first colour and the last
MAX_MARKS = 20_000  # of more points or lines a seeded sample is drawn, and its size stated


def _sample(n: int, most: int) -> tuple[np.ndarray, str]:
    """The rows to draw, and a note if they are a sample."""
    if n <= most:
        return np.arange(n), ""
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False)), f"{most:,} of {n:,} drawn"


@house
def places(points: ArrayLike, labels: ArrayLike | None = None, title: str = "", note: str = "") -> Figure:
    """Map of places (N, 2), coloured by label (N,), such as split or state.

    Up to eight labels get a legend; more repeat the colours, which still shows the borders.
    """
    points = np.asarray(points, float)
    labels = np.full(len(points), "") if labels is None else np.asarray(labels, dtype=object)
    names, code = np.unique(labels.astype(str), return_inverse=True)
    canvas = Map(points)
    shuffled = np.random.default_rng(0).permutation(len(points))  # so that no label hides another
    colours = np.array(PALETTE)[code % len(PALETTE)]
    size = float(np.clip(12_000 / max(len(points), 1), 1.5, 22))
    canvas.scatter(points[shuffled], c=colours[shuffled], s=size, alpha=0.75)
    if 1 < len(names) <= len(PALETTE):
        for i, name in enumerate(names):
            canvas.axes.scatter([], [], c=PALETTE[i], s=28, label=f"{plain(name, 30)} ({(code == i).sum():,})")
        columns = legend_columns(plain(name, 30) for name in names)
        canvas.figure.legend(loc="outside lower left", ncols=columns, handletextpad=0.2)
    return canvas.finish(title, note)


@house
def density(points: ArrayLike, title: str = "", note: str = "") -> Figure:
    """The density of places (N, 2) in hexagons on a logarithmic scale; fast for any number of places."""
    points = np.asarray(points, float)
    canvas = Map(points)
    xy = canvas.xy(points)
    limits = (*canvas.axes.get_xlim(), *canvas.axes.get_ylim())
    aspect = (limits[3] - limits[2]) / (limits[1] - limits[0]) * float(canvas.axes.get_aspect())
    hexes = canvas.axes.hexbin(xy[:, 0], xy[:, 1], gridsize=(80, max(round(80 * aspect / 3**0.5), 1)), bins="log",
                               mincnt=1, extent=limits, cmap="viridis_r", lw=0.1, zorder=2)  # fmt: skip
    canvas.axes.set(xlim=limits[:2], ylim=limits[2:])
    canvas.colour_bar(hexes, "places in a hexagon")
    return canvas.finish(title, note)


@house
def values(
    names: Sequence[str], centres: ArrayLike, value: ArrayLike, label: str, cmap: str = "viridis", title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """A value (S,) per state as a colour: US states are shaded, others are dots at their centres (S, 2)."""
    centres, value = np.asarray(centres, float), np.asarray(value, float)
    known = np.array([name in state_rings() for name in names])
    rings = [state_rings()[name] for name in names if name in state_rings()]
    canvas = Map(centres, states=[name for name in names if name in state_rings()])
    style: Any = {"cmap": cmap, "norm": Normalize(np.nanmin(value), np.nanmax(value))}
    paths = [Outline.make_compound_path(*[Outline(canvas.xy(r), closed=True) for r in state]) for state in rings]
    shades = PathCollection(paths, array=value[known], edgecolor="white", zorder=1, **style)
    canvas.axes.add_collection(shades, autolim=False)
    canvas.scatter(centres[~known], c=value[~known], s=60, **style)
    canvas.colour_bar(shades, label)
    return canvas.finish(title, note)


@house
def cells(
    points: ArrayLike, centres: ArrayLike, counts: ArrayLike, radius_km: ArrayLike, title: str = "", note: str = ""
) -> Figure:
    """Geocells: centres (C, 2), area by number of places (C,), colour by radius (C,); places in grey."""
    points, centres = np.asarray(points, float), np.asarray(centres, float)
    rows, drawn = _sample(len(points), MAX_MARKS)
    canvas = Map(points, centres)
    canvas.scatter(points[rows], c=GREY, s=2, alpha=0.35)
    counts, radius = np.asarray(counts, float), np.maximum(np.asarray(radius_km, float), 0.1)
    marks = canvas.scatter(centres, c=radius, s=10 + 90 * counts / counts.max(), cmap="viridis_r", norm=_log(radius),
                           edgecolor="white", lw=0.5, zorder=3)  # fmt: skip
    canvas.colour_bar(marks, "radius of the cell (km)")
    return canvas.finish(title, join_notes(f"places: {drawn}" if drawn else "", note))


def _log(values: np.ndarray) -> LogNorm:
    low, high = float(values.min()), float(values.max())
    return LogNorm(low, max(high, low * 1.01))


@house
def errors(
    true: ArrayLike, guess: ArrayLike, km: ArrayLike, most: int = 1500, title: str = "", note: str = ""
) -> Figure:
    """Lines from true places (N, 2), marked by dots, to their guesses (N, 2), coloured by the error (N,) in km."""
    true, guess, km = np.asarray(true, float), np.asarray(guess, float), np.asarray(km, float)
    rows, drawn = _sample(len(km), most)
    rows = rows[np.argsort(km[rows])]
    canvas = Map(true, guess)
    style = _lines(canvas, true[rows], guess[rows], km[rows])
    dots = canvas.scatter(true[rows], s=14, c=km[rows], edgecolor="white", lw=0.3, zorder=3, **style)
    canvas.colour_bar(dots, "error (km)", ticks=[25, 200, 750, 2500], extend="both")
    return canvas.finish(title, join_notes("dot: the truth, line: to the guess", drawn, note))


def _lines(canvas: Map, start: np.ndarray, end: np.ndarray, km: np.ndarray) -> dict[str, Any]:
    """Draw lines between points (N, 2), coloured by their lengths (N,) in km; return the style of these colours."""
    style: dict[str, Any] = {"cmap": ERROR_COLOURS, "norm": LogNorm(NEAR_KM, WORST_KM, clip=True)}
    ends, row = canvas.lines(start, end)
    lines = LineCollection(list(ends), array=km[row], lw=0.6, alpha=0.35, zorder=2, **style)
    canvas.axes.add_collection(lines, autolim=False)
    return style


@house
def differences(
    a: ArrayLike, b: ArrayLike, km: ArrayLike, differs: ArrayLike, most: int = 1500, title: str = "", note: str = ""
) -> Figure:
    """Where two sets of guesses differ: lines from points a (N, 2) to b (N, 2), coloured by the distance (N,) in km.

    differs (N,): whether the first states do; such places have a dark ring, at the point of a.
    """
    a, b, km, differs = np.asarray(a, float), np.asarray(b, float), np.asarray(km, float), np.asarray(differs, bool)
    rows, drawn = _sample(len(km), most)
    rows = rows[np.lexsort((km[rows], differs[rows]))]
    canvas = Map(a, b)
    style = _lines(canvas, a[rows], b[rows], km[rows])
    size, edge = np.where(differs[rows], 24, 8), np.where(differs[rows], INK, "white")
    dots = canvas.scatter(a[rows], s=size, c=km[rows], edgecolor=edge.tolist(), lw=0.6, zorder=3, **style)
    canvas.colour_bar(dots, "distance of the points (km)", ticks=[25, 200, 750, 2500], extend="both")
    legend = (
        f"dot: the first one's point, dark ring: another first state ({differs.sum():,}), line: to the second one's"
    )
    return canvas.finish(title, join_notes(legend, drawn, note))


@house
def confusions(
    true: ArrayLike, guess: ArrayLike, names: Sequence[str], centres: ArrayLike, most: int = 60, title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """Arrows from each true state to the state it is most often confused with, between their centres (S, 2).

    true, guess (N,) are among the names (S,). The width is the number of places, the colour their share of the true
    state's. Of equally common states the nearer one counts; of more than `most` states the rarest errors are left out.
    """
    centre = pd.DataFrame(np.asarray(centres, float), index=list(names))
    pairs = pd.DataFrame({"state": np.asarray(true), "guess": np.asarray(guess)})
    total = pairs.groupby("state").size()
    table = pairs[pairs["state"] != pairs["guess"]].value_counts().rename("places").reset_index()
    table["km"] = geo.distance_km(centre.loc[table["state"]].to_numpy(), centre.loc[table["guess"]].to_numpy())
    table = table.sort_values(["places", "km"], ascending=[False, True]).drop_duplicates("state")
    rest, table = table[most:], table[:most][::-1]  # the widest on top
    count = table["places"].to_numpy()
    share, widest = count / total.loc[table["state"]].to_numpy(), count.max(initial=1)
    start, end = (centre.loc[table[column]].to_numpy() for column in ("state", "guess"))
    canvas = Map(centre.to_numpy(), states=list(names))
    norm = Normalize(0, share.max(initial=0.01))
    marks = canvas.scatter(start, c=share, s=16, cmap="viridis_r", norm=norm, zorder=4)
    for (tail, head), i in zip(*canvas.lines(start, end), strict=True):
        width = 0.8 + 4.2 * count[i] / widest
        canvas.axes.add_patch(FancyArrowPatch(
            tail, head, connectionstyle="arc3,rad=0.18", arrowstyle="-|>", mutation_scale=7 + 2 * width, lw=width,
            color=marks.to_rgba(share[i]), alpha=0.85, shrinkA=2, shrinkB=1, zorder=3,
        ))  # fmt: skip
    canvas.colour_bar(marks, "share of the true state's places")
    scale = f"widest arrow: {widest:,} places" if len(table) else "no state is confused"
    left_out = f"{len(rest):,} states not drawn" if len(rest) else ""
    return canvas.finish(title, join_notes("dot: the true state", scale, left_out, note))


@house
def gains(points: ArrayLike, gain: ArrayLike, a: str, b: str, title: str = "", note: str = "") -> Figure:
    """Where run `a` or `b` scores more: places (N, 2) coloured by the gain (N,) of `b`, larger where it is larger."""
    points, gain = np.asarray(points, float), np.asarray(gain, float)
    rows, drawn = _sample(len(gain), MAX_MARKS)
    rows = rows[np.argsort(np.abs(gain[rows]))]
    canvas, most = Map(points), max(float(np.abs(gain).max()), 1e-6)
    colours = LinearSegmentedColormap.from_list("gains", [RUN_COLOURS[0], "#e5e5e5", RUN_COLOURS[1]])
    size = (4 + 40 * np.abs(gain[rows]) / most) * float(np.clip(1500 / len(rows), 0.15, 1))
    marks = canvas.scatter(points[rows], c=gain[rows], s=size, cmap=colours, vmin=-most, vmax=most, alpha=0.8)
    canvas.colour_bar(marks, f"score: {plain(a, 24)} more (below 0), {plain(b, 24)} more (above)")
    better = [f"{name}: better in {int(n):,} places" for name, n in ((a, (gain < 0).sum()), (b, (gain > 0).sum()))]
    return canvas.finish(title, join_notes(*better, f"equal in {int((gain == 0).sum()):,}", drawn, note))


def position_colours(points: ArrayLike) -> np.ndarray:
    """A colour (N, 3) for every place: four corner colours blended by its ranks in latitude and longitude."""
    points = np.asarray(points, float)
    up, right = (np.argsort(np.argsort(points[:, k])) / max(len(points) - 1, 1) for k in (0, 1))
    corners = np.array([[to_rgb("#7a2f8f"), to_rgb("#d55e00")], [to_rgb("#0a5fa5"), to_rgb("#8cc63f")]])
    weight = np.stack([np.stack([1 - up, 1 - up]), np.stack([up, up])]) * np.stack([1 - right, right])
    return np.einsum("ijn,ijc->nc", weight, corners)


@house
def embedding(plane: ArrayLike, points: ArrayLike, axis_labels: Sequence[str] = ("", ""), title: str = "",
              note: str = "") -> Figure:  # fmt: skip
    """Embeddings in a plane (N, 2) beside the map of their places (N, 2), both coloured by location."""
    plane, points = np.asarray(plane, float), np.asarray(points, float)
    rows, drawn = _sample(len(points), MAX_MARKS)
    colours = position_colours(points)[rows]
    figure = new(4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    size = float(np.clip(12_000 / len(rows), 1.5, 16))
    left.scatter(plane[rows, 0], plane[rows, 1], c=colours, s=size, lw=0, alpha=0.8, rasterized=True)
    left.set(xlabel=plain(axis_labels[0]), ylabel=plain(axis_labels[1]), title="in embedding space")
    canvas = Map(points, axes=right)
    canvas.scatter(points[rows], c=colours, s=size)
    right.set_title("on the map")
    return finish(figure, title, join_notes(drawn, note))
