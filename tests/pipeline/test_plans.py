"""What a plan refuses, and what each of its notebooks gets."""

from __future__ import annotations

import pytest
import yaml
from notebook_helper import code, parameters, prose, write_notebook, write_plan

from kitlib.core.errors import KitError
from kitlib.pipeline import plans
from kitlib.pipeline.notebook import read_notebook

PARAMETERS = """\
DATA: str = "somewhere"  # a data set
EPOCHS: int = 5  # passes over the training folds

RATE: float = 1e-3  # of the optimizer
MIRROR: bool = True  # also train on mirrored views"""


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "10_train.ipynb", prose("# 10 · Train it\n\n*Does it learn?*"), parameters(PARAMETERS))
    write_notebook(tmp_path / "20_look.ipynb", prose("# 20 · Look"), parameters("TOP: int = 5  # states"))
    write_plan(tmp_path / "both.yaml", "10_train 20_look", "parameters:\n  EPOCHS: 7\n")
    return tmp_path


def test_reads_title_question_and_typed_parameters(folder):
    book = read_notebook(folder / "10_train.ipynb")
    assert (book.title, book.question) == ("Train it", "Does it learn?")
    assert {name: (p.type, p.default) for name, p in book.parameters.items()} == {
        "DATA": ("str", "somewhere"),
        "EPOCHS": ("int", 5),
        "RATE": ("float", 1e-3),
        "MIRROR": ("bool", True),
    }


def test_values_go_to_the_notebooks_that_take_them_and_the_command_line_wins(folder):
    _, _, steps = plans.check(folder / "both.yaml", {"RATE": "3", "MIRROR": "false", "TOP": "2"})
    assert [step.values for step in steps] == [{"EPOCHS": 7, "RATE": 3.0, "MIRROR": False}, {"TOP": 2}]
    assert type(steps[0].values["RATE"]) is float
    _, _, steps = plans.check(folder / "both.yaml", {"EPOCHS": "2"})
    assert steps[0].values == {"EPOCHS": 2}


def test_yaml_takes_some_numbers_for_texts(folder):
    (folder / "rate.yaml").write_text("description: d\nparameters: {RATE: 1e-3}\nsteps: [{notebook: 10_train}]\n")
    assert plans.check(folder / "rate.yaml")[2][0].values == {"RATE": 0.001}


def test_a_notebook_may_come_twice_with_parameters_of_its_own(folder):
    (folder / "twice.yaml").write_text(
        "description: d\nsteps:\n- {notebook: 20_look, parameters: {TOP: 1}}\n- {notebook: 20_look}\n"
    )
    _, _, steps = plans.check(folder / "twice.yaml")
    assert [(step.name, step.values) for step in steps] == [("20_look", {"TOP": 1}), ("20_look-2", {})]


def test_a_step_comes_once_for_each_of_its_seeds_and_later_runs_name_them_all(tmp_path):
    seeded = 'RUN: str = "a-net"  # the run\nSEED: int = 0  # of weights'
    write_notebook(tmp_path / "10_train.ipynb", prose("# 10 · Train\n\n*Does it learn?*"), parameters(seeded))
    write_notebook(tmp_path / "30_blend.ipynb", prose("# 30 · Blend"), parameters('RUNS: str = ""  # members'))
    write_plan(tmp_path / "seeds.yaml", "10_train 30_blend", "parameters: {RUN: p-net, RUNS: 'p-net,p-net-gps,q'}\n")

    def values(**given):
        return [step.values for step in plans.check(tmp_path / "seeds.yaml", given)[2]]

    assert values()[0] == {"RUN": "p-net"}
    first, second, blend = values(SEEDS="3,4")
    assert (first, second) == ({"RUN": "p-net", "SEED": 3}, {"RUN": "p-net-seed4", "SEED": 4})
    assert blend == {"RUNS": "p-net,p-net-seed4,p-net-gps,p-net-seed4-gps,q"}
    assert values(SEEDS="3,4", RUN="x")[1]["RUN"] == "x-net-seed4"
    assert values(SEEDS="3,4", RUNS="q")[2] == {"RUNS": "q"}
    assert len(values(SEEDS="3,4", SEED="5")) == 2 and values(SEED="5")[0]["SEED"] == 5
    assert len(plans.check(tmp_path / "seeds.yaml", {"train.SEEDS": "0,1,2"})[2]) == 4
    with pytest.raises(KitError, match="SEEDS: expected different whole numbers"):
        values(SEEDS="1,1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"EPOCH": "3"}, r"'EPOCH' \(did you mean EPOCHS\?\)$"),
        ({"XYZ": "3"}, r"'XYZ'; expected: DATA, EPOCHS, MIRROR, RATE, TOP"),
        ({"trian.EPOCHS": "3"}, r"no step 'trian' \(did you mean train\?\); expected .*: 10_train, 20_look"),
        ({"look.EPOCHS": "3"}, r"-p: 20_look take no parameter 'EPOCHS'"),
        ({"train.EPOCH": "3"}, r"'EPOCH' \(did you mean EPOCHS\?\)$"),
        ({"epochs": "3"}, r"did you mean EPOCHS"),
        ({"EPOCHS": "abc"}, r"EPOCHS of 10_train: expected a whole number \(int\); got 'abc'"),
        ({"EPOCHS": "2.5"}, r"whole number"),
        ({"RATE": "fast"}, r"RATE of 10_train: expected a number"),
        ({"MIRROR": "maybe"}, r"true or false"),
    ],
)
def test_refuses_unknown_names_and_wrong_types(folder, given, message):
    with pytest.raises(KitError, match=message):
        plans.check(folder / "both.yaml", given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("description: d\nsteps: []\n", "steps"),
        ("description: d\nsteps:\n- notebook: 10_train\n  paramters: {EPOCHS: 1}\n", r"steps\.0\.paramters"),
        ("description: d\nstep: 3\nsteps:\n- notebook: 10_train\n", r"step: Extra inputs"),
        ("description: d\nsteps:\n- notebook: 10_train\n  parameters: {TOP: 1}\n", r"10_train take no parameter 'TOP'"),
        ("description: d\nparameters: {EPOCH: 1}\nsteps:\n- notebook: 10_train\n", r"did you mean EPOCHS"),
        (
            "description: d\nsteps:\n- notebook: 10_train\n  parameters: {EPOCHS: '3'}\n",
            r"whole number \(int\); got '3'",
        ),
        (
            "description: d\nsteps:\n- notebook: 10_train\n  parameters: {EPOCHS: true}\n",
            r"whole number \(int\); got True",
        ),
        ("description: d\nsteps:\n- notebook: 11_train\n", r"no notebook '11_train'"),
        ("description: [d\n", r"expected YAML in UTF-8"),
        ("just a text", r"the whole file"),
        ("", r"the whole file"),
        (f"description: d\nparameters: {{EPOCHS: {'9' * 6000}}}\nsteps: []\n", r"expected YAML in UTF-8"),
        (
            f"description: d\nparameters: {{EPOCHS: 0x{'f' * 6000}}}\nsteps:\n- notebook: 10_train\n",
            r"EPOCHS of 10_train: ",
        ),
        ("[" * 1500, r"expected YAML in UTF-8"),
        ('description: d\nparameters: {DATA: "a\\0b"}\nsteps:\n- notebook: 10_train\n', r"DATA of 10_train: "),
    ],
)
def test_refuses_a_malformed_plan(folder, text, message):
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(KitError, match=message):
        plans.check(folder / "bad.yaml")


def test_refuses_a_plan_of_another_encoding_and_a_name_that_makes_no_folder(folder):
    (folder / "bad.yaml").write_bytes("description: d\nsteps: []\n".encode("utf-16"))
    with pytest.raises(KitError, match=r"plan bad\.yaml: expected YAML in UTF-8; got: 'utf-8' codec"):
        plans.check(folder / "bad.yaml")
    (folder / "a b.yaml").write_text("description: d\nsteps: []\n")
    with pytest.raises(KitError, match="plan name: expected"):
        plans.check(folder / "a b.yaml")


def test_refuses_bad_values_of_the_kit_s_own_notebooks_before_any_of_them_runs():
    for name, value in (
        ("PLACES_SHOWN", "0"),
        ("FOLDS", "1"),
        ("SHARP_KM", "nan"),
        ("NAME", "../evil"),
        ("QUERIES", "-1"),
    ):
        with pytest.raises(KitError, match=f"^{name}: expected"):
            plans.check("sample", {name: value})


def test_an_unknown_plan_is_told_with_those_there_are():
    with pytest.raises(KitError, match=r"no plan 'sampel'; expected .*\.yaml"):
        plans.check("sampel")


@pytest.mark.parametrize(
    "line",
    [
        "EPOCHS = 5  # no type",
        "EPOCHS: int = 5  # a second = hides the line from papermill",
        "EPOCHS: int = 2 + 3  # derived",
        "EPOCHS: list = [1]  # of another type",
        'EPOCHS: str = (\n    "two lines"\n)',
        "import os",
        "EPOCHS: int = 5.0  # a value of another type",
    ],
)
def test_refuses_a_parameters_cell_that_papermill_would_misread(tmp_path, line):
    write_notebook(tmp_path / "x.ipynb", parameters(line))
    with pytest.raises(KitError, match=r"x.*expected"):
        read_notebook(tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    "cells", [[code("N: int = 1  # no tag")], [parameters("N: int = 1"), parameters("M: int = 1")]]
)
def test_refuses_a_notebook_without_its_one_tag(tmp_path, cells):
    write_notebook(tmp_path / "x.ipynb", *cells)
    with pytest.raises(KitError, match=r"expected exactly one cell tagged 'parameters'"):
        read_notebook(tmp_path / "x.ipynb")


def test_refuses_what_is_no_notebook(tmp_path):
    (tmp_path / "x.ipynb").write_text("{}")
    with pytest.raises(KitError, match="expected a notebook, JSON with cells"):
        read_notebook(tmp_path / "x.ipynb")


def test_the_kit_s_own_plans_are_in_order():
    for name in plans.list_plans():
        plans.check(name)


def test_the_kit_s_own_plans_repeat_no_default():
    """A default in a plan shows nothing, and costs every run the import of a family."""
    names = {"DATA", "RUN", "RUNS", "NAME", "START_FROM"}  # said for the reader
    for name in plans.list_plans():
        _, plan, steps = plans.check(name)
        once = [ready for ready in steps if "-seed" not in str(ready.values.get("RUN"))]
        for step, ready in zip(plan.steps, once, strict=True):
            defaults = {key: parameter.default for key, parameter in ready.notebook.parameters.items()}
            given = (plan.parameters | step.parameters).items()
            assert not {key for key, value in given if defaults.get(key) == value} - names, f"{name}: {ready.name}"


@pytest.fixture
def family(tmp_path):
    """A notebook that makes a multiview.Config of some of its fields."""
    lines = 'ENCODER: str = "hf:geolocal/StreetCLIP"  # a name', "HEADS_EPOCHS: int = 60  # passes"
    book = (
        parameters("\n".join([*lines, 'MORE: str = "{}"  # others'])),
        code("config = multiview.Config.from_parameters(globals(), MORE)"),
    )
    write_notebook(tmp_path / "10_family.ipynb", prose("# 10 · Family"), *book)
    write_notebook(tmp_path / "20_look.ipynb", prose("# 20 · Look"), parameters("TOP: int = 5  # states"))
    write_plan(tmp_path / "p.yaml", "10_family 20_look")
    return tmp_path


def test_every_field_of_a_config_can_be_given(family):
    """What the parameters cell does not list goes through MORE."""
    given = {"HEADS_EPOCHS": "3", "HIDDEN": "16", "MIRROR": "false", "ENCODER": "hf:geolocal/StreetCLIP", "TOP": "1"}
    _, _, steps = plans.check(family / "p.yaml", given)
    more = steps[0].values.pop("MORE")
    assert yaml.safe_load(more) == {"hidden": 16, "mirror": False}
    assert steps[0].values == {"HEADS_EPOCHS": 3, "ENCODER": "hf:geolocal/StreetCLIP"} and steps[1].values == {"TOP": 1}
    for wrong, message in (
        ({"HIDEN": "1"}, "did you mean HIDDEN"),
        ({"HIDDEN": "x"}, "HIDDEN of 10_family: expected a whole"),
    ):
        with pytest.raises(KitError, match=message):
            plans.check(family / "p.yaml", wrong)


def test_a_setting_reaches_every_notebook_that_has_it_whether_its_parameters_cell_lists_it_or_not():
    values = {step.name: step.values for step in plans.check("real", {"DATA": "sample", "IMAGE_SIZE": "96"})[2]}
    assert values["02_embed"]["IMAGE_SIZE"] == values["10_train_multiview"]["IMAGE_SIZE"] == 96
    assert yaml.safe_load(str(values["11_train_retrieval"]["MORE"]))["image_size"] == 96


def test_a_setting_given_twice(family):
    """The command line wins over a plan's MORE; two values of the same rank are refused."""
    text = "description: d\nsteps:\n- notebook: 10_family\n  parameters: {MORE: '{hidden: 8, heads_epochs: 2}'}\n"
    (family / "more.yaml").write_text(text)
    assert plans.check(family / "more.yaml")[2][0].values == {"MORE": "{hidden: 8, heads_epochs: 2}"}
    values = plans.check(family / "more.yaml", {"HIDDEN": "16", "HEADS_EPOCHS": "3"})[2][0].values
    assert yaml.safe_load(str(values["MORE"])) == {"hidden": 16, "heads_epochs": 3} and values["HEADS_EPOCHS"] == 3
    (family / "more.yaml").write_text(text.replace("parameters: {", "parameters: {HIDDEN: 9, "))
    with pytest.raises(KitError, match="10_family: HIDDEN is given as 9 and in MORE as 8"):
        plans.check(family / "more.yaml")


def test_a_parameter_of_one_step_reaches_only_it(folder):
    (folder / "two.yaml").write_text(
        "description: d\nsteps: [{notebook: 10_train}, {notebook: 20_look}, {notebook: 20_look, parameters: {TOP: 3}}]"
    )
    steps = plans.check(folder / "two.yaml", {"look.TOP": "1", "train.RATE": "0.5"})[2]
    assert [step.values for step in steps] == [{"RATE": 0.5}, {"TOP": 1}, {"TOP": 1}]
    given = {"20_look.TOP": "1", "TOP": "2"}  # the narrower one counts, in any order
    assert plans.check(folder / "two.yaml", given)[2][1].values == {"TOP": 1}


def test_what_several_steps_share_is_said():
    given = {"SEED": "1", "DATA": "sample", "multiview.DEVICES": "2", "FINETUNE_EPOCHS": "1"}
    steps = plans.check("sample", given)[2]
    assert plans.reach(steps, given) == [
        "-p SEED reaches 03_ridge, 10_train_multiview, 11_train_retrieval, 12_train_regional; "
        "for one of them write -p ridge.SEED=…",
        "-p FINETUNE_EPOCHS reaches 10_train_multiview, 11_train_retrieval; "
        "for one of them write -p multiview.FINETUNE_EPOCHS=…",
    ]
    assert {step.name: step.values.get("DEVICES") for step in steps if "DEVICES" in step.values} == {
        "10_train_multiview": 2
    }


def test_another_run_renames_all_runs_of_a_plan_and_whoever_names_them():
    given = {"RUN": "x"}
    steps = plans.check("sample", given)[2]
    values = {step.name: step.values for step in steps}
    assert values["10_train_multiview"]["RUN"] == values["20_error_maps"]["RUN"] == "x-multiview"
    assert values["20_error_maps"]["COMPARE"] == "x-retrieval"
    assert (values["11_train_retrieval"]["RUN"], values["11_train_retrieval"]["COMPARE"]) == (
        "x-retrieval",
        "x-multiview",
    )
    assert (values["12_train_regional"]["RUN"], values["12_train_regional"]["ROUTER"]) == ("x-regional", "x-multiview")
    assert values["30_ensemble"]["RUNS"] == "x-ridge,x-multiview,x-retrieval,x-retrieval-gps,x-regional"
    assert values["30_ensemble"]["NAME"] == "x" and values["30_ensemble"]["TRUTH"] == "data/raw/sample/test_truth.csv"
    assert plans.reach(steps, given) == ["-p RUN=x names the runs x-ridge, x-multiview, x-retrieval, x-regional"]
    values = {step.name: step.values for step in plans.check("vlm", {"RUN": "x"})[2]}
    assert values["14_vlm_grpo"] == {"DATA": "sample", "RUN": "x-grpo", "START_FROM": "x-sft"}
    assert plans.check("regions", {"RUN": "x", "DATA": "d"})[2][1].values["RUN"] == "x-regional"


def test_the_run_of_one_step_is_renamed_alone():
    values = {step.name: step.values for step in plans.check("sample", {"retrieval.RUN": "other"})[2]}
    assert values["30_ensemble"]["RUNS"] == "sample-ridge,sample-multiview,other,other-gps,sample-regional"
    assert (values["11_train_retrieval"]["RUN"], values["30_ensemble"]["NAME"]) == ("other", "sample")
    with pytest.raises(KitError, match="RUN: expected"):
        plans.check("sample", {"RUN": "../evil"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"SOFT_LABELS": "gauss"}, "soft_labels: expected one of place, matrix, none; got 'gauss'"),
        ({"FUSION": "sum"}, "fusion: expected one of"),
        ({"DROPOUT": "1.5"}, "dropout: expected a number from 0 to 1"),
        ({"multiview.HEADS_EPOCHS": "0"}, "heads_epochs: expected more than 0"),
        ({"FINETUNE_BLOCKS": "-2"}, "finetune_blocks: expected a finite number that is not negative"),
        ({"IMAGE_SIZE": "99999"}, "IMAGE_SIZE: expected a whole number from 0 to 4096"),
        ({"multiview.MORE": "{tie: county}"}, "tie: expected one of none, state, cell; got 'county'"),
        ({"multiview.MORE": "{tei: state}"}, "unknown setting tei"),
        ({"multiview.MORE": "[1]"}, "MORE: expected YAML of a mapping"),
        ({"METHOD": "clip"}, "method: expected one of knn, metric, gps; got 'clip'"),
        ({"ALSO": "knn,clip"}, "method: expected one of knn, metric, gps; got 'clip'"),
        ({"GALLERY": "grid:0"}, "gallery"),
        ({"SIZES": "0"}, "SIZES: expected different whole numbers from 1"),
        ({"BY": "heading", "ALSO": "gps"}, "by: expected the default, metric, gps do not read it"),
        ({"retrieval.FINETUNE_EPOCHS": "-1"}, "finetune_epochs"),
        ({"REGIONS": "county"}, "regions"),
        ({"SCALER": "log"}, "scaler: expected one of robust, standard, minmax"),
        ({"MAD_THRESHOLD": "-1"}, "mad_threshold"),
        ({"FOLDS_COLUMN": "random"}, "FOLDS_COLUMN: expected one of stratified, spatial, given"),
        ({"ONLY_FOLDS": "7"}, "ONLY_FOLDS: expected different whole numbers from 0 to 4"),
        ({"SEED": "-1"}, "seed: expected a finite number that is not negative"),
        ({"MAX_HOURS": "nan"}, "MAX_HOURS: expected a number"),
    ],
)
def test_wrong_values_are_refused_before_any_step_runs(given, message):
    with pytest.raises(KitError, match=message):
        plans.check("sample", given)


def test_wrong_values_of_a_plan_s_own_are_refused_as_well(tmp_path):
    steps = "[{notebook: 13_vlm_sft, parameters: {BATCH: 30, MORE: '{group: 8}'}}]"
    (tmp_path / "p.yaml").write_text(f"description: d\nsteps: {steps}\n")
    with pytest.raises(KitError, match="13_vlm_sft: batch: expected a multiple of device_batch 4; got 30"):
        plans.check(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text(
        "description: d\nsteps: [{notebook: 14_vlm_grpo, parameters: {MORE: '{kl: x}'}}]\n"
    )
    with pytest.raises(KitError, match="14_vlm_grpo: kl: expected a number"):
        plans.check(tmp_path / "p.yaml")
