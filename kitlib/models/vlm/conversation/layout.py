"""Turn what a model writes around its answer into plain lines: JSON, tables, LaTeX, tags and map addresses.

`plain_lines` returns text in which every field is a line "key: value", so that one grammar (`replies`) reads them all,
and the points of map addresses, whose numbers are not left in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kitlib.models.vlm.conversation import coordinates

LON_LAT = "lonlat"  # the key of two numbers in GeoJSON's order
DRESS = dict.fromkeys(map(ord, '*`"\u201c\u201d\u2022\u25cf'), "") | dict.fromkeys(map(ord, "#<>\\$|"), " ")
DEGREES = r"[-+]?\d{1,3}(?:\.\d+)?"

TAGS = re.compile(r"</?answer>|<br ?/?>|<\|[^|<>]{1,30}\|>", re.IGNORECASE)
LATEX = (
    (re.compile(r"\^?\{?\\(?:circ|degree|textdegree)\b(?:\{\})?\}?"), "°"),
    (re.compile(r"\^?\{?(?:\\prime|'){2}\}?"), "\u2033"),
    (re.compile(r"\^?\{?\\prime\}?"), "\u2032"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|rm)\s*\{([^{}]{0,80})\}"), r"\1"),
    (re.compile(r"\\pm\b"), "±"),
    (re.compile(r"\\(?:approx|sim)\b"), "~"),
    (re.compile(r"\{-\}"), "-"),
    (re.compile(r"\\(?:[,;:! ]|quad\b|qquad\b|left\b|right\b)|(?<=\d)~(?=[NSEW])"), " "),
)
BOXED = re.compile(r"\\f?boxed\s*\{([^{}]{0,300})\}")
GEOJSON = re.compile(r"""["']?type["']?\s*:\s*["']?(?:Point|Feature)\b""")
ADDRESS = re.compile(r"(?:https?://|www\.|geo:|\b[\w.-]+\.(?:com|org|gl)/)[^\s<>\"'|)\]]+", re.IGNORECASE)
MAP = re.compile(r"map|earth|goo\.gl|^geo:", re.IGNORECASE)
IN_ADDRESS = (  # a place's pin, then the map's centre
    re.compile(rf"!3d({DEGREES})!4d({DEGREES})"),
    re.compile(rf"lat(?:itude)?=({DEGREES})&(?:amp;)?m?l(?:on|ng|ongitude)=({DEGREES})"),
    re.compile(rf"[=/:]({DEGREES}),\+?({DEGREES})(?!\.?\d)"),
    re.compile(rf"[@,]({DEGREES}),({DEGREES})(?!\.?\d)"),
    re.compile(rf"map=\d+(?:\.\d+)?/({DEGREES})/({DEGREES})"),
)


def plain_lines(text: str, is_key: Callable[[str], object]) -> tuple[str, str, list[coordinates.Point | None]]:
    """The text as plain lines, the text of its last box, and the points of its map addresses.

    is_key: whether the cell of a table is a key.
    """
    text, points = _addresses(TAGS.sub("\n", text).replace('\\"', '"').replace(" > ", ", "))
    boxed = ""
    if "\\" in text:
        for pattern, plain in LATEX:
            text = pattern.sub(plain, text)
        boxes = BOXED.findall(text)
        boxed = boxes[-1] if boxes else ""
        text = BOXED.sub(r"\n\1\n", text)
    if "[" in text or "{" in text:
        text = _json(text)
    text = coordinates.plain(text)
    if "|" in text:
        text = "\n".join(_tables(text.splitlines(), is_key))
    return _undressed(text), boxed and _undressed(coordinates.plain(boxed)), points


def _undressed(text: str) -> str:
    return re.sub(r"(?<![a-z])_|_(?![a-z])", "", text.translate(DRESS), flags=re.IGNORECASE).replace("_", " ")


def _addresses(text: str) -> tuple[str, list[coordinates.Point | None]]:
    """The text without its addresses, and the points of those of maps."""
    points = []
    for address in ADDRESS.findall(text):
        if MAP.search(address):
            address = address.replace("%2C", ",").replace("%2c", ",").replace("%20", "")
            match = next((match for pattern in IN_ADDRESS if (match := pattern.search(address))), None)
            if match:
                points.append(coordinates.point((float(match[1]), ""), (float(match[2]), "")))
    return ADDRESS.sub(" ", text), points


def _json(text: str) -> str:
    """JSON and what resembles it as lines "key: value"; arrays on one line, GeoJSON's order told by its key."""
    if GEOJSON.search(text):
        text = re.sub(r"""["']?coordinates["']?(\s*:\s*\[)""", rf"{LON_LAT}\1", text)
    text = re.sub(r"\[[^\[\]{}]{1,200}\]", lambda array: " ".join(array[0].split()), text)
    text = re.sub(r""",(?=\s*["'][\w /()-]{1,40}["']\s*:)""", "\n", text)
    text = re.sub(r"""(?m)^([\s{]*)'([\w /()-]{1,40})'(\s*:)""", r"\1\2\3", text)
    return text.replace("{", "\n").replace("}", "\n")


def _tables(lines: list[str], is_key: Callable[[str], object]) -> Iterator[str]:
    """Markdown tables as lines "key: value", by their columns or by their rows; other lines as they are."""
    header: list[str] = []
    for line in lines:
        cells = [_undressed(cell).strip().rstrip(":") for cell in line.strip().strip("|").split("|")]
        if "|" not in line:
            header = []
            yield line
        elif all(set(cell) <= set("-: ") for cell in cells):
            continue
        elif header and len(cells) == len(header):
            yield from (f"{key}: {cell}" for key, cell in zip(header, cells, strict=True) if is_key(key))
        elif _is_header(cells, is_key):
            header = cells
        else:
            keys = [bool(is_key(cell)) for cell in cells]
            yield from (f"{key}: {cell}" for key, cell, known in zip(cells, cells[1:], keys, strict=False) if known)
            if not any(keys):
                yield " ".join(cells)


def _is_header(cells: list[str], is_key: Callable[[str], object]) -> bool:
    keys = sum(bool(is_key(cell)) for cell in cells)
    return (keys >= 2 or (keys == 1 and not is_key(cells[0]))) and not any(c.isdigit() for c in "".join(cells))
