"""One place at a time: the views, the guesses of one run or two, the truth, and the places that look alike.

explorer = Explorer(places, ["sample-multiview", "sample-retrieval"])
explorer.figure(17)             # the place with sample_id 17
explorer.widget()               # the same with a map to click on and menus, in JupyterLab
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kitlib import geo
from kitlib.core import paths
from kitlib.core.errors import KitError, shorten
from kitlib.data import folds, photos, pictures
from kitlib.data.places import Places
from kitlib.evaluation import fold_files, metrics, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.figures import place as page
from kitlib.models import linear_probe, locate

ORDERS = {
    "largest error": ("km", False),
    "smallest error": ("km", True),
    "surest wrong state": ("sure and wrong", False),
    "surest": ("probability", False),
    "least sure": ("probability", True),
    "id": ("sample_id", True),
}
TOP, ALIKE, SIDE = 5, 4, 224  # states, similar places, pixels of a picture
LISTED = 200  # places in the menu: more make it slow, and nobody scrolls
SURE = 0.5  # probability from which a wrong state is "sure and wrong"
ERRORS_KM = (200, 750, 2500)  # between the colours of errors
COLOURINGS = {  # the legend and the colours of the map
    "right or wrong": (["right", "wrong", f"wrong, {SURE:.0%} sure and more"], ["#0369a1", "#f59e0b", "#b91c1c"]),
    "error": (["below 200 km", "to 750 km", "to 2,500 km", "above"], ["#fbbf24", "#ea580c", "#a21caf", "#312e81"]),
}


class Explorer:
    """The training places of `places` with the out-of-fold guesses of one run or of two.

    encoder, image_size: whose features say which places look alike; "" that of the first run that has one, or else as
    for the baseline.
    """

    def __init__(self, places: Places, names: Sequence[str], encoder: str = "", image_size: int = 0) -> None:
        if not 1 <= len(names) <= 2:
            raise KitError(f"runs: expected one or two; got {', '.join(names) or 'none'}")
        used = next((s for name in names if "encoder" in (s := runs.open_run(name).settings)), None)
        if not encoder and used:
            encoder, image_size = paths.located("encoder", used["encoder"]), used.get("image_size", 0)
        self.places, self._encoder = places, (encoder, image_size)
        self.guesses = {name: runs.open_run(name).guesses("oof") for name in names}
        for name in names:
            if runs.open_run(name).params["data"].get("places") != places.checksum:
                raise KitError(f"{name}: expected a run on {places.name} as it is now; it was trained on other places")
        self._slots = {name: pd.Index(guesses.sample_id) for name, guesses in self.guesses.items()}

    @cached_property
    def table(self) -> pd.DataFrame:
        """The errors of the first run: sample_id, state, guess, probability, right, km, and `sure and wrong`."""
        table = metrics.error_table(next(iter(self.guesses.values())), self.places)
        return table.assign(**{"sure and wrong": table["probability"].where(~table["right"], 0.0)})

    @cached_property
    def _by_id(self) -> pd.DataFrame:
        return self.table.set_index("sample_id")

    @cached_property
    def _by_text(self) -> dict[str, Any]:
        return {str(sample_id): sample_id for sample_id in self.table["sample_id"]}

    @cached_property
    def features(self) -> np.ndarray:
        """Unit vectors (N, D) of the training places' frozen features."""
        embedded = linear_probe.embed(self.places, linear_probe.load_encoder(self.places, *self._encoder))["train"]
        mean = linear_probe.mean_features(embedded)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def ids(
        self,
        state: str = "",
        order: str = "largest error",
        least_km: float = 0.0,
        most_km: float = np.inf,
        sure_and_wrong: bool = False,
    ) -> list[Any]:
        """The guessed places in one of `ORDERS`: of one true state or of all, with errors from `least_km` to `most_km`.

        sure_and_wrong: only those whose wrong state has a probability of at least `SURE`.
        """
        if order not in ORDERS:
            raise KitError(f"order: expected one of {', '.join(ORDERS)}; got {order!r}")
        column, ascending = ORDERS[order]
        if state and state not in set(self.table["state"]):
            raise KitError(f"state: expected one of {shorten(sorted(set(self.table['state'])))}; got {state!r}")
        kept = self.table["km"].between(least_km, most_km)
        if state:
            kept &= self.table["state"] == state
        if sure_and_wrong:
            kept &= self.table["sure and wrong"] >= SURE
        table = self.table[kept]
        return table.sort_values(column, ascending=ascending, kind="stable")["sample_id"].tolist()

    def find(self, text: str) -> Any:
        """The guessed place whose id reads as `text`. Raises KitError if there is none."""
        if (key := str(text).strip()) not in self._by_text:
            raise KitError(f"sample_id: expected a training place with a guess; got {text!r}")
        return self._by_text[key]

    def figure(self, sample_id: Any, alike: int = ALIKE) -> Any:
        """Everything about one place. Raises KitError for an id that is not a guessed training place."""
        row = self._row(sample_id)
        own = self.places.rows("train").iloc[row]
        pack = pictures.pack(self.places, "train")
        neighbours = self._alike(row, alike)
        others = self.places.rows("train").iloc[neighbours]
        truth = np.array([own["latitude"], own["longitude"]])
        km = geo.distance_km(truth, others[["latitude", "longitude"]].to_numpy(float))
        captions = [f"{state}, {d:,.0f} km" for state, d in zip(others["state"], km, strict=True)]
        return page.place(
            pack.decode(np.array([row]), SIDE)[0],
            self.places.views,
            {name: self._opinion(name, sample_id) for name in self.guesses},
            truth,
            own["state"],
            pack.decode(neighbours, SIDE)[:, 0] if len(neighbours) else None,
            captions,
            title=f"{sample_id}: {own['state']}",
            note=" · ".join(
                filter(None, [f"below: alike, {self.places.views[0]} view" if alike else "", self.places.note])
            ),
        )

    def decisive(self, sample_id: Any, parts: int = 6, name: str = "") -> Any:
        """Which parts of a place's pictures its first state depends on: each of parts x parts patches is covered once.

        name: of the run, the first one when empty. The model of the fold that held the place out answers; a
        baseline keeps one model of all places, which does then.
        """
        name = name or next(iter(self.guesses))
        views = pictures.pack(self.places, "train").decode(np.array([self._row(sample_id)]), 2 * SIDE)[0]
        edges = np.linspace(0, 2 * SIDE, parts + 1).astype(int)
        with tempfile.TemporaryDirectory() as folder:
            covered = {"0": views}
            for v, r, c in np.ndindex(len(views), parts, parts):
                covered[f"{v}-{r}-{c}"] = grey = views.copy()
                patch = slice(edges[r], edges[r + 1]), slice(edges[c], edges[c + 1])
                grey[v][patch] = grey[v].mean(axis=(0, 1))
            answer = self._ask(name, covered, Path(folder), self._fold(name, sample_id))
        probs = answer.state_probs[:, int(answer.state_probs[0].argmax())]
        drop = (probs[0] - probs[1:]).reshape(len(views), parts, parts)
        state = self.places.states.set_index("state_idx")["state"].loc[answer.top_states(1)[0, 0]]
        title = f"{sample_id}: what {name} calls {state} ({probs[0]:.0%})"
        return page.decisive(views, self.places.views, drop, title, self.places.note)

    def widget(self) -> Any:
        """A map to click on and menus above the figure of the chosen place; for a running kernel.

        Without the library anywidget, as on Kaggle, there is no map.
        """
        import ipywidgets as w

        everywhere, most = "all states", float(np.ceil(self.table["km"].max()))
        state = w.Dropdown(options=[everywhere, *sorted(set(self.table["state"]))], description="State")
        order = w.Dropdown(options=list(ORDERS), description="Order")
        km = w.FloatRangeSlider(
            value=(0, most), max=most, step=1, description="Error, km", readout_format=",.0f", continuous_update=False
        )
        sure = w.Checkbox(description="sure and wrong", indent=False)
        colour = w.Dropdown(options=list(COLOURINGS), description="Colour")
        chosen, shown, message = w.Dropdown(description="Place"), w.Image(), w.Label()
        typed = w.Text(description="or id", continuous_update=False)
        shown.layout = w.Layout(max_width="100%")
        picker = self._picker()

        def offer(ids: Sequence[Any]) -> None:
            chosen.options = [(self._line(sample_id), sample_id) for sample_id in ids]
            chosen.value = ids[0]  # new options leave the old choice, or none

        def fill(_: Any = None) -> None:
            ids = self.ids("" if state.value == everywhere else state.value, order.value, *km.value, sure.value)
            message.value = f"{len(ids):,} places" + (f", the first {LISTED} in the menu" if len(ids) > LISTED else "")
            if picker:
                picker.show_only(self.table["sample_id"].isin(ids))
            if ids:
                offer(ids[:LISTED])

        def draw(_: Any = None) -> None:
            if chosen.value is None:
                return
            if picker:
                picker.chosen = int(self._by_id.index.get_loc(chosen.value))
            shown.value = self.figure(chosen.value)._repr_png_()

        def find(_: Any = None) -> None:
            try:
                offer([self.find(typed.value)])
            except KitError as error:
                message.value = str(error)

        def click(change: Any) -> None:
            sample_id = self.table["sample_id"].iloc[change["new"]]
            if sample_id != chosen.value:
                offer([sample_id])

        for menu in (state, order, km, sure):
            menu.observe(fill, "value")
        typed.observe(find, "value")
        chosen.observe(draw, "value")
        if picker:
            picker.observe(click, "chosen")
            colour.observe(lambda change: picker.paint(*self._paint(change["new"])), "value")
        fill()
        rows = [w.HBox([state, order, colour]), w.HBox([km, sure]), w.HBox([chosen, typed])]
        for row in rows:
            row.layout.flex_flow = "row wrap"
        return w.VBox([*rows, message, *([picker] if picker else []), shown])

    def _picker(self) -> Any:
        """The map of all guessed places, None without anywidget."""
        try:
            from kitlib.figures.picker import Picker
        except ImportError:
            return None
        points = self.table[["latitude", "longitude"]].to_numpy(float)
        labels = self.table["sample_id"].astype(str) + ": " + self.table["state"]
        picker = Picker.of(points, labels.tolist())
        picker.paint(*self._paint(next(iter(COLOURINGS))))
        return picker

    def _paint(self, colouring: str) -> tuple[np.ndarray, list[str], list[str]]:
        """The colour (N,) of each place, the legend and the colours."""
        if colouring == "error":
            codes = np.searchsorted(ERRORS_KM, self.table["km"].to_numpy())
        else:
            codes = (~self.table["right"]).to_numpy(int) + (self.table["sure and wrong"] >= SURE).to_numpy(int)
        return codes, *COLOURINGS[colouring]

    def _row(self, sample_id: Any) -> int:
        if sample_id not in self._by_id.index:
            raise KitError(f"sample_id: expected a training place with a guess; got {sample_id!r}")
        return int(self._by_id.at[sample_id, "row"])

    def _line(self, sample_id: Any) -> str:
        row = self._by_id.loc[sample_id]
        return f"{sample_id}: {row['state']}, guess {row['guess']} ({row['probability']:.0%}), {row['km']:,.0f} km"

    def _alike(self, row: int, k: int) -> np.ndarray:
        similarity = self.features @ self.features[row]
        similarity[row] = -np.inf
        return np.argsort(-similarity)[: min(k, len(similarity) - 1)]

    def _fold(self, name: str, sample_id: Any) -> list[int]:
        """The fold of a run that held a place out, if it is trained."""
        run = runs.open_run(name)
        column = run.settings.get("folds_column", "")
        if column not in folds.KINDS or not fold_files.done_folds(run):
            return []
        table = folds.load_or_make(self.places, run.settings["n_folds"])
        fold = int(table[column].iloc[self._row(sample_id)])
        return [fold] if fold_files.is_done(run, fold) else []

    def _opinion(self, name: str, sample_id: Any) -> page.Opinion:
        if (slot := self._slots[name].get_indexer([sample_id])[0]) < 0:
            raise KitError(f"{name}: expected a guess for place {sample_id}; it has none")
        own = self.guesses[name].take(np.array([slot]))
        order = np.argsort(-own.state_probs[0], kind="stable")[:TOP]
        names = self.places.states.set_index("state_idx")["state"].loc[own.state_idx[order]].tolist()
        return page.Opinion(names, own.state_probs[0, order], own.points[0], own.weights[0], own.point()[0])

    def _ask(self, name: str, shots: dict[str, np.ndarray], folder: Path, only_folds: Sequence[int]) -> Guesses:
        """The guesses of a run's folds for places (V, H, W, 3) by name, in their order."""
        rows = []
        for sample_id, views in shots.items():
            files = {view: f"{sample_id}_{view}.jpg" for view in self.places.views}
            for file, picture in zip(files.values(), views, strict=True):
                Image.fromarray(picture).save(folder / file, quality=95)
            rows.append({"sample_id": f"p{sample_id}"} | {f"image_{view}": file for view, file in files.items()})
        pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
        queries = photos.read(folder, self.places.states, self.places.views)
        try:
            run = runs.open_run(name)
            guesses = locate.guesses_of(run, replace(origin.learned_places(run), queries=queries), only_folds)
        finally:
            shutil.rmtree(queries.derived, ignore_errors=True)
        return guesses.at(np.array([row["sample_id"] for row in rows]))
