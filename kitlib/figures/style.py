"""The look of all figures: colours, fonts, sizes, notes, saving, and text of data as the text that it is."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from cycler import cycler
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from kitlib.core import storage

INK, GREY, LIGHT = "#25313b", "#6f7d88", "#dfe4e8"
SEA, ABROAD, LAND, LAND_IN_USE = "#e9f1f6", "#f6f5f1", "#eceae4", "#dfddd5"  # of maps; the last: states with points
# Okabe and Ito's colours, distinct for every common colour vision; the weak yellow is last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#b8a900")

HOUSE: Any = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LIGHT, "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE), "lines.linewidth": 2.0, "image.cmap": "viridis",
    "text.parse_math": False, "text.usetex": False,  # a state may be called $x$
}  # fmt: skip
# Control characters, separators of lines, marks that turn the direction of what follows, halves of characters.
UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBERS = "{x:,.7g}"  # of ticks: 20,000 and 0.5, no powers of ten
house = matplotlib.rc_context(HOUSE)  # a decorator that restores the caller's settings


class Figure(matplotlib.figure.Figure):
    """A figure outside pyplot, which a notebook shows once and does not keep."""

    @house
    def draw(self, renderer: Any) -> None:
        """Draw in this style, as the texts of ticks are made only now."""
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def new(height: float, width: float = 9.0) -> Figure:
    """Make an empty figure, in inches; the default width fills a notebook's column."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def finish(figure: Figure, title: str = "", note: str = "") -> Figure:
    """Add the title above and the small note below; return the figure."""
    width = figure.get_figwidth()
    if title:
        figure.suptitle(wrap(title, 8 * width), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    if note:
        figure.supxlabel(wrap(note, 14 * width), x=0.99, ha="right", fontsize=8, color=GREY)
    return figure


def plain(text: object, most: int = 48) -> str:
    """A text of the data as one line of at most `most` characters, the middle of a longer one left out.

    Characters that would break the line or turn the direction of their neighbours become blanks.

    >>> plain("New\\tYork"), plain("a" * 20 + "b" * 20, 12)
    ('New York', 'aaaaaaa…bbbb')
    """
    line = " ".join(UNPRINTED.sub(" ", str(text)).split())
    if len(line) > most:
        tail = most // 3
        line = f"{line[: most - tail - 1]}…{line[-tail:]}"
    return f"\u200b{line}" if line.startswith("_") else line  # legends leave out what begins with an underscore


def wrap(text: str, width: float) -> str:
    """A text with lines of at most `width` characters, as `plain` changes them."""
    lines = [plain(line, 1000) for line in text.split("\n")]
    return "\n".join(textwrap.fill(line, int(width), break_on_hyphens=False) for line in lines)


def legend_columns(texts: Iterable[str]) -> int:
    """The number of columns, at most 5, in which a legend of these texts and their counts fits the default width."""
    return max(1, min(5, 110 // (max(map(len, texts)) + 12)))


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
