"""Settings of a family: typed by their defaults, within what is allowed, complete by name."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

import pytest

from kitlib.core.checks import whole_numbers
from kitlib.core.errors import KitError
from kitlib.core.parameters import check_parameters
from kitlib.core.settings import Names, Settings, mapping


@dataclass(frozen=True)
class Example(Settings):
    """What a thing is like."""

    colour: str = "red"  # of paint; <b> is for print
    size: int = 3  # px
    share: float = 0.5
    width: float = 2.0
    blocks: int = -1
    on: bool = True
    lengths: str = "1,2"

    CHOICES: ClassVar = {"colour": ("red", "blue")}
    POSITIVE: ClassVar[Names] = ("size",)
    SHARES: ClassVar[Names] = ("share",)
    MINUS_ONE: ClassVar[Names] = ("blocks",)
    LIMITS: ClassVar = {"size": 100}
    PARSERS: ClassVar = {"lengths": partial(whole_numbers, "lengths")}
    PRESETS: ClassVar = {"small": {"size": 1, "width": 0.5}}


@dataclass(frozen=True)
class Derived(Example):
    """A thing with depth."""

    depth: int = 2  # m; # is a sign too

    POSITIVE: ClassVar[Names] = ("depth",)
    CHOICES: ClassVar = {"shape": ("round",)}
    PRESETS: ClassVar = {"small": {"depth": 1}}


def test_settings_travel_by_name():
    example = Example(size=5, share=1)
    assert Example.from_dict(asdict(example)) == example
    assert Example.from_run(asdict(example) | {"family": "example"}) == example


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"colour": "green"}, "colour: expected one of red, blue; got 'green'"),
        ({"size": 0}, "size: expected more than 0; got 0"),
        ({"size": 1.5}, r"size: expected a whole number \(int\); got 1.5"),
        ({"size": True}, r"size: expected a whole number \(int\); got True"),
        ({"share": 1.1}, "share: expected a number from 0 to 1; got 1.1"),
        ({"share": float("nan")}, "share: expected a number from 0 to 1; got nan"),
        ({"blocks": -2}, "blocks: expected a finite number that is not negative; got -2"),
        ({"size": -1}, "size: expected more than 0; got -1"),
        ({"width": math.inf}, "width: expected a finite number that is not negative; got inf"),
        ({"on": 1}, r"on: expected true or false \(bool\); got 1"),
        ({"colour": None}, r"colour: expected a text \(str\); got None"),
        ({"weight": 1}, "unknown setting weight; expected: colour, size, share, width, blocks, on, lengths"),
        ({"size": 101}, "size: expected at most 100; got 101"),
        ({"blocks": 2**32}, "blocks: expected at most 4294967295; got 4294967296"),
        ({"size": 16**6000}, "size: expected at most 4294967295; got a number of thousands of digits"),
        ({"width": math.nan}, "width: expected a finite number that is not negative; got nan"),
        ({"width": 10**400}, r"width: expected a number \(float\); got "),
        ({"lengths": "1,x"}, "lengths: expected different whole numbers from 0, commas between; got '1,x'"),
        ({"lengths": "1\0"}, "lengths: expected a text without NUL characters; got "),
        ({"lengths": ["1"]}, r"lengths: expected a text \(str\); got \['1'\]"),
    ],
)
def test_refuses_wrong_values_and_unknown_names(wrong, message):
    with pytest.raises(KitError, match=message):
        Example.from_dict(wrong)


def test_a_run_of_an_earlier_kit_is_refused_and_one_of_now_may_hold_more():
    known = {field.name: field.default for field in dataclasses.fields(Example)}
    assert Example.from_run(known | {"family": "any"}) == Example()
    with pytest.raises(KitError, match="an earlier kit lacks share: train it again"):
        Example.from_run({name: value for name, value in known.items() if name != "share"})


def test_a_derived_class_adds_to_what_its_base_declares():
    assert Derived.from_dict({}, "small") == Derived(size=1, width=0.5, depth=1)
    assert set(Derived.CHOICES) == {"colour", "shape"} and set(Example.CHOICES) == {"colour"}
    for wrong in ({"size": 0}, {"depth": 0}, {"colour": "green"}):
        with pytest.raises(KitError, match=next(iter(wrong))):
            Derived.from_dict(wrong)


def test_a_preset_gives_way_to_what_is_given():
    assert Example.from_dict({"size": 3}, "small") == Example(size=3, width=0.5)  # 3 is the default, but it was given
    assert Example.from_dict({}, "") == Example.from_dict({}, "unknown") == Example()


def test_parameters_of_a_notebook():
    """One that has the Config's default says nothing; MORE and what the notebook fixes always count."""
    cell = {"SIZE": 3, "SHARE": 0.25, "DATA": "anything", "size": 9}
    assert Example.from_parameters(cell, "", "small") == Example(size=1, width=0.5, share=0.25)
    assert Example.from_parameters(cell, "{size: 3, width: 1e-3}", "small") == Example(size=3, share=0.25, width=0.001)
    assert Example.from_parameters(cell, "{WIDTH: 3}", on=False) == Example(width=3, share=0.25, on=False)


@pytest.mark.parametrize("text", ["[1]", "size", "{size: [}", "{1: 2}", "[]", "0", "{", "9" * 6000, "[" * 1500])
def test_more_is_the_yaml_of_a_mapping(text):
    with pytest.raises(KitError, match="MORE: expected YAML of a mapping"):
        mapping(text)


def test_texts_of_a_command_line():
    assert Example.typed({"SIZE": "5", "width": "1e-3", "on": "false"}) == {"size": 5, "width": 0.001, "on": False}
    with pytest.raises(KitError, match=r"size: expected a whole number \(int\); got '2.5'"):
        Example.typed({"SIZE": "2.5"})
    with pytest.raises(KitError, match="unknown setting sizes"):
        Example.typed({"SIZES": "2"})
    for name, text in (("SIZE", "9" * 6000), ("SIZE", "0"), ("width", "nan"), ("lengths", "x"), ("colour", "green")):
        with pytest.raises(KitError, match=f"^{name.lower()}: expected"):  # before the data is read
            Example.typed({name: text})


def test_the_table_shows_where_each_value_comes_from():
    table = Example.from_dict({"colour": "blue"}, "small")._repr_html_()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>") if "<td" in row]
    assert rows[:4] == [
        ["colour", "blue", "given", "of paint; &lt;b&gt; is for print"],
        ["size", "1", "preset small", "px"],
        ["width", "0.5", "preset small", ""],
        ["share", "0.5", "default", ""],  # folded away, as all others
    ]
    assert "preset small counts before the defaults" in table
    assert "preset" not in Example()._repr_html_() and "<summary>7 settings" in Example()._repr_html_()


def test_the_comments_of_fields_are_in_the_docstring():
    assert Example.__doc__ == (
        "What a thing is like.\n\nSettings, with their defaults:\n\n"
        "    colour ('red'): of paint; <b> is for print\n    size (3): px"
    )
    assert Derived.__doc__.startswith("A thing with depth.\n") and Derived.__doc__.endswith(
        "depth (2): m; # is a sign too"
    )
    assert list(Derived.COMMENTS) == ["colour", "size", "depth"]


def test_what_papermill_injects_counts_although_it_is_the_default():
    """Otherwise a preset would replace a value that was given on purpose."""
    cell = {"SIZE": 3, "WIDTH": 2.0, "In": ["", "SIZE = 3", "# Parameters\nWIDTH = 2.0\nDATA = 'x'\n"]}
    assert Example.from_parameters(cell, "", "small") == Example(size=1, width=2.0)
    assert Example.from_parameters(cell, "", "small")._sources["width"] == "given"


@pytest.mark.parametrize("family", ["multiview", "retrieval", "regional", "ridge", "vlm"])
def test_every_setting_of_a_family_says_what_it_means(family):
    config = importlib.import_module(f"kitlib.models.{family}").Config
    assert set(config.COMMENTS) == set(config.defaults())
    assert all(f"    {name} (" in config.__doc__ for name in config.defaults())


def test_configs_are_made_without_torch():
    program = "import sys\nfrom kitlib.models import multiview, regional, retrieval, ridge, vlm\n"
    program += "[family.Config() for family in (multiview, regional, retrieval, ridge, vlm)]\n"
    program += "print(*{'torch', 'transformers', 'pytorch_lightning', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_parameter_that_no_cell_declares_is_refused_under_plain_papermill():
    cell = {"__annotations__": {"DATA": str, "N": int}, "DATA": "x", "N": 1, "In": ["", "# Parameters\nDATTA = 'y'\n"]}
    with pytest.raises(KitError, match=r"takes no parameter DATTA \(did you mean DATA\?\)$"):
        check_parameters(cell)
    with pytest.raises(KitError, match=r"takes no parameter XYZ; expected: DATA, N$"):
        check_parameters(cell | {"In": ["# Parameters\nXYZ = 1"]})
    check_parameters(cell | {"In": ["# Parameters\nN = 1"]})
