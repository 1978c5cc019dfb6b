"""What the tests of figures share: eight cities, what a figure says, and whether its words lie on each other."""

from __future__ import annotations

import numpy as np
from matplotlib.text import Text

from kitlib import geo

CITIES = {
    "Alaska": (61.2, -149.9), "California": (34.0, -118.2), "Florida": (25.8, -80.2), "Hawaii": (19.6, -155.5),
    "Kansas": (37.7, -97.3), "Maine": (43.7, -70.3), "Texas": (29.8, -95.4), "Washington": (47.6, -122.3),
}  # fmt: skip
NAMES = list(CITIES)
POINTS = np.array(list(CITIES.values()))
DISTANCE = geo.distance_matrix_km(POINTS)
NOTE = "drawn sample, not photographs"


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def png(figure) -> bytes:
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 4000
    return picture


def overlapping_texts(figure) -> list[str]:
    """Pairs of words of a drawn figure that lie on each other: titles, legends, notes, labels, but for ticks."""
    figure.draw_without_rendering()
    ticks = {t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    shown = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t not in ticks]
    boxes = [(t.get_text(), t.get_window_extent().padded(-2)) for t in shown]
    return [f"{a!r} on {b!r}" for i, (a, p) in enumerate(boxes) for b, q in boxes[:i] if p.overlaps(q)]
