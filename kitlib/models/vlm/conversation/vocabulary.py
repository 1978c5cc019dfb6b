"""Names that a reply may give: a closed vocabulary, matched by the exact normalised name, never by a part.

A match by substring finds Kansas in Arkansas, Virginia in West Virginia and "" in everything, and what earns by
accident is learnt on purpose. The names come from the data:

    states = from_table(places.states, "state")
    countries = Labels(table["country"].unique())
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from kitlib.core.errors import KitError

LONGEST = 100  # characters; what is longer is no name, and not worth normalising
SILENT = set(".'’‘ʻʼ´`") | {chr(code) for code in range(0x300, 0x370)}  # dropped: D.C., Hawaiʻi, accents
KEPT = "LNM"  # Unicode's letters, numbers, and the marks that other scripts write vowels with


def normalised(name: str) -> str:
    """A name without case, accents, full stops and apostrophes, its words apart by one space.

    >>> normalised(" São  PAULO "), normalised("Washington, D.C."), normalised("Hawaiʻi"), normalised("- ?")
    ('sao paulo', 'washington dc', 'hawaii', '')
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    letters = (char if unicodedata.category(char)[0] in KEPT else " " for char in text if char not in SILENT)
    return " ".join("".join(letters).split())


class Labels:
    """A closed vocabulary.

    names: the labels (S,), in the order of their positions.
    Raises KitError for no names, and for names that are empty, stand twice, or are the same but for case and accents.
    """

    def __init__(self, names: Iterable[str]):
        self.names = tuple(str(name) for name in names)
        if not self.names:
            raise KitError("a vocabulary needs at least one name")
        self._label: dict[str, str] = {}
        for name in self.names:
            key = normalised(name)
            if not key or len(name) > LONGEST:
                raise KitError(f"{name[:LONGEST]!r} cannot be a name: expected letters or digits, at most {LONGEST}")
            if key in self._label:
                raise KitError(f"{name!r} and {self._label[key]!r} are one name in the vocabulary; each may stand once")
            self._label[key] = name
        self._position = {name: position for position, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> str | None:
        """The label that `text` as a whole names, None when it names none.

        >>> states = Labels(["Kansas", "Arkansas"])
        >>> states.find("**kansas**"), states.find("Kansas, Arkansas"), states.find("")
        ('Kansas', None, None)
        """
        return self._label.get(normalised(text)) if len(text) <= LONGEST else None

    def positions(self, texts: Iterable[str | None]) -> np.ndarray:
        """The positions in `names` (N,) of what N texts name, -1 for None and for what names no label."""
        names = [None if text is None else self.find(text) for text in texts]
        return np.array([-1 if name is None else self._position[name] for name in names], np.int64)


def from_table(table: Any, name: str) -> Labels:
    """The vocabulary of a table's column `name`; table: a DataFrame or a mapping of columns, one row a label.

    >>> from_table({"state": ["Ohio", "Iowa"]}, "state").find("ohio")
    'Ohio'
    """
    return Labels(table[name])
