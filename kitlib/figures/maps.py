"""Maps of places, density, values per state, geocells, errors and embeddings, from arrays.

Points are [lat, lon] in degrees. Every function takes `note`, printed small at the bottom.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex, to_rgb
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike

from kitlib.core import storage
from kitlib.figures.atlas import Map, PlateCarree, state_rings
from kitlib.figures.place import COLOURS as RUN_COLOURS
from kitlib.figures.style import GREY, PALETTE, Figure, finish, house, join_notes, legend_columns, new, plain

ERROR_COLOURS = "plasma_r"
WORST_KM = 2500  # an error has the last colour from here
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
    norm = LogNorm(25, WORST_KM, clip=True)
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


PAGE = Path(__file__).parent / "page"
HEAD = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: https://tile.openstreetmap.org">
<title>Errors on the map</title>
<style>{style}</style>
<script>{leaflet}</script>
<script type="application/json" id="data">{data}</script>
</head>"""


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
    most: int = 1000,
    note: str = "",
) -> Path:
    """Write an interactive HTML map of truth, guess and the shorter line between, with `labels` (N,) as pop-ups.

    Of more than `most` places, it shows the worst fifth of `most` and a seeded sample of the rest. The page loads only
    the pictures of its background from the internet; `errors` draws the same as a figure.
    """
    import folium
    from matplotlib import colormaps

    true, guess, km = np.asarray(true, float), np.asarray(guess, float), np.asarray(km, float)
    worst = np.argsort(-km, kind="stable")
    rest, _ = _sample(max(len(km) - most // 5, 0), most - most // 5)
    rows = np.concatenate([worst[: most // 5], worst[most // 5 :][rest]])[::-1]
    ends = np.stack([true[rows], guess[rows]], 1)
    ends[..., 1] = PlateCarree.around(ends.reshape(-1, 2))(ends)[..., 0]
    ends[:, 1, 1] += 360 * np.round((ends[:, 0, 1] - ends[:, 1, 1]) / 360)  # across the date line, if that is shorter
    shade = [to_hex(colour) for colour in colormaps[ERROR_COLOURS](np.minimum(km[rows] / WORST_KM, 1))]
    content = {
        "places": [
            [*pair, colour, str(labels[i])]
            for pair, colour, i in zip(ends.round(6).tolist(), shade, rows.tolist(), strict=True)
        ],
        "bounds": [ends.min((0, 1)).tolist(), ends.max((0, 1)).tolist()],
        "colours": ",".join(to_hex(colour) for colour in colormaps[ERROR_COLOURS](np.linspace(0, 1, 6))),
        "top": f"{WORST_KM:,} km and more",
        "caption": join_notes("error of the guess", f"{len(rows):,} of {len(km):,} places", note),
    }
    page = folium.Map(prefer_canvas=True)
    page.default_js, page.default_css = [], []  # would be fetched; Leaflet is in the page instead
    # after folium has rendered the page, as it compiles texts as templates of Jinja
    style, leaflet, draw = ((PAGE / name).read_text("utf-8") for name in ("leaflet.css", "leaflet.js", "errors.js"))
    head = HEAD.format(style=style, leaflet=leaflet, data=json_for_page(content))
    text = page.get_root().render().replace("</head>", head, 1)
    text += f"<script>\n{draw}drawErrors({page.get_name()});\n</script>\n"
    with storage.atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path
