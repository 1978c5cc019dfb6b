"""What Configs and Teachings share: every setting typed and within what is allowed, unknown names refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from kitlib.core.errors import KitError


class Settings:
    """Base of a frozen dataclass whose fields all have a default, which tells their type."""

    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {}  # what a text may be
    POSITIVE: ClassVar[Collection[str]] = ()  # more than 0
    SHARES: ClassVar[Collection[str]] = ()  # from 0 to 1
    MINUS_ONE: ClassVar[Collection[str]] = ()  # -1 has a meaning; all other numbers are at least 0

    def __post_init__(self) -> None:
        """Check every field. Raises KitError naming the first that is wrong, and what is allowed."""
        for field in fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            kind: Any = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise KitError(f"{name}={value!r}: wanted is {kind.__name__}")
            if name in self.CHOICES and value not in self.CHOICES[name]:
                raise KitError(f"{name}={value!r}: allowed are {', '.join(self.CHOICES[name])}")
            if name in self.POSITIVE and not value > 0:
                raise KitError(f"{name}={value}: allowed is more than 0")
            if name in self.SHARES and not 0 <= value <= 1:
                raise KitError(f"{name}={value}: allowed is from 0 to 1")
            if kind in (int, float) and not (-1 if name in self.MINUS_ONE else 0) <= value < math.inf:
                raise KitError(f"{name}={value}: must be finite and not negative")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Settings by name. Raises KitError for a name that is none of them."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(settings) - set(names)):
            raise KitError(f"unknown setting {', '.join(unknown)}; allowed are {', '.join(names)}")
        return cls(**settings)

    @classmethod
    def of_run(cls, settings: Mapping[str, Any]) -> Self:
        """Those of a run, whose params.json holds more than them. Raises KitError for a run without one of them."""
        if missing := [field.name for field in fields(cls) if field.name not in settings]:  # type: ignore[arg-type]
            raise KitError(f"a run of an earlier kit, without {', '.join(missing)}: train it again under a new name")
        return cls(**{field.name: settings[field.name] for field in fields(cls)})  # type: ignore[arg-type]
