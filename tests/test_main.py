"""The command line: one sentence and exit code 2 for bad input, and no heavy import for help."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from data_helper import competition
from submission_helper import make_submission, make_template

from kitlib import __main__ as cli
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import baselines, origin, runs
from kitlib.pipeline import runner


@pytest.fixture
def kitlib(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["kitlib", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


def test_bad_input_is_one_sentence_and_exit_code_2(kitlib):
    code, out, err = kitlib("run", "sampel")
    assert code == 2 and out == "" and err.startswith("error: there is no plan 'sampel'") and err.count("\n") == 1
    assert kitlib("run", "sample", "-p", "EPOCHS")[::2] == (2, "error: -p: expected NAME=VALUE; got 'EPOCHS'\n")
    assert kitlib("run", "sample", "-p", "A=1", "-p", "A=2")[0] == 2
    assert kitlib("scoer")[0] == 2


def test_what_the_system_refuses_is_one_sentence_too(kitlib, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(errno.EROFS, "x", "/home/a/b.npz")

    monkeypatch.setattr(runner, "run_plan", refused)
    assert kitlib("run", "sample") == (2, "", "error: b.npz: the file system is read-only\n")
    assert kitlib("sample", "/dev/null/x")[::2] == (2, "error: null: a file stands where a folder is expected\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_NUM_THREADS", "x"), ("KITLIB_DEVICE", "gpu"), ("KITLIB_PRECISION", "x"), ("KITLIB_WORKERS", "0"),
     ("KITLIB_TRACKER", "x"), ("KITLIB_HOME", __file__)],
)  # fmt: skip
def test_a_machine_that_is_described_wrongly_is_refused_by_every_command(kitlib, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    for words in (["plans"], ["train", "r"], ["run", "sample"], ["doctor"]):
        code, out, err = kitlib(*words)
        assert (code, out) == (2, "") and err.startswith(f"error: {name}: expected ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "4294967296"], ["--seeds", "9" * 6000], ["--seeds", ""], ["--seeds", "-1"], ["--folds", "x"],
        ["--max-hours", "nan"], ["--max-hours", "inf"], ["--max-hours", "-1"], ["--max-hours", "0"],
        ["--folds-column", "x"], ["--family", "x"], ["-p", "heads_rate=nan"], ["-p", "seed=4294967296"],
        ["-p", f"hidden={'9' * 6000}"], ["-p", "fusion=x"], ["--family", "vlm", "-p", "fields=x"],
        ["--family", "vlm", "-p", "lengths=2.7"], ["--family", "regional", "-p", "regions=x"],
        ["--family", "retrieval", "-p", "gallery=grid:nan"],
    ],
)  # fmt: skip
def test_bad_words_of_train_are_refused_before_the_data_is_read(kitlib, monkeypatch, home, words):
    from kitlib.data import readers

    monkeypatch.setattr(readers, "load", lambda data: pytest.fail("the data was read"))
    code, out, err = kitlib("train", "r", *words)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 400
    assert kitlib("train", "../r")[2].startswith("error: run name: expected")
    assert kitlib("train", "r" * 97, "--seeds", "0,1")[2].startswith("error: run name: expected")


def test_how_a_plan_ends_is_the_exit_code(kitlib, monkeypatch, tmp_path):
    def ends_with(end):
        def run_plan(*arguments, **options):
            if isinstance(end, BaseException):
                raise end
            return end

        monkeypatch.setattr(runner, "run_plan", run_plan)
        return kitlib("run", "sample")

    assert ends_with(tmp_path / "report.html")[:2] == (0, f"{tmp_path}/report.html\n")
    assert ends_with(KitError("DATA is empty"))[::2] == (2, "error: DATA is empty\n")
    assert ends_with(runner.StepFailed("cell 3"))[::2] == (1, "error: cell 3\n")
    assert ends_with(KeyboardInterrupt())[0] == 130
    monkeypatch.setattr(runner, "run_plan", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["kitlib", "run", "sample"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_what_run_passes_on(kitlib, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "run_plan", lambda *a, **k: seen.append((a, k)) or "report")
    kitlib("run", "real", "-p", "DATA=a=b", "--from", "10_x", "--force", "-p", "SEED=1")
    assert seen == [(("real", {"DATA": "a=b", "SEED": "1"}), {"force": True, "start_from": "10_x"})]


def test_scores_validates_and_compares_submissions(kitlib, tmp_path):
    images = "sample_id,image_north,image_east,image_south,image_west"
    predicted = ",".join(f"predicted_state_idx_{rank}" for rank in range(1, 6))
    columns = f"{images},{predicted},predicted_latitude,predicted_longitude\n"
    (tmp_path / "template.csv").write_text(columns + "7,n,e,s,w,-1,-1,-1,-1,-1,,\n8,n,e,s,w,-1,-1,-1,-1,-1,,\n")
    (tmp_path / "a.csv").write_text(columns + "7,n,e,s,w,1,3,4,5,6,40,-100\n8,n,e,s,w,3,1,4,5,6,41,-90\n")
    (tmp_path / "b.csv").write_text(columns + "7,n,e,s,w,1,3,4,5,6,40,-100\n8,n,e,s,w,1,3,4,5,6,41,-90\n")
    (tmp_path / "truth.csv").write_text("sample_id,state,state_idx,latitude,longitude\n7,A,1,40,-100\n8,B,1,41,-90\n")
    code, out, _ = kitlib("score", tmp_path / "truth.csv", tmp_path / "a.csv")
    assert code == 0 and out.startswith("0.8600 = ")  # 0.7 * (1 + 0.6) / 2 + 0.3
    code, out, err = kitlib("validate", tmp_path / "a.csv", "--template", tmp_path / "template.csv")
    assert code == 0 and "a.csv is valid" in out
    code, out, err = kitlib("validate", tmp_path / "template.csv", "--template", tmp_path / "template.csv")
    assert code == 2 and err.startswith("error: template.csv: ")
    code, out, _ = kitlib("diff", tmp_path / "a.csv", tmp_path / "b.csv")
    assert code == 0 and "first state differs in 50.0% of 2 rows" in out
    for name, start in (("map.png", b"\x89PNG"), ("page.html", b"<!doctype html>")):
        code, out, _ = kitlib("diff", tmp_path / "a.csv", tmp_path / "b.csv", "--out", tmp_path / name)
        assert code == 0 and out.endswith(f"{name}\n") and (tmp_path / name).read_bytes().startswith(start)
    assert "<td>8</td>" in (tmp_path / "page.html").read_text()
    code, _, err = kitlib("diff", tmp_path / "a.csv", tmp_path / "none.csv", "--out", tmp_path / "map.pdf")
    assert code == 2 and err == "error: --out: expected one of .png, .html; got '.pdf'\n"


def test_validate_mends_into_a_new_file(kitlib, tmp_path):
    make_submission()[::-1].to_csv(tmp_path / "mine.csv", index=False)
    make_template(6).to_csv(tmp_path / "template.csv", index=False)
    words = ("validate", tmp_path / "mine.csv", "--template", tmp_path / "template.csv", "--fix")
    code, out, _ = kitlib(*words, tmp_path / "new.csv")
    assert (code, out) == (0, "mended: put the rows into the template's order\nnew.csv is valid\n")
    assert (tmp_path / "new.csv").read_text() == make_submission().to_csv(index=False)
    words = ("validate", tmp_path / "new.csv", *words[2:])
    assert kitlib(*words, tmp_path / "b.csv")[1] == "b.csv is valid; nothing had to be mended\n"
    code, _, err = kitlib(*words, tmp_path / "mine.csv")
    assert code == 2 and err.startswith("error: mine.csv exists with other content")


def test_the_ledger_takes_public_scores(kitlib, home):
    assert kitlib("submissions")[:2] == (
        0,
        "no submissions yet\n\n0 of today's 5 submissions to the competition are used, by the records here\n"
        "0 submissions have an out-of-fold and a public score: 3 are needed for a correlation\n",
    )
    (home / "submissions").mkdir()
    (home / "submissions/mine.csv").write_text("sample_id\n1\n")
    code, out, _ = kitlib("submissions", "--public", "mine", "0.95")
    assert (
        code == 0 and out.split("\n")[1].split() == ["mine", "0.9500"] and out.split()[:2] == ["submission", "public"]
    )
    assert kitlib("submissions", "--public", "mine", "95")[2].startswith("error: --public mine: expected a number from")
    assert kitlib("submissions", "--public", "../x", "0.5")[2].startswith("error: submission name: expected")
    assert kitlib("submissions", "--public", "mine", "x")[0] == 2


def test_compare_writes_a_map_or_a_page(kitlib, home, monkeypatch, tmp_path):
    places = readers.read(competition(tmp_path / "us", n_train=24))
    monkeypatch.setattr(origin, "reload_places", lambda run, data: places)
    ids = places.sample_id("train")
    guesses = baselines.commonest(places, np.arange(len(ids)), ids)
    better = replace(guesses, points=places.points("train")[:, None], weights=np.ones((len(ids), 1)))
    for name, made in (("first", guesses), ("second", better)):
        run = runs.start(name, {"family": "multiview"}, data={"places": places.checksum})
        run.save_guesses("oof", made)
        run.finish({})
    for name, start in (("map.PNG", b"\x89PNG"), ("page.html", b"<!doctype html>")):
        code, out, _ = kitlib("compare", "first", "second", "--out", tmp_path / name)
        assert code == 0 and out.endswith(f"{name}\n") and (tmp_path / name).read_bytes().startswith(start)
    page = (tmp_path / "page.html").read_text()
    assert "second is better" in page and "<td>Arkansas</td>" in page and "data:image/png;base64" in page
    code, _, err = kitlib("compare", "first", "second", "--out", tmp_path / "map.pdf")
    assert code == 2 and err == "error: --out: expected one of .png, .html; got '.pdf'\n"


def test_train_makes_a_run_of_each_seed(kitlib, monkeypatch, home):
    from kitlib.data import readers
    from kitlib.models import multiview

    calls = []

    def train(config, places, run, **options):
        made = config.seed, config.heads_epochs, config.mirror, config.encoder
        calls.append((run, *made, options["only_folds"], options["overwrite"]))
        return SimpleNamespace(name=run, finished=config.seed == 3, metrics={"oof": {"final": 0.5}})

    monkeypatch.setattr(multiview, "train", train)
    monkeypatch.setattr(readers, "load", lambda data: SimpleNamespace(preset="sample"))
    words = ("train", "mv", "--seeds", "0,3", "--folds", "1", "-p", "HEADS_EPOCHS=7", "-p", "mirror=false")
    code, out, _ = kitlib(*words)
    assert calls == [(f"mv-seed{seed}", seed, 7, False, "tiny", "1", False) for seed in (0, 3)]
    assert (code, out) == (0, "mv-seed0: time is up; the same command continues\nmv-seed3: 0.5000 out of fold\n")
    assert "unknown setting epochs; expected: encoder" in kitlib("train", "mv", "-p", "EPOCHS=7")[2]
    assert "heads_epochs: expected a whole number (int); got 'x'" in kitlib("train", "mv", "-p", "HEADS_EPOCHS=x")[2]
    assert "expected one of multiview, retrieval, regional, ridge, vlm" in kitlib("train", "mv", "--family", "dance")[2]
    assert kitlib("train", "mv", "--seeds", "0,0")[0] == kitlib("train", "mv", "--folds", "a")[0] == 2
    assert len(calls) == 2


@pytest.mark.slow
def test_help_and_plans_import_nothing_heavy():
    heavy = (
        "{'torch', 'pandas', 'scipy', 'papermill', 'nbformat', 'nbconvert', 'matplotlib', 'rich'} & set(sys.modules)"
    )
    for words in (["--help"], ["plans"]):
        program = (
            "import sys\nfrom kitlib.__main__ import main\n"
            f"sys.argv = ['kitlib', *{words}]\n"
            f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\nassert not {heavy}, {heavy}"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
