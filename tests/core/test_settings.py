"""Settings of a family: typed by their defaults, within what is allowed, complete by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest

from kitlib.core.errors import KitError
from kitlib.core.settings import Settings


@dataclass(frozen=True)
class Example(Settings):
    colour: str = "red"
    size: int = 3
    share: float = 0.5
    width: float = 2.0
    blocks: int = -1
    on: bool = True

    CHOICES: ClassVar = {"colour": ("red", "blue")}
    POSITIVE: ClassVar = ("size",)
    SHARES: ClassVar = ("share",)
    MINUS_ONE: ClassVar = ("blocks",)


def test_settings_travel_by_name():
    example = Example(size=5, share=1)
    assert Example.from_dict(asdict(example)) == example
    assert Example.of_run(asdict(example) | {"family": "example"}) == example


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"colour": "green"}, "colour='green': allowed are red, blue"),
        ({"size": 0}, "size=0: allowed is more than 0"),
        ({"size": 1.5}, "size=1.5: wanted is int"),
        ({"size": True}, "size=True: wanted is int"),
        ({"share": 1.1}, "share=1.1: allowed is from 0 to 1"),
        ({"share": float("nan")}, "share=nan: allowed is from 0 to 1"),
        ({"blocks": -2}, "blocks=-2: must be finite and not negative"),
        ({"size": -1}, "size=-1: allowed is more than 0"),
        ({"width": math.inf}, "width=inf: must be finite and not negative"),
        ({"on": 1}, "on=1: wanted is bool"),
        ({"colour": None}, "colour=None: wanted is str"),
        ({"weight": 1}, "unknown setting weight; allowed are colour, size, share, width, blocks, on"),
    ],
)
def test_what_is_wrong_is_told(wrong, told):
    with pytest.raises(KitError, match=told):
        Example.from_dict(wrong)


def test_a_run_of_an_earlier_kit_is_refused_and_one_of_now_may_hold_more():
    known = {field.name: field.default for field in dataclasses.fields(Example)}
    assert Example.of_run(known | {"family": "any"}) == Example()
    with pytest.raises(KitError, match="an earlier kit, without share: train it again"):
        Example.of_run({name: value for name, value in known.items() if name != "share"})
