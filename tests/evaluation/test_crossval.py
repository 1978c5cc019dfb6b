"""The driver of all families, with a family that only counts: what is trained, skipped, continued and refused."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from data_helper import competition
from picture_helper import scene

from kitlib.core import processes, storage
from kitlib.core.errors import Damaged, Interrupted, KitError
from kitlib.core.settings import Settings
from kitlib.data import pictures, readers
from kitlib.evaluation import baselines, crossval, fold_files, guesses, metrics, runs
from kitlib.evaluation.crossval import Unfinished
from kitlib.models import multiview


@dataclass(frozen=True)
class Config(Settings):
    """A number and a file."""

    share: float = 0.5
    encoder: str = "tiny"
    refit: bool = False


class Session(crossval.Session[Config]):
    """Guesses the commonest states of the other folds."""

    family = "counting"
    config_type = Config
    OPTIONS = ("stop_before",)
    fitted: list[int] = []  # noqa: RUF012 (shared by all sessions on purpose)

    @classmethod
    def check(cls, config, places, folds_column, todo, recorded, **options):
        """Refuse one value."""
        if config.share == 0.25:
            raise KitError("share: expected anything else; got 0.25")
        return {"other": "1"}

    @classmethod
    def resolve(cls, config, recorded):
        """What the first start decided is kept."""
        return {"resolved": recorded["resolved"] if recorded else len(cls.fitted)}

    def fit_fold(self, fold):
        """Count."""
        if fold == self.options.get("stop_before"):
            raise Unfinished
        self.fitted.append(fold)
        storage.write_json(self.folder(fold) / "choice.json", {"k": 5})

    def guess(self, fold, split, rows=None):
        """The commonest states of the other folds."""
        ids = self.places.sample_id(split)
        return baselines.commonest(self.places, ~self.held_out(fold), ids if rows is None else ids[rows])

    def metrics(self):
        """What the family adds."""
        return {"counted": len(self.fitted)}


@pytest.fixture
def places(home, tmp_path):
    Session.fitted.clear()
    return readers.read(competition(tmp_path, n_train=24))


def train(places, name="run", config=Config(), **options):
    return Session.train(config, places, name, **({"n_folds": 3} | options))


def test_every_fold_is_trained_once_and_its_guesses_are_joined(places):
    run = train(places)
    assert Session.fitted == [0, 1, 2] == fold_files.done_folds(run)
    oof, test = run.guesses("oof"), run.guesses("test")
    assert sorted(oof.sample_id) == sorted(places.sample_id("train"))
    assert run.metrics["oof"] == metrics.score_guesses(oof, places).as_dict()
    assert (
        run.metrics["counted"] == 3 and run.metrics["accuracy"]["n"] == 24 and set(run.metrics["folds"]) == set("012")
    )
    expected = {"share": 0.5, "family": "counting", "folds_column": "stratified", "n_folds": 3, "resolved": 0}
    assert expected.items() <= run.settings.items() and run.params["data"]["other"] == "1"
    again = Session.predict("run", places)
    assert np.allclose(again.state_probs, test.state_probs)
    train(places)
    assert Session.fitted == [0, 1, 2]


def test_held_out_places_are_guessed_without_themselves(places):
    run = train(places)
    fold = Session(run, places).fold_table["stratified"].to_numpy()
    assert np.allclose(run.guesses("oof").at(places.sample_id("train")).state_probs,
                       baselines.commonest_out_of_fold(places, fold).state_probs)  # fmt: skip


def test_a_refit_learns_from_all_places_and_alone_guesses_the_test_places(places):
    plain = train(places, "plain")
    Session.fitted.clear()
    run = train(places, config=Config(refit=True))
    assert Session.fitted == [0, 1, 2, 3] == fold_files.done(run) and fold_files.done_folds(run) == [0, 1, 2]
    assert run.metrics["oof"] == plain.metrics["oof"] and list(run.metrics["folds"]) == list("012")
    test, ids = run.guesses("test"), places.sample_id("test")
    everything = baselines.commonest(places, np.ones(24, bool), ids).on_states(test.state_idx)
    np.testing.assert_array_equal(test.points, everything.points)
    assert plain.guesses("test").points.shape == (3, 3, 2) and test.points.shape == (3, 1, 2)
    np.testing.assert_array_equal(Session.predict("run", places).points, test.points)
    (fold_files.folder(run, 3) / "choice.json").write_text("{")
    (run.dir / "metrics.json").unlink()
    train(places, config=Config(refit=True))
    assert Session.fitted == [0, 1, 2, 3, 3]


def test_a_refit_needs_all_folds(places):
    with pytest.raises(KitError, match=r"folds: expected all 3 before 3, the refit; got none of 1, 2"):
        train(places, config=Config(refit=True), only_folds="0,3")
    assert runs.list_runs() == [] and Session.fitted == []
    run = train(places, config=Config(refit=True), only_folds="0,1")
    assert run.finished
    with pytest.raises(KitError, match="got none of 2"):
        Session.train_fold("run", 3)
    train(places, config=Config(refit=True), only_folds="2")
    assert Session.train_fold("run", 3) and Session.fitted == [0, 1, 2, 3]


def test_an_unfinished_fold_leaves_the_run_unfinished_and_the_same_call_continues(places):
    run = train(places, stop_before=1)
    assert not run.finished and Session.fitted == [0] == fold_files.done_folds(run)
    assert train(places).finished and Session.fitted == [0, 1, 2]


def test_some_folds_only(places):
    run = train(places, only_folds="1")
    assert run.finished and Session.fitted == [1] and run.metrics["oof"]["n"] == Session(run, places).held_out(1).sum()
    assert train(places, only_folds=[0, 1]).metrics["oof"]["n"] > run.guesses("oof").state_probs.shape[0] // 2
    Session.ONE_FOLD = True
    try:
        train(places, "first")
        assert Session.fitted == [1, 0, 0]
    finally:
        Session.ONE_FOLD = False


def test_one_fold_by_the_run_alone(places):
    train(places, stop_before=0)
    assert not Session.train_fold("run", 2, stop_before=2)
    assert Session.train_fold("run", 2) and fold_files.done_folds(runs.open_run("run")) == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_folds": [3]}, "folds: expected numbers from 0 to 2; got 3"),
        ({"only_folds": "1,1"}, "folds: expected different whole numbers"),
        ({"folds_column": "given"}, "folds_column: expected one of stratified, spatial; got 'given'"),
        ({"config": Config(share=0.25)}, "expected anything else"),
        ({"wandb": "x"}, "counting: unknown option wandb; expected: stop_before"),
    ],
)
def test_bad_input_is_refused_before_a_run_begins(places, options, message):
    with pytest.raises(KitError, match=message):
        train(places, "refused", **options)
    assert runs.list_runs() == [] and Session.fitted == []


def test_another_config_is_refused_and_overwriting_starts_anew(places):
    train(places, only_folds="0")
    with pytest.raises(KitError, match=r"share was 0.5, now 0.75"):
        train(places, config=replace(Config(), share=0.75))
    run = train(places, config=replace(Config(), share=0.75), only_folds="0", overwrite=True)
    assert run.settings["share"] == 0.75 and run.settings["resolved"] == 1 and Session.fitted == [0, 0]


def test_other_pictures_under_the_same_names_are_other_data(places):
    train(places, "whole")
    train(places, "half", stop_before=1)
    for path in (places.folder / "train_images").iterdir():
        scene(8, seed=int(path.name[4:10])).save(path)
    for name in ("whole", "half"):
        with pytest.raises(KitError, match=f"run {name} was started with other settings or data .*train pictures was"):
            train(places, name)
    with pytest.raises(KitError, match="train pictures was"):
        Session.train_fold("half", 1)
    assert Session.fitted == [0, 1, 2, 0]
    assert len(Session.predict("whole", places)) == 3  # only asked about the pictures there are


def test_a_run_of_an_earlier_kit_that_recorded_no_pictures_is_still_asked(places):
    run = train(places)
    test = run.guesses("test")
    params = run.params
    params["data"] = {name: value for name, value in params["data"].items() if "pictures" not in name}
    storage.write_json(run.dir / "params.json", params)
    for path in run.checkpoints.glob("*/fold.json"):
        path.unlink()
    assert np.array_equal(Session.predict("run", places).state_probs, test.state_probs)
    with pytest.raises(KitError, match="train pictures was None"):
        train(places)


def spoil(run, damage: str) -> None:
    """Damage a finished run."""
    one, two = fold_files.folder(run, 0), fold_files.folder(run, 1)
    if damage == "swapped test":
        (one / "test.npz").rename(one / "x")
        (two / "test.npz").rename(one / "test.npz")
        (one / "x").rename(two / "test.npz")
    elif damage == "another fold's oof":
        shutil.copy(two / "oof.npz", one / "oof.npz")
    elif damage == "empty oof":
        (one / "oof.npz").write_bytes(b"")
    elif damage == "no test":
        (one / "test.npz").unlink()
    elif damage == "other choice":
        (one / "choice.json").write_text('{"k": 6}')
    elif damage == "fold.json":
        (one / "fold.json").write_bytes(b"[]")
    else:
        (run.dir / damage).write_bytes(b"\x80")


@pytest.mark.parametrize(
    "damage",
    ["swapped test", "another fold's oof", "empty oof", "no test", "other choice", "fold.json",
     "oof.npz", "test.npz", "metrics.json"],
)  # fmt: skip
def test_damaged_results_are_refused_when_read_and_made_anew_by_training(places, damage, caplog):
    run = train(places)
    results = {name: (run.dir / name).read_bytes() for name in ("oof.npz", "test.npz")}
    spoil(run, damage)
    of_a_fold = not damage.startswith(("oof", "test", "metrics"))
    with pytest.raises(Damaged, match=r"(in fold_[01]|in run).*: "):
        if of_a_fold:
            Session.predict("run", places)
        else:
            _ = run.metrics if damage == "metrics.json" else run.guesses(damage.partition(".")[0])
    again = train(places)
    assert {name: (run.dir / name).read_bytes() for name in results} == results and again.metrics["oof"]["n"] == 24
    assert ("completed anew" in caplog.text) == of_a_fold


def test_guesses_of_other_places_are_no_fold_of_this_run(places):
    run = train(places)
    one, two = fold_files.folder(run, 0), fold_files.folder(run, 1)
    shutil.copy(two / "oof.npz", one / "oof.npz")
    (one / "fold.json").unlink()  # as an earlier kit left it
    with pytest.raises(Damaged, match=r"oof\.npz in fold_0: expected the 8 held-out places of fold 0; got 8 others"):
        train(places)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"[]", b"null", b"{}", b'{"settings": null, "data": {}, "started": ""}']
)
def test_settings_that_cannot_be_read_are_refused_and_can_be_overwritten(places, content):
    run = train(places, stop_before=1)
    (run.dir / "params.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"params\.json in run: expected .*start run run over"):
        train(places)
    assert train(places, overwrite=True).finished
    (run.dir / "params.json").unlink()
    with pytest.raises(Damaged, match=r"run run has checkpoints but no params\.json"):
        train(places)


def test_a_run_that_another_process_trains_is_refused_also_to_overwrite_it(places):
    train(places, stop_before=0)
    with runs.lock("run", part="fold 1"):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(KitError, match="run run is being trained by another process"):
                train(places, **options)
        assert train(places, "other").finished
        with pytest.raises(KitError, match="run other was"):
            train(places, "other", config=Config(share=0.1))
    assert train(places).finished


def test_processes_train_other_folds_of_a_run_at_the_same_time(places):
    train(places, stop_before=0)
    with runs.lock("run", part="fold 1"):
        assert train(places, only_folds=[0]).metrics["folds"].keys() == {"0"}
        assert train(places, only_folds=[2]).metrics["folds"].keys() == {"0", "2"}
    begun = train(places, "begun", start_only=True)
    assert (begun.dir / "params.json").is_file() and not begun.finished and not fold_files.done_folds(begun)
    assert train(places).metrics["folds"].keys() == {"0", "1", "2"}


def test_a_refused_fold_does_not_delete_the_run_that_others_train(places, monkeypatch):
    def refuse(session, fold):
        raise KitError("no")

    run = train(places, start_only=True)
    monkeypatch.setattr(Session, "fit_fold", refuse)
    with runs.lock("run", part="fold 1"), pytest.raises(KitError, match="no"):
        train(places, only_folds=[0])
    assert run.dir.is_dir()
    with pytest.raises(KitError, match="no"):
        train(places, only_folds=[0])
    assert not run.dir.is_dir()


def test_what_needs_no_pictures_is_checked_before_these_are_packed(places, monkeypatch):
    train(places, "begun", stop_before=0)
    monkeypatch.setattr(pictures, "pack", None)  # not called
    for name, options, message in (
        ("a b", {}, "run name: expected"),
        ("new", {"only_folds": [3]}, "folds: expected"),
        ("new", {"config": Config(share=0.25)}, "share: expected"),
        ("begun", {"config": Config(share=0.75)}, "share was 0.5, now 0.75"),
    ):
        with pytest.raises(KitError, match=message):
            train(places, name, **options)
    assert runs.list_runs() == ["begun"]


def test_a_run_without_any_usable_picture_does_not_begin(places):
    for path in (places.folder / "train_images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(KitError, match=r"no training place has a usable picture .*damaged, e\.g\. 0 north: empty file"):
        train(places)
    assert runs.list_runs() == []


def test_a_run_that_is_refused_before_it_saved_anything_is_removed(places, monkeypatch):
    def refuse(self, fold):
        raise KitError("no such layer")

    with monkeypatch.context() as patch, pytest.raises(KitError, match="no such layer"):
        patch.setattr(Session, "fit_fold", refuse)
        train(places)
    assert runs.list_runs() == []
    train(places, config=Config(share=0.75), stop_before=1)
    with monkeypatch.context() as patch, pytest.raises(KitError, match="no such layer"):
        patch.setattr(Session, "fit_fold", refuse)
        train(places, config=Config(share=0.75))
    assert runs.open_run("run").settings["share"] == 0.75


def test_no_fold_is_trained_that_the_run_does_not_have(places):
    train(places, stop_before=0)
    with pytest.raises(KitError, match="folds: expected numbers from 0 to 2; got 99"):
        Session.train_fold("run", 99)


def test_hours_are_counted_over_all_folds(places):
    session = Session(train(places, stop_before=0), places, 1, 2.0)
    assert 1.99 < session.hours_left <= 2.0
    assert Session(session.run, places).hours_left is None


def test_several_processes_are_started_here_unless_this_is_one_of_them(places, monkeypatch):
    session = Session(train(places, stop_before=0), places, devices=2)
    assert session.spawns and not Session(session.run, places).spawns
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    assert not session.spawns and not processes.is_first_process()
    session.complete_fold(0)  # fits, and leaves the guesses to the first process
    assert Session.fitted == [0] and not fold_files.is_done(session.run, 0)


def test_two_sessions_guess_the_same(places):
    run = train(places)
    one, other = (Session(run, places).guess_held_out(1) for _ in range(2))
    assert np.array_equal(guesses.stack([one]).state_probs, other.state_probs)


def test_a_file_is_recorded_by_name_and_content(places, tmp_path_factory, monkeypatch):
    folders = [tmp_path_factory.mktemp("confidential") for _ in range(3)]
    for folder, content in zip(folders, ("weights", "weights", "others"), strict=True):
        (folder / "m.pth").write_text(content)
    first, moved, another = (Config(encoder=f"timm:x@{folder}/m.pth") for folder in folders)
    run = train(places, config=first, stop_before=1)
    assert run.settings["encoder"] == "timm:x@m.pth" and "confidential" not in (run.dir / "params.json").read_text()
    assert Session(run, places).config == first  # as this process was told where it is
    with pytest.raises(
        KitError, match=r"run run was started with other settings or data \(encoder was '\w+', now '\w+'"
    ):
        train(places, config=another)
    with pytest.raises(KitError, match="run run, encoder: expected the file that it was started with; got another"):
        Session(run, places)  # the one that was given last
    assert train(places, config=moved).finished
    monkeypatch.setenv("KITLIB_GIVEN", "{}")
    assert Session(run, places).config.encoder == "timm:x@m.pth"  # which is looked for below home, or refused


@pytest.mark.parametrize(
    "wrong",
    [{"run_name": "../x"}, {"run_name": "x" * 300}, {"devices": -1}, {"max_hours": -1.0}, {"max_hours": float("nan")},
     {"only_folds": "99"}, {"only_folds": "x"}, {"n_folds": 1}, {"folds_column": "x"}],
)  # fmt: skip
def test_a_bad_call_leaves_no_run(places, wrong):
    before = runs.list_runs()
    with pytest.raises(KitError, match="expected"):
        Session.train(Config(), places, **({"run_name": "bad", "n_folds": 3} | wrong))
    assert runs.list_runs() == before


def test_a_fold_that_a_run_does_not_have_is_refused(places):
    run = Session.train(Config(), places, "three", n_folds=3, only_folds="0")
    for fold in (3, 99, -1):
        with pytest.raises(KitError, match="folds: expected numbers from 0 to 2"):
            Session.train_fold(run.name, fold)
    assert fold_files.done_folds(run) == [0]


def test_a_training_says_what_it_trains_before_torch_is_imported(monkeypatch, caplog):
    """The family's run, which imports torch, comes after the line; what interrupts it ends in one sentence."""
    config = multiview.Config(encoder="tiny", finetune_epochs=0)
    module = SimpleNamespace(Session=SimpleNamespace(train=interrupted))
    monkeypatch.setattr(crossval.importlib, "import_module", lambda name: asked.append((name, caplog.text)) or module)
    caplog.set_level("INFO", logger="kitlib.evaluation.crossval")
    asked: list[tuple[str, str]] = []
    places = SimpleNamespace(name="us", rows=lambda split: range(1234))
    with pytest.raises(Interrupted, match=r"^stopped run first; what is finished is saved: the same call goes on"):
        crossval.train(config, places, "first", only_folds="0,2")
    (name, said), *more = asked
    assert name == "kitlib.models.multiview.run" and not more
    assert "run first: multiview on 1,234 places of us, folds 0,2 (stratified), encoder tiny, heads_epochs 60\n" in said


def interrupted(*args, **options):
    raise KeyboardInterrupt


def test_an_interrupt_waits_for_the_end_of_an_import(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), processes.interrupts_held():
        signal.raise_signal(signal.SIGINT)
        done.append("imported")
    assert done == ["imported"]
