"""Plans: notebooks in order with their parameters, checked completely before any of them runs.

A plan is a YAML file of notebooks/plans: a description, shared parameters, and steps. Shared parameters, and those
from the command line, go to every step whose notebook lists them or, through MORE, whose Config has such a field. A
name that no notebook takes is an error, whereas papermill would warn and run the default.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from kitlib.core import checks, paths, settings
from kitlib.core.checks import meant
from kitlib.core.errors import KitError, one_line, shown
from kitlib.core.parameters import check_rules
from kitlib.pipeline.notebook import Notebook, Value, cast, read_notebook

NAMES_RUNS = ("RUN", "RUNS", "COMPARE", "ROUTER", "START_FROM", "NAME")  # parameters that name runs, or a submission


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
    """A checked step: its notebook, its values, the name of its outputs, and what -p gave it."""

    name: str
    notebook: Notebook
    values: dict[str, Value]
    given: tuple[str, ...] = ()


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

    `given` are NAME: text pairs from the command line, which override the plan's. A NAME goes to all steps that take
    it, STEP.NAME to those whose notebook has STEP as a part of its name (multiview, 10, train). RUN renames the runs of
    the plan (see `_renamed`), SEEDS repeats a step (see `_seeded`). Raises KitError for a notebook that is missing or
    has no parameters cell, a name that no notebook takes, or a value that is not allowed.
    """
    file, plan = read_plan(name_or_path)
    books = [read_notebook(_find_notebook(step.notebook, file.parent)) for step in plan.steps]
    texts = _by_step(given or {}, books, f"plan {file.stem}")
    listed = {name for book in books for name in _taken(book)}
    for name in plan.parameters:
        if name not in listed:
            _check_name(name, listed.union(*(book.settings for book in books)), f"plan {file.name}", "the notebooks")
    written: list[dict[str, Value]] = []
    for step, book in zip(plan.steps, books, strict=True):
        for name in step.parameters:
            if name not in _taken(book):
                _check_name(name, {*_taken(book), *book.settings}, f"plan {file.name}", book.name)
        written.append(plan.parameters | step.parameters)
    renamed = _renamed(written, texts, books, (given or {}).get("RUN"))
    ready: list[Ready] = []
    for book, values, mine in _seeded(books, renamed, texts):
        made = _values(book, values, mine)
        before = sum(other.notebook.name == book.name for other in ready)
        _check_values(book, made)
        name = book.name if not before else f"{book.name}-{before + 1}"
        taken = tuple(name for name in mine if name in book.parameters or name in book.settings)
        ready.append(Ready(name, book, made, taken))
    return file, plan, ready


def reach(steps: list[Ready], given: Mapping[str, str]) -> list[str]:
    """Sentences on what the command line reaches: the runs that RUN names, and names that several steps take."""
    runs = dict.fromkeys(str(step.values["RUN"]) for step in steps if step.values.get("RUN"))
    lines = [f"-p RUN={given['RUN']} names the runs {', '.join(runs)}"] if "RUN" in given else []
    for name in given:
        names = [step.name for step in steps if name in step.given]
        if 1 < len(names) < len(steps):
            one = names[0].rpartition("_")[2]
            lines.append(f"-p {name} reaches {', '.join(names)}; for one of them write -p {one}.{name}=…")
    return lines


def _by_step(given: Mapping[str, str], books: list[Notebook], source: str) -> list[dict[str, str]]:
    """What the command line gives to each step: NAME to all, for those that have it, STEP.NAME to the named ones.

    Raises KitError for a step that the plan does not have, and a name that none of the notebooks takes.
    """
    texts: list[dict[str, str]] = [{} for _ in books]
    for key, text in sorted(given.items(), key=lambda item: "." in item[0]):  # what is given to one step counts last
        step, dot, name = key.rpartition(".")
        chosen = [k for k, book in enumerate(books) if not dot or f"_{step}_" in f"_{book.name}_"]
        if not chosen:
            words = sorted({word for book in books for word in book.name.split("_")})
            raise KitError(f"-p {key}: {source} has no step {step!r}{meant(step, words)}; expected a part of "
                           f"the name of one: {', '.join(book.name for book in books)}")  # fmt: skip
        listed = {name for k in chosen for name in _taken(books[k])}
        if name not in listed:
            taker = ", ".join(books[k].name for k in chosen) if dot else "the plan's notebooks"
            _check_name(name, listed.union(*(books[k].settings for k in chosen)), "-p", taker)
        for k in chosen:
            texts[k][name] = text
    return texts


def _renamed(
    written: list[dict[str, Value]], texts: list[dict[str, str]], books: list[Notebook], everywhere: str | None
) -> list[dict[str, Value]]:
    """The plan's values of each step under the run names of the command line, which are taken out of `texts`.

    `-p RUN=x` makes x-multiview and x-retrieval of the runs sample-multiview and sample-retrieval, here and in every
    later parameter that names them, and the submission's name x of sample. `-p STEP.RUN=x` renames the run of one step.
    """
    runs = [
        str(values.get("RUN", "")) if "RUN" in book.parameters else ""
        for values, book in zip(written, books, strict=True)
    ]
    named = [run for run in dict.fromkeys(runs) if run]
    common = os.path.commonprefix(named).rpartition("-")[0]  # noqa: RUF071 (of texts that are no paths)
    changes: dict[str, str] = {}
    for run, mine in zip(runs, texts, strict=True):
        if not named or "RUN" not in mine or (not run and mine["RUN"] != everywhere):
            continue
        new = mine.pop("RUN")
        paths.file_name(new, "RUN")
        if run and new == everywhere:
            changes |= {run: f"{new}-{run.removeprefix(f'{common}-') if common else run}"} | (
                {common: new} if common else {}
            )
        elif run:
            changes[run] = new
    return [
        {name: _rename(value, changes) if name in NAMES_RUNS and isinstance(value, str) else value
         for name, value in values.items()}
        for values in written
    ]  # fmt: skip


def _taken(book: Notebook) -> set[str]:
    """The parameters that a plan may give to a notebook; one with a SEED can be repeated for several SEEDS."""
    return {*book.parameters, *(["SEEDS"] if "SEED" in book.parameters else [])}


def _seeded(
    books: list[Notebook], written: list[dict[str, Value]], texts: list[dict[str, str]]
) -> list[tuple[Notebook, dict[str, Value], dict[str, str]]]:
    """Repeat a step for each of its SEEDS, unless the command line gives it one SEED.

    The first seed keeps the name of the run; the others make RUN-seed1 and so on, which later RUNS then name too.
    """
    steps = []
    more: dict[str, list[str]] = {}  # the further names of a run
    for book, values, mine in zip(books, written, texts, strict=True):
        own = str(mine.pop("SEEDS", values.get("SEEDS", "")))
        seeds = checks.whole_numbers("SEEDS", own) if "SEED" in book.parameters and "SEED" not in mine else []
        if not seeds:
            named: dict[str, Value] = {"RUNS": _all_seeds(str(values["RUNS"]), more)} if values.get("RUNS") else {}
            steps.append((book, values | named, mine))
            continue
        run = str(values.get("RUN") or book.parameters["RUN"].default)
        names = [run, *(f"{run}-seed{seed}" for seed in seeds[1:])]
        more[run] = names[1:]
        steps += [(book, values | {"SEED": seed, "RUN": name}, mine) for seed, name in zip(seeds, names, strict=True)]
    return steps


def _all_seeds(names: str, more: Mapping[str, list[str]]) -> str:
    """Run names with commas between, each followed by those of its further seeds: sample-retrieval-seed1-gps."""
    every = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        run = max((run for run in more if f"{name}-".startswith(f"{run}-")), key=len, default=name)
        every += [name, *(other + name.removeprefix(run) for other in more.get(run, []))]
    return ",".join(every)


def _rename(names: str, changes: Mapping[str, str]) -> str:
    """Names with commas between, changed as a whole or up to a hyphen: the run sample-retrieval-gps follows its RUN."""
    new = []
    for name in names.split(","):
        old = max((old for old in changes if f"{name.strip()}-".startswith(f"{old}-")), key=len, default=None)
        new.append(name if old is None else changes[old] + name.strip().removeprefix(old))
    return ",".join(new)


def _check_values(book: Notebook, values: Mapping[str, Value]) -> None:
    """Raise KitError for a value that the notebook or its Config would refuse, whatever the data is."""
    defaults = {name: parameter.default for name, parameter in book.parameters.items()}
    parameters: dict[str, Any] = defaults | dict(values)
    check_rules(parameters, optional=[name for name, default in defaults.items() if default == ""])
    if book.config is None:
        return
    parameters["In"] = ["# Parameters\n" + "\n".join(f"{name} = 0" for name in values)]
    refused = []
    for preset in ("", "sample"):  # which one counts is decided by the data; it is refused only if both refuse
        try:
            book.make_config(parameters, preset)
            return
        except KitError as error:
            refused.append(error)
    raise KitError(f"{book.name}: {refused[0]}")


def _values(book: Notebook, written: Mapping[str, Value], texts: Mapping[str, str]) -> dict[str, Value]:
    """Select a notebook's values from a plan's values and from texts of the command line, which override them.

    MORE takes the settings that the parameters cell does not list. Raises KitError for a value of the wrong type, and
    for two values of a setting.
    """
    values: dict[str, Value] = {}
    hidden: dict[str, Value] = {}
    for name, value in {**written, **texts}.items():
        if parameter := book.parameters.get(name) or book.settings.get(name):
            one = cast(value, parameter, book.name, from_text=name in texts)
            if name in book.parameters:
                values[name] = one
            else:
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
    like = meant(name.upper(), allowed) or f"; expected: {', '.join(sorted(allowed))}"
    raise KitError(f"{source}: {taker} take no parameter {name!r}{like}")
