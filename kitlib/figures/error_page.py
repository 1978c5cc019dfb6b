"""The page of errors: an interactive map in HTML that holds all that it needs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, to_hex
from numpy.typing import ArrayLike
from shapely import Polygon

from kitlib.core import storage
from kitlib.figures.atlas import PlateCarree
from kitlib.figures.maps import ERROR_COLOURS, NEAR_KM, WORST_KM
from kitlib.figures.style import join_notes
from kitlib.geo import outlines

LEVELS = 16  # colours of the page
PAGE = Path(__file__).parent / "page"


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
    may add. `maps.errors` draws the same as a figure.
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
