"""Run a plan's notebooks in order, skip unchanged steps, and write the report.

Executed notebooks, their pages and the report are in data/runs/<plan>/. plan.json records the finished steps with
checksums of all their inputs, so that a failed or stopped plan resumes there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import re
import time
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.evaluation import runs
from kitlib.pipeline.notebook import without_machine
from kitlib.pipeline.plans import Ready, check, reach

log = logging.getLogger(__name__)

# Notebooks do not use these files and folders of the package: a change in them makes no step stale.
ORCHESTRATION = {"__main__.py", "pipeline", "models/vlm/dashboard", "platforms"}
RECORD_TEXTS = ("name", "title", "question", "status", "time", "finished", "page", "error")  # of a finished step
HASHED_WHOLE = 16 * 2**20  # bytes; larger files are identified by size and time


class StepFailed(RuntimeError):
    """A notebook failed with an error that is not the user's; the message names the page with its traceback."""


def run_plan(
    name_or_path: str | Path,
    parameters: Mapping[str, str] | None = None,
    force: bool = False,
    start_from: str | None = None,
) -> Path:
    """Run a plan and return the path of its report.

    A step is skipped if its notebook, values, libraries, data, kitlib and all steps before it are unchanged, and its
    outputs still exist. `force` runs all steps, `start_from` that step and those after it. Raises KitError for bad
    input (before any step runs, or from a notebook), StepFailed if a notebook fails, and KeyboardInterrupt if stopped;
    finished steps are kept, and the next call continues.
    """
    file, plan, steps = check(name_or_path, parameters)
    for line in reach(steps, parameters or {}):
        log.info(line)
    names = [step.name for step in steps]
    if start_from is not None and start_from not in names:
        raise KitError(f"--from: expected one of the plan's steps {', '.join(names)}; got {start_from!r}")
    rerun_from = 0 if force else names.index(start_from) if start_from else len(steps)
    folder = paths.run_dir(file.stem)
    busy = f"plan {folder.name} is being run by another process; wait for it to end"
    with storage.lock(folder / ".lock", busy):
        began = time.perf_counter()
        before = _read_state(folder)
        records = {record["name"]: record for record in before.get("steps", [])}
        made_from = _made_from(steps)
        why = {step.name: _why_stale(records.get(step.name), step, made_from[step.name], folder) for step in steps}
        first = next((index for index, name in enumerate(names) if why[name] or index >= rerun_from), len(steps))
        state: dict[str, Any] = {
            "plan": file.stem,
            "description": plan.description,
            "parameters": _portable({**plan.parameters, **(parameters or {})}),
            "versions": runs.library_versions(),
            "steps": [records[name] for name in names[:first]],
        }
        titles = [f"step {n} of {len(steps)} · {step.name} · {step.notebook.title}" for n, step in enumerate(steps, 1)]
        for title in titles[:first]:
            log.info("%s · unchanged", title)
        if first < len(steps):
            _keep_report(folder)
        with _warm(steps[first:]):
            for index in range(first, len(steps)):
                log.info(" · ".join(filter(None, [titles[index], why[names[index]] if index == first else ""])))
                storage.write_json(folder / "plan.json", state)  # outputs of this and later steps are no longer valid
                record = _blank_record(steps[index])
                state["steps"].append(record)
                try:
                    _run_step(steps[index], folder, record)
                except BaseException:
                    unreached = [_blank_record(later) for later in steps[index + 1 :]]
                    _write_report(folder, {**state, "steps": state["steps"] + unreached})
                    raise
                record["made_from"] = made_from[record["name"]]
                for done, step in zip(state["steps"], steps, strict=False):  # files of earlier steps may have changed
                    done["files"] = _files(step, done)
                log.info("%s · done in %s", record["name"], record["time"])
        if state != before or not (folder / "report.html").is_file():
            storage.write_json(folder / "plan.json", state)
            _write_report(folder, state)
        took = duration(time.perf_counter() - began)
        log.info("plan %s: %d of %d steps ran, %s", file.stem, len(steps) - first, len(steps), took)
    return folder / "report.html"


def duration(seconds: float) -> str:
    """Format seconds as text.

    >>> duration(3.21), duration(75), duration(7260)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _warm(steps: list[Ready]) -> contextlib.AbstractContextManager[None]:
    """A server of warm kernels, if several of the steps compute in torch; with TRL if one of them trains by it."""
    code = [step.notebook.code for step in steps if step.notebook.imports_torch]
    if len(code) < 2:
        return contextlib.nullcontext()
    from kitlib.pipeline import warm

    return warm.server(
        [*warm.LIBRARIES, *(warm.TRL if any(re.search(r"\bvlm\.train\b", each) for each in code) else ())]
    )


def _run_step(step: Ready, folder: Path, record: dict[str, Any]) -> None:
    """Execute one step, write its notebook and page to `folder`, and complete its record."""
    from kitlib.pipeline import kernel, report

    running = folder / f".{step.name}.running.ipynb"
    failed = folder / f"{step.name}.failed.ipynb"
    outcome = kernel.execute(step.notebook.path, running, step.values, heavy=step.notebook.imports_torch)
    result = folder / f"{step.name}.ipynb" if outcome.status == "done" else failed
    running.replace(result)
    report.write_page(result)
    record |= {
        "status": outcome.status,
        "time": duration(outcome.seconds),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "page": f"{result.stem}.html",
        "headline": outcome.headline,
        "error": without_machine(outcome.error),
    }
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    page = paths.relative(folder / record["page"])
    where = f"{step.name}, cell {outcome.cell}; the notebook up to there: {page}"
    if outcome.user_error:
        log.error("stopped in %s", where)
        raise KitError(outcome.error)
    if outcome.status == "failed":
        raise StepFailed(f"{outcome.error} (in {where})")
    missing = [path for path in outcome.headline["wrote"] if not (paths.home() / path).exists()]
    if missing:
        record |= {"status": "failed", "error": f"its headline lists {missing[0]}, which does not exist"}
        raise StepFailed(f"{step.name}: {record['error']}")
    for old in (failed, failed.with_suffix(".html")):
        old.unlink(missing_ok=True)


def _blank_record(step: Ready) -> dict[str, Any]:
    """The record of a step before it runs."""
    return {
        "name": step.name,
        "title": step.notebook.title,
        "question": step.notebook.question,
        "parameters": _portable(step.values),
        "status": "not run",
        "headline": {"label": "", "value": "", "wrote": []},
    }


def _portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without folders of this machine."""
    return {
        name: paths.portable(name.lower(), value) if isinstance(value, str) else value for name, value in values.items()
    }


def _made_from(steps: list[Ready]) -> dict[str, dict[str, str]]:
    """Checksums of all inputs of each step; a step that runs makes all later ones stale."""
    kitlib, libraries = _code_digest(), storage.digest(json.dumps(_versions()))
    return {
        step.name: {
            "kitlib": kitlib,
            "a library": libraries,
            "the order of steps": storage.digest(*(earlier.name for earlier in steps[:index])),
            "the notebook": storage.digest(step.notebook.code),
            "a parameter": storage.digest(json.dumps(_portable(step.values), sort_keys=True)),
            "the data": storage.digest(json.dumps(data)),
        }
        for index, (step, data) in enumerate(zip(steps, _data_signatures(steps), strict=True))
    }


def _why_stale(record: dict[str, Any] | None, step: Ready, made_from: dict[str, str], folder: Path) -> str:
    """Why a step has to run, "" if its inputs and outputs are unchanged."""
    if record is None or not (folder / f"{step.name}.ipynb").is_file():
        return "not run yet"
    changed = [what for what, digest in made_from.items() if record.get("made_from", {}).get(what) != digest]
    if changed:
        return f"{' and '.join(changed)} changed"
    now = _files(step, record)
    changed = [path for path in now | record["files"] if now.get(path) != record["files"].get(path)]
    return f"changed since: {changed[0]}" if changed else ""


def _files(step: Ready, record: dict[str, Any]) -> dict[str, str]:
    """Checksums of a step's outputs and of the runs it reads: those in RUN and RUNS, all if empty, and in COMPARE."""
    wrote = record["headline"]["wrote"]
    files = [path for path in wrote if not re.fullmatch(r"submissions/.*\.json", path)]  # users add the public score
    for name in [name for name in ("RUN", "RUNS", "COMPARE") if name in step.notebook.parameters]:
        value = str(step.values.get(name, step.notebook.parameters[name].default))
        named = [run.strip() for run in value.split(",") if run.strip()]
        named = named or (runs.list_runs() if name != "COMPARE" else [])
        files += [paths.relative(paths.runs_dir() / run / "metrics.json") for run in named]
    return {path: _file_signature(paths.home() / path) for path in files}


def _keep_report(folder: Path) -> None:
    """Name the report of earlier steps by its date, before another one takes its place."""
    report = folder / "report.html"
    if report.is_file():
        made = datetime.fromtimestamp(report.stat().st_mtime, UTC)
        report.replace(folder / f"report-{made:%Y-%m-%d-%H%M%S}.html")


def _write_report(folder: Path, state: dict[str, Any]) -> None:
    from kitlib.pipeline import report

    report.write(folder, state)


def _read_state(folder: Path) -> dict[str, Any]:
    """The record of the plan's last run, empty if there is none or it is not as this kit writes it."""
    file = folder / "plan.json"
    try:
        state = storage.read_json(file, needed=("steps",))
        with storage.reading(file):
            if not all(_is_record(step) for step in state["steps"]):
                raise ValueError("a step")
        return state
    except FileNotFoundError:
        return {}
    except Damaged as error:
        log.warning("%s: all steps run", str(error).removesuffix(f": {storage.MEND}"))
        return {}


def _is_record(step: Any) -> bool:
    """Whether a value is the complete record of a finished step."""
    return (
        isinstance(step, dict)
        and all(isinstance(step.get(name), str) for name in RECORD_TEXTS)
        and all(isinstance(step.get(name), dict) for name in ("parameters", "made_from", "files", "headline"))
        and step["headline"].keys() >= {"label", "value", "wrote"}
        and isinstance(step["headline"]["wrote"], list)
    )


def _data_signatures(steps: list[Ready]) -> list[list[Any]]:
    """Checksums of the data that each step reads; draws the sample competition if it is named."""
    signature = functools.cache(_folder_signature)
    signatures = []
    for step in steps:
        read: list[Path] = []
        for name, parameter in step.notebook.parameters.items():
            value = step.values.get(name, parameter.default)
            if name == "DATA":
                read.append(_find_or_fetch(str(value)))
            elif isinstance(value, str):  # such as timm:NAME@WEIGHTS, in which the file's content counts
                named = [Path(part) for part in re.split("[:@]", value) if "/" in part]
                read += [path for path in named if path.exists()]
        signatures.append([signature(path) for path in read])
    return signatures


def _find_or_fetch(data: str) -> Path:
    if data == "sample" or data.startswith("hf:"):
        from kitlib.data import readers  # takes a second to import

        return readers.load(data).folder
    return paths.find_data(data)


def _folder_signature(folder: Path) -> list[Any]:
    """The content of CSV and JSON files, and name, size and time of all others, such as pictures, in each folder."""
    if folder.is_file():
        return [_file_signature(folder)]
    signature: list[Any] = []
    todo, seen = [str(folder)], set()
    while todo:
        where = todo.pop()
        if (real := os.path.realpath(where)) in seen:  # links may lead round in circles
            continue
        seen.add(real)
        stamps = []
        with os.scandir(where) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    stat = entry.stat()
                except OSError:  # a link to nothing
                    stamps.append(f"{entry.name} missing")
                    continue
                if S_ISDIR(stat.st_mode):
                    todo.append(entry.path)
                elif entry.name.endswith((".csv", ".json")) and S_ISREG(stat.st_mode):
                    stamps.append(f"{entry.name} {_file_signature(Path(entry.path))}")
                else:
                    stamps.append(f"{entry.name} {stat.st_size} {stat.st_mtime_ns}")
        signature.append([os.path.relpath(where, folder), storage.digest("\n".join(stamps))])
    return signature


def _file_signature(path: Path) -> str:
    """The content of a small file, the size and time of a large one, the existence of a folder."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "missing"
    if not S_ISREG(stat.st_mode):
        return "folder" if S_ISDIR(stat.st_mode) else "no file"
    return storage.digest(path) if stat.st_size <= HASHED_WHOLE else f"{stat.st_size} bytes at {stat.st_mtime_ns}"


def _code_digest() -> str:
    """A checksum of everything in kitlib that a notebook can use: modules and the files that they read."""
    package = paths.package_dir()
    parts: list[str | Path] = []
    for file in sorted(path for path in package.rglob("*") if path.is_file()):
        inside = file.relative_to(package)
        whole = {inside.as_posix(), *(folder.as_posix() for folder in inside.parents)}
        ignored = any(part.startswith((".", "__pycache__")) for part in inside.parts) or file.suffix == ".md"
        if not ignored and not whole & ORCHESTRATION:
            parts += [inside.as_posix(), file]
    return storage.digest(*parts)


def _versions() -> dict[str, str]:
    """The installed versions of kitlib's requirements, by its metadata or else its pyproject.toml."""
    versions = {}
    try:
        requirements = importlib.metadata.requires("kitlib") or []
    except importlib.metadata.PackageNotFoundError:
        file = paths.checkout() / "pyproject.toml"
        requirements = tomllib.loads(file.read_text())["project"]["dependencies"] if file.is_file() else []
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
    return versions
