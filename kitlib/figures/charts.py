"""Charts, matrices and picture panels in one style, from arrays.

Every function takes `note`, printed small at the bottom, such as that the data are drawn. It returns a Figure, which a
notebook shows as the value of its cell and `save` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from kitlib.figures.style import GREY, INK, PALETTE, Figure, finish, house, join_notes, new, plain, wrap


def barh(axes: Axes, names: Sequence[str], values: ArrayLike, label: str, **style) -> None:
    """Draw horizontal bars (S,), the first name on top."""
    axes.barh(range(len(names)), np.asarray(values, float), **style)
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


@house
def counts(
    names: Sequence[str], by_split: Mapping[str, ArrayLike], most: int = 70, title: str = "", note: str = ""
) -> Figure:
    """Columns of places per state, the commonest first, one row per split; {"train": (S,), "test": (S,)}.

    Of more than `most` states the rarest are left out, and the note says how many.
    """
    first = np.asarray(next(iter(by_split.values())), float)
    order = np.argsort(-first, kind="stable")[:most]
    labels = [plain(names[i], 24) for i in order]
    figure = new(1.0 + 1.2 * len(by_split) + 0.075 * max(map(len, labels)))
    rows = figure.subplots(len(by_split), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (split, values), colour in zip(rows, by_split.items(), PALETTE, strict=False):
        count = np.asarray(values)
        axes.bar(range(len(order)), count[order], color=colour, width=0.72)
        low, high = int(count.min()), int(count.max())
        each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
        axes.set_title(f"{plain(split, 24)}: {int(count.sum()):,} places, {each}")
        axes.set(ylabel="places", xlim=(-0.6, len(order) - 0.4))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(axis="x", visible=False)
    rows[-1].set_xticks(range(len(order)), labels, rotation=90, fontsize=8.5)
    rows[-1].tick_params(axis="x", length=0)
    rest = len(names) - len(order)
    return finish(figure, title, join_notes(f"rarer ones not drawn: {rest:,}" if rest else "", note))


def geographic_order(distance_km: ArrayLike) -> np.ndarray:
    """An order (S,) of states that puts neighbours side by side, from distances (S, S).

    It is the optimal leaf order of an average-linkage tree (Bar-Joseph et al. 2001).

    >>> km = np.abs(np.subtract.outer([0.0, 900.0, 10.0, 910.0], [0.0, 900.0, 10.0, 910.0]))
    >>> sorted(geographic_order(km)[:2].tolist()) in ([0, 2], [1, 3])
    True
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = np.asarray(distance_km, float)
    if len(distance) < 3:
        return np.arange(len(distance))
    condensed = squareform((distance + distance.T) / 2 * (1 - np.eye(len(distance))), checks=False)
    return leaves_list(linkage(condensed, "average", optimal_ordering=True))


def heat(matrix: np.ndarray, names: Sequence[str], label: str, **style) -> tuple[Figure, Axes]:
    """A square heat map (S, S) with legible names, rows and columns in the given order."""
    import seaborn

    labels = [plain(name, 30) for name in names]
    size = min(2.2 + 0.21 * len(names) + 0.06 * max(0, max(map(len, labels)) - 14), 9.0)
    figure = new(max(size, 3.5), max(size + 0.6, 4.5))
    axes = figure.subplots()
    seaborn.heatmap(matrix, ax=axes, square=True, xticklabels=labels, yticklabels=labels, linewidths=0.3,
                    linecolor="white", cbar_kws={"label": label, "shrink": 0.6, "pad": 0.02}, **style)  # fmt: skip
    axes.tick_params(labelsize=8.5 if len(names) <= 40 else 6, length=0)
    axes.tick_params(axis="x", rotation=90)
    return figure, axes


@house
def distance_matrix(distance_km: ArrayLike, names: Sequence[str], title: str = "", note: str = "") -> Figure:
    """Heat map of the distances (S, S) between states, with neighbours side by side."""
    distance = np.asarray(distance_km, float)
    order = geographic_order(distance)
    labels = [names[i] for i in order]
    figure, _ = heat(distance[np.ix_(order, order)], labels, "km", cmap="viridis_r", norm=PowerNorm(0.5))
    return finish(figure, title, note)


@house
def soft_labels(
    rows: Mapping[float, ArrayLike], names: Sequence[str], state: str, most: int = 10, title: str = "", note: str = ""
) -> Figure:
    """Soft label of a true state's places over the states, one colour per temperature; {km: (S,)}."""
    mass = {km: np.asarray(row, float) for km, row in rows.items()}
    order = np.argsort(-max(mass.items())[1], kind="stable")[:most]
    figure = new(1.3 + 0.3 * len(order))
    axes = figure.subplots()
    true = list(names).index(state)
    for i, (km, row) in enumerate(sorted(mass.items())):
        place = np.arange(len(order)) + (i - (len(mass) - 1) / 2) * 0.8 / len(mass)
        stays = f"{km:g} km: {row[true]:.0%} stays with {plain(state)}"
        axes.barh(place, row[order], height=0.75 / len(mass), color=PALETTE[i % len(PALETTE)], label=stays)
    axes.set_yticks(range(len(order)), [plain(names[i]) for i in order])
    axes.set(xlabel="share of the target", ylim=(len(order) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", title="temperature", alignment="left")
    return finish(figure, title or f"Soft label of a place in {plain(state)}", note)


@house
def true_mass(
    temperatures_km: ArrayLike, mass: ArrayLike, mark_km: Sequence[float] = (75, 300), title: str = "", note: str = ""
) -> Figure:
    """The true state's share of the soft label (T, S) against the temperature (T,)."""
    km, share = np.asarray(temperatures_km, float), np.asarray(mass, float)
    figure = new(3.6)
    axes = figure.subplots()
    axes.fill_between(km, share.min(1), share.max(1), color=PALETTE[0], alpha=0.15, lw=0, label="all states")
    axes.plot(km, np.median(share, 1), color=PALETTE[0], label="median state")
    for mark in mark_km:
        value = float(np.interp(mark, km, np.median(share, 1)))
        axes.plot(mark, value, "o", color=PALETTE[1])
        axes.annotate(f"{mark:g} km: {value:.0%}", (mark, value), (8, 6), textcoords="offset points", color=PALETTE[1])
    axes.set(xlabel="temperature (km)", ylabel="true state's share of the target", ylim=(0, 1.03), xlim=(0, km.max()))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper right")
    return finish(figure, title, note)


@house
def histogram(
    values: ArrayLike, label: str, bins: int = 30, counted: str = "count", title: str = "", note: str = ""
) -> Figure:
    """Histogram of a quantity over cells or places, with its median marked; `counted` names what is counted."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    figure = new(3.0)
    axes = figure.subplots()
    axes.hist(finite, bins=min(bins, max(5, len(finite) // 2)), color=PALETTE[0], edgecolor="white", linewidth=0.5)
    median = float(np.median(finite))
    axes.axvline(median, color=PALETTE[1], label=f"median {median:,.3g}")
    axes.set(xlabel=label, ylabel=counted, xlim=(0 if finite.min() >= 0 else None, None))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.legend()
    return finish(figure, title, note)


@house
def training_curves(history: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """Training curves, one panel per quantity; the index is the step or epoch, its name the axis label.

    Columns `train_X`, `val_X` and `held_out_X` share the panel X, held-out places in the second colour. Missing values
    are skipped, so that columns may be logged at different steps.
    """
    held_out = ("val_", "held_out_")
    panels: dict[str, list[str]] = {}
    for column in history.columns:
        quantity = str(column).removeprefix("train_").removeprefix("val_").removeprefix("held_out_")
        panels.setdefault(quantity, []).append(str(column))
    rows = -(-len(panels) // 3)
    figure = new(0.8 + 2.5 * rows)
    grid = figure.subplots(rows, min(3, len(panels)), squeeze=False).ravel()
    kinds: dict[str, Any] = {}
    for axes, (name, columns) in zip(grid, panels.items(), strict=False):
        for column in columns:
            curve = history[column].dropna()
            colour, kind = (PALETTE[1], "held-out places") if column.startswith(held_out) else (PALETTE[0], "training")
            (line,) = axes.plot(curve.index, curve, color=colour, marker="o" if len(curve) <= 20 else None, ms=4)
            kinds.setdefault(kind, line)
        _scale(axes)
        axes.set(title=plain(name.replace("_", " "), 30), xlabel=str(history.index.name or "step"))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend([kinds[kind] for kind in sorted(kinds)[::-1]], sorted(kinds)[::-1], loc="outside lower left", ncols=2)
    once = f"a single {history.index.name or 'step'}: a dot, no curve" if len(history) == 1 else ""
    return finish(figure, title, join_notes(once, note))


def _scale(axes: Axes) -> None:
    """Whole numbers below; room around a constant, as its last digits are no curve."""
    low, high = axes.get_ylim()
    if high - low < 0.12 * abs(low) and np.ptp(axes.dataLim.intervaly) < 0.01 * abs(low):
        axes.set_ylim(low - 0.1 * abs(low), high + 0.1 * abs(low))
    left, right = axes.dataLim.intervalx
    if right - left < 1:
        axes.set_xlim(left - 1, right + 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True) if right - left >= 1 else FixedLocator([left]))


@house
def fold_scores(table: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """One panel per metric (columns), one dot per fold (rows), with mean and, of several folds, standard deviation."""
    figure = new(2.8)
    for axes, column in zip(figure.subplots(1, len(table.columns), squeeze=False)[0], table.columns, strict=True):
        mean, caption = float(table[column].mean()), f"{table[column].mean():,.4g}"
        if len(table) > 1:
            spread = float(table[column].std(ddof=1))
            axes.axhspan(mean - spread, mean + spread, color=PALETTE[0], alpha=0.12, lw=0)
            axes.axhline(mean, color=PALETTE[0], lw=1.4)
            caption += f" ± {spread:.2g}"
        axes.plot(range(len(table)), table[column], "o", color=PALETTE[1], ms=7)
        axes.set_xticks(range(len(table)), [plain(fold, 12) for fold in table.index])
        axes.set(title=f"{plain(str(column).replace('_', ' '), 24)}\n{caption}", xlabel="fold")
        axes.margins(0.2, 0.25)
    several = "line and band: mean and standard deviation over the folds"
    return finish(figure, title, join_notes(several if len(table) > 1 else "one fold, so no spread", note))


@house
def picture_rows(
    pictures: ArrayLike, columns: Sequence[str] = (), captions: Sequence[str] = (), together: int = 0, title: str = "",
    note: str = "", below: Sequence[Sequence[str]] = (),
) -> Figure:  # fmt: skip
    """Pictures (R, C, H, W, 3) uint8: one row per place, one column per view, captions on the left.

    A line is drawn after every `together` rows (0: none). below: texts (R, C) under the pictures, up to three lines
    each; a picture without one is left out.
    """
    grid = np.asarray(pictures)
    rows, width = grid.shape[:2]
    gap, text, head = 0.05, 2.0 if any(captions) else 0.0, 0.3 * bool(columns) + 0.35 * bool(title) + 0.02
    lines_below = max((words.count("\n") + 1 for row in below for words in row), default=0)
    side, foot = min(1.9, (9.0 - text) / width - gap), 0.1 + 0.16 * lines_below if below else 0.0
    group = np.arange(rows) // (together or rows)
    size = text + width * (side + gap), head + rows * (side + gap + foot) + 0.2 * int(group[-1]) + 0.25 * bool(note)
    figure = Figure(figsize=size, dpi=110)
    for r, c in np.ndindex(rows, width):
        left, bottom = text + c * (side + gap), size[1] - head - r * (side + gap + foot) - 0.2 * group[r] - side
        if below and not below[r][c]:
            continue
        axes = figure.add_axes((left / size[0], bottom / size[1], side / size[0], side / size[1]))
        axes.imshow(grid[r, c], aspect="auto")
        axes.set_axis_off()
        if below:
            lines = [plain(line, int(14 * side)) for line in below[r][c].split("\n")]
            figure.text(left / size[0], (bottom - 0.04) / size[1], "\n".join(lines), va="top", fontsize=8.5)
        if r == 0 and columns:
            axes.set_title(plain(columns[c], 24), loc="center", fontsize=10, fontweight="normal", pad=5)
        if c == 0 and r < len(captions):
            caption = "\n".join(wrap(plain(line, 52), 26) for line in captions[r].split("\n"))
            figure.text(0, (bottom + side / 2) / size[1], caption, va="center", fontsize=9, linespacing=1.4)
        if c == 0 and r and group[r] != group[r - 1]:
            height = (bottom + side + 0.125) / size[1]
            figure.add_artist(Line2D([0, 1], [height, height], color=INK, lw=1.5))
    if title:
        figure.text(0, 1 - 0.12 / size[1], plain(title, int(8 * size[0])), va="top", fontsize=12, fontweight="bold")
    if note:
        figure.text(1, 0.02 / size[1], plain(note, int(14 * size[0])), ha="right", fontsize=8, color=GREY)
    return figure


def neighbour_rows(
    pictures: ArrayLike, states: ArrayLike, km: ArrayLike, first: str = "the place", view: str = "", title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """One row for each of Q places and the K most similar ones, each picture with its state and distance below.

    pictures (Q, 1 + K, H, W, 3) uint8, states (Q, 1 + K), km (Q, K) from the place to the others. view: which view of
    each place is shown.
    """
    below = [
        [plain(own), *(f"{plain(state)}\n{d:,.0f} km away" for state, d in zip(others, distances, strict=True))]
        for (own, *others), distances in zip(np.asarray(states).tolist(), np.asarray(km, float), strict=True)
    ]
    columns = [first, "most similar", "second", "third", "fourth", *(f"{k}th" for k in range(5, len(below[0])))]
    shown = f"the {plain(view, 24)} view of each place" if view else ""
    return picture_rows(pictures, columns[: len(below[0])], title=title, note=join_notes(shown, note), below=below)


def picture_wall(
    pictures: ArrayLike, captions: Sequence[str], columns: int = 0, title: str = "", note: str = ""
) -> Figure:
    """Pictures (P, H, W, 3) uint8 in rows of `columns` (0: 6 to 8), each with its caption of up to three lines below.

    Of places with several views (P, V, H, W, 3), those of one place are drawn as one square.
    """
    shots = np.asarray(pictures)
    if shots.ndim == 5:
        side = int(np.ceil(np.sqrt(shots.shape[1])))
        shots = np.pad(shots, ((0, 0), (0, side * side - shots.shape[1]), (0, 0), (0, 0), (0, 0)))
        shots = shots.reshape(len(shots), side, side, *shots.shape[2:]).swapaxes(2, 3)  # (P, row, H, column, W, 3)
        shots = shots.reshape(len(shots), side * shots.shape[2], -1, 3)
    columns = columns or min((8, 7, 6), key=lambda n: -len(shots) % n)
    rest = -len(shots) % columns
    padded = np.concatenate([shots, np.zeros((rest, *shots.shape[1:]), np.uint8)]).reshape(
        -1, columns, *shots.shape[1:]
    )
    texts = np.array([*map(str, captions), *[""] * rest], dtype=object).reshape(-1, columns).tolist()
    return picture_rows(padded, title=title, note=note, below=texts)
