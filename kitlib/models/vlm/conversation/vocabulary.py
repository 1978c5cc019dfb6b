"""Names that a reply may give: a closed vocabulary, matched by the exact normalised name or an alias, never by a part.

A match by substring finds Kansas in Arkansas, Virginia in West Virginia and "" in everything, and what earns by
accident is learnt on purpose. The names come from the data:

    states = labels.from_table(places.states, "state")
    countries = Labels(table["country"].unique(), aliases={"USA": "United States"})
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
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
    kept = (char if unicodedata.category(char)[0] in KEPT else " " for char in text if char not in SILENT)
    return " ".join("".join(kept).split())


class Labels:
    """A closed vocabulary.

    names: the labels (S,), in the order of their positions.
    aliases: other name -> label; for instance {"USA": "United States"}.
    Raises KitError for no names, for a name or alias that is empty or stands for two labels, for an alias of nothing.
    """

    def __init__(self, names: Iterable[str], aliases: Mapping[str, str] | None = None):
        self.names = tuple(str(name) for name in names)
        if not self.names:
            raise KitError("a vocabulary needs at least one name")
        self._label: dict[str, str] = {}
        for name in self.names:
            self._add(name, name)
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise KitError(f"{twice!r} stands twice in the vocabulary; each name may stand once")
        for alias, name in (aliases or {}).items():
            if name not in self.names:
                raise KitError(f"alias {alias!r} stands for {name!r}, which is not in the vocabulary")
            self._add(alias, name)
        self._position = {name: position for position, name in enumerate(self.names)}

    def _add(self, text: str, name: str) -> None:
        key = normalised(text)
        if not key or len(text) > LONGEST:
            raise KitError(f"{text[:LONGEST]!r} cannot be a name: wanted are letters or digits, at most {LONGEST}")
        other = self._label.setdefault(key, name)
        if other != name:
            raise KitError(f"{text!r} would stand for both {other!r} and {name!r}; a name or alias stands for one")

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> str | None:
        """The label that `text` as a whole names, None when it names none.

        >>> states = Labels(["Kansas", "Arkansas"], aliases={"KS": "Kansas"})
        >>> states.find("**kansas**"), states.find("KS"), states.find("Kansas, Arkansas"), states.find("")
        ('Kansas', 'Kansas', None, None)
        """
        return self._label.get(normalised(text)) if len(text) <= LONGEST else None

    def positions(self, texts: Iterable[str | None]) -> np.ndarray:
        """The positions in `names` (N,) of what N texts name, -1 for None and for what names no label."""
        found = [None if text is None else self.find(text) for text in texts]
        return np.array([-1 if name is None else self._position[name] for name in found], np.int64)


def from_table(table: Any, name: str, *aliases: str) -> Labels:
    """The vocabulary of a table's column `name`, with further columns of aliases; empty cells are no alias.

    table: a DataFrame or a mapping of columns, one row a label. Raises KitError for a column that is not there.

    >>> from_table({"state": ["Ohio", "Iowa"], "postal": ["OH", ""]}, "state", "postal").find("oh")
    'Ohio'
    """
    columns = list(table)
    if missing := [column for column in (name, *aliases) if column not in columns]:
        raise KitError(f"no column {', '.join(missing)} in the table of names; there are {', '.join(columns)}")
    names = [str(cell) for cell in table[name]]
    found: dict[str, str] = {}
    for column in aliases:
        for alias, of in zip(table[column], names, strict=True):
            if isinstance(alias, str) and alias.strip() and found.setdefault(alias, of) != of:
                raise KitError(f"{alias!r} would stand for both {found[alias]!r} and {of!r}; an alias stands for one")
    return Labels(names, found)
