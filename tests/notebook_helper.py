"""Throwaway notebooks and plans for tests."""

from __future__ import annotations

import json
from pathlib import Path


def prose(text: str) -> dict:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


def code(text: str, *tags: str) -> dict:
    return {
        "cell_type": "code",
        "source": text,
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "execution_count": None,
    }


def parameters(text: str) -> dict:
    return code(text, "parameters")


def headline(label: str, value: str, wrote: str = "[]") -> dict:
    """A last cell that says what came out, without the second that importing kitlib takes; `wrote` is an expression."""
    said = f'"application/vnd.kitlib.headline+json": {{"label": "{label}", "value": {value}, "wrote": {wrote}}}'
    return code(f"from IPython.display import display\ndisplay({{{said}, 'text/plain': '{label}'}}, raw=True)")


def write_notebook(path: Path, *cells: dict) -> Path:
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    numbered = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
    path.write_text(json.dumps({"cells": numbered, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}))
    return path


def write_plan(path: Path, steps: str, more: str = "") -> Path:
    """A plan of the notebooks named in `steps`."""
    lines = "".join(f"  - notebook: {name}\n" for name in steps.split())
    path.write_text(f"description: A plan for a test.\n{more}steps:\n{lines}")
    return path
