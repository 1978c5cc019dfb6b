"""Read coordinates in running text: numbers with signs or letters, points or commas, degrees and minutes.

Ambiguous text is not read. Two numbers side by side are a point; three are a list, and no point; neither are a range
("39 to 41") and a measure ("12, 14 miles").
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

Number = tuple[float, str]  # degrees, and the axis that its letter names: "lat", "lon" or ""
Point = tuple[float, float]

FLAGS = re.VERBOSE | re.IGNORECASE
DASHES = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63\uff0d"), "-")
DEGREE_SIGNS = dict.fromkeys(map(ord, "\u00ba\u02da\u2218"), "°")
FOOTNOTES = re.compile("[\u00b9\u00b2\u00b3\u2070-\u209f\u2460-\u24ff]")  # NFKC would make digits of them
CHINESE = (
    (re.compile("[经經][纬緯]度|[坐座][标標]"), "Coordinates"),
    (re.compile("[纬緯]度"), "Latitude"),
    (re.compile("[经經]度"), "Longitude"),
    (re.compile("(?<=[es])[大约約]{0,2}[为為是](?=[大约約]{0,2}[ \t]*[-\\d北南东東西])"), ":"),
    (re.compile("北[纬緯]"), " N "),
    (re.compile("南[纬緯]"), " S "),
    (re.compile("[东東][经經]"), " E "),
    (re.compile("西[经經]"), " W "),
    (re.compile(r"(?<=\d)\s*度"), "°"),
    (re.compile(r"(?<=\d)\s*分"), "\u2032"),
    (re.compile(r"(?<=\d)\s*秒"), "\u2033"),
    (re.compile("大?[约約]|左右"), " "),
    (re.compile("。"), ".\n"),
    (re.compile("[、和]"), ", "),
)
LETTER_OF = {
    **dict.fromkeys(["n", "north", "norte", "nord"], "N"),
    **dict.fromkeys(["s", "south", "sur", "sul", "sud"], "S"),
    **dict.fromkeys(["e", "east", "este", "leste"], "E"),
    **dict.fromkeys(["w", "west", "oeste", "ouest", "ovest"], "W"),
}
WORDS = "north|south|east|west|norte|sur|sul|este|leste|oeste|nord|sud|ouest|ovest"
SIDE = r"(?: north | south | east | west | norte | sur | sul | este | leste | oeste | (?-i:[NSEW]) )"
AXIS = r"(?: latitude | longitude | lat | long? )\b\.?"
SIDE_OF_AXIS = re.compile(rf"(?<![\w'\u2019]) ({SIDE})(?:ern)? [ \t]+ ({AXIS}) ([ \t]*[:=])?", FLAGS)
AXIS_AND_SIDE = re.compile(
    rf"\b ({AXIS}) [ \t]* \(? [ \t]* °? [ \t]* ({SIDE})(?:ern)? \b [ \t]* \)? ([ \t]*[:=])?", FLAGS
)
AXES_BEHIND = re.compile(
    r"""(?<![\w.:=]) (?<! [:=][ ]) ([-+]? \d{1,3} (?:\.\d+)?) [ \t]* °? [ \t]* (?:in[ ])? lat(?:itude)?\b
    [ \t]* ,? [ \t]* (?:and)? [ \t]* ([-+]? \d{1,3} (?:\.\d+)?)
    [ \t]* °? [ \t]* (?:in[ ])? lon(?:g|gitude)?\b (?! [ \t]*[-:=\d] )""",
    FLAGS,
)
MINUTES = re.compile(
    r"""(\d{1,3}) \s*°\s* (\d{1,2}(?:\.\d+)?) \s* (?: ['\u2032\u2019] | min(?:utes?|utos?)?\b )
    (?: \s* ,? \s* (\d{1,2}(?:\.\d+)?) \s*
    (?: ["\u2033\u201d] | '' | \u2032\u2032 | sec(?:onds?)?\b | segundos\b ) )?""",
    FLAGS,
)
TOLERANCE = re.compile(
    r"\(?\s*(?:±|\+/-|\+-)\s*\d+(?:[.,]\d+)?\s*(?:°|km|miles|mi|m\b|%|'|\u2032)?\s*\)?", re.IGNORECASE
)
HEDGE = re.compile(
    r"""(?<!\d) (?<!\d[ ]) (?: \b(?: around | about | approximately | approx\b\.? | roughly | circa | ca\. | nearly
    | aproximadamente | aprox\b\.? | alrededor[ ]de | cerca[ ]de | unos ) | [~\u2248] )
    \s* (?= [-+]? \d | [NSEW]\b[ ]?\d )""",
    FLAGS,
)
ON_TWO_LINES = re.compile(
    r"^([ \t]*\d+(?:\.\d+)?[ \t]*°?[ \t]*[NS])[ \t]*,?\n(?=[ \t]*\d+(?:\.\d+)?[ \t]*°?[ \t]*[EW][ \t]*$)",
    re.MULTILINE,
)
NOT_ON_EARTH = "999"
UNIT = r"(?: [ \t]* ° )?"
LETTER = r"(?: north | south | east | west | [NSEW] )"
BETWEEN = r"""(?: [ \t]*;[ \t]* | [ \t]*,[ \t]+ | [ \t]*/[ \t]+ | (?<=[°NSEW])/ | /(?=[NSEW])
| [ \t]*,?[ \t]+(?:and|y|&)[ \t]+ | [ \t]+ )"""
MEASURE = r"""(?: miles? | mi | km | mph | kph | feet | ft | meters? | metres? | m | mpg | °?[ ]?[CF] | percent | am
| pm | minutes? | hours? | years? | dollars? | kilomet(?:er|re)s? )\b"""


def _number(fraction: str) -> str:
    """A pattern for degrees with that fraction, not inside a word, a longer number or a percentage."""
    digits, bounded = rf"[-+]? \d{{1,3}} {fraction}", r"(?! [\w%] | [.]\d )"
    return (
        rf"(?<![\w.+-]) (?: (?<!['\u2019]) {LETTER} [ \t]* {digits} {bounded} {UNIT} "
        rf"| {digits} {UNIT} [ \t]* {LETTER} {bounded} | {digits} {bounded} {UNIT} )"
    )


POINT, COMMA = _number(r"(?:[.]\d+)?"), _number(r",\d+")
ANY = re.compile(_number(r"(?:[.,]\d+)?"), FLAGS)
ALONE = r"(?<! \d[ ] ) (?<! \d[,;] ) (?<! \d[,;][ ] )", r"(?! [ \t]*[,;/]?[ \t]*[-+]?\d )"
RUNS = (  # patterns of numbers side by side, and of one of them; commas are decimal where all of them can be
    (re.compile(f"{ALONE[0]} {COMMA} (?: {BETWEEN} {COMMA} )++ {ALONE[1]}", FLAGS), re.compile(COMMA, FLAGS)),
    (re.compile(rf"{POINT} (?: (?: [ \t]*,[ \t]* | {BETWEEN} ) {POINT} )+", FLAGS), re.compile(POINT, FLAGS)),
)
RANGE = r"(?: to | through | or | and | - | ~ | y | a | o | through | between )"
RANGE_BEFORE = re.compile(rf"(?: \d[ ]?°?[ ]?[NSEW]? [ \t]* {RANGE} | \bbetween ) [ \t]* $", FLAGS)
RANGE_AFTER = re.compile(rf"[ \t]* (?: {RANGE} | [,;/] ) [ \t]* [-+]? \d", FLAGS)
LIST_AFTER = re.compile(rf"[ \t]* {RANGE} [ \t]* [-+]? \d | [ \t]*{MEASURE}", FLAGS)
LEAD = re.compile(
    r"""(?: \s | [:=~(\[\u2248] | \b(?: approximately | approx\b\.? | about | around | roughly | circa | ca\.? | near
    | nearly | is | are | of | at | estimated | est\.? | likely | probably | possibly | maybe | perhaps | would | be
    | to | close | somewhere | the | i | think | guess | estimate | believe | it | value | latitude | longitude | lat
    | long? )\b )*""",
    FLAGS,
)


class Run(NamedTuple):
    """Numbers side by side: where they stand in the text, what stands there, and the point; None for a list."""

    start: int
    end: int
    text: str
    point: Point | None

    @property
    def is_precise(self) -> bool:
        """Whether no remark is likely to hold such numbers: letters or degrees with both, or a sign and fractions."""
        numbers = re.findall(r"[-+]?\d+(?:[.,]\d+)?", self.text)
        if len(re.findall(rf"\d [ \t]* °? [ \t]* {LETTER}\b | \b{LETTER}[ \t]?[-+]?\d", self.text, FLAGS)) >= 2:
            return "°" in self.text or self.has_fractions
        fractions = [len(re.split(r"[.,]", number)[-1]) for number in numbers if re.search(r"[.,]", number)]
        signed = any(number[0] == "-" for number in numbers)
        return len(fractions) == len(numbers) and (signed or min(fractions) >= 3)

    @property
    def has_fractions(self) -> bool:
        """Whether a number has a fraction, a sign or a degree sign."""
        return bool(re.search(r"\d[.,]\d|-\d|°", self.text))


def plain(text: str) -> str:
    """Text with ASCII digits and minus signs, one kind of degree sign, decimal degrees, and letters for hemispheres.

    >>> plain("−40° 30′ N, 83º W")
    '-40.500000° N, 83° W'
    >>> plain("北纬40度，西经83度"), plain("40 degrees north latitude")
    (' N 40°, W 83°', '40 ° N ')
    """
    if not text.isascii():
        text = re.sub("\u2014(?=\\s?[A-Za-z])", " - ", FOOTNOTES.sub(" ", text))
        text = unicodedata.normalize("NFKC", text.translate(DASHES | DEGREE_SIGNS))  # NFKC makes º an o
        for pattern, word in CHINESE:
            text = pattern.sub(word, text)
        text = re.sub(r",(?=  ?[NSEW] )", ",", text)
    text = re.sub(r"\b(lat|long)itud\b", r"\1itude", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![a-z])(?:deg(?:rees?)?|grados?)\b\.?", "°", text, flags=re.IGNORECASE)
    text = MINUTES.sub(_decimal, text)
    text = TOLERANCE.sub(" ", text)
    text = re.sub(r"(?<=[\d°])[ \t]*(?:de[ \t]+)?O(?!\w|\.\w)", " W", text)  # oeste
    text = re.sub(r"(?<=°)[ \t]+(?:of|de)[ \t]+(?=l)", " ", text)
    text = re.sub(rf"(?<=[\d°])[ \t]*\([ \t]*({WORDS}|[NSEW])[ \t]*\)", _letter, text, flags=re.IGNORECASE)
    text = SIDE_OF_AXIS.sub(lambda match: _side(match, match[1], match[2]), text)
    text = AXIS_AND_SIDE.sub(lambda match: _side(match, match[2], match[1]), text)
    text = re.sub(rf"(?<=[\d°])[ \t]+(?:(?:to|in) the +)?({WORDS})\b", _letter, text, flags=re.IGNORECASE)
    text = AXES_BEHIND.sub(r"Latitude: \1\nLongitude: \2\n", text)
    text = ON_TWO_LINES.sub(r"\1, ", text)
    text = HEDGE.sub("", text)
    return re.sub(r"(?<=[:=,;])([ \t]*)-[ \t]+(?=\d)", r"\1-", text)  # "Longitude: - 83" means -83


def _side(match: re.Match, side: str, axis: str) -> str:
    """Latitude's or longitude's letter, where a key is behind them also the key; unchanged where they do not fit."""
    letter, is_lat = LETTER_OF[side.lower()], axis[:2].lower() == "la"
    if is_lat != (letter in "NS"):
        return match[0]
    return f"{'Latitude' if is_lat else 'Longitude'}: {letter} " if match[3] else f"{letter} "


def _letter(match: re.Match) -> str:
    return f" {LETTER_OF[match[1].lower()]}"


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
    """The number of a line about `axis`, "lat" or "lon", remarks behind it left out.

    NaN for a list or a range, for none or several in a sentence, and for a letter of the other axis.
    """
    lead = LEAD.match(text)
    match = ANY.match(text, lead.end() if lead else 0)
    if match is None:
        matches = list(ANY.finditer(text))
        match = matches[0] if len(matches) == 1 and re.search(r"\d[.,]\d|°", matches[0][0]) else None
        if match is None or RANGE_BEFORE.search(text[: match.start()]) or re.search(r"(?i)\b(?:west|south)", text):
            return float("nan"), axis
    if RANGE_AFTER.match(text, match.end()) or LIST_AFTER.match(text, match.end()):
        return float("nan"), axis
    value, letter_axis = degrees(match[0])
    return (value if letter_axis in ("", axis) else float("nan")), axis


def runs(text: str) -> list[Run]:
    """The runs of two and more numbers side by side in a text, in order; no ranges and measures."""
    found = []
    for pattern, number in RUNS:
        for match in pattern.finditer(text):
            numbers = number.findall(match[0])
            values = [degrees(one) for one in numbers]
            if re.search(r"\band\b|\by\b|&", match[0]) and not all(axis for _, axis in values):
                continue
            if RANGE_BEFORE.search(text[max(0, match.start() - 20) : match.start()]) or LIST_AFTER.match(
                text, match.end()
            ):
                continue
            found.append(Run(match.start(), match.end(), match[0], point(*values) if len(values) == 2 else None))
        text = pattern.sub(lambda match: "\n" * len(match[0]), text)
    return sorted(found)


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
