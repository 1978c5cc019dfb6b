"""Read coordinates in running text: numbers with signs or letters, points or commas, degrees and minutes.

Ambiguous text is not read. Two numbers side by side are a point; three are a list, and no point.
"""

from __future__ import annotations

import re
import unicodedata

Number = tuple[float, str]  # degrees, and the axis that its letter names: "lat", "lon" or ""
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
    """A pattern for degrees with that fraction, not inside a word, a longer number or a percentage."""
    digits, bounded = rf"[-+]? \d{{1,3}} {fraction}", r"(?! [\w%] | [.]\d )"
    return (
        rf"(?<![\w.+-]) (?: {LETTER} [ \t]? {digits} {bounded} {UNIT} "
        rf"| {digits} {UNIT} [ \t]* {LETTER} {bounded} | {digits} {bounded} {UNIT} )"
    )


POINT, COMMA = _number(r"(?:[.]\d+)?"), _number(r",\d+")
ANY = re.compile(_number(r"(?:[.,]\d+)?"), FLAGS)
ALONE = r"(?<! \d[ ] ) (?<! \d[,;] ) (?<! \d[,;][ ] )", r"(?! [ \t]*[,;/]?[ \t]*[-+]?\d )"
RUNS = (  # patterns of numbers side by side, and of one of them; commas are decimal where all of them can be
    (re.compile(f"{ALONE[0]} {COMMA} (?: {BETWEEN} {COMMA} )++ {ALONE[1]}", FLAGS), re.compile(COMMA, FLAGS)),
    (re.compile(rf"{POINT} (?: (?: [ \t]*,[ \t]* | {BETWEEN} ) {POINT} )+", FLAGS), re.compile(POINT, FLAGS)),
)


def plain(text: str) -> str:
    """Text with ASCII digits and minus signs, one kind of degree sign, and decimal degrees.

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
    """The number of a line about `axis`, "lat" or "lon"; NaN unless it is the only one and its letter fits."""
    matches = ANY.findall(text)
    value, letter_axis = degrees(matches[0]) if len(matches) == 1 else (float("nan"), "")
    return (value if letter_axis in ("", axis) else float("nan")), axis


def side_by_side(text: str) -> tuple[set[Point | None], str]:
    """The points of a text, which are two numbers side by side, with None for longer runs; and the rest of the text."""
    points = set()
    for runs, number in RUNS:
        for run in runs.findall(text):
            numbers = [degrees(one) for one in number.findall(run)]
            points.add(point(*numbers) if len(numbers) == 2 else None)
        text = runs.sub("\n", text)
    return points, text


def point(first: Number, second: Number) -> Point | None:
    """Two numbers as [lat, lon], swapped where their letters say so; None where that is no place on Earth.

    >>> point((-83.0, "lon"), (40.0, "lat")), point((91.0, ""), (0.0, ""))
    ((40.0, -83.0), None)
    """
    if first[1] == second[1] != "":
        return None
    if first[1] == "lon" or second[1] == "lat":
        first, second = second, first
    lat, lon = first[0] + 0.0, second[0] + 0.0  # no negative zeros
    return (lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None
