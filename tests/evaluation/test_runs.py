"""Runs: what is recorded, when they resume, when they are refused."""

from __future__ import annotations

import json

import pytest

from kitlib.core import headline, storage
from kitlib.core.errors import KitError
from kitlib.evaluation import runs

DATA = {"checksum": "abc"}


def test_params_come_first_and_metrics_last(home):
    run = runs.start("one", {"epochs": 3}, data=DATA)
    assert run.settings == {"epochs": 3} and not run.finished
    assert {"kitlib", "git", "libraries", "data", "started"} <= run.params.keys()
    with pytest.raises(KitError, match="run one is not finished"):
        _ = run.metrics
    run.finish({"score": 0.5})
    assert runs.open_run("one").metrics == {"score": 0.5}
    assert runs.list_runs() == ["one"]


def test_the_same_settings_resume_and_others_are_refused_with_the_difference(home):
    runs.start("one", {"epochs": 3, "folds": (0, 1)}, data=DATA)
    started = runs.open_run("one").params["started"]
    assert runs.start("one", {"epochs": 3, "folds": (0, 1)}, data=DATA).params["started"] == started
    with pytest.raises(KitError, match="epochs was 3, now 5"):
        runs.start("one", {"epochs": 5, "folds": (0, 1)}, data=DATA)
    with pytest.raises(KitError, match="checksum was 'abc', now 'abd'"):
        runs.start("one", {"epochs": 3, "folds": (0, 1)}, data={"checksum": "abd"})


def test_overwriting_must_be_asked_for_and_leaves_nothing_of_the_old_run(home):
    runs.start("one", {"epochs": 3}, data=DATA).finish({"score": 1})
    run = runs.start("one", {"epochs": 5}, data=DATA, overwrite=True)
    assert run.settings == {"epochs": 5} and not run.finished


def test_nothing_about_the_machine_is_written(home):
    import getpass
    import socket

    text = (runs.start("one", {}, data=DATA).dir / "params.json").read_text()
    assert str(home) not in text and socket.gethostname() not in json.loads(text).values()
    assert getpass.getuser() not in json.loads(text).values()


def test_an_unknown_run_lists_those_there_are(home):
    runs.start("one", {}, data=DATA)
    with pytest.raises(KitError, match="there is no run 'two'; there are: one"):
        runs.open_run("two")
    with pytest.raises(KitError, match="run one has no oof"):
        runs.open_run("one").guesses("oof")


def test_finished_runs_of_a_data_set_come_newest_first(home):
    for name, places, finished in [("old", "a", True), ("other", "b", True), ("new", "a", True), ("half", "a", False)]:
        run = runs.start(name, {}, data={"places": places})
        storage.write_json(
            run.dir / "params.json", run.params | {"started": {"old": "2026-01-01", "new": "2026-01-02"}.get(name, "")}
        )
        if finished:
            run.finish({})
    assert runs.finished_on("a") == ["new", "old"]
    assert runs.finished_on("c") == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_run_names_cannot_leave_their_folder(home, name):
    with pytest.raises(KitError, match="run name"):
        runs.start(name, {}, data=DATA)


def test_a_headline_carries_the_number_and_the_files(home):
    bundle = headline.headline("score", 0.123456, [home / "submissions/a.csv"])._repr_mimebundle_()
    assert bundle[headline.HEADLINE_MIME] == {"label": "score", "value": "0.1235", "wrote": ["submissions/a.csv"]}
    assert "submissions/a.csv" in bundle["text/html"]
