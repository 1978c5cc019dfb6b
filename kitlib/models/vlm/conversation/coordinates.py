"""Coordinates in running text: numbers with signs or letters, points or commas, degrees and minutes.

Only what can be read in one way is read. Two numbers side by side are a point, three are a list and none.
"""

from __future__ import annotations

import re
import unicodedata

Number = tuple[float, str]  # degrees, and "lat", "lon" or "", as its letter tells
Point = tuple[float, float]

FLAGS = re.VERBOSE | re.IGNORECASE
DASHES = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"), "-")
DEGREE_SIGNS = dict.fromkeys(map(ord, "\u00ba\u02da\u2218"), "°")
MINUTES = re.compile(
    r"""(\d{1,3}) \s*°\s* (\d{1,2}(?:\.\d+)?) \s* ['\u2032\u2019]
    (?: \s* (\d{1,2}(?:\.\d+)?) \s* (?: ["\u2033\u201d] | '' | \u2032\u2032 ) )?""",
    re.VERBOSE,
)
NOT_ON_EARTH = "999"
UNIT = r"(?: [ \t]* ° )?"
LETTER = r"(?: north | south | east | west | [NSEW] )"
BETWEEN = r"(?: [ \t]*;[ \t]* | ,[ \t]+ | [ \t]+/[ \t]+ | [ \t]+ )"


def _number(fraction: str) -> str:
    """A pattern for degrees, given that of a fraction; they are no part of a word, a longer number or a percentage."""
    digits, bounded = rf"[-+]? \d{{1,3}} {fraction}", r"(?! [\w%] | [.]\d )"
    return (
        rf"(?<![\w.+-]) (?: {LETTER} [ \t]? {digits} {bounded} {UNIT} "
        rf"| {digits} {UNIT} [ \t]* {LETTER} {bounded} | {digits} {bounded} {UNIT} )"
    )


POINT, COMMA = _number(r"(?:[.]\d+)?"), _number(r",\d+")
ANY = re.compile(_number(r"(?:[.,]\d+)?"), FLAGS)
ALONE = r"(?<! \d[ ] ) (?<! \d[,;] ) (?<! \d[,;][ ] )", r"(?! [ \t]*[,;/]?[ \t]*[-+]?\d )"
RUNS = (  # what stands side by side, and a number in it; a comma is a decimal one where it can be in all of them
    (re.compile(f"{ALONE[0]} {COMMA} (?: {BETWEEN} {COMMA} )++ {ALONE[1]}", FLAGS), re.compile(COMMA, FLAGS)),
    (re.compile(rf"{POINT} (?: (?: [ \t]*,[ \t]* | {BETWEEN} ) {POINT} )+", FLAGS), re.compile(POINT, FLAGS)),
)


def plain(text: str) -> str:
    """Text with ASCII digits, minus signs and quotes as they are, one degree sign, and decimal degrees.

    >>> plain("−40° 30′ N, 83º W")
    '-40.500000° N, 83° W'
    """
    text = unicodedata.normalize("NFKC", text.translate(DASHES | DEGREE_SIGNS))  # NFKC makes º an o
    text = re.sub(r"(?<![a-z])deg(?:rees?)?\b", "°", text, flags=re.IGNORECASE)
    text = MINUTES.sub(_decimal, text)
    return re.sub(r"(?<=[:=,;])([ \t]*)-[ \t]+(?=\d)", r"\1-", text)  # "Longitude: - 83" means -83


def _decimal(match: re.Match) -> str:
    degrees, minutes, seconds = (float(part or 0) for part in match.groups())
    is_angle = minutes < 60 and seconds < 60
    return f"{degrees + minutes / 60 + seconds / 3600:.6f}°" if is_angle else NOT_ON_EARTH


def degrees(text: str) -> Number:
    """One number as degrees; NaN where its sign contradicts its letter.

    >>> degrees("83,5° West"), degrees("-40"), degrees("-40 N")
    ((-83.5, 'lon'), (-40.0, ''), (nan, 'lat'))
    """
    value = float(re.sub(r"[^\d.,+-]", "", text).replace(",", "."))
    letter = re.search(LETTER, text, FLAGS)
    if not letter:
        return value, ""
    initial = letter[0][0].upper()
    if "-" in text and initial in "NE":
        value = float("nan")
    return -abs(value) if initial in "SW" else value, "lat" if initial in "NS" else "lon"


def only_number(text: str, axis: str) -> Number:
    """The number of a line about `axis`, "lat" or "lon"; NaN where there is not one, or one with the other's letter."""
    found = ANY.findall(text)
    value, said = degrees(found[0]) if len(found) == 1 else (float("nan"), "")
    return (value if said in ("", axis) else float("nan")), axis


def side_by_side(text: str) -> tuple[set[Point | None], str]:
    """The points that stand in a text as two numbers side by side, None for a run that is no point, and the rest."""
    points = set()
    for runs, number in RUNS:
        for run in runs.findall(text):
            numbers = [degrees(one) for one in number.findall(run)]
            points.add(point(*numbers) if len(numbers) == 2 else None)
        text = runs.sub("\n", text)
    return points, text


def point(first: Number, second: Number) -> Point | None:
    """Two numbers as [lat, lon], the other way round where their letters say so; None where that is no place on Earth.

    >>> point((-83.0, "lon"), (40.0, "lat")), point((91.0, ""), (0.0, ""))
    ((40.0, -83.0), None)
    """
    if first[1] == second[1] != "":
        return None
    if first[1] == "lon" or second[1] == "lat":
        first, second = second, first
    lat, lon = first[0] + 0.0, second[0] + 0.0  # no negative zeros
    return (lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None
