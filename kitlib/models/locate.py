"""Where were these photographs taken? A finished run, or a submission's blend, asked about pictures it has never seen.

answer = locate.ask("sample-multiview", "holiday")     # a folder, a picture, a .zip, or a folder with metadata.csv
answer.table                                           # five states, point, radii, nearest known places
answer.save("answers")                                 # a table, a page, and a submission where there is a template
"""

from __future__ import annotations

import html
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shorten
from kitlib.data import photos, pictures
from kitlib.data.places import Places
from kitlib.evaluation import ensemble, fold_files, metrics, origin, runs, submission
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.figures import pages
from kitlib.models import linear_probe

log = logging.getLogger(__name__)

FAMILIES = {"multiview", "retrieval", "regional", "ridge", "vlm", "logistic"}
TOP, NEAREST, ALIKE = 5, 3, 4  # states and known places in the table, places that look alike on the page
MOST_SHOWN = 50  # rows in a notebook
MOST_PICTURED = 300  # places on the page with their pictures; each takes some 30 kB
EMBEDDED = "embeddings"  # the folder of features among derived files
SHARES = (0.5, 0.9)  # of the weight of a guess's points, within the radii of the table


@dataclass(frozen=True, eq=False)
class Answer:
    """Guesses for photographs. `places` has the states that the run has learned and, as `queries`, the photographs."""

    name: str  # of the run or the submission
    places: Places
    guesses: Guesses
    known: Places | None  # the training places, where they are on this machine
    look: Look | None  # which of them look alike
    remarks: list[str]  # what a reader of the answers has to know

    @cached_property
    def exif(self) -> tuple[np.ndarray, int]:
        """The points in the pictures' EXIF, to check the guesses with; see `data.photos.exif_points`."""
        queries = self.places.queries
        if queries is None or queries.template is not None:  # a competition's pictures have none
            return np.full((len(self.guesses), 2), np.nan), 0
        return photos.exif_points(queries)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a place: sample_id, pictures, state_1 … and probability_1 …, point, radii, and nearest known places.

        These are left out where the training data is not. exif_km: from the guess to the point in a picture's EXIF,
        which is never used for the guess.

        radius_50_km, radius_90_km: around the point, within which that share of the weight of the guess's points lies.
        truth, km: the true state and the error, where they are known.
        """
        rows, point = self.places.rows("test"), self.guesses.point()
        table = pd.DataFrame({"sample_id": self.guesses.sample_id})
        table["pictures"] = [" ".join(filter(None, names)) for names in rows[self.places.image_columns].to_numpy()]
        order = np.argsort(-self.guesses.state_probs, axis=1, kind="stable")[:, :TOP]
        names = self.places.states.set_index("state_idx")["state"].loc[self.guesses.state_idx].to_numpy(str)
        for rank in range(order.shape[1]):
            table[f"state_{rank + 1}"] = names[order[:, rank]]
            table[f"probability_{rank + 1}"] = np.take_along_axis(self.guesses.state_probs, order, 1)[:, rank].round(4)
        table["latitude"], table["longitude"] = point.T.round(5)
        for share, radius in zip(SHARES, radii_km(self.guesses, SHARES).T, strict=True):
            table[f"radius_{share:.0%}_km".replace("%", "")] = radius.round(1)
        if self.known is not None:
            known = self.known.rows("train")
            km, index = geo.nearest(point, known[["latitude", "longitude"]], min(NEAREST, len(known)))
            for n in range(km.shape[1]):
                table[f"known_{n + 1}"] = known["sample_id"].to_numpy()[index[:, n]]
                table[f"known_{n + 1}_km"] = km[:, n].round(1)
        if not np.isnan(self.exif[0]).all():
            table["exif_km"] = geo.distance_km(self.exif[0], point).round(1)
        truth = rows[["latitude", "longitude"]].to_numpy(float)
        located = ~np.isnan(truth).any(axis=1)
        if located.any():
            error = np.full(len(rows), np.nan)
            error[located] = geo.distance_km(truth[located], point[located])
            table["truth"], table["km"] = rows["state"].to_numpy(), error.round(1)
            table["true_latitude"], table["true_longitude"] = truth.T
        return table

    def _repr_html_(self) -> str:
        table = self.table.head(MOST_SHOWN)
        shown = pd.DataFrame({"place": table["sample_id"]})
        for rank in range(1, TOP + 1):
            if f"state_{rank}" in table:
                shown[f"label {rank}"] = table[f"state_{rank}"] + table[f"probability_{rank}"].map(", {:.0%}".format)
        words = {"latitude": "latitude", "longitude": "longitude", "radius_50_km": "50 % within, km",
                 "radius_90_km": "90 % within, km", "exif_km": "from EXIF, km", "truth": "truth",
                 "km": "error, km"}  # fmt: skip
        shown = shown.join(table[[c for c in words if c in table]].rename(columns=words))
        text = shown.to_html(index=False, border=0, float_format="{:,.5g}".format, justify="left")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        return f'{notes}<div style="overflow-x: auto">{text}</div>'

    def notes(self) -> list[str]:
        """What a reader of the answers has to know, a sentence each."""
        located, broken = int((~np.isnan(self.exif[0][:, 0])).sum()), self.exif[1]
        notes = list(self.remarks)
        if located or broken:
            notes.append(f"The EXIF of {located:,} of {len(self.guesses):,} places has a point, which is only compared "
                         f"with the guess." + f" {broken:,} pictures have a broken one." * bool(broken))  # fmt: skip
        return notes

    def alike(self, most: int = MOST_PICTURED) -> list[list[dict]]:
        """The training places that look most alike, of the first `most` places: sample_id, state, km, jpeg."""
        if self.known is None or self.look is None:
            return [[] for _ in range(len(self.guesses))]
        rows, pack, point = self.known.rows("train"), pictures.pack(self.known, "train"), self.guesses.point()
        found: list[list[dict]] = []
        for n, near in enumerate(self.look.nearest(self.places, self.known, most)):
            km = geo.distance_km(point[n], self.known.points("train")[near])
            own = rows.iloc[near]
            shots = [pictures.thumbnail(pack.read(row, int(pack.usable[row].argmax())), 100) for row in near]
            parts = zip(own["sample_id"].tolist(), own["state"], km.round(1).tolist(), shots, strict=True)
            found.append([dict(zip(("sample_id", "state", "km", "jpeg"), part, strict=True)) for part in parts])
        return found + [[] for _ in range(len(self.guesses) - len(found))]

    @property
    def score(self) -> metrics.Score | metrics.Report | None:
        """The score where states and points are known, the distances where only points are, else None."""
        rows = self.places.rows("test")
        truth = rows[["latitude", "longitude"]].to_numpy(float)
        located = ~np.isnan(truth).any(axis=1)
        labelled = located & (rows["state_idx"].to_numpy() >= 0)
        asked, point = self.guesses.take(labelled), self.guesses.point()
        if labelled.any() and labelled.sum() == located.sum():
            idx = rows["state_idx"].to_numpy()[labelled]
            return metrics.score_arrays(idx, truth[labelled], asked.top_states(TOP), point[labelled])
        return metrics.report(geo.distance_km(truth[located], point[located])) if located.any() else None

    def thumbnails(self, most: int = MOST_PICTURED, height: int = 160) -> list[list[bytes]]:
        """The usable pictures of the first `most` places as JPEGs of at most `height` pixels; none of the others."""
        pack = pictures.pack(self.places, "test")
        n = min(most, len(pack.sample_id))
        views = [np.flatnonzero(pack.usable[row]) for row in range(n)]
        shown = [[pictures.thumbnail(pack.read(row, int(v)), height) for v in views[row]] for row in range(n)]
        return shown + [[] for _ in range(len(pack.sample_id) - n)]

    def save(self, folder: str | Path) -> list[Path]:
        """Write answers.csv, answers.npz, answers.html and, where there is a template, submission.csv; list them."""
        folder = Path(folder)
        written = [folder / "answers.csv", folder / "answers.npz", folder / "answers.html"]
        with storage.atomic_write(written[0]) as beside:
            self.table.to_csv(beside, index=False)
        self.guesses.save(written[1])
        pages.save_answers(
            written[2],
            self.name,
            self.table,
            self.guesses.points,
            self.guesses.weights,
            self.thumbnails(),
            self.alike(),
            self.notes(),
        )
        queries = self.places.queries
        if queries is not None and queries.template is not None:
            meta = {"asked": self.name, "places": len(self.guesses)}
            path = submission.write_submission(
                folder / "submission.csv", self.guesses, queries.template, meta, self.places.states
            )
            written.append(path)
        return written


def ask(name: str, photographs: str | Path, data: str | Path = "", **files: str) -> Answer:
    """Guesses of a finished run, or of the blend of a submission, for new photographs.

    photographs: as for `data.photos.read`. The run's folder is all that a guess needs, and that of its router if it
    names one; without the training data the nearest and the most similar known places are left out. data: the present
    place of that data, if it is not where the run recorded it. files: settings that name a file outside home, with its
    present place, such as encoder="timm:NAME@FILE"; a run records only its name and content. Raises KitError for an
    unknown name, for other data in `data`, and for labels that the run has not learned.
    """
    for setting, value in files.items():
        paths.portable(setting, value)
    blend = _blend(name)
    first = runs.open_run(next(iter(blend.states)))
    learned = origin.learned_places(first)
    known, missing = _training_places(first, data)
    queries = photos.read(photographs, learned.states, learned.views)
    asked = replace(learned, queries=queries)
    labels = ", ".join(learned.states["state"][:3]) + (", …" if len(learned.states) > 3 else "")
    remarks = [f"{name} answers with the {len(learned.states)} labels that it has learned ({labels}), with no others."]
    remarks += [
        f"{e['check']} ({e['count']:,} of {len(queries.table):,} rows): {_treatment(first, e)}."
        for e in queries.integrity
    ]
    blind = pictures.pack(asked, "test").unusable_places
    unread = [name for row in queries.rows("test")[queries.image_columns].to_numpy()[blind] for name in row if name]
    if blind.all():
        raise KitError(f"photographs: expected at least one picture that can be read; got {shorten(unread) or 'none'}")
    if blind.any():
        remarks.append(
            f"{int(blind.sum()):,} places have no picture that can be read ({shorten(unread)}): they get the same "
            "answer, the commonest states."
        )
    look = Look.of_run(first, known) if known is not None else None
    if known is not None and look is None:
        missing = "Places that look alike are left out: no features of the training pictures are kept on this machine."
    remarks += filter(None, [missing])
    for remark in remarks:
        log.info("%s", remark)
    answers = {}
    for member in blend.used:
        run = runs.open_run(member)
        if run.params["data"].get("places") != first.params["data"].get("places"):
            raise KitError(f"{member}: expected a run on the same places as {first.name}; it has others")
        answers[member] = guesses_of(run, asked)
    guess = blend(answers)
    return Answer(name, asked, guess.at(queries.sample_id("test")), known, look, remarks)


def upload(name: str, data: str | Path = "", folder: str | Path = "") -> Any:
    """A button that takes pictures and shows the answer below it; for JupyterLab, where a kernel is running.

    folder: where the pictures and the answers go, data/answers/uploads when empty.
    """
    import ipywidgets

    into = Path(folder) if folder else paths.home() / "data" / "answers" / "uploads"
    button = ipywidgets.FileUpload(accept="image/*", multiple=True, description="Pictures")
    shown = ipywidgets.HTML()

    def answer(change: Any) -> None:
        batch = into / storage.digest(*(bytes(file["content"]) for file in change["new"]))
        for file in change["new"]:
            with storage.atomic_write(batch / Path(file["name"]).name) as beside:
                beside.write_bytes(file["content"])
        try:
            answered = ask(name, batch, data)
            answered.save(batch / "answers")
            shown.value = answered._repr_html_()
        except KitError as error:
            shown.value = html.escape(str(error))

    button.observe(answer, "value")
    return ipywidgets.VBox([button, shown])


def guesses_of(run: Run, places: Places, only_folds: Sequence[int] = ()) -> Guesses:
    """The guesses of one run, by all of its folds or some, for the queries of `origin.learned_places`."""
    family = run.settings.get("family")
    if family not in FAMILIES:
        raise KitError(f"{run.name}: expected a run of {', '.join(sorted(FAMILIES))}; got family {family!r}")
    if family == "logistic":
        return importlib.import_module("kitlib.models.linear_probe").predict(run.name, places)
    if not fold_files.done_folds(run):
        raise KitError(f"{run.name}: expected a run with a trained fold; train it to the end first")
    module = importlib.import_module(f"kitlib.models.{family}")
    return module.predict(
        run.name,
        places,
        ask=lambda name, places: guesses_of(runs.open_run(name), places, only_folds),
        only_folds=only_folds,
    )


def _blend(name: str) -> ensemble.Blend:
    """The blend of a submission; a run is a blend of one member as it is."""
    if name in runs.list_runs():
        one = {name: 1.0}
        return ensemble.Blend(one, one, one, one)
    record = paths.submissions_dir() / f"{paths.file_name(name, 'run or submission')}.json"
    if not record.is_file():
        known = ", ".join([*runs.list_runs(), *sorted(file.stem for file in paths.submissions_dir().glob("*.json"))])
        raise KitError(f"there is neither a run nor a submission {name!r}; there are: {known or 'none yet'}")
    members: dict = storage.read_json(record, needed=("members",))["members"]
    if not {"states", "points", "temperature", "exponent"} <= members.keys():
        raise KitError(f"{record.name} is of an earlier kit, without weights of points: blend its members again")
    return ensemble.Blend.from_dict(members)


def _training_places(run: Run, data: str | Path) -> tuple[Places | None, str]:
    """The places that a run was trained on, or None and a sentence. Raises KitError if `data` holds others."""
    without = "so that the nearest known places and those that look alike are left out."
    try:
        places = origin.reload_places(run, str(data))
    except (KitError, KeyError):
        if data:
            raise
        return None, f"The training data of {run.name} is not on this machine, {without}"
    if run.params["data"].get("places") != places.checksum:
        if data:
            raise KitError(f"{run.name}: expected the data that it was trained on; {places.folder.name} has changed")
        return None, f"{places.folder.name} is not the training data of {run.name} any more, {without}"
    return places, ""


def _treatment(run: Run, entry: dict) -> str:
    """What happens to a finding about photographs."""
    if "views" not in entry["check"]:
        return entry["action"]
    if run.settings.get("family") == "multiview" and run.settings.get("view_dropout"):
        return "they are left out, as in training with view dropout"
    return "the next view of the place stands in"


@dataclass(frozen=True, eq=False)
class Look:
    """Says which training places look like a photograph, by the features of a run's encoder."""

    encoder: Any
    dtype: Any

    @classmethod
    def of_run(cls, run: Run, known: Places) -> Look | None:
        """None unless the features of all training pictures are on this machine, as they are after training."""
        from kitlib.vision import device, embeddings

        settings = run.settings
        if "encoder" not in settings or not (known.derived / "pictures/train.npz").is_file():
            return None
        name = paths.joined(paths.located("encoder", settings["encoder"]))[0]  # of several, the first one's look
        encoder = linear_probe.load_encoder(known, name, settings.get("image_size", 0))
        dtype, pack = device.dtype_of(settings, device.best_device()), pictures.pack(known, "train")
        return cls(encoder, dtype) if embeddings.are_cached(pack, encoder, known.derived / EMBEDDED, dtype) else None

    def nearest(self, places: Places, known: Places, most: int, k: int = ALIKE) -> np.ndarray:
        """The rows (N, k) of the training places most like each of the first `most` queries of `places`."""
        from kitlib.vision import embeddings

        packs = pictures.pack(known, "train"), pictures.pack(places, "test")
        folders = known.derived / EMBEDDED, places.derived / EMBEDDED
        train, asked = (
            embeddings.embed(pack, self.encoder, folder, dtype=self.dtype).features.mean(axis=1, dtype=np.float32)
            for pack, folder in zip(packs, folders, strict=True)
        )
        mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
        train, asked = ((part - mean) / spread for part in (train, asked[:most]))
        train /= np.linalg.norm(train, axis=1, keepdims=True)
        similarity = asked @ train.T
        similarity[:, packs[0].unusable_places] = -np.inf
        return np.argsort(-similarity, axis=1)[:, : min(k, int((~packs[0].unusable_places).sum()))]


def radii_km(guesses: Guesses, shares: Sequence[float]) -> np.ndarray:
    """The radii (N, R) in km around each point within which at least `shares` (R,) of the weight of its points lies."""
    km = geo.distance_km(guesses.point()[:, None], guesses.points)  # (N, K)
    order = np.argsort(km, axis=1)
    km, weight = np.take_along_axis(km, order, 1), np.take_along_axis(guesses.weights, order, 1).cumsum(axis=1)
    last = km.shape[1] - 1
    index = [np.minimum((weight < share - 1e-6).sum(axis=1), last) for share in shares]
    return np.stack([np.take_along_axis(km, i[:, None], 1)[:, 0] for i in index], axis=1)
