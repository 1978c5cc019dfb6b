"""The real `kaggle` client, called as a user would; what it says is passed on, and its failures become one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shown
from kitlib.platforms.kaggle import pack as packs
from kitlib.platforms.kaggle import session

WAIT_SECONDS = 30.0  # between two looks at what Kaggle is doing
LONGEST_HOURS = 14.0  # that a notebook is waited for: its queue and its session
AUTHENTICATION = "Authentication required"
MEANINGS = (  # of what the client prints when it fails; the first that fits counts
    (f"{AUTHENTICATION}|\\b401\\b|Unauthorized|Unauthenticated",
     "Kaggle knows no account here: run `kaggle auth login`, or set KAGGLE_API_TOKEN to a token of https://www.kaggle.com/settings/api"),
    (r"\b403\b|Forbidden|accept.{0,30}rules", "Kaggle refuses (403): accept the rules at "
     "https://www.kaggle.com/competitions/{competition}/rules once, or ask with the account that owns it"),
    (r"\b404\b|Not Found", "Kaggle has nothing of that name (404): expected {what}"),
    (r"\b429\b|Too Many Requests", "Kaggle asks to wait (429): too many requests; try again in some minutes"),
    (r"No space left|Errno 28", "no space is left on the disk: free some, then the same command goes on"),
    ("ConnectionError|Max retries|NameResolution|Network is unreachable|ProxyError|timed out",
     "Kaggle cannot be reached: check the internet, then the same command goes on"),
)  # fmt: skip
FAILED = r"(?m)^.*(?:creation |push )error: ?.*$|^The following are not valid .*$"  # said with exit code 0


def kaggle(*arguments: str, what: str = "", competition: str = paths.COMPETITION, quiet: bool = False) -> str:
    """Run the client and return what it printed, which is shown as it comes unless `quiet`.

    Raises KitError, in one sentence, if it fails; `what` is what was asked for.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise KitError("the client of Kaggle is not installed: pip install kaggle")
    command = [sys.executable, "-m", "kaggle", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    said = b""
    while part := os.read(process.stdout.fileno(), 4096):
        said += part
        if not quiet and not said.startswith(AUTHENTICATION.encode()):  # then follows a page of help
            sys.stdout.write(part.decode(errors="replace"))
            sys.stdout.flush()
    text, failed = said.decode(errors="replace"), None
    if process.wait() or (failed := re.search(FAILED, text)):
        for pattern, sentence in MEANINGS:
            if re.search(pattern, text, re.IGNORECASE):
                raise KitError(sentence.format(competition=competition, what=what or " ".join(arguments[:3])))
        lines = [line.strip() for line in re.split("[\r\n]", text) if line.strip() and not line.startswith("\nIf")]
        reason = failed.group().strip() if failed else lines[0] if lines else f"code {process.returncode}"
        raise KitError(f"kaggle {' '.join(arguments[:2])}: {reason[:300]}")
    return text


def pull(competition: str = paths.COMPETITION, verify: bool = True) -> str:
    """Download the competition's data to data/raw/COMPETITION.zip, which the kit reads as it is, and check it.

    An interrupted download goes on. Checked are the archive's own list of files, the tables, and with `verify` every
    picture, by packing them as the first notebook does. Returns a line about what is there.
    """
    file = paths.raw_dir() / f"{competition}.zip"
    file.parent.mkdir(parents=True, exist_ok=True)
    what = f"a competition such as {paths.COMPETITION}"
    kaggle("competitions", "download", "-c", competition, "-p", str(file.parent), what=what, competition=competition)
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
    except (FileNotFoundError, zipfile.BadZipFile):
        file.unlink(missing_ok=True)
        raise KitError(
            f"{file.name}: expected a whole .zip; got a damaged one: it is deleted, run the same command again"
        ) from None
    from kitlib.data import pictures, readers

    places = readers.load(competition)
    lost = []
    if verify:
        for split in ("train", "test"):
            packed = pictures.pack(places, split)
            lost += [f"{entry['count']} x {entry['check']}" for entry in packed.problems()]
    counts = " and ".join(f"{len(places.rows(split)):,} {split}" for split in ("train", "test"))
    checked = (f"; every picture read: {', '.join(lost) or 'none is damaged'}") if verify else "; pictures not read"
    return f"{file.name}: {len(sizes):,} files, {sum(sizes) / 1e9:.2f} GB unpacked, {counts} places{checked}"


def push(folder: Path, start_from: str = "", wait: bool = True) -> list[str]:
    """Push a pack: its dataset, its weights, then its notebooks in order, each after the one before has ended.

    start_from: a step; what is before it is on Kaggle already. wait: otherwise only the first notebook is pushed.
    Returns the addresses of the pushed notebooks. Raises KitError if Kaggle refuses one, or one fails there.
    """
    pack = packs.read(folder)
    kernels = pack["kernels"]
    steps = [kernel["step"] for kernel in kernels]
    if start_from and start_from not in steps:
        raise KitError(f"--from: expected one of {', '.join(steps)}; got {shown(start_from)}")
    kaggle("quota")
    if not start_from:
        _push_dataset(folder / "dataset", pack["dataset"])
        for one in pack["weights"]:
            if one["source"].count("/") == 4:
                _push_model(folder / one["folder"], one["source"])
            else:
                _push_dataset(folder / one["folder"], one["source"])
    pushed = []
    for kernel in kernels[steps.index(start_from) if start_from else 0 :]:
        kaggle("kernels", "push", "-p", str(folder / kernel["folder"]), competition=pack["competition"])
        pushed.append(f"https://www.kaggle.com/code/{kernel['id']}")
        if not wait:
            break
        wait_for(kernel["id"])
    return pushed


def wait_for(kernel: str) -> None:
    """Wait until a notebook has ended on Kaggle. Raises KitError with what Kaggle says if it failed."""

    def ended() -> bool:
        said = kaggle("kernels", "status", kernel, what="a notebook OWNER/SLUG", quiet=True)
        status = said.rpartition("has status")[2].lower()  # behind the name, in which "error" may stand
        if re.search("error|cancel", status):
            raise KitError(f"{' '.join(said.split())[:300]}; see `kitlib kaggle logs {kernel}`")
        return "complete" in status

    _until(ended, LONGEST_HOURS, f"{kernel} to end")


def logs(kernel: str, follow: bool = False) -> None:
    """Show the log of a notebook on Kaggle."""
    kaggle("kernels", "logs", kernel, *(["--follow"] if follow else []), what="a notebook OWNER/SLUG")


def output(kernel: str) -> str:
    """Download what a notebook wrote, and take its runs and submissions over; return a line about them."""
    if not re.fullmatch(r"[\w-]+/[\w-]+(/\d+)?", kernel):
        raise KitError(f"notebook: expected OWNER/SLUG as in its address; got {shown(kernel)}")
    folder = paths.home() / "data" / "kaggle" / "output" / paths.slug(kernel.split("/")[1])
    kaggle("kernels", "output", kernel, "-p", str(folder), what="a notebook OWNER/SLUG with an output")
    known = set(paths.runs_dir().glob("*")) | set(paths.submissions_dir().glob("*"))
    session.adopt(folder, link=False)
    new = (set(paths.runs_dir().glob("*")) | set(paths.submissions_dir().glob("*.csv"))) - known
    taken = ", ".join(sorted(paths.relative(path) for path in new)) or "no new run and no new submission"
    return f"{paths.relative(folder)}: {taken}"


def submit(name: str, message: str, confirm: Callable[[str], bool], competition: str = paths.COMPETITION) -> str:
    """Hand in submissions/NAME.csv after `confirm`, and note that in its .json; return what Kaggle said.

    Raises KitError for a file that `validate` refuses, and when it is not confirmed.
    """
    from kitlib.evaluation import ledger, submission_files

    file = paths.submissions_dir() / f"{paths.file_name(name, 'submission name')}.csv"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in paths.submissions_dir().glob("*.csv"))) or "none yet"
        raise KitError(f"there is no submission {name!r}; there are: {known}")
    about = ledger.record(file)
    ledger.check_rows(file, about)
    with contextlib.suppress(KitError):  # the data may be elsewhere
        from kitlib.data import readers

        template = readers.load(competition).template
        if template is not None:
            submission_files.validate(file, template)
    before = about.get("submitted", [])
    again = f", which was handed in {len(before)} times already" if before else ""
    if not confirm(f"Hand {file.name}{again} in to {competition}? It spends one of the day's submissions."):
        raise KitError("nothing was handed in")
    text = message or f"{name} {storage.digest(file)[:8]}"
    arguments = ("-f", str(file), "-m", text)
    said = kaggle(
        "competitions",
        "submit",
        competition,
        *arguments,
        competition=competition,
        what=f"the competition {competition}",
    )
    if "success" not in said.lower():
        raise KitError(f"kaggle competitions submit: {' '.join(said.split())[-300:] or 'it said nothing'}")
    ledger.add_submitted(file, competition, text)
    return " ".join(said.split()[-12:])


def quota() -> None:
    """Show the hours of GPU that the week has left."""
    kaggle("quota")


def _push_dataset(folder: Path, identity: str) -> None:
    """Create a private dataset, or a new version of it, and wait until Kaggle has it ready."""
    try:
        kaggle("datasets", "status", identity, quiet=True)
    except KitError as error:
        if not re.search("404|403|nothing of that name", str(error)):
            raise
        kaggle("datasets", "create", "-p", str(folder))
    else:
        kaggle("datasets", "version", "-p", str(folder), "-m", "packed again")
    _until(
        lambda: "ready" in kaggle("datasets", "status", identity, quiet=True).lower(), 1.0, f"{identity} to be ready"
    )


def _push_model(folder: Path, source: str) -> None:
    """Create a private model with its one variation, unless Kaggle has it."""
    model, variation = "/".join(source.split("/")[:2]), source.rpartition("/")[0]
    for arguments, known in (
        (("models", "create", "-p"), ("models", "get", model)),
        (("models", "variations", "create", "-p"), ("models", "variations", "get", variation)),
    ):
        with contextlib.suppress(KitError):
            kaggle(*known, quiet=True)
            continue
        kaggle(*arguments, str(folder))


def _until(done: Callable[[], bool], hours: float, what: str) -> None:
    end = time.monotonic() + hours * 3600
    while not done():
        if time.monotonic() > end:
            raise KitError(f"waited {hours:g} hours for {what}: look at it on Kaggle, then go on with --from")
        time.sleep(WAIT_SECONDS)
