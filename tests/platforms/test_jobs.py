"""Jobs of a plan: what they are, and submitit running them here and by Slurm's commands, in real processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from kitlib import __main__ as cli
from kitlib.core.errors import KitError
from kitlib.evaluation import runs
from kitlib.platforms import jobs

pytest.importorskip("submitit")

GOOD, BAD = jobs.Job("good", ("plans",)), jobs.Job("bad", ("run", "nothing"))


def plan(folder: Path, data: Path, *steps: dict, **parameters) -> str:
    content = {"description": "x", "parameters": {"DATA": str(data), "FOLDS": 3, **parameters}, "steps": list(steps)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


def test_a_plan_becomes_jobs_in_stages(home, small_sample):
    steps = [
        {"notebook": "00_eda"},
        {"notebook": "10_train_multiview", "parameters": {"RUN": "a", "DROPOUT": 0.25, "MORE": "{refit: true}"}},
        {"notebook": "11_train_retrieval", "parameters": {"RUN": "b", "ALSO": "knn", "ONLY_FOLDS": "2"}},
        {"notebook": "12_train_regional", "parameters": {"RUN": "c", "ROUTER": "a", "ONLY_FOLDS": "0"}},
    ]
    path = plan(home, small_sample, *steps)
    stages = jobs.expand(path, {"SEED": "4", "DEVICES": "2"}, shards=2)
    names = [[job.name for job in stage] for stage in stages]
    assert names[0] == ["tiny, shard 0/2", "tiny, shard 1/2"]
    assert names[1:] == [["a fold 0", "a fold 1", "a fold 2", "b fold 2", "b-knn fold 2"],
                         ["a fold 3"], ["c fold 0"]]  # fmt: skip
    first = " ".join(stages[1][0].words)
    assert "--folds 0" in first and "--n-folds 3" in first and "--devices 2 --seeds 4" in first
    assert "-p dropout=0.25" in first and "-p finetune_rate=0.001" in first  # given; of the preset


def test_a_job_has_the_very_settings_of_the_notebook(home, small_sample):
    from kitlib.models import multiview

    path = plan(home, small_sample, {"notebook": "10_train_multiview", "parameters": {"MORE": "{vary: 0.5}"}})
    [run] = jobs.runs_of(path)
    words = jobs.expand(path)[1][0].words
    settings = cli.pairs([words[i + 1] for i, word in enumerate(words) if word == "-p"])
    assert multiview.Config.from_dict(multiview.Config.typed(settings), "sample") == run.config
    assert run.config.vary == 0.5


def test_what_is_done_is_no_job(home, small_sample):
    path = plan(home, small_sample, {"notebook": "10_train_multiview", "parameters": {"RUN": "a"}})
    run = runs.start("a", {}, data={})
    for fold in range(3):
        (run.checkpoints / f"fold_{fold}").mkdir(parents=True)
        assert [job.name for job in jobs.expand(path)[1]] == [f"a fold {k}" for k in range(fold, 3)]
        (run.checkpoints / f"fold_{fold}" / "oof.npz").touch()
    assert jobs.expand(path) == []


def test_what_jobs_cannot_pass_on_is_refused(home, small_sample):
    with pytest.raises(KitError, match="OVERWRITE: expected False in jobs"):
        jobs.expand(plan(home, small_sample, {"notebook": "10_train_multiview"}), {"OVERWRITE": "true"})
    with pytest.raises(KitError, match="expected steps that train"):
        jobs.expand(plan(home, small_sample, {"notebook": "00_eda"}))


def test_words_of_the_commands(home, small_sample, monkeypatch, capsys):
    def call(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["kitlib", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    for shard in ("4/4", "1", "a/b", "/", "-1/4", "1/0", "1/" + "9" * 20):
        code, _, err = call("embed", "sample", "--encoder", "tiny", "--shard", shard)
        assert code == 2 and err.startswith("error: --shard: expected NUMBER/SHARDS") and err.count("\n") == 1
    assert call("jobs", "sample", "--on", "mars")[2].startswith("error: --on: expected one of local, slurm, modal")
    path = plan(home, small_sample, {"notebook": "10_train_multiview", "parameters": {"RUN": "a"}})
    code, out, _ = call("jobs", path, "--show", "-p", "ONLY_FOLDS=1", "--shards", "3")
    assert code == 0 and [line.split()[1] for line in out.splitlines()] == ["embed"] * 3 + ["train"]


@pytest.mark.slow
def test_two_processes_of_submitit_one_of_which_fails(home):
    failed = jobs.failures(jobs.on_this_machine([GOOD, BAD], at_once=2, devices=1))
    assert list(failed) == [BAD] and failed[BAD].startswith("there is no plan 'nothing'; expected ")
    assert "(log: data/runs/jobs/" in failed[BAD]
    assert len(list((home / "data/runs/jobs").glob("*_result.pkl"))) == 2
    assert runs.list_runs() == []  # the folder of logs is no run


STAND_INS = {
    "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = --output -o "$1" = --error ] && shift; shift; done; exec "$@"',
    "sbatch": """cp "$1" "$STATE/script"
grep '^#SBATCH' "$1" > "$STATE/options"
echo "Submitted batch job 77"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for k in $(seq 0 $last); do
  (
    export SLURM_JOB_ID=$((100 + k)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$k SLURM_JOB_NUM_NODES=1
    export SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
    sh "$STATE/script" > /dev/null 2>> "$STATE/err.$k"
    echo "77_$k" >> "$STATE/done"
  ) > /dev/null 2>&1 &
done""",
    "sacct": """echo "JobID|State|NodeList"
for k in 0 1; do
  grep -q "77_$k" "$STATE/done" 2> /dev/null && echo "77_$k|COMPLETED|here" || echo "77_$k|RUNNING|here"
done""",
}


@pytest.mark.slow
def test_an_array_of_slurm(home, tmp_path, monkeypatch):
    (bin_folder := tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path))
    failed = jobs.failures(jobs.on_slurm([GOOD, BAD], 2, 4, 1.5, {"partition": "gpu"}))
    assert list(failed) == [BAD] and failed[BAD].startswith("there is no plan 'nothing'; expected ")
    options = (tmp_path / "options").read_text()
    for option in ("--array=0-1%2", "--gpus-per-node=4", "--time=90", "--partition=gpu"):
        assert option in options
    with pytest.raises(KitError, match=r"--slurm: .*colour"):
        list(jobs.on_slurm([GOOD], 1, 1, 1, {"colour": "red"}))


def test_slurm_where_there_is_none_is_one_sentence(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(KitError, match=r"expected Slurm's commands \(srun, sbatch\) on this machine"):
        list(jobs.on_slurm([GOOD], 1, 1, 1, {}))
