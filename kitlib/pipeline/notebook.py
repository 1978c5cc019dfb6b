"""Read a notebook for a plan: its title, question, code, and typed parameters.

It is read as plain JSON and Python, without nbformat or papermill, so that an unchanged plan is recognised at once.
"""

from __future__ import annotations

import ast
import html
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kitlib.core import checks, paths, settings
from kitlib.core.errors import KitError, one_line, shown

Value = bool | int | float | str
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
TYPES = {kind.__name__: kind for kind in settings.MEANING}


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `EPOCHS: int = 5  # passes over the training folds`."""

    name: str
    type: str
    default: Value


@dataclass(frozen=True)
class Notebook:
    """The properties of a notebook that a plan uses."""

    name: str
    path: Path
    title: str
    question: str
    code: str
    parameters: dict[str, Parameter]

    @cached_property
    def _config_call(self) -> re.Match | None:
        """`family.Config.constructor(arguments)`, which makes the notebook's Config, if it has MORE."""
        call = re.search(r"(\w+)\.Config\.(from_parameters|for_methods)\((.*)\)", self.code)
        return call if "MORE" in self.parameters else None

    @property
    def imports_torch(self) -> bool:
        """Whether the code uses `kitlib.models`, and with it torch."""
        return re.search(r"\bmodels\b", self.code) is not None

    @cached_property
    def config(self) -> type[settings.Settings] | None:
        """The Config that the notebook makes from its parameters and MORE; a notebook without MORE has none."""
        call = self._config_call
        return importlib.import_module(f"kitlib.models.{call.group(1)}").Config if call else None

    def make_config(self, parameters: Mapping[str, Any], preset: str) -> None:
        """Make the Config as the notebook would, from all of its parameters. Raises KitError for what it refuses."""
        call, config = self._config_call, self.config
        if call is None or config is None:
            return
        if call.group(2) == "from_parameters":
            fixed = dict(re.findall(r'(\w+)="(\w+)"', call.group(3)))
            config.from_parameters(parameters, parameters["MORE"], preset, **fixed)
        else:
            methods = [parameters["METHOD"], *checks.names("ALSO", parameters["ALSO"])]
            config.for_methods(list(dict.fromkeys(methods)), parameters, parameters["MORE"], preset)  # type: ignore[attr-defined]

    @cached_property
    def settings(self) -> dict[str, Parameter]:
        """The fields of the Config by name in upper case, none without a Config."""
        defaults = self.config.defaults() if self.config else {}
        return {name.upper(): Parameter(name.upper(), type(value).__name__, value) for name, value in defaults.items()}


def read_notebook(path: Path) -> Notebook:
    """Read a notebook and its parameters cell.

    Raises KitError for a file that is no notebook, a notebook without exactly one cell tagged `parameters` (papermill
    would silently run the defaults), or a line in that cell that papermill cannot read.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        tags = [cell["metadata"].get("tags", []) for cell in cells]
        kinds = [cell["cell_type"] for cell in cells]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise KitError(f"{path.name}: expected a notebook, JSON with cells; got {reason}") from None
    tagged = [
        i for i, (kind, tag) in enumerate(zip(kinds, tags, strict=True)) if "parameters" in tag and kind == "code"
    ]
    if len(tagged) != 1:
        raise KitError(
            f"{path.name}: expected exactly one cell tagged 'parameters', which sets the defaults; got {len(tagged)}"
        )
    prose = next((source for source, kind in zip(sources, kinds, strict=True) if kind == "markdown"), "")
    title, question = _headline(prose, path.stem)
    code = "\n\n".join(source for source, kind in zip(sources, kinds, strict=True) if kind == "code")
    return Notebook(path.stem, path, title, question, code, _parameters(sources[tagged[0]], path.name))


def cast(value: Value, parameter: Parameter, taker: str, from_text: bool = False) -> Value:
    """Convert a value to the parameter's type; texts from the command line are parsed. Raises KitError.

    >>> cast("5", Parameter("EPOCHS", "int", 3), "10_train", from_text=True)
    5
    """
    kind = TYPES[parameter.type]
    if isinstance(value, str) and kind is not str and (from_text or kind is float):  # YAML takes 1e-3 for a text
        return settings.cast(value, kind, f"parameter {parameter.name} of {taker}")
    name = f"parameter {parameter.name} of {taker}"
    if type(value) is kind or (kind is float and type(value) is int):
        return settings.typed(value, kind, name)
    raise KitError(f"{name}: expected {settings.MEANING[kind]} ({parameter.type}); got {shown(value)}")


def _parameters(source: str, name: str) -> dict[str, Parameter]:
    """Read the parameters of a cell of statements `NAME: type = literal  # comment` on one line each."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise KitError(f"{name}: the parameters cell is not Python, line {error.lineno}: {error.msg}") from None
    lines = source.splitlines()
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        line = lines[statement.lineno - 1]
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.lineno == statement.end_lineno
            and line.count("=") == 1  # papermill splits a line at every "=", in its comment too
            and (kind := ast.unparse(statement.annotation)) in TYPES
            and statement.value is not None
        ):
            try:
                parameter = Parameter(statement.target.id, kind, ast.literal_eval(statement.value))
                parameters[parameter.name] = Parameter(parameter.name, kind, cast(parameter.default, parameter, name))
                continue
            except ValueError as error:
                if isinstance(error, KitError):
                    raise
        raise KitError(
            f"{name}: parameters cell: expected NAME: type = literal  # comment, with type int, float, str or bool and "
            f"no second '=', as papermill reads it; got {line.strip()!r}"
        )
    return parameters


def _headline(prose: str, stem: str) -> tuple[str, str]:
    """The title and the question of a notebook: `# 10 · Title` and the first question in its first cell."""
    lines = [line.strip().strip("*_").strip() for line in prose.splitlines() if line.strip()]
    title = lines[0].lstrip("# ") if lines and lines[0].startswith("#") else stem
    questions = [line for line in lines[1:] if "?" in line]
    first = re.match(r"[^?]*\?", questions[0].replace("**", "").replace("`", "")) if questions else None
    return re.sub(r"^\d+(_\w+)?\s*[·:.–—-]*\s*", "", title) or stem, first.group() if first else ""


def without_bars(notebook: dict[str, Any]) -> None:
    """Remove progress bars of ended cells from an executed notebook, and widgets whose state it does not hold.

    The logs before and after a bar become one.
    """
    states = notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    kept = False
    for cell in notebook["cells"]:
        outputs: list[dict[str, Any]] = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET_MIME in data:
                bar = re.search(r"\d+%\|", "".join(data.get("text/plain", "")))
                if bar or data[WIDGET_MIME].get("model_id") not in states.get("state", {}):
                    continue
                kept = True
            if output["output_type"] == "stream" and outputs and outputs[-1].get("name") == output["name"]:
                outputs[-1]["text"] = "".join(outputs[-1]["text"]) + "".join(output["text"])
            else:
                outputs.append(output)
        cell |= {"outputs": outputs} if "outputs" in cell else {}
    if not kept:
        notebook["metadata"].pop("widgets", None)


def without_machine(text: str) -> str:
    """Replace this machine's folders in a text by relative or short names."""
    shorter = {
        str(paths.home()): ".",
        str(paths.checkout()): ".",
        str(paths.package_dir()): "kitlib",
        sys.prefix: "python",
        sys.base_prefix: "python",
        str(Path.home()): "~",
        tempfile.gettempdir(): "tmp",
    }
    for key, path in paths.given().items():
        full, real = Path(path), Path(path).resolve()
        outside = [folder.parent for folder in (full, real) if not folder.is_relative_to(paths.home())]
        shorter = {str(folder): "…" for folder in outside} | shorter
        shorter |= {path: key.partition(" ")[2], str(real): key.partition(" ")[2]}
    shorter |= {html.escape(folder): name for folder, name in shorter.items()}  # as it stands in a page
    for folder in sorted(shorter, key=len, reverse=True):
        if len(folder) > 1:
            whole = rf"(?:(?<![\w.…-])|(?<=\dm)){re.escape(folder)}(?![\w.-])"  # a colour of a traceback ends in 0m
            text = re.sub(whole, shorter[folder].replace("\\", r"\\"), text)
    return text
