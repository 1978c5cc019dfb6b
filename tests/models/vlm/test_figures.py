"""The figure of a training is made of the run's numbers, and a notebook shows it while its cell is still running."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import rollout_helper
from figure_helper import overlapping_texts, texts
from matplotlib.collections import PathCollection
from nbclient import NotebookClient
from notebook_helper import code, write_notebook

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.vlm import figures
from kitlib.models.vlm.conversation import rollouts

TRUTH = {"munich": [48.1, 11.6], "suva": [-18.1, 178.4]}


def frame(n_steps: int = 6, n_rollouts: int = 5) -> pd.DataFrame:
    """Groups that tighten: the guesses for Munich at every step, those for Suva across the date line at even ones."""
    rng, rows = np.random.default_rng(0), []
    for step in range(n_steps):
        for place in ["munich", "suva"][: 2 - step % 2]:
            for rollout in range(n_rollouts):
                point = np.array(TRUTH[place]) + rng.normal(0, 8 / (step + 1), 2)
                point[1] = (point[1] + 180) % 360 - 180
                silent = step == 0 and rollout == 0
                km = np.nan if silent else float(geo.distance_km(point, TRUTH[place]))
                rows.append(
                    {
                        "step": step, "phase": "train", "sample_id": place, "rollout": rollout, "truth": TRUTH[place],
                        "point": None if silent else point.tolist(), "km": km, "tau_km": 500.0 - 50 * step,
                        "reward": 0.0 if silent else float(np.exp(-km / 500)),
                    }
                )  # fmt: skip
    rows += [row | {"phase": "eval"} for row in rows if row["step"] == n_steps - 1]
    return pd.DataFrame(rows)


def dots(axes) -> np.ndarray:
    """The guesses on a map: the filled marks."""
    marks = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_zorder() == 3]
    return np.concatenate([np.asarray(mark.get_offsets()) for mark in marks])


def test_curves_are_the_summary():
    table = frame()
    figure = figures.learning(table, title="A training", note="drawn sample")
    summary = rollouts.summary(table)
    for axes, column in zip(figure.axes[:2], ("reward", "km"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for label, phase in (("training", "train"), ("evaluation", "eval")):
            np.testing.assert_allclose(lines[label].get_ydata(), summary.loc[summary["phase"] == phase, column])
    told = texts(figure)
    assert f"{table['km'].isna().sum()} of {len(table)} rollouts name no place" in told and "drawn sample" in told
    assert "tau 500 to 250 km" in told
    assert not overlapping_texts(figure)


def test_maps_show_one_place_at_steps_from_the_first_to_the_last_in_one_frame():
    table = frame()
    figure = figures.learning(table, maps=4)
    maps = figure.axes[2:]
    assert [axes.get_title("left").split("\n")[0] for axes in maps] == ["step 0", "step 2", "step 3", "step 5"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in maps}) == 1
    for axes, step in zip(maps, (0, 2, 3, 5), strict=True):
        rows = table[(table["sample_id"] == "munich") & (table["step"] == step) & (table["phase"] == "train")]
        wanted = np.array([point for point in rows["point"] if point is not None])
        np.testing.assert_allclose(dots(axes), wanted[:, ::-1])
        assert f"half within {rows['km'].median():,.3g} km" in axes.get_title("left")
    assert "1 silent" in maps[0].get_title("left")


def test_a_place_at_the_date_line_keeps_its_guesses_together():
    maps = figures.learning(frame(), "suva").axes[2:]
    assert len(maps) == 3 and np.ptp(dots(maps[0])[:, 0]) < 60


def test_many_steps_are_smoothed_and_few_are_not():
    lines = figures.learning(frame(70, 2)).axes[0].lines
    assert "training, running mean" in [line.get_label() for line in lines] and len(lines) == 3
    assert len(figures.learning(frame(1)).axes) == 3


def test_nothing_to_draw_is_refused():
    with pytest.raises(KitError, match="no rollouts yet"):
        figures.learning(frame().iloc[:0])
    with pytest.raises(KitError, match="no rollouts of 'oslo'"):
        figures.learning(frame(), "oslo")


def test_outside_a_notebook_nothing_is_shown(home, capsys):
    with figures.follow("run"):
        print("training")
    assert capsys.readouterr().out == "training\n"


NOTEBOOK = """
import time
from rollout_helper import row
from kitlib.core import paths
from kitlib.models.vlm import figures
from kitlib.models.vlm.conversation import rollouts
writer = rollouts.Writer(paths.run_dir("run") / "rollouts")
with figures.follow("run", every_s=0.2):
    for step in range(2):
        writer.write(step, [row(step, g, point=[48.0 + g / 10, 11.0]) for g in range(3)])
        time.sleep(2)
print("trained")
"""


@pytest.mark.slow
def test_a_notebook_shows_the_figure_while_its_cell_runs(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(rollout_helper.__file__).parent))
    book = nbformat.read(write_notebook(tmp_path / "live.ipynb", code(NOTEBOOK)), as_version=4)
    client = NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}})
    updates = []
    process = client.process_message

    def count(message, *rest):
        if message["header"]["msg_type"] == "update_display_data":
            updates.append(sorted(message["content"]["data"]))
        return process(message, *rest)

    monkeypatch.setattr(client, "process_message", count)
    client.execute()
    outputs = book.cells[0].outputs
    assert len(updates) >= 2 and all("image/png" in kinds for kinds in updates)
    assert [one.output_type for one in outputs] == ["display_data", "stream"]
    assert "image/png" in outputs[0].data and outputs[1].text == "trained\n"


def test_rewards_fall_to_1_e_at_tau():
    figure = figures.rewards_by_distance({"step 0": 2000.0, "step 99": 25.0}, title="What a distance earns")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["step 0: tau 2,000 km", "step 99: tau 25 km"]
    for line, tau in zip(axes.lines, (2000.0, 25.0), strict=True):
        assert np.interp(np.log(tau), np.log(line.get_xdata()), line.get_ydata()) == pytest.approx(1 / np.e, abs=1e-3)
