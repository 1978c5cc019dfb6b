"""Plans: notebooks in order with their parameters, checked completely before any of them runs.

A plan is a YAML file of notebooks/plans: a description, shared parameters, and steps. Shared parameters, and those
from the command line, go to every step whose notebook lists them or, through MORE, whose Config has such a field. A
name that no notebook takes is an error, whereas papermill would warn and run the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, Field, ValidationError

from kitlib.core import paths, settings
from kitlib.core.errors import KitError, one_line, shown
from kitlib.core.parameters import check_rules
from kitlib.pipeline.notebook import Notebook, Value, cast, read_notebook


class Step(BaseModel, extra="forbid", frozen=True):
    """One notebook of a plan, with its own parameters."""

    notebook: str
    parameters: dict[str, Value] = {}


class Plan(BaseModel, extra="forbid", frozen=True):
    """The content of a plan's YAML file."""

    description: str
    parameters: dict[str, Value] = {}
    steps: list[Step] = Field(min_length=1)


@dataclass(frozen=True)
class Ready:
    """A checked step: its notebook, its values, and the name of its outputs."""

    name: str
    notebook: Notebook
    values: dict[str, Value]


def list_plans() -> dict[str, str]:
    """The names and descriptions of the kit's plans."""
    return {file.stem: read_plan(file.stem)[1].description for file in sorted(paths.plans_dir().glob("*.yaml"))}


def read_plan(name_or_path: str | Path) -> tuple[Path, Plan]:
    """Read a plan, given its name or the path of its YAML file. Raises KitError for an unknown or malformed one."""
    name = str(name_or_path)
    file = Path(name) if name.endswith((".yaml", ".yml")) else paths.plans_dir() / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in paths.plans_dir().glob("*.yaml")))
        raise KitError(f"there is no plan {shown(name)}; expected {known or 'none'}, or the path of a .yaml file")
    paths.file_name(file.stem, "plan name")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, …
        raise KitError(f"plan {file.name}: expected YAML in UTF-8; got: {one_line(error)}") from None
    try:
        return file, Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise KitError(
            f"plan {file.name}, {where}: {first['msg']}; expected a plan of description, parameters and steps, "
            "steps of notebook and parameters, and values that are numbers, texts or true/false"
        ) from None


def check(name_or_path: str | Path, given: Mapping[str, str] | None = None) -> tuple[Path, Plan, list[Ready]]:
    """Read a plan and its notebooks, and give every step its values, without running anything.

    `given` are NAME: text pairs from the command line, which override the plan's. Raises KitError for a notebook that
    is missing or has no parameters cell, a name that no notebook takes, or a value of the wrong type.
    """
    file, plan = read_plan(name_or_path)
    given = given or {}
    books = [read_notebook(_find_notebook(step.notebook, file.parent)) for step in plan.steps]
    listed = {name for book in books for name in book.parameters}
    for source, names in ((f"plan {file.name}", plan.parameters), ("-p", given)):
        for name in names:
            if name not in listed:
                _check_name(name, listed.union(*(book.settings for book in books)), source, "the plan's notebooks")
    ready: list[Ready] = []
    for step, book in zip(plan.steps, books, strict=True):
        for name in step.parameters:
            if name not in book.parameters:
                _check_name(name, {*book.parameters, *book.settings}, f"plan {file.name}", book.name)
        values = _values(book, plan.parameters | step.parameters, given)
        before = sum(other.notebook.name == book.name for other in ready)
        defaults = {name: parameter.default for name, parameter in book.parameters.items()}
        check_rules(defaults | values, optional=[name for name, default in defaults.items() if default == ""])
        ready.append(Ready(book.name if not before else f"{book.name}-{before + 1}", book, values))
    return file, plan, ready


def _values(book: Notebook, written: Mapping[str, Value], texts: Mapping[str, str]) -> dict[str, Value]:
    """Select a notebook's values from a plan's values and from texts of the command line, which override them.

    MORE takes the settings that the parameters cell does not list, and those that are given their default value, which
    a preset would otherwise replace. Raises KitError for a value of the wrong type, and for two values of a setting.
    """
    values: dict[str, Value] = {}
    hidden: dict[str, Value] = {}
    for name, value in {**written, **texts}.items():
        if parameter := book.parameters.get(name) or book.settings.get(name):
            one = cast(value, parameter, book.name, from_text=name in texts)
            if name in book.parameters:
                values[name] = one
            if name not in book.parameters or (one == parameter.default and name in book.settings):
                hidden[name.lower()] = one
    if "MORE" not in book.parameters:
        return values
    before = settings.mapping(str(values.get("MORE", book.parameters["MORE"].default)))
    more = before | hidden
    for name in [*values, *map(str.upper, hidden)]:
        own, inside = values.get(name, hidden.get(name.lower())), before.get(name.lower())
        if inside is not None and inside != own:
            if name not in texts or "MORE" in texts:
                raise KitError(f"{book.name}: {name} is given as {own!r} and in MORE as {inside!r}")
            more[name.lower()] = own  # the command line overrides the plan
    if more != before:
        values["MORE"] = yaml.safe_dump(more, default_flow_style=True, width=10**6).strip()
    return values


def _find_notebook(name: str, beside: Path) -> Path:
    """Find a notebook by name, beside the plan's file or else in notebooks/."""
    for folder in (beside, paths.notebooks_dir()):
        if (folder / f"{name}.ipynb").is_file():
            return folder / f"{name}.ipynb"
    known = sorted(path.stem for path in paths.notebooks_dir().glob("*.ipynb"))
    raise KitError(f"there is no notebook {name!r}; expected one of {', '.join(known) or 'none'}")


def _check_name(name: str, allowed: Collection[str], source: str, taker: str) -> None:
    """Raise KitError for a parameter that no notebook takes, and suggest a similar name."""
    if name in allowed:
        return
    close = difflib.get_close_matches(name.upper(), allowed, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise KitError(f"{source}: {taker} take no parameter {name!r}{meant}; expected: {', '.join(sorted(allowed))}")
