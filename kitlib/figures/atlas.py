"""The base map: the United States with insets of Alaska and Hawaii, or land with a grid of degrees elsewhere.

Points are [lat, lon] in degrees. The frame encloses all given points and the states that contain them; an inset appears
if a point lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Polygon
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike

from kitlib.figures.style import ABROAD, LAND, LAND_IN_USE, NUMBERS, SEA, Figure, finish, new
from kitlib.geo import EARTH_RADIUS_KM, outlines

WHOLE_KM = 1500.0  # a map wider than this shows all contiguous states, a smaller one those with points
COARSE_DEG = 0.5  # land this near to a state may be the coarse outline of the state itself
COAST_DEG = 3.0  # a map of the world narrower than this shows no coasts, as the coarse ones would be wrong


@dataclass(frozen=True)
class Albers:
    """Albers' equal-area conic projection of the sphere in km, drawn at `scale` around `at` (Snyder 1987, p. 100)."""

    parallels: tuple[float, float]
    origin: tuple[float, float]  # lat, lon
    scale: float = 1.0
    at: tuple[float, float] = (0.0, 0.0)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Project [lat, lon] (..., 2) to map coordinates (..., 2), x to the east and y to the north."""
        first, second, lat0 = np.sin(np.radians((*self.parallels, self.origin[0])))
        n = (first + second) / 2
        lat, lon = np.radians(points[..., 0]), points[..., 1]
        angle = n * np.radians((lon - self.origin[1] + 180) % 360 - 180)
        rho, rho0 = (np.sqrt(1 - first**2 + 2 * n * (first - s)) / n for s in (np.sin(lat), lat0))
        xy = np.stack([rho * np.sin(angle), rho0 - rho * np.cos(angle)], -1)
        return xy * EARTH_RADIUS_KM * self.scale + np.array(self.at)


CONTIGUOUS = Albers((29.5, 45.5), (37.5, -96.0))
ALASKA = Albers((55.0, 65.0), (62.0, -154.0), scale=0.34, at=(-1860.0, -1060.0))
HAWAII = Albers((8.0, 18.0), (20.5, -157.5), at=(-850.0, -1240.0))


def inset_of(points: np.ndarray) -> np.ndarray:
    """The piece of the United States map for each point (..., 2): 0 contiguous, 1 Alaska, 2 Hawaii."""
    lat, lon = points[..., 0], points[..., 1]
    alaska = (lat > 50) & ((lon < -129.5) | (lon > 165))
    return np.where(alaska, 1, np.where((lat < 30) & (lon < -145), 2, 0))


def united_states(points: np.ndarray) -> np.ndarray:
    """Project [lat, lon] (..., 2) to the composite map (..., 2) in km, with Alaska at a third of its size."""
    piece = inset_of(points)[..., None]
    return np.where(piece == 1, ALASKA(points), np.where(piece == 2, HAWAII(points), CONTIGUOUS(points)))


@dataclass(frozen=True)
class PlateCarree:
    """The map of plain longitude and latitude, cut opposite to the meridian in its `middle`."""

    middle: float = 0.0

    @classmethod
    def around(cls, points: np.ndarray) -> PlateCarree:
        """The map for points (N, 2): the usual one, unless they lie on both sides of the date line, as in Fiji."""
        lon = np.sort(points[:, 1])
        gaps = np.diff(lon)
        if not len(gaps) or gaps.max() <= 270:
            return cls()
        before, after = lon[gaps.argmax()], lon[gaps.argmax() + 1]
        return cls((before + after) / 2 + (180 if before + after <= 0 else -180))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Project [lat, lon] (..., 2) to [lon, lat], the longitude within 180 degrees of the middle."""
        turns = np.round((points[..., 1] - self.middle) / 360)
        return np.stack([points[..., 1] - 360 * turns, points[..., 0]], -1)


def is_united_states(points: np.ndarray) -> bool:
    """Whether all points (N, 2) lie in or near the United States, which the composite map shows."""
    lat, lon = points[:, 0], points[:, 1]
    return bool(len(points) and np.all((lat > 15) & (lat < 73) & ((lon < -60) | (lon > 165))))


@lru_cache(maxsize=1)
def state_rings() -> dict[str, list[np.ndarray]]:
    """The rings of every state as [lat, lon] (M, 2).

    Territories and far islands are left out, as they would shrink the rest.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    for name, shape in outlines.state_shapes().items():
        for part in shape.geoms:
            lat, lon = part.centroid.y, part.centroid.x
            contiguous, hawaii = lat > 24 and lon > -126, 18 < lat < 23 and -161 < lon < -154
            if contiguous or hawaii or (lat > 50 and -172 < lon < -129):
                rings = [np.array(ring.coords)[:, ::-1] for ring in (part.exterior, *part.interiors)]
                drawn.setdefault(name, []).extend(rings)
    return drawn


@lru_cache(maxsize=1)
def world_land() -> Outline:
    """The world's land (M, 2) [lon, lat], three times side by side, so that a map may be cut at any meridian."""
    rings = _rings(shapely.difference(outlines.land_shape(), outlines.lakes_shape()))
    return Outline.make_compound_path(
        *(Outline(r + np.array((turn, 0)), closed=True) for turn in (-360, 0, 360) for r in rings)
    )


@lru_cache(maxsize=2)
def land_abroad(piece: int) -> Outline:
    """The land around the contiguous states (piece 0) or Alaska (1) on the composite map, without the great lakes.

    The states' own coasts are left out, as the coarse land would stand out at sea beside the finer states.
    """
    inside = [ring[:, ::-1] for rings in state_rings().values() for ring in rings if inset_of(ring.mean(0)) == piece]
    states = shapely.union_all([shapely.Polygon(ring).simplify(0.05).buffer(COARSE_DEG, 2) for ring in inside])
    window = shapely.box(-175, 48, -110, 74) if piece else shapely.box(-165, 5, -40, 75)
    land = shapely.intersection(shapely.difference(outlines.land_shape(), outlines.lakes_shape()), window)
    away = shapely.difference(land, states)
    whole = shapely.intersection(away.buffer(1.5 * COARSE_DEG, 2), land)
    project = ALASKA if piece else CONTIGUOUS
    rings = _rings(shapely.segmentize(whole, 0.5))
    return Outline.make_compound_path(*(Outline(project(ring[:, ::-1]), closed=True) for ring in rings))


def _rings(shape: shapely.Geometry) -> list[np.ndarray]:
    parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return [np.array(ring.coords) for part in parts for ring in (part.exterior, *part.interiors)]


class Map:
    """A figure with land and a frame around `points`; `xy` projects [lat, lon] to its coordinates."""

    def __init__(self, *points: ArrayLike, states: Sequence[str] = (), axes: Axes | None = None):
        everything = np.concatenate([np.asarray(p, float).reshape(-1, 2) for p in points])
        everything = everything[np.isfinite(everything).all(1)]
        self.is_us = is_united_states(everything)
        self.xy: Callable[[np.ndarray], np.ndarray]
        self.xy = united_states if self.is_us else PlateCarree.around(everything)
        self.figure: Figure = new(5.6) if axes is None else axes.figure  # type: ignore[assignment]
        self.axes = axes if axes is not None else self.figure.subplots()
        self.axes.set_anchor("N")
        corners = [self.xy(everything)]
        if self.is_us:
            corners += self._draw_states({*states, *outlines.state_of(everything)}, everything)
        self._frame(np.concatenate(corners), everything)
        if not self.is_us:
            self._draw_world()

    def _draw_states(self, inside: set[str], points: np.ndarray) -> list[np.ndarray]:
        """Draw the land, darker in states with points; return the corners that the frame must enclose."""
        pieces = {0, *inset_of(points).tolist()}  # Alaska and Hawaii only with their insets
        corners, contiguous = [np.empty((0, 2))], []
        for name, all_rings in state_rings().items():
            rings = [ring for ring in all_rings if int(inset_of(ring.mean(0))) in pieces]
            paths = [Outline(self.xy(ring), closed=True) for ring in rings]
            if not paths:
                continue
            colour = LAND_IN_USE if name in inside else LAND
            land = PathCollection([Outline.make_compound_path(*paths)], facecolor=colour, edgecolor="white", lw=0.7)
            self.axes.add_collection(land, autolim=False).set_zorder(0)
            if name in inside:
                corners += [np.asarray(path.vertices) for path in paths]
            if not inset_of(rings[0].mean(0)):
                contiguous += [np.asarray(path.vertices) for path in paths]
        wide = np.ptp(np.concatenate([*corners, self.xy(points)]), axis=0).max() > WHOLE_KM
        return [*corners, *contiguous] if wide else corners

    def _draw_world(self) -> None:
        """Draw land under the grid, without coasts if these are too coarse for the frame."""
        self.axes.grid(color="white", alpha=0.6)
        if np.ptp(self.axes.get_xlim()) < COAST_DEG:
            self.axes.set_facecolor(LAND)
            return
        self.axes.set_facecolor(SEA)
        land = PathCollection([world_land()], facecolor=LAND_IN_USE, edgecolor="white", lw=0.4, zorder=0)
        self.axes.add_collection(land, autolim=False)

    def _frame(self, corners: np.ndarray, points: np.ndarray) -> None:
        pieces = set(inset_of(points).tolist()) - {0} if self.is_us else set()
        boxes = {piece: _inset_box(piece, points) for piece in sorted(pieces)}
        corners = np.concatenate([corners, *boxes.values()])
        low, high = (corners.min(0), corners.max(0)) if len(corners) else (np.array([-180, -90]), np.array([180, 90]))
        if not self.is_us:  # a flat map would leave no room for its labels
            low[1], high[1] = (
                np.array([-1, 1]) * max(high[1] - low[1], 0.35 * (high[0] - low[0])) / 2 + (low[1] + high[1]) / 2
            )
        pad = 0.025 * max(*(high - low), 1.0 if self.is_us else 0.25)
        low, high = low - pad, high + pad
        if not self.is_us:
            low[1], high[1] = max(low[1], -90), min(high[1], 90)
        self.axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        if self.is_us:
            self._draw_abroad(boxes)
            self.axes.set(aspect="equal", facecolor=SEA, xticks=[], yticks=[])
            self.axes.spines[:].set_visible(False)
        else:
            self.axes.set_aspect(1 / max(np.cos(np.radians((low[1] + high[1]) / 2)), 0.3))
            self.axes.set(xlabel="longitude", ylabel="latitude")
            self.axes.xaxis.set_major_formatter(FuncFormatter(lambda lon, _: f"{(lon + 180) % 360 - 180:.7g}"))

    def _draw_abroad(self, boxes: Mapping[int, np.ndarray]) -> None:
        """Draw the land of other countries, under the states and under the sea of the insets."""
        style: dict[str, Any] = {"facecolor": ABROAD, "edgecolor": "none"}
        self.axes.add_collection(PathCollection([land_abroad(0)], zorder=-3, **style), autolim=False)
        for piece, box in boxes.items():
            self.axes.plot(box[:, 0], box[:, 1], color="white", lw=2)
            sea = self.axes.add_patch(Polygon(box, facecolor=SEA, zorder=-2))
            if piece == 1:
                inside = PathCollection([land_abroad(1)], zorder=-1, **style)
                self.axes.add_collection(inside, autolim=False)
                inside.set_clip_path(sea)

    def scatter(self, points: ArrayLike, **style):
        """Draw points (N, 2) with matplotlib's scatter, rasterized."""
        xy = self.xy(np.asarray(points, float))
        return self.axes.scatter(xy[:, 0], xy[:, 1], **{"lw": 0, "rasterized": True, "zorder": 2} | style)

    def lines(self, start: ArrayLike, end: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The shorter lines (L, 2, 2) between points (N, 2), and the row (L,) of each.

        A row whose line leaves the map on one side and enters on the other has two.
        """
        a, b = self.xy(np.asarray(start, float)), self.xy(np.asarray(end, float))
        turn = np.zeros_like(a)
        if not self.is_us:
            turn[:, 0] = 360 * np.round((a[:, 0] - b[:, 0]) / 360)
        over = np.flatnonzero(turn[:, 0])
        lines = np.concatenate([np.stack([a, b + turn], 1), np.stack([a - turn, b], 1)[over]])
        return lines, np.concatenate([np.arange(len(a)), over])

    def colour_bar(self, marks, label: str, **style) -> None:
        """Draw a slim colour bar right of the map."""
        if isinstance(marks.norm, LogNorm):
            low, high = marks.get_clim()
            steps = np.outer(10.0 ** np.arange(-2, 6), (1, 2, 5) if high < 200 * low else (1,))
            style = {"ticks": steps[(steps >= low) & (steps <= high)]} | style
        bar = self.figure.colorbar(marks, ax=self.axes, shrink=0.7, pad=0.01, aspect=28, label=label, **style)
        bar.outline.set_visible(False)
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_formatter(NUMBERS)

    def finish(self, title: str = "", note: str = "") -> Figure:
        """Add title and note, and set the height to that of the map."""
        (left, right), (bottom, top) = self.axes.get_xlim(), self.axes.get_ylim()
        aspect = (top - bottom) / (right - left) * float(self.axes.get_aspect())
        bars = 0.95 if len(self.figure.axes) > 1 else 0.1
        finish(self.figure, title, note)
        further = (self.figure.get_suptitle() + self.figure.get_supxlabel()).count("\n")  # lines of them
        text = 0.12 + 0.32 * bool(title) + 0.25 * bool(note) + 0.18 * further
        self.figure.set_size_inches(9, min(8.0, (8.9 - bars) * aspect + text))
        return self.figure


def _inset_box(piece: int, points: np.ndarray) -> np.ndarray:
    """The frame (5, 2) of an inset on the map, around its state and all its points."""
    land = [ring for rings in state_rings().values() for ring in rings if inset_of(ring.mean(0)) == piece]
    xy = united_states(np.concatenate([*land, points[inset_of(points) == piece]]))
    (left, bottom), (right, top) = xy.min(0) - 40, xy.max(0) + 40
    return np.array([(left, bottom), (left, top), (right, top), (right, bottom), (left, bottom)])
