"""Everything about one place in one figure: its views, the guesses of one run or two, and places that look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from kitlib.figures.atlas import Map
from kitlib.figures.style import GREY, INK, Figure, finish, house, join_notes, new, plain, wrap

COLOURS = ("#c2410c", "#0369a1")  # of the first run and the second
AREA = 400.0  # of the dot of all weight, in square points
SHARES = (0.5, 0.75, 0.9)  # of the weight, in the areas of `likelihood`
SHADES = ("#fdd0a2", "#fd8d3c", "#b83d00")  # of these areas, the largest first
KM_PER_DEGREE = 111.2


class Opinion(NamedTuple):
    """The guess of one run: states (5,) with probabilities (5,), points (K, 2) with weights (K,), point (2,)."""

    states: Sequence[str]
    probabilities: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    point: np.ndarray


@house
def place(
    views: ArrayLike,
    names: Sequence[str],
    opinions: Mapping[str, Opinion],
    truth: ArrayLike | None = None,
    state: str = "",
    alike: ArrayLike | None = None,
    captions: Sequence[str] = (),
    title: str = "",
    note: str = "",
) -> Figure:
    """Views (V, H, W, 3) uint8 with their names, a map of the weighted points, the likeliest states, and places alike.

    opinions: of one run or two, by name. truth (2,) and state: where they are known. alike (A, H, W, 3) uint8:
    pictures of similar places, with captions.
    """
    shots, similar = np.asarray(views), np.empty((0, 1, 1, 3)) if alike is None else np.asarray(alike)
    columns = max(len(shots), len(similar), 4)
    heights = [9 / columns, 3.4] + ([9 / columns + 0.3] if len(similar) else [])
    figure = Figure(figsize=(9, sum(heights) + 0.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    top = grid[0].subgridspec(1, columns)
    for column, (shot, name) in enumerate(zip(shots, names, strict=True)):
        _picture(figure, top[column], shot, name)
    middle = grid[1].subgridspec(1, 1 + len(opinions), width_ratios=[2.2] + [1] * len(opinions))
    known = [] if truth is None else [np.asarray(truth, float)[None]]
    visible = [opinion.points[opinion.weights > 0.01] for opinion in opinions.values()]
    canvas = Map(*visible, *(opinion.point[None] for opinion in opinions.values()), *known,
                 axes=figure.add_subplot(middle[0]))  # fmt: skip
    for colour, opinion in zip(COLOURS, opinions.values(), strict=False):
        canvas.scatter(opinion.points, s=4 + AREA * opinion.weights, c=colour, alpha=0.5)
        canvas.scatter(opinion.point[None], s=90, c=colour, marker="+", lw=2, zorder=4)
    for point in known:
        canvas.scatter(point, s=90, facecolors="none", edgecolors=INK, lw=2, zorder=5)
    for column, (colour, (name, opinion)) in enumerate(zip(COLOURS, opinions.items(), strict=False)):
        axes = figure.add_subplot(middle[1 + column])
        ranks = np.arange(len(opinion.states))[::-1]
        axes.barh(ranks, opinion.probabilities, color=colour, alpha=0.75, height=0.45)
        for rank, label, share in zip(ranks, opinion.states, opinion.probabilities, strict=True):
            weight = "bold" if label == state else "normal"
            text = f"{plain(label, 24)}  {share:.0%}"
            axes.text(0, rank + 0.27, text, fontsize=8, va="bottom", fontweight=weight)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(ranks) - 0.1))
        axes.set_title(plain(name, 24), fontsize=9, loc="left")
        axes.set_axis_off()
    if len(similar):
        bottom = grid[2].subgridspec(1, columns)
        for column, (shot, caption) in enumerate(zip(similar, captions, strict=True)):
            _picture(figure, bottom[column], shot, caption)
    legend = "dots: considered, by weight; cross: the guess" + ("; ring: the truth" if known else "")
    return finish(figure, title, " · ".join(filter(None, [legend, note])))


def _picture(figure: Figure, where: object, picture: np.ndarray, caption: str) -> None:
    axes = figure.add_subplot(where)  # type: ignore[call-overload]
    axes.imshow(picture)
    axes.set_title(wrap(caption, 34), fontsize=8, color=GREY, loc="left", fontweight="normal")
    axes.set_axis_off()


@house
def likelihood(
    points: ArrayLike,
    weights: ArrayLike,
    guess: ArrayLike,
    truth: ArrayLike,
    names: Sequence[str],
    spread_km: float = 80.0,
    title: str = "",
    note: str = "",
) -> Figure:
    """Where a place may lie, a panel for each of P places with its name: the areas that hold half to nine tenths.

    The weights (P, K) of the points (P, K, 2) are smoothed by a normal distribution of `spread_km`. guess, truth (P, 2)
    are a cross and a ring. All panels show the same part of the map.
    """
    points, weights, guess, truth = (np.asarray(array, float) for array in (points, weights, guess, truth))
    figure = new(3.6)
    everything = (points[weights > 0.02], guess, truth)
    for axes, *place in zip(figure.subplots(1, len(names), squeeze=False)[0], names, points, weights, guess, truth,
                            strict=True):  # fmt: skip
        name, its_points, its_weights, its_guess, its_truth = place
        canvas = Map(*everything, axes=axes)
        if not canvas.is_us:  # room for the areas of the outermost points
            room = 3 * spread_km / KM_PER_DEGREE * np.array([-1, 1])
            axes.set(xlim=axes.get_xlim() + room, ylim=axes.get_ylim() + room)
        across, up, density = _density(canvas, its_points, its_weights, spread_km)
        ranked = np.sort(density.ravel())[::-1]
        within = np.searchsorted(np.cumsum(ranked) / ranked.sum(), SHARES[::-1])
        levels = [*ranked[within.clip(max=len(ranked) - 1)], ranked[0] * 1.01]
        if (np.diff(levels) > 0).all():
            axes.contourf(across, up, density, levels=levels, colors=SHADES, alpha=0.85, zorder=1.5)
        canvas.scatter(its_guess[None], s=70, c=INK, marker="+", lw=1.6, zorder=4)
        canvas.scatter(its_truth[None], s=90, facecolors="none", edgecolors=INK, lw=1.6, zorder=5)
        axes.set(title=wrap(name, 30), xlabel="", ylabel="")
        axes.tick_params(labelsize=7)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        aspect = (top - bottom) / (right - left) * float(axes.get_aspect())
    labels = [f"{share:.0%}" for share in SHARES[:-1]] + [f"{SHARES[-1]:.0%} of the weight"]
    patches = [Patch(color=shade, label=label) for label, shade in zip(labels, SHADES[::-1], strict=True)]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches))
    figure.set_size_inches(9, min(1.3 + (8.8 / len(names) - 0.1) * aspect, 7))
    return finish(figure, title, join_notes("ring: the truth, cross: the guess", note))


def _density(
    canvas: Map, points: np.ndarray, weights: np.ndarray, spread_km: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grid of a map, its x and y, and the smoothed weight (Y, X) on it of points (K, 2)."""
    across, up = (np.linspace(*limits(), 240) for limits in (canvas.axes.get_xlim, canvas.axes.get_ylim))
    used = weights > 1e-4
    xy, weight = canvas.xy(points[used]), weights[used]
    degree = 1.0 if canvas.is_us else KM_PER_DEGREE
    wide = spread_km / degree / (1.0 if canvas.is_us else np.cos(np.radians(points[used, 0])).clip(0.1))
    narrow = np.full(len(xy), spread_km / degree)
    x = np.exp(-(((across - xy[:, :1]) / np.broadcast_to(wide, len(xy))[:, None]) ** 2) / 2)
    y = np.exp(-(((up - xy[:, 1:]) / narrow[:, None]) ** 2) / 2)
    return across, up, np.einsum("k,ky,kx->yx", weight / (wide * narrow), y, x)


@house
def decisive(views: ArrayLike, names: Sequence[str], drop: ArrayLike, title: str = "", note: str = "") -> Figure:
    """Views (V, H, W, 3) uint8 under maps of `drop` (V, R, C), the fall in probability when a patch is covered."""
    shots, drop = np.asarray(views), np.asarray(drop, float)
    figure = Figure(figsize=(9, 9 / max(len(shots), 4) + 0.7), dpi=110, layout="constrained")
    most = max(float(np.abs(drop).max()), 1e-6)
    row = figure.subplots(1, max(len(shots), 4), squeeze=False)[0]
    for axes in row:
        axes.set_axis_off()
    for axes, shot, name, heat in zip(row, shots, names, drop, strict=False):
        axes.imshow(shot)
        extent = (-0.5, shot.shape[1] - 0.5, shot.shape[0] - 0.5, -0.5)
        marks = axes.imshow(
            heat, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.45, extent=extent, interpolation="bilinear"
        )
        axes.set_title(plain(name, 24), fontsize=9, loc="left")
    bar = figure.colorbar(marks, ax=row.tolist(), orientation="horizontal", shrink=0.4, aspect=40)
    bar.set_label("red: without this part the state is less likely", fontsize=8)
    return finish(figure, title, note)
