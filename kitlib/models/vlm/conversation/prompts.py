"""What a vision-language model is asked: chat messages in transformers' format, with a place for every picture.

A `Form` says which lines are wanted; the question, the reply a model should learn to write, and the check of its layout
all come from it, so that they cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.replies import NAMES, Answer, visible
from kitlib.models.vlm.conversation.vocabulary import Labels

Message = dict  # {"role": str, "content": [{"type": "image"} or {"type": "text", "text": str}]}
FIELDS = (*NAMES, "point")
REASONING = "First think inside <think></think>, then write the lines below it."


@dataclass(frozen=True)
class Form:
    """Which fields a reply shall have, in the order city, region, country, point, one line a name and two the point.

    region: what the data set calls a region, State or Region. digits: decimals of the degrees, 4 being 11 m.
    """

    fields: tuple[str, ...] = ("city", "region", "country", "point")
    region: str = "Region"
    digits: int = 4

    def __post_init__(self) -> None:
        """Raises KitError for fields that are unknown, doubled or none, and for a region line that cannot be read."""
        if not self.fields or self.fields != tuple(field for field in FIELDS if field in self.fields):
            raise KitError(f"fields {self.fields}: allowed are some of {', '.join(FIELDS)}, each once, in this order")
        if self.region not in ("Region", "State", "Province"):
            raise KitError(f"region {self.region!r}: allowed are Region, State, Province")

    @property
    def bare(self) -> str | None:
        """The only name that is asked for, which a line of nothing but a name answers; None when there are several."""
        names = [field for field in self.fields if field in NAMES]
        return names[0] if len(names) == 1 else None

    @property
    def keys(self) -> list[str]:
        """What the lines begin with, in order."""
        names = {"city": ["City"], "region": [self.region], "country": ["Country"], "point": ["Latitude", "Longitude"]}
        return [key for field in self.fields for key in names[field]]

    def known(self, truth: Answer) -> Form:
        """The form with only the fields that are known of a place. Raises KitError when none is."""
        fields = tuple(field for field in self.fields if getattr(truth, field) is not None)
        return Form(fields, self.region, self.digits)

    def question(self, allowed: Mapping[str, Labels] | None = None) -> str:
        """The question in words; `allowed` are vocabularies to be listed in it, by field."""
        degrees = {"Latitude": "degrees, south negative", "Longitude": "degrees, west negative"}
        lines = [f"{key}: <{degrees.get(key, 'name')}>" for key in self.keys]
        plural = "these lines, each with one answer" if len(lines) > 1 else "this line, with one answer"
        told = ["Where was this picture taken? Reply with " + plural + ", and nothing else:", *lines]
        for field, labels in (allowed or {}).items():
            told.append(f"Allowed for {self._key(field)}: {', '.join(labels.names)}.")
        return "\n".join(told)

    def write(self, answer: Answer) -> str:
        """The reply that gives this answer, as a model should learn it. Raises KitError for a field that is unknown.

        >>> Form(("region", "point"), "State").write(Answer((39.961181, -82.998794), region="Ohio")).splitlines()
        ['State: Ohio', 'Latitude: 39.9612', 'Longitude: -82.9988']
        """
        values = []
        for field in self.fields:
            value = getattr(answer, field)
            if value is None:
                raise KitError(f"the answer has no {field}, which the form asks for; leave the field out of the form")
            values += [f"{x:.{self.digits}f}" for x in value] if field == "point" else [value]
        return "\n".join(f"{key}: {value}" for key, value in zip(self.keys, values, strict=True))

    def fits(self, reply: str) -> bool:
        """Whether a reply, without its reasoning, consists of exactly the lines that were asked for.

        >>> Form(("point",)).fits("Latitude: 1.5\\nLongitude: 2"), Form(("point",)).fits("It is 1.5, 2")
        (True, False)
        """
        degrees, name = r"-?\d{1,3}(?:\.\d+)?", r"[^\n:]*[^\n: ]"
        lines = [f"{key}: {degrees if key in ('Latitude', 'Longitude') else name}" for key in self.keys]
        return re.fullmatch("\n".join(lines), visible(reply).strip()) is not None

    def _key(self, field: str) -> str:
        return self.region if field == "region" else field.capitalize()


COMPETITION = Form(("region", "point"), region="State")
WORLD = Form()


def user(*content: str | None) -> Message:
    """A user's message: texts, and None for a picture."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    return {"role": "user", "content": parts}


def assistant(text: str) -> Message:
    """What the model said, or should say."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat(views: Sequence[str], text: str, system: str = "") -> list[Message]:
    """Messages that show one picture for every view, labelled by its heading when there are several, and ask `text`.

    >>> [part.get("text") for part in chat(["north", "east"], "Where?")[0]["content"]]
    ['Facing north:', None, 'Facing east:', None, 'Where?']
    """
    if not views:
        raise KitError("a prompt needs at least one view")
    shown = [None] if len(views) == 1 else [part for view in views for part in (f"Facing {view}:", None)]
    opening = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*opening, user(*shown, text)]


def ask(
    form: Form,
    views: Sequence[str],
    allowed: Mapping[str, Labels] | None = None,
    reasoning: bool = False,
    system: str = "",
) -> list[Message]:
    """The messages that ask a form of a place seen in `views`; `allowed` lists vocabularies, `reasoning` invites it."""
    text = form.question(allowed)
    if len(views) > 1:
        text = text.replace("this picture", f"these {len(views)} pictures of one place", 1).replace("was", "were", 1)
    return chat(views, text + (f"\n{REASONING}" if reasoning else ""), system)
