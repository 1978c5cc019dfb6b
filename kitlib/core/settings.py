"""The base class of Configs: typed and range-checked settings, presets, and errors for unknown names."""

from __future__ import annotations

import ast
import html
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import yaml

from kitlib.core import paths
from kitlib.core.checks import LARGEST, one_of
from kitlib.core.errors import KitError, one_line, shown

MEANING = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

Names = Collection[str]  # of fields
LARGEST_PICTURE = 4096  # px of a side


class Settings:
    """The base of a frozen dataclass in which every field has a default that determines its type, and a comment.

    The defaults suit real data. PRESETS holds other values by name: "sample" those for drawn places. The comments
    behind the fields are read from the source: `Config?`, help(Config) and `kitlib settings` show them.
    """

    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {}  # the allowed values of a text
    POSITIVE: ClassVar[Names] = ()  # more than 0
    SHARES: ClassVar[Names] = ()  # from 0 to 1
    MINUS_ONE: ClassVar[Names] = ()  # -1 has a meaning; all other numbers are at least 0
    LIMITS: ClassVar[Mapping[str, int]] = {}  # the largest allowed number, where a larger one would fill the memory
    PARSERS: ClassVar[Mapping[str, Callable[[str], Any]]] = {}  # of texts that hold lists: raise KitError for others
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    COMMENTS: ClassVar[Mapping[str, str]] = {}  # of the fields, as their lines say
    _sources: ClassVar[Mapping[str, str]] = {}  # field -> where its value comes from, unless it is the default

    def __init_subclass__(cls) -> None:
        """Merge the declarations of a subclass with those of its bases."""
        bases = [vars(base) for base in reversed(cls.__mro__)]
        for name in ("POSITIVE", "SHARES", "MINUS_ONE"):
            setattr(cls, name, {field for base in bases for field in base.get(name, ())})
        for name in ("CHOICES", "LIMITS", "PARSERS"):
            setattr(cls, name, {field: value for base in bases for field, value in base.get(name, {}).items()})
        presets: dict[str, dict[str, Any]] = {}
        for name, values in (item for base in bases for item in base.get("PRESETS", {}).items()):
            presets[name] = presets.get(name, {}) | values
        cls.PRESETS = presets
        own = dict(re.findall(r"^    (\w+): (?:bool|int|float|str) = .*?  # (.+)$", _source(cls), re.MULTILINE))
        cls.COMMENTS = {name: text for base in bases for name, text in base.get("COMMENTS", {}).items()} | own
        about = (cls.__dict__.get("__doc__") or "").partition("\n\nSettings, ")[0].rstrip()
        lines = [f"{name} ({shown(getattr(cls, name))}): {text}" for name, text in cls.COMMENTS.items()]
        cls.__doc__ = "\n".join([about, "", "Settings, with their defaults:", "", *(f"    {line}" for line in lines)])

    def __post_init__(self) -> None:
        """Check every field. Raises KitError naming the first wrong one and the allowed values."""
        for name, default in self.defaults().items():
            self._check(name, getattr(self, name), type(default))

    @classmethod
    def _check(cls, name: str, value: Any, kind: type) -> None:
        """Raise KitError for a value that its field does not allow, whatever the other fields are."""
        if kind is str and type(value) is not str:
            raise KitError(f"{name}: expected {MEANING[kind]} ({kind.__name__}); got {shown(value)}")
        value = typed(value, kind, name)
        if name in cls.CHOICES:
            one_of(name, value, cls.CHOICES[name])
        if name in cls.PARSERS:
            cls.PARSERS[name](value)
        if name in cls.POSITIVE and not value > 0:
            raise KitError(f"{name}: expected more than 0; got {shown(value)}")
        if name in cls.SHARES and not 0 <= value <= 1:
            raise KitError(f"{name}: expected a number from 0 to 1; got {shown(value)}")
        if kind in (int, float) and not (-1 if name in cls.MINUS_ONE else 0) <= value < math.inf:
            raise KitError(f"{name}: expected a finite number that is not negative; got {shown(value)}")
        if kind in (int, float) and value > (limit := cls.LIMITS.get(name, LARGEST)):
            raise KitError(f"{name}: expected at most {limit}; got {shown(value)}")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each field by name."""
        return {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def preset(cls, name: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a preset, which may depend on the other settings; none for an unknown preset."""
        return cls.PRESETS.get(name, {})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], preset: str = "") -> Self:
        """Make a Config from settings by name, on top of a preset's. Raises KitError for a name that is not a field.

        A float may be given as a whole number, or as a text such as 1e-3, which YAML does not read as a number.
        """
        defaults = cls.defaults()
        cls._refuse_unknown(settings)
        chosen = cls.preset(preset, settings)
        values = dict(chosen) | dict(settings)
        for name, value in values.items():
            if type(defaults[name]) is float and isinstance(value, str):
                values[name] = cast(value, float, name)
        config = cls(**values)
        sources = dict.fromkeys(chosen, f"preset {preset}") | dict.fromkeys(settings, "given")
        object.__setattr__(config, "_sources", sources)
        return config

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], more: str = "", preset: str = "", **fixed: Any) -> Self:
        """Make a Config from a notebook's variables: `Config.from_parameters(globals(), MORE, places.preset)`.

        parameters: a variable named like a field in upper case sets that field, and overrides a preset, if it was given
        from outside (see `injected`) or differs from the field's default. more: further fields as YAML; these and
        `fixed` always override a preset. Raises KitError if `more` is not the YAML of a mapping, and for unknown
        fields.
        """
        return cls.from_dict(cls.given(parameters, cls.defaults()) | mapping(more) | fixed, preset)

    @classmethod
    def given(cls, parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a notebook's variables set: those given from outside, or that differ from the defaults."""
        named = {name: parameters[name.upper()] for name in defaults if name.upper() in parameters}
        outside = injected(parameters.get("In", ()))
        return {name: value for name, value in named.items() if name.upper() in outside or value != defaults[name]}

    @classmethod
    def typed(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """Convert texts by name, in lower or upper case, to typed settings, each checked by itself. Raises KitError."""
        defaults = cls.defaults()
        named = {name.lower(): text for name, text in texts.items()}
        cls._refuse_unknown(named)
        values = {name: cast(text, type(defaults[name]), name) for name, text in named.items()}
        for name, value in values.items():
            cls._check(name, value, type(defaults[name]))
        return values

    @classmethod
    def from_run(cls, settings: Mapping[str, Any]) -> Self:
        """Make a Config from a run's settings, which hold more than its fields. Raises KitError if one is missing."""
        if missing := [name for name in cls.defaults() if name not in settings]:
            raise KitError(f"a run of an earlier kit lacks {', '.join(missing)}: train it again under a new name")
        values = {name: settings[name] for name in cls.defaults()}
        return cls(**{name: paths.located(name, v) if isinstance(v, str) else v for name, v in values.items()})

    @classmethod
    def _refuse_unknown(cls, names: Collection[str]) -> None:
        if unknown := sorted(set(names) - set(cls.defaults())):
            raise KitError(f"unknown setting {', '.join(unknown)}; expected: {', '.join(cls.defaults())}")

    def _repr_html_(self) -> str:
        """The settings that are not the default's, with value, source and meaning; all others folded away below."""
        sources = {name: self._sources.get(name, "default") for name in self.defaults()}
        rows = {
            name: (name, getattr(self, name), source, self.COMMENTS.get(name, "")) for name, source in sources.items()
        }
        set_here = [row for name, row in rows.items() if sources[name] != "default"]
        others = [row for name, row in rows.items() if sources[name] == "default"]
        folded = f"<details><summary>{len(others)} settings have their default</summary>{_table(others)}</details>"
        preset = next((source for source in sources.values() if source.startswith("preset")), "")
        note = (
            f"<p>The {preset} counts before the defaults in the parameters cell: to keep one of these, give it in MORE "
            "or by papermill's -p.</p>"
        )
        return (_table(set_here) if set_here else "") + (note if preset else "") + (folded if others else "")


def _table(rows: Iterable[tuple]) -> str:
    style = "text-align:left;overflow-wrap:anywhere;min-width:4em"  # the path of weights in a value would fill the page
    cells = "".join(
        "<tr>" + "".join(f"<td style='{style}'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    heads = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("setting", "value", "from", "meaning"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>"


def _source(cls: type) -> str:
    """The source of a class, "" where there is none, as for one typed into a Python prompt."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


def injected(cells: Iterable[str]) -> set[str]:
    """The variables that papermill, or a plan, has set: in a cell of its own, which begins with `# Parameters`.

    cells: the sources of the executed cells, IPython's `In`.

    >>> injected(["DROPOUT = 0.3", "# Parameters\\nDROPOUT = 0.5\\nSEED = 1"]) == {"DROPOUT", "SEED"}
    True
    """
    trees = [ast.parse(cell) for cell in cells if cell.startswith("# Parameters\n")]
    return {target.id for tree in trees for node in tree.body if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip


def typed(value: Any, kind: type, name: str) -> Any:
    """A parameter's value in its type: a text may come as the number that it looks like, a float as a whole number.

    >>> typed(2024, str, "RUN"), typed(1, float, "MAX_HOURS")
    ('2024', 1.0)
    """
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    if kind is str and type(value) in (int, float):
        return shown(value)
    if type(value) is not kind:
        raise KitError(f"{name}: expected {MEANING[kind]} ({kind.__name__}); got {shown(value)}")
    if isinstance(value, str) and "\0" in value:
        raise KitError(f"{name}: expected a text without NUL characters; got {shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise KitError(f"{name}: expected at most {LARGEST}; got {shown(value)}")
    return value


def cast(text: str, kind: type, name: str) -> Any:
    """Convert a text to a bool, int, float or str. Raises KitError if it cannot be converted.

    >>> cast("1e-3", float, "rate"), cast("true", bool, "mirror")
    (0.001, True)
    """
    truths = {"true": True, "false": False, "1": True, "0": False}
    try:
        return truths[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise KitError(f"{name}: expected {MEANING[kind]} ({kind.__name__}); got {shown(text)}") from None


def mapping(text: str, name: str = "MORE") -> dict[str, Any]:
    """Parse the YAML of a mapping from field names, such as `{vary: 0}`. Raises KitError, with `name`, for other text.

    >>> mapping("{vary: 0}"), mapping("")
    ({'vary': 0}, {})
    """
    expected = f"{name}: expected YAML of a mapping such as {{vary: 0}}; got {shown(text)}"
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as a number of thousands of digits
        raise KitError(f"{expected} ({one_line(error)})") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise KitError(expected)
    return {key.lower(): value for key, value in values.items()}
