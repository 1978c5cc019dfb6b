"""Pack a plan for Kaggle: wheels as a dataset, weights as models, and a folder a notebook, ready to be pushed."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kitlib import __version__
from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shown
from kitlib.pipeline.notebook import Value
from kitlib.pipeline.plans import Plan, Ready, check
from kitlib.platforms import effort
from kitlib.platforms.kaggle import notebooks, weights, wheels
from kitlib.platforms.kaggle.notebooks import Sources

RECORD = "pack.json"
T4S = 2  # of the machine that every notebook asks for


@dataclass(frozen=True)
class Options:
    """What a pack is made with besides the plan and its parameters."""

    owner: str
    competition: str = paths.COMPETITION
    datasets: Sequence[str] = ()  # further ones, OWNER/SLUG
    weights: Mapping[str, str] = field(default_factory=dict)  # by encoder: a folder, or a model version on Kaggle
    licence: str = ""  # of weights that the kit does not know
    wheels: Path | None = None  # a folder of wheels to take instead of downloading
    one: bool = False  # the whole plan as one notebook
    resume: str = ""  # a step, or STEP:PART, whose next part is packed


def pack(plan: str, given: Mapping[str, str], options: Options, out: Path | None = None) -> Path:
    """Write a folder with everything that a plan needs on Kaggle; return it.

    given: parameters as for `kitlib run`. Everything is checked first, and the folder appears only when it is whole.
    Raises KitError.
    """
    _check_names(options)
    file, content, steps = check(plan, dict(given))
    needed = weights.needed(steps)
    hours, unknown = effort.hours(plan, given, T4S * effort.T4_TFLOPS)
    steps = [_for_kaggle(step, options) for step in steps]
    if options.one and (own := [step.name for step in steps if step.notebook.path.parent != paths.notebooks_dir()]):
        raise KitError(f"--one: expected notebooks of the kit, which its wheel holds; got {', '.join(own)}")
    folder = (out or paths.home() / "data" / "kaggle" / file.stem).resolve()
    if folder.exists() and not (folder / RECORD).is_file():
        raise KitError(f"--out: expected a new folder, or one of an earlier pack; got {shown(folder.name)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as new:
        estimate = f"about {hours:.1f} hours: {effort.BASIS}{unknown}"
        _write(Path(new) / "pack", file.stem, content, steps, needed, options, estimate)
        if folder.exists():
            shutil.rmtree(folder)
        (Path(new) / "pack").rename(folder)
    return folder


def read(folder: Path) -> dict[str, Any]:
    """The record of a pack. Raises KitError for a folder that is none."""
    try:
        return storage.read_json(folder / RECORD, needed=("owner", "dataset", "weights", "kernels"))
    except FileNotFoundError:
        raise KitError(f"expected a folder by `kitlib kaggle pack`; got {shown(str(folder))}") from None


def summary(folder: Path) -> str:
    """What a pack holds, a line each, with the licences of its weights."""
    record = read(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    lines = [f"dataset {record['dataset']}: {len(list((folder / 'dataset').glob('*.whl')))} wheels"]
    lines += [f"weights {one['source']}: {one['licence']}" for one in record["weights"]]
    lines += [f"notebook {kernel['id']}" for kernel in record["kernels"]]
    lines += [f"{size:,.0f} MB, all of it private", f"on two T4s {record.get('estimate', 'not estimated')}"]
    return "\n".join(lines)


def _check_names(options: Options) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{1,49}", options.owner):
        raise KitError(f"--owner: expected your user name in Kaggle's addresses; got {shown(options.owner)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,99}", options.competition):
        raise KitError(f"--competition: expected the name in its address; got {shown(options.competition)}")
    for dataset in options.datasets:
        if not re.fullmatch(r"[\w-]+/[a-z0-9][a-z0-9-]{2,49}", dataset):
            raise KitError(f"--dataset: expected OWNER/SLUG; got {shown(dataset)}")


def _for_kaggle(step: Ready, options: Options) -> Ready:
    """A step with the values that it has on Kaggle: data by its mount's name, weights by theirs.

    Raises KitError for a file or folder of this machine, and for data that is not attached.
    """
    values = dict(step.values)
    for name, value in values.items():
        if name in ("ENCODER", "MODEL"):
            values[name] = weights.portable(str(value))
        elif name == "DATA":
            values[name] = _data(str(value), options)
        elif isinstance(value, str) and name != "TRUTH" and re.search(paths.PATHS_IN_TEXT, value):
            raise KitError(
                f"{name} of {step.name}: expected no file of this machine, which Kaggle does not have; got {value!r}"
            )
    return Ready(step.name, step.notebook, values)


def _data(value: str, options: Options) -> str:
    attached = [options.competition, *(dataset.rpartition("/")[2] for dataset in options.datasets)]
    if value in ("sample", *attached):
        return value
    raise KitError(f"DATA: expected sample, the competition ({options.competition}), or a dataset attached by "
                   f"--dataset OWNER/{paths.slug(Path(value).stem) or 'SLUG'}; got {shown(value)}")  # fmt: skip


def _write(
    folder: Path, plan: str, content: Plan, steps: list[Ready], needed: list[str], options: Options, estimate: str
) -> None:
    """Write the dataset, the weights, a folder a notebook, and the record."""
    owner = options.owner
    resumed, part = _part(options.resume, [plan] if options.one else [step.name for step in steps])
    extras = ["rl"] if any("MODEL" in step.notebook.parameters for step in steps) else []
    dataset = "-".join(["kitlib-wheels", *extras])
    attached = [weights.attach(name, owner, options.weights, options.licence, folder / "weights") for name in needed]
    _write_dataset(folder / "dataset", f"{owner}/{dataset}", extras, options.wheels)
    drawn = all(step.values.get("DATA", "sample") == "sample" for step in steps)
    sources = Sources(
        competitions=[] if drawn else [options.competition],
        datasets=[f"{owner}/{dataset}", *options.datasets, *(one.source for one in attached if not one.is_model)],
        models=[one.source for one in attached if one.is_model],
    )
    kernels: list[dict[str, str]] = []
    for number, name in enumerate([plan] if options.one else [step.name for step in steps], 1):
        if options.one:
            title, book = (
                f"kitlib {plan}",
                notebooks.whole_plan(plan, _as_yaml(content, steps), content.description, dataset),
            )
        else:
            step = steps[number - 1]
            title, book = f"{plan} {name}".replace("_", " "), notebooks.packed(step.notebook.path, step.values, dataset)
        earlier = [kernel["id"] for kernel in kernels]
        if name == resumed:
            earlier += [f"{owner}/{paths.slug(_titled(title, one))}" for one in range(1, part)]
            title = _titled(title, part)
        sources = Sources(sources.competitions, sources.datasets, sources.models, earlier)
        place = f"kernels/{number:02}-{paths.slug(name)}"
        kernels.append(
            {"step": name, "folder": place, "id": notebooks.write(folder / place, owner, title, book, sources)}
        )
    about: dict[str, Any] = {"plan": plan, "kitlib": __version__, "owner": owner, "competition": options.competition}
    places = [
        {"source": one.source, "folder": f"weights/{one.folder.name}", "licence": one.licence}
        for one in attached
        if one.folder
    ]
    about |= {"dataset": f"{owner}/{dataset}", "weights": places, "kernels": kernels, "estimate": estimate}
    storage.write_json(folder / RECORD, about)


def _part(resume: str, names: list[str]) -> tuple[str, int]:
    """The step and the number of the part in STEP or STEP:PART; "" and 1 for an empty text."""
    name, _, number = resume.partition(":")
    if resume and (name not in names or not re.fullmatch("|[2-9]|[1-9][0-9]", number)):
        raise KitError(
            f"--resume: expected one of {', '.join(names)}, or with its part such as {names[0]}:2; got {shown(resume)}"
        )
    return name, int(number or 2) if resume else 1


def _titled(title: str, part: int) -> str:
    return title if part == 1 else f"{title} part {part}"


def _as_yaml(content: Plan, steps: list[Ready]) -> str:
    """The plan with the final values of each step."""
    listed: list[dict[str, Any]] = []
    for step in steps:
        values: dict[str, Value] = dict(step.values)
        listed.append({"notebook": step.notebook.name, "parameters": values})
    return yaml.safe_dump({"description": content.description, "steps": listed}, sort_keys=False, width=110)


def _write_dataset(folder: Path, identity: str, extras: list[str], given: Path | None) -> None:
    folder.mkdir(parents=True)
    ours = wheels.build(folder)
    if given is None:
        others = wheels.download(extras, folder)
    else:
        if not given.is_dir():
            raise KitError(f"--wheels: expected a folder; got {shown(str(given))}")
        others = [
            Path(shutil.copy2(file, folder))
            for file in sorted(given.glob("*.whl"))
            if not file.name.startswith("kitlib-")
        ]
        names = {file.name.partition("-")[0].lower().replace("_", "-") for file in others}
        lacking = [one.name for one in wheels.missing(wheels.requirements(extras)) if one.name.lower() not in names]
        if lacking:
            raise KitError(f"--wheels: expected wheels of {', '.join(lacking)} as well; {given.name} has none")
    listed = "\n".join(f"- {file.name}: {wheels.licence(file)}" for file in [ours, *others])
    title = identity.rpartition("/")[2].replace("-", " ")
    about: dict[str, Any] = {"title": title, "id": identity, "licenses": [{"name": "apache-2.0"}]}
    about |= {
        "subtitle": "What the notebooks of kitlib install",
        "description": f"Wheels and their licences:\n\n{listed}",
    }
    storage.write_json(folder / "dataset-metadata.json", about)
