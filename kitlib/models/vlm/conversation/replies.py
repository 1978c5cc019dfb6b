"""Parse a model's reply: the point and the names that it gives, None where it is unclear.

The grammar, from the strongest to the weakest:

1. Reasoning in <think> tags is no part of the reply. JSON, Markdown, tables, LaTeX and tags become plain lines first
   (`layout`); what follows a heading such as "Final answer" is read before the rest.
2. A labelled line, `State: Ohio`, `Latitude: 39.96`, `Coordinates: 39.96, -83`, is an answer: from its key up to the
   next key or the line's end, or the lines below it where it is empty. A remark behind the value or in another
   sentence does not count. Keys of coordinates are read in English, Spanish and Chinese, keys of names in English, as
   the names are. "lon, lat" and GeoJSON put longitude first.
3. Without labelled coordinates a bare pair is the answer in the last box of LaTeX; else in a map's address, alone on
   its line, and in the last sentence that names a coordinate: by letters, signs or decimals (`Run.is_precise`), or by
   "coordinates", "located at" or the like before numbers with fractions. "Exit 12, 14" and "speed limit 55, 65" are
   none.
4. Numbers have signs or hemispheres (N, "north latitude", 北纬, "latitud norte"), points or commas, degrees, minutes
   and seconds, and perhaps "about" before or a tolerance (±) behind them (`coordinates`).
5. `States: Ohio, Indiana, ...` ranks names, the likeliest first; names outside the vocabulary and repetitions are left
   out, and those after the fifth.
6. A name of a closed vocabulary is a whole name in one of its usual forms (`vocabulary`), perhaps with "probably"
   before it and a reason behind it, in brackets, behind a dash or a comma.

A field that is missing, out of range, or given twice in two ways is None: a list of places is not an answer, and
reinforcement learning finds every rule that pays for lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kitlib import geo
from kitlib.models.vlm.conversation import coordinates, layout
from kitlib.models.vlm.conversation.coordinates import Point
from kitlib.models.vlm.conversation.vocabulary import LONGEST, Labels, normalised

NAMES = ("city", "region", "country")
RANKS = 5  # states of a ranked reply that count, as in the competition
MAX_LENGTH = 2000  # characters of a reply without its reasoning; a longer one is not parsed
SAME_KM = 2.0  # between two points that are one: decimals, and the same in minutes behind them

BOTH = re.compile(
    r"""\b (?: lat(?:itude)? [ ]* (?: [,/&-] | and | )[ ]* (?:lon(?:g|gitude)? | lng) | latl(?:ng|on) )\b""",
    re.VERBOSE | re.IGNORECASE,
)
BOTH_REVERSED = re.compile(r"\blon(?:g|gitude)?[ ]*(?:[,/&-]|and)[ ]*lat(?:itude)?\b", re.IGNORECASE)
MORE = r"""(?: [ ]? \([^()\n]{0,20}\) | [ ]?°
| [ ](?:name|code|abbreviation|value|estimate|decimal|aproximad[ao]|estimad[ao]) )?"""
KEY = re.compile(
    rf"""\b (?:
        (?: (?P<city> city | town )
          | (?P<region> (?:region|state|province) (?: [ ]*[/ ][ ]* (?:region|state|province))? )
          | (?P<country> country | nation )
          | (?P<states> states )
          | (?P<point> coordinates? | coords? | points? | gps | location | position )
        ) \b {MORE} [ \t]* [:=]
      | (?: (?P<lat> lat(?:itude)? ) | (?P<lon> lon(?:gitude)? | lng | long (?=[ \t]*(?:[:=.(]|-\d|\d+[.])) )
          | (?P<lonlat> {layout.LON_LAT} )
        ) \b \.? {MORE} (?: [ \t]* [:=] |
            (?= [ \t]* (?: (?:of[ ][^\d\n:.]{{1,40}}[ ])?is | of | ~ )? [ \t]* [-+(\[]? [ ]? (?:[NSEW][ ])? \d) )
    )""",
    re.VERBOSE | re.IGNORECASE,
)
ALONE_KEY = re.compile(
    r"[ \t]*(?:city|state|region|province|country|latitude|longitude|coordinates)[ \t]*", re.IGNORECASE
)
FINAL = re.compile(r"\b(?:final|best) (?:answer|guess|estimate|prediction)\b(?! (?:could|may|might))", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[^\d\s][.!?])[ \t]+|(?<=\d[.!?])[ \t]+(?=[A-Z])|\n")
CUE = re.compile(r"\b(?:coordinates?|coords?|latitude|longitude|lat|lon|gps)\b", re.IGNORECASE)
CUE_BEFORE = re.compile(
    r"\b(?:coordinates?|coords?|gps|point)(?: (?:is|are|of|at|be|would|likely|probably))*[ :=(]*$", re.IGNORECASE
)
PLACE_BEFORE = re.compile(
    r"\b(?:located|taken|situated|lies|place|spot|location|guess)(?: (?:at|near|in|is|would|be))+[ :(]*$", re.IGNORECASE
)
REMARK_BEFORE = re.compile(
    r"\b(?:exits?|routes?|us|i|hwy|highways?|interstates?|roads?|limits?|speeds?|miles?|marker|signs?|plates?)\W*$",
    re.IGNORECASE,
)
ITEM = re.compile(r"[ \t]*(?:\d{1,2}[.)]|[-+]{1,2})[ ]")
BESIDES = re.compile(r"\b(?:points?|coordinates?|gps|and|lonlat)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """A parsed reply, or the truth about a place: point [lat, lon] in degrees, and names; None is unknown.

    region: the state, province or whatever the data set calls it. states: ranked ones, the likeliest first; of a truth
    the true one first.
    """

    point: tuple[float, float] | None = None
    city: str | None = None
    region: str | None = None
    country: str | None = None
    states: tuple[str, ...] | None = None


def visible(reply: str) -> str:
    """The reply without its reasoning: text in <think> tags, after an unclosed one, before an unopened end.

    >>> visible("1, 2</think>A<think>3, 4</think>B<think>5, 6").split()
    ['A', 'B']
    """
    text = re.sub(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", "\n", reply, flags=re.DOTALL | re.IGNORECASE)
    return re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]


def read(reply: str, labels: Mapping[str, Labels] | None = None, bare: str | None = None) -> Reply:
    """Parse a reply.

    labels: vocabularies by field ("city", "region", "country", "states"); such a field has labels or is None, any
    other has the reply's own wording. bare: a field with a vocabulary that a line without a key may name.

    >>> read("**State:** Ohio\\n40°N, 83°W")
    Reply(point=(40.0, -83.0), city=None, region='Ohio', country=None, states=None)
    >>> read("40, -83 or 41, -90").point is None
    True
    >>> read("The limits are 55, 65.\\nLatitude: 40 (near exit 12)\\nLongitude: -83").point
    (40.0, -83.0)
    """
    labels, text = labels or {}, visible(reply)
    if len(text) > MAX_LENGTH:
        return Reply()
    text, boxed, addresses = layout.plain_lines(text, _is_key)
    text = BOTH_REVERSED.sub(layout.LON_LAT, BOTH.sub("point", text))
    whole = _parse(text, labels, bare, boxed, addresses)
    if headings := list(FINAL.finditer(text)):
        final = _parse(text[headings[-1].end() :].lstrip(" \t:-"), labels, bare, boxed, addresses)
        given = {name: value for name, value in vars(final).items() if value is not None}
        return replace(whole, **given)
    return whole


def _is_key(cell: str) -> bool:
    return KEY.fullmatch(f"{cell}:") is not None


def _parse(
    text: str, labels: Mapping[str, Labels], bare: str | None, boxed: str, addresses: list[Point | None]
) -> Reply:
    values, prose, lines = _lines(text)
    points = _labelled_points(values)
    if not points:
        points = [run.point for run in coordinates.runs(boxed)] or _bare_points(prose, addresses)
    names = {}
    for name in NAMES:
        names[name] = _name([_without_points(value) for value in values[name]], labels.get(name))
    if bare is not None and names[bare] is None and not any(map(normalised, values[bare])):
        names[bare] = _one({label for line in lines if (label := labels[bare].find_name(line.strip(" \t-+,;:")))})
    return Reply(_same(points), **names, states=_ranked(values["states"], labels.get("states")))


def _lines(text: str) -> tuple[dict[str, list[str]], str, list[str]]:
    """The texts behind each key; the text without those of coordinates; and the lines without a key.

    The keys of coordinates without a colon ("latitude is 40") count where there are none with one.
    """
    values: dict[str, list[str]] = {field: [] for field in (*NAMES, "states", "lat", "lon", "point", layout.LON_LAT)}
    loose: dict[str, list[str]] = {"lat": [], "lon": [], layout.LON_LAT: []}
    prose: list[str] = []
    without: list[str] = []
    open_key = ""  # of a line that ends with its key: its value is in the lines below
    for line in text.splitlines():
        if ALONE_KEY.fullmatch(line):
            line = f"{line.strip()}:"
        keys = list(KEY.finditer(line))
        prose.append(line[: keys[0].start()] if keys else line)
        if not keys and line.strip():
            without.append(line)
            if open_key:
                values[open_key].append(re.sub(r"^\s*[-+]\s+", "", line).strip(" \t,;"))
                open_key = open_key if open_key in (*NAMES, "states") else ""  # a list of names is no name
        elif not keys and open_key and values[open_key]:
            open_key = ""
        starts = [key.start() for key in keys] + [len(line)]
        for key, end in zip(keys, starts[1:], strict=True):
            field = layout.LON_LAT if layout.LON_LAT in key[0] else str(key.lastgroup)
            value = line[key.end() : end].strip(" \t,;")
            has_colon = key[0][-1] in ":="
            open_key = field if has_colon and not value else ""
            if value:
                (values if has_colon else loose)[field].append(value)
            if not has_colon or field not in ("lat", "lon"):
                prose[-1] += line[key.start() : end]
    for field, texts in loose.items():
        values[field] = values[field] or texts
    return values, "\n".join(prose), without


def _labelled_points(values: Mapping[str, list[str]]) -> list[Point | None]:
    """The points of labelled lines, None for an unclear one; empty without such lines."""
    points: list[Point | None] = []
    lats, lons = ([text for text in values[axis] if re.search(r"\d", text)] for axis in ("lat", "lon"))
    if lats or lons:
        pairs = [(coordinates.only_number(lat, "lat"), coordinates.only_number(lon, "lon"))
                 for lat in lats or [""] for lon in lons or [""]]  # fmt: skip
        points += [coordinates.point(lat, lon) for lat, lon in pairs]
    for field in ("point", layout.LON_LAT):
        for text in values[field]:
            text = re.sub(r"(?<=[\d°])[ \t]+(?:and|y|&)[ \t]+(?=[-+\d])", ", ", text)
            for run in coordinates.runs(text):
                if run.is_precise or not re.search(r"[^\W\d]", text[: run.start]):
                    points.append(_reversed(run.point, run.text) if field == layout.LON_LAT else run.point)
    return points


def _reversed(point: Point | None, text: str) -> Point | None:
    """The point of two numbers of which the longitude comes first, unless their letters say otherwise."""
    first, *others = re.findall(r"[-+]?\d+(?:[.,]\d+)?", text)
    if len(others) != 1 or re.search(r"[nsew]", text, re.IGNORECASE):
        return point
    lon, lat = (float(number.replace(",", ".")) for number in (first, others[0]))
    return coordinates.point((lat, "lat"), (lon, "lon"))


def _bare_points(text: str, addresses: list[Point | None]) -> list[Point | None]:
    """The points of map addresses, of pairs alone on their lines, and of the last sentence that names one."""
    answers: list[tuple[bool, Point | None]] = [(True, point) for point in addresses]
    last: list[Point | None] = []
    place = (-2, False)  # of the last sentence with a point: the line that it ends, and whether that is a list's item
    for number, line in enumerate(text.splitlines()):
        is_item = ITEM.match(line) is not None
        for sentence in SENTENCE.split(line):
            runs = coordinates.runs(sentence)
            rest = sentence
            for run in reversed(runs):
                rest = rest[: run.start] + rest[run.end :]
            reverse = layout.LON_LAT in rest
            found = [(run, _reversed(run.point, run.text) if reverse else run.point) for run in runs]
            if runs and not re.search(r"\w", BESIDES.sub("", ITEM.sub("", rest))):
                answers += [(run.has_fractions, point) for run, point in found]
                last, place = [], (-2, False)
            elif named := [point for run, point in found if _is_named(sentence, run)]:
                last = last + named if place == (number - 1, is_item) else named  # a list of places has no last one
                place = (-2 if sentence.endswith((".", "!")) and not is_item else number, is_item)
    return [point for has_fractions, point in answers if has_fractions or not last] + last


def _is_named(sentence: str, run: coordinates.Run) -> bool:
    """Whether a sentence means a point by these numbers."""
    before = sentence[: run.start]
    if CUE_BEFORE.search(before) or run.is_precise:
        return True
    is_meant = PLACE_BEFORE.search(before) or (CUE.search(before) and not REMARK_BEFORE.search(before))
    return run.has_fractions and bool(is_meant)


def _same(points: list[Point | None]) -> Point | None:
    """The one point that all are, however written; None for none and for several."""
    given = [point for point in points if point is not None]
    if not given or len(given) < len(points):
        return None
    same = all(point == given[0] or geo.distance_km(given[0], point) <= SAME_KM for point in given)
    return given[0] if same else None


def _one(labels: set[str | None]) -> str | None:
    return labels.pop() if len(labels) == 1 else None


def _without_points(text: str) -> str:
    for run in reversed(coordinates.runs(text)):
        text = f"{text[: run.start]}\n{text[run.end :]}"
    return text.strip(" \t\n,;-")


def _name(texts: list[str], labels: Labels | None) -> str | None:
    """The one name that the texts give, however often; None for none and for several."""
    if labels is not None:
        return _one({label for text in texts for label in labels.named_in(text)})
    names = {normalised(text): " ".join(text.split()).strip(" .") for text in texts}
    only = next(iter(names.values())) if len(names) == 1 and "" not in names else None
    return only if only and len(only) <= LONGEST else None


def _ranked(texts: list[str], labels: Labels | None) -> tuple[str, ...] | None:
    """The names of a list in their order, each once; None without any."""
    items = [re.sub(r"^[\s\d.()\[\]-]+", "", item).strip(" .])") for item in re.split(r"[,;>\n]", "\n".join(texts))]
    if labels is not None:
        items = [label for item in items if (label := _name([item], labels))]
    ranked = list(dict.fromkeys(item for item in items if normalised(item) and len(item) <= LONGEST))
    return tuple(ranked[:RANKS]) or None
