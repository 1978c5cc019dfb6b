"""A map of many places in a notebook, on which a click chooses one: `picker.js` draws, this class holds the numbers.

picker = Picker.of(points, labels)                  # (N, 2) [lat, lon], and N texts to show under the mouse
picker.paint(codes, ["right", "wrong"], ["#0369a1", "#c2410c"])
picker.observe(lambda change: ..., "chosen")        # the row that was clicked
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike

from kitlib.figures import atlas
from kitlib.figures.style import plain
from kitlib.geo import outlines


class Picker(anywidget.AnyWidget):
    """N places as arrays of bytes, so that 66,000 take a megabyte; `chosen` is the row of one, -1 for none."""

    _esm = Path(__file__).parent / "picker.js"
    xy = traitlets.Bytes().tag(sync=True)  # float32 (N, 2) on the map
    outlines = traitlets.Bytes().tag(sync=True)  # float32 (M, 2), NaN between lines
    ids = traitlets.Unicode().tag(sync=True)  # a line each
    shade = traitlets.Bytes().tag(sync=True)  # uint8 (N,), numbers of colours
    visible = traitlets.Bytes().tag(sync=True)  # uint8 (N,)
    palette = traitlets.List(traitlets.Unicode()).tag(sync=True)
    legend = traitlets.List(traitlets.Unicode()).tag(sync=True)
    stretch = traitlets.Float(1.0).tag(sync=True)  # of the map's height
    chosen = traitlets.Int(-1).tag(sync=True)

    @classmethod
    def of(cls, points: ArrayLike, labels: Sequence[str]) -> Picker:
        """A map of places (N, 2) with a label (N,) each, all visible and of one colour."""
        points = np.asarray(points, float)
        american = atlas.is_united_states(points)
        project = atlas.united_states if american else atlas.PlateCarree.around(points)
        if american:
            lines = [ring for rings in atlas.state_rings().values() for ring in rings]
        else:
            lines = [np.array(part.exterior.coords)[:, ::-1] for part in outlines.land_shape().geoms]
        stretch = 1.0 if american else float(1 / max(np.cos(np.radians(points[:, 0].mean())), 0.3))
        n = len(points)
        return cls(
            xy=project(points).astype(np.float32).tobytes(),
            outlines=np.concatenate([_cut(project(line), np.inf if american else 180.0) for line in lines])
            .astype(np.float32)
            .tobytes(),
            ids="\n".join(plain(label) for label in labels),
            stretch=stretch,
            shade=bytes(n),
            visible=b"\1" * n,
            palette=["#0369a1"],
            legend=["places"],
        )

    def paint(self, codes: ArrayLike, legend: Sequence[str], palette: Sequence[str]) -> None:
        """Colour the places by `codes` (N,), numbers of `palette`, which `legend` explains."""
        with self.hold_sync():
            self.shade = np.asarray(codes, np.uint8).tobytes()
            self.legend, self.palette = [plain(text) for text in legend], list(palette)

    def show_only(self, mask: ArrayLike) -> None:
        """Show the places in a mask (N,)."""
        self.visible = np.asarray(mask, np.uint8).tobytes()


def _cut(line: np.ndarray, widest: float) -> np.ndarray:
    """A line (M, 2) on the map, cut at steps over `widest`, which lead from one side to the other; NaN behind it."""
    jumps = np.flatnonzero(np.abs(np.diff(line[:, 0])) > widest) + 1
    return np.concatenate([np.insert(line, jumps, np.nan, axis=0), [[np.nan, np.nan]]])
