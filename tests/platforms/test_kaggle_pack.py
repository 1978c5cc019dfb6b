"""Packing a plan for Kaggle: wheels, weights with their licence, notebooks with their metadata; refusals."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import kaggle_helper
import pytest
import yaml

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.pipeline.notebook import read_notebook
from kitlib.platforms.kaggle import notebooks, wheels
from kitlib.platforms.kaggle.pack import Options, pack, read, summary

PLAN = {
    "description": "Two notebooks.",
    "parameters": {"DATA": paths.COMPETITION},
    "steps": [
        {"notebook": "10_train_multiview", "parameters": {"RUN": "two-multiview", "DROPOUT": 0.25}},
        {"notebook": "30_ensemble", "parameters": {"NAME": "two", "RUNS": "two-multiview"}},
    ],
}


@pytest.fixture
def plan(home, tmp_path) -> str:
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(PLAN))
    return str(tmp_path / "two.yaml")


@pytest.fixture
def local_wheels(tmp_path, monkeypatch) -> Path:
    """Wheels without the internet; the kit's own is built in the test of the proof."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    kaggle_helper.wheel_of("simplejpeg", folder)
    monkeypatch.setattr(wheels, "build", lambda into: kaggle_helper.wheel_of("packaging", into))
    return folder


@pytest.fixture
def streetclip(tmp_path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    return folder


def test_the_image_lacks_one_wheel_and_six_for_the_vlm():
    base = [requirement.name for requirement in wheels.missing(wheels.requirements())]
    assert base == ["simplejpeg"]
    more = {requirement.name for requirement in wheels.missing(wheels.requirements(["rl"]))}
    assert more == {"simplejpeg", "trl", "transformers", "datasets", "pyarrow"}  # tokenizers and safetensors follow
    needed = ["tokenizers>=0.23", "numpy", 'brotli>=99; python_version < "3"', "none>=1; extra == 'x'"]
    assert [str(requirement) for requirement in wheels.missing(needed)] == ["tokenizers>=0.23"]
    assert "torch==2.10.0" in wheels.pins() and not any(pin.startswith("simplejpeg") for pin in wheels.pins())


def test_a_pack_holds_wheels_weights_and_notebooks(plan, local_wheels, streetclip):
    weights = {"hf:geolocal/StreetCLIP": str(streetclip)}
    folder = pack(plan, {"ONLY_FOLDS": "0"}, Options("someone", weights=weights, wheels=local_wheels))
    dataset = json.loads((folder / "dataset/dataset-metadata.json").read_text())
    assert len(list((folder / "dataset").glob("*.whl"))) == 2 and len(dataset["licenses"]) == 1
    assert 6 <= len(dataset["title"]) <= 50 and 20 <= len(dataset["subtitle"]) <= 80
    variation = json.loads((folder / "weights/streetclip/model-instance-metadata.json").read_text())
    assert variation["licenseName"] == "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)"
    assert (folder / "weights/streetclip/model.safetensors").is_file() and "not for commercial use" in summary(folder)
    first, second = (json.loads(p.read_text()) for p in sorted(folder.glob("kernels/*/kernel-metadata.json")))
    for one in (first, second):
        assert one["id"] == f"someone/{paths.slug(one['title'])}" and one["machine_shape"] == "NvidiaTeslaT4"
        assert one["enable_internet"] is False and one["is_private"] is True and one["enable_gpu"] is True
        assert one["dataset_sources"] == ["someone/kitlib-wheels"] and one["competition_sources"] == [paths.COMPETITION]
        assert one["model_sources"] == ["someone/streetclip/transformers/default/1"]
    assert first["kernel_sources"] == [] and second["kernel_sources"] == [first["id"]]
    book = read_notebook(folder / "kernels/01-10-train-multiview/notebook.ipynb")
    values = {name: parameter.default for name, parameter in book.parameters.items()}
    assert values | {"RUN": "two-multiview", "DROPOUT": 0.25, "ONLY_FOLDS": "0"} == values
    assert values["ENCODER"] == "hf:geolocal/StreetCLIP" and "pip" in book.code.split("\n\n")[0] + book.code
    text = "".join(p.read_text() for p in folder.rglob("*.json")) + "".join(
        p.read_text() for p in folder.rglob("*.ipynb")
    )
    assert str(paths.home()) not in text and str(streetclip) not in text


def test_the_next_part_takes_the_output_of_the_one_before(plan, local_wheels, streetclip):
    weights = {"hf:geolocal/StreetCLIP": "someone/streetclip/transformers/default/3"}
    options = Options("someone", weights=weights, wheels=local_wheels, resume="10_train_multiview:3")
    folder = pack(plan, {}, options)
    first, second = (json.loads(p.read_text()) for p in sorted(folder.glob("kernels/*/kernel-metadata.json")))
    assert first["id"] == "someone/two-10-train-multiview-part-3"
    assert first["kernel_sources"] == ["someone/two-10-train-multiview", "someone/two-10-train-multiview-part-2"]
    assert second["kernel_sources"] == [first["id"]] and read(folder)["weights"] == []
    assert first["model_sources"] == ["someone/streetclip/transformers/default/3"]


def test_a_whole_plan_is_one_notebook(home, local_wheels, monkeypatch):
    monkeypatch.setenv("KITLIB_TRACKER", "csv,wandb")
    folder = pack("sample", {}, Options("someone", wheels=local_wheels, one=True))
    (metadata,) = folder.glob("kernels/*/kernel-metadata.json")
    cells = json.loads((metadata.parent / "notebook.ipynb").read_text())["cells"]
    assert '"KITLIB_TRACKER": "wandb"' in cells[0]["source"]
    magic, _, text = cells[2]["source"].partition("\n")
    assert magic == "%%writefile sample.yaml" and len(yaml.safe_load(text)["steps"]) == 9
    assert json.loads(metadata.read_text())["competition_sources"] == []  # it is drawn there


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {"owner": "no body"}, "--owner: expected your user name"),
        ({"DATA": "/photos/mine"}, {}, "DATA: expected sample, the competition .* --dataset OWNER/mine; got"),
        ({"HEADS_EPOCS": "3"}, {}, "did you mean HEADS_EPOCHS"),
        ({}, {"datasets": ["mine"]}, "--dataset: expected OWNER/SLUG"),
        ({"MORE": "{encoder: timm:x@/mine/x.pth}"}, {}, "MORE of 10_train_multiview: expected no file of this machine"),
        ({}, {"resume": "11"}, "--resume: expected one of 10_train_multiview"),
        ({"ENCODER": "hf:me/mine"}, {}, "hf:me/mine: its licence is not known here"),
        ({}, {"weights": {"hf:geolocal/StreetCLIP": "/none"}}, "expected a folder, a file, or a version"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(plan, local_wheels, given, options, message):
    with pytest.raises(KitError, match=message):
        pack(plan, given, Options(**{"owner": "someone", "wheels": local_wheels} | options))
    left = [path for path in (paths.home() / "data").rglob("*") if path.is_file()]
    assert left == []


def test_a_folder_that_is_no_pack_is_not_replaced(plan, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KitError, match="--out: expected a new folder"):
        pack(plan, {}, Options("someone"), tmp_path / "mine")


def test_wheels_that_are_lacking_are_named(plan, tmp_path, local_wheels):
    (tmp_path / "empty").mkdir()
    weights = {"hf:geolocal/StreetCLIP": "a/streetclip/transformers/default/1"}
    with pytest.raises(KitError, match="--wheels: expected wheels of simplejpeg as well"):
        pack(plan, {}, Options("someone", weights=weights, wheels=tmp_path / "empty"))


@pytest.mark.parametrize("value", ["plain", 'quoted " and \\ and #', "Übersee", ""])
def test_parameters_keep_their_comments(value):
    source = 'RUN: str = "é"  # the é name\nEPOCHS: int = 3  # passes'
    changed = notebooks.with_parameters(source, {"RUN": value, "EPOCHS": 12})
    assert [ast.literal_eval(node.value) for node in ast.parse(changed).body] == [value, 12]
    assert changed.count("# the é name") == 1 and changed.endswith("EPOCHS: int = 12  # passes")
