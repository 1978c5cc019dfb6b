"""Everything about one place in one figure: its views, the guesses of one run or two, and places that look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kitlib.figures.atlas import Map
from kitlib.figures.style import GREY, INK, Figure, finish, house

COLOURS = ("#c2410c", "#0369a1")  # of the first run and the second
AREA = 400.0  # of the dot of all weight, in square points


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
            text = f"{label}  {share:.0%}"
            axes.text(0, rank + 0.27, text, fontsize=8, va="bottom", fontweight=weight, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(ranks) - 0.1))
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
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
    axes.set_title(caption, fontsize=8, color=GREY, loc="left", fontweight="normal", parse_math=False)
    axes.set_axis_off()


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
        axes.set_title(name, fontsize=9, loc="left")
    bar = figure.colorbar(marks, ax=row.tolist(), orientation="horizontal", shrink=0.4, aspect=40)
    bar.set_label("red: without this part the state is less likely", fontsize=8)
    return finish(figure, title, note)
