"""Check the parameters of a notebook before any of its work, by the checks that settings go through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from functools import partial
from typing import Any

from kitlib.core import paths, progress, settings, threads
from kitlib.core.checks import meant, names, number, one_of, whole_numbers
from kitlib.core.errors import KitError, shown

LARGEST_KM = 20_000  # half of the way around the Earth
ROWS = 100  # of pictures in one figure
ORDERS = ("largest error", "smallest error", "surest wrong state", "surest", "least sure", "id")  # of places to look at


def _tables(name: str, text: str) -> None:
    """Refuse all but a mapping from options of `data.load` to texts."""
    for key, value in settings.mapping(text, name).items():
        one_of(name, key, ("train_csv", "test_csv", "train_images", "test_images", "region_column"))
        if type(value) is not str:
            raise KitError(f"{name}: {key}: expected a text (str); got {shown(value)}")


RULES: Mapping[str, Callable[[str, Any], Any]] = {  # what no type says; fields of a Config are checked by the Config
    "ALSO": names,
    "COMPARE": names,
    "DEVICES": partial(number, low=0, high=1024),
    "FOLDS": partial(number, low=2, high=1000),
    "FOLDS_COLUMN": partial(one_of, allowed=("stratified", "spatial", "given")),
    "IMAGE_SIZE": partial(number, low=0, high=settings.LARGEST_PICTURE),
    "MAX_HOURS": partial(number, low=0, high=100_000, kind=float),
    "MORE": lambda name, text: settings.mapping(text, name),
    "NAME": lambda name, text: paths.file_name(text, name),
    "ONLY_FOLDS": whole_numbers,
    "ORDER": partial(one_of, allowed=ORDERS),
    "PARTS": partial(number, low=0, high=16),
    "PICTURED": partial(number, low=0, high=100_000),
    "PLACES_PER_CELL": partial(number, low=1),
    "PLACES_SHOWN": partial(number, low=1, high=ROWS),
    "QUERIES": partial(number, low=1, high=ROWS),
    "RUN": lambda name, text: paths.file_name(text, name),
    "RUNS": names,
    "SHARP_KM": partial(number, low=0, high=LARGEST_KM, kind=float, above=True),
    "SIZES": partial(whole_numbers, low=1),
    "SMOOTH_KM": partial(number, low=0, high=LARGEST_KM, kind=float, above=True),
    "START_FROM": lambda name, text: text and paths.file_name(text, name),
    "TABLES": _tables,
    "WORST": partial(number, low=1, high=ROWS),
}


def check_parameters(parameters: MutableMapping[str, Any], optional: Collection[str] = ()) -> None:
    """Check a notebook's parameters by their types and RULES: `check_parameters(globals())`. Raises KitError.

    Papermill turns `-p RUN 2024` into a number: a text parameter becomes the text again, in place. The environment
    variables of this machine are checked as well. optional: texts that may be empty although their rule refuses that.
    """
    progress.show_log()
    check_machine()
    declared = parameters.get("__annotations__", {})
    for name in sorted(settings.injected(parameters.get("In", ())) - declared.keys()):  # papermill only warns
        expected = ", ".join(filter(str.isupper, declared))
        raise KitError(f"this notebook takes no parameter {name}{meant(name, declared) or f'; expected: {expected}'}")
    for name, kind in declared.items():
        if name.isupper():
            parameters[name] = settings.typed(parameters[name], kind, name)
    check_rules(parameters, optional)


def check_rules(parameters: Mapping[str, Any], optional: Collection[str] = ()) -> None:
    """Check the parameters that have a rule. Raises KitError. optional: as for `check_parameters`."""
    for name in RULES.keys() & parameters.keys():
        if not (name in optional and parameters[name] == ""):
            RULES[name](name, parameters[name])
    if "ONLY_FOLDS" in parameters and "FOLDS" in parameters:
        whole_numbers("ONLY_FOLDS", parameters["ONLY_FOLDS"], high=parameters["FOLDS"] - 1)


def check_machine() -> None:
    """Raise KitError for an environment variable whose value the kit cannot use."""
    threads.count()
    paths.check_environment()
