"""Maps of places, density, values per state, geocells, errors and embeddings, from arrays.

Points are [lat, lon] in degrees. Every function takes `note`, printed small at the bottom.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex, to_rgb
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike
from shapely import Polygon

from kitlib.core import storage
from kitlib.figures.atlas import Map, PlateCarree, state_rings
from kitlib.figures.place import COLOURS as RUN_COLOURS
from kitlib.figures.style import GREY, PALETTE, Figure, finish, house, join_notes, legend_columns, new, plain
from kitlib.geo import outlines

ERROR_COLOURS = "plasma_r"
NEAR_KM, WORST_KM = 25, 2500  # the errors of the first colour and the last
LEVELS = 16  # colours of the page
PAGE = Path(__file__).parent / "page"
MAX_MARKS = 20_000  # of more points or lines a seeded sample is drawn, and its size stated


def _sample(n: int, most: int) -> tuple[np.ndarray, str]:
    """The rows to draw, and a note if they are a sample."""
    if n <= most:
        return np.arange(n), ""
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False)), f"{most:,} of {n:,} drawn"


@house
def places(points: ArrayLike, labels: ArrayLike | None = None, title: str = "", note: str = "") -> Figure:
    """Map of places (N, 2), coloured by label (N,), such as split or state.

    Up to eight labels get a legend; more repeat the colours, which still shows the borders.
    """
    points = np.asarray(points, float)
    labels = np.full(len(points), "") if labels is None else np.asarray(labels, dtype=object)
    names, code = np.unique(labels.astype(str), return_inverse=True)
    canvas = Map(points)
    shuffled = np.random.default_rng(0).permutation(len(points))  # so that no label hides another
    colours = np.array(PALETTE)[code % len(PALETTE)]
    size = float(np.clip(12_000 / max(len(points), 1), 1.5, 22))
    canvas.scatter(points[shuffled], c=colours[shuffled], s=size, alpha=0.75)
    if 1 < len(names) <= len(PALETTE):
        for i, name in enumerate(names):
            canvas.axes.scatter([], [], c=PALETTE[i], s=28, label=f"{plain(name, 30)} ({(code == i).sum():,})")
        columns = legend_columns(plain(name, 30) for name in names)
        canvas.figure.legend(loc="outside lower left", ncols=columns, handletextpad=0.2)
    return canvas.finish(title, note)


@house
def density(points: ArrayLike, title: str = "", note: str = "") -> Figure:
    """The density of places (N, 2) in hexagons on a logarithmic scale; fast for any number of places."""
    points = np.asarray(points, float)
    canvas = Map(points)
    xy = canvas.xy(points)
    limits = (*canvas.axes.get_xlim(), *canvas.axes.get_ylim())
    aspect = (limits[3] - limits[2]) / (limits[1] - limits[0]) * float(canvas.axes.get_aspect())
    hexes = canvas.axes.hexbin(xy[:, 0], xy[:, 1], gridsize=(80, max(round(80 * aspect / 3**0.5), 1)), bins="log",
                               mincnt=1, extent=limits, cmap="viridis_r", lw=0.1, zorder=2)  # fmt: skip
    canvas.axes.set(xlim=limits[:2], ylim=limits[2:])
    canvas.colour_bar(hexes, "places in a hexagon")
    return canvas.finish(title, note)


@house
def values(
    names: Sequence[str], centres: ArrayLike, value: ArrayLike, label: str, cmap: str = "viridis", title: str = "",
    note: str = "",
) -> Figure:  # fmt: skip
    """A value (S,) per state as a colour: US states are shaded, others are dots at their centres (S, 2)."""
    centres, value = np.asarray(centres, float), np.asarray(value, float)
    known = np.array([name in state_rings() for name in names])
    rings = [state_rings()[name] for name in names if name in state_rings()]
    canvas = Map(centres, states=[name for name in names if name in state_rings()])
    style: Any = {"cmap": cmap, "norm": Normalize(np.nanmin(value), np.nanmax(value))}
    paths = [Outline.make_compound_path(*[Outline(canvas.xy(r), closed=True) for r in state]) for state in rings]
    shades = PathCollection(paths, array=value[known], edgecolor="white", zorder=1, **style)
    canvas.axes.add_collection(shades, autolim=False)
    canvas.scatter(centres[~known], c=value[~known], s=60, **style)
    canvas.colour_bar(shades, label)
    return canvas.finish(title, note)


@house
def cells(
    points: ArrayLike, centres: ArrayLike, counts: ArrayLike, radius_km: ArrayLike, title: str = "", note: str = ""
) -> Figure:
    """Geocells: centres (C, 2), area by number of places (C,), colour by radius (C,); places in grey."""
    points, centres = np.asarray(points, float), np.asarray(centres, float)
    rows, drawn = _sample(len(points), MAX_MARKS)
    canvas = Map(points, centres)
    canvas.scatter(points[rows], c=GREY, s=2, alpha=0.35)
    counts, radius = np.asarray(counts, float), np.maximum(np.asarray(radius_km, float), 0.1)
    marks = canvas.scatter(centres, c=radius, s=10 + 90 * counts / counts.max(), cmap="viridis_r", norm=_log(radius),
                           edgecolor="white", lw=0.5, zorder=3)  # fmt: skip
    canvas.colour_bar(marks, "radius of the cell (km)")
    return canvas.finish(title, join_notes(f"places: {drawn}" if drawn else "", note))


def _log(values: np.ndarray) -> LogNorm:
    low, high = float(values.min()), float(values.max())
    return LogNorm(low, max(high, low * 1.01))


@house
def errors(
    true: ArrayLike, guess: ArrayLike, km: ArrayLike, most: int = 1500, title: str = "", note: str = ""
) -> Figure:
    """Lines from true places (N, 2), marked by dots, to their guesses (N, 2), coloured by the error (N,) in km."""
    true, guess, km = np.asarray(true, float), np.asarray(guess, float), np.asarray(km, float)
    rows, drawn = _sample(len(km), most)
    rows = rows[np.argsort(km[rows])]
    canvas = Map(true, guess)
    norm = LogNorm(NEAR_KM, WORST_KM, clip=True)
    ends, row = canvas.lines(true[rows], guess[rows])
    lines = LineCollection(list(ends), array=km[rows][row], cmap=ERROR_COLOURS, norm=norm, lw=0.6, alpha=0.35, zorder=2)
    canvas.axes.add_collection(lines, autolim=False)
    style = {"c": km[rows], "cmap": ERROR_COLOURS, "norm": norm, "edgecolor": "white", "lw": 0.3, "zorder": 3}
    dots = canvas.scatter(true[rows], s=14, **style)
    canvas.colour_bar(dots, "error (km)", ticks=[25, 200, 750, 2500], extend="both")
    return canvas.finish(title, join_notes("dot: the truth, line: to the guess", drawn, note))


@house
def gains(points: ArrayLike, gain: ArrayLike, a: str, b: str, title: str = "", note: str = "") -> Figure:
    """Where run `a` or `b` scores more: places (N, 2) coloured by the gain (N,) of `b`, larger where it is larger."""
    points, gain = np.asarray(points, float), np.asarray(gain, float)
    rows, drawn = _sample(len(gain), MAX_MARKS)
    rows = rows[np.argsort(np.abs(gain[rows]))]
    canvas, most = Map(points), max(float(np.abs(gain).max()), 1e-6)
    colours = LinearSegmentedColormap.from_list("gains", [RUN_COLOURS[0], "#e5e5e5", RUN_COLOURS[1]])
    size = (4 + 40 * np.abs(gain[rows]) / most) * float(np.clip(1500 / len(rows), 0.15, 1))
    marks = canvas.scatter(points[rows], c=gain[rows], s=size, cmap=colours, vmin=-most, vmax=most, alpha=0.8)
    canvas.colour_bar(marks, f"score: {plain(a, 24)} more (below 0), {plain(b, 24)} more (above)")
    better = [f"{name}: better in {int(n):,} places" for name, n in ((a, (gain < 0).sum()), (b, (gain > 0).sum()))]
    return canvas.finish(title, join_notes(*better, f"equal in {int((gain == 0).sum()):,}", drawn, note))


def position_colours(points: ArrayLike) -> np.ndarray:
    """A colour (N, 3) for every place: four corner colours blended by its ranks in latitude and longitude."""
    points = np.asarray(points, float)
    up, right = (np.argsort(np.argsort(points[:, k])) / max(len(points) - 1, 1) for k in (0, 1))
    corners = np.array([[to_rgb("#7a2f8f"), to_rgb("#d55e00")], [to_rgb("#0a5fa5"), to_rgb("#8cc63f")]])
    weight = np.stack([np.stack([1 - up, 1 - up]), np.stack([up, up])]) * np.stack([1 - right, right])
    return np.einsum("ijn,ijc->nc", weight, corners)


@house
def embedding(plane: ArrayLike, points: ArrayLike, axis_labels: Sequence[str] = ("", ""), title: str = "",
              note: str = "") -> Figure:  # fmt: skip
    """Embeddings in a plane (N, 2) beside the map of their places (N, 2), both coloured by location."""
    plane, points = np.asarray(plane, float), np.asarray(points, float)
    rows, drawn = _sample(len(points), MAX_MARKS)
    colours = position_colours(points)[rows]
    figure = new(4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    size = float(np.clip(12_000 / len(rows), 1.5, 16))
    left.scatter(plane[rows, 0], plane[rows, 1], c=colours, s=size, lw=0, alpha=0.8, rasterized=True)
    left.set(xlabel=plain(axis_labels[0]), ylabel=plain(axis_labels[1]), title="in embedding space")
    canvas = Map(points, axes=right)
    canvas.scatter(points[rows], c=colours, s=size)
    right.set_title("on the map")
    return finish(figure, title, join_notes(drawn, note))


def json_for_page(content: Any) -> str:
    """JSON for a script element of a page: no text in it can end the element, or begin anything in a script.

    >>> json_for_page(["</script>${1}`"])
    '["\\\\u003c/script\\\\u003e\\\\u0024{1}\\\\u0060"]'
    """
    text = json.dumps(content, separators=(",", ":"))  # in ASCII
    return re.sub("[<>&$`]", lambda match: f"\\u{ord(match.group()):04x}", text)


def save_error_page(
    path: Path,
    true: ArrayLike,
    guess: ArrayLike,
    km: ArrayLike,
    labels: Sequence[str],
    pictures: Mapping[int, Sequence[bytes]] | None = None,
    note: str = "",
) -> Path:
    """Write an interactive HTML map of all truths, guesses and the shorter lines between, with pop-ups.

    labels (N,): the texts of the pop-ups. pictures: the JPEGs of some places by their row; the pop-ups of the others
    say that they have none. The page holds all that it needs; streets from the internet are a layer that the reader
    may add. `errors` draws the same as a figure.
    """
    import folium

    true, guess, km = np.asarray(true, float), np.asarray(guess, float), np.asarray(km, float)
    order, pictures = np.argsort(km, kind="stable"), pictures or {}
    ends = np.stack([true[order], guess[order]], 1)
    ends[..., 1] = PlateCarree.around(ends.reshape(-1, 2))(ends)[..., 0]
    ends[:, 1, 1] += 360 * np.round((ends[:, 0, 1] - ends[:, 1, 1]) / 360)  # across the date line, if that is shorter
    ends = ends.round(4)  # 11 m
    level = LogNorm(NEAR_KM, WORST_KM, clip=True)(km[order]) * (LEVELS - 1)
    content = {
        "latitude": ends[:, 0, 0].tolist(), "longitude": ends[:, 0, 1].tolist(),
        "guess_latitude": ends[:, 1, 0].tolist(), "guess_longitude": ends[:, 1, 1].tolist(),
        "level": np.asarray(level).round().astype(int).tolist(),
        "labels": [str(labels[i]) for i in order],
        "pictures": {
            place: [base64.b64encode(jpeg).decode() for jpeg in pictures[i]]
            for place, i in enumerate(order.tolist()) if i in pictures
        },
        "without": f"This page holds the pictures of {len(pictures):,} of {len(km):,} places.",
        "bounds": [ends.min((0, 1)).tolist(), ends.max((0, 1)).tolist()],
        "colours": [to_hex(colour) for colour in colormaps[ERROR_COLOURS](np.linspace(0, 1, LEVELS))],
        "ends": [f"{NEAR_KM:,} km or less", f"{WORST_KM:,} km or more"],
        "caption": join_notes("dot: truth, line: to the guess (largest errors in view)", f"{len(km):,} places", note),
        "land": [_lines(part) for part in outlines.land_shape().geoms],
        "countries": [line for name, shape in outlines.country_shapes().items() if name != "United States of America"
                      for part in shape.geoms for line in _borders(part)],
        "states": [line for shape in outlines.state_shapes().values() for part in shape.geoms for line in _lines(part)],
    }  # fmt: skip
    page = folium.Map(tiles=None, zoom_snap=0.5)
    page.default_js, page.default_css = [], []  # would be fetched; Leaflet is in the page instead
    streets = folium.TileLayer("OpenStreetMap", name="streets (from the internet)", overlay=True, show=False)
    streets.add_to(page)
    control = folium.LayerControl(collapsed=False).add_to(page)
    for part, name in ((page, "errors"), (streets, "streets"), (control, "layers")):
        part._id = name  # random otherwise, so that no two pages would be the same
    read = {
        name: (PAGE / name).read_text(encoding="utf-8")
        for name in ("errors.html", "leaflet.css", "leaflet.js", "errors.js")
    }
    head = (
        read["errors.html"]
        .replace("__LEAFLET_CSS__", read["leaflet.css"])
        .replace("__LEAFLET_JS__", read["leaflet.js"])
    )
    # after folium has rendered the page, as it compiles texts as templates of Jinja
    text = page.get_root().render().replace("</head>", head.replace("__DATA__", json_for_page(content)) + "</head>", 1)
    names = f"const map = {page.get_name()}, tiles = {streets.get_name()};"
    with storage.atomic_write(path) as beside:
        beside.write_text(f"{text}\n<script>\n{names}\n{read['errors.js']}</script>\n", encoding="utf-8")
    return path


def _lines(part: Polygon) -> list[list[list[float]]]:
    """The rings of a polygon as lists of [lat, lon] in hundredths of a degree."""
    rings = (np.array(ring.coords)[:, ::-1].round(2) for ring in (part.exterior, *part.interiors))
    return [ring.tolist() for ring in rings]


def _borders(part: Polygon) -> list[list[list[float]]]:
    """The rings of a polygon as `_lines`, without the date line at which it is cut."""
    pieces = []
    for ring in map(np.array, _lines(part)):
        cut = np.flatnonzero((np.abs(ring[1:, 1]) == 180) & (np.abs(ring[:-1, 1]) == 180))
        pieces += [piece.tolist() for piece in np.split(ring, cut + 1) if len(piece) > 1]
    return pieces
