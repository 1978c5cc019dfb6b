"""Paths: where data is looked for, atomic writes, digests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kitlib.core import paths, storage
from kitlib.core.errors import KitError


def test_home_is_the_checkout_unless_named(home, monkeypatch):
    assert paths.home() == home.resolve()
    monkeypatch.delenv("KITLIB_HOME")
    assert (paths.home() / "kitlib/core/paths.py").is_file()


def test_data_is_found_by_path_and_by_name(home):
    inner = home / "data/raw/us/kaggle_dataset"
    inner.mkdir(parents=True)
    assert paths.find_data("us") == paths.find_data(inner.parent) == paths.find_data(inner) == inner.resolve()
    (home / "data/raw/packed.zip").touch()
    assert paths.find_data("packed").name == "packed.zip"
    with pytest.raises(KitError, match="'eu' not found; looked for"):
        paths.find_data("eu")


def test_kaggle_mounts_are_tried(home, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path / "input")
    for mount in ("competitions/a", "b", "datasets/someone/c"):
        (tmp_path / "input" / mount / "kaggle_dataset").mkdir(parents=True)
        found = paths.find_data(mount.split("/")[-1])
        assert found.parts[-1] == "kaggle_dataset" and mount in found.as_posix()


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/d/us/kaggle_dataset", "us"), ("/x/data/raw/kaggle_dataset", "kaggle"), ("/d/My data.zip", "my-data")],
)
def test_data_sets_get_short_names(folder, name):
    assert paths.data_name(Path(folder)) == name


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with storage.atomic_write(target) as beside:
        beside.write_text("old")
    with pytest.raises(RuntimeError), storage.atomic_write(target) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_digests_tell_content_dtype_shape_and_boundaries_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"ab")
    zeros = np.zeros(4, np.float32)
    different = [
        storage.digest("ab"),
        storage.digest("a", "b"),
        storage.digest(tmp_path / "a"),
        storage.digest(zeros),
        storage.digest(zeros.reshape(2, 2)),
        storage.digest(zeros.astype(np.int32)),
    ]
    assert len(set(different)) == len(different)
    assert storage.digest("ab") == storage.digest(b"ab") and len(different[0]) == 16


@pytest.mark.parametrize(("name", "value"), [("KITLIB_DEVICE", "tpu"), ("KITLIB_WORKERS", "0")])
def test_impossible_settings_of_the_machine_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(KitError, match=name):
        paths.device_name() if name == "KITLIB_DEVICE" else paths.workers()


@pytest.mark.parametrize(
    ("text", "names"),
    [("", []), ("csv", []), ("wandb", ["wandb"]), ("tensorboard, csv,wandb", ["wandb", "tensorboard"])],
)
def test_trackers_are_named_with_commas_between(monkeypatch, text, names):
    monkeypatch.setenv("KITLIB_TRACKER", text)
    assert paths.trackers() == names
    monkeypatch.setenv("KITLIB_TRACKER", f"{text},mlflow")
    with pytest.raises(KitError, match=r"^KITLIB_TRACKER: expected some of csv, wandb, tensorboard; got '"):
        paths.check_environment()


def test_threads_are_inherited_by_what_is_started(monkeypatch):
    monkeypatch.setenv("KITLIB_WORKERS", "3")
    paths.use_workers(0)
    assert paths.workers() == 3
    paths.use_workers(5)
    assert paths.workers() == 5
    with pytest.raises(KitError, match="expected 0"):
        paths.use_workers(-1)


def test_a_setting_is_written_without_folders_and_found_again(home, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("confidential folder")
    for name in ("m.safetensors", "clip"):
        (outside / name).touch()
    (home / "w").mkdir()
    (home / "w/m.safetensors").touch()
    (outside / "link.safetensors").symlink_to(outside / "m.safetensors")
    for given, short in [
        (f"timm:x?a=b@{outside}/m.safetensors", "timm:x?a=b@m.safetensors"),
        (f"timm:x@{outside}/link.safetensors", "timm:x@link.safetensors"),
        (f"hf:{outside}/clip", "hf:clip"),
        (f"timm:x@{home}/w/m.safetensors", "timm:x@w/m.safetensors"),
    ]:
        assert paths.portable("encoder", given) == short
        assert paths.located("encoder", short) == given and paths.portable("encoder", short) == short
    assert paths.located("model", "hf:clip") == "hf:clip"  # given for another setting
    for text in (
        "tiny",
        "hf:geolocal/StreetCLIP",
        "a@b.c/d",
        "/nowhere/m.pth",
        "x" * 5000,
        "a\0/b",
        "2,4,8",
        "~nobody/x",
    ):
        assert paths.portable("encoder", text) == text
    (outside / "a.pth").touch()
    monkeypatch.chdir(outside)
    assert paths.portable("encoder", "timm:x@../" + outside.name + "/a.pth") == "timm:x@a.pth"
    plain = tmp_path_factory.mktemp("plain") / "a.pth"
    plain.touch()
    assert paths.portable("more", f"{{geoclip: {plain}, k: 1/2}}") == "{geoclip: a.pth, k: 1/2}"


def test_encoders_whose_files_have_the_same_name_stay_apart(home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    for folder in ("a", "b"):
        (outside / folder).mkdir()
        (outside / folder / "model.safetensors").touch()
    given = f"timm:x@{outside}/a/model.safetensors#stages+timm:y?k=1@{outside}/b/model.safetensors"
    short = "timm:x@a/model.safetensors#stages+timm:y?k=1@b/model.safetensors"
    assert paths.portable("encoder", given) == short
    assert paths.located("encoder", short) == given and paths.portable("encoder", short) == short


def test_a_home_that_is_a_file_is_refused_and_one_that_is_not_there_yet_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("KITLIB_HOME", str(tmp_path / "new"))
    paths.check_environment()
    (tmp_path / "new").write_text("")
    with pytest.raises(KitError, match="KITLIB_HOME: expected a folder; got the file 'new'"):
        paths.check_environment()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b", "nowhere", "/dev/null", ""])
def test_data_that_cannot_be_found_is_refused_in_a_short_sentence(home, name):
    with pytest.raises(KitError, match=r"^data set") as refused:
        paths.find_data(name)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["nowhere.csv", "x" * 300, "a\0b", "folder"])
def test_a_file_that_a_parameter_names_has_to_exist(home, name):
    (home / "folder").mkdir()
    (home / "truth.csv").write_text("")
    assert paths.given_file("TRUTH", "truth.csv") == home / "truth.csv" and paths.given_file("TRUTH", "") is None
    with pytest.raises(KitError, match=r"^TRUTH: "):
        paths.given_file("TRUTH", name)
