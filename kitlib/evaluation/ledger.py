"""The ledger of submissions: the records beside them in one table, with what Kaggle said of them.

    ledger.table()                       # every submission: members, out-of-fold, public and true scores
    ledger.set_public("mine", 0.7312)    # typed in from the leaderboard

A record is submissions/<name>.json; `submission.save` writes it, and `kitlib kaggle submit` adds to it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kitlib.core import checks, paths, storage
from kitlib.core.errors import Damaged, KitError

log = logging.getLogger(__name__)

A_DAY = 5  # submissions that the competition takes; Kaggle's day ends at midnight UTC
FEWEST = 3  # submissions with both scores, for a correlation
SCORES = {
    "out of fold": "out_of_fold", "nested": "out_of_fold_nested", "±": "half_width", "public": "public_score",
    "true": "true_score",
}  # fmt: skip
COLUMNS = ("submission", "written", "members", *SCORES, "submitted", "remark")


def table() -> pd.DataFrame:
    """One row a submission, the latest first, with `COLUMNS`; what is wrong with a record is its remark.

    members: by the weights of their states. ±: half of the 95 % interval of the nested score. submitted: when last,
    and how often, if more than once.
    """
    rows = []
    for file in _files():
        try:
            with storage.reading(file.with_suffix(".json")):
                rows.append(_row(file, record(file)))
        except Damaged as error:
            rows.append({"submission": file.stem, "written": "", "members": "", "submitted": "", "remark": str(error)})
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("written", ascending=False, kind="stable")
    numbers = frame[list(SCORES)].apply(pd.to_numeric, errors="coerce").astype(float)  # one may be typed in by hand
    return frame.assign(**numbers).reset_index(drop=True)


def _row(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    entries, remark = _entries(about), "the .csv is missing"
    if file.is_file():
        checksum, handed_in = storage.digest(file), [entry.get("checksum") for entry in entries]
        other = "other rows were handed in" if handed_in and checksum not in handed_in else ""
        remark = other if about.get("checksum", checksum) == checksum else "other rows than its .json describes"
    dates = sorted(_minute(entry["when"]) for entry in entries)
    row = {
        "submission": file.stem,
        "written": _minute(about.get("written", "")),
        "members": _members(about.get("members")),
        "submitted": "".join(dates[-1:]) + f" ({len(dates)} times)" * (len(dates) > 1),
        "remark": remark,
    }
    return row | {column: about.get(key) for column, key in SCORES.items()}


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")


def used_today(now: datetime | None = None) -> Counter[str]:
    """How many submissions of the day (UTC) of `now` the records know, by competition."""
    today = f"{now or datetime.now(UTC):%Y-%m-%d}"
    used: Counter[str] = Counter()
    for file in _files():
        with contextlib.suppress(Damaged):  # the table names it
            entries = _entries(record(file))
            used.update(str(entry.get("competition")) for entry in entries if entry["when"].startswith(today))
    return used


def agreement(frame: pd.DataFrame) -> str:
    """How far out-of-fold scores (nested where they are) and public ones of a `table` agree, in a sentence."""
    own = frame["nested"].fillna(frame["out of fold"])
    both = frame.assign(own=own).dropna(subset=["own", "public"])
    if len(both) < FEWEST:
        return f"{len(both)} submissions have an out-of-fold and a public score: {FEWEST} are needed for a correlation"
    if both["own"].nunique() == 1 or both["public"].nunique() == 1:
        return f"all of {len(both)} out-of-fold or public scores are equal: they have no correlation"
    correlation = both["own"].corr(both["public"], method="spearman")
    shift = (both["public"] - both["own"]).to_numpy(float)
    return (
        f"Spearman's rank correlation of out-of-fold and public scores: {correlation:+.2f} (n = {len(both)}); "
        f"public - out of fold: {shift.mean():+.4f} on average, {shift.min():+.4f} to {shift.max():+.4f}"
    )


def set_public(name: str, score: float) -> None:
    """Write the public score of a submission into its record. Raises KitError for an unknown one, or for other rows."""
    file = paths.submissions_dir() / f"{paths.file_name(name, 'submission name')}.csv"
    if file not in (known := _files()):
        raise KitError(f"there is no submission {name!r}; there are: {', '.join(f.stem for f in known) or 'none yet'}")
    checks.number(f"--public {name}", score, 0, 1, kind=float)
    with lock(file):
        about = record(file)
        check_rows(file, about)
        _write(file, about | {"public_score": float(score)})


def add_submitted(file: Path, competition: str, message: str) -> None:
    """Note in its record that the submission `file` was handed in now."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"when": when, "competition": competition, "message": message, "checksum": storage.digest(file)}
    with lock(file):
        about = record(file)
        _write(file, about | {"submitted": [*about.get("submitted", []), entry]})


def _write(file: Path, about: dict[str, Any]) -> None:
    storage.write_json(file.with_suffix(".json"), about, indent=1)


def kept(file: Path, written: Path) -> dict[str, Any]:
    """What the record of a submission keeps when the rows in `written` replace those of `file`.

    Always what was handed in, and the public score, None if the rows differ.
    """
    try:
        about = record(file)
    except Damaged:
        about = {}
    public = about.get("public_score")
    if public is not None and not (file.is_file() and file.read_bytes() == written.read_bytes()):
        log.warning("%s: its public_score %s is dropped, as the rows have changed", file.name, public)
        public = None
    return {"public_score": public} | {key: about[key] for key in ("submitted",) if key in about}


def record(file: Path) -> dict[str, Any]:
    """The record of the submission `file`, empty without one. Raises Damaged."""
    path = file.with_suffix(".json")
    about: dict[str, Any] = storage.read_json(path) if path.is_file() else {}
    return about


def check_rows(file: Path, about: dict[str, Any]) -> None:
    """Raise KitError if the submission `file` has other rows than its record was written for."""
    if file.is_file() and about.get("checksum", storage.digest(file)) != storage.digest(file):
        raise KitError(f"{file.name}: expected the rows that {file.stem}.json describes; got others: write it anew")


def lock(file: Path) -> AbstractContextManager[None]:
    """The lock of whoever writes the submission `file` or its record."""
    return storage.lock(file.with_name(f".{file.stem}.lock"))


def _files() -> list[Path]:
    """The submissions by their .csv, which is missing of some that have a score or were handed in."""
    folder = paths.submissions_dir()
    files = {file for file in folder.glob("*.csv") if file.is_file()}
    for file in folder.glob("*.json"):
        with contextlib.suppress(Damaged):
            if storage.read_json(file).keys() & {"public_score", "submitted"}:  # no blend pulled from the hub
                files.add(file.with_suffix(".csv"))
    return sorted(file for file in files if not file.name.startswith("."))


def _entries(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The times that a submission was handed in."""
    entries = about.get("submitted", [])
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("when"), str)]


def _members(members: Any) -> str:
    """The members of a submission, the heaviest first: "a 62%, b 38%, c (points)"."""
    if not isinstance(members, dict):
        return ", ".join(map(str, members)) if isinstance(members, list) else ""
    states, points = (members.get(kind, {}) for kind in ("states", "points")) if "states" in members else (members, {})
    heaviest = sorted((name for name in states if states[name] > 0), key=lambda name: -states[name])
    only_points = [f"{name} (points)" for name in points if points[name] > 0 and not states.get(name)]
    return ", ".join([*(f"{name} {states[name]:.0%}" for name in heaviest), *only_points])
