"""Where things are: in a checkout, on Kaggle, or under KITLIB_HOME. No other file spells a directory.

The machine is described by environment variables, and they are read here only:

KITLIB_HOME     folder that holds data/ and submissions/ (default: the checkout; on Kaggle /kaggle/working;
                of an installed wheel the current folder)
KITLIB_DEVICE   cpu, cuda or mps (default: the best one there is)
KITLIB_PRECISION  number type of matrix products: float32, bfloat16, float16 or auto (default: what is fast here)
KITLIB_WORKERS  threads that decode pictures (default: the number of cores, at most 8)
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kitlib.core.errors import KitError

COMPETITION = "geo-guessr-street-view-cs-gy-6643"
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def checkout() -> Path:
    """The folder that holds kitlib/ (and, in a checkout, notebooks/)."""
    return Path(__file__).resolve().parents[2]


def package_dir() -> Path:
    """The folder of the package: its modules, and beside them the files that they read."""
    return checkout() / "kitlib"


def is_checkout() -> bool:
    """Whether the kit runs from its checkout, and not from an installed wheel."""
    return (checkout() / "pyproject.toml").is_file()


def home() -> Path:
    """The folder that holds data/ and submissions/."""
    if named := os.environ.get("KITLIB_HOME"):
        return Path(named).expanduser().resolve()
    if KAGGLE_WORKING.is_dir():
        return KAGGLE_WORKING
    return checkout() if is_checkout() else Path.cwd()


def raw_dir() -> Path:
    """Data as it was given; never written to, except for the sample competition that is drawn here."""
    return home() / "data" / "raw"


def derived_dir(data_set: str) -> Path:
    """Everything made from one data set; `data_set` carries the data's checksum (Places.key)."""
    return home() / "data" / "derived" / data_set


def runs_dir() -> Path:
    """All runs."""
    return home() / "data" / "runs"


def run_dir(run: str) -> Path:
    """One run's folder; the name may hold letters, digits, dot, dash and underscore."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise KitError(f"run name {run!r}: allowed are letters, digits, '.', '-' and '_', a letter or digit first")
    return runs_dir() / run


def submissions_dir() -> Path:
    """Submission files and what they were made of."""
    return home() / "submissions"


def notebooks_dir() -> Path:
    """The numbered notebooks."""
    return (checkout() if is_checkout() else package_dir()) / "notebooks"


def plans_dir() -> Path:
    """Plans: YAML lists of notebooks with parameters."""
    return notebooks_dir() / "plans"


def device_name() -> str:
    """The device asked for by KITLIB_DEVICE, or "" to take the best one there is."""
    device = os.environ.get("KITLIB_DEVICE", "")
    if device not in ("", "cpu", "cuda", "mps"):
        raise KitError(f"KITLIB_DEVICE={device!r}: allowed are cpu, cuda, mps, or nothing for the best one there is")
    return device


def precision_name() -> str:
    """The number type named by KITLIB_PRECISION, "auto" where none is. Raises KitError for an unknown name."""
    name = os.environ.get("KITLIB_PRECISION", "") or "auto"
    if name not in PRECISIONS:
        raise KitError(f"KITLIB_PRECISION={name!r}: expected one of {', '.join(PRECISIONS)}")
    return name


def workers() -> int:
    """How many threads decode pictures."""
    asked = os.environ.get("KITLIB_WORKERS", "")
    if asked and (not asked.isdigit() or int(asked) < 1):
        raise KitError(f"KITLIB_WORKERS={asked!r}: allowed is a whole number from 1")
    return int(asked) if asked else min(os.cpu_count() or 1, 8)


def use_workers(threads: int) -> None:
    """Let this process and those it starts decode pictures with that many threads; 0 changes nothing."""
    if threads < 0:
        raise KitError(f"{threads} threads to decode pictures: allowed is 0 (as KITLIB_WORKERS says) or more")
    if threads:
        os.environ["KITLIB_WORKERS"] = str(threads)


def find_data(data: str | Path) -> Path:
    """The folder (or .zip) of a data set, given a path or a name under data/raw.

    A folder that only wraps `kaggle_dataset/` stands for it. On Kaggle the three places where a
    competition or dataset can be mounted are tried as well. Raises KitError listing what was looked for.
    """
    data = str(data)
    if not data:
        raise KitError("no data set named: give a folder, a .zip, or a name under data/raw")
    candidates = [Path(data).expanduser(), home() / data, raw_dir() / data, raw_dir() / f"{data}.zip"]
    candidates += [KAGGLE_INPUT / "competitions" / data, KAGGLE_INPUT / data]
    if KAGGLE_INPUT.is_dir():
        candidates += sorted((KAGGLE_INPUT / "datasets").glob(f"*/{data}"))
    for candidate in candidates:
        if candidate.is_dir():
            inner = candidate / "kaggle_dataset"
            return (inner if inner.is_dir() else candidate).resolve()
        if candidate.is_file() and candidate.suffix == ".zip":
            return candidate.resolve()
    looked = ", ".join(str(c) for c in dict.fromkeys(candidates))
    raise KitError(f"data set {data!r} is not there; looked for a folder or .zip at {looked}")


def data_name(folder: Path) -> str:
    """A short name for a data folder: its own, or its parent's where it is just `kaggle_dataset`.

    >>> data_name(Path("/data/us/kaggle_dataset")), data_name(Path("/data/raw/kaggle_dataset"))
    ('us', 'kaggle')
    """
    name = folder.stem if folder.suffix == ".zip" else folder.name
    if name == "kaggle_dataset":
        name = "kaggle" if folder.parent.name in ("raw", "data", "") else folder.parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-").lower() or "data"


def relative(path: Path) -> str:
    """The path below home where it is below it; used in everything written, so that no machine's folders leak."""
    path = Path(path).resolve()
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else path.name
