"""The files of a run that go to and come from the Hugging Face hub: plain ones only, sealed, and without private texts.

Plain are JSON, .npz without objects, .safetensors, tables and pictures: none of them can hold code. Training states
(.ckpt) stay here, and so do scikit-learn's scalers (.joblib), which the kit itself never reads.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError, shorten
from kitlib.evaluation.runs import Run

PLAIN = re.compile(
    r"(?:[^/]+\.(?:json|npz|csv)|figures/[^/]+\.png"
    r"|checkpoints/fold_\d+/(?:[^/]+\.(?:json|npz|csv|txt|safetensors)"
    r"|(?:adapter|model)/[^/]+\.(?:json|safetensors|txt|jinja)|[^/]+/(?:history\.csv|finished\.safetensors)))"
)
TEXTS = (".json", ".csv", ".txt", ".jinja", ".md")
LARGEST_TEXT = 2**20  # bytes that are searched; of other files, whose names and settings stand first
TOKENS = rb"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bKGAT_[A-Za-z0-9]{20,}"


def is_plain(name: str) -> bool:
    """Whether a file of a run, by its name relative to the run's folder, can hold no code and is of use elsewhere.

    >>> is_plain("checkpoints/fold_0/heads.safetensors"), is_plain("checkpoints/fold_0/scaler_region_a.joblib")
    (True, False)
    """
    return bool(PLAIN.fullmatch(name)) and not any(part.startswith(".") for part in name.split("/"))


def stage(run: Run, folder: Path) -> Path:
    """Copy the plain files of a finished run to `folder`/<its name>, seal them, and return that folder.

    Raises KitError for an unfinished run, and for a file that holds a folder of this machine, its name or a token.
    """
    _ = run.metrics  # of a finished run only
    into = folder / run.name
    for path in sorted(run.dir.rglob("*")):
        name = path.relative_to(run.dir).as_posix()
        if path.is_file() and is_plain(name) and name != storage.SEAL:
            _link(path, into / name)
    for checkpoint in sorted(run.dir.glob("checkpoints/fold_*/region_*/finished.ckpt")):  # what guesses are made with
        _as_safetensors(checkpoint, into / checkpoint.relative_to(run.dir).with_suffix(".safetensors"))
    records = [*into.glob("checkpoints/fold_*/fold.json"), *into.glob(f"checkpoints/fold_*/*/{storage.SEAL}")]
    for record in sorted(records):  # without the files that stay here
        checksums = storage.read_json(record)
        storage.write_json(record, {name: sum_ for name, sum_ in checksums.items() if (record.parent / name).is_file()})
    for path in sorted(into.rglob("*")):
        if path.is_file() and (found := private(path)):
            raise KitError(f"{run.name}: {path.relative_to(into).as_posix()} holds {found}: nothing was pushed")
    storage.seal(into)
    return into


def check(folder: Path) -> None:
    """Compare a run's folder with its seal. Raises Damaged for a missing, changed or further file."""
    mend = "pull it again; if that is no help, ask its owner to push it again"
    if not (folder / storage.SEAL).is_file():
        raise Damaged(f"{folder.name}: expected {storage.SEAL}, as `kitlib hub push` writes it; there is none: {mend}")
    recorded = storage.read_json(folder / storage.SEAL, mend=mend)
    storage.compare(folder, recorded, mend)
    if further := sorted(set(storage.checksums(folder)) - set(recorded)):
        raise Damaged(f"{folder.name}: expected the files that were pushed; got also {shorten(further, 3)}: {mend}")


def private(path: Path) -> str:
    """What of this machine or its owner a file holds, in words; "" for nothing."""
    with path.open("rb") as file:
        content = file.read() if path.suffix in TEXTS else file.read(LARGEST_TEXT)
    if re.search(TOKENS, content) or any(token.encode() in content for token in _tokens()):
        return "a token"
    folders = {str(paths.home()), str(Path.home()), str(paths.checkout())} - {"/"}
    if any(re.search(re.escape(folder.encode()) + rb"(?![\w.-])", content) for folder in folders):
        return "a folder of this machine"
    host = socket.gethostname()
    if len(host) > 5 and re.search(rb"(?<![\w.-])" + re.escape(host.encode()) + rb"(?![\w-])", content):
        return "the name of this machine"
    return ""


def _tokens() -> list[str]:
    """The secrets among the environment variables."""
    return [v for name, v in os.environ.items() if re.search("TOKEN|SECRET|API_KEY", name) and len(v) > 7]


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _as_safetensors(checkpoint: Path, target: Path) -> None:
    """Write the final weights of a fit as plain tensors."""
    from kitlib.training import checkpoints
    from kitlib.vision import weights

    weights.write(target, checkpoints.final_weights(checkpoint.parent))
