"""Measure what it saves that a plan's kernels are forked from a process that has imported the large libraries.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py

Wall time from the start of a kernel to its end, of a notebook that only imports; both ways in turn.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from kitlib.pipeline import kernel, warm

IMPORTS = "import timm, torch, pytorch_lightning, seaborn, sklearn.linear_model"
TIMES = 3


def seconds(folder: Path) -> float:
    """The wall time of one execution."""
    began = time.perf_counter()
    outcome = kernel.execute(folder / "imports.ipynb", folder / "out.ipynb", {}, heavy=True)
    assert outcome.status == "done", outcome.error
    return time.perf_counter() - began


def main() -> None:
    """Print the median of each way and their ratio."""
    logging.disable(logging.INFO)
    own, forked = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tagged = new_code_cell("N: int = 1  # a number", metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[tagged, new_code_cell(IMPORTS)]), folder / "imports.ipynb")
        for _ in range(TIMES):
            own.append(seconds(folder))
            with warm.server():
                seconds(folder)  # waits for the server
                forked.append(seconds(folder))
    ways = {"a kernel that imports for itself": own, "one that is forked": forked}
    for way, values in ways.items():
        print(f"{way}: {statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f})")
    print(f"{statistics.median(own) / statistics.median(forked):.1f}x")


if __name__ == "__main__":
    main()
