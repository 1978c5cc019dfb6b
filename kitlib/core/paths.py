"""The directories of the kit: in a checkout, on Kaggle, or under KITLIB_HOME. No other module names a directory.

These environment variables describe the machine; only this module reads them:

KITLIB_HOME     folder that holds data/ and submissions/ (default: the checkout; on Kaggle /kaggle/working;
                for an installed wheel the current folder)
KITLIB_DEVICE   cpu, cuda or mps (default: the best available one)
KITLIB_PRECISION  number type of matrix products: float32, bfloat16, float16 or auto (default: the fast one)
KITLIB_WORKERS  threads that decode pictures (default: the number of cores, at most 8)
KITLIB_TRACKER  where the metrics of trainings go besides their history.csv: wandb, tensorboard, or both with a comma
                between (default: csv, nowhere else)
KITLIB_UNTIL    when this machine is taken away, in seconds since 1970: training stops before, with everything saved
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path

from kitlib.core.errors import REFUSALS, KitError, refusal, shown

COMPETITION = "geo-guessr-street-view-cs-gy-6643"
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
MOUNTS = (  # of competitions, datasets, outputs of notebooks and versions of models; the older styles last
    *("competitions/*", "datasets/*/*", "notebooks/*/*", "models/*/*/*/*/*"),
    *("*", "*/transformers/*/*", "*/pytorch/*/*", "*/other/*/*"),
)
TRACKERS = ("csv", "wandb", "tensorboard")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def checkout() -> Path:
    """The folder that holds kitlib/ (and, in a checkout, notebooks/)."""
    return Path(__file__).resolve().parents[2]


def package_dir() -> Path:
    """The folder of the package, with its modules and the files that they read."""
    return checkout() / "kitlib"


def is_checkout() -> bool:
    """Whether the kit runs from its checkout rather than from an installed wheel."""
    return (checkout() / "pyproject.toml").is_file()


def home() -> Path:
    """The folder that holds data/ and submissions/."""
    if named := os.environ.get("KITLIB_HOME"):
        return Path(named).expanduser().resolve()
    if KAGGLE_WORKING.is_dir():
        return KAGGLE_WORKING
    return checkout() if is_checkout() else Path.cwd()


def check_environment() -> None:
    """Raise KitError for a variable of those above whose value cannot be used, before any work."""
    for check in (device_name, precision_name, workers, trackers, hours_left):
        check()
    if home().exists() and not home().is_dir():
        raise KitError(f"KITLIB_HOME: expected a folder; got the file {home().name!r}")


def raw_dir() -> Path:
    """The folder of the original data; the kit writes only the drawn sample competition to it."""
    return home() / "data" / "raw"


def derived_dir(data_set: str) -> Path:
    """The folder of all files derived from one data set; `data_set` contains its checksum (Places.key)."""
    return home() / "data" / "derived" / data_set


def runs_dir() -> Path:
    """The folder of all runs."""
    return home() / "data" / "runs"


def file_name(name: str, what: str) -> str:
    """Check a name that becomes part of a file's name, such as a run's. Raises KitError, beginning with `what`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        allowed = "1 to 100 letters, digits, '.', '-' and '_', a letter or digit first"
        raise KitError(f"{what}: expected {allowed}; got {shown(name)}")
    return name


def run_dir(run: str) -> Path:
    """The folder of one run. Raises KitError for a name that `file_name` refuses."""
    return runs_dir() / file_name(run, "run name")


def submissions_dir() -> Path:
    """The folder of submission files and the records of their members."""
    return home() / "submissions"


def notebooks_dir() -> Path:
    """The folder of the numbered notebooks."""
    return (checkout() if is_checkout() else package_dir()) / "notebooks"


def plans_dir() -> Path:
    """The folder of plans, YAML lists of notebooks with parameters."""
    return notebooks_dir() / "plans"


def device_name() -> str:
    """The device that KITLIB_DEVICE names, "" when it is not set. Raises KitError for an unknown name."""
    device = os.environ.get("KITLIB_DEVICE", "")
    if device not in ("", "cpu", "cuda", "mps"):
        raise KitError(f"KITLIB_DEVICE: expected cpu, cuda, mps, or nothing for the best available one; got {device!r}")
    return device


def precision_name() -> str:
    """The number type that KITLIB_PRECISION names, "auto" when it is not set. Raises KitError for an unknown name."""
    name = os.environ.get("KITLIB_PRECISION", "") or "auto"
    if name not in PRECISIONS:
        raise KitError(f"KITLIB_PRECISION: expected one of {', '.join(PRECISIONS)}; got {name!r}")
    return name


def workers() -> int:
    """The number of threads that decode pictures."""
    threads = os.environ.get("KITLIB_WORKERS", "")
    if threads and not (re.fullmatch("[0-9]{1,4}", threads) and int(threads)):
        raise KitError(f"KITLIB_WORKERS: expected a whole number from 1 to 9999; got {shown(threads)}")
    return int(threads) if threads else min(os.cpu_count() or 1, 8)


def use_workers(threads: int) -> None:
    """Set the number of threads that decode pictures in this process and its children; 0 changes nothing."""
    if threads < 0:
        raise KitError(f"threads that decode pictures: expected 0 (keep KITLIB_WORKERS) or more; got {threads}")
    if threads:
        os.environ["KITLIB_WORKERS"] = str(threads)


def trackers() -> list[str]:
    """What KITLIB_TRACKER names besides csv, the default. Raises KitError for an unknown name."""
    names = [name.strip() for name in (os.environ.get("KITLIB_TRACKER", "") or "csv").split(",")]
    if unknown := [name for name in names if name not in TRACKERS]:
        raise KitError(f"KITLIB_TRACKER: expected some of {', '.join(TRACKERS)}; got {shown(unknown[0])}")
    return [name for name in TRACKERS[1:] if name in names]


def hours_left() -> float:
    """Hours until KITLIB_UNTIL, infinite when it is not set. Raises KitError for a value that is no number."""
    until = os.environ.get("KITLIB_UNTIL", "")
    if until and not re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", until):
        raise KitError(f"KITLIB_UNTIL: expected seconds since 1970; got {shown(until)}")
    return (float(until) - time.time()) / 3600 if until else math.inf


def mounts() -> list[Path]:
    """The folders of the inputs that are attached to a notebook on Kaggle, read-only; none on other machines."""
    return [folder for style in MOUNTS for folder in sorted(KAGGLE_INPUT.glob(style)) if folder.is_dir()]


def slug(name: str) -> str:
    """A name as it stands in Kaggle's addresses.

    >>> slug("Qwen2.5-VL_3B")
    'qwen2-5-vl-3b'
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def attached_weights(name: str) -> Path | None:
    """The folder of attached weights whose input is called like the last part of `name`; None if there is none.

    `geolocal/StreetCLIP` is found in a model or dataset `streetclip`, whoever owns it.
    """
    called = slug(re.sub(r"\.(safetensors|pth)$", "", name.rstrip("/").rpartition("/")[2]))
    for folder in mounts():
        parts = folder.relative_to(KAGGLE_INPUT).parts
        model = parts[-4] if len(parts) > 3 else parts[-1]  # above framework, variation and version
        if model == called and (any(folder.glob("*.safetensors")) or any(folder.glob("*.pth"))):
            return folder
    return None


def find_data(data: str | Path) -> Path:
    """The folder (or .zip) of a data set, given a path or a name under data/raw.

    If the folder contains `kaggle_dataset/`, the result is that inner folder. On Kaggle it may be the name of an
    attached input. Raises KitError listing the paths that were tried.
    """
    data = str(data)
    if not data:
        raise KitError("data set: expected a folder, a .zip, or a name under data/raw; got an empty name")
    candidates = [Path(os.path.expanduser(data)), home() / data, raw_dir() / data, raw_dir() / f"{data}.zip"]  # noqa: PTH111
    candidates += [folder for folder in mounts() if folder.name == data]
    try:
        for candidate in candidates:
            if candidate.is_dir():
                inner = candidate / "kaggle_dataset"
                return (inner if inner.is_dir() else candidate).resolve()
            if candidate.is_file() and candidate.suffix.lower() == ".zip":
                return candidate.resolve()
    except OSError as error:  # such as a name that is too long
        raise KitError(f"data set: expected a folder, a .zip, or a name under data/raw; got {shown(data)}, "
                       f"{REFUSALS.get(error.errno or 0, error.strerror)}") from None  # fmt: skip
    tried = ", ".join(str(c) for c in dict.fromkeys(candidates))
    raise KitError(f"data set {shown(data)} not found; looked for a folder or .zip at {tried}")


def given_file(name: str, text: str) -> Path | None:
    """The path of an existing file that a parameter names, seen from home; None for "". Raises KitError."""
    if not text:
        return None
    try:
        if (path := home() / Path(text).expanduser()).is_file():
            return path
    except OSError as error:
        raise KitError(f"{name}: {refusal(error) or error}") from None
    raise KitError(f"{name}: expected an existing file, seen from {home()}; got {shown(text)}")


def data_name(folder: Path) -> str:
    """A short name for a data folder: its own name, or its parent's if it is called `kaggle_dataset`.

    >>> data_name(Path("/data/us/kaggle_dataset")), data_name(Path("/data/raw/kaggle_dataset"))
    ('us', 'kaggle')
    """
    name = folder.stem if folder.suffix.lower() == ".zip" else folder.name
    if name == "kaggle_dataset":
        name = "kaggle" if folder.parent.name in ("raw", "data", "") else folder.parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-").lower() or "data"


def relative(path: Path) -> str:
    """The path relative to home, or the bare name outside it: written files reveal no folder of this machine."""
    path = Path(path).resolve()
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else path.name


STAGES = "#stages"  # ends an encoder's name (vision/encoders.py)
PATHS_IN_TEXT = r"(?<![^\s:=@,'\"\[{(])~?/[^\s,'\"\]})]+"
GIVEN = "KITLIB_GIVEN"  # JSON of {"<setting> <portable value>": full path}, for this process and its children


def portable(name: str, value: str) -> str:
    """The value of a setting without folders of this machine, for a file that the kit writes.

    An existing path in it becomes relative to home, or its bare name outside home; `located` gives the full path back.
    Of several encoders whose files have the same name, it keeps the last folder's. A hub's name, a place's id and any
    other text stay as they are.
    """
    several = joined(value)
    names = [split(each.removesuffix(STAGES))[1].rpartition("/")[2] for each in several]
    alike = {each: names.count(own) > 1 for each, own in zip(several, names, strict=True)}
    return "+".join(_portable(name, each, 1 + alike[each]) for each in several)


def _portable(name: str, value: str, parts: int) -> str:
    """As `portable`, of one encoder or another text; `parts` of a path outside home are kept."""
    plain = value.removesuffix(STAGES)
    before, path = split(plain)
    if "/" in path or before:
        short = _remember(name, path, parts)
        if short is not None:
            return before + short + value[len(plain) :]
    # such as the paths in YAML
    return re.sub(PATHS_IN_TEXT, lambda found: _remember(name, found.group()) or found.group(), value)


def located(name: str, value: str) -> str:
    """The value of a setting with the full path that this process, or the one that started it, was given."""
    if len(several := joined(value)) > 1:
        return "+".join(located(name, each) for each in several)
    plain = value.removesuffix(STAGES)
    before, path = split(plain)
    return before + given().get(f"{name} {path}", path) + value[len(plain) :]


def joined(value: str) -> list[str]:
    """The names of several encoders that are joined by +, one for any other text.

    >>> joined("timm:resnet18+hf:owner/c++"), joined("a+b")
    (['timm:resnet18', 'hf:owner/c++'], ['a+b'])
    """
    return re.split(r"\+(?=(?:timm:|hf:|tiny(?:$|[+#])))", value)


def given() -> dict[str, str]:
    """The full paths that were given to this process and those that started it, by setting and portable path."""
    return json.loads(os.environ.get(GIVEN, "{}"))


def split(value: str) -> tuple[str, str]:
    """What stands before the path in a setting's value, such as `hf:` or `timm:NAME@`, and the path.

    >>> split("timm:convnext_small@w/model.safetensors"), split("hf:geolocal/StreetCLIP")
    (('timm:convnext_small@', 'w/model.safetensors'), ('hf:', 'geolocal/StreetCLIP'))
    """
    before = re.match(r"(?:[a-z]+:)?(?:[^@/~\n]*@)?", value)
    end = before.end() if before else 0
    return value[:end], value[end:]


def _remember(name: str, path: str, parts: int = 1) -> str | None:
    """The portable form of an existing path, whose full form is kept in the environment; None for another text."""
    try:
        full = next((p for root in (Path.cwd(), home()) if (p := root / Path(path).expanduser()).exists()), None)
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL byte, a home that nobody has
        return None
    if full is None:
        return None
    full = full.parent.resolve() / full.name  # a link keeps its name
    short = full.relative_to(home()).as_posix() if full.is_relative_to(home()) else "/".join(full.parts[-parts:])
    key = f"{name} {short}"
    others = {other: path for other, path in given().items() if other != key}
    os.environ[GIVEN] = json.dumps(dict([*others.items(), (key, str(full))][-100:]))  # a variable has limits
    return short
