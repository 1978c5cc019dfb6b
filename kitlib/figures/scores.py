"""Tables and figures of scores: error curves, confusion, calibration, and errors by state or by distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from kitlib import geo
from kitlib.evaluation import metrics
from kitlib.evaluation.metrics import Score
from kitlib.figures.charts import barh, geographic_order, heat
from kitlib.figures.style import GREY, INK, PALETTE, Figure, finish, house, join_notes, new, plain, plain_numbers

# The distances at which the field counts guesses as right (IM2GPS and everyone since).
LEVELS_KM = {1: "street", 25: "city", 200: "region", 750: "country", 2500: "continent"}


def score_table(scores: Mapping[str, Score]) -> pd.DataFrame:
    """A table of rounded scores, one row each, the best last."""
    table = pd.DataFrame({name: score.as_dict() for name, score in scores.items()}).T.sort_values("final")
    table = table.round({"final": 4, "state": 4, "gps": 4, "mean_km": 0, "median_km": 0})
    table = table.astype(dict.fromkeys(["mean_km", "median_km", "n"], int))
    table[["top1", "top5"]] = table[["top1", "top5"]].map("{:.1%}".format)
    words = {"gps": "GPS", "top1": "top-1", "top5": "top-5", "mean_km": "mean km", "median_km": "median km"}
    return table.rename(columns=words | {"n": "places"})


def accuracy_table(km: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """A table of the rounded `metrics.report` of errors (N,) in km, one row each, the highest Geoscore last."""
    reports = {name: metrics.report(errors) for name, errors in km.items()}
    lines = {
        name: {"Geoscore": round(report.geoscore), "mean km": _three(report.mean_km)}
        | {"median km": _three(report.median_km)}
        | {f"{radius:g} km": f"{share:.1%}" for radius, share in zip(report.radii_km, report.within, strict=True)}
        for name, report in reports.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index").sort_values("Geoscore", kind="stable")


def _three(km: float) -> str:
    """Format kilometres with three significant digits."""
    return f"{km:,.0f}" if km >= 100 else f"{km:.3g}"


@house
def scores(
    table: pd.Series, chance: float | None = None, baselines: Sequence[str] = (), label: str = "competition score",
    title: str = "", note: str = "",
) -> Figure:  # fmt: skip
    """Bars of one score per member (the index), baselines in grey, chance as a dashed line."""
    figure = new(1.2 + 0.36 * len(table))
    axes = figure.subplots()
    colours = [GREY if name in baselines else PALETTE[0] for name in table.index]
    barh(axes, [str(name) for name in table.index], table.to_numpy(), label, color=colours, height=0.66)
    for i, value in enumerate(table):
        axes.annotate(f"{value:.4f}", (value, i), (4, 0), textcoords="offset points", va="center", fontsize=9)
    if chance is not None:
        axes.axvline(chance, color=PALETTE[1], ls="--", lw=1.4)
        axes.annotate(f"chance {chance:.3f}", (chance, -0.6), (0, 3), textcoords="offset points", ha="center",
                      color=PALETTE[1], fontsize=9, annotation_clip=False)  # fmt: skip
    axes.set_xlim(0, 1.12 * max(float(table.max()), chance or 0))
    return finish(figure, title, note)


@house
def weights_over_folds(
    names: Sequence[str], weights: ArrayLike, overall: ArrayLike, title: str = "", note: str = ""
) -> Figure:
    """The weight of each member (M,) in the blend, a bar, and a dot for each fit without one of the folds (F, M)."""
    each, whole = np.asarray(weights, float), np.asarray(overall, float)
    order = np.argsort(-whole, kind="stable")
    figure = new(1.3 + 0.42 * len(order))
    axes = figure.subplots()
    labels = [names[i] for i in order]
    barh(axes, labels, whole[order], "weight in the blend", color=PALETTE[0], alpha=0.25, height=0.62)
    spread = np.linspace(-0.2, 0.2, len(each)) if len(each) > 1 else [0.0]
    for row, up in zip(each, spread, strict=True):  # dots of one fold at one height, as they may coincide
        axes.scatter(row[order], np.arange(len(order)) + up, s=26, c=PALETTE[1], zorder=3, lw=0)
    axes.set_xlim(-0.01, 1.08 * max(float(each.max()), float(whole.max())))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend = f"bar: fitted on all folds, dots: each of {len(each)} folds left out in turn"
    return finish(figure, title, join_notes(legend, note))


@house
def cumulative_error(km: Mapping[str, ArrayLike], title: str = "", note: str = "") -> Figure:
    """Share of places within a distance of the truth, one line per method {"name": (N,) km}, with the usual levels."""
    figure = new(4.0)
    axes = figure.subplots()
    for name, errors in km.items():
        ordered = np.sort(np.asarray(errors, float))
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(
            np.maximum(ordered, 0.1),
            share,
            where="post",
            label=f"{plain(name, 30)} (median {np.median(ordered):,.0f} km)",
        )
    for level, name in LEVELS_KM.items():
        axes.axvline(level, color=GREY, lw=0.8, ls=":")
        axes.annotate(f"{name}\n{level:,} km", (level, 1), (0, 4), xycoords=("data", "axes fraction"), ha="center",
                      textcoords="offset points", fontsize=8.5, color=GREY)  # fmt: skip
    first = np.asarray(next(iter(km.values())), float)
    for level in LEVELS_KM:
        share_within = float((first <= level).mean())
        axes.plot(level, share_within, "o", color=PALETTE[0], ms=5)
        below = share_within > 0.92  # or the number would stand in the names of the levels
        offset, side = ((7, -13), "left") if below else ((-6, 5), "right")
        axes.annotate(f"{share_within:.0%}", (level, share_within), offset, textcoords="offset points", ha=side,
                      color=PALETTE[0], fontsize=9)  # fmt: skip
    farthest = max(float(np.max(errors)) for errors in km.values())
    axes.set(
        xscale="log",
        xlim=(0.4, 12_000 if farthest < 12_000 else 20_100),
        ylim=(0, 1.02),
        xlabel="error of the guess (km)",
        ylabel="places within",
    )
    plain_numbers(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper left")
    return finish(figure, title, note)


@house
def by_gallery_size(table: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """Mean error and Geoscore by the size of the gallery, one line per selection; dashed the best possible ones.

    `table` is by `retrieval.analysis.by_gallery_size`. The gallery of all training places is one dark point.
    """
    figure = new(3.6)
    parts = {"mean_km": "mean error (km)", "geoscore": "Geoscore"}
    ways = [name for name in table["chosen"].unique() if name != "all"]
    for axes, (column, label) in zip(figure.subplots(1, 2), parts.items(), strict=True):
        whole = table[table["chosen"] == "all"]
        for name, colour in zip(ways, PALETTE * len(ways), strict=False):
            own = table[table["chosen"] == name]
            both = pd.concat([own, whole])
            axes.plot(both["size"], both[column], color=colour, label=plain(name, 30))
            axes.plot(both["size"], both[f"possible_{column}"], color=colour, ls="--", lw=1.2)
            axes.plot(own["size"], own[column], "o", color=colour, ms=5)
        axes.plot(whole["size"], whole[column], "o", color=INK, ms=6, label="all")
        axes.set(xscale="log", xlabel="entries in the gallery", ylabel=label, ylim=(0, None))
        axes.set_xticks(sorted(set(table["size"])), [f"{size:,}" for size in sorted(set(table["size"]))], fontsize=8)
        axes.minorticks_off()
    figure.axes[0].legend(title="chosen", alignment="left")
    return finish(figure, title, join_notes("dashed: a model that always finds the nearest entry", note))


def gallery_table(table: pd.DataFrame) -> pd.DataFrame:
    """A rounded table by `retrieval.analysis.by_gallery_size`: measured values beside the best possible ones."""
    columns: dict[str, tuple[str, int, type]] = {"geoscore": ("Geoscore", 0, int), "mean_km": ("mean km", 0, int)}
    columns["within_200_km"] = ("within 200 km", 2, float)
    indexed = table.set_index(["chosen", "size"])
    shown = {
        (who, label): indexed[prefix + name].round(digits).astype(kind)
        for who, prefix in {"measured": "", "possible": "possible_"}.items()
        for name, (label, digits, kind) in columns.items()
    }
    return pd.DataFrame(shown)


@house
def by_nearest(
    nearest_km: ArrayLike, correct: ArrayLike, error_km: ArrayLike, bins: int = 6, title: str = "", note: str = ""
) -> Figure:
    """Accuracy and median error against the distance (N,) to the nearest training place, in bins of equal counts."""
    near, right, error = (np.asarray(a, float) for a in (nearest_km, correct, error_km))
    parts = [part for part in np.array_split(np.argsort(near, kind="stable"), min(bins, len(near))) if len(part)]
    labels = [" to\n".join(f"{km:,.1f}" if km < 10 else f"{km:,.0f}" for km in near[part[[0, -1]]]) for part in parts]
    figure = new(3.4)
    left, right_axes = figure.subplots(1, 2)
    shares = np.array([right[part].mean() for part in parts])
    size = np.array([len(part) for part in parts])
    half = np.sqrt(np.maximum(shares * (1 - shares), 0.25 / size) / size)
    left.bar(range(len(parts)), shares, color=PALETTE[0], width=0.7, yerr=half, ecolor=INK, capsize=3)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set(title="state right (± 1 standard error)", ylim=(0, None))
    right_axes.bar(range(len(parts)), [np.median(error[part]) for part in parts], color=PALETTE[1], width=0.7)
    right_axes.set(title="median error (km)")
    for axes in (left, right_axes):
        axes.set_xticks(range(len(parts)), labels, fontsize=8)
        axes.set(xlabel=f"km to the nearest training place ({size.min():,} places a bar)")
        axes.grid(axis="x", visible=False)
    return finish(figure, title, note)


@house
def state_errors(
    names: Sequence[str], accuracy: ArrayLike, median_km: ArrayLike, count: ArrayLike, title: str = "", note: str = ""
) -> Figure:
    """Share of right states and median error per state, the best first; lines are the means."""
    accuracy, median, count = np.asarray(accuracy, float), np.asarray(median_km, float), np.asarray(count)
    order = np.lexsort((median, -accuracy))
    labels = [f"{plain(names[i], 36)} ({count[i]:,})" for i in order]
    figure = new(1.1 + 0.2 * len(order))
    left, right = figure.subplots(1, 2, sharey=True)
    barh(left, labels, accuracy[order], "state right", color=PALETTE[0], height=0.7)
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.axvline(np.average(accuracy, weights=count), color=INK, lw=1, ls="--")
    barh(right, labels, median[order], "median error (km)", color=PALETTE[1], height=0.7)
    right.axvline(np.average(median, weights=count), color=INK, lw=1, ls="--")
    return finish(figure, title, note)


@house
def confusion(
    true: ArrayLike, guess: ArrayLike, names: Sequence[str], points: ArrayLike, title: str = "", note: str = ""
) -> Figure:
    """Share of each true state's places (rows) guessed as each state (columns), with neighbours side by side.

    true and guess (N,) are among the names (S,); points (S, 2) locate the states. Only states that occur are shown.
    """
    occurs = np.isin(names, np.unique(np.concatenate([true, guess])))
    shown, distance_km = np.asarray(names)[occurs], geo.distance_matrix_km(np.asarray(points)[occurs])
    counts = pd.crosstab(np.asarray(true), np.asarray(guess))
    table = counts.reindex(index=shown, columns=shown, fill_value=0).to_numpy()
    share = table / np.where(table.sum(1, keepdims=True), table.sum(1, keepdims=True), np.nan)
    order = geographic_order(distance_km)
    style = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1)}
    labels, label = shown[order].tolist(), "share of the true state's places"
    figure, axes = heat(share[np.ix_(order, order)], labels, label, **style)
    axes.set(xlabel="guessed state", ylabel="true state")
    return finish(figure, title, note)


@house
def calibration(
    probability: Mapping[str, ArrayLike], correct: ArrayLike, bins: int = 10, title: str = "", note: str = ""
) -> Figure:
    """Reliability diagram: share of right first guesses (N,) against their probability, with the counts.

    probability: {"whose": (N,)}, as before and after a temperature. The legend has their expected calibration error.
    """
    right = np.asarray(correct, float)
    figure = new(4.6, width=6.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    for k, (name, values) in enumerate(probability.items()):
        sure, colour = np.asarray(values, float), PALETTE[k % len(PALETTE)]
        bin_of = np.minimum((sure * bins).astype(int), bins - 1)
        count = np.bincount(bin_of, minlength=bins)
        share, mean = (np.bincount(bin_of, a, minlength=bins) / np.maximum(count, 1) for a in (right, sure))
        gap = float(np.sum(count * np.abs(share - mean)) / count.sum())
        some = count > 0
        half = np.sqrt(np.maximum(share * (1 - share), 0.25 / np.maximum(count, 1)) / np.maximum(count, 1))
        top.errorbar(mean[some], share[some], half[some], fmt="o-", color=colour, capsize=3, zorder=3,
                     label=f"{plain(name, 34)}: calibration error {gap:.3f}")  # fmt: skip
        wide = 0.9 / bins / len(probability)
        bottom.bar((np.arange(bins) + 0.05 + 0.9 * (k + 0.5) / len(probability)) / bins, count, wide, color=colour)
    top.set(ylabel="share right", xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    top.legend(loc="best")
    bottom.set(ylabel="places", xlabel="probability of the first guess")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis in (top.xaxis, top.yaxis, bottom.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return finish(figure, title, note)


@house
def confidence(
    probability: ArrayLike, km: ArrayLike, correct: ArrayLike, far_km: float = 750, title: str = "", note: str = ""
) -> Figure:
    """Error (N,) in km against the probability (N,) of the first guess, in four quarters with their counts.

    A place is sure if its probability is above the median, and far from `far_km`. correct (N,): whether the state is.
    """
    sure, error, right = np.asarray(probability, float), np.maximum(km, 1.0), np.asarray(correct, bool)
    middle, top = float(np.median(sure)), float(error.max())
    figure = new(4.6)
    axes = figure.subplots()
    axes.axvline(middle, color=INK, lw=1, ls="--")
    axes.axhline(far_km, color=INK, lw=1, ls="--")
    size = float(np.clip(9_000 / len(sure), 2, 22))
    for mask, colour, name in ((~right, PALETTE[1], "wrong"), (right, PALETTE[0], "right")):
        label = f"state {name} ({mask.sum():,})"
        axes.scatter(sure[mask], error[mask], s=size, color=colour, alpha=0.6, lw=0, label=label, rasterized=True)
    axes.set(xlabel="probability of the first state", ylabel="error (km)", yscale="log")
    axes.set(xlim=(0, 1.01 * sure.max()), ylim=(0.4 * error.min(), max(2.5 * top, 2.5 * far_km)))
    for far, above in ((True, "far"), (False, "near")):
        for half, word, side in ((sure <= middle, "unsure", "left"), (sure > middle, "sure", "right")):
            count = int((half & ((error >= far_km) == far)).sum())
            x, y = (0.01 if side == "left" else 0.99), (0.98 if far else 0.02)
            axes.text(x, y, f"{word}, {above}: {count:,} ({count / len(sure):.0%})", transform=axes.transAxes, ha=side,
                      va="top" if far else "bottom", fontweight="bold", zorder=5)  # fmt: skip
    plain_numbers(axes.yaxis)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower left", ncols=2, handletextpad=0.2)
    return finish(figure, title, join_notes(f"lines: the median probability, {far_km:,.0f} km", note))
