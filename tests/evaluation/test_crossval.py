"""The driver of all families, with a family that only counts: what is trained, skipped, continued and refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from data_helper import competition

from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.data import readers
from kitlib.evaluation import baselines, crossval, guesses, metrics, runs
from kitlib.evaluation.crossval import Unfinished


@dataclass(frozen=True)
class Config(Settings):
    """A number and a file."""

    share: float = 0.5
    encoder: str = "tiny"


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
    assert Session.fitted == [0, 1, 2] == crossval.done_folds(run)
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


def test_an_unfinished_fold_leaves_the_run_unfinished_and_the_same_call_continues(places):
    run = train(places, stop_before=1)
    assert not run.finished and Session.fitted == [0] == crossval.done_folds(run)
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
    assert Session.train_fold("run", 2) and crossval.done_folds(runs.open_run("run")) == [2]


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


def test_hours_are_counted_over_all_folds(places):
    session = Session(train(places, stop_before=0), places, 1, 2.0)
    assert 1.99 < session.hours_left <= 2.0
    assert Session(session.run, places).hours_left is None


def test_several_processes_are_started_here_unless_this_is_one_of_them(places, monkeypatch):
    session = Session(train(places, stop_before=0), places, devices=2)
    assert session.spawns and not Session(session.run, places).spawns
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    assert not session.spawns and not crossval.is_first_process()
    session.complete_fold(0)  # fits, and leaves the guesses to the first process
    assert Session.fitted == [0] and not crossval.is_done(session.run, 0)


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
    with pytest.raises(KitError, match=r"run run was started with other settings \(encoder was '\w+', now '\w+'"):
        train(places, config=another)
    with pytest.raises(KitError, match="run run, encoder: expected the file that it was started with; got another"):
        Session(run, places)  # the one that was given last
    assert train(places, config=moved).finished
    monkeypatch.setenv("KITLIB_GIVEN", "{}")
    assert Session(run, places).config.encoder == "timm:x@m.pth"  # which is looked for below home, or refused


@pytest.mark.parametrize(
    "wrong",
    [{"run_name": "../x"}, {"run_name": "x" * 300}, {"devices": 0}, {"max_hours": -1.0}, {"max_hours": float("nan")},
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
        with pytest.raises(KitError, match="fold: expected a whole number from 0 to 2"):
            Session.train_fold(run.name, fold)
    assert crossval.done_folds(run) == [0]
