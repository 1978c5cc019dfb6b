"""The multiview family: a run of both phases, folds one by one, going on, odd data, several processes."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import folds, readers
from kitlib.evaluation import fold_files, guesses, metrics, origin, runs
from kitlib.models.multiview import run as multiview
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.multiview.run import Config

SMALL = Config(
    encoder="tiny",
    hidden=16,
    places_per_cell=5,
    heads_epochs=3,
    heads_batch=16,
    finetune_epochs=1,
    finetune_batch=12,
    device_batch=8,
    finetune_blocks=-1,
)
HEADS = dataclasses.replace(SMALL, finetune_epochs=0)


# Config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": 4}, "lora_rank 4: expected an hf: encoder"),
        ({"pseudo": 0.5}, "pseudo: expected 0 without refit"),
        ({"drop_path": 0.1}, "drop_path: expected an encoder of transformer blocks"),
    ],
)
def test_what_cannot_be_trained_leaves_no_run(world, change, message):
    with pytest.raises(KitError, match=message):
        multiview.train(dataclasses.replace(SMALL, **change), world, "refused", n_folds=3)
    assert "refused" not in runs.list_runs()


def test_config_goes_to_a_dict_and_back():
    assert Config.from_dict(dataclasses.asdict(SMALL)) == SMALL


def test_config_refuses_unknown_names_and_lists_the_allowed_ones():
    with pytest.raises(KitError, match=r"unknown setting learning_rate; expected: encoder, image_size"):
        Config.from_dict({"learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fusion", "sum", "average, concat, attention, learned"),
        ("soft_labels", "soft", "place, matrix, none"),
        ("tie", "county", "none, state, cell"),
        ("temperature_km", 0.0, "more than 0"),
        ("dropout", 1.5, "from 0 to 1"),
        ("hidden", 16.5, "int"),
        ("hidden", True, "int"),
        ("mirror", 1, "bool"),
        ("finetune_blocks", -2, "negative"),
        ("heads_rate", float("nan"), "negative"),
        ("device_batch", 0, "more than 0"),
        ("seed", -1, "negative"),
    ],
)
def test_config_refuses_values_that_make_no_sense(name, value, message):
    with pytest.raises(KitError, match=f"{name}: expected .*{message}"):
        dataclasses.replace(SMALL, **{name: value})


def test_the_preset_for_drawn_places():
    drawn = Config.from_dict({}, "sample")
    assert (drawn.encoder, drawn.places_per_cell, drawn.finetune_rate, drawn.vary) == ("tiny", 8, 1e-3, 0.0)
    pretrained = Config.from_dict({"encoder": "timm:x"}, "sample")  # its weights would be lost at the rate of tiny
    assert (pretrained.places_per_cell, pretrained.finetune_rate, pretrained.finetune_blocks) == (8, 2e-5, 6)


# train, predict


@pytest.fixture(scope="module")
def trained(world):
    """A whole run: three folds, both phases."""
    return multiview.train(SMALL, world, "whole", n_folds=3)


def test_a_run_has_guesses_for_every_place_and_a_score(world, trained):
    oof, test = trained.guesses("oof"), trained.guesses("test")
    assert sorted(oof.sample_id) == sorted(world.sample_id("train"))
    assert sorted(test.sample_id) == sorted(world.sample_id("test"))
    assert oof.state_idx.tolist() == test.state_idx.tolist() == world.states["state_idx"].tolist()
    assert trained.metrics["oof"] == metrics.score_guesses(oof, world).as_dict()
    assert set(trained.metrics["folds"]) == {"0", "1", "2"}
    assert trained.params["settings"]["temperature_km"] == 75.0


def test_held_out_places_taught_nothing(world, trained):
    """The classes of a fold are those of the other folds' places alone."""
    held_out = folds.load_or_make(world, n_folds=3)["stratified"].to_numpy() == 1
    heads = Heads.load(fold_files.folder(trained, 1) / "heads.safetensors")
    assert heads.classes.state_count.sum() == (~held_out).sum()
    others = world.points("train")[~held_out]
    assert geo.nearest(heads.classes.cell_points, others)[0].max() < 2000
    alone = Classes.from_places(world, np.flatnonzero(~held_out), SMALL.places_per_cell)
    assert np.allclose(heads.classes.state_points, alone.state_points)


def test_predict_rebuilds_the_models_from_the_run_alone(world, trained):
    again, test = multiview.predict("whole", world), trained.guesses("test")
    assert np.allclose(again.state_probs, test.state_probs, atol=1e-6)
    assert geo.distance_km(again.point(), test.point()).max() < 0.1


def test_fine_tuning_changed_the_encoder_and_history_tells(trained):
    from safetensors.torch import load_file

    from kitlib.vision import encoders

    weights = load_file(fold_files.folder(trained, 0) / "encoder.safetensors")
    before = encoders.load("tiny").state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights.items())
    history = fold_files.history(trained)
    assert set(history["phase"]) == {"heads", "finetune"} and set(history["fold"]) == {0, 1, 2}
    assert history.loc[history["phase"] == "finetune", "held_out_gps_km"].gt(0).all()
    assert history["true_state_mass"].between(0.3, 1).all()


def test_an_encoder_that_cannot_be_had_is_refused_before_a_run_begins(world):
    with pytest.raises(KitError, match="encoder 'resnet': expected tiny"):
        multiview.train(dataclasses.replace(HEADS, encoder="resnet"), world, "never", n_folds=3)
    assert "never" not in runs.list_runs()


def test_a_finished_run_is_only_opened_and_another_config_refused(world, trained):
    stamp = (trained.dir / "oof.npz").stat().st_mtime_ns, (fold_files.folder(trained, 0) / "oof.npz").stat().st_mtime_ns
    multiview.train(SMALL, world, "whole", n_folds=3)
    assert (fold_files.folder(trained, 0) / "oof.npz").stat().st_mtime_ns == stamp[1]
    with pytest.raises(KitError, match=r"hidden was 16, now 8"):
        multiview.train(dataclasses.replace(SMALL, hidden=8), world, "whole", n_folds=3)


def test_a_run_goes_on_in_the_number_type_that_it_was_started_in(world, monkeypatch):
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    for run, has_bf16, name in (("in-float32", False, "float32"), ("in-bfloat16", True, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_bf16: answer)
        whole = multiview.train(HEADS, world, f"{run}-whole", n_folds=3, only_folds=[0])
        assert whole.settings["precision"] == name
        multiview.train(HEADS, world, run, n_folds=3, only_folds=[0], max_hours=0)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_bf16: not answer)
        on_another_cpu = multiview.train(HEADS, world, run, n_folds=3, only_folds=[0])
        assert on_another_cpu.settings["precision"] == name
        for split in ("oof", "test"):
            assert np.array_equal(whole.guesses(split).state_probs, on_another_cpu.guesses(split).state_probs)
        monkeypatch.setenv("KITLIB_PRECISION", "bfloat16" if name == "float32" else "float32")
        with pytest.raises(KitError, match=f"precision was '{name}', now"):
            multiview.train(HEADS, world, run, n_folds=3, only_folds=[0])
        monkeypatch.delenv("KITLIB_PRECISION")


def test_folds_one_by_one_are_joined(world):
    run = multiview.train(HEADS, world, "folds", n_folds=3, only_folds=[1])
    first = run.guesses("oof")
    assert 0 < len(first) < 30
    run = multiview.train(HEADS, world, "folds", n_folds=3, only_folds=[0])
    both = run.guesses("oof")
    assert len(both) > len(first)
    assert np.array_equal(both.at(first.sample_id).state_probs, first.state_probs)
    with pytest.raises(KitError, match="folds: expected numbers from 0 to 2; got 3"):
        multiview.train(HEADS, world, "folds", n_folds=3, only_folds=[3])


def test_no_time_left_means_unfinished_and_going_on_gives_the_same(world):
    run = multiview.train(HEADS, world, "cut", n_folds=3, only_folds=[1], max_hours=1e-9)
    assert not run.finished
    with pytest.raises(KitError, match="not finished"):
        _ = run.metrics
    run = multiview.train(HEADS, world, "cut", n_folds=3, only_folds=[1])
    whole = runs.open_run("folds").guesses("oof").at(run.guesses("oof").sample_id)
    assert np.allclose(run.guesses("oof").state_probs, whole.state_probs, atol=1e-6)


def test_places_without_a_picture_get_the_fallback_and_are_counted(world, tmp_path):
    import shutil

    folder = tmp_path / "blind"
    shutil.copytree(world.folder, folder)
    lost = {split: world.sample_id(split)[0] for split in ("train", "test")}
    for split in lost:
        for path in world.rows(split).iloc[0][world.image_columns]:
            (folder / path).unlink()
    blind = readers.read(folder)
    run = multiview.train(HEADS, blind, "blind", n_folds=3)
    for split, name in (("train", "oof"), ("test", "test")):
        guess = run.guesses(name)
        assert guess.sample_id[~guess.answered].tolist() == [lost[split]]
        assert len(guess) == len(blind.rows(split))
    assert run.metrics["unanswered"] == 1


def test_a_refit_learns_from_all_places_and_goes_on(world):
    config = dataclasses.replace(HEADS, refit=True)
    assert multiview.train(config, world, "refit", n_folds=3, only_folds=[0, 1, 2]).finished
    assert not multiview.Session.train_fold("refit", 3, max_hours=1e-9)
    run = multiview.train(config, world, "refit", n_folds=3)
    session = multiview.Session(run, world)
    heads = session.load_heads(session.folder(3) / "heads.safetensors")
    assert heads.classes.state_count.sum() == 60 and len(run.guesses("oof")) == 60
    np.testing.assert_allclose(
        multiview.predict("refit", world).state_probs, run.guesses("test").state_probs, atol=1e-6
    )


@pytest.mark.parametrize("config", [HEADS, pytest.param(SMALL, marks=pytest.mark.slow)], ids=["heads", "fine-tuned"])
def test_the_refit_learns_test_places_that_the_folds_are_sure_of(world, monkeypatch, config):
    config = dataclasses.replace(config, refit=True, pseudo=0.001)
    rows, fit = [], multiview.fit.fit

    def seen(module, batches, folder, **options):
        rows.append(batches.rows)
        return fit(module, batches, folder, **options)

    monkeypatch.setattr(multiview.fit, "fit", seen)
    run = multiview.train(config, world, f"pseudo-{config.finetune_epochs}", n_folds=3)
    session = multiview.Session(run, world)
    parts = [guesses.Guesses.load(session.folder(fold) / "test.npz") for fold in range(3)]
    sure = guesses.average(parts).state_probs.max(1) >= 0.001
    assert sure.all() and rows[-1].tolist() == [*range(60), *60 + np.flatnonzero(sure)]
    assert all(len(each) < 60 for each in rows[: 3 * len(rows) // 4])


def test_what_the_folds_have_guessed_are_targets_of_test_places(world):
    classes = Classes.from_places(world, np.arange(60), 5)
    points = classes.state_points[[2, 0]]
    probs = np.zeros((2, len(world.states)), np.float32)
    probs[:, world.state_position("train")[:2]] = [[0.25, 0.25], [0.1, 0.4]]
    guess = guesses.Guesses(
        np.arange(2), world.states["state_idx"], probs * 2, points[:, None], np.ones((2, 1)), np.ones(2)
    )
    labels = multiview._with_guesses(multiview._labels(world, classes), classes, np.array([0, 3]), guess)
    assert labels["guessed"][:60].isnan().all() and torch.allclose(labels["guessed"][[60, 63]].sum(1), torch.ones(2))
    assert torch.allclose(labels["place"][[60, 63]], multiview.unit_vectors(points))
    assert labels["state"][63] == np.flatnonzero(classes.state_idx == world.rows("train")["state_idx"].iloc[1])[0]
    assert (classes.cell_state[labels["cell"][[60, 63]]] == labels["state"][[60, 63]].numpy()).all()


def test_a_source_with_one_view_and_no_test_places(world, tmp_path):
    import shutil

    folder = tmp_path / "one"
    (folder / "images").mkdir(parents=True)
    table = world.rows("train").rename(columns={"image_north": "image"})
    for path in table["image"]:
        shutil.copy(world.folder / path, folder / "images")
    table["image"] = table["image"].str.rpartition("/")[2]
    table[["sample_id", "image", "latitude", "longitude", "state"]].to_csv(folder / "metadata.csv", index=False)
    one = readers.read(folder)
    assert one.views == ("only",)
    run = multiview.train(HEADS, one, "one", n_folds=3, only_folds=[0])
    assert run.guesses("oof").answered.all()
    with pytest.raises(KitError, match=r"no test\.npz"):
        run.guesses("test")


@pytest.mark.slow
def test_lora_on_a_clip_tower_trains_and_predicts(world, clip):
    config = dataclasses.replace(SMALL, encoder=clip, lora_rank=2, gradient_checkpointing=True)
    run = multiview.train(config, world, "lora", n_folds=3, only_folds=[0])
    assert np.allclose(multiview.predict("lora", world).state_probs, run.guesses("test").state_probs, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_a_fold(world):
    """Through the command line, as `train` starts them."""
    torch.set_num_threads(1)  # as the processes: the tiny encoder's weights are computed
    run = multiview.train(SMALL, world, "ddp", n_folds=3, only_folds=[0], devices=2)
    assert run.finished and len(run.guesses("test")) == len(world.rows("test"))


@pytest.mark.slow
def test_train_fold_by_the_run_alone(world):
    multiview.train(HEADS, world, "alone", n_folds=3, only_folds=[1], max_hours=1e-9)
    command = [sys.executable, "-m", "kitlib", "train-fold", "alone", "2", "--data", str(world.folder)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert fold_files.done_folds(runs.open_run("alone")) == [2]


def test_params_tell_everything_and_no_machine(trained):
    text = (trained.dir / "params.json").read_text()
    assert json.loads(text)["settings"]["finetune_blocks"] == -1
    assert str(paths.home()) not in text


def test_no_file_of_a_run_names_a_folder_of_this_machine(home, small_sample, tmp_path_factory):
    import timm
    from safetensors.torch import save_file

    outside = tmp_path_factory.mktemp("confidential")
    shutil.copytree(small_sample, outside / "us")
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), outside / "m.safetensors")
    encoder = f"timm:test_vit@{outside}/m.safetensors"
    config = dataclasses.replace(HEADS, encoder=encoder, image_size=32, heads_epochs=1, mirror=False)
    run = multiview.train(config, readers.read(outside / "us"), "run", n_folds=3, only_folds=[0])
    assert run.settings["encoder"] == "timm:test_vit@m.safetensors" and run.settings["data"] == "us"
    secrets = ["confidential", str(home), str(Path.home()), f"{getpass.getuser()}@", f"@{socket.gethostname()}"]
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        inner = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        parts = [path.read_bytes(), *(inner.read(name) for name in (inner.namelist() if inner else []))]
        assert not [secret for secret in secrets for part in parts if secret.encode() in part], path
    assert len(multiview.predict("run", origin.reload_places(run)).sample_id) == 20


def test_settings_of_an_encoder_that_learns_are_without_effect_on_a_frozen_one_and_the_log_says_so(caplog):
    multiview.Session.check_model(multiview.Config(encoder="tiny", finetune_epochs=0, erase=0.25, drop_path=0.1))
    assert "drop_path, erase: no effect, as the encoder stays frozen" in caplog.text
