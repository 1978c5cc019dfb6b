"""A plan's training steps as independent jobs, for an engine that exists: submitit (Slurm, this machine) or Modal.

A job is a command of the kit, `kitlib embed … --shard 0/4` or `kitlib train RUN … --folds 2`, with exactly the
settings that the plan's notebook would use. Each resumes when it is run again; a fold that is done is no job. When all
are there, `kitlib run PLAN` finds the folds done and goes on.
"""

from __future__ import annotations

import ast
import logging
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from kitlib.core import checks, paths, processes
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import fold_files, runs
from kitlib.pipeline import plans
from kitlib.pipeline.notebook import Notebook
from kitlib.training import options

log = logging.getLogger(__name__)

WEEK = 7 * 24  # hours
UNSUPPORTED = {"OVERWRITE": False, "TABLES": "{}"}  # parameters of notebooks that `kitlib train` lacks


@dataclass(frozen=True)
class Job:
    """A command of the kit, as the words after `kitlib`."""

    name: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line, to run it by hand."""
        return shlex.join(("kitlib", *self.words))


@dataclass(frozen=True)
class Run:
    """A run that a step trains."""

    name: str
    family: str
    config: Any
    values: Mapping[str, Any]  # of the step's parameters


def expand(plan: str, given: Mapping[str, str] | None = None, shards: int = 1) -> list[list[Job]]:
    """The jobs of a plan that are not done, in stages: those of a stage are independent of one another.

    shards: into how many jobs the embedding by each encoder is divided. Raises KitError for a plan that trains nothing,
    or with parameters that jobs cannot pass on.
    """
    stages: list[list[Job]] = [[]]
    stage_of: dict[str, int] = {}
    mirrored: dict[tuple[str, str, int], bool] = {}  # data, encoder, image size
    for run in runs_of(plan, given):
        config = asdict(run.config)
        for encoder in paths.joined(config["encoder"]) if config.get("encoder") else []:
            key = str(run.values["DATA"]), encoder, config["image_size"]
            mirrored[key] = mirrored.get(key, False) or (config["mirror"] and not options.learns(config))
        stage = 1 + max((stage_of.get(str(config.get(name)), 0) for name in ("router", "start_from")), default=0)
        n_folds, todo = run.values["FOLDS"], folds_of(run)
        refit = [fold for fold in todo if fold == n_folds]  # it needs the folds
        parts = [[fold for fold in todo if fold < n_folds], *([refit] if refit else [])]
        stage_of[run.name] = stage + len(parts) - 1
        stages += [[] for _ in range(stage + len(parts) - len(stages))]
        for later, part in enumerate(parts):
            stages[stage + later] += _training(run, config, part)
    if not stage_of:
        raise KitError(f"plan {plan}: expected steps that train; got none")
    stages[0] = [_embedding(*key, mirror, f"{k}/{shards}") for key, mirror in mirrored.items() for k in range(shards)]
    return stages if any(stages[1:]) else []


def runs_of(plan: str, given: Mapping[str, str] | None = None, preset_only: bool = False) -> list[Run]:
    """The runs that a plan trains, with the Configs that its notebooks make.

    preset_only: do not read the data, which may be elsewhere: all but `sample` are taken for photographs.
    """
    return [run for step in plans.check(plan, given)[2] for run in _runs(step, preset_only)]


def _runs(step: plans.Ready, preset_only: bool) -> list[Run]:
    """The runs that a step trains; none of a step that trains nothing."""
    book = step.notebook
    if book.config is None:
        return []
    values = {name: parameter.default for name, parameter in book.parameters.items()} | step.values
    for name, only in UNSUPPORTED.items():
        if values.get(name, only) != only and not preset_only:
            raise KitError(f"{step.name}: {name}: expected {only!r} in jobs; got {values[name]!r}: run the step itself")
    maker, fixed = _maker(book)
    name, more, data = str(values["RUN"]), str(values["MORE"]), str(values["DATA"])
    guessed = "sample" if data == "sample" else ""
    preset = guessed if preset_only else readers.load(data).preset
    family = book.config.__module__.split(".")[2]
    if maker == "from_parameters":
        return [Run(name, family, book.config.from_parameters(values, more, preset, **fixed), values)]
    methods = list(dict.fromkeys([values["METHOD"], *checks.names("ALSO", str(values["ALSO"]))]))
    configs = book.config.for_methods(methods, values, more, preset)  # type: ignore[attr-defined]
    names = {method: name if method == values["METHOD"] else f"{name}-{method}" for method in methods}
    return [Run(names[method], family, config, values) for method, config in configs.items()]


def _maker(book: Notebook) -> tuple[str, dict[str, Any]]:
    """How a notebook makes its Config: the function, and the settings that it fixes."""
    for node in ast.walk(ast.parse(book.code)):
        if isinstance(node, ast.Call) and (found := re.search(r"Config\.(\w+)$", ast.unparse(node.func))):
            return found.group(1), {word.arg or "": ast.literal_eval(word.value) for word in node.keywords}
    raise KitError(f"{book.name}: expected a call of Config.from_parameters; got none")


def _embedding(data: str, encoder: str, image_size: int, mirror: bool, shard: str) -> Job:
    words = ["embed", data, "--encoder", encoder, "--image-size", str(image_size), *(["--mirror"] if mirror else [])]
    return Job(f"{encoder}, shard {shard}", (*words, "--shard", shard))


def folds_of(run: Run) -> list[int]:
    """The folds that a run is to train, the refit last."""
    only = checks.whole_numbers("ONLY_FOLDS", run.values["ONLY_FOLDS"])
    n_models = fold_files.count(asdict(run.config) | {"n_folds": run.values["FOLDS"]})
    return [0] if run.values["FOLDS_COLUMN"] == "given" else only or list(range(n_models))


def _training(run: Run, config: Mapping[str, Any], folds: Sequence[int]) -> list[Job]:
    """One job a fold, or a fold and region, that is not done."""
    values = run.values
    regions = checks.names("ONLY_REGIONS", values.get("ONLY_REGIONS", "")) or [""]
    known = runs.open_run(run.name) if run.name in runs.list_runs() else None
    jobs = []
    for fold in [fold for fold in folds if not (known and fold_files.is_done(known, fold))]:
        words = ["train", run.name, "--family", run.family, "--data", values["DATA"], "--folds", str(fold)]
        words += ["--folds-column", values["FOLDS_COLUMN"], "--n-folds", str(values["FOLDS"])]
        words += ["--devices", str(values["DEVICES"] or 1)]
        words += ["--max-hours", str(values["MAX_HOURS"])] if values["MAX_HOURS"] else []
        settings = [f"{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in config.items() if n != "seed"]
        words += ["--seeds", str(config["seed"]), *(word for setting in settings for word in ("-p", setting))]
        for region in regions:
            more = ["--regions", region] if region else []
            name = f"{run.name} fold {fold}" + (f" region {region}" if region else "")
            jobs.append(Job(name, (*words, *more)))
    return jobs


def run_words(words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run `kitlib WORDS` in a process of its own, which ends with this one and saves before.

    Raises KitError with the last line of its log if it fails.
    """
    last = ""
    command = [sys.executable, "-c", processes.COMMAND, *words]
    pipe: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, **pipe, env=os.environ | (environment or {}), start_new_session=True) as process:
        try:
            for line in process.stderr or ():
                print(line, end="", file=sys.stderr, flush=True)  # noqa: T201 (the job's log)
                last = line.strip() or last
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise KitError(last.removeprefix("error: ") or f"it ended with code {process.returncode}")


class Command:
    """A job for submitit, which queues it again when Slurm takes the machine away or its time is up."""

    def __call__(self, words: Sequence[str]) -> None:
        """Run `kitlib WORDS`."""
        run_words(words)

    def checkpoint(self, words: Sequence[str]) -> Any:
        """What submitit queues again: the same, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)


def failures(engine: Iterator[tuple[Job, str]]) -> dict[Job, str]:
    """Log each job as it ends; return those that failed, with the reason."""
    failed = {}
    for job, reason in engine:
        log.info("%s: %s", job.name, reason or "done")
        if reason:
            failed[job] = reason
    return failed


def on_this_machine(jobs: Sequence[Job], at_once: int, devices: int, hours: float = WEEK) -> Iterator[tuple[Job, str]]:
    """Run jobs by submitit's local executor, `at_once` at a time, each with GPUs of its own where there are any."""
    import submitit
    import torch

    gpus, free = torch.cuda.device_count(), queue.SimpleQueue[int]()
    for slot in range(at_once):
        free.put(slot)
    running: dict[int, Any] = {}

    def run(job: Job) -> str:
        slot = free.get()
        try:
            executor = submitit.LocalExecutor(folder=_logs())
            mine = [(slot * devices + k) % gpus for k in range(devices)] if gpus else []
            executor.update_parameters(timeout_min=60 * hours, gpus_per_node=len(mine), visible_gpus=mine)
            running[slot] = executor.submit(Command(), job.words)
            return _ended(running[slot])
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(at_once)
    try:
        yield from zip(jobs, pool.map(run, jobs), strict=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for one in running.values():
            one.cancel()
        raise


def on_slurm(jobs: Sequence[Job], at_once: int, devices: int, hours: float, more: Mapping[str, str]) -> Iterator[tuple[Job, str]]:  # fmt: skip  # noqa: E501
    """Run jobs as one Slurm array by submitit; more: further options of sbatch, such as partition."""
    import submitit

    if not shutil.which("srun"):
        raise KitError("expected Slurm's commands (srun, sbatch) on this machine; got none: log in to the cluster")
    executor = submitit.SlurmExecutor(folder=_logs(), max_num_timeout=100)
    ours = {"job_name": "kitlib", "time": int(60 * hours), "gpus_per_node": devices, "ntasks_per_node": 1}
    try:
        executor.update_parameters(**ours, array_parallelism=at_once, **more)
    except ValueError as error:
        raise KitError(f"--slurm: expected options of sbatch as submitit names them; got {dict(more)}") from error
    handles = executor.map_array(Command(), [job.words for job in jobs])
    log.info("Slurm array %s: %d jobs", handles[0].job_id.partition("_")[0], len(jobs))
    for job, handle in zip(jobs, handles, strict=True):
        yield job, _ended(handle)


def _ended(handle: Any) -> str:
    """Wait for a job of submitit; the reason if it failed, and its log."""
    import submitit

    try:
        handle.result()
        return ""
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "KitError: " in line), lines[-1] if lines else "no result")
        return f"{reason.rpartition('KitError: ')[2].strip()} (log: {paths.relative(handle.paths.stderr)})"


def _logs() -> Any:
    return paths.runs_dir() / "jobs"
