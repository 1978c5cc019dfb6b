"""Closed vocabularies of names: a text matches a whole normalised name, never a part of it.

A match by substring finds Kansas in Arkansas, Virginia in West Virginia and "" in everything, and reinforcement
learning exploits every accidental reward. The names come from the data: `Labels(places.states["state"])`. A name is
also found by its usual other forms (`names.csv`): US states by postal code, countries by ISO 3166 code and by their
English short names.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from kitlib.core.errors import KitError

LONGEST = 100  # characters; a longer text is no name, and is not normalised
SILENT = set(".'’‘ʻʼ´`") | {chr(code) for code in range(0x300, 0x370)}  # dropped: D.C., Hawaiʻi, accents
LETTERS = "LNM"  # Unicode's letters, numbers, and the marks that other scripts write vowels with
TITLE = re.compile(r"^(?:the )?(?:(?:us )?(?:state|commonwealth|republic|kingdom|province) of (?:the )?)?")
OF_THE_US = re.compile(r"(.+?) (?:in )?(?:the )?(?:united states(?: of america)?|usa|us|america)")
HEDGES = re.compile(
    r"(?:(?:most |very )?(?:likely|probably|possibly)|maybe|perhaps|approximately|i (?:think|believe|guess))[ ,:]+",
    re.IGNORECASE,
)
FORMS = re.compile(r"[()/]|[ ]-[ ]")  # between two forms of one name
REASON = re.compile(
    r"""[ ]+-{1,2}[ ]+ | [ ]*[(\[] | [;?] | [.][ ] 
    | [ ]*,?[ ]+(?: because | based | given | due | judging | since | as[ ]
    | (?:most[ ])?likely | probably | possibly | (?:near | close[ ]to | around | with)[ ] )""",
    re.VERBOSE | re.IGNORECASE,
)
OR = re.compile(r"[^\w]*(?:or|and|maybe|perhaps|possibly)\b", re.IGNORECASE)


@lru_cache(4096)  # a training reads the same few names over and over
def normalised(name: str) -> str:
    """A name without case, accents, full stops and apostrophes, with single spaces.

    >>> normalised(" São  PAULO "), normalised("Washington, D.C."), normalised("Hawaiʻi"), normalised("- ?")
    ('sao paulo', 'washington dc', 'hawaii', '')
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    letters = (char if unicodedata.category(char)[0] in LETTERS else " " for char in text if char not in SILENT)
    return " ".join("".join(letters).split())


@cache
def _groups() -> dict[str, list[tuple[frozenset[str], frozenset[str]]]]:
    """For states and for countries: the codes and the normalised names of each."""
    with (Path(__file__).parent / "names.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, list[tuple[frozenset[str], frozenset[str]]]] = {"state": [], "country": []}
    for row in rows:
        names = frozenset(map(normalised, row["names"].split("|")))
        groups[row["kind"]].append((frozenset(row["codes"].split()), names))
    return groups


@cache
def _countries() -> frozenset[str]:
    """The normalised names and codes of all countries."""
    return frozenset(form for codes, names in _groups()["country"] for form in (*names, *map(normalised, codes)))


class Labels:
    """A closed vocabulary of names (S,), in the order of their positions, each with its usual other forms.

    Raises KitError for no names, for empty names, and for names that are equal after normalising.
    """

    def __init__(self, names: Iterable[str]):
        self.names = tuple(str(name) for name in names)
        if not self.names:
            raise KitError("vocabulary: expected at least one name; got none")
        self._label: dict[str, str] = {}
        for name in self.names:
            key = normalised(name)
            if not key or len(name) > LONGEST:
                raise KitError(f"vocabulary: expected letters or digits, at most {LONGEST}; got {name[:LONGEST]!r}")
            if key in self._label:
                raise KitError(f"vocabulary: expected each name once; got {self._label[key]!r} and {name!r}")
            self._label[key] = name
        self._position = {name: position for position, name in enumerate(self.names)}
        self._codes: dict[str, str] = {}  # OH, USA: in capitals only, as "in" and "or" are words
        self.are_us_states = False
        self._add_other_forms()

    def _add_other_forms(self) -> None:
        """Add the other forms of the names, of US states or of countries, whichever more of them are."""
        found = {kind: list(self._matches(groups)) for kind, groups in _groups().items()}
        kind = max(found, key=lambda kind: len(found[kind]))
        self.are_us_states = kind == "state" and bool(found[kind])
        for name, codes, forms in found[kind]:
            for form in forms:
                self._label.setdefault(form, name)
            self._codes |= dict.fromkeys(codes, name)
            if self.are_us_states:
                self._label.setdefault(f"{normalised(name)} state", name)
                self._codes |= {f"US-{code}": name for code in codes}

    def _matches(
        self, groups: list[tuple[frozenset[str], frozenset[str]]]
    ) -> Iterator[tuple[str, frozenset[str], frozenset[str]]]:
        for codes, forms in groups:
            own = {name for key, name in self._label.items() if key in forms or name in codes}
            if len(own) == 1:
                yield own.pop(), codes, forms

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> str | None:
        """The label that the whole `text` names, in any of its forms; None when it names none.

        >>> states = Labels(["Kansas", "Arkansas"])
        >>> states.find("**kansas**"), states.find("Kansas, Arkansas"), states.find("")
        ('Kansas', None, None)
        >>> states.find("KS"), states.find("State of Kansas"), states.find("Kansas, USA")
        ('Kansas', 'Kansas', 'Kansas')
        """
        return self.find_name(text) or (self.find_code(text) if len(text) <= LONGEST else None)

    def find_name(self, text: str) -> str | None:
        """As `find`, but not by a code: "OK" alone on a line is no state."""
        if len(text) > LONGEST:
            return None
        whole = normalised(text.replace("&", " and ") if "&" in text else text)
        label = self._label.get(whole) or self._label.get(normalised(text))
        if label or not whole:
            return label
        if self.are_us_states and (state := OF_THE_US.fullmatch(whole)):
            return self._label.get(TITLE.sub("", state[1])) or self.find_code(text.split()[0])
        name, comma, country = text.rpartition(",")
        if comma and normalised(country) in _countries() - self._label.keys() and not self.are_us_states:
            return self.find(name)
        return self._label.get(TITLE.sub("", whole))

    def find_code(self, text: str) -> str | None:
        """The label of a code in capitals, such as OH, US-OH or N.Y."""
        return self._codes.get(text.strip(" \t*_`\"'().,;:").replace(".", ""))

    def named_in(self, text: str) -> list[str]:
        """The labels of a text that is to give one: in one form or two, perhaps with a hedge and a reason.

        Empty for a text that begins with no label; two labels for an alternative.

        >>> states = Labels(["Ohio", "Indiana"])
        >>> states.named_in("Ohio (OH)"), states.named_in("probably Ohio - it is flat")
        (['Ohio', 'Ohio'], ['Ohio'])
        >>> states.named_in("Ohio (or Indiana)")
        ['Ohio', 'Indiana']
        """
        if len(text) > 4 * LONGEST:
            return []
        text = text[hedge.end() :] if (hedge := HEDGES.match(text)) else text
        if label := self.find(text):
            return [label]
        forms = [self.find(form) for form in FORMS.split(text) if normalised(form)]
        if len(forms) > 1 and all(forms):
            return [label for label in forms if label]
        reason = REASON.search(text)
        if reason is None or not (label := self.find(text[: reason.start()])):
            return []
        rest = text[reason.end() :].strip(" )]")
        others = [self.find(part) for part in (OR.sub("", rest), *re.split(r"[(),;/]|[ ]-[ ]", rest))]
        return [label, *dict.fromkeys(other for other in others if other)]

    def positions(self, texts: Iterable[str | None]) -> np.ndarray:
        """The positions in `names` (N,) of the labels that N texts name; -1 for None and for no label."""
        names = [None if text is None else self.find(text) for text in texts]
        return np.array([-1 if name is None else self._position[name] for name in names], np.int64)
