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
from typing import Any

from kitlib.core.errors import KitError


def face(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package, given its `__name__` and `__file__`."""
    offered: dict[str, tuple[str, str]] = {}
    for statement in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for node in statement.body:
                if isinstance(node, ast.ImportFrom):
                    offered |= {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}

    def get(name: str) -> Any:
        if name not in offered:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(offered)}")
        module, original = offered[name]
        try:
            if module == package:  # one of its own modules
                return importlib.import_module(f"{package}.{original}")
            value = getattr(importlib.import_module(module), original)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] == "kitlib":
                raise
            raise KitError(
                f"{package}.{name} needs {error.name}, which is not installed: pip install {error.name}; without the "
                "internet attach the wheels that `kitlib kaggle pack` collects"
            ) from error
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(offered)
