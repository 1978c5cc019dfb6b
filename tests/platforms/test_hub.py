"""Runs to and from a stand-in for the Hugging Face hub on this machine, by the real huggingface_hub."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hub_helper import Hub
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from kitlib import __main__ as cli
from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.evaluation import fold_files, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models import locate
from kitlib.platforms import hub, hub_card


def guesses(n: int = 4) -> Guesses:
    probs, points = np.full((n, 2), 0.5), np.zeros((n, 1, 2))
    return Guesses(np.arange(n), np.array([3, 7]), probs, points, np.ones((n, 1)), np.ones(n, bool))


def make(name: str = "first", seed: int = 0, **settings: object) -> runs.Run:
    """A finished run with a fold, weights, a training state and a scaler for scikit-learn."""
    settings = {"family": "multiview", "encoder": "hf:geolocal/StreetCLIP", "seed": seed, "n_folds": 5,
                "data": "data/raw/us", **settings}  # fmt: skip
    run = runs.start(name, settings, data={"places": "abc"})
    where = fold_files.folder(run, 0)
    where.mkdir(parents=True)
    save_file({"w": np.arange(10.0) + seed}, where / "heads.safetensors")
    (where / "scaler_region_a.joblib").write_bytes(pickle.dumps([1]))
    (where / "heads").mkdir()
    (where / "heads/finished.ckpt").write_bytes(b"x")
    (where / "heads/history.csv").write_text("epoch\n0\n")
    fold_files.save_fold(run, 0, guesses(), None)
    run.save_guesses("oof", guesses())
    (run.figures / "map.png").write_bytes(b"\x89PNG")
    run.finish({"oof": {"final": 0.81, "top1": 0.7, "mean_km": 300.0}, "half_width": 0.02, "folds": {"0": {}}})
    return run


def stranger_adds(server: Hub, name: str, content: bytes) -> None:
    server.files[name], server.commit_id = content, "b" * 40


def test_a_run_goes_up_private_plain_and_with_a_card_and_comes_back(server):
    run = make()

    assert hub.push(["first"], "u/m") == f"{server.url}/u/m"
    assert server.created["visibility"] == "private"
    names = {name.removeprefix("first/") for name in server.files}
    assert {"README.md", "params.json", "metrics.json", "figures/map.png", "checkpoints/fold_0/heads.safetensors",
            "checkpoints/fold_0/heads/history.csv", "checksums.json"} <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".joblib", ".ckpt"))]

    [name] = hub.pull("u/m")
    pulled = runs.open_run(name)
    assert name == "u--m--first" and pulled.metrics == run.metrics and pulled.settings == run.settings
    np.testing.assert_array_equal(load_file(fold_files.folder(pulled, 0) / "heads.safetensors")["w"], np.arange(10.0))
    fold_files.check_fold(pulled, 0)
    assert pulled.guesses("oof").sample_id.tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in paths.runs_dir().iterdir()) == ["first", "u--m--first"]


def test_the_card_says_licence_score_chance_and_use(server):
    make()
    hub.push(["first"], "u/m")
    text = server.files["README.md"].decode()
    head = yaml.safe_load(text.split("---\n")[1])

    assert head["license"] == "cc-by-nc-4.0" and head["base_model"] == ["geolocal/StreetCLIP"]
    assert head["datasets"] == ["us"]
    results = head["model-index"][0]["results"][0]["metrics"]
    assert (results[0]["type"], results[0]["value"]) == ("final", 0.81)
    assert "0.8100 ± 0.0200" in text and "not for commercial use" in text and "kitlib locate hf:u/m PHOTOS" in text
    assert "Chance: not computed" in text


def test_a_licence_of_its_own_terms_is_other_in_the_card(home):
    run = make(encoder="hf:Qwen/Qwen2.5-VL-3B-Instruct")
    head = yaml.safe_load(hub_card.card("u/m", {"a": hub_card.describe(run.params, run.metrics)}, {}).split("---\n")[1])
    assert (head["license"], head["license_name"]) == ("other", "qwen-research")


def test_seeds_share_a_repository_and_answer_as_one(server):
    make("seed0"), make("seed1", 1)
    hub.push(["seed0"], "u/m")
    hub.push(["seed1"], "u/m")

    assert "| seed0 |" in (text := server.files["README.md"].decode()) and "| seed1 |" in text
    assert hub.local("hf:u/m") == "u--m"
    blend = locate._blend("u--m")
    assert blend.states == blend.points == {"u--m--seed0": 0.5, "u--m--seed1": 0.5} and blend.used == [*blend.states]
    assert hub.local("hf:u/m/seed1") == "u--m--seed1" and hub.local("other") == "other"
    with pytest.raises(KitError, match="expected one of its runs, seed0, seed1; got 'seed2'"):
        hub.local("hf:u/m/seed2")


def test_a_router_goes_with_the_run_that_it_routes(server):
    make("router"), make("routed", router="router")
    hub.push(["routed"], "u/m")

    assert hub.local("hf:u/m") == "u--m--routed"
    assert runs.open_run("u--m--routed").settings["router"] == "u--m--router"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {os.environ['KITLIB_HOME']}/executed",))


@pytest.mark.parametrize("name", ["checkpoints/fold_0/scaler_region_a.joblib", "model.pkl", "checkpoints/fold_0/a.bin",
                                  "checkpoints/fold_0/region_a/finished.ckpt"])  # fmt: skip
def test_a_stranger_s_pickle_stays_on_the_hub_and_that_is_said(server, home, caplog, name):
    make()
    hub.push(["first"], "u/m")
    stranger_adds(server, f"first/{name}", pickle.dumps(Evil()))
    shutil.rmtree(paths.run_dir("first"))

    with caplog.at_level("WARNING"):
        [pulled] = hub.pull("u/m")
    assert "only plain files of runs are taken" in caplog.text
    assert not (paths.run_dir(pulled) / name).exists() and not (home / "executed").exists()


def test_a_stranger_s_pickle_inside_a_plain_file_is_refused_and_never_executed(server, home):
    make()
    hub.push(["first"], "u/m")
    beside = home / "evil.npz"
    np.savez(beside, sample_id=np.array([Evil()], dtype=object))
    stranger_adds(server, "first/oof.npz", beside.read_bytes())
    with pytest.raises(KitError, match=r"oof.npz in first: expected the file as it was written; got another content"):
        hub.pull("u/m")
    seal = json.loads(server.files["first/checksums.json"])
    seal["oof.npz"] = storage.digest(beside)  # who owns the repository can seal it anew
    stranger_adds(server, "first/checksums.json", json.dumps(seal).encode())

    [name] = hub.pull("u/m")
    with pytest.raises(KitError, match=r"expected a whole \.npz file"):
        runs.open_run(name).guesses("oof")
    assert not (home / "executed").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("first/further.json", "got also further.json"), ("first/metrics.json", "")]
)
def test_a_changed_or_half_pushed_run_is_not_taken(server, name, said):
    make()
    hub.push(["first"], "u/m")
    if said:
        stranger_adds(server, name, b"{}")
    else:
        del server.files[name]
    with pytest.raises(KitError, match=said or "metrics.json in first: .* got no such file"):
        hub.pull("u/m")
    assert runs.list_runs() == ["first"] and not list(paths.runs_dir().glob(".pulling*"))


@pytest.mark.parametrize("secret", ["home", "host", "token"])
def test_nothing_of_this_machine_goes_up(server, home, secret):
    text = {"home": f"{home}/x", "host": f"made on {socket.gethostname()}", "token": "hf_" + "a" * 30}[secret]
    if secret == "host" and len(socket.gethostname()) < 6:
        text = str(home)
    run = make()
    (run.dir / "notes.json").write_text(json.dumps({"x": text}))

    with pytest.raises(KitError, match=r"first: notes.json holds .*: nothing was pushed"):
        hub.push(["first"], "u/m")
    assert not server.log and not list(paths.runs_dir().glob(".pushing*"))


def test_without_a_network_the_runs_that_were_pulled_before_are_taken(server, caplog):
    make()
    hub.push(["first"], "u/m")
    hub.pull("u/m")
    server.status = 403
    assert hub.local("hf:u/m") == "u--m--first"
    assert "the runs that were pulled before are taken" in caplog.text


def test_a_pull_of_the_same_commit_downloads_nothing_again(server):
    make()
    hub.push(["first"], "u/m")
    hub.pull("u/m")
    server.log.clear()
    hub.pull("u/m")
    assert not [line for line in server.log if "/resolve/" in line]


def test_a_killed_push_goes_on_where_it_was(server, home):
    run = make()
    save_file({"w": np.ones(1000)}, fold_files.folder(run, 0) / "encoder.safetensors")
    server.held_after = 2
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")}
    command = [sys.executable, "-m", "kitlib", "hub", "push", "first", "--repo", "u/m"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        held = server.held.wait(120)
        process.kill()
    assert held and not server.files  # nothing half-pushed
    server.held_after, before = None, set(server.blobs)
    assert before
    server.log.clear()

    hub.push(["first"], "u/m")
    again = {line.rpartition("/")[2] for line in server.log if line.startswith("PUT /lfs/")}
    assert not again & before and "first/params.json" in server.files
    hub.pull("u/m")


def test_a_pull_that_broke_off_is_resumed_and_nothing_half_taken_stands_among_the_runs(server):
    make()
    hub.push(["first"], "u/m")
    server.log.clear()
    server.refused = "heads.safetensors"
    with pytest.raises(KitError, match="u/m could not be pulled from"):
        hub.pull("u/m")
    assert runs.list_runs() == ["first"]
    server.refused = ""
    [name] = hub.pull("u/m")
    got = [line.rpartition("/first/")[2] for line in server.log if line.startswith("GET") and "/resolve/" in line]
    assert sorted(set(got) - {"checkpoints/fold_0/heads.safetensors"}) == sorted(
        file for file in got if not file.endswith("heads.safetensors")
    )  # each once
    assert runs.open_run(name).finished


@pytest.fixture
def kitlib(monkeypatch, capsys):
    def call(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["kitlib", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


def test_refusals_are_one_sentence_and_exit_code_2(server, kitlib, monkeypatch):
    make()
    runs.start("half", {"family": "multiview"}, data={"places": "abc"})
    for words, sentence in (
        (("hub", "push", "nobody", "--repo", "u/m"), "there is no run 'nobody'"),
        (("hub", "push", "half", "--repo", "u/m"), "run half is not finished"),
        (("hub", "push", "first", "--repo", "https://huggingface.co/u/m"), "repository: expected USER/NAME"),
        (("hub", "pull", "u"), "repository: expected USER/NAME"),
        (("hub", "pull", "u/m"), "u/m: expected runs that `kitlib hub push` has written; got nothing"),
        (("locate", "hf:u/m", "x"), "u/m: expected runs that `kitlib hub push` has written; got nothing"),
    ):
        code, out, err = kitlib(*words)
        assert (code, out) == (2, "") and err.startswith(f"error: {sentence}") and err.count("\n") == 1, err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "u/m could not be pulled from: there is none, or it is private" in kitlib("hub", "pull", "u/m")[2]
    monkeypatch.delenv("HF_TOKEN")
    before = list(server.log)
    code, _, err = kitlib("hub", "push", "first", "--repo", "u/m")
    assert code == 2 and "expected a token that may write" in err and server.log == before
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    server.status = 403
    assert "could not be pushed to: the token may not do this" in kitlib("hub", "push", "first", "--repo", "u/m")[2]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = kitlib("hub", "pull", "u/m")
    assert code == 2 and "could not be pulled from: the hub cannot be reached" in err.splitlines()[-1]
