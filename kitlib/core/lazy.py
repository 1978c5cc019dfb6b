"""Lazy package faces: a package offers names that are imported when they are first used.

A package's __init__.py imports these names under `if TYPE_CHECKING:`, where editors and mypy see them, and ends with

    else:
        __getattr__, __dir__ = lazy.face(__name__, __file__)

so that `import kitlib.data` costs nothing and `kitlib.data.load` imports only the module that defines it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class Package(ModuleType):
    """A package with a face; its modules show under Tab, as by `dir`, what they define, not what they import."""

    def __reduce__(self) -> tuple:
        """Pickled by its name, as other modules are by dill, with which `datasets` recognises a function."""
        return importlib.import_module, (self.__name__,)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, as the import system does with a module that was imported for the first time."""
        if (
            isinstance(value, ModuleType)
            and value.__name__ == f"{self.__name__}.{name}"
            and "__dir__" not in vars(value)
        ):
            value.__dir__ = lambda: public(str(value.__file__))  # type: ignore[method-assign]
        super().__setattr__(name, value)


def public(file: str) -> list[str]:
    """The names that a module defines at its top, sorted, without its logger and what begins with an underscore."""
    names: set[str] = set()
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return sorted(name for name in names if not name.startswith("_") and name != "log")


def face(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package, given its `__name__` and `__file__`; makes its `__all__`."""
    offered: dict[str, tuple[str, str]] = {}
    for statement in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for node in statement.body:
                if isinstance(node, ast.ImportFrom):
                    offered |= {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}
    if package in sys.modules:
        sys.modules[package].__class__ = Package
        sys.modules[package].__all__ = sorted(offered)  # type: ignore[attr-defined]

    def get(name: str) -> Any:
        if name not in offered:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(offered)}")
        module, original = offered[name]
        if module == package:  # one of its own modules
            return importlib.import_module(f"{package}.{original}")
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(offered)
