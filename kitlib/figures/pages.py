"""Pages of HTML that hold all they need: one file, no network, data as JSON that a script shows as text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib.core import storage
from kitlib.figures import atlas
from kitlib.figures.error_page import json_for_page
from kitlib.figures.style import Figure, save
from kitlib.geo import outlines

TEMPLATE = Path(__file__).parent / "answers.html"
COMPARISON = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} img {{ max-width: 100%; background: #fff; }} div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} td, th {{ text-align: left; padding: .15rem 1rem .15rem 0; }}
</style><h1>{title}</h1><img alt="map" src="data:image/png;base64,{picture}"><div>{tables}</div></html>
"""
MOST_POINTS = 40  # of a place, the heaviest first


def save_answers(
    path: Path,
    title: str,
    table: pd.DataFrame,
    points: np.ndarray,
    weights: np.ndarray,
    pictures: Sequence[Sequence[bytes]],
    alike: Sequence[Sequence[dict[str, Any]]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a page of guesses: each place's pictures, its states, its weighted points on a map, and places alike.

    table: a row a place, as of `models.locate`. points (N, K, 2), weights (N, K): of the guesses. pictures: JPEGs of
    each place. alike: of each place, known places with sample_id, state, km from the guess, and a jpeg. notes:
    sentences above all places.
    """
    order = np.argsort(-weights, axis=1)[:, :MOST_POINTS]
    points = np.take_along_axis(points, order[..., None], 1).round(3).tolist()
    weights = np.take_along_axis(weights, order, 1).round(4).tolist()
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    shots = [[base64.b64encode(jpeg).decode() for jpeg in place] for place in pictures]
    similar = [[other | {"jpeg": base64.b64encode(other["jpeg"]).decode()} for other in place] for place in alike]
    data = {
        "title": title,
        "places": [
            {"row": row, "points": p, "weights": w, "pictures": s, "alike": a}
            for row, p, w, s, a in zip(rows, points, weights, shots, similar or [[]] * len(rows), strict=True)
        ],
        "notes": list(notes),
        "land": [_rounded(ring) for part in outlines.land_shape().geoms for ring in (part.exterior.coords,)],
        "states": [_rounded(ring[:, ::-1]) for rings in atlas.state_rings().values() for ring in rings],
    }
    text = TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", json_for_page(data))
    with storage.atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def save_comparison(path: Path, title: str, tables: str, figure: Figure) -> None:
    """Write a page with a comparison's tables, in HTML, below its map; a `path` ending in .png gets the map alone."""
    if path.suffix.lower() == ".png":
        save(figure, path)
        return
    with io.BytesIO() as png:
        figure.savefig(png, dpi=150, bbox_inches="tight", facecolor="white")
        picture = base64.b64encode(png.getvalue()).decode()
    text = COMPARISON.format(title=html.escape(title), picture=picture, tables=tables)
    with storage.atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _rounded(ring: Any) -> list[list[float]]:
    """A ring [lon, lat] in hundredths of a degree."""
    return np.asarray(ring).round(2).tolist()
