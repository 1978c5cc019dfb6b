"""The look of all figures: colours, fonts, sizes, notes, saving."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from cycler import cycler
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from kitlib.core import storage

INK, GREY, LIGHT, LAND = "#25313b", "#6f7d88", "#dfe4e8", "#eef1f3"
# Okabe and Ito's colours, distinct for every common colour vision; the weak yellow is last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#b8a900")

HOUSE: Any = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LIGHT, "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE), "lines.linewidth": 2.0, "image.cmap": "viridis",
}  # fmt: skip
NUMBERS = "{x:,.7g}"  # of ticks: 20,000 and 0.5, no powers of ten
house = matplotlib.rc_context(HOUSE)  # a decorator that restores the caller's settings


class Figure(matplotlib.figure.Figure):
    """A figure outside pyplot, which a notebook shows once and does not keep."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def new(height: float, width: float = 9.0) -> Figure:
    """Make an empty figure, in inches; the default width fills a notebook's column."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def finish(figure: Figure, title: str = "", note: str = "") -> Figure:
    """Add the title above and the small note below; return the figure."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    if note:
        figure.supxlabel(note, x=0.99, ha="right", fontsize=8, color=GREY)
    return figure


def plain_numbers(axis: Axis) -> None:
    """Format ticks as plain numbers; a logarithmic axis of few powers of ten also gets ticks at 2 and 5."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(NUMBERS)


def join_notes(*notes: str) -> str:
    """Join notes, without empty ones.

    >>> join_notes("", "20 of 30 drawn", "drawn sample")
    '20 of 30 drawn · drawn sample'
    """
    return " · ".join(note for note in notes if note)


def save(figure: Figure, path: str | Path) -> Figure:
    """Write a figure in the format of the suffix; return it, so that a cell can save and show it at once."""
    with storage.atomic_write(path) as beside:
        figure.savefig(beside, dpi=150, bbox_inches="tight", facecolor="white")
    return figure
