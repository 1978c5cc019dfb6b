"""Closed vocabularies of names: a text matches the exact normalised name, never a part of it.

A match by substring finds Kansas in Arkansas, Virginia in West Virginia and "" in everything, and reinforcement
learning exploits every accidental reward. The names come
from the data: `Labels(places.states["state"])`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np

from kitlib.core.errors import KitError

LONGEST = 100  # characters; a longer text is no name, and is not normalised
SILENT = set(".'’‘ʻʼ´`") | {chr(code) for code in range(0x300, 0x370)}  # dropped: D.C., Hawaiʻi, accents
LETTERS = "LNM"  # Unicode's letters, numbers, and the marks that other scripts write vowels with


def normalised(name: str) -> str:
    """A name without case, accents, full stops and apostrophes, with single spaces.

    >>> normalised(" São  PAULO "), normalised("Washington, D.C."), normalised("Hawaiʻi"), normalised("- ?")
    ('sao paulo', 'washington dc', 'hawaii', '')
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    letters = (char if unicodedata.category(char)[0] in LETTERS else " " for char in text if char not in SILENT)
    return " ".join("".join(letters).split())


class Labels:
    """A closed vocabulary of names (S,), in the order of their positions.

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

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> str | None:
        """The label that the whole `text` names; None when it names none.

        >>> states = Labels(["Kansas", "Arkansas"])
        >>> states.find("**kansas**"), states.find("Kansas, Arkansas"), states.find("")
        ('Kansas', None, None)
        """
        return self._label.get(normalised(text)) if len(text) <= LONGEST else None

    def positions(self, texts: Iterable[str | None]) -> np.ndarray:
        """The positions in `names` (N,) of the labels that N texts name; -1 for None and for no label."""
        names = [None if text is None else self.find(text) for text in texts]
        return np.array([-1 if name is None else self._position[name] for name in names], np.int64)
