"""The proof: a packed plan runs as on Kaggle, from its wheels alone, to a valid submission.

Inputs are mounted read-only in the three styles of competitions, datasets and older inputs, only the working folder and
a temporary one can be written, and there is no network. KITLIB_KAGGLE_PYTHON names another interpreter to run it with:
`make kaggle-image` makes one with the versions of Kaggle's image.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import kaggle_helper
import pytest
import yaml

from kitlib.core import paths
from kitlib.evaluation import submission
from kitlib.platforms.kaggle import wheels
from kitlib.platforms.kaggle.pack import Options, pack, read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not kaggle_helper.namespaces_work(), reason="this machine allows no mount and network namespaces"
    ),
]

PYTHON = os.environ.get("KITLIB_KAGGLE_PYTHON", "")  # else this one
HEADS = {"ENCODER": "tiny", "HEADS_EPOCHS": 1, "FINETUNE_EPOCHS": 0, "PLACES_PER_CELL": 8}
PLAN = {
    "description": "A network and a submission.",
    "parameters": {"DATA": paths.COMPETITION, "FOLDS": 2},
    "steps": [
        {"notebook": "10_train_multiview", "parameters": {"RUN": "tiny", "ONLY_FOLDS": "0", **HEADS}},
        {"notebook": "30_ensemble", "parameters": {"NAME": "tiny", "RUNS": "tiny", "ENCODER": "tiny"}},
    ],
}
EXECUTE = (
    "-m",
    "papermill",
    "/kaggle/input/code/notebook.ipynb",
    "__notebook__.ipynb",
    "-k",
    "python3",
    "--no-progress-bar",
)


@pytest.mark.timeout(1800)
def test_a_packed_plan_ends_with_a_valid_submission(home, small_sample: Path):
    (home / "tiny.yaml").write_text(yaml.safe_dump(PLAN))
    (home / "wheels").mkdir()
    if PYTHON:
        wheels.download([], home / "wheels")
    else:
        kaggle_helper.wheel_of("simplejpeg", home / "wheels")
    folder = pack(str(home / "tiny.yaml"), {}, Options("someone", wheels=home / "wheels"), home / "pack")
    first, second = read(folder)["kernels"]
    python = os.path.abspath(PYTHON or sys.executable)  # noqa: PTH100 - a link stays one: it is the environment

    inputs, working = home / "1/input", home / "1/working"
    shutil.copytree(small_sample / "kaggle_dataset", inputs / "competitions" / paths.COMPETITION)
    shutil.copytree(folder / "dataset", inputs / "datasets/someone/kitlib-wheels")
    shutil.copytree(folder / first["folder"], inputs / "code")
    for program, refused in {
        "import kitlib": "No module named 'kitlib'",
        "open('/kaggle/input/x', 'w')": "Read-only file system",
        "open('/etc/x', 'w')": "Read-only file system",
        "import socket; socket.create_connection(('1.1.1.1', 80), 3)": "Network is unreachable",
    }.items():
        done = kaggle_helper.session(python, inputs, working, "-c", program)
        assert done.returncode and refused in done.stderr, f"{program}: {done.stderr}"
    done = kaggle_helper.session(python, inputs, working, *EXECUTE)
    assert done.returncode == 0, done.stderr[-3000:]
    cell = json.loads((working / "__notebook__.ipynb").read_text())["cells"][0]
    assert "hours until training stops" in json.dumps(cell["outputs"])

    inputs, output, working = home / "2/input", working, home / "2/working"
    shutil.copytree(small_sample / "kaggle_dataset", inputs / paths.COMPETITION)  # the older style
    shutil.copytree(folder / "dataset", inputs / "kitlib-wheels")
    shutil.copytree(output, inputs / Path(first["id"]).name)
    shutil.copytree(folder / second["folder"], inputs / "code")
    done = kaggle_helper.session(python, inputs, working, *EXECUTE)
    assert done.returncode == 0, done.stderr[-3000:]
    template = small_sample / "kaggle_dataset/sample_submission.csv"
    submission.validate(working / "submission.csv", template)
    assert not [path for path in working.rglob("*") if path.is_symlink()]  # Kaggle keeps files
