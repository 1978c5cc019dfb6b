"""Figures that compare embeddings: similarity against distance, distributions of similarity, and dimensions used.

Every function takes {"frozen": ..., "trained": ...}, as made by `similarity`, and returns a Figure; an embedding has
the same colour in all of them. As in `figures`, `note` is printed small below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.figures.style import GREY, PALETTE, Figure, finish, house, join_notes, new, plain, plain_numbers
from kitlib.models.retrieval import similarity
from kitlib.models.retrieval.similarity import Pairs, Summary

FLOOR_KM = 0.5  # shorter distances are drawn here: a logarithmic axis has no 0
FEW = 30  # pairs; bins with fewer are not drawn
COLUMNS = 3  # panels in a row


@house
def against_distance(
    pairs: Mapping[str, Pairs], summaries: Mapping[str, Summary], most: int = 3000, title: str = "", note: str = ""
) -> Figure:
    """Cosine similarity against distance, a panel an embedding: dots for pairs, a line for the mean, a band for the
    middle half.

    At most `most` pairs are drawn in a panel, about as many from each bin of distance; mean and band are of all. Raises
    KitError for an embedding without a summary.
    """
    if missing := sorted(set(pairs) - set(summaries)):
        raise KitError(f"summaries: expected one of each embedding; got none of {', '.join(missing)}")
    figure, panels = _panels(pairs, 3.3)
    drawn = 0
    for (name, sample), axes, colour in zip(pairs.items(), panels, PALETTE * len(pairs), strict=False):
        rows = _thinned(sample.km, most)
        drawn = max(drawn, len(rows))
        axes.scatter(np.maximum(sample.km[rows], FLOOR_KM), sample.cosine[rows], s=4, c=GREY, alpha=0.35, lw=0,
                     rasterized=True)  # fmt: skip
        table, km = _bins(similarity.curve(sample))
        axes.fill_between(km, table["q25"], table["q75"], color=colour, alpha=0.3, lw=0)
        axes.plot(km, table["mean"], color=colour)
        summary = summaries[name]
        axes.set_title(f"{plain(name, 30)}\nSpearman {summary.spearman:+.2f}, violations {summary.violations:.0%}")
        axes.set_xlabel("distance (km)")
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("cosine similarity")
    km = np.maximum([(sample.km.min(), sample.km.max()) for sample in pairs.values()], FLOOR_KM)
    panels[0].set(xscale="log", xlim=(0.85 * km.min(), 1.15 * km.max()))
    plain_numbers(panels[0].xaxis)
    most_pairs = max(len(sample.km) for sample in pairs.values())
    dots = f"dots: {drawn:,} of {most_pairs:,} pairs" if drawn < most_pairs else f"dots: all {drawn:,} pairs"
    line = f"line: mean, band: middle half of the bins with {FEW} pairs and more"
    return finish(figure, title, join_notes(line, dots, note))


@house
def distributions(
    pairs: Mapping[str, Pairs], near_km: Sequence[float] = (100.0, 50.0), bins: int = 40, title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """Densities of the similarity of all pairs, and of those within each of near_km, a panel an embedding.

    The farther near pairs lie to the right of all, the better the embedding encodes location.
    """
    figure, panels = _panels(pairs, 3.0, sharey=False)
    low = min(float(sample.cosine.min()) for sample in pairs.values())
    high = max(float(sample.cosine.max()) for sample in pairs.values())
    edges = np.linspace(low, max(high, low + 1e-3), bins + 1)
    for (name, sample), axes, colour in zip(pairs.items(), panels, PALETTE * len(pairs), strict=False):
        _density(axes, sample, sample.km >= 0, edges, "any two", color=GREY, alpha=0.35, lw=0, fill=True)
        for i, km in enumerate(near_km):
            line = ("-", "--", ":", "-.")[(len(near_km) - 1 - i) % 4]
            _density(axes, sample, sample.km <= km, edges, f"within {km:g} km", color=colour, lw=1.5, ls=line)
        axes.set(title=plain(name, 30), xlabel="cosine similarity", yticks=[])
        axes.legend(title="median", alignment="left", loc="upper left", borderaxespad=0)
        axes.set_ylim(0, (1.3 + 0.11 * len(near_km)) * axes.get_ylim()[1])  # room for the legend
    panels[0].set_ylabel("density of pairs")
    return finish(figure, title, note)


@house
def spectra(variances: Mapping[str, ArrayLike], title: str = "", note: str = "") -> Figure:
    """Cumulative share of the variance over components, a line an embedding, with its effective dimension as a dot.

    The variances (K,) are those of `similarity.spectrum`; the effective dimension is their participation ratio.
    """
    _check(variances)
    figure = new(3.6)
    axes = figure.subplots()
    longest = 1
    for (name, values), colour in zip(variances.items(), PALETTE * len(variances), strict=False):
        values = np.asarray(values, float)
        if not values.any():
            axes.plot([], [], color=colour, label=f"{plain(name, 30)}: nothing varies")
            continue
        component, share = np.arange(1, len(values) + 1), np.cumsum(values) / values.sum()
        used = similarity.participation(values)
        longest = max(longest, len(values))
        axes.plot(component, share, color=colour, label=f"{plain(name, 30)}: effective dimension {used:.3g}")
        at = float(np.interp(used, component, share))
        axes.vlines(used, 0, at, color=colour, lw=1, ls="--")
        axes.plot(used, at, "o", color=colour, ms=7, mec="white", zorder=3)
    axes.set(xscale="log", xlim=(0.95, 1.05 * longest), ylim=(0, 1.03), xlabel="principal components, largest first")
    axes.set_ylabel("share of the variance")
    plain_numbers(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right", frameon=True, edgecolor="none", framealpha=0.9)
    return finish(figure, title, note)


def _check(embeddings: Mapping[str, Any]) -> None:
    if not embeddings:
        raise KitError("embeddings: expected at least one by name; got none")


def _panels(embeddings: Mapping[str, Any], height: float, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A panel for each embedding, with shared axes and labels on each."""
    _check(embeddings)
    columns = min(len(embeddings), COLUMNS)
    rows = -(-len(embeddings) // columns)
    figure = new(0.4 + height * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey).ravel()
    for axes in grid:
        axes.tick_params(labelbottom=True)
    for axes in grid[len(embeddings) :]:
        axes.remove()
    return figure, list(grid[: len(embeddings)])


def _bins(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The bins of a curve with enough pairs, all where none has, and their positions on the axis."""
    enough = table["count"] >= FEW
    table = table[enough] if enough.any() else table
    return table, np.maximum(table["km"].to_numpy(), FLOOR_KM)


def _thinned(km: np.ndarray, most: int) -> np.ndarray:
    """Rows of at most `most` pairs in random order, about as many from each bin of distance."""
    order = np.random.default_rng(0).permutation(len(km))
    bin_of = np.searchsorted(similarity.EDGES_KM, km[order])
    by_bin = np.argsort(bin_of, kind="stable")
    count = np.bincount(bin_of)
    turn = np.empty(len(km), int)
    turn[by_bin] = np.arange(len(km)) - np.repeat(np.cumsum(count) - count, count)
    return np.random.default_rng(1).permutation(order[np.argsort(turn, kind="stable")[:most]])


def _density(axes: Axes, pairs: Pairs, mask: np.ndarray, edges: np.ndarray, label: str, **style) -> None:
    """Draw the density of the similarity of some pairs, with the median in the legend."""
    cosine, weight = pairs.cosine[mask].astype(float), pairs.weight[mask]
    if not len(cosine):
        axes.stairs([], [0], label=f"{label}: no pair", **style)
        return
    density, _ = np.histogram(cosine, edges, weights=weight, density=True)
    axes.stairs(density, edges, label=f"{label}: {similarity.quantiles(cosine, weight, 0.5)[0]:.2f}", **style)
