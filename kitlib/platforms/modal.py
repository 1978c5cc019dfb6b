"""Run a plan, or a job of one, on Modal: `modal run -m kitlib.platforms.modal --plan kaggle --gpu H100`.

The plain functions do the work with any folder as home; the decorated ones call them in a container whose home is a
volume. The volume is committed whenever a run has written a file, so a container that is taken away costs the minutes
since its last checkpoint: Modal starts another one, and the same command resumes.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import modal
from modal.types import FileEntryType

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.platforms import effort, jobs

HOME = "/vol"
DAY = 24 * 3600
LOOK_SECONDS = 10.0  # between two looks for new files to commit

# ------ the work, in any folder


def work(words: Sequence[str], home: Path, commit: Callable[[], None]) -> None:
    """Run `kitlib WORDS` with data and runs in `home`, and commit whatever runs have written as they write it.

    Raises KitError with the command's last line if it fails.
    """
    with committing(home, commit):
        jobs.run_words(words, {"KITLIB_HOME": str(home)})


@contextlib.contextmanager
def committing(home: Path, commit: Callable[[], None]) -> Iterator[None]:
    """Call `commit` whenever a file of a run has changed, and at the end."""
    done = threading.Event()

    def watch() -> None:
        before = _latest(home)
        while not done.wait(LOOK_SECONDS):
            if (now := _latest(home)) != before:
                commit()
                before = now

    thread = threading.Thread(target=watch, name="commit", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        commit()


def _latest(home: Path) -> tuple[int, int]:
    """The number of the files of all runs and features, and the time of the latest change."""
    times = [0]
    for file in (home / "data").rglob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            times.append(file.stat().st_mtime_ns)
    return len(times), max(times)


def packed(folder: Path, out: Path) -> Path:
    """A data set as one file: itself if it is a .zip, else a .zip of the folder in `out`, pictures as they are."""
    if folder.is_file():
        return folder
    file = out / f"{folder.name}.zip"
    with storage.atomic_write(file) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    return file


def from_kaggle(competition: str, home: Path, name: str) -> Path:
    """Download a competition's data by Kaggle's client as data/raw/<name>.zip. Raises KitError with what it says."""
    file = home / "data" / "raw" / f"{name}.zip"
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["kaggle", "competitions", "download", "-c", competition, "-p", str(file.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    zipped = file.parent / f"{competition}.zip"
    if done.returncode or not zipfile.is_zipfile(zipped):
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise KitError(f"Kaggle's client gave no data of {competition}: {said[-1] if said else 'it says nothing'}")
    return zipped.replace(file)


def estimate(plan: str, given: Mapping[str, str], gpu: str) -> str:
    """Hours and money of a plan on a GPU, from the work of its encoders and Modal's listed price; a rough estimate."""
    name, _, number = gpu.partition(":")
    table = storage.read_json(paths.package_dir() / "platforms" / "modal_prices.json")
    if name not in table["gpus"]:
        return f"no estimate: the table of prices has {', '.join(table['gpus'])}, not {name}"
    gpus, row = int(number or 1), table["gpus"][name]
    hours, unknown = effort.hours(plan, given, row["tflops"] * gpus)
    text = f"about {hours:.1f} hours and {hours * gpus * row['dollars_an_hour']:.0f} dollars on {gpu}"
    return f"{text}: {effort.BASIS}, prices of {table['date']}{unknown}"


# ------ the same in Modal's containers

checkout = paths.checkout()
app = modal.App("kitlib", include_source=False)  # all files of kitlib are added below, not only its modules
volume = modal.Volume.from_name("kitlib", create_if_missing=True, version=2)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(requirements=[str(checkout / "requirements.lock")])
    .env({"KITLIB_HOME": HOME, "HF_HOME": f"{HOME}/huggingface", "KITLIB_TRACKER": ",".join(paths.trackers())})
    .add_local_dir(checkout / "kitlib", "/root/kitlib", ignore=["**/__pycache__"])
    .add_local_dir(checkout / "notebooks", "/root/notebooks")
    .add_local_file(checkout / "pyproject.toml", "/root/pyproject.toml")
)
resumes = modal.Retries(initial_delay=0.0, max_retries=10)


@app.function(image=image, gpu="H100", volumes={HOME: volume}, timeout=DAY, retries=resumes)
def command(words: list[str]) -> None:
    """Run `kitlib WORDS`."""
    volume.reload()
    work(words, Path(HOME), volume.commit)


@app.function(image=image, volumes={HOME: volume}, timeout=DAY)
def fetch(competition: str, name: str) -> None:
    """Put a competition's data on the volume; it needs a secret with KAGGLE_API_TOKEN."""
    from_kaggle(competition, Path(HOME), name)
    volume.commit()


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn what Modal says of a missing token into a KitError."""
    try:
        yield
    except modal.exception.AuthError as error:
        raise KitError(f"Modal: {' '.join(str(error).split())}") from None


@app.local_entrypoint()
def main(
    plan: str = "kaggle",
    gpu: str = "H100",
    p: str = "",
    kaggle_secret: str = "",
    yes: bool = False,
    only_download: bool = False,
) -> None:
    """Run a plan, then download its runs and submissions, or only download what is there.

    p: parameters, "NAME=VALUE NAME=VALUE". kaggle_secret: the secret to download the data with.
    """
    if only_download:
        return download()
    try:
        given = dict(pair.split("=", 1) for pair in shlex.split(p) if "=" in pair)
        if len(given) < len(shlex.split(p)):
            raise KitError(f"--p: expected NAME=VALUE NAME=VALUE, each name once; got {p!r}")
        confirm(plan, given, gpu, yes)
        bring(plan, given, kaggle_secret)
        command.with_options(gpu=gpu).spawn(plan_words(plan, given)).get()  # `.remote()` would expire after a day
        download()
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def confirm(plan: str, given: Mapping[str, str], gpu: str, yes: bool) -> None:
    """Print the estimate and ask. Raises KitError for a no."""
    print(estimate(plan, given, gpu))  # noqa: T201
    if not yes and input("Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise KitError("not started")


def plan_words(plan: str, given: Mapping[str, str]) -> list[str]:
    """The command that runs a plan in a container. Raises KitError for a plan's file, which is not in the image."""
    if not (paths.plans_dir() / f"{plan}.yaml").is_file():
        raise KitError(f"expected a plan of notebooks/plans, which the image holds; got {plan!r}")
    return ["run", plan, *(word for name, value in given.items() for word in ("-p", f"{name}={value}"))]


def bring(plan: str, given: Mapping[str, str], kaggle_secret: str) -> None:
    """Bring a plan's data sets to the volume, each as one .zip, from Kaggle or from here, unless they are there.

    Raises KitError for one that is not a name under data/raw, by which it is found on the volume too.
    """
    for data in sorted({str(run.values["DATA"]) for run in jobs.runs_of(plan, given, preset_only=True)} - {"sample"}):
        paths.file_name(data, "DATA, on Modal a name under data/raw")
        if f"{data}.zip" in _names("data/raw"):
            continue
        if kaggle_secret:
            secret = modal.Secret.from_name(kaggle_secret)
            fetch.with_options(secrets=[secret]).remote(paths.COMPETITION, data)
            continue
        file = packed(paths.find_data(data), paths.derived_dir("modal"))
        with volume.batch_upload() as batch:
            batch.put_file(file, f"/data/raw/{data}.zip")


def download() -> None:
    """Download runs (without the checkpoints of unfinished fits) and submissions to this machine's home."""
    for folder in ("data/runs", "submissions"):
        for entry in volume.listdir(f"/{folder}", recursive=True) if _names(folder) else []:
            if entry.type == FileEntryType.FILE and not entry.path.endswith((".ckpt", ".lock")):
                with storage.atomic_write(paths.home() / entry.path) as beside, beside.open("wb") as out:
                    for block in volume.read_file(entry.path):
                        out.write(block)


def _names(folder: str) -> set[str]:
    """The names of what is in a folder of the volume; none of one that does not exist."""
    try:
        return {entry.path.rpartition("/")[2] for entry in volume.listdir(f"/{folder}")}
    except modal.exception.NotFoundError:
        return set()


def on_modal(stage: Sequence[jobs.Job], gpu: str, devices: int) -> Iterator[tuple[jobs.Job, str]]:
    """Run independent jobs, each in a container of its own; then join the folds of each run, which no one has seen all.

    A volume keeps only one of two containers' versions of a file: no two jobs may write the same one.
    """
    wanted = f"{gpu}:{devices}" if devices > 1 and ":" not in gpu else gpu
    with one_sentence(), modal.enable_output(), app.run():
        run = command.with_options(gpu=wanted)
        for jobs_now in (stage, joining(stage)):
            results = run.map([list(job.words) for job in jobs_now], return_exceptions=True)
            for job, result in zip(jobs_now, results, strict=True):
                yield job, str(result) if isinstance(result, Exception) else ""


def joining(stage: Sequence[jobs.Job]) -> list[jobs.Job]:
    """For each run of several jobs, the job that trains all their folds, and so only joins them."""
    by_run: dict[str, list[jobs.Job]] = {}
    for job in stage:
        if job.words[0] == "train":
            by_run.setdefault(job.words[1], []).append(job)
    joined = []
    for name, its in by_run.items():
        words = list(its[0].words)
        at = words.index("--folds") + 1
        words[at] = ",".join(sorted({job.words[at] for job in its}))
        if len(its) > 1 and "--regions" not in words:
            joined.append(jobs.Job(f"{name}, joined", tuple(words)))
    return joined
