"""The regional family: out of fold with a router, and the published pipeline on a table of regions."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data import folds, readers
from kitlib.evaluation import fold_files, metrics, runs
from kitlib.geo import projection
from kitlib.models.regional import analysis
from kitlib.models.regional import fold as fold_module
from kitlib.models.regional import run as regional
from kitlib.models.regional.run import Config
from kitlib.models.regional.scalers import file_id

HEADS = Config(encoder="tiny", finetune=False, min_places=4, regions="division", scaler="standard")
ENCODERS = Config(encoder="tiny", epochs=2, batch=8, rate=1e-4, router="known", min_places=8, mirror=False)
CITIES = {"1": [14.6, 121.0], "2": [-17.8, 179.9], "10": [-1.3, 36.8]}

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    """A region table of three cities, the third with few pictures; how red a picture is tells how far east it lies."""
    folder, rng = tmp_path_factory.mktemp("cities"), np.random.default_rng(0)
    for split, count in (("train", (14, 14, 5)), ("val", (5, 5, 2))):
        rows = []
        (folder / f"images_{split}/images_{split}").mkdir(parents=True)
        for (city, centre), n in zip(CITIES.items(), count, strict=True):
            for local in rng.normal(0, 10, (n, 2)):
                name = f"img_{len(rows):04d}.jpg"
                colour = np.array([120 + 4 * local[0], 120, 120 + 4 * local[1]])
                picture = np.clip(rng.normal(colour, 20, (96, 96, 3)), 0, 255)
                path = folder / f"images_{split}/images_{split}" / name
                Image.fromarray(picture.astype(np.uint8)).save(path)
                rows.append([name, *projection.from_local_km(local, centre), city])
        if split == "train":
            rows[0][1], rows[0][2] = 0.0, 0.0  # a place whose coordinates were lost
        table = pd.DataFrame(rows, columns=["filename", "latitude", "longitude", "Region_ID"])
        table.to_csv(folder / f"labels_{split}.csv", index=False)
    return readers.read(folder)


@pytest.fixture(scope="module")
def routed(world):
    """A run out of fold with heads on frozen features and a logistic router."""
    return regional.train(HEADS, world, "routed", n_folds=3)


def test_a_run_guesses_every_place_out_of_fold_and_the_test(routed, world):
    oof, test = routed.guesses("oof"), routed.guesses("test")
    assert sorted(oof.sample_id) == sorted(world.sample_id("train"))
    assert sorted(test.sample_id) == sorted(world.sample_id("test"))
    assert np.allclose(oof.weights.sum(1), 1, atol=1e-5) and oof.answered.all()
    assert routed.metrics["oof"] == metrics.score_guesses(oof, world).as_dict()
    assert routed.metrics["oof"]["n"] == 60


def test_bad_settings_and_unknown_regions_leave_no_run(world):
    for wrong, options, message in (
        ({"finetune": True}, {"only_regions": "nowhere"}, "only_regions: expected some of .*pooled; got nowhere"),
        ({}, {"only_regions": "Pacific"}, "only_regions: expected none with finetune=False"),
        ({"router": "nobody"}, {}, "there is no run 'nobody'"),
        ({"encoder": "timm:nope"}, {}, "expected a model of timm"),
        ({"finetune": True, "encoder": "tiny", "image_size": 7}, {}, "image_size: expected 16 px or more"),
    ):
        with pytest.raises(KitError, match=message):
            regional.train(dataclasses.replace(HEADS, **wrong), world, "refused", n_folds=3, **options)
    for wrong in ({"regions": "cluster:0"}, {"regions": "x"}, {"router": "../x"}, {"regions": "cluster:" + "9" * 6000}):
        with pytest.raises(KitError, match=f"^{next(iter(wrong))}: expected"):
            dataclasses.replace(HEADS, **wrong)
    assert "refused" not in runs.list_runs()


def test_points_lie_in_the_regions_that_the_router_thinks_likely(routed, world):
    session = regional.Session(routed, world)
    regional_fold = session.regional_fold(0)
    rows = regional_fold.held_out[1]
    guess = session.guess(0, "train", rows)
    likely = regional_fold.regions.probabilities(session.router["train"].at(guess.sample_id).state_probs)
    assert np.allclose(guess.weights[:, 0], likely.max(1) / np.sort(likely, 1)[:, -guess.weights.shape[1] :].sum(1))
    nearest = geo.nearest(guess.points[:, 0], regional_fold.regions.medians)[1][:, 0]
    assert (nearest == likely.argmax(1)).mean() > 0.5


def test_guesses_are_out_of_fold(routed, world):
    table = folds.load_or_make(world, n_folds=3)
    for fold in range(3):
        regional_fold = regional.Session(routed, world).regional_fold(fold)
        out = np.flatnonzero(table["stratified"] == fold)
        assert regional_fold.held_out[1].tolist() == out.tolist()
        assert not set(regional_fold.rows) & set(out) and not len(
            regional_fold.val[1]
        )  # heads need no validation places
        groups = table["group"].to_numpy()
        assert not set(groups[regional_fold.rows]) & set(groups[out])


def test_the_evaluation_adds_up(routed):
    table, each = analysis.evaluation(routed), analysis.held_out(routed)
    assert table.loc["all", "held_out"] == len(each) == table.drop("all")["held_out"].sum()
    assert np.isclose(table.loc["all", "mean_km"], each["km"].mean())
    errors = projection.to_local_km(
        each[["guess_latitude", "guess_longitude"]].to_numpy(), each[["latitude", "longitude"]].to_numpy()
    )
    assert np.allclose(np.hypot(*errors.T), each["km"])
    in_units = np.hypot(each["guess_east"] - each["east"], each["guess_north"] - each["north"]) * each["unit_km"]
    known = in_units.notna()
    assert known.sum() > 40 and np.allclose(
        in_units[known], each["km"][known], rtol=0.2
    )  # a map has its distortions across a division
    assert set(pd.read_csv(routed.dir / "regions.csv")["region"]) == set(table.index)


def test_the_penalties_of_every_head_can_be_shown(routed):
    table = analysis.penalties(routed)
    assert table.columns.tolist() == ["fold 0", "fold 1", "fold 2"] and table.index.is_unique
    assert (table.stack() >= 1).all() and (table.stack() <= 10**7).all()


def test_the_scalers_are_beside_the_models(routed, world):
    regional_fold = regional.Session(routed, world).regional_fold(1)
    for scaler, name in zip(regional_fold.scalers, regional_fold.regions.names, strict=True):
        file = fold_files.folder(routed, 1) / f"scaler_region_{file_id(name)}.joblib"
        loaded = joblib.load(file)
        assert np.array_equal(loaded.transform([[40.0, -90.0]]), scaler.transform([[40.0, -90.0]]))
    assert (fold_files.folder(routed, 1) / "heads.npz").is_file()


def test_a_finished_run_is_opened_and_its_models_say_the_same_again(routed, world):
    again = regional.train(HEADS, world, "routed", n_folds=3)
    assert again.finished
    predicted = regional.predict("routed", world)
    assert np.allclose(predicted.points, routed.guesses("test").points, atol=1e-4)


def test_a_run_can_be_the_router(routed, world):
    run = regional.train(dataclasses.replace(HEADS, router="routed"), world, "second", n_folds=3, only_folds=[2])
    assert np.allclose(
        run.guesses("oof").state_probs, routed.guesses("oof").at(run.guesses("oof").sample_id).state_probs, atol=1e-6
    )
    with pytest.raises(KitError, match="in the same folds"):
        regional.train(dataclasses.replace(HEADS, router="routed"), world, "third", n_folds=3, folds_column="spatial")
    assert "third" not in runs.list_runs()


def test_the_published_pipeline_with_heads(cities):
    config = dataclasses.replace(
        HEADS, regions="state", router="known", min_places=8, mad_threshold=6.0, eps_km=30.0, min_samples=3
    )
    run = regional.train(config, cities, "cities", folds_column="given")
    table = analysis.evaluation(run)
    assert table.loc[["1", "2", "10"], "model"].tolist() == ["own", "own", "pooled"]
    assert table.loc["all", "held_out"] == 12  # nothing of the validation is dropped
    dropped = pd.read_csv(run.dir / "dropped.csv")
    assert dropped[["sample_id", "reason"]].to_numpy().tolist() == [["img_0000.jpg", "mad"]]
    guesses = run.guesses("test")
    truth = dict(zip(cities.sample_id("test"), cities.points("test"), strict=True))
    assert geo.distance_km(guesses.points[:, 0], np.array([truth[i] for i in guesses.sample_id])).max() < 200
    assert run.metrics["within_regions"]["n"] == 12 and not run.metrics["failed"]


@pytest.fixture(scope="module")
def finetuned(cities):
    return regional.train(ENCODERS, cities, "finetuned", folds_column="given")


def test_the_published_pipeline_with_encoders(finetuned):
    folder = fold_files.folder(finetuned, 0)
    for name in ("region_1", "region_2", "pooled"):
        assert (folder / name / "finished.ckpt").is_file()
        history = pd.read_csv(folder / name / "history.csv")
        assert history["val_loss"].notna().sum() == 2
    table = analysis.evaluation(finetuned)
    assert table.loc[["1", "2", "10"], "model"].tolist() == ["own", "own", "pooled"]
    assert table.loc["all", "mean_km"] < 40


def test_the_refit_trains_encoders_for_the_epochs_that_the_folds_kept(cities):
    config = dataclasses.replace(ENCODERS, router="logistic", refit=True, patience=1, epochs=3, min_places=3)
    run = regional.train(config, cities, "refit", n_folds=2)
    fits = [storage.read_json(fold_files.folder(run, k) / "region_1/fit.json") for k in range(3)]
    kept = [fit["finished"]["best_epoch"] for fit in fits]
    assert fits[2]["settings"]["epochs"] == round(np.mean(kept[:2])) and kept[2] == 0
    assert "monitor" not in fits[2]["settings"] and len(run.guesses("oof")) == len(cities.rows("train"))


def test_regions_can_be_trained_one_after_the_other_on_any_machine(finetuned, cities):
    for region in ("pooled", "2"):
        run = regional.train(ENCODERS, cities, "spread", folds_column="given", only_regions=[region])
        assert not run.finished
    run = regional.train(ENCODERS, cities, "spread", folds_column="given", only_regions=["1"])
    assert run.finished
    assert np.array_equal(run.guesses("test").points, finetuned.guesses("test").points)
    with pytest.raises(KitError, match="only_regions: expected some of 1, 2, pooled; got 10"):
        regional.train_fold("spread", 0, str(cities.folder), only_regions="10")
    with pytest.raises(KitError, match="got 10"):
        regional.train(ENCODERS, cities, "other", folds_column="given", only_regions=["10"])


def test_one_bad_region_does_not_stop_the_others(cities, monkeypatch):
    fit = fold_module.RegionalFold.train_encoder

    def train(self, name, *args, **options):
        if name == "2":
            raise RuntimeError("out of memory\nand more")
        return fit(self, name, *args, **options)

    monkeypatch.setattr(fold_module.RegionalFold, "train_encoder", train)
    run = regional.train(ENCODERS, cities, "bad", folds_column="given")
    table = analysis.evaluation(run)
    assert table.loc["2", "model"] == "failed: out of memory" and table.loc["1", "model"] == "own"
    assert np.isclose(table.loc["2", "mean_km"], table.loc["2", "median_point_km"])
    assert run.metrics["failed"] == {"2": "failed: out of memory"}


def test_a_failure_in_one_fold_only_is_named_too(routed, world):
    regional_fold = regional.Session(routed, world).regional_fold(2)
    (regional_fold.folder / "failed_Mountain.txt").write_text("no luck\n")
    try:
        assert regional_fold.model_of[regional_fold.regions.names.tolist().index("Mountain")] == "failed: no luck"
        assert fold_module.failures(regional_fold.folder, ["Mountain", "Pacific"]) == {"Mountain": "failed: no luck"}
    finally:
        regional_fold.clear_failure("Mountain")


def test_a_router_that_was_trained_anew_makes_another_run(routed, world):
    config = dataclasses.replace(HEADS, router="routed")
    options = {"n_folds": 3, "only_folds": [2]}
    regional.train(config, world, "chained", **options)
    nested = dataclasses.replace(config, router="chained")  # a router may have a router itself
    assert regional.train(nested, world, "nested", **options).finished
    guesses = routed.guesses("oof")
    routed.save_guesses("oof", dataclasses.replace(guesses, state_probs=guesses.state_probs[:, ::-1]))
    try:
        with pytest.raises(KitError, match="router was"):
            regional.train(config, world, "chained", **options)
    finally:
        routed.save_guesses("oof", guesses)


def processes_of(run: str) -> set[int]:
    """The processes that train a run, and the one that started them."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if "train-fold" in line and run in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_a_launcher_that_is_killed_or_interrupted(cities, how):
    """An interrupted one, such as the cell of a notebook, waits until they have saved."""
    name = f"launcher-{how}"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "from kitlib.data import readers; from kitlib.models import regional\n"
        "config = regional.Config(encoder='tiny', epochs=100000, batch=8, router='known', min_places=8, patience=0)\n"
        f"places = readers.read({str(cities.folder)!r})\n"
        f"regional.train(config, places, {name!r}, folds_column='given', only_regions=['1'], devices=2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as launcher:
        deadline = time.monotonic() + 200
        while len(processes_of(name)) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        started = processes_of(name)
        launcher.send_signal(how)
        launcher.wait()
    assert len(started) == 3
    deadline = time.monotonic() + (40 if how == signal.SIGKILL else 0)
    while processes_of(name) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(name)


@pytest.mark.slow
def test_two_processes_train_a_region(cities):
    run = regional.train(
        dataclasses.replace(ENCODERS, epochs=1), cities, "two", folds_column="given", only_regions=["1"], devices=2
    )
    assert (fold_files.folder(run, 0) / "region_1/finished.ckpt").is_file()


@pytest.mark.slow
def test_the_command_line_trains_a_region_table(cities):
    words = ["train", "cli", "--family", "regional", "--data", str(cities.folder), "--folds-column", "given"]
    settings = ["encoder=tiny", "finetune=false", "router=known"]
    command = [sys.executable, "-m", "kitlib", *words, *(word for setting in settings for word in ("-p", setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "within the known regions" in done.stdout


def test_clusters_as_regions(world):
    run = regional.train(dataclasses.replace(HEADS, regions="cluster:4"), world, "clusters", n_folds=3, only_folds=[0])
    assert set(analysis.evaluation(run).index) <= {f"cluster {k}" for k in range(1, 5)} | {"all"}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"router": "known"}, {}, "expected 'known' only with folds_column 'given'"),
        ({"router": "nobody"}, {}, "there is no run 'nobody'"),
        ({}, {"folds_column": "given"}, "expected a second table with coordinates"),
        ({}, {"folds_column": "random"}, "expected one of stratified, spatial, given; got 'random'"),
        ({"regions": "county"}, {}, "regions: expected state"),
        ({}, {"only_regions": ["Mountain"]}, "only_regions: expected none with finetune=False"),
        ({"exclude": "nothing.jpg"}, {}, "nothing.jpg"),
        ({"encoder": "timm:nothing_at_all"}, {}, "expected a model of timm"),
    ],
)
def test_bad_input_is_refused_before_a_run_begins(world, change, options, message):
    with pytest.raises(KitError, match=message):
        regional.train(dataclasses.replace(HEADS, **change), world, "refused", **({"n_folds": 3} | options))
    assert "refused" not in runs.list_runs()


def test_settings_are_checked():
    for wrong in (
        {"scaler": "normal"},
        {"loss": "l1"},
        {"min_samples": 0},
        {"mad_threshold": -1.0},
        {"eps_km": np.inf},
        {"epochs": 0},
        {"val_share": 2.0},
        {"t_0": 0},
    ):
        with pytest.raises(KitError, match=next(iter(wrong))):
            Config(**wrong)
    published = {"batch": 32, "rate": 1e-5, "weight_decay": 1e-4, "epochs": 60, "patience": 10, "t_0": 10, "t_mult": 1}
    assert {name: getattr(Config(), name) for name in published} == published
    assert Config().encoder == "timm:convnext_small"


def test_a_region_without_training_places_is_reported_not_dropped(cities):
    lost = ",".join(cities.sample_id("train")[cities.rows("train")["state"] == "10"])
    config = dataclasses.replace(HEADS, regions="state", router="known", exclude=lost)
    run = regional.train(config, cities, "lost", folds_column="given")
    table = analysis.evaluation(run)
    assert table.loc["10", "model"] == "failed: no training place is left" and table.loc["10", "held_out"] == 2
    assert table.loc["all", "held_out"] == 12 and list(run.metrics["failed"]) == ["10"]
    assert len(pd.read_csv(run.dir / "dropped.csv")) == 5


def test_too_few_places_to_validate_on_still_train(finetuned, cities, caplog):
    whole = regional.Session(finetuned, cities).regional_fold(0)
    rows = whole.rows[:3]
    alone = fold_module.RegionalFold(
        whole.inputs,
        whole.config,
        whole.folder,
        rows,
        ("train", rows[:0]),
        whole.held_out,
    )
    assert "too few places to validate on" in caplog.text
    assert alone.val[0] == "train" and alone.val[1].tolist() == rows.tolist()
