"""The real `kaggle` client against a stand-in for its servers: pull, push, output, submit, and what Kaggle refuses."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from kaggle_standin import Kaggle, standing_in
from typer.testing import CliRunner

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.platforms.kaggle import client
from kitlib.platforms.kaggle.command import app

pytest.importorskip("kaggle")


@pytest.fixture
def kaggle(home, monkeypatch):
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.01)
    with standing_in(home, monkeypatch) as server:
        yield server


@pytest.fixture
def pack(home) -> Path:
    """A pack as `pack` writes it, with small files in the place of wheels and weights."""
    folder = home / "pack"
    source = "someone/clip/transformers/default/1"
    model = {"ownerSlug": "someone", "slug": "clip", "title": "clip", "isPrivate": True, "description": "x"}
    variation = {"ownerSlug": "someone", "modelSlug": "clip", "instanceSlug": "default", "framework": "transformers"}
    dataset = {"id": "someone/kitlib-wheels", "title": "kitlib wheels", "licenses": [{"name": "apache-2.0"}]}
    storage.write_json(folder / "dataset/dataset-metadata.json", dataset)
    storage.write_json(folder / "weights/clip/model-metadata.json", model)
    storage.write_json(folder / "weights/clip/model-instance-metadata.json", variation | {"licenseName": "MIT"})
    (folder / "dataset/kitlib.whl").write_bytes(b"wheel")
    (folder / "weights/clip/model.safetensors").write_bytes(b"weights")
    kernels = []
    for step in ("10_train", "20_error_maps"):
        title, place = f"plan {step}".replace("_", " "), f"kernels/{step}"
        metadata = {"id": f"someone/{paths.slug(title)}", "title": title, "code_file": "notebook.ipynb"}
        metadata |= {"language": "python", "kernel_type": "notebook", "enable_internet": False}
        storage.write_json(folder / place / "kernel-metadata.json", metadata | {"machine_shape": "NvidiaTeslaT4"})
        storage.write_json(folder / place / "notebook.ipynb", {"cells": [], "metadata": {}})
        kernels.append({"step": step, "folder": place, "id": metadata["id"]})
    record = {"owner": "someone", "competition": paths.COMPETITION, "dataset": "someone/kitlib-wheels"}
    record |= {"weights": [{"source": source, "folder": "weights/clip", "licence": "mit"}], "kernels": kernels}
    storage.write_json(folder / "pack.json", record)
    return folder


def test_a_pack_is_pushed_in_order(kaggle: Kaggle, pack: Path, capfd):
    kaggle.answers["GetDatasetStatus"] = lambda: {"status": "ready"} if kaggle.sent("CreateDataset") else 404
    pushed = client.push(pack)
    assert pushed == [f"https://www.kaggle.com/code/someone/plan-{name}" for name in ("10-train", "20-error-maps")]
    methods = [name for name, _ in kaggle.seen]
    order = ("CreateDataset", "CreateModel", "CreateModelInstance", "SaveKernel", "GetKernelSessionStatus")
    assert sorted(order, key=methods.index) == list(order)
    assert kaggle.uploads == [b"wheel", b"weights"]
    assert kaggle.sent("CreateDataset")[0]["isPrivate"] is True and kaggle.sent("CreateModel")[0]["isPrivate"] is True
    for kernel in kaggle.sent("SaveKernel"):
        assert kernel["machineShape"] == "NvidiaTeslaT4" and kernel["enableInternet"] is False
    shown = capfd.readouterr().out
    assert "29.00h" in shown and "successfully pushed" in shown  # the quota first, then what the client says


def test_a_notebook_that_fails_there_stops_the_push(kaggle: Kaggle, pack: Path):
    kaggle.answers["GetKernelSessionStatus"] = {"status": "ERROR", "failureMessage": "out of memory"}
    with pytest.raises(KitError, match=r"out of memory.*kitlib kaggle logs someone/plan-10-train"):
        client.push(pack, "10_train")
    assert len(kaggle.sent("SaveKernel")) == 1


def test_what_the_client_reports_with_exit_code_0_is_an_error(kaggle: Kaggle, pack: Path):
    kaggle.answers["SaveKernel"] = {"error": "Maximum batch GPU session count of 2 reached."}
    with pytest.raises(KitError, match="kernels push: Kernel push error: Maximum batch GPU session count"):
        client.kaggle("kernels", "push", "-p", str(pack / "kernels/10_train"))


@pytest.mark.parametrize(
    ("status", "message"), [(401, "knows no account here"), (403, "accept the rules at"), (404, "nothing of that name")]
)
def test_refusals_are_one_sentence(kaggle: Kaggle, status, message):
    kaggle.answers["DownloadDataFiles"] = status
    with pytest.raises(KitError, match=message) as refused:
        client.pull()
    assert "\n" not in str(refused.value) and not list(paths.raw_dir().glob("*"))


def test_without_an_account_nothing_is_sent(home, monkeypatch, pack: Path, capfd):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(KitError, match="Kaggle knows no account here: run `kaggle auth login`"):
        client.push(pack)
    assert "You can sign up" not in capfd.readouterr().out


def test_the_data_is_pulled_and_checked(kaggle: Kaggle, small_sample: Path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for file in sorted((small_sample / "kaggle_dataset").rglob("*.*")):
            archive.write(file, file.relative_to(small_sample))
        archive.writestr("kaggle_dataset/more.bin", bytes(4 * 2**20))  # the client goes on by whole MiB
    kaggle.answers["DownloadDataFiles"] = whole.getvalue()
    kaggle.cuts = 1
    said = client.pull("some-competition")
    assert kaggle.ranges == ["", "bytes=2097152-"]  # it went on
    assert "60 train and 20 test places; every picture read: none is damaged" in said
    assert paths.find_data("some-competition") == paths.raw_dir() / "some-competition.zip"


def test_an_output_brings_its_runs(kaggle: Kaggle, home):
    files = [
        {"url": f"{kaggle.address}/v1/File", "fileName": name} for name in ("data/runs/there/params.json", "x.html")
    ]
    kaggle.answers |= {"ListKernelSessionOutput": {"files": files, "log": "done"}, "File": b"{}"}
    assert client.output("someone/plan-10-train").endswith("plan-10-train: data/runs/there")
    assert (paths.run_dir("there") / "params.json").read_text() == "{}"


def test_a_submission_is_asked_for_and_noted(kaggle: Kaggle, home):
    (home / "submissions").mkdir()
    (home / "submissions/best.csv").write_text("sample_id\n1\n")
    storage.write_json(home / "submissions/best.json", {"public_score": None})
    asked: list[str] = []
    with pytest.raises(KitError, match="nothing was handed in"):
        client.submit("best", "", lambda question: bool(asked.append(question)))
    assert "Hand best.csv in to geo-guessr" in asked[0] and kaggle.seen == []
    client.submit("best", "a try", lambda _: True)
    assert kaggle.sent("CreateSubmission")[0]["submissionDescription"] == "a try"
    assert kaggle.uploads == [b"sample_id\n1\n"]
    (entry,) = json.loads((home / "submissions/best.json").read_text())["submitted"]
    assert entry["message"] == "a try" and entry["competition"] == paths.COMPETITION
    (home / "submissions/best.csv").write_text("sample_id\n2\n")
    storage.write_json(home / "submissions/best.json", {"checksum": "0"})
    with pytest.raises(KitError, match=r"expected the rows that best.json describes"):
        client.submit("best", "", lambda _: True)


def test_without_a_terminal_a_submission_needs_yes(home):
    (home / "submissions").mkdir()
    (home / "submissions/best.csv").write_text("sample_id\n1\n")
    refused = CliRunner().invoke(app, ["submit", "best"])
    assert isinstance(refused.exception, KitError) and "add --yes" in str(refused.exception)
