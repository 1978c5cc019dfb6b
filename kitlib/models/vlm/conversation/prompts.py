"""Prompts for a vision-language model: chat messages in transformers' format, with a part for every picture.

A `ReplyForm` lists the lines of a reply. The question, the target reply and the check of a reply's layout all come from
it, so that they cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.replies import NAMES, Reply, visible
from kitlib.models.vlm.conversation.vocabulary import Labels

Message = dict  # {"role": str, "content": [{"type": "image"} or {"type": "text", "text": str}]}
FIELDS = (*NAMES, "states", "point")
REASONING = "First think inside <think></think>, then write the lines below it."


@dataclass(frozen=True)
class ReplyForm:
    """The fields of a reply, in the order city, region, country, states, point: one line a name and two for the point.

    states: the likeliest five on one line; the point then has one line too, as a row of the competition.
    region: the data set's word for a region. digits: decimals of the degrees; 4 are 11 m.
    """

    fields: tuple[str, ...] = ("city", "region", "country", "point")
    region: str = "Region"
    digits: int = 4

    def __post_init__(self) -> None:
        """Check the fields and the word for regions. Raises KitError."""
        if not self.fields or self.fields != tuple(field for field in FIELDS if field in self.fields):
            raise KitError(f"fields: expected some of {', '.join(FIELDS)}, each once, in this order; got {self.fields}")
        if self.region not in ("Region", "State", "Province"):
            raise KitError(f"region: expected Region, State or Province; got {self.region!r}")

    @property
    def bare(self) -> str | None:
        """The form's only name, which a reply may give without a key; None when there are several."""
        names = [field for field in self.fields if field in NAMES]
        return names[0] if len(names) == 1 else None

    @property
    def keys(self) -> list[str]:
        """The keys of the lines, in order."""
        names = {"city": ["City"], "region": [self.region], "country": ["Country"], "states": ["States"]}
        names["point"] = ["Coordinates"] if "states" in self.fields else ["Latitude", "Longitude"]
        return [key for field in self.fields for key in names[field]]

    def known(self, truth: Reply) -> ReplyForm:
        """The form with the known fields of a place only. Raises KitError when none is known."""
        fields = tuple(field for field in self.fields if getattr(truth, field) is not None)
        return ReplyForm(fields, self.region, self.digits)

    def question(self, allowed: Mapping[str, Labels] | None = None) -> str:
        """The question; it lists the vocabularies `allowed`, by field."""
        values = {
            "Latitude": "degrees, south negative",
            "Longitude": "degrees, west negative",
            "States": "five names, the likeliest first",
            "Coordinates": "latitude, longitude in degrees, south and west negative",
        }
        lines = [f"{key}: <{values.get(key, 'name')}>" for key in self.keys]
        plural = "these lines, each with one answer" if len(lines) > 1 else "this line, with one answer"
        parts = ["Where was this picture taken? Reply with " + plural + ", and nothing else:", *lines]
        for field, labels in (allowed or {}).items():
            parts.append(f"Allowed for {self._key(field)}: {', '.join(labels.names)}.")
        return "\n".join(parts)

    def write(self, reply: Reply) -> str:
        """The text of a reply, as a model should learn it. Raises KitError for a field that is None.

        >>> ReplyForm(("region", "point"), "State").write(Reply((39.961181, -82.998794), region="Ohio")).splitlines()
        ['State: Ohio', 'Latitude: 39.9612', 'Longitude: -82.9988']
        """
        values = []
        for field in self.fields:
            value = getattr(reply, field)
            if value is None:
                raise KitError(f"{field}: expected a value, as the form asks for it; got None")
            if field == "point":
                numbers = [f"{x:.{self.digits}f}" for x in value]
                values += [", ".join(numbers)] if "states" in self.fields else numbers
            else:
                values.append(value if isinstance(value, str) else ", ".join(value))
        return "\n".join(f"{key}: {value}" for key, value in zip(self.keys, values, strict=True))

    def fits(self, reply: str) -> bool:
        """Whether a reply, apart from its reasoning, consists of exactly the form's lines.

        >>> ReplyForm(("point",)).fits("Latitude: 1.5\\nLongitude: 2"), ReplyForm(("point",)).fits("It is 1.5, 2")
        (True, False)
        """
        degrees, name = r"-?\d{1,3}(?:\.\d+)?", r"[^\n:]*[^\n: ]"
        values = {"Latitude": degrees, "Longitude": degrees, "Coordinates": f"{degrees}, {degrees}"}
        lines = [f"{key}: {values.get(key, name)}" for key in self.keys]
        return re.fullmatch("\n".join(lines), visible(reply).strip()) is not None

    def _key(self, field: str) -> str:
        return self.region if field == "region" else field.capitalize()


COMPETITION = ReplyForm(("region", "point"), region="State")
RANKED = ReplyForm(("states", "point"), region="State")
WORLD = ReplyForm()


def user(*content: str | None) -> Message:
    """A user's message: texts, and None for a picture."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    return {"role": "user", "content": parts}


def assistant(text: str) -> Message:
    """A message of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat(views: Sequence[str], text: str, system: str = "") -> list[Message]:
    """Messages with one picture for every view, labelled by its heading when there are several, and `text`.

    >>> [part.get("text") for part in chat(["north", "east"], "Where?")[0]["content"]]
    ['Facing north:', None, 'Facing east:', None, 'Where?']
    """
    if not views:
        raise KitError("views: expected at least one view; got none")
    shown = [None] if len(views) == 1 else [part for view in views for part in (f"Facing {view}:", None)]
    opening = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*opening, user(*shown, text)]


def ask(
    form: ReplyForm,
    views: Sequence[str],
    allowed: Mapping[str, Labels] | None = None,
    reasoning: bool = False,
    system: str = "",
) -> list[Message]:
    """The messages that ask for a form; allowed: vocabularies to list, by field. reasoning: whether to invite it."""
    text = form.question(allowed)
    if len(views) > 1:
        text = text.replace("this picture", f"these {len(views)} pictures of one place", 1).replace("was", "were", 1)
    return chat(views, text + (f"\n{REASONING}" if reasoning else ""), system)
