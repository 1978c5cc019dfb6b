"""Runs side by side: a table of all, and two of them compared on the places that both have guessed.

    comparison.table()                                  # every run: family, data, folds, score with its interval
    comparison.compare("first", "second", places)       # settings that differ, paired difference of the score

An interval holds the true mean with 95 %, if places were drawn anew; near-duplicates are drawn together.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kitlib.core.errors import Damaged, KitError
from kitlib.data.places import Places
from kitlib.evaluation import fold_files, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.metrics import half_width, place_scores
from kitlib.evaluation.runs import Run

COLUMNS = ("run", "family", "data", "encoder", "folds", "score", "±", "mean km", "started", "commit", "differs")
WIDEST = 40  # letters of a cell in a terminal
NUMBERS = ("score", "±", "mean km")  # of COLUMNS


def table(names: list[str] | None = None) -> pd.DataFrame:
    """One row a run, the latest first, with `COLUMNS`; all runs when `names` is None. An unreadable run is named.

    folds: done of all. ±: half of the 95 % interval of the score. differs: the settings in which a run differs from the
    earlier ones of its family on the same data.
    """
    rows = []
    for name in runs.list_runs() if names is None else names:
        try:
            rows.append(_row(runs.open_run(name)))
        except Damaged as error:
            rows.append({"run": name, "differs": str(error), "started": "", "settings": {}})
    rows.sort(key=lambda row: row["started"])
    seen: dict[tuple[str, str], dict] = {}
    for row in rows:
        before = seen.setdefault((row.get("family", ""), row.get("data", "")), row)
        if before is not row and "differs" not in row:
            changed = runs.difference(before["settings"], row["settings"])
            row["differs"] = ", ".join(f"{key}={now}" for key, _, now in changed if key not in ("family", "data"))
    return pd.DataFrame(rows[::-1], columns=list(COLUMNS)).fillna({name: "" for name in COLUMNS if name not in NUMBERS})


def as_text(table: pd.DataFrame, empty: str = "no runs yet") -> str:
    """The table for a terminal: columns that hold anything, long cells cut short, scores with four decimals."""
    filled = table.loc[:, [column for column in table if (table[column].notna() & (table[column] != "")).any()]]
    shown = filled.map(lambda cell: cell if not isinstance(cell, str) else cell[:WIDEST] + "…" * (len(cell) > WIDEST))
    decimals = {str(column): "{:.4f}".format for column in shown.select_dtypes(float)}
    decimals["mean km"] = "{:,.0f}".format
    return shown.to_string(index=False, na_rep="", formatters=decimals) if len(table) else empty


def _row(run: Run) -> dict:
    params, settings = run.params, run.settings
    done = len(fold_files.done_folds(run))
    row = {
        "run": run.name,
        "family": settings.get("family", ""),
        "data": str(settings.get("data", "")).removeprefix("data/raw/"),
        "encoder": str(settings.get("encoder", settings.get("model", ""))),
        "started": params.get("started", "")[:16].replace("T", " "),
        "commit": (params.get("git") or "")[:8],
        "settings": settings,
    }
    if not run.finished:
        return row | {"folds": f"{done} of {settings.get('n_folds', '?')}, unfinished"}
    metrics = run.metrics
    scores = metrics.get("oof", {})
    n_folds = settings.get("n_folds", "?")
    row["folds"] = f"{len(metrics.get('folds', {})) or done or n_folds} of {n_folds}"  # a baseline has all, in no files
    score, half, km = (scores.get("final", np.nan), metrics.get("half_width", np.nan), scores.get("mean_km", np.nan))
    return row | {"score": score, "±": half, "mean km": km}


@dataclass(frozen=True)
class Comparison:
    """Two runs on the `n` places that both guessed; positive numbers are in favour of the second one, `b`.

    settings: rows of setting, a, b. gain: mean difference of the score; half_width: of its 95 % interval. by_state:
    the states with their places and mean gain. points (N, 2), gains (N,): of each place. right (2, N): whether the
    state of each place is, of a and of b.
    """

    a: str
    b: str
    n: int
    score_a: float
    score_b: float
    gain: float
    half_width: float
    settings: pd.DataFrame
    by_state: pd.DataFrame
    points: np.ndarray
    gains: np.ndarray
    right: np.ndarray

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        text = f"{self.b} - {self.a}: {self.gain:+.4f} ± {self.half_width:.4f} on {self.n:,} places"
        better = self.b if self.gain > 0 else self.a
        return text + (f"; {better} is better" if abs(self.gain) > self.half_width else "; within chance")

    @property
    def states(self) -> str:
        """Whose states are right, in one sentence."""
        a, b = self.right
        return (
            f"state right: both {(a & b).sum():,}, only {self.a} {(a & ~b).sum():,}, only {self.b} "
            f"{(~a & b).sum():,}, neither {(~a & ~b).sum():,}"
        )

    def __str__(self) -> str:
        best = self.by_state[self.by_state["gain"] > 0].head(5)
        worst = self.by_state[self.by_state["gain"] < 0].tail(5)[::-1]
        lines = [f"{self.a}: {self.score_a:.4f}", f"{self.b}: {self.score_b:.4f}", self.verdict, self.states]
        lines += ["", "settings"]
        lines += [f"  {row.setting}: {row.a} | {row.b}" for row in self.settings.itertuples()] or ["  the same"]
        for title, part in ((f"where {self.b} gains", best), (f"where {self.b} loses", worst)):
            lines += [
                "",
                title,
                *(f"  {row.state}: {row.gain:+.3f} ({row.places} places)" for row in part.itertuples()),
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.verdict)}<br>{html.escape(self.states)}</p>"]
        parts += [self.settings.to_html(index=False, border=0)]
        return "".join([*parts, self.by_state.to_html(index=False, border=0, float_format="{:+.4f}".format)])


def compare(a: str, b: str, places: Places) -> Comparison:
    """Compare the out-of-fold guesses of two finished runs on the same places, pair by pair.

    Raises KitError for runs on other places, and for runs that share no guessed place.
    """
    first, second = runs.open_run(a), runs.open_run(b)
    for run in (first, second):
        if run.params["data"].get("places") != places.checksum:
            raise KitError(f"{run.name}: expected a run on {places.name} as it is now; it was trained on other places")
    one, two = first.guesses("oof"), second.guesses("oof")
    shared = one.sample_id[np.isin(one.sample_id, two.sample_id)]
    if not len(shared):
        raise KitError(f"{a} and {b}: expected places that both guessed out of fold; got none")
    both = [guesses.at(shared) for guesses in (one, two)]
    scores = [place_scores(guesses, places) for guesses in both]
    gains = scores[1] - scores[0]
    rows = places.rows("train").set_index("sample_id").loc[shared]
    truth = rows["state_idx"].to_numpy()
    grouped = pd.DataFrame({"state": rows["state"].to_numpy(), "gain": gains}).groupby("state")["gain"]
    by_state = grouped.agg(places="size", gain="mean").reset_index().sort_values("gain", ascending=False)
    changed = runs.difference(first.settings, second.settings)
    if first.settings["family"] != second.settings["family"]:  # only what both families can be set to
        changed = [(key, was, now) for key, was, now in changed if key in first.settings and key in second.settings]
    return Comparison(
        a=a,
        b=b,
        n=len(shared),
        score_a=float(scores[0].mean()),
        score_b=float(scores[1].mean()),
        gain=float(gains.mean()),
        half_width=half_width(gains, groups_of(places, shared)),
        settings=pd.DataFrame([(key, was, now) for key, was, now in changed], columns=["setting", "a", "b"]),
        by_state=by_state.reset_index(drop=True),
        points=rows[["latitude", "longitude"]].to_numpy(np.float64),
        gains=gains,
        right=np.stack([guesses.top_states(1)[:, 0] == truth for guesses in both]),
    )


def gain(guesses: Guesses, other: Guesses, places: Places) -> tuple[float, float]:
    """How much more `guesses` score than `other` on the same training places, and half of its 95 % interval."""
    scores = [place_scores(each.at(guesses.sample_id), places) for each in (guesses, other)]
    difference = scores[0] - scores[1]
    return float(difference.mean()), half_width(difference, groups_of(places, guesses.sample_id))


def score_half_width(guesses: Guesses, places: Places) -> float:
    """Half of the 95 % interval of the score of guesses for training places."""
    return half_width(place_scores(guesses, places), groups_of(places, guesses.sample_id))


def changes_since(run: Run, places: Places) -> list[str]:
    """What a repetition of the run would not share with it: code, libraries, data. Empty when it would be the same."""
    params = run.params
    now: dict[str, Any] = {"commit": runs.git_commit(), **runs.library_versions()}
    was: dict[str, Any] = {"commit": params.get("git"), **params.get("libraries", {})}
    changed = [f"{key} was {old}, now {new}" for key, old, new in runs.difference(was, now)]
    if now["commit"] and now["commit"].endswith("+"):
        changed.append("the checkout has changes that are not committed")
    if params["data"].get("places") != places.checksum:
        changed.append(f"the table of {places.name} has changed")
    return changed


def groups_of(places: Places, sample_id: ArrayLike) -> np.ndarray:
    """The group of near-duplicates of each training place; each place is its own where there are no folds yet."""
    sample_id = np.asarray(sample_id)
    if not (places.derived / "folds.csv").is_file():
        return sample_id
    saved = pd.read_csv(places.derived / "folds.csv", dtype={"sample_id": str}).set_index("sample_id")["group"]
    return saved.loc[sample_id.astype(str)].to_numpy()
