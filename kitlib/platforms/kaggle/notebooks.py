"""Notebooks as Kaggle runs them: a first cell that installs the kit, parameters set in the cell itself, metadata."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.pipeline.notebook import Value

MACHINE = "NvidiaTeslaT4"  # two T4; without a name Kaggle has given GPUs that its own torch cannot use
LONGEST_TITLE = 50
FIRST_CELL = """\
# Written by `kitlib kaggle pack`: installs the kit from the attached dataset {dataset}, without the internet.
import os, subprocess, sys, tempfile
from pathlib import Path

styles = ("datasets/*/{dataset}", "{dataset}", "*/*/{dataset}")
wheels = sorted(str(w) for s in styles for w in Path("/kaggle/input").glob(f"{{s}}/*.whl"))
if not wheels:
    sys.exit("error: expected the dataset {dataset} among the inputs: Add Input, Your Work, Datasets")
kit = Path(tempfile.gettempdir(), "kitlib-packages")
pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--upgrade", "--quiet", "--target", str(kit)]
if code := subprocess.run([*pip, "--disable-pip-version-check", *wheels]).returncode:
    sys.exit(f"error: expected wheels for Python {{sys.version.split()[0]}}; pip ended with code {{code}}: pack again")
sys.path.insert(0, str(kit))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(kit), os.environ.get("PYTHONPATH")]))
os.environ |= {{"HF_HUB_OFFLINE": "1", "KITLIB_HOME": "/kaggle/working", "KITLIB_TRACKER": "{tracker}"}}

from kitlib.platforms.kaggle import session

session.begin()"""
WHOLE_PLAN = """\
from IPython.display import HTML

report = session.run_plan(plan)
HTML(report.read_text()) if report else "unfinished: the next part goes on from this output\""""


@dataclass(frozen=True)
class Sources:
    """What a notebook on Kaggle reads: slugs of competitions, OWNER/SLUG of datasets and notebooks, model versions."""

    competitions: Sequence[str] = ()
    datasets: Sequence[str] = ()
    models: Sequence[str] = ()
    kernels: Sequence[str] = ()


def with_parameters(source: str, values: Mapping[str, Value]) -> str:
    """The parameters cell with other values in its lines, comments kept.

    >>> with_parameters("EPOCHS: int = 3  # passes", {"EPOCHS": 5})
    'EPOCHS: int = 5  # passes'
    """
    lines = source.split("\n")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            name, old = statement.target.id, statement.value
            if name in values:
                line = lines[statement.lineno - 1].encode()  # columns count bytes
                new = json.dumps(value, ensure_ascii=False) if isinstance(value := values[name], str) else repr(value)
                lines[statement.lineno - 1] = (
                    line[: old.col_offset] + new.encode() + line[old.end_col_offset :]
                ).decode()
    return "\n".join(lines)


def packed(notebook: Path, values: Mapping[str, Value], dataset: str) -> dict[str, Any]:
    """A notebook's JSON with the first cell and its values set."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = with_parameters("".join(cell["source"]), values)
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    content["cells"].insert(
        0, _code("kaggle-first", FIRST_CELL.format(dataset=dataset, tracker=",".join(paths.trackers())))
    )
    return content


def whole_plan(name: str, plan: str, description: str, dataset: str) -> dict[str, Any]:
    """The JSON of a notebook that runs a whole plan, given as YAML."""
    cells = [
        _code("kaggle-first", FIRST_CELL.format(dataset=dataset, tracker=",".join(paths.trackers()))),
        _prose("kaggle-title", f"# The plan {name}\n\n{description}\n\nEach of its notebooks runs by papermill; their "
               f"pages, the report, the runs and submission.csv are this notebook's output."),
        _code("kaggle-plan", f"%%writefile {name}.yaml\n{plan}"),
        _code("kaggle-run", f'plan = "{name}.yaml"\n{WHOLE_PLAN}'),
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def write(folder: Path, owner: str, title: str, content: dict[str, Any], sources: Sources) -> str:
    """Write a notebook with its kernel-metadata.json, as `kaggle kernels push` takes it; return its OWNER/SLUG.

    Raises KitError for a title that Kaggle does not take.
    """
    if not 5 <= len(title) <= LONGEST_TITLE:
        raise KitError(f"title: expected 5 to {LONGEST_TITLE} characters; got {title!r}: take a shorter plan name")
    identity = f"{owner}/{paths.slug(title)}"
    storage.write_json(folder / "notebook.ipynb", content, indent=1)
    storage.write_json(
        folder / "kernel-metadata.json",
        {
            "id": identity,
            "title": title,
            "code_file": "notebook.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": True,
            "enable_tpu": False,
            "enable_internet": False,
            "machine_shape": MACHINE,
            "competition_sources": list(sources.competitions),
            "dataset_sources": list(sources.datasets),
            "model_sources": list(sources.models),
            "kernel_sources": list(sources.kernels),
        },
    )
    return identity


def _code(name: str, source: str) -> dict[str, Any]:
    shared = {"cell_type": "code", "id": name, "metadata": {}}
    return shared | {"execution_count": None, "outputs": [], "source": source}


def _prose(name: str, source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}
