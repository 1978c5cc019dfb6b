"""What a plan costs beyond its notebooks: against plain papermill, and when nothing has changed.

python benchmarks/pipeline.py [STEPS]
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 4
WORK = """import time
import numpy as np
import pandas as pd
import matplotlib.pyplot as plt
end = time.perf_counter() + SECONDS
while time.perf_counter() < end:
    np.linalg.svd(np.random.default_rng(0).normal(size=(60, 60)))
pd.DataFrame(np.eye(30)).plot(figsize=(7, 4));"""


def write_plan(folder: Path) -> Path:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": "# 00 · Work\n\n*How long?*", "metadata": {}, "id": "a"},
        {
            "cell_type": "code",
            "source": "SECONDS: float = 3.0  # of work",
            "metadata": {"tags": ["parameters"]},
            "id": "b",
        },
        {"cell_type": "markdown", "source": "## Work\n\nLook at the diagonal.", "metadata": {}, "id": "c"},
        {"cell_type": "code", "source": WORK, "metadata": {}, "id": "d"},
    ]
    for cell in cells:
        cell.update({"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    names = [f"{number:02d}_work" for number in range(STEPS)]
    for name in names:
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    plan = folder / "work.yaml"
    plan.write_text("description: Work.\nsteps:\n" + "".join(f"- notebook: {name}\n" for name in names))
    return plan


def seconds(command: list[str], **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    return time.perf_counter() - began


def main() -> None:
    logging.disable()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = write_plan(folder)
        home = {"KITLIB_HOME": name}
        loop = (
            "import papermill, glob\nfor name in sorted(glob.glob('*_work.ipynb')):\n"
            "    papermill.execute_notebook(name, 'out.ipynb', parameters={'SECONDS': 3.0}, progress_bar=False)"
        )
        papermill = str(Path(sys.executable).with_name("papermill"))
        run = [sys.executable, "-m", "kitlib", "run", str(plan)]
        by_command = STEPS * seconds([papermill, str(folder / "00_work.ipynb"), str(folder / "out.ipynb")])
        by_loop = seconds(["bash", "-c", f'cd {name} && {sys.executable} -c "{loop}"'])
        by_plan = seconds(run, **home)
        unchanged = statistics.median(seconds(run, **home) for _ in range(5))
    print(f"{STEPS} notebooks of 3 s of work each, in seconds")
    print(f"papermill, one command a notebook  {by_command:6.1f}")
    print(f"papermill's API in one process     {by_loop:6.1f}")
    print(f"a plan, with pages and report      {by_plan:6.1f}   {by_plan / by_loop - 1:+.0%} against the API")
    print(f"the same plan, unchanged           {unchanged:6.2f}   {by_plan / unchanged:.0f} times less")


if __name__ == "__main__":
    main()
