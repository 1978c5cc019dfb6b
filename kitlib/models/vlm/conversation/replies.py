"""Parse a model's reply: the point and the names that it gives, None where it is unclear.

The parser reads lines such as `State: Ohio` and `Latitude: 39.96`, and a bare `39.96, -83.00`; plain text, markdown and
something like JSON; signs or N, S, E, W; decimal points or commas; minutes and seconds. Reasoning in <think> tags is
ignored. A field that is missing, out of range, or given twice in two ways is None: a list of places is not an answer,
and reinforcement learning finds every rule that pays for lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kitlib.models.vlm.conversation import coordinates
from kitlib.models.vlm.conversation.vocabulary import LONGEST, Labels, normalised

NAMES = ("city", "region", "country")
MAX_LENGTH = 2000  # characters of a reply without its reasoning; a longer one is not parsed

DRESS = dict.fromkeys(map(ord, '*_`"\u201c\u201d'), "") | dict.fromkeys(map(ord, "{}#|<>\\$"), " ")
KEY = re.compile(
    r"""\b (?:
        (?: (?P<city> city | town )
          | (?P<region> (?:region|state|province) (?: [ ]*[/ ][ ]* (?:region|state|province))? )
          | (?P<country> country )
        ) \b (?: [ ]? \([^()\n]{0,20}\) )? [ \t]* [:=]
      | (?: (?P<lat> lat(?:itude)? ) | (?P<lon> lon(?:gitude)? | lng | long (?=[ \t]*(?:[:=]|-\d|\d+[.])) )
        ) \b (?: [ ]? \([^()\n]{0,20}\) )? (?: [ \t]* [:=] | (?= [ \t]* (?:is|of|~)? [ \t]* [-+(]? \d) )
    )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Reply:
    """A parsed reply, or the truth about a place: point [lat, lon] in degrees, and names; None is unknown.

    region: the state, province or whatever the data set calls it.
    """

    point: tuple[float, float] | None = None
    city: str | None = None
    region: str | None = None
    country: str | None = None


def visible(reply: str) -> str:
    """The reply without its reasoning: text in <think> tags, after an unclosed one, before an unopened end.

    >>> visible("1, 2</think>A<think>3, 4</think>B<think>5, 6").split()
    ['A', 'B']
    """
    text = re.sub(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", "\n", reply, flags=re.DOTALL | re.IGNORECASE)
    return re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]


def read(reply: str, labels: Mapping[str, Labels] | None = None, bare: str | None = None) -> Reply:
    """Parse a reply.

    labels: vocabularies by field ("city", "region", "country"); such a field is one of its labels or None, any other
    has the reply's own wording. bare: a field with a vocabulary that a line without a key may name.

    >>> read("**State:** Ohio\\n40°N, 83°W")
    Reply(point=(40.0, -83.0), city=None, region='Ohio', country=None)
    >>> read("40, -83 or 41, -90").point is None
    True
    """
    labels, text = labels or {}, visible(reply)
    if len(text) > MAX_LENGTH:
        return Reply()
    values, before, lines = _lines(_undressed(text))
    points, _ = coordinates.side_by_side("\n".join(before + lines))
    for name in NAMES:  # "Kansas City: 39.1, -94.6" and "State: Ohio, 40.1, -83" hold a point as well
        pairs = [coordinates.side_by_side(text) for text in values[name]]
        points |= {point for own, _ in pairs for point in own}
        values[name] = [rest.strip(" \t\n,;") for _, rest in pairs]
    if values["lat"] or values["lon"]:
        lats, lons = ({coordinates.only_number(text, axis) for text in values[axis] or [""]} for axis in ("lat", "lon"))
        points |= {coordinates.point(lat, lon) for lat in lats for lon in lons}
    if bare is not None:
        values[bare] += [line for line in lines if labels[bare].find(line)]
    names = {field: _name(values[field], labels.get(field)) for field in NAMES}
    return Reply(points.pop() if len(points) == 1 else None, **names)


def _undressed(text: str) -> str:
    """Text without markdown, quotes, braces and tags, with plainly written numbers."""
    text = re.sub(r"</?answer>|<\|[^|<>]{1,30}\|>", "\n", text, flags=re.IGNORECASE)
    text = coordinates.plain(text).translate(DRESS)
    return re.sub(r"\blat(?:itude)?\s*(?:[,/&]|and)\s*lon(?:g|gitude)?\b", "point", text, flags=re.IGNORECASE)


def _lines(text: str) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The texts after each key, up to the next key or the line's end; texts before the keys; lines without keys."""
    values: dict[str, list[str]] = {field: [] for field in (*NAMES, "lat", "lon")}
    before: list[str] = []
    without: list[str] = []
    for line in text.splitlines():
        keys = list(KEY.finditer(line))
        starts = [key.start() for key in keys] + [len(line)]
        for key, end in zip(keys, starts[1:], strict=True):
            values[str(key.lastgroup)].append(line[key.end() : end].strip(" \t,;"))
        (before if keys else without).append(line[: starts[0]])
    return values, before, without


def _name(texts: list[str], labels: Labels | None) -> str | None:
    """The one name that the texts give, however often; None for none and for several."""
    if labels is None:
        names = {normalised(text): " ".join(text.split()).strip(" .") for text in texts}
        only = next(iter(names.values())) if len(names) == 1 and "" not in names else None
        return only if only and len(only) <= LONGEST else None
    matches = set()
    for text in texts:
        parts = [text] if labels.find(text) else [part for part in re.split(r"[()]", text) if part.strip()] or [text]
        matches |= {labels.find(part) for part in parts}  # "Ohio (OH)" names Ohio twice
    return matches.pop() if len(matches) == 1 else None
