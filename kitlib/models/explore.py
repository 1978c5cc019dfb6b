"""One place at a time: the views, the guesses of one run or two, the truth, and the places that look alike.

explorer = Explorer(places, ["sample-multiview", "sample-retrieval"])
explorer.figure(17)             # the place with sample_id 17
explorer.widget()               # the same with menus, in JupyterLab
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
from kitlib.core.errors import KitError, shorten
from kitlib.data import photos, pictures
from kitlib.data.places import Places
from kitlib.evaluation import metrics, runs
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


class Explorer:
    """The training places of `places` with the out-of-fold guesses of one run or of two.

    encoder, image_size: whose features say which places look alike; "" as for the baseline.
    """

    def __init__(self, places: Places, names: Sequence[str], encoder: str = "", image_size: int = 0) -> None:
        if not 1 <= len(names) <= 2:
            raise KitError(f"runs: expected one or two; got {', '.join(names) or 'none'}")
        self.places, self._encoder = places, (encoder, image_size)
        self.guesses = {name: runs.open_run(name).guesses("oof") for name in names}
        for name in names:
            if runs.open_run(name).params["data"].get("places") != places.checksum:
                raise KitError(f"{name}: expected a run on {places.name} as it is now; it was trained on other places")
        self.rows = pd.Series(np.arange(len(places.rows("train"))), index=places.sample_id("train"))

    @cached_property
    def table(self) -> pd.DataFrame:
        """The errors of the first run: sample_id, state, guess, probability, right, km, and `sure and wrong`."""
        table = metrics.error_table(next(iter(self.guesses.values())), self.places)
        return table.assign(**{"sure and wrong": table["probability"].where(~table["right"], 0.0)})

    @cached_property
    def features(self) -> np.ndarray:
        """Unit vectors (N, D) of the training places' frozen features."""
        embedded = linear_probe.embed(self.places, linear_probe.load_encoder(self.places, *self._encoder))["train"]
        mean = linear_probe.mean_features(embedded)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def ids(self, state: str = "", order: str = "largest error") -> list[Any]:
        """The guessed places, of one true state or of all, in one of `ORDERS`."""
        if order not in ORDERS:
            raise KitError(f"order: expected one of {', '.join(ORDERS)}; got {order!r}")
        column, ascending = ORDERS[order]
        if state and state not in set(self.table["state"]):
            raise KitError(f"state: expected one of {shorten(sorted(set(self.table['state'])))}; got {state!r}")
        table = self.table if not state else self.table[self.table["state"] == state]
        return table.sort_values(column, ascending=ascending, kind="stable")["sample_id"].tolist()

    def find(self, text: str) -> Any:
        """The guessed place whose id reads as `text`. Raises KitError if there is none."""
        for sample_id in self.table["sample_id"]:
            if str(sample_id) == str(text).strip():
                return sample_id
        raise KitError(f"sample_id: expected a training place with a guess; got {text!r}")

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
            {name: self._opinion(guesses, sample_id) for name, guesses in self.guesses.items()},
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

        name: of the run, the first one when empty. All of its folds answer, so that most have learned from the place.
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
            answer = self._ask(name, covered, Path(folder))
        probs = answer.state_probs[:, int(answer.state_probs[0].argmax())]
        drop = (probs[0] - probs[1:]).reshape(len(views), parts, parts)
        state = self.places.states.set_index("state_idx")["state"].loc[answer.top_states(1)[0, 0]]
        title = f"{sample_id}: what {name} calls {state} ({probs[0]:.0%})"
        return page.decisive(views, self.places.views, drop, title, self.places.note)

    def widget(self) -> Any:
        """Menus of states, orders and places above the figure of the chosen place; for a running kernel."""
        import ipywidgets

        everywhere = "all states"
        state = ipywidgets.Dropdown(options=[everywhere, *sorted(set(self.table["state"]))], description="State")
        order = ipywidgets.Dropdown(options=list(ORDERS), description="Order")
        chosen = ipywidgets.Dropdown(description="Place")
        typed = ipywidgets.Text(description="or id", continuous_update=False)
        shown, message = ipywidgets.Image(), ipywidgets.Label()

        def offer(ids: Sequence[Any]) -> None:
            chosen.options = [(self._line(sample_id), sample_id) for sample_id in ids]
            chosen.value = ids[0]  # new options leave the old choice, or none

        def fill(_: Any = None) -> None:
            ids = self.ids("" if state.value == everywhere else state.value, order.value)[:LISTED]
            offer(ids)

        def draw(_: Any = None) -> None:
            if chosen.value is None:
                return
            message.value, shown.value = "", self.figure(chosen.value)._repr_png_()

        def find(_: Any = None) -> None:
            try:
                offer([self.find(typed.value)])
            except KitError as error:
                message.value = str(error)

        state.observe(fill, "value")
        order.observe(fill, "value")
        typed.observe(find, "value")
        chosen.observe(draw, "value")
        fill()
        draw()
        return ipywidgets.VBox([ipywidgets.HBox([state, order]), ipywidgets.HBox([chosen, typed]), message, shown])

    def _row(self, sample_id: Any) -> int:
        if sample_id not in self.rows.index or not (self.table["sample_id"] == sample_id).any():
            raise KitError(f"sample_id: expected a training place with a guess; got {sample_id!r}")
        return int(self.rows[sample_id])

    def _line(self, sample_id: Any) -> str:
        row = self.table.set_index("sample_id").loc[sample_id]
        return f"{sample_id}: {row['state']}, guess {row['guess']} ({row['probability']:.0%}), {row['km']:,.0f} km"

    def _alike(self, row: int, k: int) -> np.ndarray:
        similarity = self.features @ self.features[row]
        similarity[row] = -np.inf
        return np.argsort(-similarity)[: min(k, len(similarity) - 1)]

    def _opinion(self, guesses: Guesses, sample_id: Any) -> page.Opinion:
        own = guesses.at(np.array([sample_id]))
        order = np.argsort(-own.state_probs[0], kind="stable")[:TOP]
        names = self.places.states.set_index("state_idx")["state"].loc[own.state_idx[order]].tolist()
        return page.Opinion(names, own.state_probs[0, order], own.points[0], own.weights[0], own.point()[0])

    def _ask(self, name: str, shots: dict[str, np.ndarray], folder: Path) -> Guesses:
        """The guesses of a run for places (V, H, W, 3) by name, in their order."""
        rows = []
        for sample_id, views in shots.items():
            files = {view: f"{sample_id}_{view}.jpg" for view in self.places.views}
            for file, picture in zip(files.values(), views, strict=True):
                Image.fromarray(picture).save(folder / file, quality=95)
            rows.append({"sample_id": f"p{sample_id}"} | {f"image_{view}": file for view, file in files.items()})
        pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
        queries = photos.read(folder, self.places.states, self.places.views)
        try:
            guesses = locate.guesses_of(runs.open_run(name), replace(self.places, queries=queries))
        finally:
            shutil.rmtree(queries.derived, ignore_errors=True)
        return guesses.at(np.array([row["sample_id"] for row in rows]))
