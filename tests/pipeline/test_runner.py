"""Plans run for real, by papermill in real kernels: skipping, failing, stopping, going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest
from notebook_helper import code, headline, parameters, prose, write_notebook, write_plan

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.pipeline import plans, runner

pytestmark = pytest.mark.slow

COUNT = (
    "from pathlib import Path\ntally = Path({!r})\ntally.write_text(tally.read_text() + 'x' if tally.exists() else 'x')"
)


@pytest.fixture
def plan(home, monkeypatch):
    """Two steps; each leaves an "x" in a tally when it runs, the first writes out.txt, the second obeys MOOD."""
    monkeypatch.setattr(runner, "_code_digest", lambda: "kitlib as it is")
    first = [
        prose("# 00 · First\n\n*What is there?*"),
        parameters("N: int = 3  # letters"),
        prose("## Write\n\nLook at the file."),
        code(COUNT.format(str(home / "first"))),
        code(f"Path({str(home / 'out.txt')!r}).write_text('a' * N)"),
        headline("letters", "str(N)", "['out.txt']"),
    ]
    second = [
        prose("# 01 · Second"),
        parameters('MOOD: str = ""  # what goes wrong\nSECONDS: float = 0.0  # of sleep'),
        code("import sys\nprint('heard from the kernel', file=sys.stderr)"),
        code(COUNT.format(str(home / "second"))),
        code("from kitlib import KitError\nif MOOD == 'user':\n    raise KitError('MOOD is user: allowed is none')"),
        code("if MOOD == 'bug':\n    1 / 0\nif MOOD == 'dead':\n    import os\n    os._exit(9)"),
        code(
            f"import time\nPath({str(home / 'asleep')!r}).touch()\n"
            "try:\n    time.sleep(SECONDS)\nexcept KeyboardInterrupt:\n"
            f"    Path({str(home / 'saved')!r}).write_text('saved')"
        ),
        headline("mood", "MOOD or 'good'"),
    ]
    write_notebook(home / "00_first.ipynb", *first)
    write_notebook(home / "01_second.ipynb", *second)
    return write_plan(home / "demo.yaml", "00_first 01_second")


def ran(home):
    """How often the two steps have run."""
    return tuple(len((home / name).read_text()) if (home / name).exists() else 0 for name in ("first", "second"))


def test_parameters_are_recorded_without_folders_and_the_same_file_is_the_same(plan, home, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("confidential") for _ in range(2)]
    for folder in folders:
        (folder / "m.pth").touch()
    made = []
    for folder in folders:
        _, _, steps = plans.check(plan, {"MOOD": f"timm:x@{folder}/m.pth"})
        assert runner._blank_record(steps[1])["parameters"] == {"MOOD": "timm:x@m.pth"}
        made.append(runner._made_from(steps)["01_second"]["a parameter"])
    assert made[0] == made[1]


def test_runs_then_skips_what_is_unchanged(plan, home, capfd, caplog):
    caplog.set_level("INFO", "kitlib")
    report = runner.run_plan(plan, {"N": "5"})
    folder = home / "data/runs/demo"
    assert report == folder / "report.html"
    assert (home / "out.txt").read_text() == "aaaaa"
    assert "heard from the kernel" in capfd.readouterr().err
    assert sorted(p.name for p in folder.iterdir() if p.suffix in (".ipynb", ".html")) == [
        "00_first.html", "00_first.ipynb", "01_second.html", "01_second.ipynb", "report.html",
    ]  # fmt: skip
    assert str(home) not in report.read_text() and str(paths.checkout()) not in report.read_text()
    steps = json.loads((folder / "plan.json").read_text())["steps"]
    assert [step["headline"]["value"] for step in steps] == ["5", "good"]
    executed = (folder / "00_first.ipynb").read_text()
    assert "N = 5" in executed and str(home) not in json.loads(executed)["metadata"]["papermill"].values()

    written = report.stat().st_mtime_ns
    runner.run_plan(plan, {"N": "5"})
    assert ran(home) == (1, 1) and report.stat().st_mtime_ns == written

    (home / "out.txt").write_text("spoilt")  # what a step wrote is not as it left it: it and what follows run again
    runner.run_plan(plan, {"N": "5"})
    assert ran(home) == (2, 2) and (home / "out.txt").read_text() == "aaaaa"
    [kept] = folder.glob("report-20*.html")  # the earlier report, by its date
    assert kept.stat().st_mtime_ns == written and report.stat().st_mtime_ns > written
    assert "step 1 of 2 · 00_first · First · changed since: out.txt" in caplog.text

    runner.run_plan(plan, {"N": "5", "SECONDS": "0.1"})  # only the second step takes SECONDS
    assert ran(home) == (2, 3)
    assert "step 2 of 2 · 01_second · Second · a parameter changed" in caplog.text
    runner.run_plan(plan, {"N": "5", "SECONDS": "0.1"}, start_from="01_second")
    assert ran(home) == (2, 4)
    write_plan(plan, "01_second")  # what it stands on is another plan's now
    runner.run_plan(plan, {"SECONDS": "0.1"})
    assert ran(home) == (2, 5)
    with pytest.raises(KitError, match="--from: expected one of the plan's steps 01_second"):
        runner.run_plan(plan, start_from="02_third")


def test_a_step_that_looks_at_runs_follows_them(home):
    for name in ("one", "other"):
        (home / "data/runs" / name).mkdir(parents=True)
        (home / "data/runs" / name / "params.json").write_text("{}")
    metrics = home / "data/runs/one/metrics.json"
    write_notebook(home / "20_look.ipynb", parameters('RUNS: str = ""  # runs'), headline("runs", "RUNS"))
    step = plans.check(write_plan(home / "look.yaml", "20_look"))[2][0]
    record = {"headline": {"wrote": ["submissions/a.json", "out.csv"]}}
    seen = runner._files(step, record)
    assert list(seen) == ["out.csv", "data/runs/one/metrics.json", "data/runs/other/metrics.json"]
    assert set(seen.values()) == {"missing"}
    metrics.write_text("{}")
    assert runner._files(step, record)["data/runs/one/metrics.json"] != "missing"
    step = plans.check(home / "look.yaml", {"RUNS": "other, one"})[2][0]
    assert list(runner._files(step, record))[1:] == ["data/runs/other/metrics.json", "data/runs/one/metrics.json"]
    write_notebook(home / "20_look.ipynb", parameters('COMPARE: str = ""  # a run'), headline("runs", "COMPARE"))
    step = plans.check(home / "look.yaml")[2][0]
    assert list(runner._files(step, record)) == ["out.csv"]
    step = plans.check(home / "look.yaml", {"COMPARE": "one"})[2][0]
    assert list(runner._files(step, record))[1:] == ["data/runs/one/metrics.json"]


def test_everything_is_checked_before_anything_runs(plan, home):
    write_notebook(home / "02_third.ipynb", code("N: int = 1"))
    write_plan(plan, "00_first 01_second 02_third")
    with pytest.raises(KitError, match="02_third"):
        runner.run_plan(plan)
    write_notebook(home / "02_third.ipynb", parameters('DATA: str = "nowhere"'))
    with pytest.raises(KitError, match="nowhere"):
        runner.run_plan(plan)
    assert ran(home) == (0, 0)


def test_a_failed_step_is_kept_and_the_next_run_goes_on(plan, home):
    folder = home / "data/runs/demo"
    with pytest.raises(KitError) as refused:
        runner.run_plan(plan, {"MOOD": "user"})
    assert str(refused.value) == "MOOD is user: allowed is none"
    assert "error: MOOD is user" in (folder / "01_second.failed.ipynb").read_text()
    assert "MOOD is user" in (folder / "01_second.failed.html").read_text()
    assert "MOOD is user" in (folder / "report.html").read_text()
    with pytest.raises(runner.StepFailed, match=r"ZeroDivisionError.*01_second, cell 6; .*01_second.failed.html"):
        runner.run_plan(plan, {"MOOD": "bug"})
    assert "Traceback" in (folder / "01_second.failed.ipynb").read_text()
    with pytest.raises(runner.StepFailed, match="kernel died"):
        runner.run_plan(plan, {"MOOD": "dead"})
    runner.run_plan(plan)
    assert ran(home) == (1, 4)
    assert not (folder / "01_second.failed.ipynb").exists()


def test_a_file_that_a_step_only_claims_to_have_written_is_an_error(home):
    write_notebook(home / "00_liar.ipynb", parameters(""), headline("truth", "'0'", "['never.txt']"))
    with pytest.raises(runner.StepFailed, match=r"lists never.txt, which does not exist"):
        runner.run_plan(write_plan(home / "lie.yaml", "00_liar"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_plan_lets_the_cell_save_and_goes_on_later(plan, home, number):
    def stop_when_asleep():
        while not (home / "asleep").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_asleep, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run_plan(plan, {"SECONDS": "120"})
    assert (home / "saved").read_text() == "saved"
    folder = home / "data/runs/demo"
    assert (folder / "01_second.failed.ipynb").exists() and not (folder / "01_second.ipynb").exists()
    assert 'status interrupted">interrupted' in (folder / "report.html").read_text()
    runner.run_plan(plan)
    assert ran(home) == (1, 2)


def test_the_key_follows_kitlib_but_not_what_notebooks_cannot_reach(tmp_path, monkeypatch):
    package = tmp_path / "kitlib"
    shutil.copytree(paths.package_dir(), package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "package_dir", lambda: package)
    before = runner._code_digest()
    (package / "pipeline/report.py").write_text("")
    (package / "models/vlm/dashboard/watch.css").write_text("")
    (package / "geo/README.md").write_text("")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/geo.cpython-311.pyc").write_text("")
    assert runner._code_digest() == before
    (package / "deeper/still").mkdir(parents=True)
    for file in ("geo/sphere.py", "models/regional/divisions.csv", "geo/states-10m.json", "deeper/still/new.py"):
        (package / file).write_text("")
        assert runner._code_digest() != before, file
        before = runner._code_digest()


def test_what_is_left_out_of_the_key_is_there():
    missing = [name for name in runner.ORCHESTRATION if not (paths.package_dir() / name).exists()]
    assert missing == []


def damaged_records():
    good = dict.fromkeys(runner.RECORD_TEXTS, "") | {"parameters": {}, "made_from": {}, "files": {}}
    good["headline"] = {"label": "", "value": "", "wrote": []}
    yield from (
        b"",
        b"\x80",
        b'{"steps": [',
        b"[]",
        b"null",
        b"{}",
        b'{"steps": null}',
        b'{"steps": 3}',
        b'{"steps": [3]}',
    )
    for name in good:  # as by another version of the kit
        yield json.dumps({"steps": [{key: value for key, value in good.items() if key != name}]}).encode()
    yield json.dumps({"steps": [good | {"headline": {"label": "", "value": "", "wrote": None}}]}).encode()


@pytest.mark.parametrize("content", damaged_records())
def test_a_record_of_any_content_means_that_the_steps_run_anew(tmp_path, content, caplog):
    (tmp_path / "plan.json").write_bytes(content)
    assert runner._read_state(tmp_path) == {} and "all steps run" in caplog.text


def test_two_runs_of_a_plan_at_once_are_refused(plan, home):
    with storage.lock(paths.run_dir("demo") / ".lock"), pytest.raises(KitError, match="being run by another process"):
        runner.run_plan(plan)
    assert ran(home) == (0, 0)


def test_the_key_follows_the_data_and_the_files_named_in_values(home):
    data = home / "data/raw/some"
    (data / "pictures").mkdir(parents=True)
    (data / "table.csv").write_text("a\n1\n")
    (home / "elsewhere").mkdir()
    (home / "elsewhere/far.jpg").write_text("")
    (data / "linked").symlink_to(home / "elsewhere")
    (home / "elsewhere/back").symlink_to(data)
    (data / "nowhere").symlink_to(home / "nowhere")
    os.mkfifo(data / "pipe.csv")
    weights = home / "weights.safetensors"
    weights.write_text("1")
    cell = f'DATA: str = "some"  # data\nENCODER: str = "timm:tiny@{weights}"  # encoder'
    write_notebook(home / "00_read.ipynb", parameters(cell))
    steps = plans.check(write_plan(home / "read.yaml", "00_read"))[2]
    seen = [runner._data_signatures(steps)]
    for change in (
        lambda: (data / "table.csv").write_text("a\n2\n"),
        lambda: (data / "pictures/new.jpg").write_text(""),
        lambda: (data / "pictures/new.jpg").write_text("in place, of another size"),
        lambda: os.utime(data / "pictures/new.jpg", ns=(1, 1)),
        lambda: (home / "elsewhere/far.jpg").write_text("behind a link"),
        lambda: weights.write_text("2"),
    ):
        assert runner._data_signatures(steps) == seen[-1]
        change()
        seen.append(runner._data_signatures(steps))
        assert seen[-1] not in seen[:-1]


def test_duration():
    assert [runner.duration(s) for s in (0.04, 59.94, 61, 3599, 7325)] == [
        "0.0 s", "59.9 s", "1 min 1 s", "59 min 59 s", "2 h 2 min",
    ]  # fmt: skip
