"""Figures of a vision-language model's training: reward and distance over steps, and one place's guesses.

Every figure takes a `note`, printed small below. `follow` shows one during the training.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.figures.atlas import Map
from kitlib.figures.style import INK, PALETTE, Figure, finish, house, join_notes, new, plain, plain_numbers
from kitlib.models.vlm.conversation import rollouts

COLOURS = {"train": PALETTE[0], "eval": PALETTE[1]}
SMOOTH_FROM = 60  # steps; above, a running mean is drawn over the raw curve


@house
def learning(
    frame: pd.DataFrame, sample_id: str = "", maps: int = 4, middle: ArrayLike | None = None, title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """Reward and distance over steps, and maps of one place's guesses around the truth at a few steps.

    frame: from `rollouts.read`. sample_id: the place; by default the one with the most steps. middle: the guess of a
    reply without a point, as in `rollouts.summary`. All maps have the same extent, which shows guesses come closer.
    Raises KitError for a frame without rollouts, or without that place.
    """
    if frame.empty:
        raise KitError("learning: there are no rollouts yet to draw")
    summary = rollouts.summary(frame, middle)
    visits = place_steps(frame, sample_id, maps)
    figure = new(5.4)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    upper, lower = halves
    reward, km = upper.subplots(1, 2)
    for phase, table in summary.groupby("phase"):
        _curve(reward, table["step"], table["reward"], str(phase))
        _curve(km, table["step"], table["km"], str(phase))
    first_km, last_km = summary["tau_km"].iloc[[0, -1]]
    tau = f"{first_km:,.4g}" + (f" to {last_km:,.4g}" if last_km != first_km else "")
    reward.set_title(f"mean reward (tau {tau} km)")
    km.set_title("mean distance (km)")
    _log_km(km)
    for axes in (reward, km):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if summary["phase"].nunique() > 1:
        reward.legend(loc="best")
    everything = np.array([point for rows in visits.values() for point in rows["point"] if point is not None], float)
    truth = np.array([next(iter(visits.values()))["truth"].iloc[0]])
    for axes, (step, rows) in zip(lower.subplots(1, len(visits), squeeze=False)[0], visits.items(), strict=True):
        _small_map(axes, rows, everything.reshape(-1, 2), truth)
        axes.set_title(_caption(step, rows), fontweight="normal", fontsize=9.5)
    first = next(iter(visits.values()))
    lower.suptitle(f"guesses for {plain(first['sample_id'].iloc[0])} ({first['phase'].iloc[0]}), around the truth",
                   x=0.01, ha="left", fontsize=10.5, fontweight="bold")  # fmt: skip
    missing = int(frame["km"].isna().sum())
    fallbacks = f"{missing:,} of {len(frame):,} rollouts name no place and count as a guess in the middle"
    return finish(figure, title, join_notes(fallbacks if missing else "", note))


@house
def rewards_by_distance(tau_km: Mapping[str, float], title: str = "", note: str = "") -> Figure:
    """The reward of a distance, exp(-km / tau), with a line for each named tau in km."""
    figure = new(3.2)
    axes, km = figure.subplots(), np.geomspace(1, 20_000, 200)
    for name, tau in tau_km.items():
        axes.plot(km, np.exp(-km / tau), label=f"{plain(name, 30)}: tau {tau:,.4g} km")
    axes.set(xscale="log", xlabel="distance (km)", ylabel="reward", ylim=(-0.02, 1.02))
    plain_numbers(axes.xaxis)
    axes.legend()
    return finish(figure, title, note)


def place_steps(frame: pd.DataFrame, sample_id: str = "", most: int = 4) -> dict[int, pd.DataFrame]:
    """The rollouts of one place and phase by step, at up to `most` steps from its first to its last.

    Without a sample_id it is the place and phase with the most steps, then the most rollouts. Raises KitError for a
    place without rollouts.
    """
    mine = frame[frame["sample_id"] == sample_id] if sample_id else frame
    if mine.empty:
        raise KitError(f"there are no rollouts of {sample_id or 'any place'!r} among {len(frame):,}")
    counts = mine.groupby(["phase", "sample_id"], sort=False).agg(steps=("step", "nunique"), rollouts=("step", "size"))
    phase, place = counts.sort_values(["steps", "rollouts"], kind="stable").index[-1]
    rows = mine[(mine["phase"] == phase) & (mine["sample_id"] == place)]
    steps = np.unique(rows["step"])
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]
    return {int(step): rows[rows["step"] == step] for step in chosen}


def _curve(axes: Axes, step: pd.Series, value: pd.Series, phase: str) -> None:
    colour, many = COLOURS[phase], phase == "train" and len(step) > SMOOTH_FROM
    if many:
        axes.plot(step, value, color=colour, alpha=0.3, lw=0.8)
        value = value.rolling(-(-len(step) // 50), min_periods=1).mean()
    label = {"train": "training", "eval": "evaluation"}[phase] + (", running mean" if many else "")
    axes.plot(step, value, color=colour, label=label, marker=None if many else "o", ms=4)


def _log_km(axes: Axes) -> None:
    low, high = axes.dataLim.intervaly
    if low > 0 and high > 3 * low:
        axes.set_yscale("log")
    plain_numbers(axes.yaxis)


def _small_map(axes: Axes, rows: pd.DataFrame, everything: np.ndarray, truth: np.ndarray) -> None:
    canvas = Map(everything, truth, axes=axes)
    guesses = np.array([point for point in rows["point"] if point is not None], float).reshape(-1, 2)
    canvas.scatter(guesses, c=PALETTE[0], s=26, alpha=0.8, lw=0.6, edgecolor="white", zorder=3, rasterized=False)
    style = {"marker": "o", "facecolor": "none", "zorder": 4, "rasterized": False}
    canvas.scatter(truth, s=90, edgecolor="white", lw=3, **style)
    canvas.scatter(truth, s=90, edgecolor=INK, lw=1.6, **style)
    axes.set(xlabel="", ylabel="", xticklabels=[], yticklabels=[])
    axes.tick_params(length=0)


def _caption(step: int, rows: pd.DataFrame) -> str:
    km = rows["km"].dropna()
    half = f"half within {km.median():,.3g} km" if km.median() < 100 else f"half within {km.median():,.0f} km"
    silent = f", {rows['km'].isna().sum()} silent" if rows["km"].isna().any() else ""
    return f"step {step:,}\n" + (half + silent if len(km) else "no place named")


log = logging.getLogger(__name__)

SHARE = 0.1  # of the time, at most, for drawing


@contextmanager
def follow(run_name: str, every_s: float = 10.0, sample_id: str = "", note: str = "") -> Iterator[None]:
    """Show `learning` of a run's rollouts, redrawn after new steps and at the end.

    Outside a notebook nothing is shown. An error of the figure is logged and does not stop the training.
    """
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    folder = paths.run_dir(run_name) / "rollouts"
    if get_ipython() is None:
        yield
        return
    handle = display({"text/plain": "waiting for the first rollouts"}, raw=True, display_id=True)
    ended = threading.Event()

    def watch() -> None:
        drawn, pause = "", every_s
        while True:
            at_end = ended.wait(pause)
            began = time.monotonic()
            try:
                state = str([(file.name, file.stat().st_mtime_ns) for file in rollouts.step_files(folder)])
                if state not in (drawn, "[]"):
                    handle.update(learning(rollouts.read(folder), sample_id, note=note))
                    drawn = state
            except Exception as error:
                log.warning("the live figure could not be drawn: %s", error)
            if at_end:
                return
            pause = max(every_s, (time.monotonic() - began) / SHARE)

    # the context holds the cell of this output
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True, name="live figure")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
