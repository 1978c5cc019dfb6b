"""The base class of Configs: typed and range-checked settings, presets, and errors for unknown names."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import yaml

from kitlib.core import paths
from kitlib.core.errors import KitError

MEANING = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

Names = Collection[str]  # of fields


class Settings:
    """The base of a frozen dataclass in which every field has a default that determines its type.

    The defaults suit real data. PRESETS holds other values by name: "sample" those for drawn places.
    """

    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {}  # the allowed values of a text
    POSITIVE: ClassVar[Names] = ()  # more than 0
    SHARES: ClassVar[Names] = ()  # from 0 to 1
    MINUS_ONE: ClassVar[Names] = ()  # -1 has a meaning; all other numbers are at least 0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    _sources: ClassVar[Mapping[str, str]] = {}  # field -> where its value comes from, unless it is the default

    def __init_subclass__(cls) -> None:
        """Merge the declarations of a subclass with those of its bases."""
        bases = [vars(base) for base in reversed(cls.__mro__)]
        for name in ("POSITIVE", "SHARES", "MINUS_ONE"):
            setattr(cls, name, {field for base in bases for field in base.get(name, ())})
        cls.CHOICES = {field: choices for base in bases for field, choices in base.get("CHOICES", {}).items()}
        presets: dict[str, dict[str, Any]] = {}
        for name, values in (item for base in bases for item in base.get("PRESETS", {}).items()):
            presets[name] = presets.get(name, {}) | values
        cls.PRESETS = presets

    def __post_init__(self) -> None:
        """Check every field. Raises KitError naming the first wrong one and the allowed values."""
        for name, default in self.defaults().items():
            value, kind = getattr(self, name), type(default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise KitError(f"{name}: expected {MEANING[kind]} ({kind.__name__}); got {value!r}")
            if name in self.CHOICES and value not in self.CHOICES[name]:
                raise KitError(f"{name}: expected one of {', '.join(self.CHOICES[name])}; got {value!r}")
            if name in self.POSITIVE and not value > 0:
                raise KitError(f"{name}: expected more than 0; got {value}")
            if name in self.SHARES and not 0 <= value <= 1:
                raise KitError(f"{name}: expected a number from 0 to 1; got {value}")
            if kind in (int, float) and not (-1 if name in self.MINUS_ONE else 0) <= value < math.inf:
                raise KitError(f"{name}: expected a finite number that is not negative; got {value}")

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

        parameters: a variable named like a field in upper case sets that field if it differs from the field's default,
        so that only changed values override a preset. more: further fields as YAML; these and `fixed` always override
        it. Raises KitError if `more` is not the YAML of a mapping, and for unknown fields.
        """
        named = {name: parameters[name.upper()] for name in cls.defaults() if name.upper() in parameters}
        changed = {name: value for name, value in named.items() if value != cls.defaults()[name]}
        return cls.from_dict(changed | mapping(more) | fixed, preset)

    @classmethod
    def typed(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """Convert texts by name, in lower or upper case, to typed settings. Raises KitError."""
        defaults = cls.defaults()
        named = {name.lower(): text for name, text in texts.items()}
        cls._refuse_unknown(named)
        return {name: cast(text, type(defaults[name]), name) for name, text in named.items()}

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
        """A table of each setting, its value, and the source of the value."""
        rows = [(name, getattr(self, name), self._sources.get(name, "default")) for name in self.defaults()]
        cells = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return (
            f"<table><thead><tr><th>setting</th><th>value</th><th>from</th></tr></thead><tbody>{cells}</tbody></table>"
        )


def cast(text: str, kind: type, name: str) -> Any:
    """Convert a text to a bool, int, float or str. Raises KitError if it cannot be converted.

    >>> cast("1e-3", float, "rate"), cast("true", bool, "mirror")
    (0.001, True)
    """
    truths = {"true": True, "false": False, "1": True, "0": False}
    try:
        return truths[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise KitError(f"{name}: expected {MEANING[kind]} ({kind.__name__}); got {text!r}") from None


def mapping(text: str) -> dict[str, Any]:
    """Parse the YAML of a mapping from field names, such as `{vary: 0}`. Raises KitError for other text.

    >>> mapping("{vary: 0}"), mapping("")
    ({'vary': 0}, {})
    """
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise KitError(
            f"MORE: expected YAML of a mapping such as {{vary: 0}}; got {text!r} ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise KitError(f"MORE: expected YAML of a mapping such as {{vary: 0}}; got {text!r}")
    return {name.lower(): value for name, value in values.items()}
